"""Waking up: writers ring only a sleeper, and nothing they commit is missed, with no timer to help.

In most of these the poll timer is off: a wake-up that gets lost leaves the relay asleep for the rest of the test.
"""

import asyncio
import random
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest

from daemon.batch import Batch
from daemon.demo.cluster import Cluster
from daemon.progress import Timing
from daemon.relay import Relay
from daemon.wakeup import Bell
from tests.captured import listen
from tests.databases import SETTINGS, Database, clone, source_template
from tests.pooling import pooled
from tests.relaying import Connection, WatchedBell, assembled, install, running, same, until

pytestmark = pytest.mark.usefixtures("tables")

# K is 1, the leader's lock 2.
LOCKS = """
select case when classid = 1869968483 then 2 else objid::int end as number from pg_locks
 where locktype = 'advisory' and classid in (1869968482, 1869968483) and granted
   and database = (select oid from pg_database where datname = current_database())
 order by number
"""
END_BELL = (
    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'outboxd bell' and datname = %s"
)

_ids = count(1)


def insert(conn: Connection, number: int = 0) -> int:
    """One new row; returns its id."""
    new = next(_ids)
    conn.execute("insert into item values (%s, %s)", (new, number))
    return new


def rows(conn: Connection) -> int:
    found = conn.execute("select count(*) from item").fetchone()
    assert found
    return int(found[0])


# Writers. Each call of a writer is a few commits, and says how many.


class Writer:
    """An application's connections, used by one thread at a time."""

    def __init__(self, dsn: str, seed: int) -> None:
        self._conn = psycopg.connect(dsn, autocommit=True)
        self._other = psycopg.connect(dsn, autocommit=True)
        self._random = random.Random(seed)

    def close(self) -> None:
        self._conn.close()
        self._other.close()

    def burst(self, commits: int) -> int:
        """About so many commits in every manner; exactly how many."""
        done = 0
        while done < commits:
            done += self._random.choice(MANNERS)(self)
        return done

    def plainly(self) -> int:
        """An insert, or an update of a row that all writers want."""
        if self._random.random() < 0.5:
            self._conn.execute("insert into item values (0, 0) on conflict (id) do update set n = item.n + 1")
        else:
            insert(self._conn)
        return 1

    def quickly(self) -> int:
        """A loop on the server that commits twenty times."""
        first = 10_000_000 + 20 * next(_ids)
        self._conn.execute(
            f"do $$ begin for i in {first}..{first + 19} loop insert into item values (i, 0); commit; end loop; end $$"
        )
        return 20

    def in_repeatable_read(self) -> int:
        new = next(_ids)
        self._conn.execute(
            f"begin isolation level repeatable read; insert into item values ({new}, 0);"
            f" update item set n = n + 1 where id = {new}; commit"
        )
        return 1

    def across_others(self) -> int:
        """A transaction that stays open while another one commits."""
        self._conn.execute(f"begin; insert into item values ({next(_ids)}, 0)")
        insert(self._other)
        self._conn.execute("commit")
        return 2

    def by_emit(self) -> int:
        new = next(_ids)
        self._conn.execute(
            f"begin; insert into memo values ({new}, 1);"
            f" select outbox.emit('public.memo', 'upsert', json_build_object('id', {new}, 'n', 1)); commit"
        )
        return 1

    def with_a_savepoint_rolled_back(self) -> int:
        """The savepoint's lock, or its NOTIFY, goes with it; what comes before or after must ring on its own."""
        before = f"insert into item values ({next(_ids)}, 0);" if self._random.random() < 0.5 else ""
        self._conn.execute(
            f"begin; {before} savepoint s; insert into item values ({next(_ids)}, 0); rollback to s;"
            f" insert into item values ({next(_ids)}, 0); commit"
        )
        return 1


MANNERS = [
    Writer.plainly,
    Writer.quickly,
    Writer.in_repeatable_read,
    Writer.across_others,
    Writer.by_emit,
    Writer.with_a_savepoint_rolled_back,
]


