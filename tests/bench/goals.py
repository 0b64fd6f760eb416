"""The figures to reach: what is wanted of each workload, beside what was seen of it.

Knows what the issues ask for. Must not know how anything was measured.
"""

from collections.abc import Iterator

from tests.bench.figures import Goal, Results

_OURS = (("rest", "Data API"), ("direct", "direct"))


def goals(results: Results) -> list[Goal]:
    return [
        *_backlogs(results), *_steady(results), *_writers(results), *_deep(results),
        *_idle(results), *_bulk(results), *_far(results), *_tables(results),
    ]  # fmt: skip


def _backlogs(results: Results) -> Iterator[Goal]:
    ratio, spread, cost = results.ratio, results.spread, results.cost
    for workload, bound in (("W1", 1.0), ("W2", 1.8), ("W3", 0.58)):
        for system, name in _OURS:
            yield Goal(workload, f"{name} / native", ">=", bound, "x", ratio(workload, system, "native", "rate"))
    yield Goal("W1", "Data API / batch script", ">=", 3.5, "x", ratio("W1", "rest", "batch", "rate"))
    for system, name in _OURS:
        for group, most in (("daemon", 1.5), ("target", 9.0), ("source", 3.0)):
            yield Goal("W1", f"{name}: CPU of the {group}, a change", "<=", most, "µs", cost("W1", system, group))
    for system, name in _OURS:
        yield Goal("W3", f"{name}: looks at half a transaction", "<=", 0, "", spread("W3", system, "half"))


def _steady(results: Results) -> Iterator[Goal]:
    spread = results.spread
    for (system, name), p50, p99, daemon in zip(_OURS, (3.4, 2.4), (9.0, 7.0), (25, 20), strict=True):
        yield Goal("W4", f"{name}, p50", "<=", p50, "ms", spread("W4", system, "p50"))
        yield Goal("W4", f"{name}, p99", "<=", p99, "ms", spread("W4", system, "p99"))
        share = results.percent("W4", system, "daemon", with_value="p50")
        yield Goal("W4", f"{name}: the daemon, of a core", "<=", daemon, "%", share)
        beyond = spread("W4", system, "beyond")
        yield Goal("W4", f"{name}: the source beyond its writers", "<=", 8, "%", beyond)


def _writers(results: Results) -> Iterator[Goal]:
    ratio = results.ratio
    yield Goal("W5", "32 clients, daemon running / no outbox", ">=", 0.62, "x", ratio("W5", "rest", "none", "32"))
    yield Goal("W5", "32 clients, capture only / no outbox", ">=", 0.72, "x", ratio("W5", "capture", "none", "32"))
    ringing = ratio("W5", "capture", "notify", "32")
    yield Goal("W5", "32 clients, capture only / NOTIFY each time", ">=", 2.0, "x", ringing)


def _deep(results: Results) -> Iterator[Goal]:
    spread = results.spread
    yield Goal("W6", "Data API: last tenth / first tenth", ">=", 0.9, "x", spread("W6", "rest", "last / first"))
    yield Goal("W6", "Data API: memory", "<", 150, "MB", spread("W6", "rest", "rss"))
    yield Goal("W6", "Data API: requests per 1 000 changes", "<=", 2.0, "", spread("W6", "rest", "requests"))


def _idle(results: Results) -> Iterator[Goal]:
    spread = results.spread
    for system, name in _OURS:
        yield Goal("W7", f"{name}: of a core", "<", 0.5, "%", spread("W7", system, "cpu"))
        yield Goal("W7", f"{name}: of a core, with heartbeats", "<", 0.5, "%", spread("W7", system, "cpu beating"))
        yield Goal("W7", f"{name}: requests to the target", "<=", 0, "", spread("W7", system, "requests"))
        yield Goal("W7", f"{name}: memory", "<", 90, "MB", spread("W7", system, "rss"))


def _bulk(results: Results) -> Iterator[Goal]:
    captured = results.ratio("W8", "bulk, capture", "bulk, none", "insert")
    yield Goal("W8", "INSERT … SELECT with capture / without", ">=", 0.22, "x", captured)


def _far(results: Results) -> Iterator[Goal]:
    for system, name in _OURS:
        near = results.ratio("W9", system, system, "rate", to_workload="W1")
        yield Goal("W9", f"{name}: W1 far away / near", ">=", 0.6, "x", near)
        yield Goal("W9", f"{name}: W4 far away, p50", "<=", 60.0, "ms", results.spread("W9", system, "p50"))


def _tables(results: Results) -> Iterator[Goal]:
    """Whole tables: the first copy, and verification."""
    for (system, name), bound in zip(_OURS, (0.6, 0.4), strict=True):
        yield Goal(
            "W10", f"{name} / COPY TO | COPY FROM", ">=", bound, "x", results.ratio("W10", system, "copy", "rate")
        )
    yield Goal("W11", "Data API: rows compared a second", ">=", 100_000, "", results.spread("W11", "rest", "rate"))
