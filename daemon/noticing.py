"""Looking at the source for rows that changed without a statement that was captured, and for triggers that sleep.

Knows which questions tell that, and when they are due. With a connection of its own (`aside`) the looks go on beside the
relay, whose turns wait for none but the first: what that finds is wanted before there is nothing left to do.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from daemon.breaker import BreakerOpen
from daemon.errors import DaemonError
from daemon.printable import word
from daemon.source import Source

log = structlog.get_logger()

_QUICK, _SHARE = (
    0.5,
    50.0,
)  # seconds of a look that are none; of a longer one, so many times as long passes until the next


def rest(every: float, took: float) -> float:
    """Seconds between two looks of which one takes `took`: hundreds of tables must not keep the source busy."""
    return every if took <= _QUICK else max(every, _SHARE * took)


class Noticing:
    """`uncaptured`: tables whose changes are not captured now, and why."""

    def __init__(self, source: Source, *, aside: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._aside = aside
        self._looking: asyncio.Task[None] | None = None
        self._clock = clock
        self._looked = float("-inf")
        self._took = 0.0
        self.uncaptured: Mapping[str, str] = {}

    async def due(self, now: float, every: float) -> None:
        """A look, when the last one was `every` seconds ago, or long enough for as long as it took, and has ended."""
        if now < self._looked + rest(every, self._took) or not (self._looking is None or self._looking.done()):
            return
        first, self._looked = self._looked == float("-inf"), now
        if not self._aside:
            await self._look()
            return
        self._looking = asyncio.create_task(self._look_aside())
        if first:
            await self._looking

    async def _look_aside(self) -> None:
        try:
            await self._look()
        except (DaemonError, BreakerOpen) as exc:
            log.debug("notice_failed", error=str(exc))

    async def _look(self) -> None:
        began = self._clock()
        for (table,) in await self._source.ask("copy_notice"):
            log.warning("copy_wanted", table=table, because="its rows changed without firing a trigger")
        before = self.uncaptured
        self.uncaptured = {table: "; ".join(why) for table, why in await self._source.ask("uncaptured")}
        for table in self.uncaptured.keys() - before.keys():
            log.error(
                "table_uncaptured", table=table, reason=self.uncaptured[table],
                advice=f"its changes are lost until `outboxd watch {word(table)}`, which copies it again",
            )  # fmt: skip
        self._took = self._clock() - began
