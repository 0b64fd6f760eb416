"""Two and more sessions on the same rows: per key, ids follow the order of commits, and the last one is the row."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier

import psycopg
import pytest
from psycopg import IsolationLevel, errors

from tests.captured import Connection, assert_replays, changes, rows, value, waits_for, watch
from tests.waiting import wait_until


@pytest.fixture
def account(shared_app: Connection) -> Connection:
    """A watched table with a few recorded rows."""
    for (table,) in rows(shared_app, "select table_name from outbox.watched"):
        shared_app.execute("select outbox.unwatch(%s)", (table,))
    shared_app.execute("drop table if exists account, entry; truncate outbox.change")
    shared_app.execute(
        "create table account (id int primary key, owner text not null unique, balance int not null default 0)"
    )
    watch(shared_app, "account")
    shared_app.execute("insert into account select i, 'o' || i, 10 from generate_series(1, 5) i")
    return shared_app


@dataclass
class Two:
    """Two sessions, and a thread in which one may wait for the other. Closed in an order that ends all waiting."""

    first: Connection
    second: Connection
    pool: ThreadPoolExecutor


@pytest.fixture
def two(account: Connection) -> Iterator[Two]:
    dsn = account.info.dsn
    with ThreadPoolExecutor() as pool, psycopg.connect(dsn) as second, psycopg.connect(dsn) as first:
        yield Two(first, second, pool)
        first.rollback()


# What the first does, what the second then waits to do.
QUEUED = {
    "two updates": ("update account set balance = 1 where id = 1", "update account set balance = 2 where id = 1"),
    "insert after insert": (
        "insert into account values (9, 'first')",
        "insert into account values (9, 'second') on conflict (id) do update set owner = excluded.owner",
    ),
    "insert after delete": ("delete from account where id = 1", "insert into account values (1, 'again')"),
    "insert after a key moved away": ("update account set id = 100 where id = 1", "insert into account values (1, 'again')"),
    "insert after an insert and a delete": (
        "insert into account values (9, 'a'); delete from account where id = 9",
        "insert into account values (9, 'b')",
    ),
    "delete after update": ("update account set balance = 1", "delete from account where id = 2"),
    "update after delete finds nothing": ("delete from account where id = 1", "update account set balance = 7 where id = 1"),
    "update after a key changed": ("update account set id = 100 where id = 1", "update account set balance = 7 where owner = 'o1'"),
    "truncate after update": ("update account set balance = 1", "truncate account; insert into account values (1, 'new')"),
    "update after truncate": ("truncate account; insert into account values (1, 'new')", "update account set balance = 7"),
    "merge after delete": (
        "delete from account where id = 1",
        "insert into account values (1, 'm') on conflict (id) do update set balance = -1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("outcome", ["commit", "rollback"])
@pytest.mark.parametrize("case", QUEUED)
def test_who_waits_writes_later(account: Connection, two: Two, case: str, outcome: str) -> None:
    """The second's change has the greater id, whichever transaction began first and however the first ends."""
    holding, waiting = QUEUED[case]
    two.second.execute("select pg_current_xact_id()")  # the waiting one is the older transaction
    two.first.execute(holding)
    done = two.pool.submit(two.second.execute, waiting)
    wait_until(lambda: waits_for(account, two.second, two.first))
    two.first.execute(outcome)
    try:
        done.result(10)
    except errors.UniqueViolation:  # taken back, the first leaves the key to its owner
        assert outcome == "rollback"
        two.second.rollback()
    two.second.commit()
    assert_replays(account)


def test_an_early_transaction_that_writes_late_is_last(account: Connection, two: Two) -> None:
    """Transaction ids say nothing about the order of a row's versions."""
    two.first.execute("select pg_current_xact_id()")
    two.second.execute("update account set balance = 2 where id = 1")
    two.second.commit()
    two.first.execute("update account set balance = 1 where id = 1")
    two.first.commit()
    recorded = rows(
        account,
        "select xid::text::bigint, (row::json ->> 'balance')::int from outbox.change where key = '{\"id\":1}' order by id",
    )
    assert [balance for _, balance in recorded] == [10, 2, 1]
    assert recorded[1][0] > recorded[2][0]
    assert_replays(account)


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
@pytest.mark.parametrize(
    "statements",
    [
        "insert into account values (1, 'mine', 5)",
        "insert into account values (1, 'mine', 5); delete from account where owner = 'mine'",
        "update account set id = 1 where id = 2",
        "insert into account values (1, 'mine', 5); update account set id = 50 where owner = 'mine'",
        "savepoint s; insert into account values (1, 'mine', 5); release s",
        "savepoint s; insert into account values (1, 'mine', 5); delete from account where owner = 'mine'; release s",
        "savepoint s; insert into account values (1, 'mine', 5); rollback to s; insert into account values (1, 'again', 6)",
    ],
)
def test_a_row_that_only_the_snapshot_still_sees(
    account: Connection, two: Two, statements: str, level: IsolationLevel
) -> None:
    """A key deleted by another since, and used again here: the snapshot shows the dead row beside the new one."""
    two.first.isolation_level = level
    two.first.execute("select 1")
    two.second.execute("delete from account where id = 1")
    two.second.commit()
    two.first.execute(statements)
    two.first.commit()
    assert_replays(account)


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
@pytest.mark.parametrize("own", ["", "savepoint s; "])
def test_a_row_of_a_later_transaction_is_not_ones_own(
    account: Connection, two: Two, level: IsolationLevel, own: str
) -> None:
    """An xid that is older than the snapshot: the snapshot shows versions of later transactions."""
    account.execute("create table if not exists other (id int)")
    two.first.isolation_level = level
    two.first.execute("lock table other in access exclusive mode")
    two.second.execute("insert into account values (9, 'theirs', 1)")
    two.second.commit()
    two.first.execute("select from account")
    two.second.execute("delete from account where id = 9")
    two.second.commit()
    two.first.execute(f"{own}insert into account values (9, 'mine', 2)")
    two.first.execute("update account set balance = 3 where owner = 'mine'")
    two.first.execute("delete from account where owner = 'mine'")
    two.first.commit()
    assert changes(account)[-1].op == "delete"
    assert_replays(account)


