"""Installing both sides: once, again, at once, by an ordinary role, by a script, beside a newer version."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from daemon.demo.cluster import Cluster
from outbox import MigrationChanged, SchemaMissing, SchemaTooNew, migrations
from outbox.migrations import Side, installed, migrate, require, script
from tests.captured import Connection, ops, rows, value, watch
from tests.databases import Database
from tests.waiting import wait_until

SIDES: list[Side] = ["source", "target"]
SCHEMA = {"source": "outbox", "target": "outboxd"}


@pytest.fixture
def owner(source_cluster: Cluster) -> Iterator[Database]:
    """An empty database whose owner may do nothing else."""
    name = "owned"
    source_cluster.execute("create role owner_of_one login nosuperuser nocreatedb nocreaterole")
    source_cluster.create_database(name, owner="owner_of_one")
    yield Database(source_cluster, name, "owner_of_one")
    source_cluster.drop_database(name)
    source_cluster.execute("drop role owner_of_one")


def everything(conn: Connection, schema: str) -> list[tuple[object, ...]]:
    """What a schema consists of, in a form that can be compared."""
    return rows(
        conn,
        """
        select 'relation', relname::text, relkind::text, relacl::text from pg_class where relnamespace = %(schema)s::regnamespace
        union all
        select 'function', oid::regprocedure::text, md5(pg_get_functiondef(oid)), proacl::text from pg_proc
         where pronamespace = %(schema)s::regnamespace
        union all
        select 'column', attrelid::regclass || '.' || attname, format_type(atttypid, atttypmod), attnotnull::text from pg_attribute
         where attrelid in (select oid from pg_class where relnamespace = %(schema)s::regnamespace) and attnum > 0
        order by 1, 2
        """.replace("%(schema)s", f"'{schema}'"),
    )


@pytest.mark.parametrize("side", SIDES)
def test_applied_once_and_again(owner: Database, side: Side) -> None:
    """By a role that owns the database and nothing more; the second time there is nothing to do."""
    newest = migrations.migrations(side)[-1].version
    with owner.connect() as conn:
        assert installed(conn, side) == 0
        with pytest.raises(SchemaMissing, match=f"not installed: run `outboxd setup {side}`"):
            require(conn, side)
        assert [m.version for m in migrate(conn, side)] == list(range(1, newest + 1))
        before = everything(conn, SCHEMA[side])
        for _ in range(7):  # a driver that prepares what it sees often must not stumble over a script
            assert migrate(conn, side) == []
        require(conn, side)
        assert installed(conn, side) == newest
        assert everything(conn, SCHEMA[side]) == before


@pytest.mark.parametrize("side", SIDES)
def test_a_failure_leaves_nothing_behind(owner: Database, side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is one transaction."""
    good = migrations.migrations(side)
    broken = migrations.Migration(good[-1].version + 1, "broken", "create table public.left_behind (); select 1 / 0")
    monkeypatch.setattr(migrations, "migrations", lambda _: (*good, broken))
    with owner.connect() as conn:
        with pytest.raises(psycopg.errors.DivisionByZero):
            migrate(conn, side)
        assert installed(conn, side) == 0
        assert value(conn, "select to_regnamespace(%s)", SCHEMA[side]) is None
        assert value(conn, "select to_regclass('public.left_behind')") is None


@pytest.mark.parametrize("side", SIDES)
def test_the_script_is_the_same(owner: Database, source_cluster: Cluster, side: Side) -> None:
    """As psql, a migration tool or an SQL editor runs it: it makes what migrate makes, and may run again."""
    source_cluster.create_database("by_script", owner="owner_of_one")
    try:
        with (
            owner.connect() as migrated,
            psycopg.connect(source_cluster.dsn("by_script", "owner_of_one"), autocommit=True) as conn,
        ):
            migrate(migrated, side)
            for _ in range(2):
                conn.execute(script(side))
                assert everything(conn, SCHEMA[side]) == everything(migrated, SCHEMA[side])
            assert migrate(conn, side) == []
            migrated.execute(script(side))
            assert migrate(migrated, side) == []
    finally:
        source_cluster.drop_database("by_script")


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_eight_installers_at_once_take_turns(owner: Database, isolation: str) -> None:
    """Each migration is applied once, nobody fails, whatever isolation the database defaults to."""
    with owner.connect() as conn:
        conn.execute(f"alter database {owner.name} set default_transaction_isolation = '{isolation}'")

    def install(side: Side) -> int:
        with owner.connect() as conn:
            return len(migrate(conn, side))

    with ThreadPoolExecutor(8) as pool:
        applied = list(pool.map(install, SIDES * 4))
    for position, side in enumerate(SIDES):
        assert sorted(applied[position::2]) == [0, 0, 0, len(migrations.migrations(side))]


