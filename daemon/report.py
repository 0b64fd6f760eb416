"""What the daemon says of itself: metrics from what the relay does, and the status a person reads.

Knows the relay, the breakers and the bell by their looks. Changes nothing.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from daemon.batch import Batch
from daemon.breaker import Breaker
from daemon.doorway import Doorway
from daemon.lead import Keeper
from daemon.leaders import Company
from daemon.metrics import Metrics
from daemon.mode import Facts as ModeFacts
from daemon.mode import Mode, Worth, judge
from daemon.origin import Origin
from daemon.plan import Plan
from daemon.relay import Relay
from daemon.target import Answer
from daemon.verdict import SMALL, STANDING_BY, Facts, Finding, equal, findings, sentence
from daemon.wakeup import Bell
from daemon.watchlist import Tables
from outbox import __version__

log = structlog.get_logger()

_STUCK = 15.0  # seconds beyond the request's deadline without a sign of the relay's loop


class Observed:
    """The relay's observer: turns what it does into metrics. `on_change`: the mode may be another now."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.on_change: Callable[[], None] = lambda: None

    def batch_read(self, batch: Batch, seconds: float) -> None:
        self._metrics.batch_read(0 if batch.copied or batch.checked else batch.count, seconds)

    def batch_applied(self, batch: Batch, plan: Plan, answer: Answer, seconds: float) -> None:
        until = batch.read_us / 1e6 + seconds
        self._metrics.batch_applied(
            plan.counts,
            latencies=[until - at / 1e6 for sheaf in batch.sheaves for at in sheaf.times],
            superseded=plan.superseded,
            duplicate=answer.what == "duplicate",
            gear=int(answer.more.get("gear", 1)),
            torn=batch.torn,
            seconds=seconds,
        )
        self._passed(batch, until)

    def heartbeat_arrived(self, batch: Batch, latency: float, seconds: float) -> None:
        self._metrics.heartbeat_arrived(latency)
        if not batch.sheaves:  # else it has been told
            self._passed(batch, batch.read_us / 1e6 + seconds)

    def _passed(self, batch: Batch, until: float) -> None:
        ends = [(sheaf.ids[-1], sheaf.times[-1]) for sheaf in batch.sheaves]
        newest_id, newest_at = max([*ends, *((beat.id, beat.created_us) for beat in batch.beats)])
        self._metrics.cursor_moved(newest_id)
        # What a batch proves is newer than the gauges' last look, which on a busy source always finds something
        # in flight: left alone, that would seem to grow old until the next look.
        gone = batch.count + len(batch.beats)
        left = max(1, int(max(0.0, self._metrics.lag.backlog()) - gone)) if batch.more else 0
        self._metrics.lag.observe(until - newest_at / 1e6 if batch.more else 0.0, left)

    def stage(self, name: str, seconds: float) -> None:
        self._metrics.stage_took(name, seconds)

    def tables_known(self, tables: Iterable[str]) -> None:
        self._metrics.tables_watched(tables)

    def letters_held(self, tables: Mapping[str, int]) -> None:
        self._metrics.letters_held(tables)

    def keys_held(self, keys: int) -> None:
        self._metrics.keys_held(keys)

    def rejected(self, breaker: str) -> None:
        self._metrics.breaker_rejected(breaker)

    def turn_failed(self, reason: str) -> None:
        self._metrics.retried(reason)

    def woken(self, reason: str) -> None:
        self._metrics.woken(reason)

    def state_changed(self, state: str) -> None:
        self._metrics.set_state(state)
        self.on_change()

    def left_out(self, changes: int) -> None:
        self._metrics.left_out(changes)

    def rows_copied(self, table: str, rows: int) -> None:
        self._metrics.rows_copied(table, rows)

    def breaker_changed(self, breaker: str, to: str) -> None:
        self._metrics.breaker_changed(breaker, to)
        self.on_change()


class Judge:
    """The mode as it is, and since when. Whoever shows it asks here."""

    def __init__(self, relay: Relay, breaker: Breaker, doorway: Doorway, metrics: Metrics) -> None:
        self._relay = relay
        self.breaker = breaker
        self.doorway = doorway
        self._metrics = metrics
        self.worth = self._judged()
        self._told: Mode | None = None  # what the log was told last
        self.since = time.time()
        metrics.set_mode(self.worth.mode, self.since)

    def look(self) -> None:
        """Judge anew; tell the log and the metrics when the mode is another than before."""
        self.worth = self._judged()
        mode, before = self.worth.mode, self._told
        self._told = mode
        if mode is before or (before is None and mode is Mode.FULL):
            return
        self.since = time.time()
        self._metrics.set_mode(mode, self.since)
        log.log(20 if mode is Mode.FULL else 30, "mode_changed", mode=mode, before=before, because=self.worth.because)

    def _judged(self) -> Worth:
        status, breaker, doorway = self._relay.status, self.breaker, self.doorway
        return judge(
            ModeFacts(
                doorway.lacking, doorway.refused, breaker.state, breaker.last_error, status.problem, status.problem_kind
            )
        )  # fmt: skip


@dataclass(slots=True)
class Seen:
    """What a look at both sides has shown last (daemon/survey.py). `tables` None: nobody has looked yet, or
    can (`unseen`: why)."""

    tables: Tables | None = None
    origin: Origin | None = None
    unseen: str | None = None

    def installation(self) -> str | None:
        """Of schema outbox on the source."""
        return self.origin.installation if self.origin else None