def test_upserts_of_other_rows_do_not_fail_each_other(account: Connection, two: Two) -> None:
    """SERIALIZABLE: capture looks at the version that was written, and reads nothing of the index beside it."""
    account.execute("insert into account select i, 'o' || i, 10 from generate_series(6, 200) i")
    upsert = "insert into account values ({0}, 'n{0}', 0), ({1}, 'n{1}', 0) on conflict (id) do update set balance = account.balance + 1"
    two.first.isolation_level = two.second.isolation_level = IsolationLevel.SERIALIZABLE
    for n in range(10):
        two.first.execute(upsert.format(10 + n, 300 + n))
        two.second.execute(upsert.format(110 + n, 320 + n))
        two.first.execute(upsert.format(30 + n, 340 + n))
        two.first.commit()
        two.second.commit()
    assert_replays(account)


def test_a_child_is_written_while_its_parent_goes(account: Connection, two: Two) -> None:
    """A cascade that waits for the child's writer records what is left when it goes on."""
    account.execute(
        "create table entry (id int primary key, account int references account on delete cascade, note text)"
    )
    watch(account, "entry")
    account.execute("insert into entry select i, i, '' from generate_series(1, 5) i")
    two.first.execute("update entry set note = 'late' where id = 1; insert into entry values (9, 3, 'new')")
    done = two.pool.submit(two.second.execute, "delete from account where id in (1, 3)")
    wait_until(lambda: waits_for(account, two.second, two.first))
    two.first.commit()
    done.result(10)
    two.second.commit()
    assert value(account, "select count(*) from entry") == 3
    assert_replays(account)


STORM = [
    "insert into account values ({k}, 'x' || {r}) on conflict (id) do update set balance = account.balance + 1",
    "update account set balance = balance - 1 where id in ({k}, {j})",
    "update account set id = {j} where id = {k}",
    "delete from account where id = {k}",
    "delete from account where id = {k} and balance > 0; insert into account values ({k}, 'y' || {r})",
    "savepoint s; update account set balance = 99 where id = {k}; rollback to s",
    "savepoint s; delete from account where id = {j}; release s",
]
CLASHES = (errors.UniqueViolation, errors.SerializationFailure, errors.DeadlockDetected)


def storm(dsn: str, seed: int, turns: int, start: Barrier) -> int:
    """Random short transactions on four keys; returns how many committed."""
    choose = random.Random(seed)
    committed = 0
    with psycopg.connect(dsn) as conn:
        conn.execute("set deadlock_timeout = '10ms'")
        conn.commit()
        conn.isolation_level = choose.choice(list(IsolationLevel)[1:])
        start.wait(30)
        for turn in range(turns):
            try:
                for _ in range(choose.randint(1, 3)):
                    k, j = choose.sample(range(1, 5), 2)
                    conn.execute(choose.choice(STORM).format(k=k, j=j, r=f"'{seed}-{turn}-{choose.random()}'"))
                conn.commit()
                committed += 1
            except CLASHES:
                conn.rollback()
    return committed


@pytest.mark.parametrize("seed", range(3))
def test_a_storm_of_writers_replays_to_the_table(account: Connection, two: Two, seed: int) -> None:
    """Six sessions of every isolation level on four keys, with key changes, savepoints, deadlocks and retries."""
    start = Barrier(6)
    done = [two.pool.submit(storm, account.info.dsn, seed * 100 + n, 40, start) for n in range(6)]
    assert sum(future.result(60) for future in done) > 60
    assert_replays(account)


def test_a_commit_is_not_delayed_by_a_reader_of_the_outbox(account: Connection, two: Two) -> None:
    """Whoever reads the outbox, or holds a snapshot of it, keeps no writer waiting."""
    two.first.isolation_level = IsolationLevel.REPEATABLE_READ
    two.first.execute("select count(*) from outbox.change")
    two.second.execute("set local lock_timeout = '100ms'; update account set balance = 0")
    two.second.commit()
    assert len(changes(account)) == 10


def test_two_writers_that_meet_a_new_column_do_not_wait(account: Connection, two: Two) -> None:
    """Neither for the new shape nor for the change: a set of columns may be recorded twice."""
    account.execute("alter table account add late int")
    two.first.execute("update account set late = 1 where id = 1")
    two.second.execute("set local lock_timeout = '100ms'; update account set late = 2 where id = 2")
    two.second.commit()
    two.first.commit()
    assert_replays(account, start={f'{{"id":{i}}}': {"late": None} for i in (3, 4, 5)})


def test_a_lock_conflict_is_the_applications_own(account: Connection, two: Two) -> None:
    """Capture takes no lock of its own on rows: NOWAIT fails exactly where it did before."""
    two.first.execute("update account set balance = 1 where id = 1")
    two.second.execute("select * from account where id = 2 for update nowait")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        two.second.execute("select * from account where id = 1 for update nowait")
