"""Every way in which a request can fail, and the kind the relay takes it for."""

import asyncio

import pytest

from daemon.demo.faults import Fault
from daemon.errors import Kind, advice
from tests.contract.conftest import Stand, at, failure, upserts

# Answers that never arrive


@pytest.mark.parametrize("lost", ["whole", "half"])
async def test_an_answer_lost_after_the_commit(stand: Stand, lost: str) -> None:
    """Ambiguous; the cursor shows that it was applied, and sending it again applies nothing."""
    target = stand.target()
    await target.claim()
    if lost == "whole":
        stand.lose_answer()
    else:
        stand.cut_answer()
    assert (await failure(target)).kind is Kind.AMBIGUOUS
    standing = (await target.cursor()).standing
    assert (standing.batch_no, standing.cursor) == (1, at(10))
    assert (await target.apply(upserts((1, "a")), at(10), 1, 1)).what == "duplicate"
    assert stand.effects() == [(1, "a")]


async def test_a_backend_that_is_terminated(stand: Stand) -> None:
    """The connection dies while the function waits: retryable, and the cursor shows that nothing was applied."""
    target = stand.target()
    await target.claim()
    async with asyncio.TaskGroup() as group:
        with stand.cursor_locked():
            failing = group.create_task(failure(target))
            (pid,) = await stand.waiting(1)
            stand.owner.execute("select pg_terminate_backend(%s, 5000)", (pid,))
    error = await failing
    assert error.kind is (Kind.TRANSIENT if stand.rest else Kind.AMBIGUOUS)
    assert (await target.cursor()).standing.cursor is None
    assert stand.items() == {}


async def test_a_statement_that_takes_too_long(stand: Stand) -> None:
    """57014, whoever cancelled it, asks for a smaller batch; the same connection goes on."""
    target = stand.target()
    await target.claim()
    async with asyncio.TaskGroup() as group:
        with stand.cursor_locked():
            failing = group.create_task(failure(target))
            (pid,) = await stand.waiting(1)
            stand.owner.execute("select pg_cancel_backend(%s)", (pid,))
    error = await failing
    assert (error.kind, error.refusal.sqlstate) == (Kind.SIZE, "57014")
    assert (await target.apply(upserts((1, "a")), at(10), 1, 1)).what == "applied"


async def test_the_doors_own_timeouts_hold(stand: Stand) -> None:
    """Below the client's deadline: the function's lock_timeout is transient, and it is the door that carries it."""
    settings = stand.rows("select proconfig from pg_proc where oid = 'public.outboxd(text)'::regprocedure")[0][0]
    assert {"statement_timeout=12s", "lock_timeout=6s", "default_transaction_isolation=read committed"} <= {
        setting.replace('"', "").replace("'", "") for setting in settings
    }
    target = stand.target()
    await target.claim()
    stand.owner.execute("alter function public.outboxd(text) set lock_timeout = '50ms'")
    try:
        with stand.cursor_locked():
            error = await failure(target)
    finally:
        stand.owner.execute("alter function public.outboxd(text) set lock_timeout = '6s'")
    assert (error.kind, error.refusal.sqlstate) == (Kind.TRANSIENT, "55P03")
    assert (await target.apply(upserts((1, "a")), at(10), 1, 1)).what == "applied"


# Nobody there, nobody let in


async def test_nobody_listens(stand: Stand) -> None:
    """Transient: it was certainly not applied."""
    assert (await failure(stand.target(stand.door(nowhere=True)))).kind is Kind.TRANSIENT


async def test_a_wrong_key(stand: Stand) -> None:
    """Auth, and the advice names the settings; the key itself is in no message."""
    key = stand.wrong_key()
    error = await failure(stand.target(stand.door(key=key)), key=key if stand.rest else "")
    assert error.kind is Kind.AUTH
    assert "OUTBOXD_SUPABASE_KEY" in advice(error.kind, error.refusal)


async def test_a_gateway_that_comes_back(rest: Stand) -> None:
    """Down: transient. Up again: the same client goes on, on a new connection."""
    target = rest.target()
    await target.claim()
    rest.project.gateway.stop()
    try:
        assert (await failure(target)).kind in (Kind.TRANSIENT, Kind.AMBIGUOUS)
        assert (await failure(target)).kind is Kind.TRANSIENT
    finally:
        await asyncio.to_thread(rest.project.gateway.start)  # it runs a loop of its own to begin with
    assert (await target.apply(upserts((1, "a")), at(10), 1, 1)).what == "applied"


HTML = b"<!DOCTYPE html><title>Welcome to the hotel</title>"
DATED = [("Date", "Mon, 23 Nov 2026 12:00:00 GMT")]
ANSWER = b'{"answer":"applied","epoch":1,"batch_no":1,"cursor":%s}' % at(10).to_json().encode()


