"""What an owner of a watched table may make, on the source, must not run with the watcher's rights nor change a value."""

from itertools import product

import psycopg
import pytest

from tests.captured import Connection, assert_replays, changes, ops, watch
from tests.databases import Database
from tests.mirrored import Mirrored
from tests.replay import decoded

TRAP = "language plpgsql {} as $$ begin raise exception 'ran as %', current_user; end $$"


def trap(owner: Connection, signature: str, volatility: str = "") -> None:
    """A function that tells on whoever calls it."""
    owner.execute(f"create function {signature} {TRAP.format(volatility)}".encode())


@pytest.mark.parametrize("when", ["before it is watched", "after it is watched", "after a column was added"])
def test_a_cast_to_json_is_not_called(owner: Connection, watcher: Connection, when: str) -> None:
    """Of a type of the owner's own, in a key as well as in a row: row_to_json would call it."""
    owner.execute("create type mood as enum ('a', 'b', 'c'); create type span as range (subtype = int4)")
    owner.execute("create table t (id mood primary key, m mood, ms mood[], s span)")
    if when != "before it is watched":
        watch(watcher, "t")
    for kind in ("mood", "span"):
        for target in ("json", "jsonb", "text"):
            trap(owner, f"trap_{target}({kind}) returns {target}")
            owner.execute(f"create cast ({kind} as {target}) with function trap_{target}({kind})".encode())
    if when == "before it is watched":
        watch(watcher, "t")
    if when == "after a column was added":
        owner.execute("alter table t add late mood default 'c'")
    owner.execute("insert into t (id, m, ms, s) values ('a', 'b', '{c}', '[1,2)'), ('b', null, null, null)")
    owner.execute("update t set id = 'c', m = 'a' where id = 'a'; delete from t where id = 'b'")
    assert [(c.op, c.key) for c in changes(watcher)][-2:] == [("upsert", '{"id":"c"}'), ("delete", '{"id":"b"}')]
    (row,) = [decoded(c.row or "") for c in changes(watcher) if c.op == "upsert" and c.key == '{"id":"c"}']
    assert (row["id"], row["m"], row["ms"], row["s"]) == ("c", "a", "{c}", "[1,2)")


def test_functions_and_operators_beside_the_table_are_not_called(owner: Connection, watcher: Connection) -> None:
    """Namesakes of everything that capture calls, for the very types of the table."""
    owner.execute("create type mood as enum ('a', 'b')")
    for signature in (
        "concat(mood) returns text", "row_to_json(mood) returns json", "format(text, mood) returns text", "age(xid) returns int",
        "trim_scale(numeric) returns numeric", "mood_eq(mood, mood) returns bool", "nullif_(mood) returns mood",
        "current_setting(text, bool) returns text", "pg_current_xact_id() returns xid8", "clock_timestamp() returns timestamptz",
        "set_config(text, text, bool) returns text",
    ):  # fmt: skip
        trap(owner, f"public.{signature}", "immutable")
    owner.execute("create operator public.= (leftarg = mood, rightarg = mood, function = mood_eq)")
    owner.execute(
        "create table t (id mood primary key, n numeric); create table change (id int); create table watched (id int)"
    )
    watch(watcher, "t")
    owner.execute("set search_path = public, pg_catalog")
    owner.execute(
        "insert into t values ('a', 1.50); update t set n = 2 where n = 1.50; update t set id = 'b'; delete from t"
    )
    assert ops(watcher) == ["upsert", "upsert", "delete", "upsert", "delete"] or ops(watcher).count("upsert") == 3


