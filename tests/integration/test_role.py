"""The daemon's role: what it can do with the grants of sql/source/role.sql, and what it cannot."""

from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest

from daemon.batch import Limits, Question
from daemon.demo.cluster import Cluster
from daemon.errors import SourceUnfit
from daemon.session import query
from daemon.sheaf import GLUE
from daemon.source import Source
from daemon.wakeup import Bell
from outbox import Change, Cursor, emit
from outbox.migrations import step
from tests.captured import listen, ops, value, watch
from tests.databases import Database


@pytest.fixture
def least(source: Database) -> Iterator[str]:
    """The role of sql/source/role.sql, in a database with a watched table; its address."""
    with source.connect() as conn:
        conn.execute("create table story (id int primary key, title text); create table secret (id int primary key)")
        watch(conn, "story")
        for _ in range(2):
            conn.execute(step("source", "role"))
        conn.execute(
            "insert into story values (1, 'a'); set synchronous_commit = off; insert into story values (2, 'b')"
        )
        yield source.cluster.dsn(source.name, "outboxd")
        conn.execute("drop owned by outboxd")


@pytest.fixture(scope="module", autouse=True)
def _no_role_left(source_cluster: Cluster) -> Iterator[None]:
    yield
    source_cluster.execute("drop role if exists outboxd")


async def test_the_role_can_do_the_daemons_work(source: Database, least: str) -> None:
    """Every question that Source asks, and the doctor's; and it rings, listens and leads."""
    reader = Source(least, Limits(changes=1))
    reader.traced = True
    try:
        batch = await reader.read(Cursor.beginning((await reader.identify()).system))
        assert [change.key for change in batch.changes] == ['{"id":1}']
        second = await reader.read(batch.cursor)
        assert [change.key for change in second.changes] == ['{"id":2}']
        assert (await reader.backlog(second.cursor))[0] <= 2
        await reader.health()
        assert (await reader.prune(1, 0)).rotated
        assert set(second.shapes.values()) == {("id", "title")}
        _, found, _ = await reader.read_as_of(second.cursor, Question("public.story", "rows", None, 10, 10**6))
        assert [str(keys).split(GLUE.decode()) for _, keys, _, _ in found] == [['{"id":1}', '{"id":2}']]
        await reader.touch("public.story", ['{"id":1}'])
        await reader.ask("letters_wake", {"states": None})
        for copying in ("copy_wanted", "copy_notice", "verify_wanted"):
            await reader.ask(copying)
        assert await reader.ask("copy_fit", {"tables": ["public.story"]}) == [
            ("public.story", None, ["id", "title"], ["id"])
        ]
    finally:
        await reader.close()
    with psycopg.connect(least, autocommit=True) as conn:
        for name in ("check_watched", "watched", "flush"):
            conn.execute(query(name))
        conn.execute("select outbox.ask_copy('public.story')")
        conn.execute("select outbox.confirm('main', 1, 1, null)")
        assert value(conn, "select outbox.still_leads('main', 1)")
        assert conn.execute(query("heartbeat"), {"relay": "main", "epoch": 1, "snapshot": "3:3:"}).fetchone() != (None,)
        listen(conn)
        assert value(conn, "select pg_try_advisory_lock(1869968482, 1)")
        conn.execute(query("ring_fits"))
        conn.execute(query("strangers"))
        assert value(conn, "select leads from outbox.lead()")


async def test_the_role_sees_who_leads_and_since_when(source: Database, least: str) -> None:
    """Also when the leader is another role's."""
    bell, reader = Bell(source.dsn, session_name="outboxd/9 bell db-7 4711"), Source(least)
    try:
        await bell.connect()
        assert [leads for _, _, leads, _, _ in await reader.ask("leaders")] == [False]
        assert await bell.try_lead()
        ((name, _, leads, since, _),) = await reader.ask("leaders")
        assert (name, leads) == ("outboxd/9 bell db-7 4711", True)
        assert abs((datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()) < 120
    finally:
        await bell.close()
        await reader.close()


def test_the_role_can_do_nothing_else(least: str) -> None:
    """It reads no table of the application, writes none of the outbox, and watches nothing."""
    with psycopg.connect(least, autocommit=True) as conn:
        for statement in (
            "select * from story",
            "select * from secret",
            "delete from outbox.change",
            "truncate outbox.change",
            "update outbox.change set row = null",
            "insert into outbox.change (table_name, op, key) values ('public.story', 'delete', '{}')",
            "update outbox.watched set capture = false",
            "select outbox.emit('story', 'delete', '{\"id\": 1}')",
            "select outbox.map('public.x', array['id'])",
            "select outbox.watch('story')",
            "select outbox.unwatch('story')",
            "select outbox.shape_of('x', array['y'])",
            "select nextval('outbox.change_id_seq')",
            "create table outbox.mine (id int)",
            "create role another",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(statement)


async def test_a_role_without_rights_is_told_which(source: Database) -> None:
    """Reading as a role that has none pauses the daemon with a sentence, not with silence."""
    with source.connect() as conn:
        conn.execute("create role rightless login")
    reader = Source(source.cluster.dsn(source.name, "rightless"))
    try:
        with pytest.raises(
            SourceUnfit, match=r"lacks a right: permission denied for schema outbox; see sql/source/role\.sql"
        ):
            await reader.identify()
    finally:
        await reader.close()
        source.cluster.execute("drop role rightless")


def test_rights_to_emit_are_granted_one_by_one(source: Database) -> None:
    """An application's role needs the schema and the one function."""
    role = f"emitting_{source.name}"
    with source.connect() as conn:
        conn.execute("select outbox.map('public.totals', array['id'])")
        conn.execute(f"create role {role} login; grant usage on schema outbox to {role}")
        conn.execute(f"grant execute on function outbox.emit to {role}")
        with psycopg.connect(source.cluster.dsn(source.name, role)) as app:
            app.execute("select 1")
            emit(app, Change.upsert("totals", {"id": 1}))
            app.commit()
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                app.execute("select * from outbox.change")
        assert ops(conn) == ["upsert"]
        conn.execute(f"drop owned by {role}; drop role {role}")
