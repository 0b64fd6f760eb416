"""A watched table is altered: the application's next statements succeed, and what they did is recorded or said to be lost."""

from collections.abc import Iterator
from itertools import count

import psycopg
import pytest
from psycopg import IsolationLevel

from tests.captured import Connection, assert_replays, changes, ops, rows, state, value, watch
from tests.databases import Database
from tests.replay import decoded, replay

_numbers = count(1)

TABLE = """
    create table {t} (id int primary key, code text not null unique, a text, b int, doc jsonb);
    insert into {t} select i, 'c' || i, 'a' || i, i, '{{"n": 1}}' from generate_series(1, 4) i
"""
TOUCH_ALL = (
    "insert into {t} (id, code) values (9, 'c9'); update {t} set code = upper(code); delete from {t} where id = 2"
)


@pytest.fixture
def writer(shared_app: Connection, source_cluster: object) -> Iterator[Connection]:
    """A second session, whose capture function has its plans already."""
    with psycopg.connect(shared_app.info.dsn, autocommit=True) as conn:
        yield conn


def watched_table(conn: Connection, writer: Connection, **options: object) -> str:
    """A new watched table that the writer has written to."""
    table = f"public.t{next(_numbers)}"
    conn.execute(TABLE.format(t=table))
    watch(conn, table, **options)
    writer.execute(
        f"update {table} set b = b; insert into {table} (id, code) values (8, 'c8'); delete from {table} where id = 8"
    )
    conn.execute("delete from outbox.change")
    return table


ALTERED = {
    "a column more": "alter table {t} add z int",
    "a column more, with a default": "alter table {t} add z timestamptz default now()",
    "a generated column": "alter table {t} add z text generated always as (code || '!') stored",
    "a column less": "alter table {t} drop a",
    "a column with another name": "alter table {t} rename a to aa",
    "two columns that swap names": "alter table {t} rename a to x; alter table {t} rename b to a; alter table {t} rename x to b",
    "another type": "alter table {t} alter b type numeric(10, 2)",
    "json that becomes text": "alter table {t} alter doc type text",
    "text that becomes json": "alter table {t} alter a type jsonb using to_jsonb(a)",
    "an array": "alter table {t} alter b type int[] using array[b, null]",
    "another key of the same columns": "alter table {t} drop constraint {n}_pkey; alter table {t} add primary key (id)",
    "one more unique index": "create unique index on {t} (b)",
    "a new primary key": "alter table {t} drop constraint {n}_pkey; alter table {t} add primary key (code)",
    "columns dropped and added": "alter table {t} drop a; alter table {t} drop b; alter table {t} add b text; alter table {t} add a int",
}  # fmt: skip


@pytest.mark.parametrize("case", ALTERED)
def test_an_altered_table_is_captured_as_it_is_now(shared_app: Connection, writer: Connection, case: str) -> None:
    """Every column there is now travels, without watching again; and after watching again as before."""
    table = watched_table(shared_app, writer)
    shared_app.execute(ALTERED[case].format(t=table, n=table.removeprefix("public.")))
    writer.execute(TOUCH_ALL.format(t=table))
    assert_replays(shared_app, table)
    watch(shared_app, table)
    shared_app.execute("delete from outbox.change")
    writer.execute(f"update {table} set code = code || '2'")
    assert_replays(shared_app, table)


LOST = {
    "the key's column renamed": "alter table {t} rename code to slug",
    "the key's column dropped": "alter table {t} drop code",
    "the key no longer unique": "alter table {t} drop constraint {n}_code_key",
    "the key no longer NOT NULL": "alter table {t} alter code drop not null",
    "the key made deferrable": "alter table {t} drop constraint {n}_code_key; alter table {t} add unique (code) deferrable",
}


