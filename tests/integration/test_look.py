"""One statement answers a whole look: what it sees, in which order, at what price, and through poolers."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
from psycopg.rows import dict_row

from daemon.connection import Link
from daemon.errors import SourceForeign
from daemon.session import query
from daemon.source import Source
from outbox import Cursor
from tests.captured import Connection, waits_for
from tests.databases import Database
from tests.pairs import Pair, batches, changes, reading, run
from tests.pgbouncer import MissingPgBouncer, pgbouncer, pgbouncer_before
from tests.waiting import wait_until

LAST = 2**63 - 1
LOOK = "select * from outbox.look(0, '{{{}}}'::xid8[], '{{{}}}'::xid8[], 1000000000, 5000, 4194304, 16777216)"


@pytest.fixture
def pair(pair: Pair) -> Pair:
    pair.create("create table t (id int primary key, who text)", "t")
    return pair


@pytest.fixture
def app(pair: Pair) -> Iterator[Connection]:
    with pair.source.connect() as conn:
        yield conn


def next_xid(conn: Connection) -> int:
    ((xmax,),) = conn.execute("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchall()
    return int(xmax)


@contextmanager
def looking(pair: Pair, app: Connection, locked: str) -> Iterator[tuple[Connection, list[dict[str, Any]]]]:
    """A look that waits in the middle, for a lock of whoever this yields; when the block ends that one commits, the look
    goes on, and what it found is in the list."""
    found: list[dict[str, Any]] = []
    look = LOOK.format(next_xid(app), LAST).encode()
    with (
        psycopg.connect(pair.source.dsn) as holder,
        psycopg.connect(pair.source.dsn, autocommit=True, row_factory=dict_row) as looker,
    ):
        looker.execute(look)  # so that its plans are there
        run(app, "insert into t values (1, 'before')")
        run(holder, f"lock table {locked} in access exclusive mode")
        thread = threading.Thread(target=lambda: found.extend(looker.execute(look).fetchall()))
        thread.start()
        wait_until(lambda: waits_for(app, looker, holder))
        yield holder, found
        holder.commit()
        thread.join()


def test_what_commits_between_the_snapshot_and_the_changes_is_for_the_next_look(pair, app):
    """Held up between the two, the statement for the changes sees more than the snapshot does: a cursor that leads to the
    snapshot would have it sent twice (promise I3)."""
    with looking(pair, app, "outbox.change_2") as (_, found):  # a slot that nobody writes to
        run(app, "insert into t values (2, 'meanwhile')")
        between = next_xid(app)
    assert (found[0]["ids"], found[0]["ceiling"]) == ([1], 1)
    assert int(found[0]["snapshot"].split(":")[1]) < between
    assert app.execute(LOOK.format(int(found[0]["snapshot"].split(":")[1]), LAST).encode()).fetchall()[0][10] == [2]


def test_what_was_pruned_is_read_after_the_changes(pair, app):
    """TRUNCATE takes rows from older snapshots, too: the mark must be newer than what was read (promise I1)."""
    with looking(pair, app, "outbox.pruned") as (pruner, found):
        run(pruner, "update outbox.pruned set up_to_id = 1")
    assert (found[0]["ids"], found[0]["up_to_id"]) == ([1], 1)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_in_a_transaction_with_one_snapshot_there_is_no_answer(pair, app, level):
    """All its statements would see with the first one's: what was pruned since would seem to be there."""
    with psycopg.connect(pair.source.dsn) as conn:
        run(conn, f"set transaction isolation level {level}")
        ((snapshot, *_),) = conn.execute(LOOK.format(3, LAST).encode()).fetchall()
    assert snapshot is None


