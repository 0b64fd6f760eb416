"""Windows over real concurrent transactions: what is read, when, and in which order."""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from daemon.connection import Link
from daemon.pages import Pages
from daemon.session import bounds, query
from daemon.source import Source
from outbox import Cursor
from tests.captured import Connection, waits_for
from tests.databases import Database
from tests.pairs import Pair, batches, changes, reading, run
from tests.waiting import wait_until

Writer = Callable[[], Connection]
Parameters = Mapping[str, Any] | Sequence[bytes]
Asked = list[tuple[str, Parameters]]


@pytest.fixture
def pair(pair: Pair) -> Pair:
    """Two tables: one that is watched, one that is not."""
    pair.create("create table t (id int primary key, who text)", "t")
    with pair.source.connect() as conn:
        run(conn, "create table unwatched (id int)")
        # Else the first who reads these tidies them up, and nobody flushes what that writes to the log: a window's end that
        # is not known to be durable is not gone to.
        run(conn, "vacuum pg_proc, pg_class, pg_attribute")
    return pair


@pytest.fixture
def writer(pair: Pair) -> Iterator[Writer]:
    """Connections of the application that stay in their transactions."""
    with ExitStack() as stack:

        def connect() -> Connection:
            conn = psycopg.connect(pair.source.dsn)
            stack.callback(conn.close)
            return conn

        yield connect


async def whose(source: Source, cursor: Cursor) -> tuple[list[str], Cursor]:
    """Who wrote what is after the cursor, and the cursor after that."""
    found = await batches(source, cursor)
    said = [json.loads(change.row)["who"] if change.row else change.op for change in changes(found)]
    return said, found[-1].cursor


async def test_a_late_commit_is_read_late(pair, writer):
    """A transaction that writes first and commits last loses nothing: `id > last` would skip it."""
    early, late = writer(), writer()
    run(late, "insert into t values (1, 'late')")
    run(early, "insert into t values (2, 'early')", "commit")
    async with reading(pair.source) as source:
        found, cursor = await whose(source, Cursor.beginning())
        assert found == ["early"]
        run(late, "commit")
        found, cursor = await whose(source, cursor)
        assert found == ["late"]
        assert await whose(source, cursor) == ([], cursor)


async def test_the_youngest_transaction_may_still_be_open(pair, writer):
    """Its ids are drawn, its xid is at or above the snapshot's xmax: no floor may pass it by."""
    youngest = writer()
    async with reading(pair.source) as source:
        _, cursor = await whose(source, Cursor.beginning())
        for turn in range(3):
            run(youngest, f"insert into t values ({turn}, 'mine')")
            _, cursor = await whose(source, cursor)
            run(youngest, "commit")
            found, cursor = await whose(source, cursor)
            assert found == ["mine"]


async def test_per_key_the_later_lock_comes_later(pair, writer):
    """B1: the older transaction writes the row after the younger one committed, so its state is the newer."""
    pair.write("insert into t values (1, 'nobody')")
    older, younger = writer(), writer()
    run(older, "insert into unwatched values (1)")
    run(younger, "update t set who = 'younger' where id = 1", "commit")
    run(older, "update t set who = 'older' where id = 1", "commit")
    async with reading(pair.source) as source:
        assert (await whose(source, Cursor.beginning()))[0] == ["nobody", "younger", "older"]
    await pair.drain()
    pair.assert_equal("t")


async def test_emitted_after_the_row_the_order_holds(pair, writer):
    """B2: whoever emits after the write draws the id while holding the row's lock."""
    pair.write(
        "select outbox.unwatch('t')", "select outbox.map('public.t', array['id'])", "insert into t values (1, 'x')"
    )
    first, second = writer(), writer()
    emit = "select outbox.emit('t', 'upsert', (select row_to_json(t) from t where id = 1))"
    run(first, "select pg_current_xact_id()")
    run(second, "update t set who = 'second' where id = 1", emit, "commit")
    run(first, "update t set who = 'first' where id = 1", emit, "commit")
    async with reading(pair.source) as source:
        assert (await whose(source, Cursor.beginning()))[0] == ["second", "first"]


async def test_a_writer_in_another_database_holds_nothing_back(pair, writer, source_cluster):
    """B3: it pins the snapshot's xmin for the whole cluster; a reader that waits for `xid < xmin` would stall."""
    with psycopg.connect(source_cluster.dsn("postgres")) as elsewhere:
        run(elsewhere, "select pg_current_xact_id()")
        async with reading(pair.source) as source:
            cursor = Cursor.beginning()
            for turn in range(3):
                pair.write(f"insert into t values ({turn}, 'here')")
                found, cursor = await whose(source, cursor)
                assert found == ["here"]


async def test_a_savepoint_belongs_to_its_transaction(pair, writer):
    """B4: what a savepoint keeps comes with the transaction, what it rolls back does not come."""
    conn = writer()
    run(conn, "insert into t values (1, 'outer')")
    run(conn, "savepoint s", "insert into t values (2, 'kept')", "release s")
    run(conn, "savepoint s", "insert into t values (3, 'undone')", "rollback to s")
    run(conn, "savepoint a", "savepoint b", "insert into t values (4, 'deep')")
    async with reading(pair.source) as source:
        found, cursor = await whose(source, Cursor.beginning())
        assert found == []
        run(conn, "commit")
        assert (await whose(source, cursor))[0] == ["outer", "kept", "deep"]


