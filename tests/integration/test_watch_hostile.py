"""Names, rights, sessions and schemas that were not made with the outbox in mind, some of them made against it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from daemon.demo.cluster import Cluster
from tests.captured import Connection, assert_replays, changes, ops, rows, value, watch
from tests.databases import SETTINGS, Database
from tests.replay import decoded

NAMES = [
    "there",
    "row",
    "x",
    "t",
    "k",
    "r",
    "n",
    "select",
    "new_rows",
    "old_rows",
    "captured",
    "as_known",
    "tg_op",
    "found",
    "new",
    "old",
    "at",
    "made",
    "f",
    "j",
    "inside",
    "key",
    "headers",
    "command",
    "Mixed Case",
    'quo"ted',
    "o'clock",
    "back\\slash",
    "dollar$$dollar",
    "$body$",
    "%s %1$I %L",
    "dotted.name",
    "ünï-ço∂é ✓",
    "line\nbreak",
    "n" * 63,
    "é" * 31,
    ":colon {brace}",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_will_do(scratch: Connection, name: str) -> None:
    """As the name of schema, table, key and column at once."""
    here, table = sql.Identifier(name), sql.Identifier(name, name)
    scratch.execute(sql.SQL("create schema {}").format(here))
    scratch.execute(sql.SQL("create table {} ({} int primary key, other text, doc jsonb)").format(table, here))
    recorded_as = watch(scratch, table.as_string(scratch))
    scratch.execute(sql.SQL("insert into {} values (1, 'a', 'null'), (2, 'b', '{{}}')").format(table))
    scratch.execute(sql.SQL("update {} set {} = {} + 10 where other = 'b'").format(table, here, here))
    scratch.execute(sql.SQL("delete from {} where {} = 1").format(table, here))
    (row,) = [c.row for c in changes(scratch, recorded_as) if c.op == "upsert" and "12" in c.key]
    assert decoded(row or "") == {name: 12, "other": "b", "doc": "{}"}
    assert_replays(scratch, recorded_as)
    scratch.execute(sql.SQL("alter table {} add late int default 3").format(table))
    scratch.execute(sql.SQL("update {} set other = 'c'").format(table))
    assert_replays(scratch, recorded_as)
    assert value(scratch, "select outbox.unwatch(%s)", recorded_as) == recorded_as


SESSIONS = {
    "spelling": "set datestyle = 'German'; set intervalstyle = 'sql_standard'; set extra_float_digits = 0;"
    " set bytea_output = 'escape'; set timezone = 'Asia/Kathmandu'; set lc_monetary = 'C'",
    "planning": "set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off; set enable_nestloop = off;"
    " set enable_sort = off; set enable_hashagg = off; set plan_cache_mode = force_custom_plan; set jit_above_cost = 0",
    "search_path": "set search_path = hostile, pg_temp, pg_catalog",
    "row_security": "set row_security = on",
    "serializable": "set default_transaction_isolation = 'serializable'",
    "repeatable read": "set default_transaction_isolation = 'repeatable read'",
    "replica": "set session_replication_role = replica",
    "quoting": "set quote_all_identifiers = on; set standard_conforming_strings = off; set escape_string_warning = off",
    "plpgsql": "set plpgsql.extra_errors = 'all'; set plpgsql.check_asserts = on; set check_function_bodies = off",
    "headers": "set outbox.headers = 'no json at all'; set outbox.truncating = 'nothing'",
    "deferred": "set default_transaction_deferrable = on; set constraint_exclusion = on",
}  # fmt: skip

EVERYTHING = """
    create type pair as (a int, b text);
    create table everything (
      id timestamptz primary key, span interval, tiny float4, wide float8, raw bytea, cash money, day date,
      exact numeric, doc jsonb, old_doc json, list text[], odd int[], pair pair, range tstzrange, address inet)
"""
VALUES = """
    ('2026-01-02 03:04:05.678901+02', '1 year -2 days 03:04', 0.1, 1e-17, decode('00ff', 'hex'), 12.5, '2026-02-01',
     1234567890123456789.000100, 'null', ' {"b": 1, "a": 1}', '{a,"b c",null}', '[-1:0]={1,2}', '(1,"x, y")',
     '[2026-01-01,infinity)', '10.0.0.1/8'),
    ('infinity', null, 'NaN', '-Infinity', '', null, '-infinity', 'NaN', '{"a": 1.10}', null, '{}', null, '(,)', 'empty', '::1')