def test_side_by_side_with_writers_each_change_comes_once(pair, app):
    """Looks and commits at random: what one look leaves, the next one finds, and nothing comes twice."""
    done = threading.Event()

    def write(writer: int) -> None:
        with psycopg.connect(pair.source.dsn) as conn:
            for turn in range(60):
                run(conn, f"insert into t values ({writer * 1000 + turn}, 'x')")
                conn.rollback() if turn % 7 == writer else conn.commit()

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    found: list[int] = []
    seen, running = next_xid(app), list[int]()
    for one in writers:
        one.start()
    while not done.is_set():
        if not any(one.is_alive() for one in writers):
            done.set()  # one more look
        firsts = ",".join(map(str, [*running, seen]))
        lasts = ",".join(map(str, [*running, LAST]))
        ((snapshot, *_, xids, ids, _, _, _, _, _, _, _, _),) = app.execute(
            LOOK.format(firsts, lasts).encode()
        ).fetchall()
        found += ids or []
        _, xmax, still = snapshot.split(":")
        seen, running = int(xmax), [int(xid) for xid in still.split(",") if xid]
        assert not set(map(int, xids or [])) & set(running)
    committed = [id_ for (id_,) in app.execute("select id from outbox.change order by id").fetchall()]
    assert sorted(found) == committed


# -- what it costs -------------------------------------------------------------------------------------------------


