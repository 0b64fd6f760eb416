"""A port that leads to another one far away: every byte arrives later, none is held back. A process of its own.

Knows bytes and the clock. It delays and does not throttle: what was sent at once arrives at once.
"""

from __future__ import annotations

import asyncio
import os
import selectors
from collections import deque


class _Way(asyncio.Protocol):
    """One direction: what comes in here leaves on the other side, `delay` seconds later."""

    def __init__(self, delay: float) -> None:
        self.other: _Way | None = None
        self.transport: asyncio.Transport | None = None
        self._delay = delay
        self._travelling: deque[tuple[float, bytes | None]] = deque()
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._depart(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._depart(None)

    def _depart(self, data: bytes | None) -> None:
        due = self._loop.time() + self._delay
        if not self._travelling:
            self._loop.call_at(due, self._arrive)
        self._travelling.append((due, data))

    def _arrive(self) -> None:
        there = self.other.transport if self.other else None
        while self._travelling and (there is None or self._travelling[0][0] <= self._loop.time()):
            if there is None:  # still dialling
                self._loop.call_later(0.001, self._arrive)
                return
            _, data = self._travelling.popleft()
            if data is None:
                there.close()
            elif not there.is_closing():
                there.write(data)
        if self._travelling:
            self._loop.call_at(self._travelling[0][0], self._arrive)


class _Door(_Way):
    """The end that listens; it dials the other one."""

    def __init__(self, delay: float, to: int) -> None:
        super().__init__(delay)
        self._to = to
        self._dialling: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._dialling = self._loop.create_task(self._dial())

    async def _dial(self) -> None:
        far = _Way(self._delay)
        far.other = self
        try:
            await self._loop.create_connection(lambda: far, "127.0.0.1", self._to)
            self.other = far
        except OSError:
            assert self.transport
            self.transport.close()


async def serve(to: int, delay: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Door(delay, to), "127.0.0.1", 0)
    print(f"began {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    # epoll counts whole milliseconds and rounds up, which is one too many each round trip; select does not.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(serve(int(os.environ["BENCH_TO"]), float(os.environ["BENCH_DELAY"])))
