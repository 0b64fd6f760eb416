"""When the outbox is pruned, and how far: never beyond what the target has stated.

Knows the retention and the time. Knows neither SQL nor what a relay does otherwise; nothing here can stop it.
"""

import time
from collections.abc import Callable

import structlog

from daemon.batch import Pruned
from daemon.breaker import BreakerOpen
from daemon.errors import DaemonError
from daemon.source import Source

log = structlog.get_logger()

_EVERY = 60.0


class Pruner:
    """Prunes at most once in so many seconds. `observe` is told of every pruning."""

    def __init__(
        self,
        retention: float,
        observe: Callable[[Pruned], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.retention = retention
        self._observe = observe
        self._clock = clock
        self._due = clock()

    @property
    def due(self) -> bool:
        """Is it time to prune again?"""
        return self._clock() >= self._due

    async def turn(self, source: Source, floor_id: int) -> None:
        """Prune if it is time to. `floor_id` must be that of a cursor the target has stated."""
        if not self.due:
            return
        self._due = self._clock() + min(_EVERY, self.retention / 10)
        try:
            pruned = await source.prune(floor_id, self.retention)
        except (DaemonError, BreakerOpen) as exc:
            log.warning("prune_skipped", error=str(exc))
            return
        self._observe(pruned)
        if pruned.emptied is not None:
            log.info("outbox_pruned", slot=pruned.emptied, up_to_id=pruned.up_to_id)
        if pruned.locked or pruned.holder:
            what = "somebody is using the slot, as a dump does" if pruned.locked else "somebody else prunes"
            who = pruned.holder or "it has ended by now"
            log.info("prune_skipped", error=f"{what}; it is tried again", held_by=who)
        if pruned.rotated:
            log.debug("slot_rotated")
