"""A right that is missing for one table is that table's matter: the others flow, and the doctor names it."""

from collections.abc import Iterator

import psycopg
import pytest

from daemon.batch import Question
from daemon.catalog import read_source, read_watched
from daemon.check import check
from daemon.demo.cluster import Cluster
from daemon.errors import CopyRefused
from daemon.install import setup
from daemon.session import query
from daemon.source import Source
from outbox import Cursor
from outbox.migrations import step
from tests.captured import Connection, changes, ops, rows, value, watch
from tests.databases import Database


@pytest.fixture
def apart(source: Database) -> Iterator[str]:
    """The address of the daemon's role, and two watched tables: it may use the schema of one alone."""
    with source.connect() as conn:
        conn.execute(
            "create schema app; create table app.t (id int primary key, v text); create table story (id int primary key)"
        )
        watch(conn, "app.t", filter="id > 0")
        watch(conn, "story")
        conn.execute(step("source", "role"))
        conn.execute("insert into app.t values (1, 'a'); insert into story values (1)")
        yield source.cluster.dsn(source.name, "outboxd")
        conn.execute("drop owned by outboxd")


@pytest.fixture(scope="module", autouse=True)
def _no_role_left(source_cluster: Cluster) -> Iterator[None]:
    yield
    source_cluster.execute("drop role if exists outboxd")


async def test_the_daemons_role_needs_no_right_on_the_applications_schemas(apart: str) -> None:
    """It names tables it may not open; what is read of them is read with the rights of whoever watched."""
    reader = Source(apart)
    try:
        system = (await reader.identify()).system
        assert len((await reader.read(Cursor.beginning(system))).changes) == 2
        wanted = {row[0] for row in await reader.ask("copy_wanted")}
        assert wanted == {"app.t", "public.story"}
        assert await reader.ask("copy_notice") == await reader.ask("uncaptured") == []
        fit = await reader.ask("copy_fit", {"tables": sorted(wanted)})
        assert fit == [("app.t", None, ["id", "v"], ["id"]), ("public.story", None, ["id"], ["id"])]
        await reader.read_as_of(Cursor.beginning(system), Question("app.t", "rows", None, 10, 10**6))
    finally:
        await reader.close()
    assert [item for item in await check(apart, None) if item.level == "FAIL"] == []
    with psycopg.connect(apart, autocommit=True) as conn:
        assert {row[0]: row[2] for row in conn.execute(query("watched"))} == {"app.t": ["id"], "public.story": ["id"]}
        watched = read_watched(conn)
        assert all(one.there for one in watched)
        assert set(read_source(conn, watched).tables) == {("app", "t"), ("public", "story")}


@pytest.fixture
def watcher(source: Database, app: Connection) -> Iterator[str]:
    """A role that owns a table in a schema of somebody else's, and has watched it."""
    role = f"watcher_{source.name}"
    app.execute(f"""
        create role {role} login; create schema app; grant usage, create on schema app, outbox to {role};
        grant all on all tables in schema outbox to {role}; revoke all on outbox.mask_key from {role}; grant all on all sequences in schema outbox to {role};
        grant execute on all functions in schema outbox to {role}; create table story (id int primary key)
    """)
    watch(app, "story")
    with psycopg.connect(source.cluster.dsn(source.name, role), autocommit=True) as own:
        own.execute("create table app.t (id int primary key)")
        watch(own, "app.t")
    setup(source.dsn, "source", exposed_schema="public", role=False)  # which takes back what nobody needs who watches
    yield role
    app.execute(f"drop owned by {role} cascade; drop role {role}")


async def test_a_watcher_that_may_not_use_the_schema_any_more(source: Database, app: Connection, watcher: str) -> None:
    """Promise I7: the application's statement succeeds, its table is marked, and the right is named."""
    with source.connect() as fresh:
        fresh.execute("insert into app.t values (1)")
        assert ops(app) == ["upsert"]
        app.execute(f"revoke all on schema app from {watcher}")
        for conn in (app, fresh):
            conn.execute("insert into app.t select coalesce(max(id), 0) + 1 from app.t")
            conn.execute("update app.t set id = id + 10; insert into story select count(*) from story")
    with source.connect() as late:
        late.execute("insert into app.t values (1000)")
    assert changes(app, "app.t")[-1].op == "resync"
    unfit = dict(rows(app, "select table_name, unfit from outbox.fit_of(array['app.t', 'public.story'])"))
    assert unfit == {
        "app.t": f"the capture functions run as {watcher}, which may not use schema app: grant usage on schema app to {watcher}",
        "public.story": None,
    }
    failed = [item for item in await check(source.dsn, None) if item.level == "FAIL"]
    assert [item.name for item in failed] == ["app.t"]
    reader = Source(source.dsn)
    try:
        system = (await reader.identify()).system
        with pytest.raises(CopyRefused):
            await reader.read_as_of(Cursor.beginning(system), Question("app.t", "rows", None, 10, 10**6))
        await reader.read_as_of(Cursor.beginning(system), Question("public.story", "rows", None, 10, 10**6))
    finally:
        await reader.close()
    app.execute((unfit["app.t"] or "").partition("may not use schema app: ")[2].encode())
    app.execute("delete from outbox.change")
    with source.connect() as fresh:
        fresh.execute("update app.t set id = id + 100")
    assert "resync" not in ops(app)


async def test_a_row_that_is_touched_is_locked_alone(source: Database, app: Connection) -> None:
    """The application may lock the same rows in another order: neither waits for the other's second row."""
    app.execute("create table story (id int primary key); insert into story values (1), (2), (3)")
    watch(app, "story")
    reader = Source(source.dsn)
    try:
        with source.connect(autocommit=False) as busy:
            busy.execute("select from story where id = 3 for update")
            before = value(app, "select count(*) from outbox.change")
            with pytest.raises(Exception, match="55P03"):
                await reader.touch("public.story", ['{"id":1}', '{"id":2}', '{"id":3}'])
            assert value(app, "select count(distinct xid) = 2 and count(*) = 2 + %s from outbox.change", before)
    finally:
        await reader.close()
