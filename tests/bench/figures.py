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

    def having(self, workload: str, system: str, *values: str) -> list[Measured]:
        return [one for one in self.of(workload, system) if all(value in one.values for value in values)]

    def spread(self, workload: str, system: str, value: str, *, beside: str = "") -> Spread | None:
        """`beside`: only of measurements that have this value, too."""
        seen = self.having(workload, system, value, *([beside] if beside else []))
        return Spread.of(one.values[value] for one in seen)

    def ratio(self, workload: str, system: str, to: str, value: str, *, to_workload: str = "") -> Spread | None:
        """Of two systems, or of one in two workloads, within each repeat; only then the median."""
        others = {one.repeat: one.values[value] for one in self.of(to_workload or workload, to) if value in one.values}
        mine = {one.repeat: one.values[value] for one in self.of(workload, system) if value in one.values}
        return Spread.of(mine[repeat] / others[repeat] for repeat in mine if others.get(repeat))

    def cost(self, workload: str, system: str, group: str, *, per: str = "rate") -> Spread | None:
        """Microseconds of processor that a group used for each change; `per` is the value that counts changes a second."""
        return Spread.of(
            one.shares[group] / one.values[per] * 1e6
            for one in self.having(workload, system, per)
            if group in one.shares and one.values[per]
        )

    def percent(self, workload: str, system: str, group: str, *, with_value: str) -> Spread | None:
        """Of one core, in measurements that have such a value."""
        seen = self.having(workload, system, with_value)
        return Spread.of(one.shares[group] * 100 for one in seen if group in one.shares)

    def shares(self, workload: str, system: str, *, with_value: str) -> dict[str, float]:
        """The median share of each group, in measurements that have such a value."""
        found = [one.shares for one in self.having(workload, system, with_value) if one.shares]
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
