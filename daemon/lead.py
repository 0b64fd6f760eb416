"""Keeping the bell's connection and, on it, the leader's lock.

Knows when to connect, try, ping and give up. Knows nothing of changes. One relay of a name leads; the others
stand by. The lock elects; the epoch on the target fences (promise I6): losing the lock here only stops turns,
what makes a late write harmless is the target's own check.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable

import structlog

from daemon.errors import SourceUnavailable, SourceUnfit
from daemon.leaders import Stranger
from daemon.relay import Relay
from daemon.wakeup import Bell

log = structlog.get_logger()

_LONGEST = 5.0  # seconds between two attempts to connect


class Keeper:
    """Runs beside the relay. `observe(leads, connected)` is told of every change.

    `unable`: why this process must leave the lead to another, which may be able to do the work; None: it need not.
    """

    def __init__(
        self,
        bell: Bell,
        relay: Relay,
        observe: Callable[[bool, bool], None],
        *,
        ping: float = 3.0,
        attempt: float = 1.0,
        unable: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._bell = bell
        self._relay = relay
        self._observe = observe
        self._ping = ping
        self._attempt = attempt
        self._unable = unable
        self._lost = asyncio.Event()
        self._failures = 0
        self.leads = False
        bell.on_lost = self._on_lost

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._lost.clear()
            wait = await self.step()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._lost.wait()

    async def step(self) -> float:
        """Connect, lead or ping, whichever is due; returns the seconds until the next."""
        # One that was opened and is lost again at once has proved nothing: the waits go on growing.
        proved = self._bell.connected
        try:
            if not self._bell.connected:
                await self._bell.connect()
                if self._bell.pooled:
                    log.warning(
                        "listener_pooled",
                        advice="the source's address is a transaction pooler: outboxd polls and cannot elect a leader; "
                        "give it the direct or session-mode address",
                    )
            elif self.leads:
                await self._bell.ping()
                self._failures = 0
                return self._ping
            unable = None if self.leads else self._unable()
            if not self.leads:
                await self._bell.stand_aside(unable is not None)
            if unable:
                await self._bell.ping()
            elif not self.leads and await self._bell.try_lead(contested):
                self.leads = True
                self._relay.lead()
                log.info("leadership_won", pooled=self._bell.pooled)
            if not self.leads:
                self._relay.follow(unable, "auth")
            if proved:
                self._failures = 0
            # Behind a transaction pooler the connection is there, and nobody can ring.
            self._observe(self.leads, self._bell.connected and not self._bell.pooled)
            return self._ping if self.leads else self._attempt
        except (SourceUnavailable, SourceUnfit) as exc:
            self._failures += 1
            delay = min(0.2 * 2.0 ** min(self._failures, 8), _LONGEST) * (0.8 + 0.4 * random.random())  # noqa: S311  jitter
            self._on_lost()
            self._relay.follow(str(exc))
            log.warning("listener_lost", error=str(exc), retry_in_s=round(delay, 2))
            self._lost.clear()
            return delay

    def _on_lost(self) -> None:
        """The connection is gone and with it every lock: no further turn until they are back."""
        if self.leads:
            self.leads = False
            self._relay.follow("the connection to the source was lost")
            log.warning("leadership_lost")
        self._observe(False, False)
        self._lost.set()


def contested(stranger: Stranger) -> None:
    """The lock had to get another number: once for each time that somebody took it who may not."""
    log.warning(
        "leadership_contested",
        held_by=stranger.who,
        advice=f"it may not lead, so the lock has another number now; end it on the source: {stranger.remedy}",
    )
