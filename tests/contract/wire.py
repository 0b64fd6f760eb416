"""A stretch of network between a client and a server, which can lose what comes back."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self


class Wire:
    """Relays bytes both ways, until told to lose an answer."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream = upstream_port
        self._server: asyncio.Server | None = None
        self._keep: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0

    def lose(self, but: int) -> None:
        """Of the next answer so many bytes arrive, then both ends are closed."""
        self._keep = but

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._note(asyncio.current_task())
        self.connections += 1
        back: asyncio.StreamWriter | None = None
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._upstream)
            self._note(asyncio.create_task(self._copy(reader, back)))
            await self._copy(there, writer, answers=True)
        except asyncio.CancelledError:
            return  # the end; whoever started this task would log it
        finally:
            writer.close()
            if back is not None:
                back.close()

    def _note(self, task: "asyncio.Task[None] | None") -> None:
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                if answers and self._keep is not None:
                    piece, self._keep = piece[: self._keep], None
                    writer.write(piece)
                    return
                writer.write(piece)
                await writer.drain()
        if not answers:
            writer.close()
