"""A relay that is turned as its loop does, until something is so."""

import asyncio
import time
from collections.abc import Callable

from daemon.breaker import BreakerOpen
from daemon.errors import TargetError
from tests.pairs import Parts


async def turned_until(parts: Parts, done: Callable[[], bool], patience: float = 20.0) -> None:
    deadline = time.monotonic() + patience
    while not done():
        assert time.monotonic() < deadline, parts.relay.status
        try:
            await parts.relay.step()
        except TargetError as exc:
            parts.relay._stumble(exc)
        except BreakerOpen:
            pass
        await asyncio.sleep(0.005)