@pytest.mark.parametrize(
    ("fault", "kind", "retry_after"),
    [
        (Fault.status(200, HTML, [("Content-Type", "text/html")]), Kind.AMBIGUOUS, None),
        (Fault.status(200, b""), Kind.AMBIGUOUS, None),
        (Fault.status(200, b"null"), Kind.AMBIGUOUS, None),
        (Fault.status(200, b'{"answer":"applied"}'), Kind.AMBIGUOUS, None),
        (Fault.status(200, b'{"answer":"perhaps","batch_no":1}'), Kind.AMBIGUOUS, None),
        (Fault.status(204), Kind.AMBIGUOUS, None),
        (Fault.status(402, b'{"message":"exceed_egress_quota"}'), Kind.AUTH, None),
        (Fault.status(408), Kind.AMBIGUOUS, None),
        (Fault.status(413, b"<html>too large</html>"), Kind.SIZE, None),
        (Fault.status(429, b"", [("Retry-After", "7")]), Kind.THROTTLE, 7.0),
        (Fault.status(429, b"", [("Retry-After", "soon")]), Kind.THROTTLE, None),
        (Fault.status(429), Kind.THROTTLE, None),
        (Fault.status(500, b'{"code":"XX000","message":"row is canary"}'), Kind.TRANSIENT, None),
        (Fault.status(503, HTML, [("Retry-After", "30")]), Kind.TRANSIENT, 30.0),
        (Fault.status(504, HTML), Kind.TRANSIENT, None),
        (Fault.status(521, HTML), Kind.TRANSIENT, None),
        (Fault.status(520, HTML), Kind.TRANSIENT, None),
        (Fault.status(544, HTML), Kind.TRANSIENT, None),
        (Fault.status(540, b'{"message":"Project paused"}'), Kind.TRANSIENT, 300.0),
        (Fault.status(429, HTML, [("Retry-After", "31536000")]), Kind.THROTTLE, 300.0),
        (Fault.status(429, HTML, [("Retry-After", "9" * 400)]), Kind.THROTTLE, 300.0),
        (Fault.status(429, HTML, [("Retry-After", "0")]), Kind.THROTTLE, None),
        (Fault.status(429, HTML, [("Retry-After", "-5")]), Kind.THROTTLE, None),
        (Fault.status(429, HTML, [*DATED, ("Retry-After", "Mon, 23 Nov 2026 12:00:09 GMT")]), Kind.THROTTLE, 9.0),
        (Fault.status(429, HTML, [*DATED, ("Retry-After", "Tue, 23 Nov 2027 12:00:00 GMT")]), Kind.THROTTLE, 300.0),
        (Fault.status(429, HTML, [*DATED, ("Retry-After", "Mon, 23 Nov 2026 11:00:00 GMT")]), Kind.THROTTLE, None),
        (Fault.status(429, HTML, [*DATED, ("Retry-After", "Mon, 99 Nov 2026 11:00:00 GMT")]), Kind.THROTTLE, None),
        (Fault.status(401, HTML), Kind.AUTH, None),
        (Fault.status(403, HTML), Kind.AUTH, None),
        (Fault.status(404, HTML), Kind.CONTRACT, None),
        (Fault.status(400, b'{"code":"err'), Kind.CONTRACT, None),
        (Fault.status(400, b"[" * 100_000), Kind.CONTRACT, None),
        (Fault.status(500, b'["canary"]'), Kind.TRANSIENT, None),
        (Fault.status(503, b'{"code":{"canary":1}}'), Kind.TRANSIENT, None),
        (Fault.status(302, b"", [("Location", "https://login.example/")]), Kind.AMBIGUOUS, None),
        (Fault.status(200, b'{"answer":"claimed","epoch":1}'), Kind.AMBIGUOUS, None),
        (Fault.status(200, b'{"answer":"cursor","epoch":1,"batch_no":1}'), Kind.AMBIGUOUS, None),
        (Fault.status(200, b'{"answer":"mismatch","cursor":"here"}'), Kind.AMBIGUOUS, None),
        (Fault.status(200, ANSWER.replace(b'"batch_no":1', b'"batch_no":2')), Kind.AMBIGUOUS, None),
        (Fault.status(200, ANSWER.replace(b'"epoch":1', b'"epoch":2')), Kind.AMBIGUOUS, None),
        (Fault.status(200, ANSWER[:-9]), Kind.AMBIGUOUS, None),
        (Fault.status(200, b"\xff\xfe" + ANSWER), Kind.AMBIGUOUS, None),
        (Fault.status(200, b" " * 2**24 + ANSWER), Kind.AMBIGUOUS, None),
        (Fault.status(200, b"no gzip", [("Content-Encoding", "gzip")]), Kind.AMBIGUOUS, None),
        (Fault.status(401, b'{"code":"PGRST301","message":"JWT expired"}'), Kind.AUTH, None),
        (Fault.status(504, b'{"code":"PGRST003","message":"Timed out acquiring connection"}'), Kind.TRANSIENT, None),
        (Fault.refuse(), Kind.AMBIGUOUS, None),
    ],
    ids=lambda value: f"{value.code} {value.body[:12]!r}" if isinstance(value, Fault) else None,
)
async def test_what_a_gateway_says(rest: Stand, fault: Fault, kind: Kind, retry_after: float | None) -> None:
    """By code, by status, and in doubt ambiguous; bodies are never quoted."""
    target = rest.target()
    await target.claim()
    rest.project.gateway.fault = fault
    error = await failure(target)
    assert (error.kind, error.retry_after) == (kind, retry_after)
    assert "canary" not in f"{error} {error.refusal} {advice(error.kind, error.refusal)}"
    assert rest.items() == {}
