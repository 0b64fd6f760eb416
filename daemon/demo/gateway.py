"""The demo's stand-in for Supabase's gateway: /rest/v1 in front of PostgREST, API keys, and faults on demand.

Knows HTTP and keys. Must not know Postgres, nor what the requests mean. It relays byte for byte on plain
asyncio streams (which set TCP_NODELAY), one upstream connection per client connection: a framework and a
client library in its place would add two milliseconds and spoil every latency measured through it.
"""

import asyncio
import contextlib
import json
import ssl
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping
from http.client import responses
from typing import NamedTuple

from daemon.demo import http1
from daemon.demo.faults import Fault, Kind, Plot
from daemon.demo.http1 import Head, Outgoing
from daemon.demo.keys import ApiKeys, Refused

__all__ = ["Fault", "Gateway", "Request"]

_PREFIX = "/rest/v1"
_JSON = ("Content-Type", "application/json; charset=utf-8")


class Request(NamedTuple):
    """One request as the client sent it, and the status it was answered with (0: none)."""

    method: str
    path: str
    status: int


# Of each body so much is kept in `Gateway.openings`: enough to tell requests apart, too little to hold a row.
_OPENING = 24


class Gateway(Plot):
    """Runs in a thread with an event loop of its own, so that blocking and async callers can use it."""

    def __init__(self, upstream_port: int, keys: ApiKeys, tls: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self.upstream_port = upstream_port
        self.keys = keys
        self.tls = tls
        self.port = 0
        self.connections = 0
        self.requests: deque[Request] = deque(maxlen=100_000)
        self.openings: deque[bytes] = deque(maxlen=100_000)  # of the bodies that were read, refused ones too
        self._serving: set[asyncio.Task[None]] = set()
        self._running: tuple[threading.Thread, asyncio.AbstractEventLoop] | None = None

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}" if self.tls else f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen; on the same port again after a stop."""
        if self._running:
            return
        loop = asyncio.new_event_loop()
        listening = asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=http1.STREAM_LIMIT, ssl=self.tls)
        server = loop.run_until_complete(listening)
        self.port = server.sockets[0].getsockname()[1]
        thread = threading.Thread(target=_run, args=(loop, server), name="demo-gateway", daemon=True)
        thread.start()
        self._running = (thread, loop)

    def stop(self) -> None:
        """Close every connection at once, as a gateway that restarts does."""
        if self._running:
            thread, loop = self._running
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            self._running = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        client = _Client(self, reader, writer)
        # When the client is gone only its own upstream stream knows the task, and Python may collect the two together.
        if task := asyncio.current_task():
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        # Closing says it all, in a relay: the peer went away or talked nonsense, a fault, or the end.
        with (
            contextlib.closing(client),
            contextlib.suppress(_Hangup, http1.Malformed, OSError, asyncio.CancelledError),
        ):
            await client.serve()


def _run(loop: asyncio.AbstractEventLoop, server: asyncio.Server) -> None:
    async def wind_up() -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    loop.run_forever()
    loop.run_until_complete(wind_up())
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


class _Hangup(Exception):
    """The connection is to be closed without another word."""