@pytest.fixture
def writers(source: Database) -> Iterator[list[Writer]]:
    made = [Writer(source.dsn, seed) for seed in range(4)]
    yield made
    for writer in made:
        writer.close()


async def all_write(writers: list[Writer], commits: int) -> int:
    """All writers at once; returns their commits."""
    return sum(await asyncio.gather(*(asyncio.to_thread(writer.burst, commits) for writer in writers)))


@pytest.mark.slow
async def test_bursts_of_many_writers_are_never_missed_and_hardly_ring(
    source: Database, target: Database, app: Connection, mirror: Connection, writers: list[Writer]
) -> None:
    """20 000 commits in bursts all arrive without a timer, and fewer than one in fifty of them rings."""
    async with assembled(source.dsn, target.dsn) as relay, running(relay):
        done = bursts = 0
        while done < 20_000:
            await relay.asleep()
            done += await all_write(writers, (5, 50, 300, 1500)[bursts % 4])
            await until(lambda: same(app, mirror))
            bursts += 1
        assert relay.bell.naps >= bursts >= 10
        assert set(relay.seen.woken_by) == {"backlog", "notify"}
        assert 0 < relay.bell.rings < done / 50


class Dawdling(WatchedBell):
    """Takes its time before and after it takes K, so that commits fall between."""

    async def try_arm(self) -> bool:
        for _ in range(5):
            await self.ping()
        armed = await super().try_arm()
        for _ in range(3):
            await self.ping()
        return armed


async def test_a_relay_that_sleeps_at_every_chance_misses_nothing(
    source: Database, target: Database, app: Connection, mirror: Connection, writers: list[Writer]
) -> None:
    """It tries for K after every empty read, amid writers, and every commit is read or rings."""
    async with assembled(source.dsn, target.dsn, bell_type=Dawdling) as relay, running(relay):
        relay.eager()
        for burst in range(60):
            if burst % 3 == 0:
                await relay.asleep()
            await all_write(writers[: 1 + burst % 4], 1)
            await until(lambda: same(app, mirror))
        assert relay.bell.naps >= 20
        assert relay.bell.armings > relay.bell.naps  # it also met writers in flight
        assert "poll" not in relay.seen.woken_by


# The step that makes it safe: read again after arming


class Interrupted(WatchedBell):
    """Lets one transaction commit after the relay's empty read and before it gets K."""

    commit: Connection | None = None

    async def try_arm(self) -> bool:
        if self.commit is not None:
            conn, self.commit = self.commit, None
            insert(conn)
        return await super().try_arm()


class Careless(Relay):
    """Takes K and goes to sleep without looking again."""

    async def _read(self) -> Batch | None:
        return None if self._bell.armed else await super()._read()


@pytest.mark.parametrize("relay_type", [Relay, Careless])
async def test_a_commit_just_before_arming_is_found_by_the_read_after_it(
    source: Database, target: Database, app: Connection, mirror: Connection, relay_type: type[Relay]
) -> None:
    """A commit between read and arm rings nobody: the read after arming finds it, and without that it is missed."""
    async with assembled(source.dsn, target.dsn, bell_type=Interrupted, relay_type=relay_type) as relay, running(relay):
        await relay.asleep()
        assert isinstance(relay.bell, Interrupted)
        relay.bell.commit = app
        relay.bell.ring()  # wakes it; the turn that follows is the interrupted one
        naps = relay.bell.naps
        await until(lambda: relay.bell.naps > naps and relay.bell.asleep.is_set())
        assert relay.bell.rings == 0
        if relay_type is Careless:
            assert rows(mirror) == 0
            insert(app)  # rings
        await until(lambda: same(app, mirror))


