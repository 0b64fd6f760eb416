"""`outboxd rebase`: the way on when the source is not the one that the target's cursor speaks of.

Knows what to look at, what to change on which side, and in which order. Knows nothing of printing. Everything the
outbox still has is sent again, in id order: whatever the target has of those rows, it ends with the last state of
each. What was lost on the source, or pruned, is not in the outbox; nobody here can know of it.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from daemon.batch import Limits
from daemon.breaker import Breaker, Thresholds
from daemon.errors import SourceUnfit
from daemon.failpoint import reach
from daemon.identity import Identity
from daemon.main import NAME, open_door
from daemon.settings import Settings
from daemon.source import Source
from daemon.target import Standing, Target
from outbox import Cursor

_PATIENCE = 600.0  # seconds for one statement: the outbox is read, or written, as a whole


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the outbox has of one table, and the age of the oldest in seconds."""

    table: str
    changes: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """How things stand. `why` is None when nothing needs a rebase. `foreign`: changes that came with a dump."""

    standing: Standing
    source: Identity
    why: str | None
    waiting: Sequence[Waiting]
    pruned: int
    foreign: int
    held: Sequence[tuple[str, str]]


async def look(settings: Settings) -> Outlook:
    """What a rebase would do; changes nothing."""
    async with _stores(settings) as (source, target):
        return await _look(source, target)


async def rebase(settings: Settings) -> tuple[Outlook, Standing | None]:
    """Do it, if there is a reason to; returns what was found, and where the target stands then.

    Interrupted anywhere, it can be run again. The source comes first: until the target's cursor moves, which is one
    transaction and the last step, the relay goes on refusing this source.
    """
    async with _stores(settings) as (source, target):
        found = await _look(source, target)
        if found.why is None:
            return found, None
        if found.foreign:
            await source.ask("restamp")
        reach("rebase_restamped")
        epoch, _ = await source.remembered(target.relay)
        begin = Cursor.beginning(found.source.system, found.pruned)
        answer = await target.rebase(begin, found.held, above=epoch)
        return found, answer.standing


async def _look(source: Source, target: Target) -> Outlook:
    standing = (await target.cursor()).standing
    identity = await source.identify(to_read=True)
    ((pruned,),) = await source.ask("pruned")
    why = await _judge(source, standing.cursor, pruned) if standing.cursor else None
    ((last, foreign, may_write, highest, drawn),) = await source.ask("outbox_foreign")
    if highest > drawn:
        raise SourceUnfit(
            f"the sequence of outbox.change.id stands at {drawn}, below change {highest}: rows were copied without it; "
            f"run  select setval('outbox.change_id_seq', {highest})  on the source, then rebase"
        )
    if why and last and not may_write:
        raise SourceUnfit(
            "the outbox came with a dump, so its transaction ids must be written anew, which this role may not: "
            "run `outboxd rebase` with the address of the outbox's owner (DATABASE_URL)"
        )
    waiting = [Waiting(*row) for row in await source.ask("outbox_waiting", {"above": pruned})]
    held = [(table, key) for table, key in await source.ask("held_keys")]
    return Outlook(standing, identity, why, waiting, pruned, foreign, held)


async def _judge(source: Source, cursor: Cursor, pruned: int) -> str | None:
    behind = cursor.floor_id < pruned
    try:
        if why := await source.judge(cursor):
            return why
    except SourceUnfit as exc:
        if behind:
            return str(exc)
        raise
    if not behind:
        return None
    return (
        f"the target stands at change {cursor.floor_id}, and the outbox was pruned up to {pruned}: the changes between "
        "are gone (was the target restored from a backup older than the outbox reaches?)"
    )


@asynccontextmanager
async def _stores(settings: Settings) -> AsyncIterator[tuple[Source, Target]]:
    limits = Limits(deadline=_PATIENCE)
    source = Source(settings.source_conninfo, limits, application_name=f"{NAME} rebase")
    target = Target(open_door(settings), settings.relay, Breaker("target", Thresholds()))
    try:
        yield source, target
    finally:
        await source.close()
        await target.close()
