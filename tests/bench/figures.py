"""What was measured, as values: medians, spreads, ratios within a repeat, and whether a figure was reached.

Knows arithmetic. Must not know how anything was measured.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal


@dataclass(frozen=True)
class Measured:
    """One measurement: its numbers by name, and shares of a core by group where they were noted."""

    workload: str
    system: str
    repeat: int
    values: Mapping[str, float]
    shares: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Spread:
    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, numbers: Iterable[float]) -> "Spread | None":
        known = list(numbers)
        return cls(min(known), median(known), max(known)) if known else None


@dataclass(frozen=True)
class Results:
    """Everything a run has measured so far."""

    all: Sequence[Measured]

    def of(self, workload: str, system: str) -> list[Measured]:
        return [one for one in self.all if (one.workload, one.system) == (workload, system)]

    def spread(self, workload: str, system: str, value: str) -> Spread | None:
        return Spread.of(one.values[value] for one in self.of(workload, system) if value in one.values)

    def ratio(self, workload: str, system: str, to: str, value: str, *, to_workload: str = "") -> Spread | None:
        """Of two systems, or of one in two workloads, within each repeat; only then the median."""
        others = {one.repeat: one.values[value] for one in self.of(to_workload or workload, to) if value in one.values}
        mine = {one.repeat: one.values[value] for one in self.of(workload, system) if value in one.values}
        return Spread.of(mine[repeat] / others[repeat] for repeat in mine if others.get(repeat))

    def shares(self, workload: str, system: str, *, with_value: str) -> dict[str, float]:
        """The median share of each group, in measurements that have such a value."""
        found = [one.shares for one in self.of(workload, system) if one.shares and with_value in one.values]
        return {group: median(one.get(group, 0.0) for one in found) for group in found[0]} if found else {}


@dataclass(frozen=True)
class Goal:
    """A figure of the issue: `what` must be at least, or at most, `bound`."""

    workload: str
    what: str
    sense: Literal[">=", "<=", "<"]
    bound: float
    unit: str
    seen: Spread | None

    @property
    def reached(self) -> bool | None:
        """By the median; None when it was not measured."""
        if self.seen is None:
            return None
        value = self.seen.middle
        return {">=": value >= self.bound, "<=": value <= self.bound, "<": value < self.bound}[self.sense]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "reached": self.reached}


def goals(results: Results) -> list[Goal]:
    """The figures to reach, each with what was seen of it."""
    ratio, spread = results.ratio, results.spread
    return [
        Goal("W1", "Data API / native", ">=", 0.7, "x", ratio("W1", "rest", "native", "rate")),
        Goal("W1", "Data API / batch script", ">=", 3.5, "x", ratio("W1", "rest", "batch", "rate")),
        Goal("W1", "direct / native", ">=", 0.85, "x", ratio("W1", "direct", "native", "rate")),
        Goal("W2", "Data API / native", ">=", 2.0, "x", ratio("W2", "rest", "native", "rate")),
        Goal("W3", "Data API / native", ">=", 0.5, "x", ratio("W3", "rest", "native", "rate")),
        Goal("W3", "Data API: looks at half a transaction", "<=", 0, "", spread("W3", "rest", "half")),
        Goal("W3", "direct: looks at half a transaction", "<=", 0, "", spread("W3", "direct", "half")),
        Goal("W4", "Data API, p50", "<=", 5.0, "ms", spread("W4", "rest", "p50")),
        Goal("W4", "Data API, p99", "<=", 25.0, "ms", spread("W4", "rest", "p99")),
        Goal("W4", "direct, p50", "<=", 3.0, "ms", spread("W4", "direct", "p50")),
        Goal("W5", "32 clients, daemon running / no outbox", ">=", 0.55, "x", ratio("W5", "rest", "none", "32")),
        Goal("W5", "32 clients, capture only / no outbox", ">=", 0.7, "x", ratio("W5", "capture", "none", "32")),
        Goal("W5", "32 clients, capture only / NOTIFY each time", ">=", 2.0, "x", ratio("W5", "capture", "notify", "32")),
        Goal("W6", "Data API: last tenth / first tenth", ">=", 0.9, "x", spread("W6", "rest", "last / first")),
        Goal("W6", "Data API: memory", "<", 150, "MB", spread("W6", "rest", "rss")),
        Goal("W6", "Data API: requests per 1 000 changes", "<=", 2.0, "", spread("W6", "rest", "requests")),
        *_idle(results),
        Goal("W8", "INSERT … SELECT with capture / without", ">=", 0.4, "x", ratio("W8", "bulk, capture", "bulk, none", "insert")),
        *_far(results),
        Goal("W10", "Data API / COPY TO | COPY FROM", ">=", 0.2, "x", ratio("W10", "rest", "copy", "rate")),
        Goal("W10", "direct / COPY TO | COPY FROM", ">=", 0.4, "x", ratio("W10", "direct", "copy", "rate")),
    ]  # fmt: skip


def _idle(results: Results) -> list[Goal]:
    spread = results.spread
    return [
        goal
        for system, name in (("rest", "Data API"), ("direct", "direct"))
        for goal in (
            Goal("W7", f"{name}: of a core", "<", 0.5, "%", spread("W7", system, "cpu")),
            Goal("W7", f"{name}: of a core, with heartbeats", "<", 0.5, "%", spread("W7", system, "cpu beating")),
            Goal("W7", f"{name}: requests to the target", "<=", 0, "", spread("W7", system, "requests")),
            Goal("W7", f"{name}: memory", "<", 90, "MB", spread("W7", system, "rss")),
        )
    ]


def _far(results: Results) -> list[Goal]:
    return [
        goal
        for system, name in (("rest", "Data API"), ("direct", "direct"))
        for goal in (
            Goal("W9", f"{name}: W1 far away / near", ">=", 0.6, "x",
                 results.ratio("W9", system, system, "rate", to_workload="W1")),
            Goal("W9", f"{name}: W4 far away, p50", "<=", 60.0, "ms", results.spread("W9", system, "p50")),
        )
    ]  # fmt: skip