class Disturbed(Relay):
    """Lets one transaction commit, and its ring arrive, around the read after arming."""

    commit: Callable[[], int]
    before = False

    async def _read(self) -> Batch | None:
        if self.before:
            await self._disturb()
        batch = await super()._read()
        await self._disturb()
        return batch

    async def _disturb(self) -> None:
        if self._bell.armed and self._bell.rings == 0:
            self.commit()
            await until(lambda: self._bell.rings == 1)


@pytest.mark.parametrize("before", [True, False])
async def test_a_ring_that_comes_around_the_read_after_arming_is_heard(
    source: Database, target: Database, app: Connection, mirror: Connection, before: bool
) -> None:
    """A commit after arming rings; if the read no longer saw it, the ring ends the nap before it begins."""
    async with assembled(source.dsn, target.dsn, relay_type=Disturbed) as relay:
        assert isinstance(relay.relay, Disturbed)
        relay.relay.before = before
        relay.relay.commit = lambda: insert(app)
        async with running(relay):
            await until(lambda: relay.bell.rings == 1)
            await until(lambda: rows(mirror) == 1)


# What keeps the relay awake


async def test_a_long_writer_keeps_the_relay_awake_but_holds_up_nobody(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """While a transaction that found the relay awake is open, nobody needs to ring and others' commits still flow."""
    async with assembled(source.dsn, target.dsn) as relay, running(relay):
        await relay.asleep()
        with source.connect() as holder:
            insert(app)
            await until(lambda: not relay.bell.armed and rows(mirror) == 1)
            with holder.transaction():
                held = insert(holder)
                refused, naps, rings = relay.bell.refusals, relay.bell.naps, relay.bell.rings
                await until(lambda: relay.bell.refusals > refused + 3)
                for _ in range(5):
                    insert(app)
                    await until(lambda: rows(mirror) == rows(app))
                assert mirror.execute("select from item where id = %s", (held,)).fetchall() == []
                assert (relay.bell.naps, relay.bell.rings) == (naps, rings)
            await until(lambda: same(app, mirror))
        await relay.asleep()
    assert "poll" not in relay.seen.woken_by


async def test_with_wake_poll_nobody_is_ever_made_to_notify(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """The setting `poll` never takes K, so no writer notifies, and changes arrive all the same."""
    async with assembled(source.dsn, target.dsn, timing=Timing(wake="poll", poll=0.01)) as relay, running(relay):
        for _ in range(5):
            insert(app)
            await until(lambda: same(app, mirror))
        relay.eager()
        turns = relay.relay.turns
        await until(lambda: relay.relay.turns > turns + 5)
        assert (relay.bell.armings, relay.bell.rings) == (0, 0)


async def test_where_transactions_are_prepared_the_relay_polls_unless_told(
    run_folder: Path, target: Database, mirror: Connection
) -> None:
    """A captured write can be PREPAREd because `auto` never takes K there; under `notify` it fails while it sleeps."""
    settings = SETTINGS | {"max_prepared_transactions": "5"}
    with (
        Cluster.create(run_folder / "prepared-wakeup", settings=settings) as cluster,
        clone(source_template(cluster)) as source,
    ):
        with target.connect() as again:
            again.execute("drop table item, memo")
        install(source, target)
        with source.connect() as app:
            async with assembled(source.dsn, target.dsn, timing=Timing(poll=0.01)) as relay, running(relay):
                relay.eager()
                await relay.leading()
                app.execute("begin; insert into item values (1, 1); prepare transaction 'first'")
                turns = relay.relay.turns
                await until(lambda: relay.relay.turns > turns + 5)
                assert rows(mirror) == 0
                app.execute("commit prepared 'first'")
                await until(lambda: same(app, mirror) and rows(mirror) == 1)
                assert (relay.bell.armings, relay.bell.rings) == (0, 0)
            timing = Timing(poll=3600, wake="notify")
            async with assembled(source.dsn, target.dsn, timing=timing) as told, running(told):
                await told.asleep()
                app.execute("begin; insert into item values (2, 2)")
                with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
                    app.execute("prepare transaction 'second'")


async def test_an_idle_relay_asks_the_target_nothing(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """Its timer and commits of tables nobody watches make it read the source, never call the target."""
    app.execute("create table other (id int)")
    async with assembled(source.dsn, target.dsn, timing=Timing(poll=0.01)) as relay, running(relay):
        await until(lambda: relay.seen.woken_by.count("poll") >= 5)
        for _ in range(5):
            app.execute("insert into other values (1)")
            relay.seen.woken_by.clear()
            await until(lambda: "poll" in relay.seen.woken_by)
    assert relay.door.modes == ["cursor", "claim"]


# The listening connection


async def test_a_terminated_listener_comes_back_and_nothing_is_missed(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """Losing the bell's connection ends leadership at once; the keeper wins it again and what came between arrives."""
    async with assembled(source.dsn, target.dsn) as relay, running(relay):
        for epoch in (1, 2):
            await relay.asleep()
            assert relay.relay.status.epoch == epoch
            relay.led.clear()
            app.execute(END_BELL, (source.name,))
            await until(lambda: (False, False) in relay.led)
            insert(app)
            await until(lambda: same(app, mirror))
            assert relay.led[-1] == (True, True)
            await relay.asleep()
            rings = relay.bell.rings
            insert(app)  # rings on the new connection
            await until(lambda: same(app, mirror))
            assert relay.bell.rings > rings
    assert "poll" not in relay.seen.woken_by


async def test_a_direct_connection_is_not_taken_for_a_pooler(source: Database) -> None:
    """Two connections to Postgres itself are two server processes."""
    bell = Bell(source.dsn)
    await bell.connect()
    assert not bell.pooled
    await bell.close()


@pytest.mark.parametrize("servers", [1, 2])
async def test_behind_a_transaction_pooler_the_relay_locks_nothing_and_polls(
    source: Database, target: Database, app: Connection, mirror: Connection, servers: int
) -> None:
    """A pooler is recognised before a lock is taken that it would hand to a stranger; changes arrive by polling."""
    timing = Timing(poll=0.01)
    async with pooled(source.dsn, servers) as dsn, assembled(dsn, target.dsn, timing=timing) as relay, running(relay):
        await relay.leading()
        assert relay.bell.pooled
        relay.eager()
        for _ in range(5):
            insert(app)
            await until(lambda: same(app, mirror))
        assert app.execute(LOCKS).fetchall() == []
        assert relay.bell.rings == 0


# A frozen process


_HOLDS_BOTH_LOCKS = """
import asyncio, sys
from daemon.wakeup import Bell

async def main():
    bell = Bell(sys.argv[1])
    await bell.connect()
    assert await bell.try_lead() and await bell.try_arm()
    print("ready", flush=True)
    while True:
        await bell.wait(3)
        await bell.ping()

asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_frozen_process_loses_both_locks(source: Database, app: Connection) -> None:
    """Takes 10 to 12 s: proves that a stopped process, which closes nothing, neither makes writers NOTIFY for ever
    nor keeps others from leading, because the server drops a connection that has stopped pinging.
    """
    frozen = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOLDS_BOTH_LOCKS, source.dsn, stdout=asyncio.subprocess.PIPE
    )
    with source.connect() as listener:
        listen(listener)

        def notified(patience: float = 0) -> bool:
            insert(app)
            return bool(list(listener.notifies(timeout=patience, stop_after=1)))

        second = Bell(source.dsn)
        try:
            assert frozen.stdout
            assert await frozen.stdout.readline() == b"ready\n"
            frozen.send_signal(signal.SIGSTOP)
            assert notified(10)
            assert app.execute(LOCKS).fetchall() == [(1,), (2,)]
            await second.connect()
            assert not await second.try_lead()
            async with asyncio.timeout(15):
                while app.execute(LOCKS).fetchall():
                    await second.ping()
                    await second.wait(0.1)
            assert not notified()
            assert await second.try_lead()
        finally:
            await second.close()
            frozen.kill()
            await frozen.wait()
