"""One seed: deeds and turns in random order, then the mends of a person, then rest. What is wrong then is the result."""

import psycopg

from tests.databases import Database
from tests.edges.deeds import DEEDS, mended
from tests.edges.world import opened

_DEEDS = 30


async def play(source: Database, target: Database, seed: int) -> list[str]:
    """What is wrong in the end, each a sentence, behind the story that led there; nothing: all is well."""
    async with opened(source, target, seed) as world:
        for _ in range(_DEEDS):
            (deed,) = world.rng.choices(list(DEEDS), list(DEEDS.values()))
            try:
                said = await deed(world)
            except psycopg.errors.LockNotAvailable:
                said = f"({deed.__name__}: the open transaction is in the way)"
            world.story.append(said or f"({deed.__name__}: nothing to do)")
            for _ in range(world.rng.randrange(3)):
                await world.turn()
                world.story.append(".")
        await mended(world)
        wrong = await world.rest()
        return [*world.story, f"--- seed {seed}:", *wrong] if wrong else []
