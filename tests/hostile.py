"""A gateway that means no good: it passes everything on, or says whatever a test has made up.

Knows bytes and where a request ends. While it has nothing of its own to say, it leads to the real gateway's port.
"""

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Says = Callable[[bytes], Iterable[bytes]]


@dataclass
class Hostile:
    """`heads`: of the requests that it has answered by itself."""

    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    _says: Says | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def say(self, says: Says | None) -> None:
        """From now on answer each request with these pieces, for as long as the other side listens; None: pass on."""

        async def change() -> None:
            self._says = says
            for writer in list(self._open):
                writer.close()

        asyncio.run_coroutine_threadsafe(change(), self._loop).result(10)

    def answer(self, body: bytes, *headers: str) -> None:
        """From now on answer each request with this, as a 200."""
        self.say(lambda _: [reply(body, *headers)])

    async def serve(self, to: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with (
            contextlib.closing(writer),
            contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError),
        ):
            await (self._talk(reader, writer) if self._says else _pass_on(to, reader, writer))
        self._open.discard(writer)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while says := self._says:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            body = await reader.readexactly(int(length[1]) if length else 0)
            self.heads.append(head)
            for piece in says(body):
                writer.write(piece)
                await writer.drain()


def reply(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """One answer as HTTP has it."""
    head = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


async def _pass_on(to: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    onward, back = await asyncio.open_connection("127.0.0.1", to)
    with contextlib.closing(back):
        pipes = [asyncio.ensure_future(_pipe(reader, back)), asyncio.ensure_future(_pipe(onward, writer))]
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pipe in pipes:
                pipe.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()


@contextmanager
def hostile(to: int) -> Iterator[Hostile]:
    """Listen on a free port, in a thread of its own; what is passed on goes to loopback's port `to`."""
    here = Hostile()
    loop = here._loop

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(lambda reader, writer: here.serve(to, reader, writer), "127.0.0.1", 0)

    server = loop.run_until_complete(listen())
    here.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, name="hostile-gateway", daemon=True)
    thread.start()

    async def end() -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        yield here
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
