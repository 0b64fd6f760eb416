"""Heartbeats: they take the way of every change, one at a time, counted apart, and stand in nobody's way."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from daemon.batch import Batch, Limits
from daemon.breaker import Breaker, Thresholds
from daemon.errors import TargetError
from daemon.heartbeat import TABLE, Heart
from daemon.progress import Pulse
from daemon.source import Source
from daemon.target import PostgresDoor, Target
from outbox import Cursor
from outbox.migrations import migrations
from tests.databases import Database
from tests.pairs import Pair
from tests.relaying import Connection, Parts, assembled, running, same, until

pytestmark = pytest.mark.usefixtures("tables")

EVERY = 10.0

# Of which transaction each row is. (A row's xmin may be a subtransaction's.)
_NOTE_TRANSACTIONS = """
create table wrote (xid xid8);
create function note_it() returns trigger language plpgsql as $$
begin insert into public.wrote values (pg_current_xact_id()); return null; end $$;
create trigger notes after insert on item for each row execute function note_it();
create trigger notes after insert on outboxd.heartbeat for each row execute function note_it();
"""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Told:
    """The gauges."""

    def __init__(self) -> None:
        self.written: list[float] = []
        self.every: list[float] = []

    def heartbeat_written(self, at: float) -> None:
        self.written.append(at)

    def heartbeat_every(self, seconds: float) -> None:
        self.every.append(seconds)


@dataclass
class Work:
    """A relay that leads, and what has heartbeats written beside it. Nothing runs by itself."""

    parts: Parts
    heart: Heart
    clock: Clock
    told: Told
    leads: bool = True

    @property
    def pulse(self) -> Pulse:
        return self.parts.relay.status.pulse

    async def beat(self) -> None:
        """The next one is due."""
        self.clock.now += EVERY
        await self.heart.step()

    async def drain(self) -> int:
        return await self.parts.relay.drain()

    async def napped(self, times: int) -> None:
        """Wait until the relay has fallen asleep so many times."""
        await until(lambda: self.parts.bell.naps == times)

    def warnings(self) -> list[str]:
        return [line["because"] for line in self.parts.log if line["event"] == "heartbeats_left_out"]


def _all_changes(batch: Batch) -> Batch:
    """What a daemon older than heartbeats makes of a batch."""
    return batch


@asynccontextmanager
async def at_work(source: Database, target: Database, *, claimed: bool = True, **options: Any) -> AsyncIterator[Work]:
    async with assembled(source.dsn, target.dsn, **options) as parts:
        writer, clock, told = Source(source.dsn), Clock(), Told()
        heart = Heart(writer, parts.relay, "main", told, interval=EVERY, leads=lambda: work.leads, clock=clock)
        work = Work(parts, heart, clock, told)
        parts.relay.lead()
        try:
            if claimed:
                await parts.relay.step()
            yield work
        finally:
            await writer.close()


def written(app: Connection) -> int:
    """Heartbeats in the outbox."""
    ((count,),) = app.execute("select count(*) from outbox.change where table_name = %s", (TABLE,)).fetchall()
    return int(count)


def kept(mirror: Connection) -> list[tuple[Any, ...]]:
    """The target's record: whose, when it was written, and whether it arrived after that (one machine, one clock)."""
    return mirror.execute(
        "select relay, extract(epoch from written_at)::float8, arrived_at >= written_at from outboxd.heartbeat order by 1"
    ).fetchall()


def letters(app: Connection) -> list[tuple[Any, ...]]:
    return app.execute("select table_name, key from outbox.held").fetchall()


# The way