def test_a_domains_check_is_not_run_by_capture(owner: Connection, watcher: Connection) -> None:
    """Reading a value checks nothing: the check has run, as the writer."""
    owner.execute("create table ran (who text)")
    owner.execute(
        "create function note(text) returns bool language plpgsql as $$ begin insert into public.ran values (current_user); return true; end $$"
    )
    owner.execute(
        "create domain noted as text check (note(value)); create table t (id noted primary key, v noted, vs noted[])"
    )
    watch(watcher, "t")
    owner.execute("insert into t values ('a', 'b', '{c}'); update t set v = 'd', id = 'e'; delete from t")
    ran = {who for (who,) in watcher.execute("select distinct who from ran")}
    assert ran == {owner.info.user}


def test_a_domain_over_an_enum_as_key_is_refused(owner: Connection, watcher: Connection) -> None:
    """Postgres has no equality for it: capture would fail the application's own statement."""
    owner.execute(
        "create type mood as enum ('a'); create domain cheer as mood; create table t (id cheer primary key, v cheer)"
    )
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="a domain over an enum"):
        watch(watcher, "t")
    owner.execute("alter table t alter id type mood")
    watch(watcher, "t")
    owner.execute("insert into t values ('a', 'a'); update t set v = null; delete from t")
    assert ops(watcher) == ["upsert", "upsert", "delete"]


def test_a_column_named_like_a_dropped_one_is_captured(owner: Connection, watcher: Connection) -> None:
    """The name Postgres gives to dropped columns is anybody's to use."""
    owner.execute(
        'create table t (id int primary key, gone int, "........pg.dropped.3........" text, "........pg.dropped.9........" text)'
    )
    owner.execute("alter table t drop gone")
    watch(watcher, "t")
    owner.execute("insert into t values (1, 'three', 'nine')")
    (row,) = [decoded(c.row or "") for c in changes(watcher)]
    assert row == {"id": 1, "........pg.dropped.3........": "three", "........pg.dropped.9........": "nine"}
    assert_replays(watcher)


def test_headers_that_are_not_json_are_kept_as_text(owner: Connection, watcher: Connection) -> None:
    """outbox.headers is the session's: whatever it says, the change is recorded, and nothing of it is run. How much: test_poison_headers."""
    owner.execute("create table t (id int primary key)")
    watch(watcher, "t")
    for text in ("'); drop table t; --", "{", "\x1e[]\x1e", "x" * 16_384):
        owner.execute("select set_config('outbox.headers', %s, false)", (text,))
        owner.execute("insert into t select count(*) from t")
        found = watcher.execute("select headers from outbox.change order by id desc limit 1").fetchone()
        assert found == (text,)


NAMES = ["t'); drop table t; --", 't"; drop table t; --', "public.t; drop table t", "$$", "%s", "outbox.change", "pg_catalog.pg_authid",
    "a.b.c.d", "", ".", "x" * 200, "\x1e", '"unclosed', "public.\x1f"]  # fmt: skip


def test_emit_takes_no_name_that_is_not_watched(owner: Connection, watcher: Connection) -> None:
    """A table's name is looked up, never pasted; the error says so and changes nothing."""
    owner.execute("create table t (id int primary key)")
    watch(watcher, "t")
    for name, op in product(NAMES, ("upsert", "delete", "truncate", "'; drop table t; --")):
        with pytest.raises(psycopg.Error):
            watcher.execute("select outbox.emit(%s, %s, %s::json)", (name, op, '{"id": 1}'))
    assert changes(watcher) == []
    assert watcher.execute("select count(*) from t").fetchone() == (0,)


NO_ROWS = ["[]", "1", "null", '"id"', "{}", '{"id": null}', '{"ID": 1}', '{"id": 1, "nope": 2}', '{"id": "1; drop table t"}', '{"id": [1]}',
    '{"id": {"a": 1}}', '{"id": 1e400}', '{"id": "\\ud800"}', '{"id": "\\u0000"}', "[" * 5000 + "]" * 5000]  # fmt: skip


