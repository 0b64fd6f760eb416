"""After an answer that is lost, late or no answer at all, the target is asked where it stands before anything is sent."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from daemon.breaker import Breaker, BreakerOpen, State, Thresholds
from daemon.demo.faults import Fault
from daemon.errors import Kind, TargetError
from daemon.relay import Relay
from daemon.rest import RestDoor
from daemon.source import Source
from daemon.target import Target
from daemon.wakeup import Bell
from tests.contract.conftest import Stand, at, failure, patient, upserts
from tests.databases import Database
from tests.silent import Silent

HTML = b"<!DOCTYPE html><title>Welcome to the hotel</title>"

# What a client may get although PostgREST did its work, or in PostgREST's place: by name, as code and body.
NO_ANSWERS: dict[str, tuple[int, bytes]] = {
    "a captive portal": (200, HTML),
    "nothing": (200, b""),
    "truncated JSON": (200, b'{"answer":"applied","epoch":1,"batch_'),
    "JSON of another shape": (200, b'[{"id":1}]'),
    "another's answer": (200, b'{"answer":"described","more":{"tables":[],"references":[]}}'),
    "another batch's answer": (200, b'{"answer":"applied","epoch":1,"batch_no":77,"cursor":%s}' % at(10).to_json().encode()),
    "no content": (204, b""),
    "a redirect": (307, HTML),
    "a timeout": (408, HTML),
    "a bad gateway": (502, HTML),
    "Cloudflare's unknown": (520, HTML),
    "Cloudflare's timeout": (524, HTML),
    "Supabase's timeout": (544, b'{"code":"544","message":"canary"}'),
    "a refusal's HTML": (403, HTML),
}  # fmt: skip


@asynccontextmanager
async def relay_to(stand: Stand, source: Database, target: Target | None = None) -> AsyncIterator[Relay]:
    """A relay whose first batch has gone through, and one change that waits."""
    with source.connect() as app:
        app.execute("create table item (id int primary key, v text)")
        app.execute("select outbox.watch('public.item')")
        reader = Source(source.dsn)
        relay = Relay(reader, target or stand.target(), Bell(source.dsn), Silent())
        app.execute("insert into item values (1, 'a')")
        assert await relay.drain() == 1
        app.execute("insert into item values (2, 'b')")
        try:
            yield relay
        finally:
            await reader.close()


async def stumble(relay: Relay) -> TargetError:
    with pytest.raises(TargetError) as caught:
        await relay.step()
    return caught.value


def modes(stand: Stand) -> list[str]:
    """What the gateway was asked for, in order."""
    return [json.loads(opening.split(b",")[0] + b"}")["mode"] for opening in stand.project.gateway.openings]


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "not committed"])
@pytest.mark.parametrize("what", NO_ANSWERS)
async def test_the_cursor_is_asked_for_first(rest: Stand, source: Database, what: str, committed: bool) -> None:
    """Whatever came instead of an answer, and whether or not the batch was applied: each change takes effect once."""
    code, body = NO_ANSWERS[what]
    gateway = rest.project.gateway
    async with relay_to(rest, source) as relay:
        gateway.openings.clear()
        gateway.fault = (Fault.instead if committed else Fault.status)(code, body, times=1)
        await stumble(relay)
        assert modes(rest) == ["apply"]
        assert rest.effects() == [(1, "a"), (2, "b")][: 1 + committed]
        await relay.drain()
    assert modes(rest) == ["apply", "cursor"] + ["apply"] * (not committed)
    assert rest.effects() == [(1, "a"), (2, "b")]


BROKEN = {
    "reset in the middle": Fault.reset(times=1),
    "cut in the middle": Fault.truncate(times=1),
    "closed without a word": Fault.drop_response(times=1),
    "a body byte by byte": Fault.drip(0.1, times=1),
    "a head byte by byte": Fault.slow_head(0.1, times=1),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_an_answer_that_breaks_or_drips(rest: Stand, source: Database, how: str) -> None:
    """The deadline is for the whole answer: a byte now and then does not keep the relay waiting."""
    dripping = "byte by byte" in how
    door = RestDoor(rest.project.url, rest.project.secret_key, deadline=2.0 if dripping else 20.0)
    async with relay_to(rest, source, patient(door, rest.name)) as relay:
        rest.project.gateway.openings.clear()
        rest.project.gateway.fault = BROKEN[how]
        error = await stumble(relay)
        await relay.drain()
    await door.close()
    assert error.kind is Kind.AMBIGUOUS
    assert ("did not answer within 2 s" in str(error)) is dripping
    assert modes(rest) == ["apply", "cursor"]
    assert rest.effects() == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("what", NO_ANSWERS)
@pytest.mark.parametrize("mode", ["claim", "cursor", "describe"])
async def test_no_question_is_answered_by_nonsense(rest: Stand, mode: str, what: str) -> None:
    """Every request sees through it, not `apply` alone; a description without tables would end the relay."""
    target = await rest.claimed()
    code, body = NO_ANSWERS[what]
    if (mode, what) == ("describe", "another's answer"):
        body = b'{"answer":"described","more":{}}'
    rest.project.gateway.fault = Fault.instead(code, body, times=1)
    with pytest.raises(TargetError) as caught:
        await getattr(target, mode)()
    assert caught.value.kind in (Kind.AMBIGUOUS, Kind.TRANSIENT, Kind.AUTH)


async def test_batches_that_fail_open_the_breaker_though_the_cursor_is_told(rest: Stand, source: Database) -> None:
    """The target can say where it stands and cannot take a batch, as on a full disk: three of those are enough."""
    target = Target(rest.door(), rest.name, Breaker("target", Thresholds()))
    async with relay_to(rest, source, target) as relay, counting(rest, "raise exception using errcode = '53100';"):
        rest.project.gateway.openings.clear()
        for _ in range(3):
            assert target.breaker.state is State.CLOSED
            assert (await stumble(relay)).refusal.sqlstate == "53100"
        assert target.breaker.state is State.OPEN
        assert modes(rest) == ["apply", "cursor", "apply", "cursor", "apply"]
        with pytest.raises(BreakerOpen):
            await relay.step()
        assert len(modes(rest)) == 5


# Conflicts inside the target's transaction, which PostgREST up to 14 would repeat without end


EXECUTIONS = """
create sequence executions;
create function count_executions() returns trigger language plpgsql as $$
begin
  perform nextval('public.executions');
  {}
  return new;
