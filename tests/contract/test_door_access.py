"""Where the key goes, who else finds the door, and what a project must be told of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import psycopg
import pytest

from daemon.demo.faults import Fault
from daemon.demo.supabase import EmbeddedSupabase
from daemon.errors import Kind, TargetError, advice
from daemon.rest import RestDoor
from outbox.migrations import step
from tests.contract.conftest import TABLES, Stand, at, failure, patient, upserts
from tests.databases import Database
from tests.waiting import wait_until_async

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
