"""Every number the daemon tells Prometheus, behind methods that speak of changes, batches and breakers.

Knows what moves which series. Must not know who calls, nor decide anything. One registry per instance, so that two
daemons in a process, or two tests, do not meet.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, generate_latest

from daemon.collectors import Lag, Report, Verdict, Verified, WithoutCreated, tables_in
from daemon.series import (
    BREAKER_STATES,
    COPIES,
    LEVELS,
    OPS,
    RETRIES,
    STATES,
    TARGET_MODES,
    VERIFICATIONS,
    Series,
    one_hot,
)
from outbox import __version__

_TABLES = 50  # distinct values of the label `table`, the rest is "other"
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    def __init__(
        self,
        version: str = __version__,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._registry = CollectorRegistry()
        self._wall = wall
        self._tables: set[str] = set()
        self._listener_up = self._listened = False
        self.lag = Lag(clock, wall)
        self._series = Series(self._registry, version, self.lag)
        self.set_state("starting")

    # -- the relay -------------------------------------------------------------------------------------------

    def set_state(self, state: str) -> None:
        one_hot(self._series.state, STATES, state)

    def set_mode(self, mode: str, since: float) -> None:
        one_hot(self._series.target_mode, TARGET_MODES, mode)
        self._series.mode_since.set(since)

    def leadership(self, *, leads: bool, listening: bool) -> None:
        """How the connection stands that listens and holds the leader's lock."""
        self._series.leader.set(leads)
        if listening and not self._listener_up and self._listened:
            self._series.reconnects.inc()
        self._listener_up, self._listened = listening, self._listened or listening
        self._series.listener.set(listening)

    def stage_took(self, stage: str, seconds: float) -> None:
        self._series.stage.labels(stage).observe(seconds)

    def woken(self, reason: str) -> None:
        self._series.wakeups.labels(reason).inc()

    def retried(self, reason: str) -> None:
        self._series.retries.labels(reason if reason in RETRIES else "other").inc()

    def loop_lag(self, seconds: float) -> None:
        self._series.loop_lag.set(seconds)

    def logged(self, level: str) -> None:
        self._series.messages.labels(level if level in LEVELS else "error").inc()

    def log_dropped(self) -> None:
        self._series.dropped.inc()

    # -- changes ---------------------------------------------------------------------------------------------

    def tables_watched(self, tables: Iterable[str]) -> None:
        """Begin the series of these tables at 0."""
        for table in tables:
            self._series.letters.labels(self._label(table))
            self._series.copied.labels(self._label(table))
            self._series.verified.labels(self._label(table))
            self._series.repaired.labels(self._label(table))
            for op in OPS:
                self._series.applied.labels(self._label(table), op)

    def batch_read(self, changes: int, seconds: float) -> None:
        self._series.read.inc(changes)
        self._series.stage.labels("read").observe(seconds)
        self._series.query.labels("read").observe(seconds)

    def batch_applied(
        self,
        counts: Mapping[tuple[str, str], int],
        *,
        latencies: Iterable[float],
        superseded: int = 0,
        duplicate: bool = False,
        gear: int = 1,
        torn: int = 0,
        seconds: float,
    ) -> None:
        """A batch the target has, by its own word: `counts` are its changes by table and op.

        A duplicate was applied by a request whose answer was lost: it is counted now, as it was not then.
        """
        for (table, op), count in counts.items():
            self._series.applied.labels(self._label(table), op).inc(count)
        changes = sum(counts.values())
        self._series.skipped.labels("superseded").inc(0 if duplicate else superseded)
        self._series.skipped.labels("duplicate").inc(changes if duplicate else 0)
        self._series.latency.observe(latencies)
        self._series.batch.observe(changes)
        self._series.batches.labels(str(gear)).inc()
        self._series.torn.inc(torn)
        self._series.stage.labels("apply").observe(seconds)
        self._series.last_applied.set(self._wall())

    def letters_held(self, tables: Mapping[str, int]) -> None:
        """Changes that became dead letters, by table."""
        for table, letters in tables.items():
            self._series.letters.labels(self._label(table)).inc(letters)

    def left_out(self, changes: int) -> None:
        """Changes that were not sent, for their table is out: it is copied anew when it fits."""
        self._series.skipped.labels("out").inc(changes)

    def rows_copied(self, table: str, rows: int) -> None:
        """Rows of a table came over."""
        self._series.copied.labels(self._label(table)).inc(rows)

    def show_copies(self, report: Report) -> None:
        """Where each table's copy stands, asked at scrape time."""
        for state in COPIES:
            self._series.copies.labels(state).set_function(partial(tables_in, report, state))

    def verify_every(self, seconds: float) -> None:
        self._series.verify_every.set(seconds)

    def rows_verified(self, table: str, rows: int, repaired: int) -> None:
        """Rows of a table were compared, or found equal after they were repaired."""
        self._series.verified.labels(self._label(table)).inc(rows)
        self._series.repaired.labels(self._label(table)).inc(repaired)

    def show_verifications(self, report: Report) -> None:
        """What the tables' verifications have found, asked at scrape time."""
        for state in VERIFICATIONS:
            self._series.verifications.labels(state).set_function(partial(tables_in, report, state))
        self._registry.register(Verified(report, self._label))

    def show_verdict(self, kinds: Collection[str], findings: Callable[[], Mapping[str, int] | None]) -> None:
        """What keeps the stores from being called in sync, of a closed set of kinds, asked at scrape time."""
        self._registry.register(Verdict(kinds, findings))

    def keys_held(self, keys: int) -> None:
        self._series.held.set(keys)

    def cursor_moved(self, change_id: int) -> None:
        self._series.cursor_id.set(change_id)

    def heartbeat_every(self, seconds: float) -> None:
        self._series.beat_every.set(seconds)

    def heartbeat_written(self, at: float) -> None:
        """By the source's clock."""
        self._series.beat_written.set(at)

    def heartbeat_arrived(self, latency: float) -> None:
        self._series.beat_latency.set(latency)
        self._series.beat_applied.set(self._wall())

    def _label(self, table: str) -> str:
        if table not in self._tables:
            if len(self._tables) >= _TABLES:
                return "other"
            self._tables.add(table)
        return table

    # -- source, target, breakers ----------------------------------------------------------------------------

    def source_health(self, *, oldest_transaction: float, rows: float, size: float, newest_id: int) -> None:
        self._series.oldest.set(oldest_transaction)
        self._series.rows.set(max(rows, 0))  # -1 says that the table was never analysed
        self._series.bytes.set(size)
        self._series.source_id.set(newest_id)

    def pruned(self, *, emptied: bool, up_to_id: int) -> None:
        self._series.pruned.inc(emptied)
        self._series.pruned_id.set(up_to_id)

    def source_query(self, query: str, seconds: float) -> None:
        self._series.query.labels(query).observe(seconds)

    def target_request(self, mode: str, outcome: str, seconds: float, size_bytes: int) -> None:
        self._series.request.labels(mode, outcome).observe(seconds)
        if mode == "apply":  # the others are a few bytes, and would hide the sizes that matter
            self._series.size.observe(size_bytes)

    def breaker_changed(self, breaker: str, to: str) -> None:
        one_hot(self._series.breaker, BREAKER_STATES, to, breaker)
        self._series.moves.labels(breaker, to).inc()

    def breaker_rejected(self, breaker: str) -> None:
        self._series.rejected.labels(breaker).inc()

    def breaker_ratio(self, breaker: str, ratio: float) -> None:
        self._series.ratio.labels(breaker).set(ratio)

    def render(self) -> tuple[bytes, str]:
        """The body and the content type of /metrics."""
        return generate_latest(WithoutCreated(self._registry)), _CONTENT_TYPE
