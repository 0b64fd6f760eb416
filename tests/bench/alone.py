"""outboxd alone: a deep backlog (W6), and nothing to do (W7)."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from itertools import pairwise, product

from tests.bench import cpu
from tests.bench.bill import sent
from tests.bench.catchup import arrived, warm
from tests.bench.rows import assert_equal
from tests.bench.site import Site
from tests.bench.systems import KIND, NAMES, BenchFailed, Daemon, moving
from tests.bench.workloads import BACKLOGS, build

_FALLS_ASLEEP = 3.0  # seconds
# With heartbeats there would be something to do every 10 s. What they cost is measured beside it.
SILENT = {"heartbeat_interval": "0"}


def deep(site: Site, changes: int, deadline: float) -> dict[str, float]:
    """The rate of each tenth, memory, and requests, through the Data API."""
    whose = f"{NAMES['rest']}, W6"
    with site.stores(KIND["rest"]) as stores, moving("rest", site, stores) as mover:
        assert isinstance(mover, Daemon)
        warm(mover, stores, whose)
        waiting = build(BACKLOGS["W6"], stores, changes)
        site.settle()
        began = mover.start()
        if not arrived(BACKLOGS["W6"].arrived, stores, deadline):
            raise BenchFailed(f"{whose}: {waiting} changes did not arrive within {deadline:g} s: {mover.last_words()}")
        ended = time.time()
        tenths = rates_of_tenths(_batches(mover, began), began)
        values = {
            "changes": waiting, "rate": waiting / (ended - began), "first": tenths[0], "last": tenths[-1],
            "last / first": tenths[-1] / tenths[0], "slowest tenth": min(tenths),
            "rss": cpu.memory(mover.outboxd.pid, "VmHWM"), "requests": sent(mover).requests / (waiting / 1000),
        }  # fmt: skip
        mover.stop()
        assert_equal(stores, whose)
        return values | {f"tenth {number}": rate for number, rate in enumerate(tenths, 1)}


def _batches(daemon: Daemon, began: float) -> Iterator[tuple[float, int]]:
    """When each was applied and its changes, by the log of this run: from the file, because whoever waits for the claim
    has read on."""
    for text in daemon.outboxd.log.read_text(encoding="utf-8").splitlines():
        line = json.loads(text) if text.startswith("{") else {}
        if line.get("event") == "batch_applied":
            moment = datetime.fromisoformat(line["timestamp"]).timestamp()
            if moment >= began:
                yield moment, line["changes"]


def rates_of_tenths(batches: Iterable[tuple[float, int]], began: float) -> list[float]:
    """Changes a second of each tenth of all that the batches carry. One that lies in two tenths is split between them."""
    moments, sums = [began], [0]
    for moment, carried in batches:
        moments.append(moment)
        sums.append(sums[-1] + carried)
    tenth = sums[-1] / 10
    reached = [_when(tenth * number, moments, sums) for number in range(11)]
    return [tenth / max(later - at, 1e-6) for at, later in pairwise(reached)]


def _when(wanted: float, moments: Sequence[float], sums: Sequence[int]) -> float:
    """The moment at which so many were applied, as if a batch went evenly from the one before to its own."""
    for (since, at), (behind, there) in zip(pairwise(moments), pairwise(sums), strict=True):
        if there >= wanted and there > behind:
            return since + (at - since) * (wanted - behind) / (there - behind)
    return moments[-1]


def idle(site: Site, systems: Sequence[str], seconds: float) -> dict[str, dict[str, float]]:
    """What each transport's daemon does while nothing is to be done: side by side, each looked at by itself. Once
    without heartbeats, and once as shipped."""
    with ExitStack() as stack:
        daemons: dict[tuple[str, bool], Daemon] = {}
        for system, beats in product(systems, (False, True)):
            stores = stack.enter_context(site.stores(KIND[system]))
            mover = stack.enter_context(moving(system, site, stores, settings=None if beats else SILENT))
            assert isinstance(mover, Daemon)
            warm(mover, stores, f"{NAMES[system]}, W7")
            mover.start()
            daemons[system, beats] = mover
        time.sleep(_FALLS_ASLEEP)
        before = {which: _state(daemon) for which, daemon in daemons.items()}
        time.sleep(seconds)
        seen = {which: _since(daemon, before[which], seconds) for which, daemon in daemons.items()}
        beating = ("cpu", "requests")
        return {
            system: {**seen[system, False], **{f"{name} beating": seen[system, True][name] for name in beating}}
            for system in systems
        }


def _state(daemon: Daemon) -> tuple[float, float, int]:
    asked = sent(daemon).requests  # first: being asked is work, too
    return asked, cpu.precisely(daemon.outboxd.pid), cpu.sleeps(daemon.outboxd.pid)


def _since(daemon: Daemon, before: tuple[float, float, int], seconds: float) -> dict[str, float]:
    pid = daemon.outboxd.pid
    used, sleeps = cpu.precisely(pid), cpu.sleeps(pid)
    return {
        "cpu": (used - before[1]) / seconds * 100,
        "wake-ups": (sleeps - before[2]) / seconds,
        "rss": cpu.memory(pid),
        "requests": sent(daemon).requests - before[0],
    }