def test_emit_refuses_documents_that_are_no_row(owner: Connection, watcher: Connection) -> None:
    """At once, in the application, with nothing recorded."""
    owner.execute("create table t (id int primary key, v text)")
    watch(watcher, "t")
    for given in NO_ROWS:
        with pytest.raises(psycopg.Error):
            watcher.execute("select outbox.emit('t', 'upsert', %s::json)", (given,))
    assert changes(watcher) == []


async def test_emitted_documents_arrive_as_they_were(source: Database, target: Database) -> None:
    """Duplicate keys, huge numbers, deep nesting, separators and SQL, for a table that is on the target alone."""
    both = Mirrored(source, target)
    table = "create table public.card (id text primary key, n numeric, doc jsonb, plain json, v text)"
    try:
        both.on_source("select outbox.map('public.card', array['id'])")
        both.on_target(table, "select outboxd.map('public.card')")
        deep = "[" * 500 + "]" * 500
        documents = [
            ('{"id": "a", "n": 1e300, "doc": null, "v": "\\u001e\\u001e[{}]"}', ("a", None, "\x1e\x1e[{}]")),
            ('{"id": "b", "v": "first", "v": "second", "n": 2}', ("b", None, "second")),
            (f'{{"id": "\'); drop table card; --", "doc": {deep}}}', ("'); drop table card; --", deep, None)),
            ('{"id": "\\u001e", "plain": {"a":1,  "a":2, "s": "\\ud83d\\ude00"}, "v": "$$; select 1"}', ("\x1e", None, "$$; select 1")),
        ]  # fmt: skip
        with source.connect() as conn:
            for document, _ in documents:
                conn.execute("select outbox.emit('public.card', 'upsert', %s::json)", (document,))
        await both.relay.drain()
        with target.connect() as conn:
            found = {row[0]: row for row in conn.execute("select id, doc::text, v from card")}
            assert set(found) == {expected[0] for _, expected in documents}
            for _, expected in documents:
                got = found[expected[0]]
                assert (got[0], (got[1] or "").replace(" ", "") or None, got[2]) == expected
            assert conn.execute("select n = 1e300 from card where id = 'a'").fetchone() == (True,)
            assert conn.execute("select plain::text from card where id = e'\\x1e'").fetchone() == (
                '{"a":1,  "a":2, "s": "\\ud83d\\ude00"}',
            )
    finally:
        await both.close()


@pytest.mark.parametrize("partitioned", [False, True])
def test_a_constraint_is_computed_by_nobody_but_its_owner(
    source: Database, owner: Connection, watcher: Connection, partitioned: bool
) -> None:
    """The planner computes a constraint whose function is immutable: when told to, and for partitions by default. Neither
    capture nor a copy has it do that, whatever their session says."""
    owner.execute(
        "create function evil(int) returns bool language plpgsql immutable as $$ begin raise warning 'ran as %', current_user; return true; end $$"
    )
    owner.execute(
        "create table t (id int primary key, v int, check (evil(1))) partition by range (id); create table t_1 partition of t for values from (0) to (9)"
        if partitioned
        else "create table t (id int primary key, v int, check (evil(1)))"
    )
    watch(watcher, "t")
    said: list[str] = []
    watcher.add_notice_handler(lambda told: said.append(str(told.message_primary)))
    with psycopg.connect(source.cluster.dsn(source.name, owner.info.user), autocommit=True) as fresh:
        fresh.add_notice_handler(lambda told: said.append(str(told.message_primary)))
        fresh.execute("set constraint_exclusion = on")
        fresh.execute("insert into t values (2, 1); update t set id = 3; update t set v = 2")
        watcher.execute("set constraint_exclusion = on")
        watch(watcher, "t")
        for what, keys in (("rows", None), ("these", ['{"id":3}']), ("missing", ['{"id":3}']), ("touch", ['{"id":3}'])):
            watcher.execute("select outbox.copy_of('public.t', %s, %s, 10, 1000, 1000)", (what, keys))
        fresh.execute("delete from t")
    assert set(said) == {f"ran as {owner.info.user}"}