"""


@pytest.fixture
def hostile(app: Connection) -> Connection:
    """A database where somebody has put functions, operators and tables before those of the system."""
    app.execute("create schema hostile")
    for signature, body in {
        "row_to_json(anyelement) returns json": "select '{}'::json",
        "concat(anyelement) returns text": "select 'broken'",
        "format(text, anyelement) returns text": "select 'broken'",
        "trim_scale(numeric) returns numeric": "select 0::numeric",
        "current_setting(text, boolean) returns text": "select 'broken'",
        "age(xid) returns int": "select 1",
        "pg_current_xact_id() returns xid8": "select '3'::xid8",
    }.items():
        app.execute(f"create function hostile.{signature} language sql as $$ {body} $$")
    app.execute("create function hostile.never(timestamptz, timestamptz) returns bool language sql as 'select false'")
    app.execute("create operator hostile.= (leftarg = timestamptz, rightarg = timestamptz, function = hostile.never)")
    app.execute("create table hostile.change (id int); create table hostile.watched (id int)")
    return app


@pytest.mark.parametrize("session", SESSIONS)
def test_any_session_writes_the_same(source: Database, hostile: Connection, session: str) -> None:
    """What is recorded does not depend on how the writer's session is set, and no setting makes its statements fail."""
    hostile.execute(EVERYTHING)
    with source.connect() as writer:
        writer.execute(
            "create temp table change (x int); create temp table watched (x int); create temp table everything (x int)"
        )
        writer.execute(SESSIONS[session])
        watch(writer, "public.everything")
        assert value(writer, "select table_name from outbox.watched") == "public.everything"
        writer.execute(f"reset datestyle; reset intervalstyle; insert into public.everything values {VALUES}")
        writer.execute(SESSIONS[session])
        writer.execute(
            "update public.everything set day = day; update public.everything set id = now() where address = '::1'"
        )
        writer.execute("delete from public.everything where address = '10.0.0.1/8'")
        assert_replays(hostile)
        assert ops(hostile).count("delete") == 2
        writer.execute(
            "alter table public.everything add late text default 'x'; update public.everything set day = null"
        )
        assert_replays(hostile)
        writer.execute("truncate public.everything")
        assert_replays(hostile)
        assert value(writer, "select outbox.unwatch('public.everything')") == "public.everything"


@pytest.fixture
def nobody(source: Database, app: Connection) -> Iterator[str]:
    """A role with rights on the application's tables alone."""
    role = f"nobody_{source.name}"
    app.execute(f"create role {role} login; grant usage on schema public to {role}")
    yield role
    app.execute(f"drop owned by {role} cascade; drop role {role}")


def test_writers_need_no_right_on_the_outbox(source: Database, app: Connection, nobody: str) -> None:
    """Whoever may write the table is captured; the outbox stays closed to them in every way."""
    app.execute(
        "create table t (id int primary key, a text); create table p (id int primary key) partition by list (id)"
    )
    app.execute("create table p1 partition of p for values in (1); create table p2 partition of p default")
    app.execute(f"grant all on t, p, p1, p2 to {nobody}")
    watch(app, "t")
    watch(app, "p")
    with psycopg.connect(source.cluster.dsn(source.name, nobody), autocommit=True) as writer:
        writer.execute(
            "insert into t values (1, 'a'), (2, 'b'); update t set id = id + 10; delete from t where id = 11"
        )
        writer.execute(
            "insert into p values (1), (2); insert into p1 select 1 where false; update p set id = id + 2; truncate p2"
        )
        app.execute("alter table t add c int")
        writer.execute("update t set c = 1; truncate t; insert into t values (5)")
        assert_replays(app)
        for statement in (
            "select * from outbox.change",
            "insert into outbox.change (table_name, op, key) values ('public.t', 'delete', '{}')",
            "select outbox.emit('t', 'delete', '{\"id\": 1}')",
            "select outbox.watch('t')",
            "select outbox.unwatch('t')",
            "select outbox.ring()",
            "select outbox.capture_1()",
            "create table outbox.mine (id int)",
            "create trigger mine after insert on t execute function outbox.capture_1()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                writer.execute(statement)


def test_a_watcher_runs_no_code_of_the_table(source: Database, app: Connection, nobody: str) -> None:
    """A cast that the table's owner made is not called with the rights of whoever watches."""
    app.execute(f"grant create on schema public to {nobody}")
    with psycopg.connect(source.cluster.dsn(source.name, nobody), autocommit=True) as owner:
        owner.execute("create type pair as (a int, b int); create domain two as pair")
        for target in ("text", "json"):
            owner.execute(
                f"create function trap_{target}(pair) returns {target} language plpgsql as"
                f" $$ begin raise exception 'called as %', current_user; end $$"
            )
            owner.execute(f"create cast (pair as {target}) with function trap_{target}(pair)")
        owner.execute("create table t (id int primary key, p pair, q two, ps pair[])")
        watch(app, "t")
        owner.execute("insert into t values (1, (1, 2), (3, 4), array[(5, 6)::pair]), (2, null, (null, null), null)")
    assert [decoded(c.row or "") for c in changes(app)] == [
        {"id": 1, "p": "(1,2)", "q": "(3,4)", "ps": '{"(5,6)"}'},
        {"id": 2, "p": None, "q": "(,)", "ps": None},
    ]


def test_only_an_owner_can_watch(source: Database, app: Connection, nobody: str) -> None:
    """Triggers that fire always need the owner; each missing right is named with its grant."""
    app.execute("create table t (id int primary key)")
    app.execute(
        f"grant usage, create on schema outbox to {nobody}; grant execute on all functions in schema outbox to {nobody}"
    )
    with psycopg.connect(source.cluster.dsn(source.name, nobody), autocommit=True) as watcher:
        for sentence, remedy in (
            (f"which may not read public.t: grant select on public.t to {nobody}", f"grant select on t to {nobody}"),
            ("row level security, which would hide rows", "alter table t disable row level security"),
            (f"grant trigger on public.t to {nobody}", f"grant trigger on t to {nobody}"),
            (f"only the owner of public.t may let triggers fire always, and {nobody} is not", ""),
        ):
            if "level security" in sentence:
                app.execute("alter table t enable row level security")
            with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"cannot watch public\.t") as refused:
                watch(watcher, "t")
            assert sentence in (refused.value.diag.message_primary or "")
            if remedy:
                app.execute(remedy)


