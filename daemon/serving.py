"""A small HTTP server for pages that only answer: GET and HEAD, one request a connection, bounded in everything.

Knows sockets, h11, and what a stranger may take: connections, bytes, seconds, a share of the event loop. Knows nothing
of the pages. Whoever can reach the port can be any user of this machine, so nothing here grows or waits with them.
"""

import asyncio
import errno
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

import h11
import structlog

log = structlog.get_logger()

MOST = 32  # connections at once
BACKLOG = 16  # that the kernel keeps for us beyond them
PATIENCE = 5.0  # seconds: for a whole request, and again for taking its answer
_QUEUE = 24  # that wait for a page: the other places are for who comes with a quick question, as a probe does
_MOMENT = 0.02  # seconds that a newer one leaves a client to ask, or to see that it was told all
_TAKING = 0.5  # and to take an answer that the kernel does not keep for it
_HEAD = 8 * 1024  # bytes of a request
_AFTER = 64 * 1024  # bytes that may follow a request before nobody listens any more
_SHARE = 4  # whatever time a page took, the rest of the process has so many times as much before the next one
_SHORT = 1.0  # seconds until the next try without file descriptors
_SAY = 60.0  # seconds between two lines about one kind of thing
# Nothing of ours is to be kept, guessed at, shown in a frame or loaded by another site's page.
_HEADERS = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("X-Content-Type-Options", "nosniff"),
    ("Connection", "close"),
)


@dataclass(frozen=True, slots=True)
class Request:
    """`authorities`: every name under which this machine was asked, in the Host header and in the target."""

    method: str
    path: str
    authorities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    kind: str = "text/plain; charset=utf-8"
    more: tuple[tuple[str, str], ...] = ()


def sentence(status: int, text: str, *more: tuple[str, str]) -> Answer:
    return Answer(status, f"{text}\n".encode(), more=more)


class Server:
    """On a port that is taken before anything else starts. `at_once`: pages that cost nothing and wait for no other."""

    def __init__(
        self, host: str, port: int, page: Callable[[Request], Answer], *, at_once: Collection[str] = ()
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
            self._socket.listen(BACKLOG)
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self._page = page
        self._at_once = frozenset(at_once)
        self._open: dict[_Connection, None] = {}  # the oldest first
        self._asked: deque[_Connection] = deque()
        self._news = asyncio.Event()
        self._dropped = _Counted("admin_connections_dropped")
        self._failed = _Counted("admin_pages_failed")

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._answer())
                while True:
                    await self._accept()
        finally:
            self.close()
            for connection in list(self._open):
                connection.drop()

    def close(self) -> None:
        self._socket.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            accepted, _ = await loop.sock_accept(self._socket)
        except OSError as exc:  # above all EMFILE: what is left belongs to the connections of the relay
            self._dropped.note(errno.errorcode.get(exc.errno or 0, "unknown"))
            for idle in [one for one in self._open if one.waits]:
                idle.drop()
            await asyncio.sleep(_SHORT)
            return
        try:
            await self._make_room()
            await loop.connect_accepted_socket(lambda: _Connection(self), accepted)
        except BaseException as exc:
            accepted.close()
            if not isinstance(exc, OSError):
                raise

    async def _make_room(self) -> None:
        """Who has asked nothing goes for a newer one, then who was told, the oldest first; who waits for us is waited for.
        Nobody goes before it could ask, or take its answer."""
        while len(self._open) >= MOST:
            waiting = [one for one in self._open if one.waits]
            idle = [one for one in waiting if one.has_left() <= 0]
            chosen = next((one for one in idle if not one.told), idle[0] if idle else None)
            if chosen is None:  # not a moment longer: what the kernel keeps meanwhile is bounded
                self._news.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), min((one.has_left() for one in waiting), default=_MOMENT))
            else:
                self._dropped.note("crowded_out")
                chosen.drop()

    async def _answer(self) -> None:
        """One page after the other, and never more than a share of the loop's time for all who ask."""
        while True:
            if not self._asked:
                self._news.clear()
                await self._news.wait()
                continue
            connection = self._asked.popleft()
            if connection in self._open:
                began = time.perf_counter()
                self._tell(connection)
                await asyncio.sleep(min(_SHARE * (time.perf_counter() - began), 1.0))

    def _tell(self, connection: "_Connection") -> None:
        assert connection.request is not None
        try:
            answer = self._page(connection.request)
        except Exception as exc:
            if self._failed.note(connection.request.path):
                log.error("admin_page_failed", page=connection.request.path, exc_info=exc)
            answer = sentence(500, "this page failed: the log says why")
        connection.say(answer)

    def opened(self, connection: "_Connection") -> None:
        self._open[connection] = None

    def asked(self, connection: "_Connection") -> None:
        assert connection.request is not None
        if connection.request.path in self._at_once:
            self._tell(connection)
        elif sum(one in self._open for one in self._asked) >= _QUEUE:
            self._dropped.note("too_many_ask")
            connection.say(sentence(503, "too many ask at once: ask again in a while", ("Retry-After", "1")))
        else:
            self._asked.append(connection)
            self._news.set()

    def late(self, connection: "_Connection") -> None:
        if not connection.told:
            self._dropped.note("asked_nothing")
        connection.drop()

    def gone(self, connection: "_Connection") -> None:
        self._open.pop(connection, None)
        self._news.set()