@pytest.mark.parametrize("side", SIDES)
def test_who_waited_sees_what_was_made_meanwhile(owner: Database, side: Side) -> None:
    """It looked for the schema before it waited, and a name that is not there is remembered by its session."""
    with owner.connect(autocommit=False) as first, owner.connect() as second, owner.connect() as looking:
        first.execute("select 1")  # so that it is committed below
        assert migrate(first, side)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(migrate, second, side)
            pid = second.info.backend_pid
            waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
            wait_until(lambda: looking.execute(waits, (pid,)).fetchone() == (True,))
            first.commit()
            assert waiting.result(30) == []


@pytest.mark.parametrize("side", SIDES)
def test_a_newer_schema_is_refused(owner: Database, side: Side) -> None:
    """An old installer must not write over what a newer one made."""
    with owner.connect() as conn:
        migrate(conn, side)
        conn.execute(f"insert into {SCHEMA[side]}.migration (version, name, checksum) values (9999, 'future', '')")
        for attempt in (require, migrate):
            with pytest.raises(SchemaTooNew, match=r"is at migration 9999.*install the newer outboxd"):
                attempt(conn, side)


@pytest.mark.parametrize("side", SIDES)
def test_an_edited_migration_is_refused(owner: Database, side: Side) -> None:
    """What was applied is not what the file says now: nobody knows what the database has."""
    with owner.connect() as conn:
        migrate(conn, side)
        conn.execute(f"update {SCHEMA[side]}.migration set checksum = 'another' where version = 2")
        with pytest.raises(MigrationChanged, match=f"migration 0002_[a-z]+ of the {side} is not the one"):
            migrate(conn, side)


def test_an_older_schema_is_brought_forward(owner: Database) -> None:
    """What is there is not run again; what is pending is; and until then `require` says how far it is."""
    known = migrations.migrations("source")
    with owner.connect() as conn:
        for migration in known[:-1]:
            conn.execute(migration.sql)
            conn.execute("insert into outbox.migration (version, name, checksum) values (%s, %s, %s)", (
                migration.version, migration.name, migration.checksum))  # fmt: skip
        with pytest.raises(SchemaMissing, match=f"at migration {known[-2].version} of {known[-1].version}: run"):
            require(conn, "source")
        assert [m.version for m in migrate(conn, "source")] == [known[-1].version]


def test_within_the_callers_transaction(owner: Database) -> None:
    """Migrating joins a transaction that is open, and is taken back with it."""
    with owner.connect(autocommit=False) as conn:
        conn.execute("create table t (id int primary key)")
        migrate(conn, "source")
        watch(conn, "t")
        conn.rollback()
        assert installed(conn, "source") == 0


def test_a_shadow_database_in_one_transaction(owner: Database) -> None:
    """A migration tool runs the script and `watch` among its own statements, then once more elsewhere, and compares."""
    ours = f"begin; create table story (id int primary key); {script('source')}; select outbox.watch('story'); commit"
    with owner.connect() as conn:
        conn.execute(ours)
        conn.execute("insert into story values (1)")
        assert ops(conn) == ["upsert"]
        conn.execute("drop schema outbox cascade; drop table story")
        conn.execute(ours)
        assert rows(conn, "select table_name from outbox.watched") == [("public.story",)]


def test_checksums_are_of_the_text() -> None:
    """One character more is another migration; versions count up without a gap."""
    one = migrations.Migration(1, "x", "select 1")
    assert one.checksum != migrations.Migration(1, "x", "select 1 ").checksum
    assert one.checksum == migrations.Migration(2, "y", "select 1").checksum
    for side in SIDES:
        found = migrations.migrations(side)
        assert [m.version for m in found] == list(range(1, len(found) + 1))
        assert all(m.sql == Path(migrations.FILES / side / f"{m.version:04}_{m.name}.sql").read_text() for m in found)


def test_another_exposed_schema(owner: Database) -> None:
    """The wrapper goes where PostgREST looks, whatever that schema is called."""
    with owner.connect() as conn:
        conn.execute('create schema "Api ""x"""')
        migrate(conn, "target", exposed_schema='Api "x"')
        assert value(conn, "select count(*) from pg_proc where pronamespace = %s::regnamespace", '"Api ""x"""') == 1
        assert value(conn, "select to_regprocedure('public.outboxd(text)')") is None
        conn.execute(script("target", exposed_schema='Api "x"'))


def test_the_wrapper_returns_when_it_was_dropped(owner: Database) -> None:
    """It is no migration: every run puts it in place."""
    with owner.connect() as conn:
        migrate(conn, "target")
        conn.execute("drop function public.outboxd(text)")
        assert migrate(conn, "target") == []
        assert value(conn, "select to_regprocedure('public.outboxd(text)') is not null")
