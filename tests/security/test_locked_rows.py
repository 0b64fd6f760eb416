"""Somebody on the target has rows of a mirror locked, many at once or one after the other: the others wait for none of them anew."""

from dataclasses import dataclass

import psycopg
import pytest

from daemon.progress import Timing
from tests.integration.test_out_emitted import on_target
from tests.pairs import Pair, Parts
from tests.security.relayed import turned_until

SOON = Timing(poll=0.02, recheck=0.05, retry_first=0.01, retry_cap=0.05, letters=0.0)
LETTERS = "select sqlstate from outbox.held where sqlstate is not null"


@pytest.fixture
def slow(pair: Pair) -> Pair:
    """A table of 400 rows, a neighbour, and locks that are waited for no longer than 200 ms."""
    pair.create("create table slow (id int primary key, v int)", "slow")
    pair.create("create table item (id int primary key)", "item")
    on_target(pair, "alter function public.outboxd(text) set lock_timeout = '200ms'")
    pair.write("insert into slow select n, 1 from generate_series(1, 400) n")
    return pair


@dataclass
class Out:
    """Has the table been out? It is tried again soon."""

    parts: Parts
    reason: str = ""

    def seen(self) -> bool:
        copy = self.parts.relay.copier.copies.get("public.slow")
        if copy is not None and copy.state == "out":
            self.reason = str(copy.reason)
        return bool(self.reason)


def letters(pair: Pair) -> list[object]:
    with pair.source.connect() as conn:
        return [state for (state,) in conn.execute(LETTERS.encode())]


def there(pair: Pair, query: str) -> object:
    return pair.rows(query)[1][0][0]


async def test_the_rows_of_a_statement_that_are_locked_are_waited_for_together(slow: Pair) -> None:
    """One after the other they took 0.4 s each, and the batch was halved at 12 s each: 400 of them 269 s."""
    async with slow.relay(timing=SOON) as parts:
        await turned_until(parts, lambda: there(slow, "select count(*) from slow") == 400)
        with psycopg.connect(slow.target.dsn) as holder:
            holder.execute("select from slow where id > 10 for update")
            slow.write("update slow set v = 3", "insert into item values (1)")
            await turned_until(parts, lambda: there(slow, "select count(*) from item") == 1)
            assert there(slow, "select count(*) from slow where v = 3") == 10
            assert letters(slow) == ["55P03"] * 390
            assert not parts.relay.copier.out
            assert parts.relay._sizing.changes >= 400, "no batch was halved"
        await turned_until(parts, lambda: not letters(slow))
    slow.assert_equal("slow", "item")


@pytest.mark.parametrize(
    ("made", "lock", "change"),
    [
        (
            "alter table slow add foreign key (v) references parent deferrable initially immediate",
            "select from parent for update",
            "update slow set v = id + 2",
        ),
        (
            "alter table slow add unique (v) deferrable initially immediate",
            "insert into slow select n, -n from generate_series(1001, 1100) n",
            "update slow set v = -1000 - id",
        ),
        (
            "alter table child add foreign key (id) references slow on delete cascade",
            "select from slow for update",
            "delete from slow",
        ),
    ],
    ids=["parents", "unique values", "children that go along"],
)
async def test_however_they_are_met(pair: Pair, made: str, lock: str, change: str) -> None:
    """Of a hundred rows: those that they refer to, values that somebody has not committed, deletes that a foreign key follows."""
    for create in ("slow (id int primary key, v int)", "item (id int primary key)", "child (id int primary key)"):
        pair.create(f"create table {create}", create.partition(" ")[0])
    on_target(
        pair, "create table parent (id int primary key)", "insert into parent select generate_series(-1, 200)", made
    )
    on_target(pair, "alter function public.outboxd(text) set lock_timeout = '200ms'")
    pair.write("insert into slow select n, n from generate_series(1, 100) n")
    async with pair.relay(timing=SOON) as parts:
        await turned_until(parts, lambda: there(pair, "select count(*) from slow") == 100)
        with psycopg.connect(pair.target.dsn) as holder:
            holder.execute(lock.encode())
            pair.write(change, "insert into item values (1)")
            await turned_until(parts, lambda: there(pair, "select count(*) from item") == 1)
            assert letters(pair) == ["55P03"] * 100
            assert not parts.relay.copier.out
            holder.rollback()
        await turned_until(parts, lambda: not letters(pair), 40)
    pair.assert_equal("slow", "item")


async def test_a_table_with_very_many_locked_rows_is_out(slow: Pair) -> None:
    """To find each of them takes a millisecond, too."""
    slow.write("insert into slow select n, 1 from generate_series(401, 1200) n")
    async with slow.relay(timing=SOON) as parts:
        await turned_until(parts, lambda: there(slow, "select count(*) from slow") == 1200)
        with psycopg.connect(slow.target.dsn) as holder:
            holder.execute("select from slow for update")
            slow.write("update slow set v = 3", "insert into item values (1)")
            why = Out(parts)
            await turned_until(parts, lambda: why.seen() and there(slow, "select count(*) from item") == 1)
            assert "pg_locks" in why.reason
            assert letters(slow) == []
        await turned_until(parts, lambda: not parts.relay.copier.out and not parts.relay.copier.asked)
    slow.assert_equal("slow", "item")


async def test_locked_rows_that_come_one_after_the_other_are_their_tables_matter(slow: Pair) -> None:
    """Three batches were waited for each of them, without end."""
    async with slow.relay(timing=SOON) as parts:
        await turned_until(parts, lambda: there(slow, "select count(*) from slow") == 400)
        tried, why = list[int](), Out(parts)
        with psycopg.connect(slow.target.dsn) as holder:
            holder.execute("select from slow for update")
            for n in range(1, 7):
                slow.write(f"update slow set v = 3 where id = {n}", f"insert into item values ({n})")
                waits = {parts.relay._delivery._locks}

                def done(n: int = n, waits: set[int] = waits) -> bool:
                    waits.add(parts.relay._delivery._locks)
                    return why.seen() == (n > 3) and there(slow, "select count(*) from item") == n

                await turned_until(parts, done, 60)
                tried.append(max(waits))
            assert len(letters(slow)) == 3
        assert min(tried[:3]) >= 2
        assert max(tried[3:]) < 2
        await turned_until(parts, lambda: not parts.relay.copier.out and not parts.relay.copier.asked)
        await turned_until(parts, lambda: not letters(slow))
    slow.assert_equal("slow", "item")
