"""Retention: what goes, what stays, and that nobody waits for it."""

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
import pytest
from structlog.testing import capture_logs

from daemon.batch import Limits, Pruned
from daemon.errors import SourceForeign, SourceUnfit
from daemon.pages import Pages
from daemon.prune import Pruner
from daemon.source import Source
from outbox import Cursor
from tests.captured import Connection, rows, value, waits_for, watch
from tests.databases import Database
from tests.pairs import Pair, reading
from tests.waiting import wait_until, wait_until_async

FAR = 1 << 60


class Prune(NamedTuple):
    emptied: int | None
    up_to_id: int
    locked: bool
    rotated: bool


def prune(conn: Connection, floor_id: int = FAR, retention: str = "0") -> Prune:
    """The slot emptied, the mark, whether a slot was in use, whether the slot changed."""
    found = conn.execute(
        "select emptied, up_to_id, locked, rotated from outbox.prune(%s, %s)", (floor_id, retention)
    ).fetchone()
    assert found is not None
    return Prune(*found)


def slots(conn: Connection) -> list[list[int]]:
    """The ids in each slot."""
    return [[row[0] for row in rows(conn, f"select id from outbox.change_{n} order by id")] for n in range(4)]


@pytest.fixture
def item(app: Connection) -> Connection:
    app.execute("create table item (id int primary key, n int)")
    watch(app, "item")
    return app


def write(conn: Connection, *ids: int) -> None:
    for n in ids:
        conn.execute("insert into item values (%s, 0)", (n,))


# -- what goes, and what stays -------------------------------------------------------------------------------


def test_changes_leave_a_slot_at_a_time_and_never_the_one_being_written(item: Connection) -> None:
    """Round and round: each slot is emptied once another one is written."""
    assert prune(item) == (None, 0, False, False)
    write(item, 1, 2)
    assert prune(item) == (None, 0, False, True)
    assert slots(item) == [[1, 2], [], [], []]
    write(item, 3)
    assert prune(item) == (0, 2, False, True)
    assert slots(item) == [[], [3], [], []]
    for n in range(4, 12):
        write(item, n)
        assert prune(item) == ((n - 3) % 4, n - 1, False, True)
        assert slots(item) == [[n] if slot == (n - 2) % 4 else [] for slot in range(4)]


def test_what_is_not_applied_stays(item: Connection) -> None:
    """Not even one change above the floor goes, nor its neighbours below."""
    write(item, 1, 2)
    prune(item)
    write(item, 3)
    assert prune(item, floor_id=1)[:2] == (None, 0)
    assert slots(item) == [[1, 2], [3], [], []]
    assert prune(item, floor_id=2)[:2] == (0, 2)


def test_when_no_slot_is_free_the_current_one_grows(item: Connection) -> None:
    """The target is away for days: nothing goes, the slots are left one after the other, and the last stays."""
    for n in range(1, 8):
        write(item, n)
        assert prune(item, floor_id=0) == (None, 0, False, n <= 3)
    assert slots(item) == [[1], [2], [3], [4, 5, 6, 7]]
    assert prune(item) == (0, 1, False, True)
    write(item, 8)
    assert slots(item) == [[8], [2], [3], [4, 5, 6, 7]]


def test_what_is_younger_than_the_retention_stays(item: Connection) -> None:
    """Until then a target that lost it could have it again. A slot is left after half of the time."""
    write(item, 1)
    prune(item)
    item.execute("update outbox.change set created_at = created_at - interval '50 minutes'")
    write(item, 2)
    assert prune(item, retention="1 hour") == (None, 0, False, False)
    item.execute("update outbox.change set created_at = created_at - interval '11 minutes' where id = 1")
    assert prune(item, retention="1 hour") == (0, 1, False, False)
    item.execute("update outbox.change set created_at = created_at - interval '31 minutes'")
    assert prune(item, retention="1 hour") == (None, 1, False, True)


