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
from daemon.errors import SourceUnfit, TargetError
from daemon.failpoint import reach
from daemon.identity import Identity
from daemon.main import NAME, open_door
from daemon.settings import Settings
from daemon.source import Source
from daemon.target import Standing, Target, require_known, require_reached
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
    """How things stand. `why` is None when nothing needs a rebase. `again`: is the outbox sent again, or is the target
    only to be taken for the relay's, from where it stands? `foreign`: changes that came with a dump. `copied`: tables of
    which the outbox does not hold all that the target lacks, so they are copied as a whole, and what the target has too
    much of them goes; `emitted`: those that only the application can send again."""

    standing: Standing
    source: Identity
    why: str | None
    again: bool
    waiting: Sequence[Waiting]
    pruned: int
    foreign: int
    held: Sequence[tuple[str, str]]
    copied: Sequence[str]
    emitted: Sequence[str]


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
        if found.again and found.foreign:
            await source.ask("restamp")
        for table in found.copied:
            await source.ask("copy_ask", {"table": table})
        reach("rebase_restamped")
        epoch, *_ = await source.remembered(target.relay)
        kept = None if found.again else found.standing.cursor
        answer = await target.rebase(kept or found.source.beginning(found.pruned), found.held, above=epoch)
        stands = answer.standing
        require_reached(stands, found.standing.batch_no)
        await source.remember(target.relay, stands.epoch, stands.batch_no, stands.cursor, target.place())
        return found, stands


async def _look(source: Source, target: Target) -> Outlook:
    answer = await target.cursor()
    standing = answer.standing
    identity = await source.identify(to_read=True)
    ((pruned,),) = await source.ask("pruned")
    why = await _judge(source, standing.cursor, pruned) if standing.cursor else _new(pruned)
    again = why is not None
    why = why or _elsewhere(standing, target.place(), await source.remembered(target.relay))
    ((last, foreign, may_write, highest, drawn),) = await source.ask("outbox_foreign")
    if highest > drawn:
        raise SourceUnfit(
            f"the sequence of outbox.change.id stands at {drawn}, below change {highest}: rows were copied without it; "
            f"run  select setval('outbox.change_id_seq', {highest})  on the source, then rebase"
        )
    if again and last and not may_write:
        raise SourceUnfit(
            "the outbox came with a dump, so its transaction ids must be written anew, which this role may not: "
            "run `outboxd rebase` with the address of the outbox's owner (DATABASE_URL)"
        )
    waiting = [Waiting(*row) for row in await source.ask("outbox_waiting", {"above": pruned})]
    held = [(table, key) for table, key in await source.ask("held_keys")]
    captured = {table: bool(captured) for table, captured, *_ in await source.ask("watched")}
    lacking = set(captured) if again and _gap(standing.cursor, identity, pruned) else set[str]()
    if not again:  # a letter that has been delivered elsewhere since
        lacking = {table for table, key in answer.more.get("held", ()) if (table, key) not in held} & captured.keys()
    copied, emitted = (sorted(table for table in lacking if captured[table] is kind) for kind in (True, False))
    return Outlook(standing, identity, why, again, waiting, pruned, foreign, held, copied, emitted)


def _new(pruned: int) -> str | None:
    """Of a target that has no cursor."""
    if not pruned:
        return None
    return f"the target has nothing of this source yet, and the outbox was pruned up to change {pruned}"


def _elsewhere(standing: Standing, place: str, known: tuple[int, int, str]) -> str | None:
    try:
        require_known(standing, place, known)
    except TargetError as exc:
        return exc.refusal.message
    return None


def _gap(cursor: Cursor | None, identity: Identity, pruned: int) -> bool:
    """Does the target lack what the outbox does not hold any more, or never held?"""
    if cursor is None or cursor.floor_id < pruned:
        return pruned > 0
    return cursor.installation not in ("", identity.installation)


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
    door = open_door(settings)
    target = Target(door, settings.relay, Breaker("target", Thresholds()), place=lambda: door.place)
    try:
        yield source, target
    finally:
        await source.close()
        await target.close()
