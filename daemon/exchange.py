"""One kind of request to one place: httpx' own connections, without what a browser would do with an answer.

Knows the bytes of a request and how its answer is read. Knows neither who is asked nor what for. A client of httpx adds
to each request a copy of its headers, cookies, redirects, hooks and credentials, of which none is wanted here: that was
a third of what the daemon cost at a few hundred batches a second. Below it lies httpcore, whose pool this is.
"""

import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import httpcore
import httpx

# httpcore has one family of exceptions for each way to fail; httpx' own is for an answer that cannot be decoded.
UNCONNECTED = (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout)
BROKEN = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpx.HTTPError)
_CONNECTIONS, _KEPT, _CONNECT = 4, 30.0, 5.0  # seconds


class Exchange:
    """Sends what `example` would send, with another body each time. Raises UNCONNECTED or BROKEN.

    There are no redirects, which would carry the key to another host, and no proxy from the environment, which would
    see it. `seconds` is for each part of a request; the whole of it is for the caller to bound.
    """

    def __init__(
        self, example: httpx.Request, seconds: float, trust: ssl.SSLContext | None,
        socket_options: Iterable[tuple[int, int, int]], extensions: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self._url = httpcore.URL(str(example.url))
        self._headers = [(name, value) for name, value in example.headers.raw if name.lower() != b"content-length"]
        timeouts = {"connect": _CONNECT, "read": seconds, "write": seconds, "pool": seconds}
        self._extensions = {"timeout": timeouts, **extensions}
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trust or httpx.create_ssl_context(trust_env=False), max_connections=_CONNECTIONS,
            keepalive_expiry=_KEPT, socket_options=socket_options, network_backend=_Backend(),
        )  # fmt: skip

    async def post(self, body: bytes, longest: int) -> tuple[int, httpx.Headers, bytes | None]:
        """Status, headers and the body as far as it is decoded; None for one of more than `longest` bytes."""
        request = httpcore.Request(
            "POST", self._url, headers=[*self._headers, (b"Content-Length", b"%d" % len(body))],
            content=body, extensions=dict(self._extensions),
        )  # fmt: skip
        answer = await self._pool.handle_async_request(request)
        found = bytearray()
        try:
            response = httpx.Response(answer.status, headers=answer.headers, stream=_Pieces(answer.stream))
            async for piece in response.aiter_bytes():
                found += piece
                if len(found) > longest:
                    return answer.status, response.headers, None
        finally:
            await answer.aclose()
        return answer.status, response.headers, bytes(found)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


class _Pieces(httpx.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            yield piece


class _Stream(httpcore.AsyncNetworkStream):
    """Head and body of a request leave together: two packets would wake the other side twice. httpcore writes the one,
    then the other, then reads."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._head = b""
        self._begun = False

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109  httpcore's, as below
        if not self._begun:
            self._head, self._begun = buffer, True
            return
        head, self._head = self._head, b""
        await self._stream.write(head + buffer, timeout)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        head, self._head, self._begun = self._head, b"", False
        if head:
            await self._stream.write(head, timeout)
        return await self._stream.read(max_bytes, timeout)

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
