"""The one place in the tests that polls. Nothing else in them may wait by the clock."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Result = TypeVar("Result")

_PAUSE = 0.005


def wait_until(condition: Callable[[], Result], deadline: float = 10.0) -> Result:
    """What the condition returned as soon as that was true; fails when it is still false at the deadline."""
    end = time.monotonic() + deadline
    pause = threading.Event()
    while not (result := condition()):
        assert time.monotonic() < end, _too_late(condition, deadline)
        pause.wait(_PAUSE)
    return result


async def wait_until_async(condition: Callable[[], Awaitable[Result]], deadline: float = 10.0) -> Result:
    """The same for a condition that is awaited, leaving the event loop free meanwhile."""
    end = time.monotonic() + deadline
    pause = asyncio.Event()
    while not (result := await condition()):
        assert time.monotonic() < end, _too_late(condition, deadline)
        try:
            await asyncio.wait_for(pause.wait(), _PAUSE)
        except TimeoutError:
            continue
    return result


def _too_late(condition: Callable[[], object], deadline: float) -> str:
    name = getattr(condition, "__qualname__", repr(condition))
    return f"{name} was not true within {deadline} s"
