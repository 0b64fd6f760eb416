"""Promise I7: whatever outboxd does or does not do, the application's commits go on. See also test_wakeup (bells,
PREPARE with a relay beside), test_retention (prune's lock) and test_large_rows (size).
"""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import psycopg
import pytest

from daemon.demo.child import Outboxd
from daemon.demo.cluster import Cluster
from daemon.install import watch as watch_tables
from daemon.prune import Pruner
from daemon.selection import Selection
from outbox.migrations import migrate
from tests.captured import Connection, listen, ops, rows, value, watch
from tests.databases import SETTINGS, Database, clone
from tests.pairs import Pair
from tests.waiting import wait_until, wait_until_async

_KEPT = """
insert into outbox.change (table_name, op, key, row, created_at)
select 'public.item', 'upsert', '{"id":0}', repeat('x', 100), now() - interval '21 days' from generate_series(1, 300000)
"""
_K = (
    "select count(*) from pg_locks l join pg_database d on d.oid = l.database where d.datname = current_database()"
    " and locktype = 'advisory' and classid = 1869968482 and objid = 1 and mode = 'ExclusiveLock' and granted"
)


def table(conn: Connection, name: str = "item") -> None:
    conn.execute(f"create table {name} (id bigint generated always as identity primary key, n int)")
    watch(conn, name)


def test_three_weeks_without_a_relay_slow_no_commit_down(
    source: Database, app: Connection, request: pytest.FixtureRequest
) -> None:
    """No slot was ever left, 300 000 changes lie in one: an insert takes as long as into an empty outbox."""
    with clone(request.getfixturevalue("_source_template")) as fresh, fresh.connect() as beside:
        for conn in (app, beside):
            table(conn)
        app.execute(_KEPT)
        took: dict[Connection, list[float]] = {app: [], beside: []}
        for n in range(600):  # in turn, so that a busy machine is busy for both
            for conn, times in took.items():
                began = time.perf_counter()
                conn.execute("insert into item (n) values (%s)", (n,))
                times.append(time.perf_counter() - began)
        assert rows(app, "select tableoid::regclass::text, count(*) from outbox.change group by 1") == [
            ("outbox.change_0", 300_600)
        ]
        full, empty = median(took[app]), median(took[beside])
        assert full < 1.5 * empty + 0.0003, f"{full * 1e6:.0f} us, and {empty * 1e6:.0f} us into an empty outbox"


async def test_when_the_relay_is_back_the_outbox_shrinks_again(pair: Pair) -> None:
    """However much one slot holds: what was applied goes, once it is old enough."""
    pair.create("create table item (id int primary key, n int)", "item")
    pair.write("insert into item select n, 0 from generate_series(1, 30000) n")
    pair.write("update outbox.change set created_at = created_at - interval '21 days'")
    async with pair.relay(pruner=Pruner(1)) as parts:
        task = asyncio.create_task(parts.relay.run())

        async def gone() -> bool:
            pair.write("insert into item select max(id) + 1, 0 from item")
            return bool(value(conn, "select count(*) = 0 from outbox.change where id <= 30000"))

        with pair.source.connect() as conn:
            await wait_until_async(gone, 60)
        parts.relay.stop()
        await task
    await pair.drain()
    pair.assert_equal("item")


@pytest.fixture(scope="module")
def preparing(new_folder: Callable[[str], Path], pytestconfig: pytest.Config) -> Iterator[Cluster]:
    """A server that allows two-phase commit."""
    version = pytestconfig.getoption("postgres")
    settings = {**SETTINGS, "max_prepared_transactions": "5"}
    with Cluster.create(new_folder("unharmed"), version=version, settings=settings) as cluster:
        yield cluster


