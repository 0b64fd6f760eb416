"""The order of a run: which measurements there are, interleaved so that a bad moment of the machine hits all alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.alone import deep, idle
from tests.bench.bulk import bulk
from tests.bench.catchup import Caught, catch_up
from tests.bench.copying import PIPE, copying
from tests.bench.figures import Measured
from tests.bench.site import Site
from tests.bench.steady import steady
from tests.bench.systems import KIND, NAMES
from tests.bench.verifying import verifying
from tests.bench.workloads import BACKLOGS
from tests.bench.writers import TPC_B_WAYS, WAYS, tpc_b, writers

WORKLOADS = ("W1", "W2", "W3", "W4", "W5", "W6", "W7", "W8", "W9", "W10", "W11", "W12")
_ONCE = ("W6", "W7", "W9", "W10", "W11")  # long
_BACKLOGS = ("W1", "W2", "W3", "W8", "W12")
_QUICKLY = ("W2", "W3", "W8", "W12")  # without the script, in a quick run
# One request a change: its rate on a short backlog is its rate on a long one.
_SHORT = 1500
_FAR = 0.025  # seconds each way


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    workloads: Sequence[str]
    systems: Sequence[str]
    repeats: int
    changes: int
    deadline: float
    quick: bool
    waiting: Sequence[int] = ()

    def among(self, *systems: str) -> list[str]:
        return [system for system in self.systems if system in systems]

    @property
    def steady(self) -> float:
        """Seconds of W4 in each repeat: thirty in all."""
        return 3.0 if self.quick else 30.0 / min(self.repeats, 3)


@dataclass(frozen=True)
class Step:
    title: str
    measure: Callable[[Site], list[Measured]]


def steps(plan: Plan) -> Iterator[Step]:
    """Repeat by repeat, workload by workload, system by system."""
    workloads = list(plan.workloads)
    if "W9" in workloads:  # a ratio to W1
        workloads = ["W1", *workloads] if "W1" not in workloads else workloads
    for repeat in range(1, plan.repeats + 1):
        for workload in workloads:
            if workload in _BACKLOGS:
                systems = plan.systems if workload in plan.workloads else plan.among("rest", "direct")
                yield from _catch_ups(plan, systems, workload, repeat)
            if workload in _OTHERS and not (workload in _ONCE and repeat > 1):
                yield from _OTHERS[workload](plan, repeat)


def _catch_ups(plan: Plan, systems: Sequence[str], workload: str, repeat: int) -> Iterator[Step]:
    for system in _turned(systems, repeat):
        if _spared(plan, workload, system, repeat):
            continue
        full = plan.changes // 10 if workload == "W8" else plan.changes
        changes = min(full, _SHORT) if system == "rows" else full

        def measure(site: Site, system: str = system, changes: int = changes) -> list[Measured]:
            caught = catch_up(site, system, workload, changes, deadline=plan.deadline)
            return [_caught(caught, workload, system, repeat)]

        yield Step(f"{workload} {NAMES[system]} #{repeat}", measure)


def _turned(systems: Sequence[str], repeat: int) -> list[str]:
    """Another one goes first in each repeat: none always meets the machine as the one before it left it."""
    first = (repeat - 1) % max(1, len(systems))
    return [*systems[first:], *systems[:first]]


def _spared(plan: Plan, workload: str, system: str, repeat: int) -> bool:
    """Whoever is far from all others is looked at once; a quick run asks for what the figures to reach need."""
    if system == "rows":
        return repeat > 1 or workload not in (("W1",) if plan.quick else ("W1", "W2", "W3", "W4"))
    if system == "batch":
        return workload in _QUICKLY if plan.quick else (workload == "W12" and repeat > 1)
    return plan.quick and workload == "W12" and system == "direct"


def _caught(caught: Caught, workload: str, system: str, repeat: int) -> Measured:
    values: dict[str, float] = {
        "changes": caught.changes, "seconds": caught.seconds, "rate": caught.rate, "start-up": caught.start_up,
    }  # fmt: skip
    if workload in BACKLOGS and BACKLOGS[workload].half:
        values |= {"half": caught.half, "looks": caught.looks}
    title = BACKLOGS["W1" if workload == "W9" else workload].title
    return Measured(workload, system, repeat, {**values, **caught.daemon}, caught.shares, title)


def _steady(plan: Plan, repeat: int) -> Iterator[Step]:
    for system in _turned(plan.systems, repeat):
        if _spared(plan, "W4", system, repeat):
            continue

        def measure(site: Site, system: str = system) -> list[Measured]:
            return [Measured("W4", system, repeat, *steady(site, system, plan.steady))]

        yield Step(f"W4 {NAMES[system]} #{repeat}", measure)


def _blocks(plan: Plan, repeat: int) -> Iterator[Step]:
    """The second half of W12: how late its transactions arrive, 20 of them a second. Once, and not quickly."""
    if repeat > 1 or plan.quick:
        return
    for system in plan.among("native", "rest", "direct"):

        def measure(site: Site, system: str = system) -> list[Measured]:
            return [Measured("W12", system, repeat, *steady(site, system, plan.steady, workload="W12"))]

        yield Step(f"W12 latency, {NAMES[system]} #{repeat}", measure)


def _writers(plan: Plan, repeat: int) -> Iterator[Step]:
    seconds = {32: 2} if plan.quick else {1: 2, 32: 3}
    for way in _turned(list(WAYS), repeat):
        if way in KIND and way not in plan.systems:
            continue

        def measure(site: Site, way: str = way) -> list[Measured]:
            return [Measured("W5", way, repeat, writers(site, way, seconds))]

        yield Step(f"W5 {WAYS[way]} #{repeat}", measure)
    for way in () if repeat > 1 or plan.quick else TPC_B_WAYS:  # its tables take a while to fill
        if way in KIND and way not in plan.systems:
            continue

        def tpc(site: Site, way: str = way) -> list[Measured]:
            return [Measured("W5", way, repeat, tpc_b(site, way, 4))]

        yield Step(f"W5 TPC-B, {WAYS[way]} #{repeat}", tpc)


def _deep(plan: Plan, repeat: int) -> Iterator[Step]:
    def measure(site: Site) -> list[Measured]:
        return [Measured("W6", "rest", repeat, deep(site, plan.changes * (3 if plan.quick else 10), plan.deadline))]

    yield Step(f"W6 {NAMES['rest']}", measure)


def _idle(plan: Plan, repeat: int) -> Iterator[Step]:
    def measure(site: Site) -> list[Measured]:
        seen: Mapping[str, Mapping[str, float]] = idle(site, plan.among("rest", "direct"), 6 if plan.quick else 30)
        return [Measured("W7", system, repeat, values) for system, values in seen.items()]

    yield Step("W7 idle", measure)


def _bulk(plan: Plan, repeat: int) -> Iterator[Step]:
    for kind, name in (("plain", "bulk, none"), ("outboxd", "bulk, capture")):

        def measure(site: Site, kind: str = kind, name: str = name) -> list[Measured]:
            return [Measured("W8", name, repeat, bulk(site, kind, plan.changes))]

        yield Step(f"W8 {name} #{repeat}", measure)


def _far(plan: Plan, repeat: int) -> Iterator[Step]:
    for system in plan.among("rest") if plan.quick else plan.among("rest", "direct"):

        def backlog(site: Site, system: str = system) -> list[Measured]:
            caught = catch_up(site, system, "W1", plan.changes, deadline=plan.deadline, delay=_FAR)
            return [_caught(caught, "W9", system, repeat)]

        def load(site: Site, system: str = system) -> list[Measured]:
            return [Measured("W9", system, repeat, *steady(site, system, plan.steady / 2, _FAR))]

        yield Step(f"W9 W1 far away, {NAMES[system]} #{repeat}", backlog)
        yield Step(f"W9 W4 far away, {NAMES[system]} #{repeat}", load)


def _copying(plan: Plan, repeat: int) -> Iterator[Step]:
    for way in _turned([PIPE, *plan.among("rest", "direct")], repeat):

        def measure(site: Site, way: str = way) -> list[Measured]:
            rows = plan.changes * (5 if plan.quick else 10)
            return [Measured("W10", way, repeat, *copying(site, way, rows, plan.deadline))]

        yield Step(f"W10 {NAMES.get(way, 'COPY … TO | COPY … FROM')} #{repeat}", measure)


def _verifying(plan: Plan, repeat: int) -> Iterator[Step]:
    def measure(site: Site) -> list[Measured]:
        systems = plan.among("rest", "direct")[: 1 if plan.quick else 2]
        rows, seconds = (plan.changes, 1.0) if plan.quick else (plan.changes * 2, 4.0)
        found = verifying(site, systems, rows, seconds, plan.deadline) if systems else {}
        return [Measured("W11", system, repeat, values) for system, values in found.items()]

    yield Step("W11 verification", measure)


_OTHERS: Mapping[str, Callable[[Plan, int], Iterator[Step]]] = {
    "W4": _steady, "W5": _writers, "W6": _deep, "W7": _idle, "W8": _bulk, "W9": _far, "W10": _copying, "W11": _verifying,
    "W12": _blocks,
}  # fmt: skip
