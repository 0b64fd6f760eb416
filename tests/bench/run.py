"""The order of a run: which measurements there are, interleaved so that a bad moment of the machine hits all alike."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.bench.catchup import Caught, catch_up
from tests.bench.figures import Measured
from tests.bench.site import Site
from tests.bench.systems import NAMES
from tests.bench.workloads import BACKLOGS

WORKLOADS = ("W1", "W2", "W3")
# One request a change: its rate on a short backlog is its rate on a long one.
_SHORT = 1500


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    workloads: Sequence[str]
    systems: Sequence[str]
    repeats: int
    changes: int
    deadline: float
    quick: bool


@dataclass(frozen=True)
class Step:
    title: str
    measure: Callable[[Site], list[Measured]]


def steps(plan: Plan) -> Iterator[Step]:
    """Repeat by repeat, workload by workload, system by system."""
    for repeat in range(1, plan.repeats + 1):
        for workload in plan.workloads:
            yield from _catch_ups(plan, workload, repeat)


def _catch_ups(plan: Plan, workload: str, repeat: int) -> Iterator[Step]:
    for system in plan.systems:
        changes = min(plan.changes, _SHORT) if system == "rows" else plan.changes

        def measure(site: Site, system: str = system, changes: int = changes) -> list[Measured]:
            caught = catch_up(site, system, workload, changes, deadline=plan.deadline)
            return [_measured(caught, workload, system, repeat)]

        yield Step(f"{workload} {NAMES[system]} #{repeat}", measure)


def _measured(caught: Caught, workload: str, system: str, repeat: int) -> Measured:
    values: dict[str, float] = {
        "changes": caught.changes, "seconds": caught.seconds, "rate": caught.rate, "start-up": caught.start_up,
    }  # fmt: skip
    if BACKLOGS[workload].half:
        values |= {"half": caught.half, "looks": caught.looks}
    return Measured(workload, system, repeat, values, caught.shares, BACKLOGS[workload].title)