def test_a_transaction_that_writes_stays_whole_whatever_slots_it_wrote_to(item: Connection, source: Database) -> None:
    """One open since before the slots changed: its slot is left alone, and nothing of it is lost."""
    with source.connect(autocommit=False) as long:
        write(long, 1)
        write(item, 2)
        assert prune(item)[3]
        write(long, 3)
        write(item, 4)
        # All that the target can have stated while `long` is open is a floor below its first change.
        assert prune(item, floor_id=0)[:2] == (None, 0)
        # And a floor that is wrong takes nothing that is not committed: the slots are in use.
        assert prune(item)[:3] == (None, 0, True)
        assert prune(item)[:3] == (None, 0, True)
        long.commit()
    assert slots(item) == [[1, 2], [3, 4], [], []]


def test_a_late_change_in_an_old_slot_keeps_it(item: Connection, source: Database) -> None:
    """Committed between the look at the slot and its lock: the slot is looked at once more."""
    write(item, 1)
    prune(item)
    with source.connect(autocommit=False) as late:
        late.execute("insert into outbox.change (table_name, op, key, slot) values ('public.item', 'delete', '{}', 0)")
        done: list[Prune] = []
        item.execute("alter function outbox.prune set lock_timeout = '30s'")
        with source.connect() as pruner:
            thread = threading.Thread(target=lambda: done.append(prune(pruner, floor_id=1)))
            thread.start()
            wait_until(lambda: waits_for(item, pruner, late))
            late.commit()
            thread.join()
    assert done[0][:2] == (None, 0)
    assert slots(item)[0] == [1, 2]


def test_two_pruners_do_not_meet(item: Connection, source: Database) -> None:
    write(item, 1)
    prune(item)
    with source.connect(autocommit=False) as other:
        prune(other)
        assert prune(item) == (None, 0, False, False)
        other.rollback()
    assert prune(item)[:2] == (0, 1)


def test_an_old_snapshot_may_not_prune(item: Connection) -> None:
    """It would not see what has committed since."""
    item.execute("set default_transaction_isolation = 'repeatable read'")
    with pytest.raises(psycopg.errors.ActiveSqlTransaction, match="read committed"):
        prune(item)


def test_a_dump_that_reads_the_slots_is_not_waited_for(item: Connection, source: Database) -> None:
    """It may take hours: the slot is left for later, said to be in use, and changes go on coming."""
    write(item, 1)
    prune(item)
    with source.connect(autocommit=False) as dump:
        dump.execute("select * from outbox.change")
        write(item, 2)
        assert prune(item)[:3] == (None, 0, True)
        write(item, 3)
    assert prune(item)[:2] == (0, 1)


# -- the reader ----------------------------------------------------------------------------------------------

_LOST = (
    r"the outbox no longer holds the changes after the target's cursor .*`outboxd rebase` \(a dry run first\) leads on"
)


async def test_a_cursor_from_before_what_was_removed_is_refused(source: Database, item: Connection) -> None:
    """A target restored from a backup that is too old, or a new one, is told so, and gets nothing."""
    write(item, 1, 2)
    async with reading(source) as reader:
        applied = (await reader.read(Cursor.beginning())).cursor
    prune(item)
    write(item, 3)
    async with reading(source) as reader:
        assert [c.id for c in (await reader.read(Cursor.beginning())).changes] == [1, 2, 3]
    assert prune(item, floor_id=applied.floor_id)[:2] == (0, 2)
    async with reading(source) as reader:
        with pytest.raises(SourceUnfit, match=_LOST):
            await reader.read(Cursor.beginning())
        assert [c.id for c in (await reader.read(applied)).changes] == [3]


