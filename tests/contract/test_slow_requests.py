"""Requests that overtake each other, or whose answer comes late or never: each change takes effect once."""

import asyncio
from collections.abc import Awaitable

import pytest

from daemon.errors import Fenced, Kind, TargetError
from daemon.relay import Relay
from daemon.source import Source
from daemon.target import Answer
from daemon.wakeup import Bell
from tests.contract.conftest import Deadlines, Stand, at, upserts
from tests.databases import Database
from tests.silent import Silent


async def test_a_slow_request_and_its_successor_take_effect_once(stand: Stand, deadlines: Deadlines) -> None:
    """The first waits in the database, its client gives up and a batch planned anew follows: one of them wins."""
    target = await stand.claimed()
    first, successor = upserts((1, "a"), (2, "b")), upserts((1, "a"), (2, "b"), (3, "c"))
    async with asyncio.TaskGroup() as group:
        with stand.cursor_locked():
            slow = group.create_task(outcome(stand.target().apply(first, at(10), 1, 1)))
            await stand.waiting(1)
            if stand.rest:  # Postgres' own client cancels what it gives up; PostgREST goes on without its client
                deadlines.pass_()
                assert await slow is Kind.AMBIGUOUS
            sent_again = group.create_task(target.apply(successor, at(20), 1, 1))
            await stand.waiting(2)
    answer, standing = await sent_again, (await target.cursor()).standing
    assert answer.standing == standing
    assert (answer.what, standing.cursor) in [("applied", at(20)), ("mismatch", at(10))]
    if answer.what == "mismatch":
        assert (await target.apply(upserts((3, "c")), at(20), 1, 2)).what == "applied"
    assert stand.effects() == [(1, "a"), (2, "b"), (3, "c")]


async def outcome(request: Awaitable[Answer]) -> str:
    """What came of a request, in a word."""
    try:
        return (await request).what
    except TargetError as error:
        return error.kind
    except Fenced:
        return "fenced"


async def test_a_request_given_up_is_asked_about(stand: Stand, deadlines: Deadlines) -> None:
    """The deadline passes while the target works: ambiguous, and the target knows whether it was applied."""
    target = await stand.claimed()
    async with asyncio.TaskGroup() as group:
        with stand.cursor_locked():
            slow = group.create_task(outcome(target.apply(upserts((1, "a")), at(10), 1, 1)))
            await stand.waiting(1)
            deadlines.pass_()
            assert await slow is Kind.AMBIGUOUS
    standing = (await target.cursor()).standing
    assert (standing.cursor == at(10)) is (stand.items() == {1: "a"})


async def test_asking_waits_for_the_request_in_flight(stand: Stand) -> None:
    """The cursor that is told after a lost answer is the one after it, not the one before."""
    target = await stand.claimed()
    async with asyncio.TaskGroup() as group:
        with stand.cursor_locked():
            slow = group.create_task(stand.target().apply(upserts((1, "a")), at(10), 1, 1))
            await stand.waiting(1)
            asked = group.create_task(target.cursor())
            await stand.waiting(2)
    assert (await asked).standing == (await slow).standing
    assert (await slow).what == "applied"


async def test_a_claim_does_not_overtake_a_request_in_flight(stand: Stand) -> None:
    """Either the old relay's batch is in the cursor that the new one is told, or it is fenced off."""
    old = await stand.claimed()
    async with asyncio.TaskGroup() as group:
        with stand.cursor_locked():
            slow = group.create_task(outcome(old.apply(upserts((1, "a")), at(10), 1, 1)))
            await stand.waiting(1)
            claiming = group.create_task(stand.target().claim())
            await stand.waiting(2)
    told = (await claiming).standing.cursor
    assert (await slow, told, stand.items()) in [("applied", at(10), {1: "a"}), ("fenced", None, {})]


async def test_a_relay_goes_on_after_lost_and_late_answers(
    stand: Stand, source: Database, deadlines: Deadlines
) -> None:
    """Give up, lose an answer, cut one: whatever happened, each change takes effect once and nothing is missing."""
    with source.connect() as app:
        app.execute("create table item (id int primary key, v text)")
        app.execute("select outbox.watch('public.item')")
        reader, target = Source(source.dsn), stand.target()
        relay = Relay(reader, target, Bell(source.dsn), Silent())
        app.execute("insert into item values (1, 'a')")
        assert await relay.drain() == 1

        app.execute("insert into item values (2, 'b')")
        async with asyncio.TaskGroup() as group:
            with stand.cursor_locked():
                turn = group.create_task(ambiguous(relay))
                await stand.waiting(1)
                deadlines.pass_()
                await turn
                app.execute("insert into item values (3, 'c')")
                group.create_task(relay.drain())
                await stand.waiting(2 if stand.rest else 1)

        for lose in (stand.lose_answer, stand.cut_answer):
            app.execute("insert into item select max(id) + 1, 'd' from item")
            lose()
            await ambiguous(relay)
            app.execute("insert into item select max(id) + 1, 'e' from item")
            await relay.drain()
        written = app.execute("select id, v from item order by id").fetchall()
    await reader.close()
    assert stand.effects() == written
    assert len(written) == 7
    assert stand.items() == dict(written)


async def ambiguous(relay: Relay) -> None:
    with pytest.raises(TargetError) as caught:
        await relay.step()
    assert caught.value.kind is Kind.AMBIGUOUS