async def test_it_arrives_and_nothing_else_counts_it(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    async with at_work(source, target) as work:
        relay = work.parts.relay
        batch_no = relay.status.batch_no
        await work.heart.step()
        assert relay.status.cursor is not None
        waiting, age = await work.parts.source.backlog(relay.status.cursor)
        assert (waiting, age >= 0) == (1, True)  # lag and backlog do count it
        assert await relay.step()
        assert relay.status.batch_no == batch_no + 1
        assert await work.parts.source.backlog(relay.status.cursor) == (0, 0.0)
        assert (relay.status.applied, relay.status.last_applied, work.parts.seen.applied) == (0, None, [])
        assert relay.status.state == "streaming"
        assert kept(mirror) == [("main", pytest.approx(work.told.written[0]), True)]
        assert work.pulse.written == pytest.approx(work.told.written[0])
        assert work.pulse.arrived is not None
        assert work.pulse.seconds is not None
        assert 0 < work.pulse.seconds < 60
        (line,) = [line for line in work.parts.log if line["event"] == "batch_applied"]
        assert (line["log_level"], line["changes"]) == ("debug", 0)
        assert not await relay.step()
    assert work.parts.door.modes == ["cursor", "claim", "apply"]


async def test_it_is_of_one_transaction_with_the_changes_beside_it(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    mirror.execute(_NOTE_TRANSACTIONS)
    async with at_work(source, target) as work:
        app.execute("insert into item values (1, 1), (2, 2)")
        await work.beat()
        app.execute("update item set n = 3 where id = 1")
        assert await work.drain() == 3
        assert work.parts.seen.applied == [(3, "applied")]
        assert work.parts.relay.status.applied == 3
        assert len(kept(mirror)) == 1
        assert mirror.execute("select count(*), count(distinct xid) from wrote").fetchall() == [(3, 1)]
        (line,) = [line for line in work.parts.log if line["event"] == "batch_applied"]
        assert (line["log_level"], line["changes"], line["superseded"]) == ("info", 3, 1)
    assert same(app, mirror)


async def test_one_an_interval_while_each_arrives(source: Database, target: Database, app: Connection) -> None:
    async with at_work(source, target) as work:
        for count in (1, 2, 3):
            await work.beat()
            await work.drain()
            assert written(app) == count
            assert await work.heart.step() == EVERY
        work.clock.now += EVERY / 2
        assert await work.heart.step() == EVERY / 2
        assert written(app) == 3
        work.heart.beat_every(0.0)
        work.clock.now += 100
        assert await work.heart.step() is None
        work.heart.beat_every(2.0)
        assert await work.heart.step() == 2.0
        assert written(app) == 4
    assert work.told.every == [EVERY, 0.0, 2.0]


async def test_an_outage_leaves_one(source: Database, target: Database, app: Connection, mirror: Connection) -> None:
    """However long it lasts, and whoever leads by then: also a process that has not reached the target yet."""
    async with at_work(source, target) as work:
        await work.beat()
        await work.drain()
        for _ in range(50):
            await work.beat()
        assert written(app) == 2
    async with at_work(source, target, claimed=False) as work:
        for _ in range(5):
            await work.beat()
        assert work.parts.relay.stated is None
        assert written(app) == 2
        assert work.pulse.written is not None  # it knows of the one that waits
        app.execute("insert into item values (1, 1)")
        assert await work.drain() == 1
        assert work.pulse.arrived is not None
        await work.beat()
        assert written(app) == 3
    assert len(kept(mirror)) == 1
    assert letters(app) == []


async def test_a_process_that_stopped_in_peace_leaves_the_next_one_free_to_write(
    source: Database, target: Database, app: Connection
) -> None:
    """It has told the source where the target stands: while that is away, the lag of one heartbeat shows it."""
    async with at_work(source, target) as work:
        await work.beat()
        await work.drain()
        await work.parts.relay.note()
    async with at_work(source, target, claimed=False) as work:
        for _ in range(5):
            await work.beat()
        assert written(app) == 2
        waiting, _ = await work.parts.source.backlog(await work.parts.source.remembered_cursor("main"))
        assert waiting == 1


async def test_only_who_leads_writes(source: Database, target: Database, app: Connection) -> None:
    """Neither one that stands by, nor one that was fenced off and does not know it yet."""
    async with at_work(source, target) as work:
        work.leads = False
        assert await work.heart.step() == 1.0
        assert written(app) == 0
        work.leads = True
        app.execute("update outbox.relay set epoch = epoch + 1")
        await work.beat()
        assert written(app) == 0
        app.execute("update outbox.relay set epoch = epoch - 1")
        await work.beat()
        assert written(app) == 1


async def test_another_relays_are_passed(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    async with at_work(source, target) as work:
        app.execute("select outbox.confirm('other', 1, 1, null), outbox.heartbeat('other', 1, '3:3:')")
        app.execute("insert into item values (1, 1)")
        assert await work.drain() == 1
        assert kept(mirror) == []
        assert work.pulse.arrived is None
        await work.beat()
        await work.drain()
        assert [whose for whose, *_ in kept(mirror)] == ["main"]


# Asleep


async def test_it_does_not_keep_the_relay_awake(source: Database, target: Database, app: Connection) -> None:
    """It rings as any writer does, and the relay sleeps again at once: it lingers only after changes."""
    async with at_work(source, target, claimed=False) as work, running(work.parts):
        await work.parts.leading()
        await work.parts.asleep()
        found, armings, naps = work.parts.relay._pace.last_found, work.parts.bell.armings, work.parts.bell.naps
        for count in range(1, 4):
            await work.beat()
            await work.napped(naps + count)
            await work.parts.asleep()
            assert written(app) == count
            assert work.parts.relay._pace.last_found == found
        assert work.parts.bell.armings <= armings + 6  # each: perhaps once while the batch was still on its way
        assert work.parts.seen.woken_by.count("notify") == 3
        assert work.pulse.arrived is not None


# In nobody's way


async def test_older_sql_on_the_target_means_none_and_one_line_says_so(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """One that was written before is passed, with changes and alone; once the table is there, they begin."""
    async with at_work(source, target) as work:
        await work.beat()
    mirror.execute("drop table outboxd.heartbeat")
    async with at_work(source, target) as work:
        app.execute("insert into item values (1, 1)")
        assert await work.drain() == 1
        for _ in range(5):
            await work.beat()
        assert work.warnings() == ["the target's schema knows none"]
        assert written(app) == 1
        assert (work.pulse.taken, work.pulse.arrived) == (False, None)
        mirror.execute(next(m.sql for m in migrations("target") if m.name == "heartbeat").encode())
        work.parts.relay.lead()
        assert await work.drain() == 0
        await work.beat()
        await work.drain()
        assert len(kept(mirror)) == 1
    assert same(app, mirror)
    assert letters(app) == []
    assert mirror.execute("select * from outboxd.copy where state = 'out'").fetchall() == []


async def test_older_sql_on_the_source_means_none_and_one_line_says_so(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    app.execute("drop function outbox.heartbeat(text, bigint, text)")
    async with at_work(source, target) as work:
        for _ in range(5):
            await work.beat()
        (because,) = work.warnings()
        assert "is its schema of this version? Run `outboxd setup source`; see `outboxd check`" in because
        app.execute("insert into item values (1, 1)")
        assert await work.drain() == 1
    assert same(app, mirror)


async def test_an_older_daemon_that_takes_over_goes_on_past_it(
    source: Database, target: Database, app: Connection, mirror: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds a change of a table that nobody mapped: that is out, rows flow, and nothing of it stays on the target."""
    async with at_work(source, target) as work:
        await work.beat()
    with monkeypatch.context() as older:
        older.setattr("daemon.relay.apart", _all_changes)
        async with at_work(source, target) as work:
            app.execute("insert into item values (1, 1)")
            await work.drain()
            assert [line["table"] for line in work.parts.log if line["event"] == "table_out"] == [TABLE]
    assert same(app, mirror)
    assert letters(app) == []
    assert mirror.execute("select table_name, state from outboxd.copy").fetchall() == [("public.item", "done")]
    async with at_work(source, target) as work:
        await work.beat()
        await work.drain()
        assert work.pulse.arrived is not None
        assert work.parts.relay.copier.out == set()


# What another session does, and whether it lets go at once.
_TROUBLES = {
    "locked": ("lock table outboxd.heartbeat in access exclusive mode", False),
    "read-only for a while": ("lock table outboxd.heartbeat in share mode", False),
    "its row locked": ("select from outboxd.heartbeat for update", False),
    "renamed": ("alter table outboxd.heartbeat rename to gone", True),
    "checked": ("alter table outboxd.heartbeat add check (relay <> 'main') not valid", True),
    "a trigger that asks for a retry": (
        (
            "create function outboxd.again() returns trigger language plpgsql as $$ begin raise sqlstate '40001'; end $$;"
            "create trigger again before insert or update on outboxd.heartbeat for each row execute function outboxd.again()"
        ),
        True,
    ),
}


@pytest.mark.parametrize("trouble", list(_TROUBLES))
async def test_whatever_is_the_matter_with_its_table_rows_flow(
    source: Database, target: Database, app: Connection, mirror: Connection, trouble: str
) -> None:
    """At once: nobody waits for a lock on it. What could not be kept has not arrived, and one line says so."""
    statements, lets_go = _TROUBLES[trouble]
    async with at_work(source, target) as work:
        await work.beat()
        await work.drain()
        arrived = work.pulse.arrived
        with psycopg.connect(target.superuser_dsn) as other:
            other.execute(statements.encode())
            if lets_go:
                other.commit()
            for n in range(3):
                await work.beat()
                app.execute("insert into item values (%s, 1)", (n,))
                assert await work.drain() == 1
            assert same(app, mirror)
            assert (work.pulse.refused, work.pulse.arrived) == (True, arrived)
            assert work.warnings() == ["the target cannot keep them in outboxd.heartbeat"]
            assert (work.parts.relay.status.state, work.parts.seen.failures) == ("streaming", [])
            took = [line["duration_s"] for line in work.parts.log if line["event"] == "batch_applied"]
            assert max(took) < 5  # the door waits 6 s for a lock
        if not lets_go:
            await work.beat()
            await work.drain()
            assert arrived is not None
            assert work.pulse.arrived is not None
            assert (work.pulse.refused, work.pulse.arrived > arrived) == (False, True)
    assert letters(app) == []


async def test_a_refused_row_beside_it_is_a_letter_and_it_is_none(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    mirror.execute("alter table memo add check (n <> 13)")
    async with at_work(source, target) as work:
        for n in (1, 13, 2):
            app.execute(f"""select outbox.emit('memo', 'upsert', '{{"id": {n}, "n": {n}}}')""".encode())
            await work.beat()
        assert await work.drain() == 2
        assert letters(app) == [("public.memo", '{"id":13}')]
        assert mirror.execute("select id from memo order by id").fetchall() == [(1,), (2,)]
        assert work.pulse.arrived is not None
        assert len(kept(mirror)) == 1


async def test_a_row_that_halts_holds_it_up_as_it_holds_up_all(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """Its lag tells the truth then; it goes with what is mended."""
    mirror.execute("alter table item add constraint no check (n <> 13)")
    async with at_work(source, target) as work:
        app.execute("insert into item values (1, 13)")
        for _ in range(3):
            await work.beat()
            with pytest.raises(TargetError):
                await work.drain()
        assert written(app) == 1
        assert work.pulse.arrived is None
        mirror.execute("alter table item drop constraint no")
        assert await work.drain() == 1
        assert work.pulse.arrived is not None


@pytest.mark.parametrize("changes", [1, 2, 5000])
async def test_small_batches_and_many_heartbeats(
    source: Database, target: Database, app: Connection, mirror: Connection, changes: int
) -> None:
    """As after a rebase: many in one window. The last is what the target ends with."""
    async with at_work(source, target, claimed=False, limits=Limits(changes=changes)) as work:
        app.execute("select outbox.confirm('main', 1, 1, null)")
        for n in range(4):
            app.execute("select outbox.heartbeat('main', 0, '3:3:')")
            app.execute("update outbox.relay set heartbeat_id = 0")
            app.execute("insert into item values (%s, 1)", (n,))
        assert written(app) == 4
        assert await work.drain() == 4
        ((last,),) = app.execute(
            "select extract(epoch from max(created_at))::float8 from outbox.change where table_name = %s", (TABLE,)
        )
        assert kept(mirror) == [("main", pytest.approx(last, abs=1e-5), True)]
    assert same(app, mirror)


async def test_a_batch_that_was_only_a_heartbeat_says_nothing_of_sizes(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """A target that is slow, or refuses, with nothing but that must not make batches small."""
    async with at_work(source, target) as work:
        work.parts.relay._sizing.slow = 0.0
        await work.beat()
        await work.drain()
        assert work.parts.relay._sizing.changes == 5000
        app.execute("insert into item values (1, 1), (2, 2)")
        await work.drain()
        assert work.parts.relay._sizing.changes == 100, "as small as slowness makes them"


# With the rest


async def test_with_a_first_copy(pair: Pair) -> None:
    pair.create("create table story (id int primary key, n int)", "story")
    with pair.source.connect() as app:
        app.execute("insert into story select n, n from generate_series(1, 500) n")
        app.execute("select outbox.ask_copy('public.story')")
        async with at_work(pair.source, pair.target, limits=Limits(changes=50)) as work:
            relay = work.parts.relay
            turns = 0
            while await relay.step():
                turns += 1
                await work.beat()
                app.execute("update story set n = n + 1 where id = %s", (turns,))
                if turns > 100:
                    pytest.fail("the copy does not end")
                if relay.copier.copies and relay.copier.copies["public.story"].state == "done":
                    break
            await work.drain()
            assert relay.copier.copies["public.story"].state == "done"
            assert work.pulse.arrived is not None
            assert written(app) > 1
        assert letters(app) == []
    pair.assert_equal("story")


async def test_after_a_rebase_they_go_on(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    async with at_work(source, target) as work:
        for n in range(3):
            app.execute("insert into item values (%s, 1)", (n,))
            await work.beat()
            await work.drain()
        await work.beat()
        system = (await work.parts.source.identify()).system
    door = Target(PostgresDoor(target.dsn), "main", Breaker("target", Thresholds()))
    await door.rebase(Cursor.beginning(system), [])
    await door.close()
    async with at_work(source, target) as work:
        assert await work.drain() == 0 or same(app, mirror)
        assert same(app, mirror)
        before = written(app)
        await work.beat()
        await work.drain()
        assert written(app) == before + 1
        assert kept(mirror) == [("main", pytest.approx(work.told.written[-1]), True)]


async def test_they_are_pruned_like_any_change(source: Database, target: Database, app: Connection) -> None:
    async with at_work(source, target) as work:
        reader, relay = work.parts.source, work.parts.relay
        for _ in range(2):
            await work.beat()
            await work.drain()
        assert relay.stated is not None
        assert (await reader.prune(relay.stated.floor_id, 0)).rotated
        for _ in range(20):
            await work.beat()
            await work.drain()
            if (await reader.prune(relay.stated.floor_id, 0)).emptied is not None:
                break
        else:
            pytest.fail("nothing was pruned")
        before = work.pulse.arrived
        await work.beat()
        await work.drain()
        assert before is not None
        assert work.pulse.arrived is not None
        assert work.pulse.arrived > before


# Whose name it is


def test_no_table_can_take_its_name(app: Connection) -> None:
    app.execute("create schema outboxd; create table outboxd.heartbeat (relay text primary key)")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="is the name of outboxd's own heartbeats"):
        app.execute("select outbox.watch('outboxd.heartbeat')")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="that name is outboxd's own"):
        app.execute("select outbox.map('outboxd.heartbeat', array['relay'])")
    with pytest.raises(psycopg.errors.UndefinedTable, match="neither watched nor mapped"):
        app.execute("""select outbox.emit('outboxd.heartbeat', 'upsert', '{"relay": "main"}')""")
