"""What an operator does, and what happens on the target and on the way there.

Each deed takes the world, does one thing of its kind at random, and says what it did.
Whatever one of them breaks, `mended` makes good, as a person would.
"""

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

import psycopg

from daemon import dead_letters
from daemon.rebase import rebase
from daemon.settings import Settings
from outbox.migrations import migrate
from tests.edges import migrations, writes
from tests.edges.migrations import drifts, fit, rewatch
from tests.edges.tables import EXPIRES, KEYS, WATCHED, has
from tests.edges.world import World
from tests.edges.writes import REFUSED, attempt, change

Deed = Callable[[World], Awaitable[str | None]]


def _of_watched(world: World) -> str | None:
    return world.rng.choice(world.watched) if world.watched else None


# -- what is asked for -----------------------------------------------------------------------------------------


async def copy(world: World) -> str | None:
    if (table := _of_watched(world)) is None:
        return None
    prune, restart = world.rng.random() < 0.5, world.rng.random() < 0.3
    world.app.execute("select outbox.ask_copy(%s, %s, %s)", (table, prune, restart))
    return f"copy of {table}{', prune' * prune}{', restart' * restart}"


async def verify(world: World) -> str | None:
    if (table := _of_watched(world)) is None:
        return None
    repair = world.rng.random() < 0.7
    world.app.execute("select outbox.ask_verification(%s, %s)", (table, repair))
    return f"verify {table}{' --repair' * repair}"


async def drift(world: World) -> str | None:
    """Somebody writes to the target, and has it repaired."""
    if (table := _of_watched(world)) is None or (said := drifts(world, table)) is None:
        return None
    for concerned in (table, "line") if table == "story" else (table,):  # lines go with their story
        if world.tables[concerned].watched:
            world.drifted.add(concerned)
            world.app.execute("select outbox.ask_verification(%s, true)", (concerned,))
    return f"{said}; verify --repair {table}"


async def retry(world: World) -> str:
    dead_letters.mark(world.app, "retry")
    return "retry all letters"


async def discard(world: World) -> str | None:
    """Somebody drops the letters of a row, and the application writes that row again: this must arrive."""
    letters = world.app.execute("select distinct on (table_name, key) id, table_name, key from outbox.held").fetchall()
    if not letters:
        return None
    id_, name, key = world.rng.choice(letters)
    with world.app.transaction():
        wrote = writes.write_again(world, name.removeprefix("public."), json.loads(key))
        if wrote is None:
            return None
        dead_letters.mark(world.app, "discard", [id_])
    return f"discard the letters of {name} {key}; {wrote}"


# -- watching --------------------------------------------------------------------------------------------------


async def map_anew(world: World) -> str:
    """A filter or a hidden column comes or goes."""
    table = world.rng.choice(WATCHED)
    mirrored = world.tables[table]
    exclude, condition = None, None
    if table != "story" and world.rng.random() < 0.5:  # lines refer to stories: a filter there would need one here
        condition = world.rng.choice((f"n <> {world.rng.randrange(6)}", EXPIRES))
    elif world.rng.random() < 0.5:
        exclude = [mirrored.note]
    world.app.execute(
        "select outbox.watch(%s, exclude => %s::text[], filter => %s)", (table, exclude or [], condition or "")
    )
    mirrored.anew(condition, hidden=exclude is not None)
    return f"watch {table}, {condition}, without {exclude}"


async def watch_again(world: World) -> str:
    """Unwatched, written to, watched: as if a migration had been tried twice."""
    return _watched_again(world, world.rng.choice(WATCHED))


async def midway(world: World) -> str | None:
    """The same, while the table is being copied."""
    if (table := _of_watched(world)) is None:
        return None
    world.app.execute("select outbox.ask_copy(%s, restart => true)", (table,))
    for _ in range(world.rng.randrange(1, 4)):
        await world.turn(1)
    return f"copy of {table}, which has begun; {_watched_again(world, table)}"


def _watched_again(world: World, table: str) -> str:
    statement = change(world, table)
    with world.app.transaction():
        if world.tables[table].watched:
            world.app.execute("select outbox.unwatch(%s)", (table,))
        wrote = attempt(world.app, statement)
        world.app.execute("select outbox.watch(%s)", (table,))
    world.tables[table].anew()
    return f"unwatch, {statement if wrote else ''}, watch {table}"


async def unwatch(world: World) -> str | None:
    """Until it is watched again, nobody knows how long."""
    if (table := _of_watched(world)) is None:
        return None
    world.app.execute("select outbox.unwatch(%s)", (table,))
    world.tables[table].watched = False
    return f"unwatch {table}"


async def day(world: World) -> str:
    """Time goes on, and rows leave a filter."""
    world.app.execute("update day set n = n + 1 where n < 5")
    return "another day"


async def asleep(world: World) -> str:
    """As a restore does it: triggers off, rows, triggers on, which are no longer ALWAYS."""
    table = world.rng.choice(("line", "story"))
    statement, again = change(world, table), world.rng.random() < 0.3 and world.tables[table].watched
    with world.app.transaction():
        world.app.execute(f"alter table {table} disable trigger user".encode())
        wrote = attempt(world.app, statement)
        world.app.execute(f"alter table {table} enable trigger user".encode())
    if again:
        rewatch(world, table)
    return f"{table} without triggers: {statement if wrote else ''}{f'; watch {table}' * again}"