@pytest.mark.parametrize("case", LOST)
def test_a_lost_key_is_marked(shared_app: Connection, writer: Connection, case: str) -> None:
    """The application's statements go on; the outbox says that the table's rows can no longer be named."""
    table = watched_table(shared_app, writer, key_columns=["code"])
    shared_app.execute(LOST[case].format(t=table, n=table.removeprefix("public.")))
    for statement in (
        f"insert into {table} (id, a) values (9, 'x')"
        if "dropped" in case or "NOT NULL" in case
        else f"update {table} set b = 0",
        f"update {table} set a = ''",
        f"delete from {table} where id = 1",
    ):
        writer.execute(statement)
    assert ops(shared_app, table) == ["resync", "resync", "resync"]


def test_a_lost_primary_key_is_marked(shared_app: Connection, writer: Connection) -> None:
    """Without any key there is nothing to call a row by."""
    table = watched_table(shared_app, writer)
    shared_app.execute(f"alter table {table} drop constraint {table.removeprefix('public.')}_pkey")
    writer.execute(f"update {table} set a = ''")
    writer.execute(f"truncate {table}")
    assert ops(shared_app, table) == ["resync", "resync"]
    shared_app.execute(f"alter table {table} add primary key (id)")
    writer.execute(f"insert into {table} (id, code) values (1, 'c')")
    assert ops(shared_app, table) == ["resync", "resync", "upsert"]


def test_a_renamed_primary_key_is_followed(shared_app: Connection, writer: Connection) -> None:
    """Unless columns were named, the key is the primary key, whatever it is called."""
    table = watched_table(shared_app, writer)
    shared_app.execute(f"alter table {table} rename id to story_id")
    writer.execute(f"update {table} set b = 0 where story_id = 1")
    (change,) = changes(shared_app, table)
    assert change.key == '{"story_id":1}'
    assert decoded(change.row or "")["story_id"] == 1


def test_a_renamed_table_keeps_its_name_in_the_outbox(shared_app: Connection, writer: Connection) -> None:
    """Until it is watched under the new one; RENAME and SET SCHEMA do not fail the application."""
    table = watched_table(shared_app, writer)
    shared_app.execute(f"alter table {table} rename to moved; create schema attic; alter table moved set schema attic")
    writer.execute(
        "update attic.moved set a = 'x' where id = 1; delete from attic.moved where id = 2; truncate attic.moved"
    )
    assert [(c.op, c.key) for c in changes(shared_app, table)] == [
        ("upsert", '{"id":1}'),
        ("delete", '{"id":2}'),
        ("truncate", "{}"),
    ]
    assert watch(shared_app, "attic.moved") == "attic.moved"
    writer.execute("insert into attic.moved (id, code) values (1, 'c')")
    assert (len(changes(shared_app, table)), ops(shared_app, "attic.moved")) == (3, ["upsert"])
    value(shared_app, "select outbox.unwatch(%s)", table)
    writer.execute("insert into attic.moved (id, code) values (2, 'd')")
    assert ops(shared_app, "attic.moved") == ["upsert", "upsert"]


def test_a_table_with_anothers_name_is_not_taken_for_it(shared_app: Connection, writer: Connection) -> None:
    """The old table's changes are not written as the new one's, nor lost in silence; watching again settles it."""
    table = watched_table(shared_app, writer)
    shared_app.execute(
        f"alter table {table} rename to old_version; create table {table} (id int primary key, fresh bool)"
    )
    writer.execute("update old_version set b = 0")
    assert ops(shared_app, table) == ["resync"]
    watch(shared_app, table)
    writer.execute(f"update old_version set b = 1; insert into {table} values (1, true)")
    assert [(c.op, c.row) for c in changes(shared_app, table)][1:] == [("upsert", '{"id":1,"fresh":true}')]


def test_dropping_a_watched_table_is_nobodys_business(shared_app: Connection, writer: Connection) -> None:
    """DROP needs no CASCADE and leaves only what unwatch takes away."""
    table = watched_table(shared_app, writer)
    shared_app.execute(f"drop table {table}")
    value(shared_app, "select outbox.unwatch(%s)", table)
    assert rows(shared_app, "select * from outbox.watched where table_name = %s", table) == []


