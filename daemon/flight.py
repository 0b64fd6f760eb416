"""Batches on their way: two at most, in order.

Knows when a second request may follow the first, and how to wait for the older one. Knows nothing of what a batch
holds, nor what its answer means. The second reaches the target while the first is being applied there, waits for the
lock on the cursor row, and hides the way between.

Promise I3 with two on their way: each names the digest of the batch before it (`after`), so the second is applied
behind exactly the first it was read behind, or not at all (sql/target/0003_apply.sql).
"""

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from daemon.batch import Batch
from daemon.delivery import Load
from daemon.plan import Plan
from daemon.target import Answer
from daemon.tracing import Tracing

_IN_FLIGHT = 2
_MOMENT = 1.0  # seconds
_NEAR = 0.02  # seconds: what comes meanwhile can wait for an answer that is here so soon
_LONG = 2.0  # seconds: the second of two that take so long would give up waiting for the first's lock


@dataclass(frozen=True, slots=True)
class Flight:
    """A batch that was sent, and the answer to come. `started` is on the monotonic clock; `trace` names its span."""

    batch: Batch
    load: Load
    started: float
    outcome: asyncio.Task[tuple[Plan, Answer]]
    trace: Mapping[str, str]


class Flights:
    """The batches of one turn that are on their way. `usual` is how long an answer takes, in seconds."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        self._tracing = tracing
        self._flights: deque[Flight] = deque()
        self.usual = 0.0

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def last(self) -> Flight | None:
        """The one that was sent last."""
        return self._flights[-1] if self._flights else None

    def room_in(self, now: float) -> float | None:
        """Seconds until one more may be sent; None: not before one has arrived.

        The second follows a full batch at once. Behind a small one it waits for half the time an answer takes: sent
        close together, both would carry little, and might overtake each other on the way. Near by it waits for the
        answer: a request costs both sides more than it saves there.
        """
        last = self.last
        if last is None:
            return 0.0
        if len(self._flights) >= _IN_FLIGHT or last.load.settles or self.usual > _LONG:
            return None
        if last.batch.more:
            return 0.0
        return None if self.usual < _NEAR else max(0.0, last.started + self.usual / 2 - now)

    def launch(self, batch: Batch, load: Load, send: Coroutine[Any, Any, tuple[Plan, Answer]]) -> None:
        """Send a batch; `landed` has its answer."""
        outcome = asyncio.create_task(send)
        trace = self._tracing.cover(outcome, batch, load) if self._tracing else {}
        self._flights.append(Flight(batch, load, time.monotonic(), outcome, trace))

    async def landed(self, patience: float | None = None) -> Flight | None:
        """The oldest, once its outcome is known; None when that takes longer than `patience` seconds."""
        oldest = self._flights[0]
        await asyncio.wait({oldest.outcome}, timeout=patience)
        if not oldest.outcome.done():
            return None
        self._flights.popleft()
        seconds = time.monotonic() - oldest.started
        self.usual += (seconds - self.usual) / 4 if self.usual else seconds
        return oldest

    async def give_up(self, ahead: asyncio.Future[Any] | None = None, patience: float = _MOMENT) -> None:
        """Let go of all that is on its way, and of what is read ahead: whether it arrives, the target's cursor will tell.

        What fails together fails quickly: a moment is left for that, because to cancel costs a connection.
        """
        outcomes: set[asyncio.Future[Any]] = {flight.outcome for flight in self._flights} | (
            {ahead} if ahead else set()
        )
        self._flights.clear()
        if outcomes:
            _, late = await asyncio.wait(outcomes, timeout=patience)
            for outcome in late:
                outcome.cancel()
            await asyncio.wait(outcomes)
            for outcome in outcomes:
                if not outcome.cancelled():
                    outcome.exception()  # looked at, or asyncio complains
