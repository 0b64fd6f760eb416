"""Every way in which a request can fail, and the kind the relay takes it for."""

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator

import httpx
import psycopg
import pytest

from daemon.demo.faults import Fault
from daemon.demo.supabase import EmbeddedSupabase
from daemon.errors import Kind, TargetError, advice
from daemon.target import RestDoor, Target
from outbox.migrations import step
from tests.contract.conftest import TABLES, Stand, at, patient, upserts
from tests.databases import Database
from tests.waiting import wait_until_async


async def failure(target: Target, *, key: str = "") -> TargetError:
    """How a batch fails; the key is in nothing that is said of it."""
    with pytest.raises(TargetError) as caught:
        await target.apply(upserts((1, "a")), at(10), 1, 1)
    error = caught.value
    assert not key or key not in "".join(traceback.format_exception(error)) + repr(error.refusal)
    return error


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
    assert {"statement_timeout=25s", "lock_timeout=10s", "default_transaction_isolation=read committed"} <= {
        setting.replace('"', "").replace("'", "") for setting in settings
    }
    target = stand.target()
    await target.claim()
    stand.owner.execute("alter function public.outboxd(text) set lock_timeout = '50ms'")
    try:
        with stand.cursor_locked():
            error = await failure(target)
    finally:
        stand.owner.execute("alter function public.outboxd(text) set lock_timeout = '10s'")
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
        (Fault.status(540, b'{"message":"Project paused"}'), Kind.TRANSIENT, None),
        (Fault.status(401, b'{"code":"PGRST301","message":"JWT expired"}'), Kind.AUTH, None),
        (Fault.status(504, b'{"code":"PGRST003","message":"Timed out acquiring connection"}'), Kind.TRANSIENT, None),
        (Fault.refuse(), Kind.AMBIGUOUS, None),
    ],
    ids=lambda value: f"{value.code} {value.body[:12].decode()}" if isinstance(value, Fault) else None,
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


# Where the key goes


@contextlib.asynccontextmanager
async def capturing(heads: list[str]) -> AsyncIterator[str]:
    """A server elsewhere, and what reaches it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        heads.append(head)
        writer.write(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(rest: Stand, code: int) -> None:
    """Whoever answers in the gateway's place gets no key and no rows."""
    heads: list[str] = []
    async with capturing(heads) as elsewhere:
        rest.project.gateway.fault = Fault.status(code, b"", [("Location", f"{elsewhere}/rest/v1/rpc/outboxd")])
        error = await failure(rest.target(), key=rest.project.secret_key)
    assert error.kind in (Kind.AMBIGUOUS, Kind.CONTRACT)
    assert heads == []


@pytest.mark.parametrize("which", ["secret", "legacy"])
async def test_only_a_token_travels_as_a_bearer(project: EmbeddedSupabase, which: str) -> None:
    """sb_secret_… is no JWT: it goes in `apikey` alone, and once."""
    key = {"secret": project.secret_key, "legacy": project.service_jwt}[which]
    heads: list[str] = []
    async with capturing(heads) as elsewhere:
        door = RestDoor(elsewhere, key, user_agent="outboxd/test")
        error = await failure(patient(door, "main"), key=key)
        await door.close()
    assert error.kind is Kind.TRANSIENT
    (head,) = heads
    lines = head.split("\r\n")
    assert lines[0] == "POST /rest/v1/rpc/outboxd HTTP/1.1"
    named: dict[str, list[str]] = {}
    for line in lines[1:-2]:
        name, _, value = line.partition(": ")
        named.setdefault(name.lower(), []).append(value)
    assert named["apikey"] == [key]
    assert named.get("authorization") == (None if which == "secret" else [f"Bearer {key}"])
    assert named["content-type"] == ["text/plain"]
    assert named["content-profile"] == ["public"]
    assert named["user-agent"] == ["outboxd/test"]
    assert "cookie" not in named


@pytest.mark.parametrize("who", ["anon", "authenticated", "publishable"])
async def test_others_find_the_door_shut(rest: Stand, who: str) -> None:
    """Neither the function nor schema outboxd, not even for a signed-in user."""
    project = rest.project
    token = {
        "anon": project.anon_jwt,
        "authenticated": project.jwt_for("22222222-2222-4222-8222-222222222222"),
        "publishable": project.publishable_key,
    }[who]
    headers = {"apikey": project.publishable_key, "Authorization": f"Bearer {token}", "content-type": "text/plain"}
    async with httpx.AsyncClient(base_url=f"{project.url}/rest/v1/", headers=headers) as client:
        called = await client.post("rpc/outboxd", content=b'{"mode":"describe"}')
        assert (called.status_code, called.json()["code"]) == (403 if who == "authenticated" else 401, "42501")
        inside = await client.post("rpc/door", content=b"{}", headers={"content-profile": "outboxd"})
        table = await client.get("cursor", headers={"accept-profile": "outboxd"})
        assert [answer.json()["code"] for answer in (inside, table)] == ["PGRST106", "PGRST106"]
        assert (await client.get("cursor")).status_code == 404


# A project of its own


@pytest.fixture
async def unset(target: Database) -> Database:
    """A project whose API does not know the door, and is told of no change."""
    with psycopg.connect(target.superuser_dsn, autocommit=True) as conn:
        conn.execute("set role supabase_owner; " + TABLES + "reset role")
        conn.execute("drop event trigger pgrst_ddl_watch; drop event trigger pgrst_drop_watch")
        conn.execute("drop function public.outboxd(text)")
    return target


async def test_a_stale_schema_cache(unset: Database, supabase: EmbeddedSupabase) -> None:
    """The function is there and PostgREST does not know: contract, and the advice is what helps."""
    door = RestDoor(supabase.url, supabase.secret_key)
    target = patient(door, "main")
    with unset.connect() as owner:
        made_anew = step("target", "exposed").partition("notify pgrst")[0]
        owner.execute(made_anew.encode())
        error = await failure(target)
        assert (error.kind, error.refusal.sqlstate) == (Kind.CONTRACT, "PGRST202")
        statement = "notify pgrst, 'reload schema'"
        assert advice(error.kind, error.refusal).endswith(statement)
        owner.execute(statement)

        async def known() -> bool:
            with contextlib.suppress(TargetError):
                return (await target.claim()).what == "claimed"
            return False

        await wait_until_async(known)
    assert (await target.apply(upserts((1, "a")), at(10), 1, 1)).what == "applied"
    await door.close()


@pytest.fixture
def hasty(target: Database) -> Database:
    """A project whose door is in a hurry."""
    with target.connect() as owner:
        owner.execute("alter function public.outboxd(text) set statement_timeout = '200ms'")
    return target


async def test_postgrest_applies_the_doors_statement_timeout(hasty: Database, supabase: EmbeddedSupabase) -> None:
    """Set on the exposed function it holds for the request: the database ends it before the client gives up."""
    door = RestDoor(supabase.url, supabase.secret_key)
    target = patient(door, "main")
    await target.claim()
    with psycopg.connect(hasty.dsn) as holder:
        holder.execute("select from outboxd.cursor for update")
        error = await failure(target)
    assert (error.kind, error.refusal.sqlstate) == (Kind.SIZE, "57014")
    assert (await target.cursor()).standing.cursor is None
    await door.close()
