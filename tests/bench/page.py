"""docs/benchmark.md and its picture: what growth costs, the machine it was measured on, and the command.

Knows words. Must not know how anything was measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.bench.figures import Results, Spread
from tests.bench.growth import SIZES, SYSTEMS, TABLES, goals, size, tables
from tests.bench.picture import drawn
from tests.bench.systems import NAMES

DOCS = Path(__file__).parents[2] / "docs"
_HEAD = """# What becomes of the rate as things grow

`{command}` measured this and wrote this page: two PostgreSQL {postgres} on one machine with {cores} cores and {memory},
over loopback, fsync on, rows compared after each measurement, {repeats}. All figures are changes a second until
the last one is visible on the target. What is measured beside native replication in more depth stands in the README.

![Rates by what waits, by tables and by the size of a row](benchmark.svg)
"""
_WAITING = """
## More that waits

Inserts of 300 bytes, 20 in a transaction, through the Data API. Wanted: the last tenth at 0.9 of the first, less than 150 MB.
Default: 100 000 and 1 000 000; ten million with `make bench ARGS='--growth --waiting 10000000'`, which needs tens of GB of disk and half an hour.

| waiting | changes/s | first tenth | last tenth | last / first | memory | requests per 1 000 |
|--:|--:|--:|--:|--:|--:|--:|
"""
_TABLES = """
## More tables

Single-row insert transactions of 300 bytes, one watched table after the other.

"""
_SIZES = """
## Larger rows

Single-row insert transactions; the text of a row cannot be compressed. Of the largest rows a fifth as many wait.

"""


def written(results: Results, about: Mapping[str, str], arguments: Sequence[str], folder: Path) -> str:
    """The page, which is written with its picture to the folder."""
    given = f"'{' '.join(arguments)}'" if " " in " ".join(arguments) else arguments[0]
    page = "".join(_page(results, about, f"make bench ARGS={given}"))
    (folder / "benchmark.svg").write_text(drawn(results), encoding="utf-8")
    (folder / "benchmark.md").write_text(page, encoding="utf-8")
    return page


def _page(results: Results, about: Mapping[str, str], command: str) -> Iterator[str]:
    yield _HEAD.format(
        command=command,
        postgres=about["postgres"].split()[0].rstrip(","),
        cores=about["cpu"].split()[0],
        memory=f"{int(about['memory'].split()[0]) / 1024:.0f} GB",
        repeats="once" if about["repeats"].startswith("1,") else f"medians of {about['repeats'].split(',')[0]}",
    )
    deep = [one for one in results.all if one.workload.startswith("waiting ")]
    if deep:
        yield _WAITING
    for values in (one.values for one in deep):
        yield (
            f"| {values['changes']:,.0f} | {values['rate']:,.0f} | {values['first']:,.0f} | {values['last']:,.0f} "
            f"| {values['last / first']:.2f} | {values['rss']:.0f} MB | {values['requests']:.2f} |\n"
        )
    for goal in goals(results):
        if goal.reached is False and goal.seen:
            yield f"\nNot reached: {goal.what} with {int(goal.workload.split()[-1]):,} waiting.\n"
    yield from _table(results, _TABLES, {f"{n} tables": tables(n) for n in TABLES})
    yield from _table(results, _SIZES, {f"{n / 1000:g} kB": size(n) for n in SIZES})


def _table(results: Results, head: str, workloads: Mapping[str, str]) -> Iterator[str]:
    rows = []
    for title, workload in workloads.items():
        for system in SYSTEMS:
            if rate := results.spread(workload, system, "rate"):
                ratio = results.ratio(workload, system, "native", "rate")
                costs = [results.cost(workload, system, group) for group in ("source", "target", "daemon")]
                memory = results.spread(workload, system, "rss")
                cells = [
                    title, NAMES[system], f"{rate.middle:,.0f}", _middle(ratio, ".2f"),
                    *(_middle(cost, ".1f") for cost in costs), _middle(memory, ".0f"),
                ]  # fmt: skip
                rows.append(f"| {' | '.join(cells)} |\n")
    if rows:
        yield head
        yield "| | | changes/s | × native | CPU µs a change: source | target | daemon | memory, MB |\n"
        yield "|--:|---|--:|--:|--:|--:|--:|--:|\n"
        yield from rows


def _middle(spread: Spread | None, digits: str) -> str:
    return format(spread.middle, digits) if spread else "–"
