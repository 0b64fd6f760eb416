"""What the source must be before it is read, and what survives its crash."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from daemon.demo.cluster import Cluster
from daemon.errors import SourceUnavailable, SourceUnfit
from daemon.source import Source
from daemon.wakeup import Bell
from outbox import Cursor
from tests.databases import Database, source_template
from tests.pairs import Pair, batches, changes, reading, run
from tests.waiting import wait_until, wait_until_async

# What was not flushed by a commit stays in memory, where a crash loses it.
LAZY = {"wal_writer_delay": "10s", "bgwriter_delay": "10s", "autovacuum": "off", "fsync": "off"}


@pytest.fixture(scope="module")
def fragile(new_folder: Callable[[str], Path], pytestconfig: pytest.Config) -> Iterator[Database]:
    """A source of its own, which may be crashed."""
    version = pytestconfig.getoption("postgres")
    with Cluster.create(new_folder("fragile"), version=version, settings=LAZY) as cluster:
        database = source_template(cluster)
        with database.connect() as conn:
            run(conn, "create table t (id int primary key)", "select outbox.watch('t')", "checkpoint")
        yield database


@pytest.fixture
def crashing(fragile: Database, target: Database) -> Pair:
    with target.connect() as conn:
        run(conn, "create table t (id int primary key)", "select outboxd.map('t')")
    return Pair(fragile, target)


def crash(database: Database) -> None:
    database.cluster.kill()
    database.cluster.start()


def ids(pair: Pair) -> tuple[list[int], list[int]]:
    source, target = pair.rows("select id from t order by id")
    return [row[0] for row in source], [row[0] for row in target]


async def test_an_asynchronous_commit_is_flushed_before_it_is_sent(crashing):
    """With synchronous_commit = off a commit is visible before it is durable: what was applied survives a crash."""
    await crashing.drain()
    crashing.write("set synchronous_commit = off", "insert into t values (1)")
    assert await crashing.drain() == 1
    crash(crashing.source)
    assert ids(crashing) == ([1], [1])


async def test_an_unflushed_commit_would_be_lost(crashing):
    """The test above can fail: nobody having read it, the same commit does not survive the same crash."""
    crashing.write("set synchronous_commit = off", "insert into t values (2)")
    crash(crashing.source)
    assert 2 not in ids(crashing)[0]


async def test_a_transaction_id_that_a_crash_gives_away_again_is_not_skipped(crashing):
    """A rolled-back transaction ends unflushed; after a crash its id belongs to the next one, which must be read."""
    for attempt in range(3, 8):  # the log's writer wakes every ten seconds and would spoil it
        crashing.write(f"insert into t values ({attempt}0)")
        lost = xid_of_a_rollback(crashing.source)
        await crashing.drain()
        crash(crashing.source)
        crashing.write(f"insert into t values ({attempt}1)")
        await crashing.drain()
        source, target = ids(crashing)
        assert source == target
        if last_xid(crashing.source) <= lost:
            return
    pytest.fail("the crashes took nothing back")


async def test_a_cursor_in_memory_does_not_outlive_the_connection(crashing):
    """An empty window leads to a snapshot that no log knows yet: after a crash the target's cursor counts."""
    crashing.write("insert into t values (100)")
    async with crashing.relay() as parts:
        await parts.relay.drain()
        lost = xid_of_a_rollback(crashing.source)
        assert not await parts.relay.step()
        crash(crashing.source)
        with pytest.raises(SourceUnavailable):
            await parts.source.health()  # somebody else meets the dead connection
        await parts.source.health()
        crashing.write("insert into t values (101)")
        with pytest.raises(SourceUnavailable, match="where the target stands"):
            await parts.relay.step()
        assert await parts.relay.drain() == 1
    assert last_xid(crashing.source) <= lost + 1


def xid_of_a_rollback(database: Database) -> int:
    with psycopg.connect(database.dsn) as conn:
        row = conn.execute("select pg_current_xact_id()::text::int").fetchone()
        conn.rollback()
    assert row is not None
    return int(row[0])


def last_xid(database: Database) -> int:
    with database.connect() as conn:
        row = conn.execute("select xid::text::int from outbox.change order by id desc limit 1").fetchone()
    assert row is not None
    return int(row[0])


async def test_a_frozen_server_is_given_up_on(fragile):
    """A frozen process still acknowledges: only a deadline finds it, and the next read connects again."""
    async with reading(fragile, deadline=0.3) as source:
        await source.read(Cursor.beginning())
        fragile.cluster.freeze()
        stuck = asyncio.create_task(source.read(Cursor.beginning()))
        try:
            await wait_until_async(lambda: given_up(stuck))
        finally:
            fragile.cluster.thaw()
        with pytest.raises(SourceUnavailable, match=r"within 0\.3 s"):
            await stuck
        await source.read(Cursor.beginning())