def test_an_owner_under_a_forced_policy_is_refused(source: Database, app: Connection, nobody: str) -> None:
    """FORCE binds the owner too, unless the role may bypass policies."""
    app.execute(
        f"grant usage, create on schema outbox, public to {nobody}; grant all on all tables in schema outbox to {nobody}"
    )
    app.execute(f"grant execute on all functions in schema outbox to {nobody}")
    with psycopg.connect(source.cluster.dsn(source.name, nobody), autocommit=True) as owner:
        owner.execute("create table u (id int primary key)")
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="may not write the outbox: grant") as refused:
            watch(owner, "u")
    app.execute(str(refused.value.diag.message_primary).rpartition("may not write the outbox: ")[2].encode())
    assert rows(
        app,
        f"select sequencename::text from pg_sequences where schemaname = 'outbox' and has_sequence_privilege('{nobody}', format('outbox.%I', sequencename), 'usage') order by 1",
    ) == [("change_id_seq",), ("slot",)]
    with psycopg.connect(source.cluster.dsn(source.name, nobody), autocommit=True) as owner:
        owner.execute("create table t (id int primary key); alter table t enable row level security")
        watch(owner, "t")
        owner.execute("insert into t values (1)")
        owner.execute("alter table t force row level security")
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=f"alter role {nobody} bypassrls"):
            watch(owner, "t")
        app.execute(f"alter role {nobody} bypassrls")
        watch(owner, "t")
        owner.execute("delete from t")
    assert ops(app) == ["upsert", "delete"]


@pytest.fixture(scope="module")
def preparing(new_folder: Callable[[str], Path], pytestconfig: pytest.Config) -> Iterator[Cluster]:
    """A server that allows two-phase commit."""
    folder = new_folder("preparing")
    version = pytestconfig.getoption("postgres")
    with Cluster.create(folder, version=version, settings={**SETTINGS, "max_prepared_transactions": "5"}) as cluster:
        yield cluster


def test_a_captured_transaction_can_be_prepared(preparing: Cluster) -> None:
    """Capture neither notifies nor holds anything that PREPARE TRANSACTION forbids, while no relay sleeps."""
    from outbox.migrations import migrate

    with psycopg.connect(preparing.dsn(), autocommit=True) as conn, psycopg.connect(preparing.dsn()) as writer:
        migrate(conn, "source")
        conn.execute("create table t (id int primary key)")
        watch(conn, "t")
        for end in ("commit prepared 'one'", "rollback prepared 'one'"):
            writer.execute("insert into t select count(*) from t")
            before = ops(conn)
            writer.execute("prepare transaction 'one'")
            assert ops(conn) == before
            conn.execute(end)
        assert ops(conn) == ["upsert"]
        assert rows(conn, "select * from pg_locks where locktype = 'advisory'") == []
