"""Money moves between accounts: whatever the batches, the target never shows a sum that the source did not have."""

import random
import threading

import psycopg
import pytest

from daemon.batch import Limits
from tests.databases import Database
from tests.pairs import Pair

ACCOUNTS, EACH = 12, 1000


@pytest.fixture
def pair(pair: Pair) -> Pair:
    pair.create("create table account (id int primary key, balance int not null)", "account")
    pair.write(f"insert into account select n, {EACH} from generate_series(1, {ACCOUNTS}) n")
    return pair


def transfer(database: Database, seed: int, count: int) -> None:
    """Transfers one after another, two or three statements each; rows are locked in id order, so none deadlocks."""
    choose = random.Random(seed)
    with psycopg.connect(database.dsn) as conn:
        for _ in range(count):
            accounts = sorted(choose.sample(range(1, ACCOUNTS + 1), choose.choice((2, 2, 3))))
            amounts = [choose.randrange(1, 50) for _ in accounts[1:]]
            for account, amount in zip(accounts, [-sum(amounts), *amounts], strict=True):
                conn.execute("update account set balance = balance + %s where id = %s", (amount, account))
            conn.commit()


def backlog(pair: Pair, writers: int, count: int) -> None:
    """Transfers of several writers at once, which end before this returns."""
    threads = [threading.Thread(target=transfer, args=(pair.source, seed, count)) for seed in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def balance(conn: psycopg.Connection) -> int:
    row = conn.execute("select sum(balance) from account").fetchone()
    assert row is not None
    return int(row[0])


async def test_the_sum_is_right_after_every_batch(pair):
    """A deep backlog of overlapping transfers, drained seven changes at a time."""
    backlog(pair, writers=4, count=60)
    turns = 0
    async with pair.relay(limits=Limits(changes=7)) as parts:
        with pair.target.connect() as target:
            while await parts.relay.step():
                turns += 1
                if turns > 2:  # the accounts' own insert is larger than a batch
                    assert balance(target) == ACCOUNTS * EACH
    assert turns > 60
    pair.assert_equal("account")


async def test_restarts_in_between_change_nothing(pair):
    """The same with another process after every third batch, which knows nothing but the target's cursor."""
    await pair.drain()
    backlog(pair, writers=3, count=25)
    more = True
    with pair.target.connect() as target:
        while more:
            async with pair.relay(limits=Limits(changes=7)) as parts:
                for _ in range(3):
                    more = await parts.relay.step()
                    assert balance(target) == ACCOUNTS * EACH
    pair.assert_equal("account")


async def test_the_sum_is_right_while_the_writers_write(pair):
    """Read behind transactions that are under way: each window is consistent, and the last one is the truth."""
    await pair.drain()
    threads = [threading.Thread(target=transfer, args=(pair.source, seed, 60)) for seed in range(3)]
    for thread in threads:
        thread.start()
    async with pair.relay(limits=Limits(changes=9)) as parts:
        with pair.target.connect() as target:
            while any(thread.is_alive() for thread in threads):
                await parts.relay.step()
                assert balance(target) == ACCOUNTS * EACH
        await parts.relay.drain()
    for thread in threads:
        thread.join()
    pair.assert_equal("account")
