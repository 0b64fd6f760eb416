"""outbox.watch, outbox.unwatch and what outbox.watched says."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.captured import Connection, assert_replays, changes, ops, rows, value, waits_for, watch
from tests.databases import Database
from tests.waiting import wait_until

TRIGGERS = """
    select t.tgname, t.tgenabled, p.proname from pg_trigger t join pg_proc p on p.oid = t.tgfoid
     where t.tgrelid = %s::regclass and not t.tgisinternal order by t.tgname
"""
LEFT = """
    select (select count(*) from pg_trigger where tgname like 'outbox%'),
           (select count(*) from pg_proc where proname ~ '^capture_[0-9]'), (select count(*) from outbox.watched)
"""


def test_watching_says_under_which_name_and_which_columns(scratch: Connection) -> None:
    """outbox.watched holds what was asked for; changes carry the name that watch returns."""
    scratch.execute('create schema "App"; create table "App"."Story" (id int primary key, title text, secret text)')
    assert watch(scratch, '"App"."Story"', exclude=["secret"]) == '"App"."Story"'
    assert rows(scratch, "select table_name, key_columns, include, exclude, capture from outbox.watched") == [
        ('"App"."Story"', None, None, ["secret"], True)
    ]
    scratch.execute("""insert into "App"."Story" values (1, 'one', 'hidden')""")
    assert [c[1:] for c in changes(scratch)] == [('"App"."Story"', "upsert", '{"id":1}', '{"id":1,"title":"one"}')]


def test_the_triggers_fire_always(scratch: Connection) -> None:
    """One for rows and one for TRUNCATE, enabled ALWAYS, both calling the table's own function."""
    scratch.execute("create table t (id int primary key)")
    watch(scratch, "t")
    number = value(scratch, "select id from outbox.watched")
    assert rows(scratch, TRIGGERS, "t") == [
        (f"outbox_row_{number}", "A", f"capture_{number}"),
        ("outbox_truncate", "A", f"capture_{number}"),
    ]


@pytest.mark.parametrize(
    "column", ["id bigserial", "id int generated always as identity", "id int default nextval('numbers')"]
)
def test_a_table_with_a_sequence_is_warned_of(scratch: Connection, column: str) -> None:
    """lastval() is the outbox's number afterwards, currval() and RETURNING are the application's. Once, and not for others."""
    said: list[str] = []
    scratch.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    scratch.execute(
        f"create sequence numbers start 7000; create table t ({column} primary key, n int); create table other (id int primary key)"
    )
    watch(scratch, "t")
    watch(scratch, "t")
    watch(scratch, "other")
    assert [text.partition(":")[0] for text in said] == ["public.t has a column that a sequence fills"]
    drawn = value(scratch, "insert into t (n) values (1) returning id")
    assert value(scratch, "select lastval() = max(id) from outbox.change")
    assert value(scratch, "select currval(coalesce(pg_get_serial_sequence('t', 'id'), 'numbers'))") == drawn


def test_watching_again_changes_nothing(scratch: Connection) -> None:
    """The same call a second time leaves the same triggers, one function, one row."""
    scratch.execute("create table t (id int primary key)")
    assert watch(scratch, "t") == watch(scratch, "public.t")
    before = rows(scratch, TRIGGERS, "t"), rows(scratch, "select id, table_name from outbox.watched")
    watch(scratch, "t")
    assert (rows(scratch, TRIGGERS, "t"), rows(scratch, "select id, table_name from outbox.watched")) == before
    scratch.execute("insert into t values (1)")
    assert ops(scratch) == ["upsert"]


def test_watching_again_takes_the_new_wishes(scratch: Connection) -> None:
    """Key and columns are those of the last call."""
    scratch.execute("create table t (id int primary key, code text not null unique, a text, b text)")
    watch(scratch, "t", exclude=["b"])
    scratch.execute("insert into t values (1, 'x', 'a', 'b')")
    watch(scratch, "t", key_columns=["code"], include=["code", "b"])
    scratch.execute("update t set a = 'A'")
    assert [(c.key, c.row) for c in changes(scratch)] == [
        ('{"id":1}', '{"id":1,"code":"x","a":"a"}'),
        ('{"code":"x"}', '{"code":"x","b":"b"}'),
    ]


