"""A pooler in transaction mode, as small as can be: server connections, handed on after every transaction.

Knows how the protocol frames messages. No authentication (the test clusters trust), no cancel requests.
"""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

_SSL, _GSS = 80877103, 80877104


@asynccontextmanager
async def pooled(dsn: str, size: int = 1) -> AsyncIterator[str]:
    """A DSN that leads to the same database through so many server connections, used in turn."""
    at = urlsplit(dsn)
    idle: asyncio.Queue[_Server] = asyncio.Queue()
    servers = [await _Server.open(dsn) for _ in range(size)]
    for server in servers:
        idle.put_nowait(server)

    async def serve(client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        lent: _Server | None = None
        try:
            await _greeted(client, back)
            back.write(servers[0].greeting)
            while (message := await _message(client))[:1] != b"X":
                lent = lent or await idle.get()
                lent.writer.write(message)
                if message[:1] in b"QS":  # a query, or the end of a batch: now the server answers
                    answer = await _answer(lent.reader)
                    back.write(answer)
                    if answer[-1:] == b"I":  # no transaction is open
                        idle.put_nowait(lent)
                        lent = None
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            if lent:
                idle.put_nowait(lent)
            back.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        try:
            yield f"postgresql://{at.username}@127.0.0.1:{port}{at.path}"
        finally:
            for server in servers:
                server.writer.close()
                await server.writer.wait_closed()


@dataclass(frozen=True)
class _Server:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    greeting: bytes

    @classmethod
    async def open(cls, dsn: str) -> "_Server":
        at = urlsplit(dsn)
        reader, writer = await asyncio.open_connection(at.hostname, at.port)
        writer.write(_startup(user=at.username or "", database=at.path.strip("/")))
        return cls(reader, writer, await _answer(reader))


def _startup(**parameters: str) -> bytes:
    body = b"".join(f"{name}\0{value}\0".encode() for name, value in parameters.items()) + b"\0"
    return struct.pack("!ii", len(body) + 8, 196608) + body


async def _greeted(client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
    while True:
        length, code = struct.unpack("!ii", await client.readexactly(8))
        if code not in (_SSL, _GSS):
            await client.readexactly(length - 8)
            return
        back.write(b"N")


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)


async def _answer(reader: asyncio.StreamReader) -> bytes:
    """Everything up to ReadyForQuery."""
    answer = b""
    while True:
        message = await _message(reader)
        answer += message
        if message[:1] == b"Z":
            return answer
