"""The table a person reads.

Knows columns and words. Must not know how anything was measured.
"""

from collections.abc import Iterator, Mapping

from tests.bench.figures import Goal, Results, Spread, goals
from tests.bench.systems import NAMES

_WIDTH = 24


def rendered(results: Results, machine: Mapping[str, str]) -> str:
    return "\n".join([
        *(f"  {name:<14} {value}" for name, value in machine.items()),
        *_catch_ups(results),
        *_to_reach(results),
    ])  # fmt: skip


def _catch_ups(results: Results) -> Iterator[str]:
    for workload in ("W1", "W2", "W3", "W8"):
        seen = [system for system in NAMES if results.spread(workload, system, "rate")]
        if not seen:
            continue
        yield f"\n{workload}  catch-up of {results.of(workload, seen[0])[0].note}"
        yield f"    {'':<{_WIDTH}} {'changes':>8}  {'changes/s: median (min – max)':<34} {'x native, same repeat':<24} start-up  CPU, of one core"
        for system in seen:
            yield _catch_up(results, workload, system)


def _catch_up(results: Results, workload: str, system: str) -> str:
    changes, rate = results.spread(workload, system, "changes"), results.spread(workload, system, "rate")
    ratio = results.ratio(workload, system, "native", "rate")
    start = results.spread(workload, system, "start-up")
    half = results.spread(workload, system, "half")
    assert changes
    assert rate
    assert start
    cells = [
        f"    {NAMES[system]:<{_WIDTH}} {changes.middle:>8,.0f}",
        f"{_spread(rate, ',.0f'):<34}",
        f"{_spread(ratio, '.3f') if ratio else '–':<24}",
        f"{start.middle:>6.2f} s",
        _shares(results.shares(workload, system)),
    ]
    if half is not None:
        cells.append("half a transaction seen" if half.high else "no half transaction seen")
    return "  ".join(cells)


def _to_reach(results: Results) -> Iterator[str]:
    known = [goal for goal in goals(results) if goal.seen]
    if known:
        yield "\nFigures to reach"
    for goal in known:
        yield _goal(goal)


def _goal(goal: Goal) -> str:
    assert goal.seen
    digits = ".2f" if goal.unit in ("x", "%") else ".1f"
    word = "reached" if goal.reached else "NOT reached"
    sense = {">=": "≥", "<=": "≤", "<": "<"}[goal.sense]
    bound = f"{sense} {goal.bound:g} {goal.unit}"
    return f"    {goal.workload}  {goal.what:<46} {bound:<10} {_spread(goal.seen, digits):<28} {word}"


def _spread(spread: Spread, digits: str) -> str:
    if spread.low == spread.high:
        return format(spread.middle, digits)
    return f"{format(spread.middle, digits)} ({format(spread.low, digits)} – {format(spread.high, digits)})"


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{group} {share:.0%}" for group, share in shares.items() if share >= 0.005)