def test_watching_again_mends_disabled_triggers(scratch: Connection) -> None:
    """DISABLE TRIGGER ALL and back, as a data load does it, leaves triggers that no longer fire always."""
    scratch.execute("create table t (id int primary key)")
    watch(scratch, "t")
    scratch.execute("alter table t disable trigger all; alter table t enable trigger all")
    assert {row[1] for row in rows(scratch, TRIGGERS, "t")} == {"O"}
    watch(scratch, "t")
    assert {row[1] for row in rows(scratch, TRIGGERS, "t")} == {"A"}


def test_a_chosen_key_names_the_row(scratch: Connection) -> None:
    """Any unique NOT NULL key may stand for the primary key, and need not be there as one."""
    scratch.execute("create table t (a int not null, b text not null, c text, unique (b, a))")
    watch(scratch, "t", key_columns=["a", "b"])
    scratch.execute(
        "insert into t values (1, 'x', '1'), (1, 'y', '2'); update t set b = 'z' where b = 'y'; delete from t where b = 'x'"
    )
    assert {c.key for c in changes(scratch)} == {'{"a":1,"b":"x"}', '{"a":1,"b":"y"}', '{"a":1,"b":"z"}'}
    assert_replays(scratch)


def test_without_capture_only_emit_writes(scratch: Connection) -> None:
    """capture => false installs no trigger, and takes those off that were there."""
    scratch.execute("create table t (id int primary key)")
    watch(scratch, "t", capture=False)
    assert rows(scratch, TRIGGERS, "t") == []
    watch(scratch, "t")
    watch(scratch, "t", capture=False)
    scratch.execute("insert into t values (1)")
    assert (rows(scratch, TRIGGERS, "t"), changes(scratch)) == ([], [])
    scratch.execute("""select outbox.emit('t', 'upsert', '{"id": 1}')""")
    assert ops(scratch) == ["upsert"]


def test_unwatching_leaves_nothing_but_the_changes(scratch: Connection) -> None:
    """No trigger, no function, no row; what was recorded still travels."""
    scratch.execute("create table t (id int primary key)")
    watch(scratch, "t")
    scratch.execute("insert into t values (1)")
    assert value(scratch, "select outbox.unwatch('public.t')") == "public.t"
    scratch.execute("insert into t values (2); truncate t")
    assert rows(scratch, LEFT) == [(0, 0, 0)]
    assert [c.key for c in changes(scratch)] == ['{"id":1}']
    watch(scratch, "t")
    scratch.execute("insert into t values (3)")
    assert [c.key for c in changes(scratch)] == ['{"id":1}', '{"id":3}']


def test_unwatching_what_is_gone(scratch: Connection) -> None:
    """A dropped table can be unwatched by its name; the application never saw its DROP fail."""
    scratch.execute('create table "T" (id int primary key)')
    watch(scratch, '"T"')
    scratch.execute('drop table "T"')
    assert value(scratch, """select outbox.unwatch('public."T"')""") == 'public."T"'
    assert rows(scratch, LEFT) == [(0, 0, 0)]


def test_unwatching_a_renamed_table(scratch: Connection) -> None:
    """Under the name it is watched as; the triggers go wherever the table is now."""
    scratch.execute("create table t (id int primary key)")
    watch(scratch, "t")
    scratch.execute("create schema s; alter table t rename to u; alter table u set schema s")
    value(scratch, "select outbox.unwatch('t')")
    assert rows(scratch, LEFT) == [(0, 0, 0)]


