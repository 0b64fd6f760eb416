"""Capture under what applications, owners and migrations do by accident: nobody's statement fails, and the outbox replays."""

from collections.abc import Iterator

import psycopg
import pytest

from tests.captured import Connection, assert_replays, ops, watch
from tests.databases import Database

GRANTS = """
    grant create, usage on schema public to {role}; grant create, usage on schema outbox to {role};
    grant all on all tables in schema outbox to {role}; grant usage on all sequences in schema outbox to {role};
    grant execute on all functions in schema outbox to {role}
"""


@pytest.fixture
def roles(source: Database, app: Connection) -> Iterator[tuple[str, str]]:
    """An owner, and somebody who deploys: a member of it."""
    owner, deploy = f"owner_{source.name}", f"deploy_{source.name}"
    for role in (owner, deploy):
        app.execute(f"create role {role} login; {GRANTS.format(role=role)}")
    app.execute(f"grant {owner} to {deploy}")
    yield owner, deploy
    app.execute(f"reset role; drop owned by {owner}, {deploy} cascade; drop role {owner}, {deploy}")


LOSSES = {
    "no longer a member": "revoke {owner} from {deploy}",
    "inherits no more": "revoke inherit option for {owner} from {deploy}",
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_right_that_is_lost_by_a_role_fails_nobody(
    source: Database, app: Connection, roles: tuple[str, str], loss: str
) -> None:
    """A session that has written before: whoever watched may not read the table from here on."""
    owner, deploy = roles
    app.execute(f"set role {owner}; create table t (id int primary key, a text); reset role; set role {deploy}")
    watch(app, "t")
    app.execute("reset role")
    with source.connect() as writer:
        writer.execute("insert into t values (1, 'a'), (2, 'b'), (3, 'c')")
        writer.execute("delete from t where id = 3")
        app.execute(LOSSES[loss].format(owner=owner, deploy=deploy))
        writer.execute("update t set a = 'b' where id = 1")
        writer.execute("delete from t where id = 1")
        writer.execute("update t set id = 7 where id = 2")
    assert ops(app)[:4] == ["upsert", "upsert", "upsert", "delete"]


def test_a_superuser_that_is_one_no_more_fails_nobody(
    source: Database, app: Connection, roles: tuple[str, str]
) -> None:
    owner, deploy = roles
    app.execute(f"set role {owner}; create table t (id int primary key, a text); reset role")
    app.execute(f"revoke {owner} from {deploy}; alter role {deploy} superuser; set role {deploy}")
    watch(app, "t")
    app.execute("reset role")
    with source.connect() as writer:
        writer.execute("insert into t values (1, 'a'), (2, 'b'); delete from t where id = 1")
        app.execute(f"alter role {deploy} nosuperuser")
        writer.execute("delete from t where id = 2")


@pytest.mark.parametrize("how", ["made", "attached", "given", "elsewhere", "policy"])
def test_a_partition_of_another_owner_fails_nobody(
    source: Database, app: Connection, roles: tuple[str, str], how: str
) -> None:
    """Whoever makes next month's partition is a member of the owner, and owns what it makes."""
    owner, deploy = roles
    app.execute(f"""
        set role {owner};
        create table t (id int primary key, a text) partition by range (id);
        create table t1 partition of t for values from (0) to (100);
        reset role
    """)
    app.execute(f"set role {owner}")
    watch(app, "t")
    app.execute("reset role")
    if how == "made":
        app.execute(f"set role {deploy}; create table t2 partition of t for values from (100) to (200); reset role")
    elif how == "attached":
        app.execute(
            f"set role {deploy}; create table t2 (id int primary key, a text);"
            " alter table t attach partition t2 for values from (100) to (200); reset role"
        )
    elif how == "given":
        app.execute(f"create table t2 partition of t for values from (100) to (200); alter table t2 owner to {deploy}")
    elif how == "elsewhere":
        app.execute("create schema closed; create table closed.t2 partition of t for values from (100) to (200)")
        app.execute(f"alter table closed.t2 owner to {owner}")
    else:
        app.execute(
            f"create table t2 partition of t for values from (100) to (200); alter table t2 owner to {owner};"
            " alter table t2 enable row level security; alter table t2 force row level security"
        )
    with source.connect() as writer:
        writer.execute("insert into t values (1, 'a'), (101, 'b'), (102, 'c')")
        writer.execute("update t set a = 'x' where id = 101")
        writer.execute("begin; select from t where id = 101 for update; update t set a = 'y' where id = 101; commit")
        writer.execute("delete from t where id = 102")
        writer.execute("update t set id = 150 where id = 101")
        writer.execute("update t set id = 2 where id = 150")


@pytest.mark.parametrize("kind", ["jsonb", "int[]", "text", "numeric", "xml", "bytea", "tsvector"])
@pytest.mark.parametrize("many", [101, 700])
def test_a_table_of_many_columns(app: Connection, kind: str, many: int) -> None:
    columns = ", ".join(f"c{n} {kind}" for n in range(many))
    app.execute(f"create table t (id int primary key, {columns})")
    watch(app, "t")
    app.execute("insert into t values (1), (2)")
    app.execute("update t set id = 3 where id = 1; delete from t where id = 2")
    app.execute("begin; select from t for update; update t set c1 = c1; commit")
    app.execute("alter table t add z int; update t set z = 1; update t set id = 5")
    assert_replays(app, "public.t")


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
    app.execute("""
        create type mood as enum ('a', 'b'); create domain d as mood; create domain n as numeric(10, 2) check (value > 0);
        create table t (k n, w timestamptz, b bytea, primary key (k, w, b), x xml, a int[], m mood[], d d, f float8, i interval, v text)
    """)
    watch(app, "t")
    with source.connect() as writer:
        writer.execute(SESSIONS[session])
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


REACHES = {
    "in a schema that is closed to the watcher": "create schema closed; alter table t2 set schema closed",
    "with a policy of its own": "alter table t2 enable row level security; alter table t2 force row level security",
}


@pytest.mark.parametrize("reach", REACHES)
def test_a_partition_that_cannot_be_read_is_refused_or_harms_nobody(
    source: Database, app: Connection, roles: tuple[str, str], reach: str
) -> None:
    """It is there when the table is watched: then watch says so, or the application is not harmed."""
    owner, _ = roles
    app.execute(f"""
        set role {owner}; create table t (id int primary key, a text) partition by range (id);
        create table t2 partition of t for values from (100) to (200); reset role
    """)
    app.execute(REACHES[reach])
    app.execute(f"set role {owner}")
    try:
        watch(app, "public.t")
    except (psycopg.errors.InvalidParameterValue, psycopg.errors.InsufficientPrivilege):
        return
    finally:
        app.execute("reset role")
    with source.connect() as writer:
        writer.execute("insert into t values (101, 'b'), (102, 'c')")
        writer.execute("delete from t where id = 102")


def test_a_partition_of_another_owner_is_emptied(source: Database, app: Connection, roles: tuple[str, str]) -> None:
    """The right to read it goes after it was watched: emptying it fails nobody either."""
    owner, deploy = roles
    app.execute(f"""
        set role {owner}; create table t (id int primary key, a text) partition by range (id);
        create table t2 partition of t for values from (100) to (200)
    """)
    watch(app, "t")
    app.execute(f"reset role; insert into t values (101, 'a'); alter table t2 owner to {deploy}")
    with source.connect() as writer:
        writer.execute("truncate t2")


def test_the_widest_table(app: Connection) -> None:
    app.execute(f"create table t (id int primary key, {', '.join(f'c{n} varchar(10)' for n in range(1500))})")
    watch(app, "t")
    app.execute("insert into t values (1, 'a'), (2, 'b'); update t set id = 3 where id = 1; delete from t where id = 2")
    app.execute("begin; select from t for update; update t set c1 = c1; commit; update t set c8 = '1'")
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


def test_a_watcher_that_leaves_fails_nobody(source: Database, app: Connection, roles: tuple[str, str]) -> None:
    """Postgres' own way to take a role away: what it owned goes to another one, and its rights go."""
    owner, deploy = roles
    app.execute(f"set role {owner}; create table t (id int primary key, a text); reset role; set role {deploy}")
    watch(app, "t")
    app.execute("reset role")
    with source.connect() as writer:
        writer.execute("insert into t values (1, 'a')")
        app.execute(f"revoke all on all tables in schema outbox from {owner}")  # who owns tables need not write there
        app.execute(f"reassign owned by {deploy} to {owner}; drop owned by {deploy}")
        writer.execute("insert into t values (2, 'b')")
        writer.execute("delete from t where id = 1")


@pytest.mark.parametrize(
    "how", ["truncate c cascade", "truncate a cascade", "truncate c1, c", "truncate only c1", "truncate d, c1, c"]
)
@pytest.mark.parametrize("level", ["read committed", "repeatable read"])
def test_trees_that_are_emptied_together(source: Database, app: Connection, how: str, level: str) -> None:
    app.execute("""
        create table c1 (id int primary key, a int); create table d1 (id int primary key, a int);
        create table a (id int primary key);
        create table c (id int primary key, a int references a) partition by range (id);
        create table d (id int primary key, a int references a) partition by range (id);
        alter table c attach partition c1 for values from (0) to (10); alter table d attach partition d1 for values from (0) to (10)
    """)
    for table in "acd":
        watch(app, table)
    app.execute("insert into a values (1), (2); insert into c values (1, 1), (2, 2); insert into d values (1, 1)")
    with source.connect() as writer:
        writer.execute(f"begin isolation level {level}; insert into c values (3, 1)")
        writer.execute(f"savepoint s; {how}; rollback to s; {how}")
        writer.execute("insert into c values (4, null); commit")
        writer.execute("truncate c1")
    if "resync" not in ops(app):
        assert_replays(app, "public.a", "public.c", "public.d")
    else:
        assert level == "repeatable read", ops(app)


def test_watching_a_wide_table_again_makes_nobody_queue(source: Database, app: Connection) -> None:
    """README: watching takes a short lock."""
    app.execute(f"create table t (id int primary key, {', '.join(f'c{n} text' for n in range(600))})")
    watch(app, "t")
    with source.connect() as again, source.connect() as writer:
        writer.execute("set statement_timeout = '4s'")
        with again.transaction():
            again.execute("set local statement_timeout = '6s'")
            watch(again, "t")
        writer.execute("insert into t values (1)")


@pytest.mark.parametrize("loss", ["revoke select on app.t from {owner}", "revoke usage on schema app from {owner}"])
def test_a_right_that_is_revoked_fails_nobody(
    source: Database, app: Connection, roles: tuple[str, str], loss: str
) -> None:
    """Of the table, or of its schema: a session that has written before notices."""
    owner, _ = roles
    app.execute(f"create schema app; grant usage, create on schema app to {owner}")
    app.execute(f"set role {owner}; create table app.t (id int primary key, a text)")
    watch(app, "app.t")
    app.execute("reset role")
    with source.connect() as writer:
        writer.execute("insert into app.t values (1, 'a'), (2, 'b'); delete from app.t where id = 1")
        app.execute(loss.format(owner=owner))
        writer.execute("update app.t set id = 5 where id = 2; delete from app.t where id = 5")
    assert ops(app)[:3] == ["upsert", "upsert", "delete"]
    assert "resync" in ops(app)


def test_a_filter_of_many_columns(app: Connection) -> None:
    """Refused with a sentence, or it works."""
    app.execute(f"create table t (id int primary key, {', '.join(f'c{n} int' for n in range(150))})")
    where = " and ".join(f"c{n} is null" for n in range(150))
    try:
        watch(app, "t", filter=where)
    except psycopg.Error:  # 100 arguments are the most that a function has: refused, and nothing is changed
        return
    app.execute("insert into t values (1, null), (2, 5); update t set c0 = 1 where id = 1; delete from t where id = 2")
    assert_replays(app, "public.t")


def test_a_table_becomes_the_partition_of_one_with_its_name(app: Connection) -> None:
    """The way to partition a table that is there: rename, make the root, attach."""
    app.execute("create table t (id int primary key, a text)")
    watch(app, "t")
    app.execute("insert into t values (1, 'a'), (2, 'b')")
    app.execute("""
        begin; alter table t rename to t_old; create table t (id int primary key, a text) partition by range (id);
        alter table t attach partition t_old for values from (0) to (100); create table t_new partition of t for values from (100) to (200); commit
    """)
    app.execute("update t set a = 'c' where id = 1; delete from t where id = 2; insert into t values (3, 'd')")
    watch(app, "t")
    app.execute(
        "insert into t values (101, 'x'); update t set id = 102 where id = 1; update t set id = 4 where id = 101; truncate t_new"
    )
    if "resync" not in ops(app):
        assert_replays(app, "public.t")