class _Client:
    """One client's connection, and the upstream connection that serves it."""

    def __init__(self, gateway: Gateway, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._gateway = gateway
        self._reader = reader
        self._outgoing = Outgoing(writer)
        self._upstream: tuple[asyncio.StreamReader, Outgoing] | None = None

    async def serve(self) -> None:
        while (request := await http1.read_head(self._reader)) and await self._turn(request):
            pass

    def close(self) -> None:
        self._outgoing.close()
        self._close_upstream()

    def _close_upstream(self) -> None:
        if self._upstream:
            self._upstream[1].close()
            self._upstream = None

    async def _turn(self, request: Head) -> bool:
        """Answer one request; whether the connection stays open."""
        fault = self._gateway.take(request.path)
        if fault and fault.kind is Kind.REFUSE:
            self._record(request, 0)
            raise _Hangup
        if request.get("expect"):
            self._outgoing.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault and fault.kind is Kind.STATUS:
            return await self._reply(request, fault.code, fault.body, fault.headers)
        if not (request.path == _PREFIX or request.path.startswith(_PREFIX + "/")):
            return await self._refuse(request, 404, {"error": "requested path is invalid"})
        try:
            headers = self._admit(request)
        except Refused as refusal:
            return await self._refuse(request, 401, refusal.body)
        return await self._forward(request, headers, fault)

    def _admit(self, request: Head) -> tuple[http1.Header, ...]:
        """The headers PostgREST gets, if the request's key is good."""
        kept = request.without("authorization", "expect")
        if request.method == "OPTIONS":  # a browser's preflight carries no key
            return kept
        named = [request.get(name) for name in ("apikey", "authorization", "user-agent")]
        bearer = self._gateway.keys.authorization(named[0], named[1], named[2] or "")
        return (*kept, ("Authorization", bearer))

    async def _forward(self, request: Head, headers: tuple[http1.Header, ...], fault: Fault | None) -> bool:
        target = request.start[1].removeprefix(_PREFIX)
        target = target if target.startswith("/") else f"/{target}"
        try:
            reader, upstream = await self._connect()
        except OSError:
            return await self._refuse(request, 503, {"message": "The upstream server is not there"})
        upstream.write(Head((request.method, target, "HTTP/1.1"), headers).encode())
        try:
            await upstream.copy(self._noted(http1.request_body(self._reader, request)))
            response = await http1.read_head(reader)
        except (OSError, http1.Malformed):
            response = None
        if response is None:
            self._close_upstream()
            message = b'{"message":"An invalid response was received from the upstream server"}'
            self._write_reply(request, 502, message, (_JSON, ("Connection", "close")))
            return False
        await self._answer(request, response, http1.response_body(reader, response, request.method), fault)
        ended = response.closes or http1.ends_with_connection(response, request.method)
        if ended or not http1.framed(response):
            self._close_upstream()
        return not (ended or request.closes)

    async def _connect(self) -> tuple[asyncio.StreamReader, Outgoing]:
        if self._upstream and self._upstream[0].at_eof():
            self._close_upstream()
        if not self._upstream:
            port = self._gateway.upstream_port
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=http1.STREAM_LIMIT)
            self._upstream = reader, Outgoing(writer)
        return self._upstream

    async def _answer(self, request: Head, response: Head, body: AsyncIterator[bytes], fault: Fault | None) -> None:
        kind = fault.kind if fault else None
        if kind is Kind.DROP_RESPONSE:
            await _read_all(body)
            self._record(request, 0)
            raise _Hangup
        if fault and kind is Kind.DELAY:
            await asyncio.sleep(fault.seconds)
        if fault and kind is Kind.INSTEAD:
            await _read_all(body)
            self._write_reply(request, fault.code, fault.body, fault.headers)
            return
        self._record(request, int(response.start[1]))
        if fault and kind in (Kind.TRUNCATE, Kind.RESET, Kind.DRIP, Kind.SLOW_HEAD):
            await self._spoil(fault, response.encode(), await _read_all(body))
            return
        self._outgoing.write(response.encode())
        await self._outgoing.copy(body)

    async def _spoil(self, fault: Fault, head: bytes, body: bytes) -> None:
        if fault.kind is Kind.DRIP:
            self._outgoing.write(head)
            await self._outgoing.drip(body, fault.seconds)
        elif fault.kind is Kind.SLOW_HEAD:
            await self._outgoing.drip(head + body, fault.seconds)
        else:
            self._outgoing.write(head + body[: len(body) // 2] if body else head[:-1])
            if fault.kind is Kind.RESET:
                self._outgoing.reset()
            raise _Hangup

    async def _noted(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same body; its opening is kept."""
        opening: bytes | None = None
        async for piece in body:
            if opening is None:
                opening = piece[:_OPENING]
                self._gateway.openings.append(opening)
            yield piece

    async def _refuse(self, request: Head, code: int, body: Mapping[str, str]) -> bool:
        return await self._reply(request, code, json.dumps(body).encode(), (_JSON,))

    async def _reply(self, request: Head, code: int, body: bytes, headers: tuple[http1.Header, ...]) -> bool:
        await _read_all(self._noted(http1.request_body(self._reader, request)))
        self._write_reply(request, code, body, headers)
        return not request.closes

    def _write_reply(self, request: Head, code: int, body: bytes, headers: tuple[http1.Header, ...]) -> None:
        self._record(request, code)
        # 520, 540 and their like are Cloudflare's and Supabase's own.
        reason = responses.get(code, "Unknown")
        framed = (*headers, ("Content-Length", str(len(body))))
        head = Head(("HTTP/1.1", str(code), reason), framed).encode()
        self._outgoing.write(head if request.method == "HEAD" else head + body)

    def _record(self, request: Head, status: int) -> None:
        # Before the client can see the answer: a test that has it looks here next.
        self._gateway.requests.append(Request(request.method, request.path, status))


async def _read_all(body: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in body])