def test_unwatching_by_a_name_without_schema(scratch: Connection) -> None:
    """Enough while one such table is watched; which one it is must be said when there are two."""
    scratch.execute(
        "create schema s; create table s.t (id int primary key); create table public.t (id int primary key)"
    )
    watch(scratch, "s.t")
    assert value(scratch, "select outbox.unwatch('t')") == "s.t"
    watch(scratch, "s.t")
    watch(scratch, "public.t")
    with (
        pytest.raises(psycopg.errors.InvalidParameterValue, match=r"several schemas: public\.t, s\.t"),
        scratch.transaction(),
    ):
        scratch.execute("select outbox.unwatch('t')")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"public\.nope is not watched"):
        scratch.execute("select outbox.unwatch('public.nope')")


def test_a_table_made_anew_is_captured_once_it_is_watched_again(scratch: Connection) -> None:
    """DROP takes the triggers along; watching the new table uses the same row of outbox.watched."""
    scratch.execute("create table t (id int primary key)")
    watch(scratch, "t")
    scratch.execute("drop table t; create table t (name text primary key); insert into t values ('unseen')")
    assert changes(scratch) == []
    watch(scratch, "t")
    scratch.execute("insert into t values ('seen')")
    assert [c.key for c in changes(scratch)] == ['{"name":"seen"}']
    assert value(scratch, "select count(*) from outbox.watched") == 1


def test_a_busy_table_is_not_waited_for_beyond_lock_timeout(source: Database, app: Connection) -> None:
    """Watch gives up after lock_timeout, leaves nothing behind and lets the writer go on."""
    app.execute("create table t (id int primary key)")
    with source.connect(autocommit=False) as writer:
        writer.execute("insert into t values (1)")
        app.execute("set lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            watch(app, "t")
        assert rows(app, LEFT) == [(0, 0, 0)]
        with source.connect() as other:
            other.execute("set lock_timeout = '2s'; insert into t values (2)")  # nobody queues behind the attempt
        writer.execute("insert into t values (3)")
    watch(app, "t")
    app.execute("insert into t values (4)")
    assert [c.key for c in changes(app)] == ['{"id":4}']


@pytest.mark.parametrize("undo", ["select outbox.unwatch('t')", "select outbox.watch('t', capture => false)"])
def test_ending_the_watch_gives_up_as_well(source: Database, app: Connection, undo: str) -> None:
    """A long writer keeps its triggers; lock_timeout holds for taking them off, too."""
    app.execute("create table t (id int primary key)")
    watch(app, "t")
    with source.connect(autocommit=False) as writer:
        writer.execute("insert into t values (1)")
        app.execute("set lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            app.execute(undo)
        writer.execute("insert into t values (2)")
    assert ops(app) == ["upsert", "upsert"]


def test_watch_waits_for_open_writers(source: Database, app: Connection) -> None:
    """Whoever wrote unseen has committed before watch has: a snapshot taken afterwards misses nothing."""
    app.execute("create table t (id int primary key)")
    # The writer closes first, whatever happens, so that nobody waits for it.
    with source.connect() as watcher, ThreadPoolExecutor() as pool, source.connect(autocommit=False) as writer:
        writer.execute("insert into t values (1)")
        watching = pool.submit(watch, watcher, "t")
        wait_until(lambda: waits_for(app, watcher, writer))
        writer.commit()
        assert watching.result(10) == "public.t"
        writer.execute("insert into t values (2)")
        writer.commit()
    assert [c.key for c in changes(app)] == ['{"id":2}']


def test_who_watches_and_who_unwatches_take_turns(source: Database, app: Connection) -> None:
    """One waits for the other from the start: neither dies of a deadlock behind a long writer."""
    app.execute("create table t (id int primary key)")
    watch(app, "t")
    with source.connect() as one, source.connect() as other, ThreadPoolExecutor() as pool:
        with source.connect(autocommit=False) as writer:
            writer.execute("insert into t values (1)")
            watching = pool.submit(watch, one, "t")
            wait_until(lambda: waits_for(app, one, writer))
            unwatching = pool.submit(value, other, "select outbox.unwatch('t')")
            wait_until(lambda: waits_for(app, other, one))
        assert watching.result(10) == unwatching.result(10) == "public.t"
    assert rows(app, LEFT) == [(0, 0, 0)]
