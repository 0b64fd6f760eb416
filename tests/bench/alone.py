"""outboxd alone: a deep backlog (W6), and nothing to do (W7)."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from itertools import product

from tests.bench import cpu
from tests.bench.bill import requests
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
        tenths = _tenths(mover, began, waiting)
        values = {
            "changes": waiting, "rate": waiting / (ended - began), "first": tenths[0], "last": tenths[-1],
            "last / first": tenths[-1] / tenths[0], "slowest tenth": min(tenths),
            "rss": cpu.memory(mover.outboxd.pid, "VmHWM"), "requests": requests(mover) / (waiting / 1000),
        }  # fmt: skip
        mover.stop()
        assert_equal(stores, whose)
        return values | {f"tenth {number}": rate for number, rate in enumerate(tenths, 1)}


def _tenths(daemon: Daemon, began: float, changes: int) -> list[float]:
    """Changes a second of each tenth, by what its log says of each batch."""
    applied, at, begun = 0, [], began
    for line in daemon.outboxd.said():
        if line["event"] == "batch_applied":
            applied += line["changes"]
            moment = datetime.fromisoformat(line["timestamp"]).timestamp()
            at.append((applied, moment))
    rates, behind = [], 0
    for number in range(1, 11):
        there, moment = next((entry for entry in at if entry[0] >= changes * number / 10), at[-1])
        rates.append((there - behind) / (moment - begun))
        behind, begun = there, moment
    return rates


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
    asked = requests(daemon)  # first: being asked is work, too
    return asked, cpu.precisely(daemon.outboxd.pid), cpu.sleeps(daemon.outboxd.pid)


def _since(daemon: Daemon, before: tuple[float, float, int], seconds: float) -> dict[str, float]:
    pid = daemon.outboxd.pid
    used, sleeps = cpu.precisely(pid), cpu.sleeps(pid)
    return {
        "cpu": (used - before[1]) / seconds * 100,
        "wake-ups": (sleeps - before[2]) / seconds,
        "rss": cpu.memory(pid),
        "requests": requests(daemon) - before[0],
    }
