"""One kind of request to one place: httpx' own connections, without what a browser would do with an answer.

Knows the bytes of a request and how its answer is read. Knows neither who is asked nor what for. A client of httpx adds
to each request a copy of its headers, cookies, redirects, hooks and credentials, of which none is wanted here: that was
a third of what the daemon cost at a few hundred batches a second. Below it lies httpcore, whose pool this is.
"""

import ssl
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import Any, cast

import httpcore
import httpx

UNCONNECTED = (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout)
BROKEN = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)
_CONNECTIONS, _KEPT, _CONNECT = 4, 30.0, 5.0  # seconds

# An answer is read as it comes: a few hundred bytes that are to be unpacked, and once more, are gigabytes.
UNPACKED = {"accept-encoding": "identity"}
# Bytes before a body: its head, and answers that are none yet (100 Continue, without end perhaps). And around its pieces.
_HEAD, _AROUND = 256 * 1024, 1024**2


class Unwanted(Exception):
    """An answer that is not read, or no further. The text is our own, and speaks of the answer."""


async def ask(client: httpx.AsyncClient, request: httpx.Request, longest: int) -> tuple[int, bytes]:
    """Status and body of one answer, by an ordinary client of httpx. Raises Unwanted besides what httpx raises."""
    answer = await client.send(request, stream=True)
    try:
        if packed := _packed(answer.headers):
            raise Unwanted(packed)
        found = bytearray()
        async for piece in answer.aiter_raw():
            found += piece
            _require_bounded(len(found), longest)
        return answer.status_code, bytes(found)
    finally:
        await answer.aclose()


def _packed(headers: httpx.Headers) -> str | None:
    how = headers.get("content-encoding", "")
    if all(one.strip().lower() in {"", "identity"} for one in how.split(",")):
        return None
    return f"is packed ({how[:40]}), which nobody has asked for: it is not unpacked"


def _require_bounded(size: int, longest: int) -> None:
    if size > longest:
        raise Unwanted("does not end")


class Exchange:
    """Sends what `example` would send, with another body each time. Raises UNCONNECTED, BROKEN or Unwanted.

    There are no redirects, which would carry the key to another host, and no proxy from the environment, which would
    see it. `seconds` is for each part of a request; the whole of it is for the caller to bound. Of an answer no more than
    `longest` bytes are read, and of what goes before it and around it no more either.
    """

    def __init__(
        self, example: httpx.Request, seconds: float, trust: ssl.SSLContext | None, *,
        socket_options: Iterable[tuple[int, int, int]], extensions: Mapping[str, Any], longest: int,
    ) -> None:  # fmt: skip
        self._url = httpcore.URL(str(example.url))
        self._longest = longest
        example.headers.update(UNPACKED)
        self._headers = [(name, value) for name, value in example.headers.raw if name.lower() != b"content-length"]
        timeouts = {"connect": _CONNECT, "read": seconds, "write": seconds, "pool": seconds}
        self._extensions = {"timeout": timeouts, **extensions}
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trust or httpx.create_ssl_context(trust_env=False), max_connections=_CONNECTIONS,
            keepalive_expiry=_KEPT, socket_options=socket_options, network_backend=_Backend(),
        )  # fmt: skip

    async def post(self, body: bytes) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and the body of the answer; of a packed one that is no 200, the status says enough."""
        request = httpcore.Request(
            "POST", self._url, headers=[*self._headers, (b"Content-Length", b"%d" % len(body))],
            content=body, extensions=dict(self._extensions),
        )  # fmt: skip
        answer = await self._pool.handle_async_request(request)
        try:
            headers = httpx.Headers(answer.headers)
            packed = _packed(headers)
            if packed and answer.status == httpx.codes.OK:
                raise Unwanted(packed)
            if packed:
                return answer.status, headers, b""
            cast(_Stream, answer.extensions["network_stream"]).allow(self._longest + _AROUND)
            found = bytearray()
            async for piece in cast(AsyncIterable[bytes], answer.stream):
                found += piece
                _require_bounded(len(found), self._longest)
            return answer.status, headers, bytes(found)
        finally:
            await answer.aclose()

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


class _Stream(httpcore.AsyncNetworkStream):
    """Head and body of a request leave together: two packets would wake the other side twice. httpcore writes the one,
    then the other, then reads. All that is read for one request is counted."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._head = b""
        self._begun = False
        self._left = 0

    def allow(self, size: int) -> None:
        """So much more may be read for this request."""
        self._left += size

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109  httpcore's, as below
        if not self._begun:
            self._head, self._begun, self._left = buffer, True, _HEAD
            return
        head, self._head = self._head, b""
        await self._stream.write(head + buffer, timeout)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        head, self._head, self._begun = self._head, b"", False
        if head:
            await self._stream.write(head, timeout)
        piece = await self._stream.read(max_bytes, timeout)
        self._left -= len(piece)
        _require_bounded(0, self._left)
        return piece

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.AnyIOBackend):
    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,  # noqa: ASYNC109
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:  # fmt: skip
        return _Stream(await super().connect_tcp(host, port, timeout, local_address, socket_options))
