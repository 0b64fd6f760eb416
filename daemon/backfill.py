"""`outboxd backfill`: ask for copies of tables, and see to it that they are made.

Knows who makes them: the daemon that leads, or, when none does, this process for as long as it takes. Knows nothing
of printing.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from daemon.breaker import BreakerOpen
from daemon.configuration import Loaded
from daemon.copies import Copy, known
from daemon.errors import Kind, TargetError
from daemon.main import Daemon
from daemon.metrics import Metrics
from daemon.settings import Settings

_LOOK = 0.25  # seconds between looks at how far it is
_PASSES = (Kind.TRANSIENT, Kind.AMBIGUOUS, Kind.THROTTLE)


@dataclass(frozen=True, slots=True)
class Seen:
    """How far the copies are; `estimates` of rows by table. `alone`: this process makes them."""

    copies: Mapping[str, Copy]
    estimates: Mapping[str, int]
    alone: bool

    def left(self, wishes: Mapping[str, int]) -> list[str]:
        """Tables that are neither copied nor out."""
        return [table for table, wish in wishes.items() if not _settled(self.copies.get(table), wish)]


def _settled(copy: Copy | None, wish: int) -> bool:
    return copy is not None and (copy.state == "out" or (copy.state == "done" and copy.wish >= wish))


async def follow(settings: Settings, wishes: Mapping[str, int]) -> AsyncIterator[Seen]:
    """Tell how far it is, until the wishes are fulfilled. Raises what a relay raises when it cannot go on."""
    loaded = Loaded(settings)
    daemon = Daemon.build(loaded, Metrics(), lambda: loaded)
    try:
        await daemon.bell.connect()
        alone = await daemon.bell.try_lead()
        async with _turning(daemon) if alone else _watching() as turning:
            estimates = {row[0]: int(row[4]) for row in await daemon.gauges.ask("copy_wanted")}
            while True:
                seen = Seen(await _copies(daemon), estimates, alone)
                yield seen
                if not seen.left(wishes):
                    return
                if turning is None:
                    await asyncio.sleep(_LOOK)
                else:
                    await asyncio.wait([turning], timeout=_LOOK)
                    if turning.done():
                        turning.result()
    finally:
        await daemon.close()


@asynccontextmanager
async def _turning(daemon: Daemon) -> AsyncIterator["asyncio.Task[None] | None"]:
    """This process is the relay."""
    daemon.keeper.leads = True
    daemon.relay.lead()
    pings, turning = asyncio.create_task(daemon.keeper.run()), asyncio.create_task(daemon.relay.run())
    try:
        yield turning
        daemon.relay.stop()
        await turning
    finally:
        for task in (pings, turning):
            task.cancel()
        await asyncio.wait([pings, turning])


@asynccontextmanager
async def _watching() -> AsyncIterator["asyncio.Task[None] | None"]:
    yield None


async def _copies(daemon: Daemon) -> Mapping[str, Copy]:
    """By the target's own word. A target that is away for a moment says nothing new."""
    try:
        answer: Any = (await daemon.target.cursor()).more
    except BreakerOpen:
        return {}
    except TargetError as exc:
        if exc.kind not in _PASSES:
            raise
        return {}
    return known(answer["copies"])