async def install(world: World) -> str:
    """Schema outbox is made anew, and what was known in it is gone: the application emits its cards once more."""
    await world.close()
    try:
        with world.pair.source.connect(autocommit=False) as app:
            app.execute("set lock_timeout = '30ms'")
            app.execute("drop schema outbox cascade")
            migrate(app, "source")
            for table in (*WATCHED, "card"):  # all or nothing: an open transaction may be in the way of one of them
                app.execute("select outbox.watch(%s, capture => %s)", (table, table in WATCHED))
        for table in WATCHED:
            world.tables[table].anew()
        writes.emit_all(world)
        stores = {"source_dsn": world.pair.source.dsn, "transport": "postgres", "target_dsn": world.pair.target.dsn}
        await rebase(Settings.model_validate(stores))
    finally:
        await world.again()
    return "schema outbox is installed anew; rebase"


async def prune(world: World) -> str | None:
    """The outbox lets go of what has arrived, as early as it may."""
    assert world.parts is not None
    if world.parts.relay.stated is None or not world.parts.source.proven:
        return None
    pruned = await world.parts.source.prune(world.parts.relay.stated.floor_id, 0.0)
    return f"pruned up to {pruned.up_to_id}"


# -- the target, and the way there -----------------------------------------------------------------------------


async def refuse(world: World) -> str:
    table = world.rng.choice(tuple(KEYS))
    world.mirror.execute(f"alter table {table} drop constraint if exists lucky".encode())
    if world.rng.random() < 0.7 and has(world.mirror, table, "n"):
        world.mirror.execute(f"alter table {table} add constraint lucky check (n <> {REFUSED}) not valid".encode())
        return f"the target's {table} refuses {REFUSED}"
    return f"the target's {table} refuses nothing"


async def cling(world: World) -> str:
    """A client's own table on the target refers to a row there, or to none any more."""
    if world.rng.random() < 0.3:
        world.mirror.execute("delete from fan")
        return "nobody clings to a row"
    table = world.rng.choice(("story", "card"))
    some = f"select id from {table} where id % 3 = {world.rng.randrange(3)} order by id limit 2"
    with suppress(psycopg.errors.InsufficientPrivilege):  # the check that a row is there has the rights of its owner
        world.mirror.execute(f"insert into fan ({table}) {some}".encode())
    return f"somebody clings to rows of {table}: {some}"


async def put_out(world: World) -> str:
    """The mirror lacks a column, or a right on it is missing, and perhaps is back."""
    table, way = world.rng.choice(tuple(KEYS)), world.rng.randrange(3)
    if way == 0:
        _back(world)
        return "all mirrors fit again"
    if way == 1:
        world.mirror.execute(f"revoke update on {table} from service_role, supabase_owner".encode())
        return f"no right to update {table}"
    if has(world.mirror, table, "n"):
        world.mirror.execute(f"alter table {table} rename column n to m".encode())
    return f"the target's {table} calls n m"


async def lose(world: World) -> str:
    assert world.way is not None
    world.way.lose = world.rng.choice(("request", "answer"))
    return f"the next {world.way.lose} gets lost"


async def beat(world: World) -> str:
    world.beat()
    return "a heartbeat"


async def interrupt(world: World) -> str:
    await world.interrupted()
    return "a turn is cancelled"


async def restart(world: World) -> str:
    await world.again()
    return "another relay"


def _back(world: World) -> None:
    for table in KEYS:
        if has(world.mirror, table, "m"):
            world.mirror.execute(f"alter table {table} rename column m to n".encode())
        world.mirror.execute(f"grant all on {table} to service_role, supabase_owner".encode())


async def mended(world: World) -> None:
    """All that a person would do in the end. What outboxd must do by itself is not among it."""
    if world.open is not None:
        await writes.hold_open(world)
    _back(world)
    world.mirror.execute("delete from fan")
    for table in KEYS:
        world.mirror.execute(f"alter table {table} drop constraint if exists lucky".encode())
    for table in WATCHED:
        if not world.tables[table].watched or world.tables[table].stale:
            rewatch(world, table)
        fit(world, table)
    world.app.execute("select outbox.watch(table_name::regclass) from outbox.uncaptured()")
    for table in sorted(world.drifted):  # a repair that came to nothing says so, and somebody asks again
        world.app.execute("select outbox.ask_verification(%s, true)", (table,))


DEEDS: dict[Deed, int] = {
    writes.write: 24, writes.hold_open: 6, writes.emit: 8, copy: 6, verify: 2, drift: 2, retry: 1, discard: 4,
    map_anew: 4, watch_again: 2, midway: 2, unwatch: 2, day: 2, asleep: 2, install: 1, prune: 2, migrations.add: 2,
    migrations.rename: 1, migrations.remake: 1, refuse: 5, cling: 2, put_out: 6, lose: 4, beat: 2, interrupt: 4, restart: 2,
}  # fmt: skip
