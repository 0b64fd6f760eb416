"""What is done to the two stores: by the application, by an operator, by a migration, by the way between them.

Each deed takes the world, does one thing of its kind at random, and says what it did; None: there was nothing to do.
Whatever one of them breaks, `mended` makes good, as a person would.
"""

from collections.abc import Awaitable, Callable

import psycopg

from tests.edges.world import KEYS, WATCHED, World

Deed = Callable[[World], Awaitable[str | None]]
_ROWS = 8  # keys of a table: few, so that they meet
_REFUSED = 13


def _row(world: World, table: str) -> str:
    rng = world.rng
    n = rng.choice((rng.randrange(6), rng.randrange(6), _REFUSED))
    note = rng.choice(("'a'", "'b'", "null"))
    key = rng.randrange(_ROWS)
    return {
        "story": f"({key}, {n}, {note})",
        "line": f"({key}, (select min(id) from story where id >= {rng.randrange(_ROWS)}), {n}, {note})",
        "item": f"({rng.randrange(2)}, '{key}', {n}, {note})",
        "card": f"({key}, {n}, {note})",
    }[table]


def _change(world: World, table: str) -> str:
    """One statement of the application."""
    rng = world.rng
    sets = "(n, note) = (excluded.n, excluded.note)"
    upsert = f"insert into {table} values {_row(world, table)} on conflict ({KEYS[table]}) do update set {sets}"
    some = f"{'k' if table == 'item' else 'id'}::int % {rng.randrange(2, 4)} = {rng.randrange(2)}"
    moved = {
        "story": f"update story set id = id + {_ROWS} where id = {rng.randrange(_ROWS)}",
        "line": f"update line set id = id + {_ROWS} where id = {rng.randrange(_ROWS)}",
        "item": f"update item set j = 1 - j where k = '{rng.randrange(_ROWS)}'",
    }
    return rng.choice((
        upsert, upsert, upsert, f"update {table} set n = {rng.randrange(6)} where {some}",
        f"delete from {table} where {some}", moved[table], f"truncate {table}{' cascade' if table == 'story' else ''}",
    ))  # fmt: skip


def _attempt(conn: psycopg.Connection, statement: str) -> bool:
    """Refused by the application's own constraints, it is as if it had not been tried."""
    try:
        with conn.transaction():
            conn.execute(statement.encode())
    except (psycopg.errors.IntegrityError, psycopg.errors.LockNotAvailable):
        return False
    return True


async def write(world: World) -> str:
    """A transaction of some statements; some in a savepoint that is taken back."""
    done = []
    with world.app.transaction():
        for _ in range(world.rng.randrange(1, 5)):
            statement = _change(world, world.rng.choice(WATCHED))
            if world.rng.random() < 0.2:
                with world.app.transaction(force_rollback=True):
                    _attempt(world.app, statement)
                done.append(f"[{statement}]")
            elif _attempt(world.app, statement):
                done.append(statement)
    return "; ".join(done)


async def hold_open(world: World) -> str:
    """A transaction that is under way while other things happen, or its end."""
    if world.open is None:
        world.open = world.pair.source.connect(autocommit=False)
        world.open.execute("set lock_timeout = '20ms'")
        statement = _change(world, "item")
        return f"open: {statement if _attempt(world.open, statement) else 'nothing'}"
    ends, world.open = world.open, None
    commits = world.rng.random() < 0.7
    (ends.commit if commits else ends.rollback)()
    ends.close()
    return f"open: {'commits' if commits else 'is taken back'}"


async def emit(world: World) -> str:
    """The application writes a card and emits it in the same transaction."""
    with world.app.transaction():
        if world.rng.random() < 0.6:
            row = _row(world, "card")
            world.app.execute(
                f"insert into card values {row} on conflict (id) do update set n = excluded.n, note = excluded.note".encode()
            )
            key = int(row[1:].split(",")[0])
            world.app.execute(
                "select outbox.emit('public.card', 'upsert', (select row_to_json(c) from card c where id = %s))", (key,)
            )
            return f"emit {row}"
        key = world.rng.randrange(_ROWS)
        world.app.execute("delete from card where id = %s", (key,))
        world.app.execute(
            "select outbox.emit('public.card', 'delete', key => json_build_object('id', %s::int))", (key,)
        )
        return f"emit delete of {key}"


async def copy(world: World) -> str:
    table, prune, restart = world.rng.choice(WATCHED), world.rng.random() < 0.5, world.rng.random() < 0.3
    world.app.execute("select outbox.ask_copy(%s, %s, %s)", (table, prune, restart))
    return f"copy of {table}{', prune' * prune}{', restart' * restart}"