async def given_up(task: asyncio.Task[Any]) -> bool:
    return task.done()


async def test_a_standby_is_refused_until_it_is_promoted(fragile):
    """It cannot say what has durably committed; both the reader and the bell say so, and read on once it is a primary."""
    with fragile.connect() as conn:
        run(conn, "insert into t values (1000)")
    fragile.cluster.stop()
    signal = fragile.cluster.data / "standby.signal"
    signal.touch(mode=0o666)
    fragile.cluster._launch()
    wait_until(lambda: accepts(fragile), 30)
    source, bell = Source(fragile.dsn), Bell(fragile.dsn)
    try:
        with pytest.raises(SourceUnfit, match="standby"):
            await source.read(Cursor.beginning())
        with pytest.raises(SourceUnfit, match="standby"):
            await bell.connect()
        with fragile.connect() as conn:
            run(conn, "select pg_promote()")
        assert (await source.read(Cursor.beginning())).changes
        await bell.connect()
    finally:
        await source.close()
        await bell.close()
        signal.unlink(missing_ok=True)


def accepts(database: Database) -> bool:
    try:
        database.connect().close()
    except psycopg.OperationalError:
        return False
    return True


async def unfit(source: Database, cursor: Cursor) -> str:
    async with reading(source) as reader:
        with pytest.raises(SourceUnfit) as caught:
            await reader.read(cursor)
    return str(caught.value)


async def test_a_cursor_of_another_cluster_is_refused(source):
    """Transaction ids of one cluster mean nothing in another: nothing is read."""
    assert "belongs to another database cluster" in await unfit(source, Cursor("5:5:", system="1234"))


async def test_a_cursor_from_the_future_is_refused(source):
    """After a restore from a backup the target is ahead: every new change would be skipped in silence."""
    with source.connect() as conn:
        row = conn.execute("select pg_snapshot_xmax(pg_current_snapshot())::text::int + 1000").fetchone()
    assert row is not None
    assert "lies in this source's future" in await unfit(source, Cursor(f"{row[0]}:{row[0]}:"))


async def test_a_cursor_that_is_none_is_refused(source):
    """Somebody wrote nonsense into the target's cursor: a sentence, not a traceback, and not the beginning."""
    assert "cannot be read" in await unfit(source, Cursor("nonsense"))


async def test_an_identity_with_a_cache_is_refused(source):
    """CACHE above 1 hands out ids ahead, so they no longer follow commits: the sentence is the statement that helps."""
    with source.connect() as conn:
        run(conn, "alter sequence outbox.change_id_seq cache 20")
        assert "alter sequence outbox.change_id_seq cache 1" in await unfit(source, Cursor.beginning())
        run(conn, "alter sequence outbox.change_id_seq cache 1")
    async with reading(source) as reader:
        assert changes(await batches(reader)) == []


async def test_a_database_without_the_schema_is_refused(source, source_cluster):
    """The sentence names the command that installs it."""
    sentence = await unfit(Database(source_cluster, "postgres", "postgres"), Cursor.beginning())
    assert "outboxd setup source" in sentence


@pytest.mark.parametrize("missing", ["usage on schema outbox", "select on all tables in schema outbox",
                                     "select on all sequences in schema outbox"])  # fmt: skip
async def test_a_missing_right_is_named(source, missing):
    """Without each of the three the relay stops; a sequence it may not read is not taken for an empty outbox."""
    role = f"poor_{source.name}"
    with source.connect() as conn:
        run(conn, "create table t (id int primary key)", "select outbox.watch('t')", "insert into t values (1)")
        run(conn, f"create role {role} login", f"grant usage on schema outbox to {role}")
        run(conn, f"grant select on all tables in schema outbox to {role}")
        run(conn, f"grant select on all sequences in schema outbox to {role}", f"revoke {missing} from {role}")
        try:
            sentence = await unfit(Database(source.cluster, source.name, role), Cursor.beginning())
        finally:
            run(conn, f"drop owned by {role}", f"drop role {role}")
    assert "lacks a right" in sentence
    assert "permission denied" in sentence


@pytest.mark.parametrize(("user", "said"), [("nobody_here", 'role "nobody_here" does not exist'), (None, "refused")])
async def test_why_there_is_no_connection_is_said(source, user, said):
    """The server's or the network's own words, which name no password."""
    dsn = source.cluster.dsn(source.name, user) if user else "postgresql://u:canary@127.0.0.1:1/db"
    reader = Source(dsn)
    with pytest.raises(SourceUnavailable, match=said) as caught:
        await reader.read(Cursor.beginning())
    assert "canary" not in str(caught.value)
