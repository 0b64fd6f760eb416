"""The relay's turn: what it asks, what it forgets, what it says, and how it ends."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psycopg
import pytest

from daemon.batch import Batch, Limits
from daemon.breaker import Breaker, BreakerOpen, State, Thresholds
from daemon.errors import Fenced, Kind, SourceUnavailable, TargetError
from daemon.plan import Plan
from daemon.progress import Timing
from daemon.target import Answer
from tests.databases import Database
from tests.relaying import Connection, Recorder, assembled, running, same, until, within

pytestmark = pytest.mark.usefixtures("tables")

PERSON = Timing(poll=0.05, recheck=0.05)


def write(conn: Connection, *ids: int) -> None:
    conn.cursor().executemany("insert into item values (%s, 0)", [(new,) for new in ids])


def count_writes(mirror: Connection) -> None:
    """From now on the mirror's table counts every row written to it."""
    mirror.execute("create table written (id int)")
    mirror.execute("create function count_it() returns trigger language plpgsql security definer as"
                   " $$ begin insert into public.written values (new.id); return null; end $$")  # fmt: skip
    mirror.execute("create trigger counts after insert or update on item for each row execute function count_it()")


def written(mirror: Connection) -> list[int]:
    return [row[0] for row in mirror.execute("select id from written order by id")]


def batch_no(mirror: Connection) -> int:
    row = mirror.execute("select batch_no from outboxd.cursor").fetchone()
    assert row
    return int(row[0])


# One turn