end $$;
create trigger count_executions before insert or update on item for each row execute function count_executions();
"""


@asynccontextmanager
async def counting(rest: Stand, what_then: str = "") -> AsyncIterator[None]:
    """Executions are counted by a sequence, which no rollback takes back."""
    rest.owner.execute(EXECUTIONS.format(what_then).encode())
    try:
        yield
    finally:
        rest.owner.execute(
            "drop trigger count_executions on item; drop function count_executions; drop sequence executions"
        )


def executions(rest: Stand) -> int:
    return int(rest.rows("select case when is_called then last_value else 0 end from executions")[0][0])


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
async def test_a_serialization_failure_is_not_repeated_by_the_server(rest: Stand, sqlstate: str) -> None:
    """One execution in each gear at most; the relay decides whether and when there is another."""
    async with counting(rest, f"raise exception 'canary' using errcode = '{sqlstate}';"):
        target = await rest.claimed()
        error = await failure(target)
        assert (error.kind, error.refusal.sqlstate) == (Kind.TRANSIENT, sqlstate)
        assert "canary" not in f"{error} {error.refusal}"
        assert 1 <= executions(rest) <= 3
        assert target.breaker.last_error is None  # the target is well: somebody else is in the way
    assert (await target.apply(upserts((1, "a")), at(10), 1, 1)).what == "applied"


async def test_a_deadlock_with_another_session(rest: Stand) -> None:
    """The batch is the victim: transient, executed once, and the other session is served."""
    async with counting(rest):
        target = await rest.claimed()
        await target.apply(upserts((1, "a"), (2, "b")), at(10), 1, 1)
        before = executions(rest)
        other = rest.project.cluster.dsn(rest.project.database)  # a superuser: it may say how long it is patient
        async with await psycopg.AsyncConnection.connect(other) as session:
            await session.execute("set deadlock_timeout = '1min'")
            await session.execute("update item set v = 'mine' where id = 2")
            async with asyncio.TaskGroup() as group:
                batch = group.create_task(outcome(target))
                await rest.waiting(1)  # it has row 1 and waits for row 2
                group.create_task(session.execute("update item set v = 'mine' where id = 1"))
            error = batch.result()
            await session.commit()
        assert error is not None
        assert (error.kind, error.refusal.sqlstate) == (Kind.TRANSIENT, "40P01")
        assert executions(rest) - before <= 3 + 2  # the other session's own two
    answer = await target.apply(upserts((1, "c"), (2, "d")), at(20), 1, 2)
    assert answer.what == "applied"
    assert rest.items() == {1: "c", 2: "d"}


async def outcome(target: Target) -> TargetError | None:
    try:
        await target.apply(upserts((1, "c"), (2, "d")), at(20), 1, 2)
    except TargetError as error:
        return error
    return None


async def test_the_isolation_is_pinned(rest: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgREST obeys a role that is set to REPEATABLE READ: each wait for the cursor's row would become a 40001."""
    project = rest.project
    settings = {**project._settings(), "PGRST_DB_CONFIG": "true"}  # else it does not look at roles
    rest.owner.execute("alter role service_role set default_transaction_isolation = 'repeatable read'")
    try:
        with monkeypatch.context() as patched:
            patched.setattr(project, "_settings", lambda: settings)
            await asyncio.to_thread(project.stop_postgrest)
            await asyncio.to_thread(project.start_postgrest)
        async with counting(rest, "new.v := current_setting('transaction_isolation');"):
            target = await rest.claimed()
            assert (await target.apply(upserts((1, "a")), at(10), 1, 1)).what == "applied"
        assert rest.items() == {1: "read committed"}
    finally:
        rest.owner.execute("alter role service_role reset default_transaction_isolation")
        await asyncio.to_thread(project.stop_postgrest)
        await asyncio.to_thread(project.start_postgrest)
