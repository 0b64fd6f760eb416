"""What is worked out when Prometheus asks: the lag, the latency of changes, what verifications have found.

Knows prometheus_client's way to collect. Must not know who observes, nor what else is measured: daemon/series.py.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric

DRIFTS = ("missing", "different", "extra")

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)

Report = Callable[[], Iterable[Mapping[str, Any]]]  # one line a table


class Lag:
    """How far the target is behind. Asked at scrape time, so that it grows while the loop hangs."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._clock, self._wall = clock, wall
        self._seconds = self._backlog = math.nan  # nothing is known before the first look
        self._at = self.observed_at = 0.0

    def observe(self, seconds_behind: float, backlog: int) -> None:
        """The age of the oldest committed change not applied, by the source's clock, and how many there are."""
        self._seconds, self._backlog = max(seconds_behind, 0.0), backlog
        self._at, self.observed_at = self._clock(), self._wall()

    def forget(self) -> None:
        """No longer looking, as on standby: an old number would be a wrong one."""
        self._seconds = self._backlog = math.nan

    def seconds(self) -> float:
        # With nothing waiting there is nothing that grows older.
        return self._seconds + (self._clock() - self._at if self._backlog > 0 else 0.0)

    def backlog(self) -> float:
        return self._backlog

    def now(self) -> tuple[float, int]:
        """Seconds and changes for a status page: 0 and 0 while unknown, for JSON has no NaN."""
        return (0.0, 0) if math.isnan(self._backlog) else (self.seconds(), int(self._backlog))


class Latency:
    """A histogram of which every change is an observation: the library's own takes seven times as long for each."""

    _NAME = "outboxd_change_latency_seconds"
    _HELP = "From the change's row in the outbox to the target's answer."

    def __init__(self) -> None:
        self._counts = [0] * (len(_LATENCY) + 1)
        self._sum = 0.0

    def observe(self, latencies: Iterable[float]) -> None:
        ordered = sorted(latencies)
        # A source clock that steps back must not bring the sum down: rate() would take it for a restart.
        self._sum += sum(ordered[bisect_left(ordered, 0.0) :])
        below = 0
        for at, bound in enumerate(_LATENCY):
            upto = bisect_right(ordered, bound)
            self._counts[at] += upto - below
            below = upto
        self._counts[-1] += len(ordered) - below

    def collect(self) -> Iterable[Metric]:
        bounds = [*(str(float(bound)) for bound in _LATENCY), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._NAME, self._HELP, buckets=buckets, sum_value=self._sum)

    def describe(self) -> Iterable[Metric]:
        yield HistogramMetricFamily(self._NAME, self._HELP)


class Verdict:
    """Are the stores in sync, and what keeps them from being called so? NaN and nothing where another process leads: it
    is to be asked."""

    def __init__(self, kinds: Collection[str], findings: Callable[[], Mapping[str, int] | None]) -> None:
        self._kinds = kinds
        self._findings = findings

    def collect(self) -> Iterable[Metric]:
        found = self._findings()
        sync = GaugeMetricFamily(
            "outboxd_in_sync", "1 while nothing keeps the stores from being called in sync; NaN on a standby."
        )
        sync.add_metric([], math.nan if found is None else float(not found))
        many = GaugeMetricFamily(
            "outboxd_findings", "What keeps them from it: tables, rows or changes, by kind.", labels=["kind"]
        )
        for kind in self._kinds:
            many.add_metric([kind], (found or {}).get(kind, 0))
        return [sync, many]


class Verified:
    """By table: rows that differ, rows compared, and up to when both stores are known to be equal but for these. A table
    has them once a pass has come to its end; while one that has found more is under way, what it has found.

    `label`: what a table is called here. Tables beyond those that have a name of their own are one: their rows in sum, the
    earliest of their times."""

    def __init__(self, report: Report, label: Callable[[str], str] = lambda table: table) -> None:
        self._report = report
        self._label = label

    def collect(self) -> Iterable[Metric]:
        drift = GaugeMetricFamily(
            "outboxd_drift_rows", "Rows that differ between the stores.", labels=["table", "kind"]
        )
        rows = GaugeMetricFamily("outboxd_verified_rows", "Rows of the source that were compared.", labels=["table"])
        through = GaugeMetricFamily(
            "outboxd_verified_through_timestamp_seconds",
            "Whatever had committed by then is equal in both stores, but for the rows that differ.",
            labels=["table"],
        )
        drifts: Counter[tuple[str, str]] = Counter()
        compared: Counter[str] = Counter()
        times: dict[str, float] = {}
        ended = 0
        for one in self._report():
            table = self._label(one["table"])
            if one["drift"] is not None:
                drifts.update({(table, kind): one["drift"][kind] for kind in DRIFTS})
                compared[table] += one["rows"]
            if one["through"] is not None:
                ended += 1
                times[table] = min(one["through"], times.get(table, math.inf))
        for labels, many in drifts.items():
            drift.add_metric(labels, many)
        for table, many in compared.items():
            rows.add_metric([table], many)
        for table, at in times.items():
            through.add_metric([table], at)
        tables = GaugeMetricFamily("outboxd_verified_tables", "Tables that a pass has come to the end of.", value=ended)
        return [drift, rows, through, tables]


def tables_in(report: Report, state: str) -> float:
    """How many tables are in this state."""
    return float(sum(one["state"] == state for one in report()))


class WithoutCreated:
    """A registry without `_created` samples. The library's own switch is the process's, not a registry's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [one for one in metric.samples if one.name != f"{metric.name}_created"]
            yield metric