async def test_what_is_removed_while_a_window_is_read_is_noticed(
    source: Database, item: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one that led before, with a cursor that the target, restored from a backup, has taken back."""
    write(item, 1, 2)
    prune(item)
    page = Pages._page

    async def after_a_prune(self: Pages, conn: Any, limits: Limits) -> Any:
        write(item, 3)
        assert prune(item)[:2] == (0, 2)
        return await page(self, conn, limits)

    monkeypatch.setattr(Pages, "_page", after_a_prune)
    async with reading(source) as reader:
        with pytest.raises(SourceUnfit, match=_LOST):
            await reader.read(Cursor.beginning())


# -- the daemon's part ---------------------------------------------------------------------------------------


async def test_the_pruner_keeps_its_pace_and_survives_a_refusal(source: Database, item: Connection) -> None:
    """Every minute at most; a missing right is said, and neither the connection nor the window is lost."""
    times, seen = [100.0], list[Pruned]()
    pruner = Pruner(86_400, seen.append, lambda: times[-1])
    write(item, 1)
    async with reading(source) as reader:
        cursor = (await reader.read(Cursor.beginning())).cursor
        backend = (await reader.identify(), reader._session.conn)[1]
        for now in (100.0, 100.1, 159.9, 160.0, 219.0, 221.0):
            times.append(now)
            await pruner.turn(reader, cursor.floor_id)
        assert len(seen) == 3
        item.execute("drop function outbox.prune")
        with capture_logs() as log:
            times.append(300.0)
            await pruner.turn(reader, cursor.floor_id)
        assert [(line["event"], line["log_level"]) for line in log] == [("prune_skipped", "warning")]
        assert reader._session.conn is backend
        write(item, 2)
        assert [c.id for c in (await reader.read(cursor)).changes] == [2]


async def test_a_role_with_another_isolation_prunes_all_the_same(source: Database, item: Connection) -> None:
    write(item, 1)
    async with reading(source) as reader:
        item.execute(f"alter database {source.name} set default_transaction_isolation = 'serializable'")
        assert await reader.prune(1, 0) == Pruned(None, 0, locked=False, rotated=True)
        assert await reader.prune(1, 0) == Pruned(0, 1, locked=False, rotated=False)


async def test_a_short_retention_is_looked_after_more_often(source: Database) -> None:
    """So that an outbox holds little more than it must."""
    async with reading(source) as reader:
        for retention, every in ((1.0, 0.1), (600.0, 60.0), (86_400.0, 60.0)):
            pruner = Pruner(retention, clock=lambda: 0.0)
            await pruner.turn(reader, 0)
            assert pruner._due == every


async def test_the_relay_prunes_by_what_the_target_stated(pair: Pair) -> None:
    """The cursor in memory runs ahead over windows without changes; the target has never heard of that."""
    pair.create("create table item (id int primary key, n int)", "item")
    floors: list[int] = []

    class Noting(Pruner):
        async def turn(self, source: Source, floor_id: int) -> None:
            floors.append(floor_id)

    async with pair.relay(pruner=Noting(1)) as parts:
        await parts.relay._prune()
        assert floors == []  # it has not spoken yet
        pair.write("insert into item values (1, 0)")
        await parts.relay.drain()
        stated = (await parts.target.cursor()).standing.cursor
        assert stated is not None
        for _ in range(20):  # ids nobody wants: rolled back, so each window is empty
            with pair.source.connect(autocommit=False) as conn:
                conn.execute("insert into item select n, 0 from generate_series(2, 900) n")
                conn.rollback()
            await parts.relay.drain()
        ahead = parts.relay._cursor
        assert ahead is not None
        assert ahead.floor_id > stated.floor_id
        await parts.relay._prune()
        assert floors == [stated.floor_id]
        parts.relay.lead()
        await parts.relay._prune()
        assert floors == [stated.floor_id]  # a new term: it must speak again


async def test_nothing_is_pruned_on_a_source_that_has_not_shown_to_be_the_cursors(pair: Pair) -> None:
    """The floor is of another source's ids; so it is on a new connection, until a window was opened there."""
    pair.create("create table item (id int primary key, n int)", "item")
    floors: list[int] = []

    class Noting(Pruner):
        async def turn(self, source: Source, floor_id: int) -> None:
            floors.append(floor_id)

    async with pair.relay(pruner=Noting(1)) as parts:
        pair.write("insert into item values (1, 0)")
        await parts.relay.drain()
        await parts.source.close()
        await parts.relay._prune()
        assert floors == []
        with pair.target.connect() as conn:
            conn.execute("update outboxd.cursor set cursor = jsonb_set(cursor::jsonb, '{system}', '\"1\"')::text")
        parts.relay.lead()
        with pytest.raises(SourceForeign):
            await parts.relay.drain()
        await parts.relay._prune()
        assert floors == []


# -- nobody waits --------------------------------------------------------------------------------------------


def test_a_writer_that_meets_the_lock_waits_no_longer_than_prune(item: Connection, source: Database) -> None:
    """Prune gives up behind a transaction that holds the slot; whoever queued up behind prune goes on then."""
    write(item, 1)
    prune(item)
    insert = "insert into outbox.change (table_name, op, key, slot) values ('public.item', 'delete', '{}', 0)"
    with source.connect(autocommit=False) as holder, source.connect() as pruner, source.connect() as writer:
        holder.execute(insert)
        writer.execute("set lock_timeout = '2s'")  # on a busy machine a timer may be late; a holder never ends
        for _ in range(10):
            outcome: list[Prune] = []
            thread = threading.Thread(target=lambda into=outcome: into.append(prune(pruner)))
            thread.start()
            writer.execute(insert)
            thread.join()
            assert outcome[0][2], "prune was kept from the slot"
        asked = time.monotonic()
        assert prune(pruner)[2]
        assert 0.05 <= time.monotonic() - asked < 2


class Storm:
    """Writers of short and long transactions. A statement that waits for a lock too long raises."""

    def __init__(self, source: Database) -> None:
        self._source = source
        self._over = threading.Event()
        self.slowest: list[float] = []
        self.errors: list[Exception] = []

    def threads(self) -> Iterator[threading.Thread]:
        for number in range(4):
            yield threading.Thread(target=self._guarded, args=(number, number % 2 == 1))

    def end(self) -> None:
        self._over.set()

    def _guarded(self, number: int, long: bool) -> None:
        try:
            self._write(number, long)
        except Exception as exc:  # noqa: BLE001  told by the test
            self.errors.append(exc)

    def _write(self, number: int, long: bool) -> None:
        at = number * 1_000_000
        with self._source.connect(autocommit=False) as conn:
            conn.execute("set lock_timeout = '1s'")
            conn.commit()
            slowest = 0.0
            while not self._over.is_set():
                for _ in range(300 if long else 1):
                    began = time.monotonic()
                    conn.execute("insert into item select n, 0 from generate_series(%s::int, %s) n", (at, at + 4))
                    slowest = max(slowest, time.monotonic() - began)
                    at += 5
                conn.commit()
            self.slowest.append(slowest)


@pytest.mark.slow
async def test_nothing_is_lost_and_nobody_waits_while_prune_runs_in_a_tight_loop(pair: Pair) -> None:
    """Retention of nothing: every turn empties what it may, beside writers of short and long transactions."""
    pair.create("create table item (id int primary key, n int)", "public.item")
    storm, done = Storm(pair.source), list[Pruned]()
    writers = list(storm.threads())
    async with pair.relay(pruner=Pruner(0, done.append)) as parts:
        task = asyncio.create_task(parts.relay.run())
        over = threading.Event()

        def prune_on() -> None:
            with pair.source.connect() as conn:
                while not over.is_set():
                    prune(conn, floor_id=parts.relay._stated.floor_id if parts.relay._stated else 0)

        beside = threading.Thread(target=prune_on)
        for thread in (*writers, beside):
            thread.start()

        async def enough() -> bool:
            return parts.relay.status.applied > 20_000 or bool(storm.errors) or task.done()

        try:
            await wait_until_async(enough, 120)
        finally:
            storm.end()
            for thread in writers:
                await asyncio.to_thread(thread.join)

        async def arrived() -> bool:
            source, target = pair.rows("select count(*) from item")
            return source == target or task.done()

        await wait_until_async(arrived, 60)
        over.set()
        await asyncio.to_thread(beside.join)
        parts.relay.stop()
        await task
    assert storm.errors == []
    pair.assert_equal("item")
    with pair.source.connect() as conn:
        assert value(conn, "select up_to_id from outbox.pruned") > 0
    print(f"slowest statement of a writer: {max(storm.slowest) * 1000:.0f} ms")
