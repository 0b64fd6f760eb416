"""A port that leads to another one: how a server on loopback is reached over a test's own cable.

Knows bytes. It counts who knocked; while it is `closed` nobody is let in.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Forwarded:
    """Where it listens, and how often somebody connected."""

    host: str
    port: int = 0
    knocks: int = 0
    closed: bool = False
    _open: set[asyncio.Task[None]] = field(default_factory=set)


@contextmanager
def forwarded(to: int, host: str = "127.0.0.1") -> Iterator[Forwarded]:
    """Listen on a free port of `host`, in a thread of its own; everything goes to loopback's port `to`."""
    here = Forwarded(host)
    loop = asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        here._open.add(task)
        task.add_done_callback(here._open.discard)
        here.knocks += 1
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.CancelledError):
            if here.closed:
                return
            onward, back = await asyncio.open_connection("127.0.0.1", to)
            with contextlib.closing(back):
                pipes = [asyncio.ensure_future(_pipe(reader, back)), asyncio.ensure_future(_pipe(onward, writer))]
                try:
                    await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pipe in pipes:
                        pipe.cancel()
                    await asyncio.gather(*pipes, return_exceptions=True)

    server = loop.run_until_complete(asyncio.start_server(serve, host, 0))
    here.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, name="forwarding", daemon=True)
    thread.start()

    async def end() -> None:
        server.close()
        for task in list(here._open):
            task.cancel()
        await asyncio.gather(*here._open, return_exceptions=True)

    try:
        yield here
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