async def test_one_claim_then_only_batches(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """A term of leadership claims once; from then on each batch is one request, and an empty window none."""
    async with assembled(source.dsn, target.dsn) as parts:
        parts.relay.lead()
        assert not await parts.relay.step()
        assert parts.door.modes == ["cursor", "claim"]
        app.execute("create table other (id int)")
        for batch in (1, 2, 3):
            app.execute("insert into other values (1)")
            assert not await parts.relay.step()
            assert not await parts.relay.step()
            write(app, batch)
            assert await parts.relay.step()
            assert not await parts.relay.step()
        assert parts.door.modes == ["cursor", "claim", "apply", "apply", "apply"]
        parts.relay.lead()
        assert not await parts.relay.step()
        assert parts.door.modes[5:] == ["cursor", "claim"]
        assert parts.relay.status.epoch == 2
    assert same(app, mirror)


async def test_the_status_counts_what_the_target_confirmed(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """Changes, batches, cursor and delay in the status are those of the batches that were applied."""
    async with assembled(source.dsn, target.dsn, limits=Limits(changes=3)) as parts:
        status = parts.relay.status
        parts.relay.lead()
        assert not await parts.relay.step()
        assert (status.applied, status.batch_no, status.epoch, status.last_applied) == (0, 0, 1, None)
        write(app, 1, 2, 3, 4)
        app.execute("update item set n = 1 where id = 4")
        assert await parts.relay.step()
        assert (status.applied, status.batch_no, status.state) == (3, 1, "catching_up")
        assert status.behind_seconds > 0
        assert await parts.relay.step()
        assert (status.applied, status.batch_no, status.state) == (5, 2, "streaming")
        assert status.last_applied
        answer = await parts.target.cursor()
        assert status.cursor == answer.standing.cursor
        assert not await parts.relay.step()
        assert status.behind_seconds == 0
        assert parts.seen.applied == [(3, "applied"), (2, "applied")]
    assert same(app, mirror)


async def test_two_batches_are_on_their_way_at_once_and_no_more(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """In a train the second is sent before the first is answered, the third is not; a single step sends one."""
    count_writes(mirror)
    async with assembled(source.dsn, target.dsn, limits=Limits(changes=2)) as parts:
        parts.relay.lead()
        for new in range(1, 13):
            write(app, new)
        assert await parts.relay.step()
        assert (parts.door.modes.count("apply"), batch_no(mirror)) == (1, 1)
        parts.door.gate.clear()
        train = asyncio.create_task(parts.relay.step(4))
        await until(lambda: parts.door.modes.count("apply") == 3 and parts.relay._ahead is not None)
        parts.door.gate.set()
        assert await within(10, train)
        # Let go at the same moment the second may come first: then it is answered `mismatch`, and sent again.
        assert (parts.door.modes.count("apply"), len(parts.relay._flights)) == (5, 0)
        assert batch_no(mirror) in {3, 5}
        await parts.relay.drain()
    assert written(mirror) == list(range(1, 13))
    assert same(app, mirror)


async def test_the_second_on_its_way_is_not_counted_when_the_first_is_lost(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """The answer to the first of two is lost: both are asked about, nothing is written twice, nothing is left out."""
    count_writes(mirror)
    async with assembled(source.dsn, target.dsn, limits=Limits(changes=2)) as parts:
        parts.relay.lead()
        for new in range(1, 13):
            write(app, new)
        assert await parts.relay.step()
        parts.door.lose = 1
        with pytest.raises(TargetError) as failed:
            await parts.relay.step(4)
        assert (failed.value.kind, len(parts.relay._flights)) == (Kind.AMBIGUOUS, 0)
        await parts.relay.drain()
    assert written(mirror) == list(range(1, 13))
    assert same(app, mirror)


async def test_after_a_lost_answer_the_target_is_asked_and_nothing_is_sent_twice(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """A batch whose answer got lost is found applied, and the next one is a new batch with only what came after."""
    count_writes(mirror)
    async with assembled(source.dsn, target.dsn) as parts:
        parts.relay.lead()
        write(app, 1, 2)
        parts.door.lose = 1
        with pytest.raises(TargetError) as failed:
            await parts.relay.step()
        assert failed.value.kind is Kind.AMBIGUOUS
        write(app, 3)
        assert await parts.relay.step()
        assert parts.door.modes == ["cursor", "claim", "apply", "cursor", "apply"]
        assert (written(mirror), batch_no(mirror)) == ([1, 2, 3], 2)
        parts.door.lose = 1
        write(app, 4)
        with pytest.raises(TargetError):
            await parts.relay.step()
        assert not await parts.relay.step()
        assert parts.door.modes[5:] == ["apply", "cursor"]
        assert written(mirror) == [1, 2, 3, 4]
        assert parts.relay.status.batch_no == 3


async def test_whatever_fails_the_cursor_is_forgotten(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """After a refusal, a lost source, or a cancelled turn the next turn asks the target before it sends anything."""
    async with assembled(source.dsn, target.dsn) as parts:
        parts.relay.lead()
        assert not await parts.relay.step()

        mirror.execute("alter table item add constraint small check (id < 10)")
        write(app, 10)
        with pytest.raises(TargetError):
            await parts.relay.step()
        assert parts.relay._cursor is None
        mirror.execute("alter table item drop constraint small")
        assert await parts.relay.step()
        assert parts.door.modes == ["cursor", "claim", "apply", "isolate", "cursor", "apply"]

        assert parts.source._session.conn is not None
        app.execute("select pg_terminate_backend(%s)", (parts.source._session.conn.info.backend_pid,))
        write(app, 11)
        with pytest.raises(SourceUnavailable):
            await parts.relay.step()
        assert await parts.relay.step()
        assert parts.door.modes[6:] == ["cursor", "apply"]

        parts.door.gate.clear()
        parts.door.reached.clear()
        write(app, 12)
        turn = asyncio.create_task(parts.relay.step())
        await within(10, parts.door.reached.wait())
        turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await turn
        parts.door.gate.set()
        assert await parts.relay.step()
        assert parts.door.modes[8:] == ["apply", "cursor", "apply"]
    assert same(app, mirror)


async def test_a_target_that_stands_elsewhere_is_followed(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """When the target has moved without this relay, its answer says where it stands and the relay goes on from there."""
    async with assembled(source.dsn, target.dsn) as parts:
        parts.relay.lead()
        write(app, 1)
        assert await parts.relay.step()
        mirror.execute("create table before as select * from outboxd.cursor")
        write(app, 2)
        assert await parts.relay.step()
        mirror.execute("delete from item where id = 2")
        mirror.execute(
            "update outboxd.cursor c set (batch_no, digest, cursor) = (select b.batch_no, b.digest, b.cursor from before b)"
        )
        write(app, 3)
        assert await parts.relay.step()
        assert parts.relay.status.applied == 2
        assert parts.seen.applied == [(1, "applied"), (1, "applied")]
        assert await parts.relay.step()
        assert parts.relay.status.batch_no == 2
    assert same(app, mirror)


async def test_a_target_whose_cursor_was_emptied_gets_everything_again(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """A target that was reset under a running relay states no cursor: the relay begins at the beginning."""
    async with assembled(source.dsn, target.dsn) as parts:
        parts.relay.lead()
        write(app, 1)
        assert await parts.relay.step()
        mirror.execute("delete from item")
        mirror.execute("update outboxd.cursor set batch_no = 0, digest = null, cursor = null")
        write(app, 2)
        while await parts.relay.step():
            pass
    assert same(app, mirror)


# What needs a person, and what does not


async def test_fenced_ends_the_run(source: Database, target: Database, app: Connection, mirror: Connection) -> None:
    """Once another relay has claimed the target, the next batch is not applied and the loop ends with an error."""
    async with assembled(source.dsn, target.dsn) as parts, running(parts) as task:
        await parts.asleep()
        mirror.execute("update outboxd.cursor set epoch = epoch + 1")
        write(app, 1)
        with pytest.raises(Fenced):
            await within(10, asyncio.shield(task))
        assert mirror.execute("select from item").fetchall() == []
        assert parts.door.modes == ["cursor", "claim", "apply"]


class Fault(NamedTuple):
    """A target that refuses: how it came, how it goes, and what the relay says of it."""

    broken: str
    mended: str
    kind: Kind
    said: str


FAULTS = [
    Fault(
        "alter table item add constraint small check (id < 0)",
        "alter table item drop constraint small",
        Kind.DATA,
        "public.item is refused because of small (23514)",
    ),
    Fault(
        "alter function public.outboxd(text) rename to gone",
        "alter function public.gone(text) rename to outboxd",
        Kind.CONTRACT,
        "function outboxd is not on the target",
    ),
    Fault(
        "revoke execute on function outboxd(text) from current_user, service_role",
        "grant execute on function outboxd(text) to current_user, service_role",
        Kind.AUTH,
        "may not call function outboxd",
    ),
    Fault(
        "revoke execute on function outboxd.writer_of(outboxd.mirror, json, boolean) from current_user",
        "grant execute on function outboxd.writer_of(outboxd.mirror, json, boolean) to current_user",
        Kind.CONTRACT,
        "function outboxd lacks a right of its own on the target: grant execute on function outboxd.writer_of(outboxd.mirror,json,boolean) to supabase_owner",
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.kind)
async def test_what_needs_a_person_pauses_and_goes_on_once_mended(
    source: Database, target: Database, app: Connection, mirror: Connection, fault: Fault
) -> None:
    """A refusal pauses with a sentence that names its cause, trips no breaker, and ends by itself when that is mended."""
    async with assembled(source.dsn, target.dsn, timing=PERSON) as parts, running(parts):
        status = parts.relay.status
        await until(lambda: status.state == "streaming")
        mirror.execute(fault.broken)
        write(app, 1)
        await until(lambda: len(parts.seen.failures) > 3)
        assert (status.state, status.problem_kind) == ("paused", str(fault.kind))
        assert set(parts.seen.failures) == {str(fault.kind)}
        assert fault.said in str(status.problem)
        assert parts.target.breaker.state is State.CLOSED
        assert parts.seen.states.count("paused") == 1
        mirror.execute(fault.mended)
        await until(lambda: same(app, mirror) and status.state == "streaming")
        assert (status.problem, status.problem_kind) == (None, None)


@contextmanager
def away(database: Database) -> Iterator[None]:
    """The server refuses connections to the database, and ends those of outboxd."""
    with psycopg.connect(database.cluster.dsn(), autocommit=True) as server:
        server.execute(f"alter database {database.name} allow_connections false")
        server.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where datname = %s and application_name like 'outboxd%%'",
            (database.name,),
        )
        yield
        server.execute(f"alter database {database.name} allow_connections true")


async def test_an_open_breaker_lets_nothing_out_before_its_time(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """While the breaker is open no turn sends anything; at its time one probe asks for the cursor and closes it."""
    now = 0.0
    limits = Thresholds(consecutive_failures=2, open_first=10, jitter=0)
    breaker = Breaker("target", limits, clock=lambda: now)
    async with assembled(source.dsn, target.dsn, breaker=breaker) as parts:
        parts.relay.lead()
        assert not await parts.relay.step()
        write(app, 1)
        with away(target):
            for _ in range(2):
                with pytest.raises(TargetError):
                    await parts.relay.step()
        sent = len(parts.door.modes)
        for now in (0.0, 5.0, 9.9):
            with pytest.raises(BreakerOpen) as refused:
                await parts.relay.step()
            assert refused.value.retry_in == pytest.approx(10 - now)
        assert len(parts.door.modes) == sent
        now = 10.0
        assert await parts.relay.step()
        assert parts.door.modes[sent:] == ["cursor", "apply"]
        assert breaker.state is State.CLOSED
    assert same(app, mirror)


async def test_an_outage_of_the_target_passes_without_anybody(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """While the target takes no connections the relay is catching up with a reason, and afterwards it has caught up."""
    timing = Timing(poll=0.05, retry_first=0.01, retry_cap=0.05)
    async with assembled(source.dsn, target.dsn, timing=timing) as parts, running(parts):
        status = parts.relay.status
        await until(lambda: status.state == "streaming")
        with away(target):
            write(app, 1)
            await until(lambda: parts.target.breaker.state is State.OPEN)
            assert (status.state, status.problem_kind) == ("catching_up", "transient")
            assert "safe in the outbox" in str(status.problem)
        await until(lambda: same(app, mirror) and status.state == "streaming")
        assert status.problem is None
        assert set(parts.seen.failures) <= {"transient", "ambiguous"}


# The end


async def test_stop_while_asleep(source: Database, target: Database) -> None:
    """A relay that sleeps with no timer returns as soon as it is told to stop, and gives K back."""
    async with assembled(source.dsn, target.dsn) as parts, running(parts) as task:
        await parts.asleep()
        parts.relay.stop()
        await within(2, task)
        assert not parts.bell.armed


async def test_stop_while_standing_by(source: Database, target: Database) -> None:
    """A relay that never led returns as soon as it is told to stop."""
    async with assembled(source.dsn, target.dsn) as parts:
        task = asyncio.create_task(parts.relay.run())
        await until(lambda: parts.relay.status.state == "standby")
        parts.relay.stop()
        await within(2, task)
        assert parts.door.modes == []


async def test_stop_while_it_waits_out_a_failure(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """A back-off of an hour is not waited out, and nothing more is tried."""
    timing = Timing(poll=3600, retry_first=3600, retry_cap=3600)
    async with assembled(source.dsn, target.dsn, timing=timing) as parts, running(parts) as task:
        await parts.asleep()
        parts.door.lose = 1
        write(app, 1)
        await until(lambda: parts.seen.failures)
        parts.relay.stop()
        await within(2, task)
        assert parts.door.modes == ["cursor", "claim", "apply"]


async def test_stop_in_the_middle_of_a_turn_finishes_it_and_what_is_there(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """What was committed before the stop still goes: the batch on its way, and the one behind it."""
    async with assembled(source.dsn, target.dsn) as parts, running(parts) as task:
        await parts.asleep()
        parts.door.gate.clear()
        write(app, 1)
        await within(10, parts.door.reached.wait())
        write(app, 2)
        parts.relay.stop()
        assert not task.done()
        parts.door.gate.set()
        await within(5, task)
        assert same(app, mirror)
        assert parts.door.modes == ["cursor", "claim", "apply", "apply"]


class Busy(Recorder):
    """An application that writes whenever the relay has caught up."""

    def __init__(self, app: Connection) -> None:
        super().__init__()
        self._app = app

    def batch_applied(self, batch: Batch, plan: Plan, answer: Answer, seconds: float) -> None:
        super().batch_applied(batch, plan, answer, seconds)
        write(self._app, len(self.applied))


async def test_a_stop_does_not_wait_for_a_busy_application(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """An application that never stops writing does not keep a stopped relay going beyond its wind-up time."""
    async with assembled(source.dsn, target.dsn, timing=Timing(poll=3600, wind_up=0.1)) as parts:
        parts.relay._observer = Busy(app)
        async with running(parts) as task:
            await parts.asleep()
            write(app, 0)
            await until(lambda: parts.relay.status.batch_no > 3)
            parts.relay.stop()
            await within(2, task)
    assert not same(app, mirror)


async def test_an_answer_lost_while_running_applies_nothing_twice(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """The loop by itself gets over lost answers: each row is written once, and nothing needs a person."""
    count_writes(mirror)
    timing = Timing(poll=0.05, retry_first=0.01)
    async with assembled(source.dsn, target.dsn, timing=timing) as parts, running(parts):
        await parts.leading()
        for new in range(1, 6):
            parts.door.lose = 1
            write(app, new)
            await until(lambda: same(app, mirror) and parts.door.lose == 0)
        await until(lambda: parts.relay.status.state == "streaming")
    assert written(mirror) == [1, 2, 3, 4, 5]
    assert parts.seen.failures == ["ambiguous"] * 5
    assert "paused" not in parts.seen.states
