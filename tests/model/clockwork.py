"""An event loop without a clock of its own and without I/O: it turns only when told to.

Each simulated process has one, so that a process can be frozen, or thrown away, with all that runs on it. Time is
a number that the world moves. Knows asyncio's loop interface as far as tasks, futures and `asyncio.timeout` use it.
"""

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable
from typing import Any


class Clock:
    """Seconds since the world began. Stands in for the module `time` in the daemon's modules."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class _Handle:
    __slots__ = ("args", "callback", "cancelled", "context", "when")

    def __init__(
        self, callback: Callable[..., Any], args: tuple[Any, ...], context: contextvars.Context | None, when: float
    ) -> None:
        self.callback, self.args, self.context, self.when, self.cancelled = callback, args, context, when, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop(asyncio.AbstractEventLoop):
    """Runs what is ready, first come first served, when `turn` is called."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ready: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self._count = 0

    def turn(self) -> None:
        """Run until nothing is ready. Timers that are due ring."""
        ready, timers, now = self._ready, self._timers, self._clock.now
        asyncio._set_running_loop(self)
        try:
            while timers and timers[0][0] <= now:
                ready.append(heapq.heappop(timers)[2])
            while ready:
                handle = ready.popleft()
                if not handle.cancelled:
                    if handle.context is None:
                        handle.callback(*handle.args)
                    else:
                        handle.context.run(handle.callback, *handle.args)
        finally:
            asyncio._set_running_loop(None)

    def next_timer(self) -> float | None:
        """When the next timer is due."""
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    # -- what asyncio asks of a loop -------------------------------------------------------------------------

    def time(self) -> float:
        return self._clock.now

    def get_debug(self) -> bool:
        return False

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **_: Any) -> Any:
        task = asyncio.Task(coro, loop=self)
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # a schedule may end at any time
        return task

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        handle = _Handle(callback, args, context, 0.0)
        self._ready.append(handle)
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        handle = _Handle(callback, args, context, when)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        return self.call_at(self._clock.now + delay, callback, *args, context=context)

    def call_exception_handler(self, context: Any) -> None:
        raise AssertionError(f"asyncio: {context}")
