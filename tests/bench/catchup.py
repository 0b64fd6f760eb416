"""How long a system takes for a backlog: from the moment it begins to move until the last transaction has arrived."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import LiteralString

from tests.bench import cpu
from tests.bench.bill import NOTHING, sent
from tests.bench.rows import assert_equal
from tests.bench.site import Site, Stores, connect
from tests.bench.systems import KIND, NAMES, BenchFailed, Daemon, Mover, moving
from tests.bench.workloads import BACKLOGS, WARMED, Backlog, build, warm_up

DEADLINE = 300.0  # seconds
_LOOK = 0.005  # seconds between two probes
_LOOK_HALF = 0.25


@dataclass(frozen=True)
class Caught:
    """`shares` are of one core, by group; `half`: in how many of `looks` a transaction was seen half on the target;
    `daemon`: what outboxd's sent to the target for a thousand changes, and the most memory that it had."""

    changes: int
    seconds: float
    start_up: float
    shares: dict[str, float]
    half: int = 0
    looks: int = 0
    daemon: Mapping[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.changes / self.seconds


@dataclass
class _Onlooker:
    """Looks a few times a second whether half a transaction is visible; the same for every system."""

    stores: Stores
    question: LiteralString
    looks: int = 0
    half: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        with connect(self.stores.target) as conn:
            while not self._over.wait(_LOOK_HALF):
                ((half,),) = conn.execute(self.question).fetchall()
                self.looks += 1
                self.half += half > 0

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def catch_up(
    site: Site, system: str, workload: str, changes: int, *, deadline: float = DEADLINE, delay: float = 0.0,
    tamper: Callable[[Stores], None] | None = None, backlog: Backlog | None = None,
) -> Caught:  # fmt: skip
    """One measurement, on databases of its own. `tamper` is for those who test the bench."""
    backlog, whose = backlog or BACKLOGS[workload], f"{NAMES[system]}, {workload}"
    with site.stores(KIND[system], backlog.schema) as stores, moving(system, site, stores, delay=delay) as mover:
        warm(mover, stores, whose)
        waiting = build(backlog, stores, changes)
        if tamper:
            tamper(stores)
        site.settle()
        caught = _clocked(site, mover, stores, backlog, deadline)
        if not caught:
            raise BenchFailed(f"{whose}: {waiting} changes did not arrive within {deadline:g} s: {mover.last_words()}")
        daemon = _daemon(mover, waiting)
        mover.stop()
        assert_equal(stores, whose)
        return replace(caught, changes=waiting, daemon=daemon)


def _daemon(mover: Mover, changes: int) -> dict[str, float]:
    """Its process began with the clock. Of other systems nothing is known."""
    if not isinstance(mover, Daemon):
        return {}
    return {**sent(mover).since(NOTHING, changes), "rss": cpu.memory(mover.outboxd.pid, "VmHWM")}


def warm(mover: Mover, stores: Stores, whose: str) -> None:
    """The same small backlog for everybody; afterwards it stands still again."""
    warm_up(stores)
    mover.start()
    if not arrived(WARMED, stores, 60.0):
        raise BenchFailed(f"{whose}: the warm-up did not arrive within 60 s: {mover.last_words()}")
    mover.stop()


def _clocked(site: Site, mover: Mover, stores: Stores, backlog: Backlog, deadline: float) -> Caught | None:
    """None: it did not arrive in time."""
    clusters = {"source": site.source.pid, "target": site.target.pid}
    started = time.time()
    began = mover.start()
    onlooker = _Onlooker(stores, backlog.half) if backlog.half else None
    before = cpu.used({**clusters, **mover.groups})
    came = arrived(backlog.arrived, stores, deadline)
    ended = time.time()
    shares = before.until(cpu.used({**clusters, **mover.groups}))
    if onlooker:
        onlooker.stop()
    half = (onlooker.half, onlooker.looks) if onlooker else (0, 0)
    return Caught(0, ended - began, began - started, shares, *half) if came else None


def arrived(question: LiteralString, stores: Stores, deadline: float = DEADLINE) -> bool:
    """Ask the target every few milliseconds, until it says yes or time is up."""
    end = time.monotonic() + deadline
    with connect(stores.target) as conn:
        while conn.execute(question, prepare=True).fetchall() != [(True,)]:
            if time.monotonic() > end:
                return False
            time.sleep(_LOOK)
    return True
