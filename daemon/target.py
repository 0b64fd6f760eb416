"""The Supabase project: one door, two ways to reach it.

Knows the door's documents and answers, and how each transport fails. Knows nothing of the source or of windows.
The only module that imports supabase. A request is never repeated here: the relay decides, from the cursor that
the target states.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import httpx
import psycopg
from psycopg import sql

from daemon.breaker import Breaker
from daemon.connection import cause, connect, turned_away
from daemon.errors import Fenced, Kind, Refusal, TargetError, classify
from daemon.plan import SEPARATOR, Plan
from outbox import Cursor

if TYPE_CHECKING:
    import supabase


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the target says it stands: the only place a relay goes on from."""

    epoch: int
    batch_no: int
    cursor: Cursor | None


@dataclass(frozen=True, slots=True)
class Answer:
    """`what`: claimed, cursor, described, isolated, applied, duplicate or mismatch."""

    what: str
    standing: Standing
    more: Mapping[str, Any] = field(default_factory=dict)


class Door(Protocol):
    """A transport: carries one document there and one answer back."""

    async def send(self, document: str) -> str:
        """The answer's JSON. Raises TargetError, of kind AMBIGUOUS when the document may have been applied."""

    async def close(self) -> None:
        """Let go of connections."""


class Target:
    """The door behind a breaker. `observe(mode, outcome, seconds, bytes)` is told of every request."""

    def __init__(
        self, door: Door, relay: str, breaker: Breaker, observe: Callable[[str, str, float, int], None] | None = None
    ) -> None:
        self._door = door
        self._relay = relay
        self.breaker = breaker
        self._observe = observe or (lambda *_: None)

    async def claim(self) -> Answer:
        """Become the one writer: an older claimant is fenced from now on."""
        return await self._ask({"mode": "claim", "relay": self._relay})

    async def cursor(self) -> Answer:
        """Where the target stands, once everything in flight has ended."""
        return await self._ask({"mode": "cursor", "relay": self._relay})

    async def describe(self) -> Answer:
        """The target's tables, keys, grants and foreign keys."""
        return await self._ask({"mode": "describe", "relay": self._relay})

    async def apply(self, plan: Plan, cursor: Cursor, epoch: int, batch_no: int) -> Answer:
        """Lead the target to `cursor` by this plan: applied, duplicate or mismatch. Raises Fenced or TargetError."""
        return await self._ask(self._header("apply", plan, cursor, epoch, batch_no), plan.body)

    async def isolate(self, plan: Plan, cursor: Cursor, epoch: int, batch_no: int) -> Answer:
        """Which rows of this plan does the target refuse? Changes nothing: isolated, duplicate or mismatch."""
        return await self._ask(self._header("isolate", plan, cursor, epoch, batch_no), plan.body)

    def _header(self, mode: str, plan: Plan, cursor: Cursor, epoch: int, batch_no: int) -> dict[str, Any]:
        return {
            "mode": mode, "relay": self._relay, "epoch": epoch, "batch_no": batch_no, "digest": plan.digest,
            "cursor": json.loads(cursor.to_json()),
        }  # fmt: skip

    async def close(self) -> None:
        """Let go of the transport."""
        await self._door.close()

    async def _ask(self, header: Mapping[str, Any], body: str = "") -> Answer:
        document = json.dumps(header, separators=(",", ":")) + (SEPARATOR + body if body else "")
        started, outcome = time.monotonic(), "retryable"
        with self.breaker.attempt() as attempt:
            try:
                answer = _answer(await self._door.send(document))
                outcome = "ok"
                return answer
            except TargetError as exc:
                if exc.kind in (Kind.TRANSIENT, Kind.AMBIGUOUS):
                    attempt.failed(str(exc), exc.retry_after)
                else:
                    outcome = "refused"
                    attempt.answered()
                raise
            except Fenced:
                outcome = "refused"
                attempt.answered()
                raise
            finally:
                self._observe(str(header["mode"]), outcome, time.monotonic() - started, len(document))


