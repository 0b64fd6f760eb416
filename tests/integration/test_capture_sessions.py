"""Sessions with settings, savepoints and transaction ids of every kind: what they write is captured as it is."""

import contextlib

import pytest
from psycopg import errors

from tests.captured import Connection, assert_replays, watch
from tests.databases import Database

SESSIONS = {
    "variables": "set plpgsql.variable_conflict = 'use_variable'",
    "columns": "set plpgsql.variable_conflict = 'use_column'",
    "nulls": "set transform_null_equals = on; set xmloption = document",
    "io": "set lc_messages = 'C'; set backslash_quote = off; set xmlbinary = hex; set lc_numeric = 'C'; set lc_time = 'C'",
    "limits": "set work_mem = '64kB'; set temp_buffers = 100; set max_stack_depth = '100kB'",
    "path": "create schema evil; create type evil.text as (a int); create function evil.concat(variadic text[]) returns text language sql as 'select 1::text'; set search_path = evil, public, pg_catalog",
    "temp": "create temp table change (id int); create temp table watched (id int); create temp table pg_class (oid int); create temp table t_x (id int)",
    "jit": "set jit = on; set jit_above_cost = 0; set jit_inline_above_cost = 0; set jit_optimize_above_cost = 0",
    "compress": "set default_toast_compression = 'pglz'; set enable_tidscan = off; set enable_seqscan = off; set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off",
    "parallel": "set debug_parallel_query = 'on'; set parallel_setup_cost = 0; set min_parallel_table_scan_size = 0",
    "discard": "set debug_discard_caches = 0; set plan_cache_mode = 'force_custom_plan'",
    "timeouts": "set statement_timeout = '20s'; set lock_timeout = '1ms'; set idle_in_transaction_session_timeout = '10s'; set transaction_timeout = '20s'",
    "deep": "set default_statistics_target = 1; set from_collapse_limit = 1; set join_collapse_limit = 1; set geqo_threshold = 2",
}


@pytest.mark.parametrize("session", SESSIONS)
def test_any_other_session(source: Database, app: Connection, session: str) -> None:
    xml = "text"
    with contextlib.suppress(errors.FeatureNotSupported):  # built without libxml
        app.execute("select '<a/>'::xml")
        xml = "xml"
    app.execute(f"""
        create type mood as enum ('a', 'b'); create domain d as mood; create domain n as numeric(10, 2) check (value > 0);
        create table t (k n, w timestamptz, b bytea, primary key (k, w, b), x {xml}, a int[], m mood[], d d, f float8, i interval, v text)
    """)
    watch(app, "t")
    with source.connect() as writer:
        for setting in SESSIONS[session].split("; "):
            with contextlib.suppress(errors.UndefinedObject):  # this version has no such setting
                writer.execute(setting.encode())
        writer.execute(r"""
            insert into public.t values (1.50, '2020-01-01 00:00+05', '\x00ff', '<a>1</a>', '{1,null}', '{a,null}', 'a', '-0', '1 mon -3 days', e'\x01\\ "'),
               (2, 'infinity', '\x', null, null, null, null, 'NaN', null, null), (3, '0044-03-15 BC', '\x01', null, null, null, null, 'infinity', '-1y 2d', '');
            update public.t set k = 4 where k = 3;
            update public.t set v = 'x' where k = 4; delete from public.t where k = 2;
            begin; select from public.t for no key update; savepoint s; update public.t set f = 1; rollback to s; update public.t set v = 'y'; commit;
        """)
        app.execute("alter table t add z mood default 'b'")
        writer.execute(
            "update public.t set z = 'a' where k = 4; delete from public.t where k = 1.5; insert into public.t values (7, now(), '\\x07')"
        )
    assert_replays(app, "public.t")


@pytest.mark.parametrize("level", ["repeatable read", "serializable", "read committed"])
def test_more_subtransactions_than_are_kept_in_memory(source: Database, app: Connection, level: str) -> None:
    app.execute("create table t (id int primary key, a text); create unique index on t (a)")
    watch(app, "t")
    app.execute("insert into t select i, 'x' || i from generate_series(1, 200) i")
    with source.connect() as one, source.connect() as two:
        one.execute(f"begin isolation level {level}; select from t")
        two.execute("delete from t where id % 10 = 0; insert into t values (10, 'again'); delete from t where id = 10")
        for n in range(1, 150):
            one.execute(f"savepoint s{n}")
            if n % 10:
                one.execute(
                    f"update t set a = 'y{n}' where id = {n}; delete from t where id = {n}; insert into t values ({n}, 'z{n}')"
                )
                one.execute(f"select from t where id = {n} for update; update t set id = -id where id = {n}")
            else:
                one.execute(
                    f"insert into t values ({n}, 'n{n}'); update t set id = id + 1000 where id = {n} and a = 'n{n}'"
                )
            if n % 7 == 0:
                one.execute(f"rollback to s{n}")
            elif n % 3 == 0:
                one.execute(f"release s{n}")
        one.execute("commit")
    assert_replays(app, "public.t")


AGED = "select max(age(relfrozenxid)) from pg_class where relkind = 'r'"


@pytest.mark.parametrize("level", ["repeatable read", "read committed", "serializable"])
def test_whoever_asked_for_ages_before_it_wrote(source: Database, app: Connection, level: str) -> None:
    """age() is of the transaction's number, or of the next one's where it has none: for as long as it lasts."""
    app.execute("create table t (id int primary key, a text)")
    watch(app, "t")
    app.execute("insert into t values (1, 'a'), (2, 'b')")
    with source.connect() as one, source.connect() as two:
        one.execute(f"begin isolation level {level}")
        one.execute(AGED)
        two.execute("insert into t values (5, 'five')")
        one.execute("savepoint s; delete from t where id = 1; insert into t values (1, 'c')")
        one.execute(
            "update t set id = 9 where id = 5; update t set id = 3 where id = 2; update t set id = 2 where id = 3; delete from t where id = 1"
        )
        one.execute("commit")
    assert_replays(app, "public.t")
