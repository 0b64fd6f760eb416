"""Somebody on the target has a mirrored table, or a row of it, locked: the others wait a while for it, and no longer."""

from contextlib import closing

import psycopg
import pytest

from daemon.progress import Timing
from tests.integration.test_out_emitted import on_target
from tests.pairs import Pair
from tests.security.relayed import turned_until
from tests.security.tenants import Tenants
from tests.waiting import wait_until

SOON = Timing(poll=0.02, recheck=0.05, retry_first=0.01, retry_cap=0.05, letters=0.0)
LETTERS = "select sqlstate from outbox.held where sqlstate is not null"


@pytest.fixture
def slow(pair: Pair) -> Pair:
    """A table with a constraint, one that refers to it, and a neighbour; locks are waited for no longer than 200 ms."""
    pair.create("create table slow (id int primary key, v int check (v < 99))", "slow")
    pair.create("create table child (id int primary key, slow_id int references slow)", "child")
    pair.create("create table item (id int primary key)", "item")
    with pair.target.connect() as conn:
        conn.execute("alter function public.outboxd(text) set lock_timeout = '200ms'")
    pair.write("insert into slow values (1, 1), (2, 1)")
    return pair


def letters(pair: Pair) -> list[tuple[object, ...]]:
    with pair.source.connect() as conn:
        return conn.execute(LETTERS.encode()).fetchall()


def there(pair: Pair, query: str) -> list[tuple[object, ...]]:
    return pair.rows(query)[1]


@pytest.mark.parametrize("mode", ["access exclusive", "share"])
async def test_whoever_locks_a_mirror_is_named_and_stops_no_other_table(slow: Pair, mode: str) -> None:
    async with slow.relay(timing=SOON) as parts:
        await turned_until(parts, lambda: there(slow, "select count(*) from slow") == [(2,)])
        with psycopg.connect(slow.target.dsn) as holder:
            holder.execute(f"lock table slow in {mode} mode".encode())
            slow.write("update slow set v = 2", "insert into child values (1, 1)", "insert into item values (1)")
            await turned_until(parts, lambda: there(slow, "select count(*) from item") == [(1,)])
            reason = str(parts.relay.copier.copies["public.slow"].reason)
            assert f"process {holder.info.backend_pid} (role {holder.info.user}): select pg_terminate_backend" in reason
            slow.write("update slow set v = 3", "insert into item values (2)")
            await turned_until(parts, lambda: there(slow, "select count(*) from item") == [(2,)])
        await turned_until(parts, lambda: not parts.relay.copier.out and not parts.relay.copier.asked)
        await turned_until(parts, lambda: there(slow, "select count(*) from child") == [(1,)])
    slow.assert_equal("slow", "child", "item")
    assert letters(slow) == []


async def test_whoever_waits_for_a_lock_is_named_and_no_row_is_blamed(slow: Pair) -> None:
    """One session reads the mirror and stays, another one asks for a lock: whoever comes later waits behind."""
    async with slow.relay(timing=SOON) as parts:
        await turned_until(parts, lambda: there(slow, "select count(*) from slow") == [(2,)])
        with closing(psycopg.connect(slow.target.dsn)) as holder, closing(psycopg.connect(slow.target.dsn)) as waiter:
            holder.execute("select from slow")
            waiter.pgconn.send_query(b"begin; lock table slow in access exclusive mode")
            slow.write("update slow set v = 2", "insert into item values (1)")
            await turned_until(parts, lambda: there(slow, "select count(*) from item") == [(1,)])
            assert f"process {waiter.info.backend_pid} " in str(parts.relay.copier.copies["public.slow"].reason)
            assert letters(slow) == []
            holder.rollback()
        await turned_until(parts, lambda: not parts.relay.copier.out and not parts.relay.copier.asked)
    slow.assert_equal("slow", "item")


async def test_a_locked_row_waits_alone_and_goes_once_it_may(slow: Pair) -> None:
    async with slow.relay(timing=SOON) as parts:
        await turned_until(parts, lambda: there(slow, "select count(*) from slow") == [(2,)])
        with psycopg.connect(slow.target.dsn) as holder:
            holder.execute("update slow set v = 2 where id = 1")
            slow.write("update slow set v = 3", "insert into item values (1)")
            await turned_until(parts, lambda: there(slow, "select count(*) from item") == [(1,)])
            assert letters(slow) == [("55P03",)]
            assert there(slow, "select v from slow where id = 2") == [(3,)]
            assert not parts.relay.copier.out
        await turned_until(parts, lambda: not letters(slow))
    slow.assert_equal("slow", "item")


async def test_a_lock_that_is_let_go_in_time_makes_no_letter(slow: Pair) -> None:
    async with slow.relay(timing=SOON) as parts:
        await turned_until(parts, lambda: there(slow, "select count(*) from slow") == [(2,)])
        for lock in ("update slow set v = 2 where id = 1", "lock table slow in access exclusive mode"):
            with psycopg.connect(slow.target.dsn) as holder:
                holder.execute(lock.encode())
                slow.write("update slow set v = v + 3")
                await turned_until(parts, lambda: parts.relay._delivery._locks == 2)
            await turned_until(parts, lambda: parts.relay._delivery._locks == 0)
        assert not parts.relay.copier.out
        assert letters(slow) == []
    slow.assert_equal("slow")


