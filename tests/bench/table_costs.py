"""What a change costs, as lines of the table: processor by process, and the bill.

Knows columns and words. Must not know how anything was measured.
"""

from collections.abc import Iterator

from tests.bench.figures import Results, Spread
from tests.bench.systems import NAMES

_WIDTH = 24
_COLUMNS = ("source", "target", "daemon", "script", "PostgREST", "gateway")


def costs(results: Results, workload: str, per: str, *, what: str = "change") -> Iterator[str]:
    """Of the measurements that have `per`, which counts changes a second."""
    seen = [system for system in (*NAMES, "copy") if results.cost(workload, system, "source", per=per)]
    if not seen:
        return
    groups = [group for group in _COLUMNS if any(results.cost(workload, system, group, per=per) for system in seen)]
    columns = "".join(f"{group:<22}" for group in groups)
    beyond = results.spread(workload, seen[-1], "beyond", beside=per)
    yield (
        f"    {f'CPU, µs a {what}':<{_WIDTH}} {columns}"
        f"{'source beyond writers  ' if beyond else ''}requests, kB sent per 1 000 {what}s"
    )
    for system in seen:
        cells = "".join(f"{_short(results.cost(workload, system, group, per=per), ',.2f'):<22}" for group in groups)
        if beyond:
            share = results.spread(workload, system, "beyond", beside=per)
            cells += f"{_short(share, '.1f', ' %'):<23}"
        yield f"    {NAMES.get(system, 'COPY TO | COPY FROM'):<{_WIDTH}} {cells}{_bill(results, workload, system, per)}"


def _bill(results: Results, workload: str, system: str, per: str) -> str:
    requests = results.spread(workload, system, "requests", beside=per)
    sent = results.spread(workload, system, "bytes", beside=per)
    return f"{requests.middle:,.2f}, {sent.middle / 1000:,.0f}" if requests and sent else ""


def _short(spread: Spread | None, digits: str, unit: str = "") -> str:
    if spread is None:
        return ""
    if spread.low == spread.high:
        return format(spread.middle, digits) + unit
    return f"{format(spread.middle, digits)}{unit} ({format(spread.low, digits)} – {format(spread.high, digits)})"