async def verify(world: World) -> str:
    table = world.rng.choice(WATCHED)
    world.app.execute("select outbox.ask_verification(%s, true)", (table,))
    return f"verify --repair {table}"


async def map_anew(world: World) -> str:
    """A filter or a hidden column comes or goes."""
    table = world.rng.choice(WATCHED)
    exclude, condition = None, None
    if table != "story" and world.rng.random() < 0.5:  # lines refer to stories: a filter there would need one here
        condition = f"n <> {world.rng.randrange(6)}"
    elif world.rng.random() < 0.5:
        exclude = ["note"]
    world.app.execute(
        "select outbox.watch(%s, exclude => %s::text[], filter => %s)", (table, exclude or [], condition or "")
    )
    world.mirrored(table, condition, hidden=exclude is not None)
    return f"watch {table}, {condition}, without {exclude}"


async def watch_again(world: World) -> str:
    """Unwatched, written to, watched: as if a migration had been tried twice."""
    table = world.rng.choice(WATCHED)
    statement = _change(world, table)
    with world.app.transaction():
        world.app.execute("select outbox.unwatch(%s)", (table,))
        wrote = _attempt(world.app, statement)
        world.app.execute("select outbox.watch(%s)", (table,))
    world.mirrored(table, None, hidden=False)
    return f"unwatch, {statement if wrote else ''}, watch {table}"


async def asleep(world: World) -> str:
    """As a restore does it: triggers off, rows, triggers on, which are no longer ALWAYS."""
    table = world.rng.choice(("line", "story"))
    statement = _change(world, table)
    with world.app.transaction():
        world.app.execute(f"alter table {table} disable trigger user".encode())
        wrote = _attempt(world.app, statement)
        world.app.execute(f"alter table {table} enable trigger user".encode())
    return f"{table} without triggers: {statement if wrote else ''}"


async def refuse(world: World) -> str:
    table = world.rng.choice(tuple(KEYS))
    world.mirror.execute(f"alter table {table} drop constraint if exists lucky".encode())
    if world.rng.random() < 0.7 and _has(world, table, "n"):
        world.mirror.execute(f"alter table {table} add constraint lucky check (n <> {_REFUSED}) not valid".encode())
        return f"the target's {table} refuses {_REFUSED}"
    return f"the target's {table} refuses nothing"


async def put_out(world: World) -> str:
    """The mirror lacks a column, or a right on it is missing, and perhaps is back."""
    table, way = world.rng.choice(tuple(KEYS)), world.rng.randrange(3)
    if way == 0:
        _back(world)
        return "all mirrors fit again"
    if way == 1:
        world.mirror.execute(f"revoke update on {table} from service_role, supabase_owner".encode())
        return f"no right to update {table}"
    if _has(world, table, "n"):
        world.mirror.execute(f"alter table {table} rename column n to m".encode())
    return f"the target's {table} calls n m"


async def migrate(world: World) -> str:
    """A column with values, first here, then there."""
    table = world.rng.choice(WATCHED)
    name = "x"
    with world.app.transaction():
        world.app.execute(f"alter table {table} drop column if exists {name}".encode())
        world.app.execute(f"alter table {table} add column {name} int default 7".encode())
    world.mirror.execute(f"alter table {table} add column if not exists {name} int".encode())
    return f"{table} gets a column"


async def lose(world: World) -> str:
    assert world.way is not None
    world.way.lose = world.rng.choice(("request", "answer"))
    return f"the next {world.way.lose} gets lost"


async def interrupt(world: World) -> str:
    await world.interrupted()
    return "a turn is cancelled"


async def restart(world: World) -> str:
    await world.again()
    return "another relay"


def _has(world: World, table: str, column: str) -> bool:
    found = world.mirror.execute(
        "select from pg_attribute where attrelid = %s::regclass and attname = %s", (table, column)
    )
    return found.rowcount > 0


def _back(world: World) -> None:
    for table in KEYS:
        if _has(world, table, "m"):
            world.mirror.execute(f"alter table {table} rename column m to n".encode())
        world.mirror.execute(f"grant all on {table} to service_role, supabase_owner".encode())


async def mended(world: World) -> None:
    """All that a person would do in the end. What outboxd must do by itself is not among it."""
    if world.open is not None:
        await hold_open(world)
    _back(world)
    for table in KEYS:
        world.mirror.execute(f"alter table {table} drop constraint if exists lucky".encode())
    world.app.execute("select outbox.watch(table_name::regclass) from outbox.uncaptured()")


DEEDS: dict[Deed, int] = {
    write: 12, hold_open: 3, emit: 3, copy: 3, verify: 1, map_anew: 2, watch_again: 1, asleep: 1, refuse: 2, put_out: 3,
    migrate: 1, lose: 2, interrupt: 2, restart: 1,
}  # fmt: skip
