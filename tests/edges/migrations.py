"""What migrations do to the tables, here and there.

Each deed takes the world, does one thing of its kind at random, and says what it did. The target follows at once or, by
`fit`, in the end.
"""

import psycopg

from tests.edges.tables import ADDED, KEYS, REFERENCE, WATCHED, ddl, has
from tests.edges.world import World


async def add(world: World) -> str:
    """A column with values, made or made anew; or it goes."""
    table, value = world.rng.choice(WATCHED), world.rng.randrange(100)
    goes, follows = world.rng.random() < 0.2, world.rng.random() < 0.6
    with world.app.transaction():
        world.app.execute(f"alter table {table} drop column if exists {ADDED}".encode())
        if not goes:
            world.app.execute(f"alter table {table} add column {ADDED} int default {value}".encode())
    world.tables[table].added = not goes
    if follows:
        fit(world, table)
    return f"{table} {'has no x' if goes else f'gets an x of {value}'}{', the target later' * (not follows)}"


async def rename(world: World) -> str:
    """A column that may be hidden: then the table stops until it is watched again."""
    table = world.rng.choice(WATCHED)
    mirrored = world.tables[table]
    again, follows = world.rng.random() < 0.6, world.rng.random() < 0.6
    was, name = mirrored.note, "memo" if mirrored.note == "note" else "note"
    world.app.execute(f"alter table {table} rename column {was} to {name}".encode())
    mirrored.note = name
    mirrored.stale = mirrored.watched and mirrored.hidden
    if again and mirrored.stale:
        rewatch(world, table)
    if follows:
        fit(world, table)
    return f"{table} calls {was} {name}{', watched later' * mirrored.stale}{', the target later' * (not follows)}"


async def remake(world: World) -> str:
    """The target's table goes, and one of its name comes."""
    table = world.rng.choice(WATCHED)
    world.mirror.execute(f"drop table {table} cascade".encode())
    world.mirror.execute(ddl(table, world.tables[table].note).encode())
    if table == "story":
        world.mirror.execute(f"alter table line add {REFERENCE} not valid".encode())
    world.mirror.execute("select outboxd.map(%s)", (table,))
    fit(world, table)
    world.beat()  # by which the relay hears of it
    return f"the target's {table} is made anew"


def fit(world: World, table: str) -> None:
    """The target's table gets the columns that the source's has."""
    mirrored, other = world.tables[table], {"note": "memo", "memo": "note"}
    if not has(world.mirror, table, mirrored.note):
        world.mirror.execute(f"alter table {table} rename column {other[mirrored.note]} to {mirrored.note}".encode())
    if mirrored.added:
        world.mirror.execute(f"alter table {table} add column if not exists {ADDED} int".encode())


def rewatch(world: World, table: str) -> None:
    """As a person does who has renamed a column, or wants to have it captured again: what was hidden stays so."""
    mirrored = world.tables[table]
    if not mirrored.watched:  # what was asked for before is forgotten
        world.app.execute("select outbox.watch(%s)", (table,))
        mirrored.anew()
    elif mirrored.stale:
        world.app.execute("select outbox.watch(%s, exclude => %s)", (table, [mirrored.note]))
        mirrored.stale = False
    else:
        world.app.execute("select outbox.watch(%s)", (table,))


def drifts(world: World, table: str) -> str | None:
    """One row of the target, written by hand. None: there is none, or somebody may not."""
    mirrored, keys = world.tables[table], KEYS[table]
    row = f"({keys}) = (select {keys} from {table} order by 1 limit 1)"
    ways = [f"delete from {table} where {row}"]
    if has(world.mirror, table, "n"):
        ways.append(f"update {table} set n = n + 100 where {row}")
        if table != "line":
            ways.append(
                f"insert into {table} ({keys}, n) values ({'0, ' * (table == 'item')}99, 1) on conflict do nothing"
            )
    vacant = world.mirror.execute("select unnest(outboxd.vacant(%s))", (f"public.{table}",)).fetchall()
    if mirrored.hidden and (mirrored.note,) in vacant:
        ways.append(f"update {table} set {mirrored.note} = 'seen' where {row}")
    statement = world.rng.choice(ways)
    try:
        done = world.mirror.execute(statement.encode())
    except (psycopg.errors.IntegrityError, psycopg.errors.InsufficientPrivilege):
        return None
    return f"on the target: {statement}" if done.rowcount else None
