"""How a window is cut into batches: whole transactions, limits in rows and bytes, restarts anywhere."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack

import psycopg
import pytest

from daemon.batch import Limits
from daemon.sheaf import Change
from outbox import Cursor
from tests.databases import Database
from tests.pairs import Pair, batches, changes, reading, run

State = dict[str, int]


@pytest.fixture
def pair(pair: Pair) -> Pair:
    pair.create("create table t (id int primary key, step int, pad text)", "t")
    return pair


def interleave(database: Database, seed: int, steps: int = 60) -> None:
    """Five writers in overlapping transactions on ten rows; `step` only ever grows. Some commit late, some never."""
    choose = random.Random(seed)
    with ExitStack() as stack:
        writers = [stack.enter_context(psycopg.connect(database.dsn)) for _ in range(5)]
        locked: dict[int, int] = {}
        for step in range(steps):
            who, key = choose.randrange(5), choose.randrange(10)
            if locked.get(key, who) != who or choose.random() < 0.15:
                run(writers[who], "rollback" if choose.random() < 0.2 else "commit")
                locked = {key: owner for key, owner in locked.items() if owner != who}
                continue
            locked[key] = who
            if choose.random() < 0.2:
                run(writers[who], f"delete from t where id = {key}")
            else:
                upsert = f"insert into t values ({key}, {step}) on conflict (id) do update set step = {step}"
                run(writers[who], upsert)


def apply(state: State, changes: Sequence[Change]) -> None:
    """Replay onto a dict; a row never goes back to an earlier step."""
    for change in changes:
        if change.row is None:
            state.pop(change.key, None)
        else:
            step = json.loads(change.row)["step"]
            assert state.get(change.key, -1) < step
            state[change.key] = step


def truth(database: Database) -> State:
    with database.connect() as conn:
        return {f'{{"id":{key}}}': step for key, step in conn.execute("select id, step from t")}


def whole(database: Database) -> Counter[int]:
    """How many changes each committed transaction has."""
    with database.connect() as conn:
        return Counter(int(xid) for (xid,) in conn.execute("select xid::text from outbox.change"))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
async def test_small_pages_over_interleaved_transactions(pair, size):
    """Every change once, every row forward only, every transaction whole unless it alone is larger than the limit."""
    interleave(pair.source, seed=size)
    sizes, state, seen = whole(pair.source), State(), list[int]()
    async with reading(pair.source, changes=size) as source:
        for batch in await batches(source):
            for xid, count in Counter(change.xid for change in batch.changes).items():
                assert count == sizes[xid] or sizes[xid] > size
            assert len(batch.changes) <= 2 * size
            apply(state, batch.changes)
            seen += [change.id for change in batch.changes]
    assert len(seen) == len(set(seen)) == sizes.total()
    assert state == truth(pair.source)


@pytest.mark.parametrize("size", [1, 4])
async def test_a_restart_from_any_cursor_ends_alike(pair, size):
    """A new process goes on from any cursor the target may hold, in the middle of a torn transaction too."""
    interleave(pair.source, seed=20 + size, steps=36)
    pair.write("insert into t select n, 1000 from generate_series(100, 111) n")
    async with reading(pair.source, changes=size) as source:
        found = await batches(source)
    assert any(batch.cursor.torn for batch in found)
    state = State()
    for batch in found:
        apply(state, batch.changes)
        rest = dict(state)
        async with reading(pair.source, changes=size) as source:
            apply(rest, changes(await batches(source, batch.cursor)))
        assert rest == truth(pair.source)


async def test_a_restart_does_not_go_through_everything_again(pair):
    """The cursor in the middle of a deep window has a floor: a new process begins there, not at the first row."""
    pair.write("insert into t select n, 1 from generate_series(1, 500) n")
    for n in range(500, 540):
        pair.write(f"insert into t values ({n + 1}, 1)")
    async with reading(pair.source, changes=50) as source:
        found = await batches(source)
    assert all(batch.cursor.floor_id >= batch.changes[-1].id for batch in found)


async def test_a_bulk_statement_larger_than_the_limit_is_torn_and_said_so(pair):
    """It comes in pieces of the limit; small transactions before and after it stay whole."""
    pair.write("insert into t values (1, 1), (2, 1)")
    pair.write("insert into t select n, 2 from generate_series(101, 125) n")
    pair.write("insert into t values (3, 3), (4, 3)")
    async with reading(pair.source, changes=10) as source:
        found = await batches(source)
    assert sum(batch.torn for batch in found) == 1
    assert [len(batch.changes) for batch in found] == [2, 10, 10, 5 + 2]
    assert [bool(batch.cursor.torn) for batch in found] == [False, True, True, False]


async def test_what_was_sent_of_a_torn_transaction_is_not_sent_again(pair):
    """A bulk load between small transactions: each piece once, though it takes several pages to fill one."""
    with psycopg.connect(pair.source.dsn) as bulk, psycopg.connect(pair.source.dsn) as small:
        for n in range(20):
            run(bulk, f"insert into t values ({100 + n}, 1)")
            run(small, f"insert into t values ({200 + n}, 1)", "commit")
    async with reading(pair.source, changes=4) as source:
        found = await batches(source)
    assert sum(batch.torn for batch in found) == 1
    assert sorted(change.id for change in changes(found)) == list(range(1, 41))


async def test_pages_found_by_transaction_are_in_id_order(pair):
    """Beside a long transaction the first page is found another way, and cut in the same."""
    with psycopg.connect(pair.source.dsn) as long:
        run(long, "insert into t values (-1, -1)")
        pair.write("insert into t select n, 0 from generate_series(100, 400) n")
        async with reading(pair.source, changes=500) as source:
            state = State()
            apply(state, changes(found := await batches(source)))
            source.limits = Limits(changes=2)
            with psycopg.connect(pair.source.dsn) as older, psycopg.connect(pair.source.dsn) as younger:
                for n, conn in enumerate((older, younger, older)):
                    run(conn, f"insert into t values ({500 + n}, 1)")
            interleave(pair.source, seed=7)
            apply(state, changes(await batches(source, found[-1].cursor)))
            assert state == truth(pair.source)


async def test_no_changes_means_none_when_asked(pair):
    """A window that has nothing left is not the answer to a later question: the relay would go to sleep on it."""
    with psycopg.connect(pair.source.dsn) as late:
        pair.write("insert into t values (1, 1), (2, 1)")
        run(late, "insert into t values (3, 1)")
        async with reading(pair.source, changes=2) as source:
            first = await source.read(Cursor.beginning())
            assert first.more
            run(late, "commit")
            second = await source.read(first.cursor)
            assert [json.loads(change.row or "")["id"] for change in second.changes] == [3]
            assert not (await source.read(second.cursor)).changes


async def test_a_transaction_as_large_as_the_limit_is_whole(pair):
    """Nothing is torn that fits: neither at the beginning of a page nor across two."""
    pair.write("insert into t values (1, 1)")
    for n in range(4):
        pair.write(f"insert into t select n, 1 from generate_series({n + 1}01, {n + 1}10) n")
    async with reading(pair.source, changes=10) as source:
        found = await batches(source)
    assert [batch.torn for batch in found] == [0] * len(found)
    assert len(changes(found)) == 41


async def test_bytes_bound_a_batch_too(pair):
    """Rows are counted as they travel: ä is two bytes, € three, an emoji four."""
    row = "€" * 100  # 300 bytes, and some JSON around them
    for n in range(10):
        pair.write(f"insert into t values ({n}, 1, '{row}')")
    async with reading(pair.source, bytes=900) as source:
        found = await batches(source)
    assert [len(batch.changes) for batch in found if batch.changes] == [3, 3, 3, 1]
    assert all(change.size == len((change.row or "").encode()) for change in changes(found))


async def test_one_row_larger_than_the_limit_travels_alone(pair):
    """A limit in bytes never stops a row: it is a batch by itself."""
    pair.write("insert into t values (1, 1)")
    pair.write(f"insert into t values (2, 1, '{'ä' * 5000}')")
    pair.write("insert into t values (3, 1)")
    async with reading(pair.source, bytes=1000) as source:
        found = await batches(source)
    assert sum(batch.torn for batch in found) == 0
    assert [json.loads(change.row or "")["id"] for change in changes(found)] == [1, 2, 3]


async def test_a_large_transaction_is_torn_by_bytes(pair):
    """Two hundred rows of a kilobyte do not wait until all of them fit."""
    pair.write("insert into t select n, 1, repeat('é', 500) from generate_series(1, 200) n")
    async with reading(pair.source, bytes=20_000) as source:
        found = await batches(source)
    assert sum(batch.torn for batch in found) == 1
    assert all(sum(change.size for change in batch.changes) < 2 * 20_000 for batch in found)
    assert len(changes(found)) == 200


async def test_side_by_side_bulk_loads_do_not_pile_up(pair):
    """Six transactions of eight rows that were written in turns and end together: no batch holds them all."""
    with ExitStack() as stack:
        writers = [stack.enter_context(psycopg.connect(pair.source.dsn)) for _ in range(6)]
        for n in range(8):
            for who, conn in enumerate(writers):
                run(conn, f"insert into t values ({100 * who + n}, 1)")
    async with reading(pair.source, changes=10) as source:
        found = await batches(source)
    assert [batch.torn for batch in found] == [0] * len(found)
    assert max(len(batch.changes) for batch in found) == 16
    assert len(changes(found)) == 48


async def test_a_deep_backlog_is_read_with_the_rights_of_the_daemon(pair):
    """The least-privileged role, read-only and in REPEATABLE READ by default, reads, flushes and goes on."""
    with pair.source.connect() as conn:
        conn.execute("grant usage on schema outbox to pg_monitor")
        conn.execute("grant select on all tables in schema outbox to pg_monitor")
        conn.execute("grant select on all sequences in schema outbox to pg_monitor")
        conn.execute(
            "grant execute on function outbox.look(bigint, xid8[], xid8[], bigint, int, bigint, bigint) to pg_monitor"
        )
        name = f"reader_of_{pair.source.name}"
        run(conn, f"create role {name} login in role pg_monitor")
        run(conn, f"alter role {name} set default_transaction_isolation = 'repeatable read'")
        run(conn, f"alter role {name} set default_transaction_read_only = on")
    try:
        interleave(pair.source, seed=99)
        pair.write("set synchronous_commit = off", "insert into t values (77, 1000)")
        state = State()
        async with reading(Database(pair.source.cluster, pair.source.name, name), changes=4) as source:
            found = await batches(source)
            pair.write("insert into t values (78, 1000)")
            found += await batches(source, found[-1].cursor)
        apply(state, changes(found))
        assert state == truth(pair.source)
        assert found[-1].cursor != Cursor.beginning()
    finally:
        with pair.source.connect() as conn:
            run(conn, f"drop role {name}")
