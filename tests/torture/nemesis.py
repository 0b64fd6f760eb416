"""Who inflicts faults: one lane for the daemons, one for the stores, side by side; each draws from its own seed.

Knows when and how often. Must not know what a fault is.
"""

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psycopg

from daemon.demo.process import poll_until
from tests.torture.faults import ON_DAEMONS, ON_STORES, Fault
from tests.torture.world import World

_PATIENT = 0.8
Say = Callable[[str], None]


@dataclass(frozen=True)
class Lane:
    """One fault after another, with about so many seconds between them; mostly once things are `ready` for it."""

    name: str
    faults: Sequence[Fault]
    pause: float
    ready: Callable[[World], bool]


def _one_leads(world: World) -> bool:
    return any(member.leads for member in world.fleet.members)


# A daemon that is killed before it has begun, again and again, meets nothing of what the other lane does.
LANES = (Lane("daemons", ON_DAEMONS, 2.5, _one_leads), Lane("stores", ON_STORES, 1.0, lambda _: True))


class Nemesis:
    """Works through a lane: each fault once, then by weight. `failure` is a bug of the torture itself."""

    def __init__(self, lane: Lane, world: World, seed: int, until: float, say: Say) -> None:
        """`until`: when the run ends, by the monotonic clock."""
        self.inflicted: Counter[str] = Counter()
        self.failure: str | None = None
        self._lane = lane
        self._world = world
        self._random = random.Random(f"{seed}/{lane.name}")
        self._until = until
        self._say = say
        self._first = self._random.sample(lane.faults, len(lane.faults))
        self._thread = threading.Thread(target=self._run, name=f"nemesis-{lane.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """The fault in hand is mended first."""
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._world.stopped.is_set():
                if self._random.random() < _PATIENT:
                    poll_until(lambda: self._lane.ready(self._world) or self._world.stopped.is_set(), 15)
                self._world.wait(self._lane.pause * self._random.uniform(0.5, 1.5))
                if not self._world.stopped.is_set():
                    self._inflict(self._next())
        except Exception:  # noqa: BLE001  (a thread has nobody above it: the verdict asks)
            self.failure = traceback.format_exc()
            self._world.stopped.set()

    def _next(self) -> Fault:
        if self._first:
            return self._first.pop()
        return self._random.choices(self._lane.faults, [fault.weight for fault in self._lane.faults])[0]

    def _inflict(self, fault: Fault) -> None:
        if fault.needs > self._until - time.monotonic():
            return
        lasts = self._random.uniform(*fault.lasts)
        began = time.monotonic()
        self._say(f"{fault.name}{f' for {lasts:.1f} s' if lasts else ''}")
        try:
            with fault.inflict(self._world, self._random):
                self._world.wait(lasts)
        except psycopg.Error as error:  # the other lane's fault was in the way
            self._say(f"{fault.name}: came to nothing ({error.sqlstate or type(error).__name__})")
            return
        self.inflicted[fault.name] += 1
        if lasts:
            self._say(f"{fault.name}: mended after {time.monotonic() - began:.1f} s")
