"""Dead letters on their way again: those that somebody wants sent or dropped, and those of tables that are out.

Knows which letters may go and in which order. Knows nothing of batches of changes, nor how a parcel is sent: that is
daemon/delivery.py.

A table that is out and that a copy can bring back loses nothing: its changes were skipped. What a table has that only
the application fills waits as letters, all of it, in order (promise I1): these are tried again every `recheck` seconds,
and once the last has arrived the table is no longer out.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from daemon.copier import Copier
from daemon.copies import Copy, note
from daemon.delivery import Delivery, Load, Parcel
from daemon.errors import CaptureLost, DaemonError, Kind, TargetError, advice
from daemon.hold import key_of
from daemon.letters import Letters, Wanted
from daemon.plan import Plan
from daemon.sheaf import Sheaves, bind
from daemon.target import Answer
from outbox import Cursor

log = structlog.get_logger()

_RETRIED = 100  # keys that go into one retry
_DRAINED = 1000  # letters of a table that was out that go at once

Done = tuple[Plan, Answer]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the target stands, and the number that comes next: letters go without moving its cursor."""

    cursor: Cursor
    epoch: int
    batch_no: int
    after: str

    def parcel(self, sheaves: Sheaves, shapes: dict[int, tuple[str, ...]]) -> Parcel:
        """Letters, to be sent behind what the target has."""
        return Parcel(sheaves, shapes, self.cursor, self.epoch, self.batch_no, self.after, letters=True)


class Retries:
    """Sends letters again when it is asked to, and once their table fits. `cover` is told of those on their way."""

    def __init__(
        self, delivery: Delivery, letters: Letters, copier: Copier, *, recheck: float = 15.0,
        cover: Callable[["asyncio.Task[Done]", Wanted, Load], object] | None = None,
    ) -> None:  # fmt: skip
        self._delivery = delivery
        self._letters = letters
        self._copier = copier
        self._recheck = recheck
        self._cover = cover
        self._at_once = _RETRIED
        self._tried: dict[str, float] = {}  # when a table that is out was tried last

    @property
    def any(self) -> bool:
        """Are there letters that may go at some time?"""
        return bool(self._delivery.held or self._copier.out)

    async def turn(self, place: Place) -> Done | None:
        """Send what is wanted; None: nothing is, or nothing of it may go now. Raises what sending raises."""
        return await self._asked(place) or await self._parked(place)

    # -- of keys that are held -----------------------------------------------------------------------------

    async def _asked(self, place: Place) -> Done | None:
        delivery = self._delivery
        if not delivery.held:
            return None
        wanted = await self._letters.wanted(place.cursor, self._at_once, delivery.out)
        retried = {key_of(change) for change in wanted.retry}
        asked = retried | wanted.discard
        if stale := asked - delivery.held:
            await self._letters.forget(stale, place.cursor, wake=False)
        keys = frozenset(asked & delivery.held)
        if not keys:
            return None
        changes = [change for change in wanted.retry if key_of(change) in keys]
        log.info("letters_retried", changes=len(changes), discarded_keys=len(wanted.discard & delivery.held))
        try:
            load = await delivery.prepare(replace(place.parcel(bind(changes), dict(wanted.shapes)), retried=keys))
            sending = asyncio.create_task(delivery.send(load))
            if self._cover is not None:
                self._cover(sending, wanted, load)
            done = await sending
        except TargetError as exc:
            if exc.kind is Kind.SIZE:
                self._at_once = max(1, self._at_once // 2)
            raise
        self._at_once = _RETRIED
        return done

    # -- of tables that are out ----------------------------------------------------------------------------

    async def _parked(self, place: Place) -> Done | None:
        """Try the tables that no copy can bring back."""
        if not self._copier.out:
            return None
        now = time.monotonic()
        for table, retry, discard in await self._letters.waiting(sorted(self._copier.out)):
            if discard:
                await self._letters.drop(table, self._delivery.held)
            if retry or discard or now >= self._tried.get(table, float("-inf")) + self._recheck:
                self._tried[table] = now
                if done := await self._drain(table, place):
                    del self._tried[table]  # there may be more
                    return done
        return None

    async def _drain(self, table: str, place: Place) -> Done | None:
        """Send the first of a table's letters; without any left the table is back. None: it does not fit yet."""
        parked = await self._letters.parked(table, self._delivery.held, place.cursor, _DRAINED)
        if not parked.changes:
            return await self._come_back(table, place)
        try:
            load = await self._delivery.prepare(place.parcel(bind(parked.changes), dict(parked.shapes)))
            done = await self._delivery.send(load)
        except (TargetError, CaptureLost) as exc:
            reason = _misfit(exc)
            if reason is None:
                raise
            self._copier.stays_out(table, reason)
            await self._letters.stay(table, f"{table} is out: {reason}")
            return None
        if done[1].what != "mismatch":
            await self._letters.delivered([one.id for one in parked.changes if one.id not in load.kept])
        return done

    async def _come_back(self, table: str, place: Place) -> Done:
        back = replace(self._copier.copies.get(table, Copy(table)), state="done", reason=None)
        load = await self._delivery.prepare(replace(place.parcel((), {}), notes=(note(back, begins=False),)))
        done = await self._delivery.send(load)
        if done[1].what != "mismatch":
            self._copier.came_back(back)
        return done


def _misfit(exc: DaemonError) -> str | None:
    """Why the table does not fit; None: that is not what is the matter."""
    if isinstance(exc, TargetError):
        blamed = exc.kind in (Kind.CONTRACT, Kind.AUTH) and exc.refusal.table is not None
        return advice(exc.kind, exc.refusal) if blamed else None
    return str(exc)