async def test_a_copy_whose_table_is_locked_stops_no_other(slow: Pair) -> None:
    """Also where it looks for rows that the target has too much: nothing is sent then, only asked."""
    async with slow.relay(timing=SOON) as parts:
        await turned_until(parts, lambda: there(slow, "select count(*) from slow") == [(2,)])
        with slow.source.connect() as conn:
            conn.execute("select outbox.ask_copy('slow', true)")
        await turned_until(
            parts,
            lambda: (
                "public.slow" in parts.relay.copier.copies and parts.relay.copier.copies["public.slow"].step == "extra"
            ),
        )
        with psycopg.connect(slow.target.dsn) as holder:
            holder.execute("lock table slow in access exclusive mode")
            slow.write("insert into item values (1)")
            await turned_until(parts, lambda: there(slow, "select count(*) from item") == [(1,)])
        await turned_until(parts, lambda: not parts.relay.copier.asked)
    slow.assert_equal("slow", "item")


def test_a_daemon_that_begins_waits_for_no_locked_mirror(tenants: Tenants) -> None:
    """What it asks of the target's tables it reads of the catalogue alone."""
    tenants.both("create table slow (id int primary key, v int check (v < 9))", "slow")
    with psycopg.connect(tenants.target.dsn) as holder:
        holder.execute("lock table slow in access exclusive mode")
        tenants.run()


def test_a_locked_row_is_told_from_one_that_takes_long(tenants: Tenants) -> None:
    """A wait counts for the statement's timeout: where that is the shorter one it ends the statement."""
    tenants.both("create table slow (id int primary key, v int)", "slow")
    tenants.run()
    tenants.tenant.execute("insert into slow values (1, 1)")
    wait_until(lambda: tenants.there("select count(*) from slow") == [(1,)])
    tenants.mirror.execute("alter function public.outboxd(text) set statement_timeout = '2s'")
    with psycopg.connect(tenants.target.dsn) as holder:
        holder.execute("update slow set v = 2 where id = 1")
        tenants.tenant.execute("update slow set v = 3")
        tenants.flows()
        assert tenants.here(LETTERS) == [("55P03",)]
    wait_until(lambda: tenants.there("select v from slow where id = 1") == [(3,)], 40)


@pytest.mark.parametrize(
    ("lock", "letter"),
    [
        ("select from slow where id = 1 for update", [("55P03",)]),
        ("lock table slow in access exclusive mode", []),
    ],
    ids=["row", "table"],
)
async def test_a_locked_parent_is_met_where_constraints_are_checked(
    slow: Pair, lock: str, letter: list[tuple[object, ...]]
) -> None:
    """The mirror's foreign keys are checked at the end of a batch, where it is at no table."""
    async with slow.relay(timing=SOON) as parts:
        await turned_until(parts, lambda: there(slow, "select count(*) from slow") == [(2,)])
        on_target(slow, "alter table child alter constraint child_slow_id_fkey deferrable")
        with psycopg.connect(slow.target.dsn) as holder:
            holder.execute(lock.encode())
            slow.write("insert into child values (1, 1), (2, 2)", "insert into item values (1)")
            await turned_until(parts, lambda: there(slow, "select count(*) from item") == [(1,)])
            assert letters(slow) == letter
            assert parts.relay.copier.out == (set() if letter else {"public.child"})
        await turned_until(parts, lambda: there(slow, "select count(*) from child") == [(2,)])
        await turned_until(parts, lambda: not parts.relay.copier.out)
    slow.assert_equal("slow", "child", "item")
    assert letters(slow) == []


async def test_a_unique_value_that_is_checked_late_and_that_somebody_has_not_committed(pair: Pair) -> None:
    pair.create("create table item (id int primary key)", "item")
    pair.create("create table slow (id int primary key, v int unique deferrable initially deferred)", "slow")
    on_target(pair, "alter function public.outboxd(text) set lock_timeout = '200ms'")
    async with pair.relay(timing=SOON) as parts:
        with psycopg.connect(pair.target.dsn) as holder:
            holder.execute("insert into slow values (9, 1)")
            pair.write("insert into slow values (1, 1), (2, 2)", "insert into item values (1)")
            await turned_until(parts, lambda: there(pair, "select count(*) from item") == [(1,)])
            assert letters(pair) == [("55P03",)]
            holder.rollback()
        await turned_until(parts, lambda: not letters(pair))
    pair.assert_equal("slow", "item")


@pytest.mark.parametrize("lock", ["not deferrable", "deferrable initially deferred"], ids=["at once", "late"])
async def test_a_child_that_is_locked_while_rows_of_its_parent_are_deleted_is_named_and_stops_no_other_table(
    slow: Pair, lock: str
) -> None:
    """The parent's delete looks for children: it waits for the lock on a table that it is not about."""
    slow.write("insert into child values (2, 1)")
    async with slow.relay(timing=SOON) as parts:
        await turned_until(parts, lambda: there(slow, "select count(*) from child") == [(1,)])
        on_target(slow, f"alter table child alter constraint child_slow_id_fkey {lock}")
        with psycopg.connect(slow.target.dsn) as holder:
            holder.execute("lock table child in access exclusive mode")
            slow.write("delete from slow where id = 2", "insert into item values (1)")
            await turned_until(parts, lambda: there(slow, "select count(*) from item") == [(1,)])
            assert parts.relay.copier.out == {"public.slow"}
            reason = str(parts.relay.copier.copies["public.slow"].reason)
            assert f"process {holder.info.backend_pid} (role {holder.info.user}): select pg_terminate_backend" in reason
            assert letters(slow) == []
            slow.write("delete from slow where id = 3", "insert into item values (2)")
            await turned_until(parts, lambda: there(slow, "select count(*) from item") == [(2,)])
        await turned_until(parts, lambda: not parts.relay.copier.out and not parts.relay.copier.asked)
    slow.assert_equal("slow", "child", "item")
    assert letters(slow) == []
