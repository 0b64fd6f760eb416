"""The table a person reads.

Knows columns and words. Must not know how anything was measured.
"""

from collections.abc import Iterator, Mapping

from tests.bench.figures import Goal, Results, Spread
from tests.bench.goals import goals
from tests.bench.systems import NAMES
from tests.bench.table_costs import costs
from tests.bench.workloads import BACKLOGS
from tests.bench.writers import TPC_B_CLIENTS, WAYS

_WIDTH = 24
_HOW = """
  Each measurement has databases of its own and the same small warm-up; systems take turns within a repeat; ratios are
  taken within it. The clock of a catch-up starts when a system begins to move (native: ENABLE; the script: its first
  poll; outboxd: it has claimed the target; its start-up is shown apart) and ends when the last transaction is visible
  on the target. Afterwards every row of both sides is compared. Native replication is CREATE SUBSCRIPTION with its
  defaults, so its commits on the target are not flushed and it checks no foreign key there. The script sends the last
  change of each key, without order, retry or transaction; row by row it is given a short backlog, once.
  CPU of source and target is that of all their processes, from /proc; what PostgREST and the gateway use stands apart.
  The source beyond its writers is what all of its processes use but the sessions of those who write.
"""


def rendered(results: Results, machine: Mapping[str, str]) -> str:
    return "\n".join([
        *(f"  {name:<14} {value}" for name, value in machine.items()),
        _HOW.rstrip(),
        *_catch_ups(results),
        *_late(results),
        *_writers(results),
        *_alone(results),
        *_bulk(results),
        *_copying(results),
        *_verifying(results),
        *_to_reach(results),
    ])  # fmt: skip


def _catch_ups(results: Results) -> Iterator[str]:
    for workload in ("W1", "W2", "W3", "W8", "W9", "W12"):
        seen = [system for system in NAMES if results.spread(workload, system, "rate")]
        if not seen:
            continue
        far = ", 50 ms of round trip away" if workload == "W9" else ""
        yield f"\n{workload}  catch-up of {results.of(workload, seen[0])[0].note}{far}"
        yield f"    {'':<{_WIDTH}} {'changes':>8}  {'changes/s: median (min – max)':<34} {'x native, same repeat':<24} start-up  CPU, of one core"
        for system in seen:
            yield _catch_up(results, workload, system)
        yield from costs(results, workload, "rate")


def _catch_up(results: Results, workload: str, system: str) -> str:
    changes, rate = results.spread(workload, system, "changes"), results.spread(workload, system, "rate")
    ratio = results.ratio(workload, system, "native", "rate")
    start = results.spread(workload, system, "start-up")
    half, looks = (sum(one.values.get(name, 0) for one in results.of(workload, system)) for name in ("half", "looks"))
    assert changes
    assert rate
    assert start
    cells = [
        f"    {NAMES[system]:<{_WIDTH}} {changes.middle:>8,.0f}",
        f"{_spread(rate, ',.0f'):<34}",
        f"{_spread(ratio, '.3f') if ratio else '–':<24}",
        f"{start.middle:>6.2f} s",
        _shares(results.shares(workload, system, with_value="changes")),
    ]
    if looks:
        cells.append(f"half a transaction seen in {half:.0f} of {looks:.0f} looks")
    return "  ".join(cells)


def _late(results: Results) -> Iterator[str]:
    for workload, load in (
        ("W4", "300 transactions a second"),
        ("W9", "300 transactions a second, 50 ms of round trip away"),
        ("W12", "20 transactions of 300 changes a second"),
    ):
        seen = [system for system in NAMES if results.spread(workload, system, "p50")]
        if seen:
            yield f"\n{workload}  {load}: commit → visible on the target, ms: median (min – max) of the repeats"
            yield f"    {'':<{_WIDTH}} {'rows':>6}  {'p50':<22} {'p95':<24} {'p99':<24} {'max':<24} CPU, of one core"
        for system in seen:
            rows = results.spread(workload, system, "rows")
            shown = [results.spread(workload, system, value) for value in ("p50", "p95", "p99", "max")]
            cells = [
                f"{_spread(one, '.1f'):<{width}}" for one, width in zip(shown, (22, 24, 24, 24), strict=True) if one
            ]
            shares = _shares(results.shares(workload, system, with_value="p50"))
            yield f"    {NAMES[system]:<{_WIDTH}} {rows.middle if rows else 0:>6,.0f}  {' '.join(cells)} {shares}"
        yield from costs(results, workload, "changes/s")


def _writers(results: Results) -> Iterator[str]:
    seen = [way for way in WAYS if results.of("W5", way)]
    if not seen:
        return
    clients = list(dict.fromkeys(name for way in seen for one in results.of("W5", way) for name in one.values))
    titles = {"1": "1 client", "tpc-b": f"pgbench's TPC-B, {TPC_B_CLIENTS} clients"}
    yield "\nW5  writers, one-row inserts, transactions a second: median (min – max), x no outbox in the same repeat"
    yield f"    {'':<38}" + "".join(f"{titles.get(number, f'{number} clients'):<42}" for number in clients)
    for way in seen:
        cells = []
        for number in clients:
            rate, ratio = results.spread("W5", way, number), results.ratio("W5", way, "none", number)
            text = f"{_spread(rate, ',.0f')}" if rate else ""
            cells.append(f"{text + (f'  x {ratio.middle:.2f}' if ratio else ''):<42}")
        yield f"    {WAYS[way]:<38}{''.join(cells)}"