async def test_what_is_rolled_back_never_comes(pair, writer):
    """An aborted transaction is as good as one that never was, also when it ends between two windows."""
    aborted = writer()
    run(aborted, "insert into t values (1, 'aborted')")
    async with reading(pair.source) as source:
        _, cursor = await whose(source, Cursor.beginning())
        run(aborted, "rollback")
        pair.write("insert into t values (2, 'committed')")
        assert (await whose(source, cursor))[0] == ["committed"]


async def test_a_row_lock_orders_waiting_writers(pair, writer):
    """Two writers queue for one row: the outbox has them in the order the row saw them."""
    pair.write("insert into t values (1, 'nobody')")
    holder, waiting = writer(), writer()
    run(holder, "update t set who = 'holder' where id = 1")
    queued = threading.Thread(target=run, args=(waiting, "update t set who = 'waiting' where id = 1", "commit"))
    queued.start()
    with pair.source.connect() as watcher:
        wait_until(lambda: waits_for(watcher, waiting, holder))
    run(holder, "commit")
    queued.join()
    async with reading(pair.source) as source:
        assert (await whose(source, Cursor.beginning()))[0] == ["nobody", "holder", "waiting"]


async def test_a_window_is_a_value(pair, writer):
    """Two readers, and one that reads again, find the same changes behind the same cursor."""
    for turn in range(20):
        pair.write(f"insert into t values ({turn}, 'a'), ({turn + 100}, 'b')", f"delete from t where id = {turn - 3}")
    async with reading(pair.source) as one, reading(pair.source, changes=3) as other:
        first = changes(await batches(one))
        assert changes(await batches(one)) == first
        assert changes(await batches(other)) == first
        assert len(first) == 57


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The queries for changes, with their parameters, as they are asked."""
    queries: Asked = []
    read = Pages._sheaves

    async def spy(self, conn, name, parameters):
        queries.append((name, parameters))
        return await read(self, conn, name, parameters)

    beyond = Pages._beyond

    async def spy_beyond(self, conn, page, upto):
        parameters = {"upto": upto, "ceiling": self.window.ceiling, **bounds(self.window.unknown(page))}
        queries.append(("window_beyond", parameters))
        return await beyond(self, conn, page, upto)

    monkeypatch.setattr(Pages, "_beyond", spy_beyond)
    looks = Link.planned

    async def spy_on_looks(self, statement, values):
        queries.append(("window_look", values))
        return await looks(self, statement, values)

    monkeypatch.setattr(Pages, "_sheaves", spy)
    monkeypatch.setattr(Link, "planned", spy_on_looks)
    return queries


def blocks_touched(database: Database, name: str, parameters: Parameters) -> int:
    """How many pages of tables and indexes a query looks at, by plans that are there already."""
    text = query(name) if isinstance(parameters, Mapping) else re.sub(rb"\$\d", b"%s", query(name))
    given = parameters if isinstance(parameters, Mapping) else [value.decode() for value in parameters]
    with database.connect() as conn:
        explained = [
            conn.execute(b"explain (analyze, buffers, format json) " + text, given).fetchone() for _ in range(2)
        ]
    row = explained[-1]
    assert row is not None
    plan = row[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def test_reading_beside_a_long_transaction_stays_cheap(pair, writer, asked):
    """Its rows wait and others flow; neither what it wrote nor what is retained since is walked each time."""
    long = writer()
    run(long, "insert into t select n, 'long' from generate_series(1, 3000) n")
    pair.write("insert into t select n, 'bulk' from generate_series(10001, 15000) n")
    async with reading(pair.source) as source:
        _, cursor = await whose(source, Cursor.beginning())
        for turn in range(3):
            pair.write(f"insert into t values ({20_000 + turn}, 'small')")
            found, cursor = await whose(source, cursor)
            assert found == ["small"]
            assert blocks_touched(pair.source, *asked[-1]) < 50
        snapshot = cursor.snapshot.split(":")
        waiting = {"from_xmax": snapshot[1], "running": f"{{{snapshot[2]}}}", "limit": 9}
        assert blocks_touched(pair.source, "backlog", waiting) < 50
        run(long, "commit")
        found, cursor = await whose(source, cursor)
    assert found == ["long"] * 3000


@pytest.mark.parametrize("new", [1, 5, 6, 40])
async def test_what_came_since_the_last_look_is_all_found(pair, monkeypatch, new):
    """Few are found by one look; more than that, and more than a batch, in stretches behind it."""
    monkeypatch.setattr("daemon.opening._DEEP", 5)
    async with reading(pair.source, changes=7) as source:
        pair.write("insert into t values (0, 'before')")
        _, cursor = await whose(source, Cursor.beginning())
        _, cursor = await whose(source, cursor)
        pair.write(f"insert into t select n, 'new' from generate_series(1, {new}) n")
        found, cursor = await whose(source, cursor)
        assert found == ["new"] * new
        pair.write("insert into t values (-1, 'last')")
        assert (await whose(source, cursor))[0] == ["last"]


async def test_a_page_of_a_deep_backlog_does_not_look_at_all_that_is_left(pair, asked):
    """Also before Postgres has statistics of the outbox, when it would rather sort the rest for each page."""
    pair.write(*(f"alter table outbox.change_{slot} set (autovacuum_enabled = off)" for slot in range(4)))
    for n in range(10):
        pair.write(f"insert into t select n, 'x' from generate_series({n}0000, {n}1999) n")
    async with reading(pair.source, changes=100) as source:
        cursor = Cursor.beginning()
        for _ in range(5):
            cursor = (await source.read(cursor)).cursor
    pages = [
        (name, parameters)
        for name, parameters in asked
        if name in {"window_by_id", "window_by_id_small", "window_beyond"}
    ]
    assert len(pages) >= 9
    assert max(blocks_touched(pair.source, *page) for page in pages) < 60