def test_a_prepared_transaction_outlives_a_pruning_of_its_slot(preparing: Cluster) -> None:
    """It is in no session and may stay for days: its slot is not touched, its changes come when it commits."""
    with psycopg.connect(preparing.dsn(), autocommit=True) as conn:
        with conn.transaction():
            migrate(conn, "source")
        table(conn)
        conn.execute("insert into item (n) values (1)")
        conn.execute("begin; insert into item (n) values (2); prepare transaction 'days'")
        for _ in range(8):
            conn.execute("select outbox.prune(1, '0')")
            conn.execute("insert into item (n) values (3)")
        assert value(conn, "select up_to_id from outbox.pruned") == 0
        conn.execute("commit prepared 'days'")
        assert value(conn, "select row::json ->> 'n' from outbox.change where id = 2") == "2"
        assert ops(conn) == ["upsert"] * 10


class Busy:
    """Writers of short transactions beside one long one that holds the table; the longest statement of each."""

    def __init__(self, source: Database) -> None:
        self._source = source
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._write) for _ in range(3)]
        self.errors: list[Exception] = []
        self.commits = 0

    @contextmanager
    def writing(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join()

    def _write(self) -> None:
        try:
            with self._source.connect() as conn:
                # The longest that DDL may keep a writer is 200 ms at a time; timers are late on a busy machine.
                conn.execute("set lock_timeout = '1s'")
                while not self._over.is_set():
                    conn.execute("insert into busy (n) values (1)")
                    self.commits += 1
        except Exception as exc:  # noqa: BLE001  told by the test
            self.errors.append(exc)


def test_watching_a_busy_table_makes_nobody_queue(source: Database, app: Connection) -> None:
    """Writers behind `watch` that waits for a long transaction: it steps back again and again, until its turn comes."""
    app.execute("create table busy (id bigint generated always as identity primary key, n int)")
    busy, done, warned = Busy(source), list[str](), list[str]()
    watched = watch_tables(source.dsn, ["busy"], lambda *_: Selection(), warned.append)
    watching = threading.Thread(target=lambda: done.extend(now.table for _, now in watched))
    with source.connect(autocommit=False) as long, busy.writing():
        long.execute("insert into busy (n) values (0)")
        watching.start()
        tries = "select count(*) from pg_locks where relation = 'busy'::regclass and mode = 'ShareRowExclusiveLock'"
        for _ in range(4):  # it waits in the queue, and is gone from it again, though the long one is still there
            wait_until(lambda: value(app, tries) == 1)
            before = busy.commits
            wait_until(lambda: value(app, tries) == 0)
            wait_until(lambda seen=before: busy.commits > seen or busy.errors)  # type: ignore[misc]
        assert done == []
        long.commit()
        watching.join(60)
        assert done == ["public.busy"]
        wait_until(lambda: ops(app, "public.busy") or busy.errors)
    assert busy.errors == []
    assert busy.commits > 4


@pytest.mark.slow
def test_a_daemon_frozen_in_its_sleep_harms_no_commit(pair: Pair, run_folder: Path) -> None:
    """Takes about 12 s. It holds K, so each commit notifies, and commits; within 15 s the server drops it."""
    pair.create("create table item (id bigint primary key, n int)", "item")
    folder = run_folder / f"frozen-{pair.source.name}"
    folder.mkdir()
    way = {"source_dsn": pair.source.dsn, "transport": "postgres", "target_dsn": pair.target.dsn}
    outboxd = Outboxd(folder, {**way, "heartbeat_interval": "0"})
    outboxd.start()
    try:
        with pair.source.connect() as app, pair.source.connect() as listener:
            listen(listener)
            wait_until(lambda: value(app, _K) == 1, 60)
            outboxd.send(signal.SIGSTOP)
            frozen = time.monotonic()
            wait_until(lambda: value(app, _K) == 1)
            written = 0
            while value(app, _K):
                assert time.monotonic() - frozen < 15, "the server drops the frozen holder"
                app.execute("set statement_timeout = '2s'")
                written += 1
                app.execute("insert into item values (%s, 0)", (written,))
                heard = list(listener.notifies(timeout=5, stop_after=1))
                assert heard or not value(app, _K)
            assert written > 10
            app.execute("insert into item values (0, 0)")
            outboxd.send(signal.SIGCONT)
            wait_until(lambda: pair.rows("select count(*) from item")[1] == [(written + 1,)], 60)
        pair.assert_equal("item")
    finally:
        outboxd.send(signal.SIGCONT)
        outboxd.stop()