class _Connection(asyncio.Protocol):
    """One client: it asks once, is told once, and goes. `waits`: it is the client that is waited for."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD)
        self._left = _AFTER
        self._over = False  # the client has said that nothing more comes
        self.told = False
        self._heard = False
        self.request: Request | None = None
        self.waits = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._since = time.monotonic()
        self._timer = self._due()
        self._server.opened(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._timer.cancel()
        self._server.gone(self)

    def data_received(self, data: bytes) -> None:
        if self._heard:
            self._left -= len(data)
            if self._left < 0:
                self._server.late(self)
            return
        self._parser.receive_data(data)
        try:
            event = self._parser.next_event()
        except h11.RemoteProtocolError as exc:
            self._heard = True
            self.say(sentence(exc.error_status_hint, "this is no request that is understood here"))
            return
        if isinstance(event, h11.Request):
            self._heard = True
            self._hear(event)

    def eof_received(self) -> bool:
        """Half closed, it may still want its answer."""
        self._over = True
        return self._heard and not self.told

    def _hear(self, event: h11.Request) -> None:
        method, target = event.method.decode("ascii"), event.target.decode("ascii", "replace")
        names = {name for name, _ in event.headers}
        hosts = [value.decode("latin-1") for name, value in event.headers if name == b"host"]
        if event.http_version not in (b"1.0", b"1.1"):
            self.say(sentence(505, "another version of HTTP is spoken here: 1.1"))
        elif method not in ("GET", "HEAD"):
            self.say(sentence(405, "these pages only answer: GET or HEAD", ("Allow", "GET, HEAD")))
        elif b"transfer-encoding" in names or dict(event.headers).get(b"content-length", b"0").strip(b"0"):
            self.say(sentence(413, "a request here has no body"))
        else:
            path, named = _split(target)
            self.request = Request(method, path, (*hosts, *named))
            self.waits = False
            self._timer.cancel()
            self._server.asked(self)

    def say(self, answer: Answer) -> None:
        """The whole answer. What the client does not take in time is thrown away with it."""
        if self._transport.is_closing():
            return
        phrase = HTTPStatus(answer.status).phrase
        headers = (("Content-Type", answer.kind), ("Content-Length", str(len(answer.body))), *answer.more, *_HEADERS)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        body = b"" if self.request and self.request.method == "HEAD" else answer.body
        self.told = self.waits = True
        self._since = time.monotonic()
        self._timer.cancel()
        self._timer = self._due()
        self._transport.write(f"HTTP/1.1 {answer.status} {phrase}\r\n{lines}\r\n".encode("latin-1") + body)
        if self._over:
            self._transport.close()
        elif self._transport.can_write_eof():  # closed at once with something unread, the answer might not arrive
            self._transport.write_eof()

    def has_left(self) -> float:
        """Seconds: to ask; or to take all that it was told, which is longer where it does not read."""
        patience = _TAKING if self._transport.get_write_buffer_size() else _MOMENT
        return self._since + patience - time.monotonic()

    def drop(self) -> None:
        self._server.gone(self)
        if self.told and not self._transport.get_write_buffer_size():
            self._transport.close()  # the kernel has the answer, and brings it
        else:
            self._transport.abort()

    def _due(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(PATIENCE, self._server.late, self)


def _split(target: str) -> tuple[str, list[str]]:
    """The path; and the authority of a target in absolute form, which counts like a Host header."""
    path = target.partition("?")[0]
    if path.startswith("/"):
        return path, []
    _, _, rest = path.partition("://")
    authority, slash, rest = rest.partition("/")
    return slash + rest, [authority]


class _Counted:
    """Things that happen as often as a stranger wants: one line a minute, with how often each happened since the last."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._counts: Counter[str] = Counter()
        self._said = -_SAY
        self._due: asyncio.TimerHandle | None = None

    def note(self, what: str) -> bool:
        """Is it the first since the last line?"""
        self._counts[what] += 1
        first = self._due is None
        if first:
            loop = asyncio.get_running_loop()
            self._due = loop.call_later(max(1.0, self._said + _SAY - loop.time()), self._say)
        return first

    def _say(self) -> None:
        self._due, self._said = None, asyncio.get_running_loop().time()
        log.warning(self._event, counts=dict(self._counts))
        self._counts.clear()