def _answer(text: str) -> Answer:
    """Read the door's answer. Anything that is not one is ambiguous: a captive portal, a cut body."""
    try:
        given = json.loads(text)
        what, cursor, more = str(given["answer"]), given.get("cursor"), dict(given.get("more") or {})
        standing = Standing(
            int(given.get("epoch", 0)),
            int(given.get("batch_no", 0)),
            Cursor.from_json(json.dumps(cursor)) if cursor else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        what, standing, more = "", Standing(0, 0, None), {}
    if what == "fenced":
        raise Fenced("another process has claimed this relay on the target since")
    if what == "refused":
        names = Refusal(
            more.get("sqlstate"),
            None,
            more.get("table"),
            more.get("constraint"),
            more.get("column"),
            more.get("message"),
        )
        raise TargetError(classify(names.sqlstate), f"the target refused the batch ({names.sqlstate})", names)
    moved = what in {"applied", "duplicate"} and standing.cursor is not None
    if not moved and what not in {"claimed", "cursor", "described", "isolated", "mismatch"}:
        raise TargetError(Kind.AMBIGUOUS, "the target's answer is not one of outboxd's")
    return Answer(what, standing, more)


class RestDoor:
    """The Data API, through the supabase client's own session.

    The body is text/plain to a function with one unnamed text parameter: PostgREST hands it on unparsed.
    """

    def __init__(
        self, url: str, key: str, *, exposed_schema: str = "public", deadline: float = 30.0, user_agent: str = "outboxd"
    ) -> None:
        self._url = url.rstrip("/")
        self._key = key
        self._schema = exposed_schema
        self._deadline = deadline
        self._agent = user_agent
        import supabase  # here, because it costs most of a second and 70 MB, and the other door does without

        self._supabase = supabase
        self._client: supabase.AsyncClient | None = None
        self._http: httpx.AsyncClient | None = None

    async def send(self, document: str) -> str:
        """POST the document; the body of a 200 is the answer."""
        client = await self._opened()
        headers = {
            **client.postgrest.headers,
            "content-type": "text/plain",
            "content-profile": self._schema,
            "user-agent": self._agent,
        }
        try:
            # httpx' own timeouts are per chunk: a body that drips would never end.
            async with asyncio.timeout(self._deadline):
                response = await client.postgrest.session.request(
                    "POST", f"{self._url}/rest/v1/rpc/outboxd", content=document.encode(), headers=headers
                )
        except TimeoutError:
            raise TargetError(Kind.AMBIGUOUS, f"the target did not answer within {self._deadline:g} s") from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as exc:
            raise TargetError(
                Kind.TRANSIENT, f"no connection to {urlsplit(self._url).netloc} ({type(exc).__name__})"
            ) from None
        except httpx.HTTPError as exc:
            raise TargetError(
                Kind.AMBIGUOUS, f"the connection failed before the answer ({type(exc).__name__})"
            ) from None
        if response.status_code != httpx.codes.OK:
            raise _rest_error(response)
        return response.text

    async def close(self) -> None:
        """Close the pool."""
        if self._http is not None:
            await self._http.aclose()
        self._client = self._http = None

    async def _opened(self) -> "supabase.AsyncClient":
        if self._client is None:

            async def keep_one_key(request: httpx.Request) -> None:
                # sb_secret_… is no JWT: as a bearer token PostgREST would refuse it.
                if self._key.count(".") != 2:
                    request.headers.pop("authorization", None)

            # A redirect would carry the key to another host; a proxy from the environment would see it.
            self._http = httpx.AsyncClient(
                http2=False, follow_redirects=False, trust_env=False, timeout=httpx.Timeout(self._deadline, connect=5.0),
                limits=httpx.Limits(max_connections=4, keepalive_expiry=30.0), event_hooks={"request": [keep_one_key]},
            )  # fmt: skip
            options = self._supabase.AsyncClientOptions(
                httpx_client=self._http, auto_refresh_token=False, persist_session=False
            )
            self._client = await self._supabase.acreate_client(self._url, self._key, options=options)
        return self._client


def _rest_error(response: httpx.Response) -> TargetError:
    """What an HTTP status and PostgREST's code mean. Details and hints may quote rows: they are not read."""
    try:
        body = response.json()
        code = str(body["code"]) if isinstance(body, dict) and body.get("code") else None
        said = str(body.get("message", "")) if isinstance(body, dict) else ""
    except (ValueError, RecursionError):
        code, said = None, ""
    kind = classify(code, response.status_code)
    names = Refusal(
        code, response.status_code, message=said if code and code.startswith(("42501", "PGRST3", "PGRST2")) else None
    )
    retry_after = response.headers.get("retry-after", "")
    what = f"the target answered {response.status_code}" + (f" {code}" if code else "")
    return TargetError(kind, what, names, float(retry_after) if retry_after.isdecimal() else None)


class PostgresDoor:
    """A direct connection to the project's database: no gateway in between."""

    def __init__(
        self, dsn: str, *, exposed_schema: str = "public", deadline: float = 30.0, application_name: str = "outboxd"
    ) -> None:
        self._dsn = dsn
        self._name = application_name
        self._deadline = deadline
        self._call = sql.SQL("select {}(%s)::text").format(sql.Identifier(exposed_schema, "outboxd"))
        self._conn: psycopg.AsyncConnection[Any] | None = None

    async def send(self, document: str) -> str:
        """Call the function in a transaction of its own."""
        sent = False
        try:
            async with asyncio.timeout(self._deadline):
                conn = await self._opened()
                sent = True
                row = await (await conn.execute(self._call, (document,))).fetchone()
        except TimeoutError:
            await self._lost()
            raise TargetError(
                Kind.AMBIGUOUS if sent else Kind.TRANSIENT, f"the target did not answer within {self._deadline:g} s"
            ) from None
        except psycopg.Error as exc:
            broken = self._conn is None or self._conn.closed or self._conn.broken
            if broken:
                await self._lost()
            raise _postgres_error(exc, sent=sent, broken=broken) from None
        except BaseException:
            await self._lost()
            raise
        return str(row[0]) if row else ""

    async def close(self) -> None:
        """Close the connection."""
        await self._lost()

    async def _lost(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.close()

    async def _opened(self) -> psycopg.AsyncConnection[Any]:
        if self._conn is None:
            self._conn = await connect(self._dsn, self._name)
            # The function's own SET does this for PostgREST alone.
            await self._conn.execute(
                "set statement_timeout = '25s'; set default_transaction_isolation = 'read committed'"
            )
        return self._conn


def _postgres_error(exc: psycopg.Error, *, sent: bool, broken: bool) -> TargetError:
    if broken and sent:
        return TargetError(Kind.AMBIGUOUS, f"the connection failed before the answer ({cause(exc)})")
    code = exc.sqlstate
    if code is None:
        kind = Kind.AUTH if turned_away(exc) else Kind.TRANSIENT
        return TargetError(kind, f"no connection to the target's database ({cause(exc)})")
    said = exc.diag.message_primary if code in {"42501", "42883", "3F000"} else None
    return TargetError(classify(code), f"the target answered {code}", Refusal(code, message=said))
