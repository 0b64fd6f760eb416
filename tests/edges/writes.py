"""What the application does to its own tables, and to those that it only emits.

Each deed takes the world, does one thing of its kind at random, and says what it did.
"""

import psycopg

from tests.edges.tables import EXPIRES, KEYS, WATCHED, Connection
from tests.edges.world import World

ROWS = 8  # keys of a table: few, so that they meet
REFUSED = 13


def _row(world: World, table: str) -> str:
    rng = world.rng
    n = rng.choice((rng.randrange(6), rng.randrange(6), REFUSED))
    note = rng.choice(("'a'", "'b'", "null"))
    key = rng.randrange(ROWS)
    return {
        "story": f"({key}, {n}, {note})",
        "line": f"({key}, (select min(id) from story where id >= {rng.randrange(ROWS)}), {n}, {note})",
        "item": f"({rng.randrange(2)}, '{key}', {n}, {note})",
        "card": f"({key}, {n}, {note})",
    }[table]


def change(world: World, table: str) -> str:
    """One statement of the application."""
    rng, note = world.rng, world.tables[table].note
    sets = f"(n, {note}) = (excluded.n, excluded.{note})"
    upsert = f"insert into {table} values {_row(world, table)} on conflict ({KEYS[table]}) do update set {sets}"
    some = f"{'k' if table == 'item' else 'id'}::int % {rng.randrange(2, 4)} = {rng.randrange(2)}"
    moved = {
        "story": f"update story set id = id + {ROWS} where id = {rng.randrange(ROWS)}",
        "line": f"update line set id = id + {ROWS} where id = {rng.randrange(ROWS)}",
        "item": f"update item set j = 1 - j where k = '{rng.randrange(ROWS)}'",
    }
    if rng.random() < 0.05:
        return f"truncate {table}{' cascade' if table == 'story' else ''}"
    return rng.choice((
        *[upsert] * 6, _many(table, rng.randrange(6)), f"update {table} set n = {rng.randrange(6)} where {some}",
        f"delete from {table} where {some}", moved[table],
    ))  # fmt: skip


def _many(table: str, n: int) -> str:
    """Every row that is not there."""
    of_line = "(select min(id) from story), " if table == "line" else ""
    key = "k % 2, k::text" if table == "item" else "k"
    return f"insert into {table} select {key}, {of_line}{n}, 'many' from generate_series(0, {ROWS - 1}) k on conflict do nothing"


def attempt(conn: Connection, statement: str) -> bool:
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
            statement = change(world, world.rng.choice(WATCHED))
            if world.rng.random() < 0.2:
                with world.app.transaction(force_rollback=True):
                    attempt(world.app, statement)
                done.append(f"[{statement}]")
            elif attempt(world.app, statement):
                done.append(statement)
    return "; ".join(done)


async def hold_open(world: World) -> str:
    """A transaction that is under way while other things happen, or its end."""
    if world.open is None:
        world.open = world.pair.source.connect(autocommit=False)
        world.open.execute("set lock_timeout = '20ms'")
        statement = change(world, "item")
        return f"open: {statement if attempt(world.open, statement) else 'nothing'}"
    ends, world.open = world.open, None
    commits = world.rng.random() < 0.7
    (ends.commit if commits else ends.rollback)()
    ends.close()
    return f"open: {'commits' if commits else 'is taken back'}"


# -- cards, which are emitted ----------------------------------------------------------------------------------


def _emit_card(world: World, key: int, columns: str = "*") -> None:
    world.app.execute(
        f"select outbox.emit('public.card', 'upsert', (select row_to_json(c) from (select {columns} from card where id = {key}) c))".encode()
    )


def _emit_no_card(world: World, key: int) -> None:
    world.app.execute("select outbox.emit('public.card', 'delete', key => json_build_object('id', %s::int))", (key,))


def _put_card(world: World) -> tuple[int, str]:
    row = _row(world, "card")
    world.app.execute(
        f"insert into card values {row} on conflict (id) do update set n = excluded.n, note = excluded.note".encode()
    )
    return int(row[1:].split(",")[0]), row


async def emit(world: World) -> str:
    """The application writes a card and emits it, or what it has changed of it, in the same transaction."""
    way, key = world.rng.randrange(8), world.rng.randrange(ROWS)
    with world.app.transaction():
        if way < 3:
            key, row = _put_card(world)
            _emit_card(world, key)
            return f"emit {row}"
        if way < 5:
            column, value = world.rng.choice((("n", "5"), ("n", str(REFUSED)), ("note", "'part'"), ("note", "null")))
            if not world.app.execute(f"update card set {column} = {value} where id = {key}".encode()).rowcount:
                return f"(emit: no card {key})"
            _emit_card(world, key, f"id, {column}")
            return f"emit of {key}: {column} = {value}"
        world.app.execute("delete from card where id = %s", (key,))
        _emit_no_card(world, key)
        if way < 7:
            return f"emit delete of {key}"
        world.app.execute("insert into card (id, n) values (%s, 4)", (key,))
        _emit_card(world, key, "id, n")
        return f"emit delete of {key}, and it anew in part"


def emit_all(world: World) -> None:
    """Every card, and of those that are not there that they are not."""
    there = {key for (key,) in world.app.execute("select id from card")}
    for key in range(ROWS):
        (_emit_card if key in there else _emit_no_card)(world, key)


# -- rows that are written once more ---------------------------------------------------------------------------


def write_again(world: World, table: str, key: dict[str, object]) -> str | None:
    """The row of this key, with a value that travels: a statement that is recorded, whatever was there. None: it cannot be."""
    mirrored = world.tables[table]
    if not mirrored.watched:
        return None
    n = world.rng.choice([n for n in range(6) if mirrored.condition != f"n <> {n}"])
    if mirrored.condition == EXPIRES:
        n = 99
    columns, values = ", ".join(key), ", ".join(f"'{value}'" for value in key.values())
    more = ("story, ", "(select min(id) from story), ") if table == "line" else ("", "")
    statement = (
        f"insert into {table} ({columns}, {more[0]}n) values ({values}, {more[1]}{n})"
        f" on conflict ({KEYS[table]}) do update set n = excluded.n"
    )
    if not attempt(world.app, statement):
        return None
    if table == "card":
        _emit_card(world, int(str(key["id"])))
    return statement
