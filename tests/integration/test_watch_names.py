"""Names: of triggers that are the application's own, of columns made to break SQL, of tables that are alike."""

import json

import psycopg
import pytest
from psycopg import sql

from daemon import install
from daemon.errors import AmbiguousTable
from daemon.selection import Selection
from tests.captured import Connection, assert_replays, changes, ops, rows, value, watch
from tests.databases import Database

TRIGGERS = (
    "select tgrelid::regclass::text, tgname, tgfoid::regproc::text from pg_trigger where not tgisinternal order by 1, 2"
)
OWN = "create function own() returns trigger language plpgsql as $$ begin return null; end $$"


@pytest.mark.parametrize(
    "name", ["outbox_truncate", "outbox_row_%s", "outbox_truncated", "outbox_insert", "outbox_update"]
)
def test_the_applications_own_triggers_stay(scratch: Connection, name: str) -> None:
    """Whatever they are called: watch takes no name that is taken, says how to mend it, and unwatch drops none."""
    number = value(scratch, "select coalesce(max(id), 0) + 1 from outbox.watched")
    scratch.execute(
        f"{OWN}; create table t (id int primary key) partition by range (id); create table t_1 partition of t default"
    )
    scratch.execute("select setval(pg_get_serial_sequence('outbox.watched', 'id'), %s, false)", (number,))
    name = name.replace("%s", str(number))
    for table in ("t", "t_1"):
        event = "truncate" if "truncate" in name else "insert"
        scratch.execute(
            f"create trigger {name} after {event} on {table} for each statement execute function own()".encode()
        )
        before = rows(scratch, TRIGGERS)
        if name in ("outbox_truncate", f"outbox_row_{number}") or (name == "outbox_truncated" and table == "t"):
            with (
                pytest.raises(
                    psycopg.errors.InvalidParameterValue, match=f"has a trigger {name} of its own"
                ) as refused,
                scratch.transaction(),
            ):
                watch(scratch, "t")
            assert rows(scratch, TRIGGERS) == before
            scratch.execute((refused.value.diag.message_primary or "").partition("needs that name: ")[2].encode())
            before = rows(scratch, TRIGGERS)
        with scratch.transaction(force_rollback=True):
            watch(scratch, "t")
            scratch.execute("insert into t values (1); truncate t")
            assert_replays(scratch)
            scratch.execute("select outbox.unwatch('t')")
            assert rows(scratch, TRIGGERS) == before
        scratch.execute("select setval(pg_get_serial_sequence('outbox.watched', 'id'), %s, false)", (number,))


HOSTILE = ["pk.id", "@copy@", "@", "@@", "a@b", "%s", "%", "%%", "100%", "%1$s", 'a"b', "a'b", "t.ctid", "old.id", "k", "r.x", "$1", "$body$", "x(v", "\\", "\\x1d", "--", "/*", "new", "#", "'); --"]  # fmt: skip
BIG = "(select string_agg(md5(n::text || random()::text), '') from generate_series(1, 9000) n)"


@pytest.mark.parametrize("kind", ["", "partition by hash ({})"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_key_of_any_name_with_a_row_of_any_size(scratch: Connection, name: str, kind: str) -> None:
    """Promise I7: no statement fails, small and large, as watched and after the table was altered."""
    column = sql.Identifier(name)
    scratch.execute(
        sql.SQL("create table t ({0} int, {1} text, {2} jsonb, primary key ({0}))" + kind.replace("{}", "{0}")).format(
            column, sql.Identifier(name + " big"), sql.Identifier(name + " doc")
        )
    )
    if kind:
        scratch.execute("create table t_1 partition of t for values with (modulus 1, remainder 0)")
    watch(scratch, "t", filter=sql.SQL("{} > 0").format(column).as_string(scratch) if len(name) == 1 else "")
    for statement in (
        "insert into t values (1, {big}, '[1]'), (2, 'small', '{{}}')",
        "update t set {0} = {0} + 10",
        "update t set {1} = {big} where {0} = 12",
        "delete from t where {0} = 11",
        "alter table t add late int; update t set late = 3",
        "insert into t values (3, {big}, null), (4, 'small', null)",
        "update t set {0} = {0} + 20; delete from t where {0} = 23",
        "truncate t_1" if kind else "truncate t",
    ):
        composed = sql.SQL(statement).format(column, sql.Identifier(name + " big"), big=sql.SQL(BIG))
        scratch.execute(composed)
        assert_replays(scratch)
    assert name in json.loads(changes(scratch)[0].key)
    assert "resync" not in ops(scratch)


def test_a_name_that_two_tables_may_have_is_refused(source: Database, app: Connection) -> None:
    """By watch and by unwatch, also where one of them alone is watched; with both spellings, of which each works."""
    app.execute('create table story (id int primary key); create table "Story" (id int primary key)')

    def watched() -> list[str]:
        return [one.table for one in install.watched(source.dsn)]

    def run(name: str) -> None:
        list(install.watch(source.dsn, [name], lambda *_: Selection(), print))

    with pytest.raises(AmbiguousTable, match=r'public\.Story may mean public\."Story" or public\.story'):
        run("public.Story")
    run("public.story")
    for name in ("public.Story", "Story"):
        with pytest.raises(AmbiguousTable):
            list(install.unwatch(source.dsn, [name]))
    assert watched() == ["public.story"]
    run('"Story"')
    assert list(install.unwatch(source.dsn, ['public."Story"'])) == ['public."Story"']
    assert list(install.unwatch(source.dsn, ["PUBLIC.story"])) == ["public.story"]
    app.execute("drop table story")
    run("public.Story")
    assert watched() == ['public."Story"']
    app.execute('drop table "Story"')
    assert list(install.unwatch(source.dsn, ["Story"])) == ['public."Story"']


def test_a_name_that_no_table_has_is_told_as_it_was_written(source: Database, app: Connection) -> None:
    """Also one that is no name at all."""
    for name in ("public.nope", "nope", "a.b.c.d", "", 'x"y', "'; drop table t"):
        with pytest.raises(psycopg.Error):
            list(install.watch(source.dsn, [name], lambda *_: Selection(), print))
        with pytest.raises(psycopg.Error):
            list(install.unwatch(source.dsn, [name]))