@dataclass(frozen=True, slots=True)
class Report:
    """The views of the admin server. `small`: seconds of lag that are none."""

    name: str
    relay: Relay
    judge: Judge
    bell: Bell
    keeper: Keeper
    metrics: Metrics
    deadline: float
    started: float
    small: float = SMALL
    company: Company = field(default_factory=Company)
    seen: Seen = field(default_factory=Seen)

    def alive(self) -> bool:
        """Does the relay's loop turn? Says nothing about either store."""
        return time.monotonic() - self.relay.beat < self.deadline + _STUCK

    def ready(self) -> tuple[bool, Mapping[str, Any]]:
        """Is this process doing its part: leading and moving, or standing by?"""
        status, judge = self.relay.status, self.judge
        judge.look()
        barred = self.company.barred if status.state == "standby" else None
        ready = status.state in {"streaming", "catching_up", "standby"} and barred is None
        why = {"state": status.state, "mode": judge.worth.mode, "breaker": str(judge.breaker.state)}
        return ready, {
            **why,
            "problem": judge.doorway.lacking or status.problem or (barred.sentence if barred else None),
        }

    def copies(self) -> list[dict[str, Any]]:
        """The tables' copies, as whoever leads knows them."""
        return self.relay.copier.report() if self.keeper.leads else []

    def verifications(self) -> list[dict[str, Any]]:
        """What is known of the tables' equality, as whoever leads knows it."""
        return self.relay.verifier.report() if self.keeper.leads else []

    def findings(self) -> tuple[Finding, ...] | None:
        """What keeps the stores from being called in sync; None: whoever leads is to be asked."""
        status = self.relay.status
        barred = self.company.barred
        if status.state == "standby" and barred is None:
            return None
        if status.state == "starting" and status.problem is None:
            return (Finding("unknown", "starting"),)
        self.judge.look()
        worth, tables, copier = self.judge.worth, self.seen.tables, self.relay.copier
        copies = None if self.relay.stated is None else copier.copies
        lag, backlog = self.metrics.lag.now()
        return findings(
            Facts(
                disabled=worth.because if worth.mode is Mode.DISABLED else None,
                problem=status.problem,
                paused=status.state == "paused",
                leads=self.keeper.leads or self.company.leader is not None,
                barred=barred.sentence if barred else None,
                tables=None if tables is None else tables.entries(copies, copier.wishes, copier.slow),
                unseen=None if status.problem else self.seen.unseen,
                verifications=self.verifications(),
                held=status.held_keys,
                backlog=backlog,
                lag=lag,
                small=self.small,
            )
        )

    def counted(self) -> Mapping[str, int] | None:
        """The findings by their kind, for metrics."""
        found = self.findings()
        return None if found is None else {one.kind: one.many for one in found}

    def status(self) -> dict[str, Any]:
        """What `/api/status` shows."""
        status, breaker, copies = self.relay.status, self.judge.breaker, self.copies()
        verifications = self.verifications()
        self.judge.look()
        worth = self.judge.worth
        lag, backlog = self.metrics.lag.seconds(), self.metrics.lag.backlog()
        known = not math.isnan(lag)
        found = self.findings()
        return {
            "verdict": STANDING_BY if found is None else sentence(found),
            "findings": [{"kind": one.kind, "text": one.text} for one in found or ()],
            "relay": self.name,
            "source": self.seen.origin.told() if self.seen.origin else None,
            "state": status.state,
            "since": iso(status.since),
            "mode": worth.mode,
            "mode_because": worth.because,
            "mode_since": iso(self.judge.since),
            "leads": self.keeper.leads,
            **self.company.told(pooled=self.bell.pooled),
            "problem": status.problem,
            "problem_kind": status.problem_kind,
            "lag_seconds": round(lag, 3) if known else None,
            "backlog_changes": int(backlog) if known else None,
            "applied_changes": status.applied,
            "held_keys": status.held_keys,
            "copies": copies,
            "verifications": dated(verifications),
            "equal": as_of(equal(verifications, status.held_keys)),
            "last_applied": iso(status.last_applied),
            "heartbeat": heartbeat(status.pulse.written, status.pulse.arrived, status.pulse.seconds),
            "cursor": {"snapshot": status.cursor.snapshot, "floor_id": status.cursor.floor_id}
            if status.cursor
            else None,
            "epoch": status.epoch,
            "batch_no": status.batch_no,
            "breaker": {
                "state": str(breaker.state),
                "retry_in_seconds": round(breaker.retry_in, 2),
                "failure_ratio": round(breaker.failure_ratio, 3),
                "last_error": breaker.last_error,
            },
            "listener": {"connected": self.bell.connected, "pooled": self.bell.pooled, "asleep": self.bell.armed},
            "version": __version__,
            "started": iso(self.started),
        }


def dated(verifications: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """With times as a person reads them."""
    return [{**one, "through": iso(one["through"]), "began": iso(one["began"])} for one in verifications]


def as_of(equal: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """With the time as a person reads it."""
    return None if equal is None else {**equal, "through": iso(equal["through"])}


def heartbeat(written: float | None, arrived: float | None, seconds: float | None) -> dict[str, Any] | None:
    """The last one written, when one last arrived, and how long that one took; None before the first."""
    if written is None and arrived is None:
        return None
    took = None if seconds is None else round(seconds, 3)
    return {"written": iso(written), "arrived": iso(arrived), "seconds": took}


def iso(when: float | None) -> str | None:
    """Unix time as RFC 3339, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when)) if when else None
