"""One seed: deeds and turns in random order, then the mends of a person, then rest. What is wrong then is the result."""

import asyncio
from collections.abc import Collection

import psycopg

from daemon.errors import SourceUnavailable
from tests.databases import Database
from tests.edges.deeds import DEEDS, Deed, mended
from tests.edges.migrations import drifts
from tests.edges.tables import WATCHED
from tests.edges.world import World, opened

_DEEDS = 30
_OFTEN = 6
_PATIENCE = 60.0  # seconds for one deed
STEADY = 400  # turns: far more than any of them needs


async def play(
    source: Database, target: Database, seed: int, *, often: Collection[Deed] = (), steady: int = STEADY
) -> list[str]:
    """What is wrong in the end, each a sentence, behind the story that led there; nothing: all is well. `often`: deeds that
    are done more often than they are otherwise."""
    weights = [weight * (_OFTEN if deed in often else 1) for deed, weight in DEEDS.items()]
    async with opened(source, target, seed) as world:
        for _ in range(_DEEDS):
            (deed,) = world.rng.choices(list(DEEDS), weights)
            try:
                async with asyncio.timeout(_PATIENCE):
                    said = await deed(world)
            except psycopg.errors.LockNotAvailable:
                said = f"({deed.__name__}: the open transaction is in the way)"
            except SourceUnavailable as exc:
                said = f"({deed.__name__}: {exc})"
            world.story.append(said or f"({deed.__name__}: nothing to do)")
            for _ in range(world.rng.randrange(3)):
                await world.turn()
                world.story.append(".")
        await mended(world)
        world.story.append("mended")
        wrong = await world.until(world.wrong, steady) or await _compared(world, steady)
        return [*world.story, f"--- seed {seed}:", *wrong] if wrong else []


async def _compared(world: World, steady: int) -> list[str]:
    """Does a verification see what the oracle sees: nothing, then the row that somebody writes on the target, and once it
    has been repaired nothing again?"""
    if wrong := await _verified(world, steady):
        return wrong
    said = drifts(world, world.rng.choice(WATCHED))
    if said is None:
        return []
    world.story.append(said)
    return await _verified(world, steady) or await _verified(world, steady, repair=True) or world.wrong()


async def _verified(world: World, steady: int, *, repair: bool = False) -> list[str]:
    """In what verifications of all tables differ from the oracle."""
    assert world.parts is not None
    verifier, wishes = world.parts.relay.verifier, dict[str, int]()
    for table in WATCHED:
        ((wishes[table],),) = world.app.execute("select outbox.ask_verification(%s, %s)", (table, repair)).fetchall()
    seen = {table: world.tables[table].drift(world.app, world.mirror) for table in WATCHED}

    def pending() -> list[str]:
        found = {table: verifier.records.get(f"public.{table}") for table in wishes}
        return [
            f"{table} is not compared: {one}"
            for table, one in found.items()
            if one is None or one.wish != wishes[table] or one.state == "running"
        ]

    if wrong := await world.until(pending, steady):
        return wrong
    wrong = []
    for table, drift in seen.items():
        record = verifier.records[f"public.{table}"]
        found = (record.state, record.missing, record.different, record.extra, record.repaired)
        expected = ("done", 0, 0, 0, sum(drift)) if repair else ("done", *drift, 0)
        if found != expected:
            wrong.append(f"verification of {table}: {found} instead of {expected} ({record.reason}, {record.samples})")
    return wrong