def _alone(results: Results) -> Iterator[str]:
    for one in results.of("W6", "rest"):
        values = one.values
        tenths = " ".join(f"{values[f'tenth {number}']:,.0f}" for number in range(1, 11))
        yield f"\nW6  outboxd alone, Data API: {values['changes']:,.0f} {BACKLOGS['W6'].title}: {values['rate']:,.0f} changes/s"
        yield f"    each tenth, changes/s: {tenths}"
        yield f"    memory at most {values['rss']:.0f} MB, {values['requests']:.2f} requests per 1 000 changes"
    for number, system in enumerate(system for system in NAMES if results.of("W7", system)):
        if number == 0:
            yield "\nW7  idle, with heartbeat_interval = 0; as shipped a heartbeat goes out every 10 s"
        values = results.of("W7", system)[0].values
        yield (
            f"    {NAMES[system]:<{_WIDTH}} {values['cpu']:.2f} % of a core, {values['wake-ups']:.1f} wake-ups a second, "
            f"{values['requests']:.0f} requests to the target, {values['rss']:.0f} MB; "
            f"as shipped {values['cpu beating']:.2f} %, {values['requests beating']:.0f} requests"
        )


def _bulk(results: Results) -> Iterator[str]:
    for statement, name in (("insert", "INSERT … SELECT"), ("copy", "COPY")):
        plain = results.spread("W8", "bulk, none", statement)
        captured = results.spread("W8", "bulk, capture", statement)
        ratio = results.ratio("W8", "bulk, capture", "bulk, none", statement)
        if plain and captured and ratio:
            yield (
                f"W8  {name:<16} rows/s: {_spread(plain, ',.0f')} without capture, {_spread(captured, ',.0f')} with, "
                f"x {_spread(ratio, '.2f')}"
            )


def _copying(results: Results) -> Iterator[str]:
    for at, (way, name) in enumerate(
        {"copy": "COPY TO | COPY FROM", "rest": NAMES["rest"], "direct": NAMES["direct"]}.items()
    ):
        if rate := results.spread("W10", way, "rate"):
            if not at:
                yield "\nW10  a table copied as a whole, rows a second: median (min – max)"
            yield f"    {name:<{_WIDTH}} {_spread(rate, ',.0f')}"
    yield from costs(results, "W10", "rate", what="row")


def _verifying(results: Results) -> Iterator[str]:
    by_hand = results.of("W11", "md5")
    if not by_hand:
        return
    rate = by_hand[0].values["rate"]
    yield "\nW11  a table of equal rows compared, both stores at rest"
    yield f"    {'COPY TO | md5, both':<{_WIDTH}} {rate:,.0f} rows/s"
    for system in ("rest", "direct"):
        for values in (one.values for one in results.of("W11", system)):
            yield (
                f"    {NAMES[system]:<{_WIDTH}} {values['rate']:,.0f} rows/s, x {values['rate'] / rate:.2f} of COPY TO | md5; "
                f"{values['bytes'] / 1000:.0f} bytes a row to the target, {values['requests']:.2f} requests per 1 000 rows"
            )
            if "found in" in values:
                yield from _verified(values)


def _verified(values: Mapping[str, float]) -> Iterator[str]:
    yield f"        1 000 rows that differ: all found in {values['found in']:.2f} s, found and repaired in {values['repaired in']:.2f} s"
    late = "; ".join(
        f"{title} p50 {values[f'p50 {name}']:.1f}, p99 {values[f'p99 {name}']:.1f}, max {values[f'max {name}']:.1f}"
        for name, title in (("alone", "no pass"), ("beside", "passes one after the other"))
    )
    yield f"        300 transactions a second, ms: {late} ({values['rows beside']:,.0f} rows compared meanwhile)"
    used = ", ".join(
        f"{group.partition(' ')[2]} {share:.1f} %"
        for group, share in values.items()
        if group.startswith("paced ") and not group.endswith(("requests", "bench", "other"))
    )
    yield f"        2 000 rows/s, by the clock: {used} of a core, {values['paced requests']:.1f} requests a second"


def _to_reach(results: Results) -> Iterator[str]:
    known = [goal for goal in goals(results) if goal.seen]
    if known:
        yield "\nFigures to reach"
    for goal in known:
        yield _goal(goal)


def _goal(goal: Goal) -> str:
    assert goal.seen
    digits = ".2f" if goal.unit in ("x", "%", "µs") else ",.1f"
    word = "reached" if goal.reached else "NOT reached"
    sense = {">=": "≥", "<=": "≤", "<": "<"}[goal.sense]
    bound = f"{sense} {goal.bound:,.12g} {goal.unit}"
    return f"    {goal.workload:<3}  {goal.what:<46} {bound:<10} {_spread(goal.seen, digits):<28} {word}"


def _spread(spread: Spread, digits: str) -> str:
    if spread.low == spread.high:
        return format(spread.middle, digits)
    return f"{format(spread.middle, digits)} ({format(spread.low, digits)} – {format(spread.high, digits)})"


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{group} {share:.0%}" for group, share in shares.items() if share >= 0.005)