@pytest.fixture
def early(shared_app: Connection) -> Iterator[Connection]:
    """A session in REPEATABLE READ, as frameworks may set it for all."""
    with psycopg.connect(shared_app.info.dsn) as conn:
        conn.isolation_level = IsolationLevel.REPEATABLE_READ
        yield conn


def test_an_old_snapshot_does_not_hide_a_new_column(
    shared_app: Connection, writer: Connection, early: Connection
) -> None:
    """A transaction that began before ADD COLUMN writes the new column: it travels, and the session goes on so."""
    table = watched_table(shared_app, writer)
    early.execute("select 1")
    shared_app.execute(f"alter table {table} add z int")
    early.execute(f"update {table} set z = 5 where id = 1")
    early.commit()
    early.execute(f"update {table} set z = 6 where id = 2")
    early.commit()
    first, second = (decoded(c.row or "") for c in changes(shared_app, table))
    assert str(first["z"]) == "5"  # as text while its type cannot be seen
    assert second["z"] == 6


@pytest.mark.parametrize("ddl", ["drop a", "rename a to aa", "rename id to story_id", "alter doc type text"])
def test_an_old_snapshot_does_not_look_for_an_old_column(
    shared_app: Connection, writer: Connection, early: Connection, ddl: str
) -> None:
    """A transaction that began before the ALTER can write afterwards."""
    table = watched_table(shared_app, writer)
    early.execute("select 1")
    shared_app.execute(f"alter table {table} {ddl}")
    # An old snapshot sees no row of a rewritten table, so it can only add one.
    early.execute(f"insert into {table} values (9, 'new')")
    early.commit()
    recorded = replay(changes(shared_app, table))
    assert len(recorded) == 1
    assert recorded.items() <= state(shared_app, table).items()


def test_a_watch_that_an_old_snapshot_does_not_know(shared_app: Connection, early: Connection) -> None:
    """A transaction that began before the table was watched is captured all the same."""
    table = f"public.t{next(_numbers)}"
    shared_app.execute(TABLE.format(t=table))
    early.execute("select 1")
    watch(shared_app, table)
    shared_app.execute(f"alter table {table} add z int")  # nothing is as it was known
    early.execute(f"update {table} set a = 'x'")
    early.execute(f"truncate {table}")
    early.commit()
    assert ops(shared_app, table) == ["upsert"] * 4 + ["truncate"]


@pytest.mark.parametrize(
    "loss",
    [
        "alter table {t} owner to {new}",
        "alter table {t} enable row level security; alter table {t} force row level security",
    ],
)
def test_a_lost_right_to_read_is_marked(source: Database, app: Connection, loss: str) -> None:
    """Another owner, or a policy forced on the owner, must not fail the application, nor hide rows from capture."""
    old, new = f"old_{source.name}", f"new_{source.name}"
    for role in (old, new):
        app.execute(f"create role {role}; grant create, usage on schema public, outbox to {role}")
        app.execute(
            f"grant all on all tables in schema outbox to {role}; grant usage on all sequences in schema outbox to {role};"
            f" grant execute on all functions in schema outbox to {role}"
        )
    try:
        app.execute(f"set role {old}")
        app.execute("create table t (id int primary key, a text)")
        watch(app, "t")
        app.execute("insert into t values (1, 'a')")
        app.execute("reset role")
        app.execute(loss.format(t="t", new=new))
        app.execute("update t set a = 'b'; delete from t")
        assert ops(app) == ["upsert", "resync", "resync"]
        watch(app, "t")  # whoever watches again is who reads
        app.execute("insert into t values (2, 'c')")
        assert ops(app)[3:] == ["upsert"]
    finally:
        app.execute(f"reset role; drop owned by {old}, {new} cascade; drop role {old}, {new}")