def touched(conn: Connection, xid: int, running: int | None = None) -> int:
    """How many pages a look touches whose plans are there."""
    firsts, lasts = (f"{running},{xid}", f"{running},{LAST}") if running else (str(xid), str(LAST))
    explain = f"explain (analyze, buffers, format json) {LOOK.format(firsts, lasts)}".encode()
    conn.execute(explain)
    rows = conn.execute(explain).fetchall()
    plan = rows[0][0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("planned", ["empty", "known to be empty", "full"])
def test_a_look_costs_what_is_new_however_much_is_kept(pair, app, statistics, planned):
    """Its plan may be as old as the connection, from when the outbox was empty: that one must do for millions. Beside a
    transaction that has been open for long, and has written much, it costs no more."""
    pair.write(*(f"alter table outbox.change_{slot} set (autovacuum_enabled = off)" for slot in range(4)))
    with psycopg.connect(pair.source.dsn, autocommit=True) as conn, psycopg.connect(pair.source.dsn) as long:
        if planned == "known to be empty":
            run(app, "vacuum analyze outbox.change")
        if planned != "full":
            assert touched(conn, next_xid(app)) < 30
        run(long, "insert into t select n, 'long' from generate_series(1, 2000) n")
        ((open_,),) = long.execute("select pg_current_xact_id()::text::bigint").fetchall()
        run(app, "insert into t select n, 'kept' from generate_series(10001, 40000) n")
        if statistics:
            run(app, "analyze outbox.change")
        assert touched(conn, next_xid(app), open_) < 30
        xid = next_xid(app)
        run(app, "insert into t values (0, 'new')")
        assert touched(conn, xid, open_) < 40


# -- poolers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pooled() -> None:
    try:
        pgbouncer()
    except MissingPgBouncer as missing:
        pytest.skip(str(missing))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What of windows was asked."""
    texts: list[bytes] = []
    planned, several = Link.planned, Link.several

    async def spy_planned(self, statement, values):
        texts.append(statement)
        return await planned(self, statement, values)

    async def spy_several(self, statements, values=None):
        texts.append(statements)
        return await several(self, statements, values)

    monkeypatch.setattr(Link, "planned", spy_planned)
    monkeypatch.setattr(Link, "several", spy_several)
    return texts


async def follow(source: Source, pair: Pair, first: int = 0, turns: int = 6) -> None:
    """Everything up to now, then one change after the other."""
    found = await batches(source)
    for turn in range(first, first + turns):
        pair.write(f"insert into t values ({turn}, 'new')")
        found = await batches(source, found[-1].cursor)
        assert [change.op for change in changes(found)] == ["upsert"]
    assert changes(await batches(source, found[-1].cursor)) == []


async def test_a_direct_connection_plans_the_look_once(pair, asked):
    async with reading(pair.source) as source:
        await follow(source, pair)
        async with source.connected() as conn:
            assert conn.direct
            rows = await (
                await conn.execute("select name, generic_plans + custom_plans from pg_prepared_statements")
            ).fetchall()
    assert [name for name, _ in rows] == ["outboxd_0"]
    assert asked.count(query("window_look")) == rows[0][1] >= 6


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_behind_a_pooler_nothing_is_prepared(pair, pooled, asked, mode: str, run_folder: Path):
    """A server process is lent to others, with all that it keeps."""
    with pgbouncer_before(pair.source, run_folder, mode, size=2) as dsn:
        source = Source(dsn)
        try:
            await follow(source, pair)
            async with source.connected() as conn:
                assert not conn.direct
                left = await (await conn.execute("select name from pg_prepared_statements")).fetchall()
            assert left == []
        finally:
            await source.close()
    assert asked.count(query("window_look")) >= 6


async def test_a_pooler_that_hides_itself_is_met_without_harm(pair, pooled, run_folder: Path):
    """It passes on the number of the process that it lends: a name that this one prepared is unknown to the next."""
    with pgbouncer_before(pair.source, run_folder, "transaction", size=2) as dsn:
        source = Source(dsn)
        try:
            pair.write("insert into t values (0, 'first')")
            cursor = (await batches(source))[-1].cursor
            cursor = (await batches(source, cursor))[-1].cursor
            async with source.connected() as conn:
                conn.direct = True
                conn._named = {query("window_look"): b"prepared_elsewhere"}
            pair.write("insert into t values (1, 'new')")
            assert len(changes(await batches(source, cursor))) == 1
            async with source.connected() as conn:
                assert not conn.direct
        finally:
            await source.close()


@pytest.mark.usefixtures("pooled")
@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_a_roles_default_of_repeatable_read_is_overridden(pair, app, asked, mode, run_folder: Path):
    """A pooler refuses settings at login, so the role's own hold there: what cannot be looked at in one statement is
    read in a transaction that says how."""
    role = f"repeating_{pair.source.name}"
    run(app, f"create role {role} superuser login")
    run(app, f"alter role {role} set default_transaction_isolation = 'repeatable read'")
    try:
        database = Database(pair.source.cluster, pair.source.name, role)
        with pgbouncer_before(database, run_folder, mode, size=2) as dsn:
            source = Source(dsn)
            try:
                await follow(source, pair)
            finally:
                await source.close()
        assert asked.count(query("window_open")) > asked.count(query("window_look")) >= 6
        asked.clear()
        async with reading(database) as source:  # here the login carries what is needed
            await follow(source, pair, 100, 1)
        assert asked.count(query("window_open")) <= 2
    finally:
        run(app, f"drop role {role}")


async def test_another_leader_may_have_pruned(pair, app):
    """A look behind what was pruned meanwhile does not pass it over in silence (promise I1)."""
    async with reading(pair.source) as source:
        pair.write("insert into t values (1, 'x')")
        cursor = (await batches(source))[-1].cursor
        cursor = (await batches(source, cursor))[-1].cursor
        run(app, "update outbox.pruned set up_to_id = 1000")
        with pytest.raises(SourceForeign, match="no longer holds"):
            await source.read(cursor)
        assert cursor != Cursor.beginning()


@pytest.mark.parametrize("lost", ["drop function outbox.look", "revoke execute on function outbox.look from reader"])
async def test_where_the_function_cannot_be_used_it_is_done_in_another_way(
    pair: Pair, app: Connection, source: Database, lost: str
) -> None:
    """Each change arrives, the connection stays, and the log is told once a connection."""
    run(app, "create role reader login")
    run(app, "grant usage on schema outbox to reader; grant execute on all functions in schema outbox to reader")
    run(
        app,
        "grant select on all tables in schema outbox to reader; grant select on all sequences in schema outbox to reader",
    )
    run(app, lost)
    reader = psycopg.conninfo.make_conninfo(source.superuser_dsn, user="reader")
    with structlog.testing.capture_logs() as said:
        looking = Source(reader)
        try:
            cursor, seen = Cursor.beginning(), list[str]()
            for n in range(1, 4):
                run(app, f"insert into t values ({n}, 'someone')")
                batch = await looking.read(cursor)
                cursor, seen = batch.cursor, [*seen, *(change.key for change in batch.changes)]
        finally:
            await looking.close()
    run(app, "drop owned by reader; drop role reader")
    assert seen == ['{"id":1}', '{"id":2}', '{"id":3}']
    assert [line["event"] for line in said if line["log_level"] == "warning"] == ["statement_unusable"]
