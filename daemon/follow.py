"""Seeing to it that what was asked for is done: by the daemon that leads, or, when none does, by this process.

Knows who does it, and asks the target how far it is. Knows nothing of what was asked for, nor of printing.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from daemon.aim import installation
from daemon.breaker import BreakerOpen
from daemon.configuration import Loaded
from daemon.errors import DaemonError, Kind, SourceUnavailable, TargetError, passes
from daemon.lead import contested
from daemon.main import Daemon
from daemon.metrics import Metrics
from daemon.settings import Settings

_LOOK = 0.25  # seconds between looks at how far it is


@dataclass(frozen=True, slots=True)
class Seen:
    """How things are. `answer`: the target's own word, empty while it says nothing; `estimates` of rows by table.
    `alone`: this process does it. `trouble`: why nothing goes on."""

    answer: Mapping[str, Any]
    estimates: Mapping[str, int]
    alone: bool
    trouble: str | None = None


async def follow(
    settings: Settings, ended: Callable[[Seen], bool], *, patience: float, within: float | None = None
) -> AsyncIterator[Seen]:
    """Tell how far it is, until it has ended. Raises what a relay raises when it cannot go on, and TargetError when
    there has been trouble for longer than `patience`, or it has not ended within `within` (seconds)."""
    loaded = Loaded(settings.model_copy(update={"verify_interval": 0.0}))  # nothing but what was asked for
    daemon = Daemon.build(loaded, Metrics(), lambda: loaded)
    try:
        await daemon.bell.connect()
        alone = await daemon.bell.try_lead(contested)
        if not alone:
            await daemon.bell.close()  # this is no standby
        async with _turning(daemon) if alone else _watching() as turning:
            estimates = {row[0]: int(row[4]) for row in await daemon.gauges.ask("copy_wanted")}
            here = (await daemon.gauges.identify()).installation
            well = began = time.monotonic()
            while True:
                answer, trouble = await _asked(daemon)
                answer = {what: of_outbox(here, told) for what, told in answer.items()}
                trouble = (_of_relay(daemon) if alone else await _unled(daemon)) or trouble
                seen = Seen(answer, estimates, alone, trouble)
                yield seen
                if ended(seen):
                    return
                if seen.trouble is None:
                    well = time.monotonic()
                elif time.monotonic() > well + patience:
                    raise TargetError(Kind.TRANSIENT, f"gave up after {patience:.0f} s ({seen.trouble})")
                if within is not None and time.monotonic() > began + within:
                    why = seen.trouble or "it goes on: what was asked for stays asked for"
                    raise TargetError(Kind.TRANSIENT, f"not done within {within:g} s ({why})")
                if turning is None:
                    await asyncio.sleep(_LOOK)
                else:
                    await asyncio.wait([turning], timeout=_LOOK)
                    if turning.done():
                        turning.result()
    finally:
        await daemon.close()


def of_outbox(here: str, told: Any) -> Any:
    """Of a list of records those that speak of this installation of schema outbox: a number of a wish says nothing in
    another's."""
    if not isinstance(told, list):
        return told
    return [one for one in told if not (isinstance(one, dict) and one.get("aim")) or installation(one["aim"]) == here]


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


def _of_relay(daemon: Daemon) -> str | None:
    """What keeps the relay of this process from going on. Raises when only a person can mend it."""
    status = daemon.relay.status
    if status.problem is None or status.problem_kind == "target_restored":
        return None
    if status.state == "paused":
        raise DaemonError(status.problem)
    return status.problem


async def _unled(daemon: Daemon) -> str | None:
    """Does nobody lead any more?"""
    try:
        leads = any(row[2] for row in await daemon.gauges.ask("leaders"))
    except (BreakerOpen, SourceUnavailable) as exc:
        return str(exc)
    return None if leads else "the daemon is gone: what was asked for is done when one leads again, or ask once more"


async def _asked(daemon: Daemon) -> tuple[Mapping[str, Any], str | None]:
    """The target's own word. A target that is away for a moment says nothing new: why it does not."""
    try:
        return (await daemon.target.cursor()).more, None
    except BreakerOpen as exc:
        return {}, f"the target does not answer: {daemon.target.breaker.last_error or exc}"
    except TargetError as exc:
        if not passes(exc.kind):
            raise
        return {}, str(exc)
