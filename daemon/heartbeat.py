"""Heartbeats: a change of nobody's that takes the way of every change, so that lag is known when nothing is written.

Knows what a heartbeat looks like among changes, that the target keeps it as a note of the batch it comes with (so no
row is refused, held or made to wait because of it), and when another is written. Knows neither SQL nor who is told.
That no more than one is on its way is the source's word (sql/source/0010_heartbeat.sql), whoever asks, and how often.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import structlog

from daemon.batch import Batch
from daemon.breaker import BreakerOpen
from daemon.errors import SourceUnavailable, SourceUnfit
from daemon.plan import Group
from daemon.progress import Pulse, Status
from daemon.sheaf import Change, unbind
from daemon.source import Source
from daemon.target import Answer
from outbox import Cursor

log = structlog.get_logger()

TABLE = "outboxd.heartbeat"  # no table of this name can be watched or mapped
_EPOCH = 946_684_800  # changes count their time from 2000 on
_LOOK = 1.0  # seconds between looks whether this process leads, and has claimed the target


def apart(batch: Batch) -> Batch:
    """The batch with its heartbeats by themselves: what is counted, planned, held or sized are its changes."""
    if batch.copied is not None or not any(sheaf.table == TABLE for sheaf in batch.sheaves):
        return batch
    beats = unbind(sheaf for sheaf in batch.sheaves if sheaf.table == TABLE)
    return replace(batch, sheaves=tuple(sheaf for sheaf in batch.sheaves if sheaf.table != TABLE), beats=tuple(beats))


def alone(batch: Batch) -> bool:
    """Is there nothing in it but heartbeats?"""
    return bool(batch.beats) and not batch.sheaves


def notes(batch: Batch, relay: str, pulse: Pulse) -> tuple[Group, ...]:
    """What the target is to note with the batch: the last heartbeat of this relay, if it takes any."""
    beat = _own(batch, relay)
    if beat is None or beat.row is None or not pulse.taken:
        return ()
    return (Group(TABLE, "heartbeat", 0, (), (beat.row.encode(),)),)


def known(answer: Answer) -> bool:
    """Does the target take heartbeats, by its answer to a claim or a question? Its SQL may be older."""
    return "heartbeat" in answer.more


def arrived(batch: Batch, relay: str, answer: Answer, seconds: float, pulse: Pulse) -> float | None:
    """Note in `pulse` that the batch's heartbeat has arrived; how long it took, None when none has arrived.

    By the source's clock and our own: those of the two stores may differ.
    """
    beat = _own(batch, relay)
    if beat is None or not pulse.taken:
        return None
    pulse.refused = answer.what == "applied" and not answer.more.get("heartbeat")
    if pulse.refused:
        return None
    pulse.seconds = max(0.0, (batch.read_us - beat.created_us) / 1e6 + seconds)
    pulse.arrived = time.time()
    pulse.written = beat.created_us / 1e6 + _EPOCH
    return pulse.seconds


def _own(batch: Batch, relay: str) -> Change | None:
    """The last one of this relay: another's says nothing of this target."""
    return next((beat for beat in reversed(batch.beats) if json.loads(beat.key)["relay"] == relay), None)


class Moves(Protocol):
    """What of a relay is looked at. `stated`: where the target says it stands."""

    status: Status

    @property
    def stated(self) -> Cursor | None: ...


class Gauges(Protocol):
    """Who is told."""

    def heartbeat_written(self, at: float) -> None: ...
    def heartbeat_every(self, seconds: float) -> None: ...


class Heart:
    """Has a heartbeat written every `interval` seconds while this process leads; 0: none. `step` is what tests drive."""

    def __init__(
        self, source: Source, relay: Moves, name: str, gauges: Gauges, *, interval: float,
        leads: Callable[[], bool], clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._source = source
        self._relay = relay
        self._name = name
        self._gauges = gauges
        self._leads = leads
        self._clock = clock
        self._other = asyncio.Event()
        self._due = float("-inf")
        self._taken: bool | None = None  # as it was when the last was written
        self._said: str | None = None
        self._interval = interval
        gauges.heartbeat_every(interval)

    @property
    def interval(self) -> float:
        """Seconds between two; 0: none are written."""
        return self._interval

    def beat_every(self, seconds: float) -> None:
        """Another interval, from now on."""
        self._interval, self._due = seconds, float("-inf")
        self._gauges.heartbeat_every(seconds)
        self._other.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            patience = await self.step()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._other.wait()
            self._other.clear()

    async def step(self) -> float | None:
        """Have one written if it is due. Returns the seconds until the next look; None: only when the interval changes."""
        if self._interval <= 0:
            return None
        pulse, now = self._relay.status.pulse, self._clock()
        look = min(self._interval, _LOOK)
        if not self._leads():
            return look
        if pulse.taken is False:
            self._say("the target's schema knows none", "`outboxd setup target`")
            return look
        if pulse.refused:
            self._say("the target cannot keep them in outboxd.heartbeat", "`outboxd setup target` makes that table")
        if now >= self._due or pulse.taken is not self._taken:
            self._due, self._taken = now + self._interval, pulse.taken
            await self._write()
        return max(0.0, self._due - self._clock()) if pulse.taken else look

    async def _write(self) -> None:
        status, stated = self._relay.status, self._relay.stated
        asked = {"relay": self._name, "epoch": status.epoch, "snapshot": stated.snapshot if stated else None}
        try:
            ((written,),) = await self._source.ask("heartbeat", asked)
        except (SourceUnavailable, BreakerOpen) as exc:
            log.debug("heartbeat_failed", error=str(exc))
        except SourceUnfit as exc:
            self._say(str(exc), "`outboxd check`")
        else:
            if written is not None:
                status.pulse.written = written
                self._gauges.heartbeat_written(written)
            if not status.pulse.refused:
                self._said = None

    def _say(self, because: str, advice: str) -> None:
        """Once for each reason."""
        if because != self._said:
            self._said = because
            log.warning("heartbeats_left_out", because=because, advice=advice)
