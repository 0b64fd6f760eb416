"""HTTP/1.1 as a relay needs it: heads are read, bodies pass through unread.

Knows where a message begins and ends on a stream. Must not know keys, faults or where messages go.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

# One read's worth; also the longest head that is accepted.
STREAM_LIMIT = 256 * 1024

Header = tuple[str, str]


class Malformed(Exception):
    """The peer does not speak HTTP/1.1 as we know it."""


@dataclass(frozen=True)
class Head:
    """The first line of a request or response, and its headers."""

    start: tuple[str, str, str]
    headers: tuple[Header, ...]

    @property
    def method(self) -> str:
        return self.start[0]

    @property
    def path(self) -> str:
        """A request's target without its query."""
        return self.start[1].partition("?")[0]

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    def without(self, *names: str) -> tuple[Header, ...]:
        return tuple(header for header in self.headers if header[0].lower() not in names)

    def encode(self) -> bytes:
        lines = [" ".join(self.start), *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    @property
    def length(self) -> int:
        stated = self.get("content-length") or "0"
        if not stated.isdecimal():
            raise Malformed("content-length is no number")
        return int(stated)

    @property
    def closes(self) -> bool:
        """Whether the connection ends with this message."""
        wish = (self.get("connection") or "").lower()
        return "close" in wish or ("HTTP/1.0" in self.start and "keep-alive" not in wish)


class Outgoing:
    """A stream to write to, which sends what piles up until the event loop turns as one packet."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._pending: list[bytes] = []
        self._size = 0

    def write(self, piece: bytes) -> None:
        if not self._pending:
            self._loop.call_soon(self._send)
        self._pending.append(piece)
        self._size += len(piece)

    async def copy(self, body: AsyncIterator[bytes]) -> None:
        async for piece in body:
            self.write(piece)
            if self._size >= STREAM_LIMIT:
                self._send()
                await self._writer.drain()

    async def drip(self, message: bytes, seconds: float) -> None:
        """Byte by byte, so many seconds apart."""
        for byte in message:
            self.write(bytes([byte]))
            await asyncio.sleep(seconds)

    def reset(self) -> None:
        """Send what there is, then end the connection as a crash does, not as a goodbye."""
        self._send()
        plug = self._writer.get_extra_info("socket")
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        self._send()
        self._writer.close()

    def _send(self) -> None:
        if self._pending and not self._writer.is_closing():
            self._writer.write(b"".join(self._pending))
        self._pending.clear()
        self._size = 0


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """The next head, or None when the peer closed between two messages."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise Malformed("the connection ended inside a head") from error
        return None
    except asyncio.LimitOverrunError as error:
        raise Malformed("the head is too long") from error
    first, *rest = raw[:-4].decode("latin-1").split("\r\n")
    start = first.split(" ", 2)
    if len(start) == 2:  # a response may leave its reason out
        start.append("")
    if len(start) != 3 or "HTTP/1." not in first:
        raise Malformed("not an HTTP/1.1 message")
    headers = tuple(line.partition(":")[::2] for line in rest)
    return Head((start[0], start[1], start[2]), tuple((name, value.strip()) for name, value in headers))


def request_body(reader: asyncio.StreamReader, head: Head) -> AsyncIterator[bytes]:
    """The body of a request, framing included."""
    if _chunked(head):
        return _chunks(reader)
    return _counted(reader, head.length)


def response_body(reader: asyncio.StreamReader, head: Head, method: str) -> AsyncIterator[bytes]:
    """The body of a response, framing included."""
    if ends_with_connection(head, method):
        return _until_closed(reader)
    if _has_no_body(head, method):
        return _counted(reader, 0)
    if _chunked(head):
        return _chunks(reader)
    return _counted(reader, head.length)


def ends_with_connection(head: Head, method: str) -> bool:
    """Whether only closing the connection can end this response's body."""
    return not framed(head) and not _has_no_body(head, method)


def framed(head: Head) -> bool:
    """Whether a head says where its body ends. PostgREST closes after one that does not, to a HEAD too, untold."""
    return _chunked(head) or head.get("content-length") is not None or head.start[1] in ("204", "304")


def _has_no_body(head: Head, method: str) -> bool:
    return method == "HEAD" or head.start[1] in ("204", "304")


def _chunked(head: Head) -> bool:
    return "chunked" in (head.get("transfer-encoding") or "").lower()


async def _counted(reader: asyncio.StreamReader, length: int) -> AsyncIterator[bytes]:
    while length > 0:
        piece = await reader.read(min(length, STREAM_LIMIT))
        if not piece:
            raise Malformed("the connection ended inside a body")
        length -= len(piece)
        yield piece


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise Malformed("a chunked body is broken") from error


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        line = await _line(reader)
        yield line
        try:
            size = int(line.split(b";")[0], 16)
        except ValueError as error:
            raise Malformed("a chunk has no size") from error
        if size == 0:
            break
        async for piece in _counted(reader, size + 2):
            yield piece
    while line != b"\r\n":  # trailers, and the empty line after them
        line = await _line(reader)
        yield line


async def _until_closed(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(STREAM_LIMIT):
        yield piece
