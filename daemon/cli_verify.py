"""`outboxd verify`: compare both stores row by row, with a progress bar; repair what differs when asked.

Knows how to ask and how to print. Keys are shown, values never.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from daemon import install, logs
from daemon.cli_follow import Work, watched
from daemon.configuration import load
from daemon.talk import data, fail, say, show, table
from daemon.verify import Outcome, advice, progress, summed, told

FAILED, FOUND = 1, 3
_PATIENCE = 60.0  # seconds that a store may be away
_HEAD = ("TABLE", "ROWS", "EQUAL", "MISSING", "DIFFERENT", "EXTRA", "HELD", "REPAIRED", "VERIFIED THROUGH")


@click.command()
@click.argument("tables", nargs=-1, metavar="[TABLE…]")
@click.option("--repair", is_flag=True, help="Write rows that differ again, as the source has them; delete extra ones.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Exit 75 when it has not ended by then."
)
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def verify(ctx: click.Context, tables: Sequence[str], *, repair: bool, timeout: float | None, as_json: bool) -> None:
    """Compare TABLE… (none named: all watched) in both stores, row by row, while changes go on.

    By the daemon that runs, or by this process. Rows that wait as dead letters are counted apart (HELD). 3: rows differ,
    or a table could not be compared; 75: a store has been away for a minute.
    """
    settings = load(ctx.obj, needs=("source", "target"))
    logs.configure("error", settings.log_format, stream=sys.stderr)
    wishes = install.ask_verifications(settings.source_conninfo, tables, repair=repair)
    if not wishes:
        fail("no table is watched, so there is nothing to compare: outboxd watch public.your_table", FAILED)
    work = Work(
        "comparing, and writing again what differs" if repair else "comparing",
        "compares",
        most=lambda seen: sum(max(1, seen.estimates.get(name, 0)) for name in wishes),
        rows=lambda seen: progress(seen.answer, wishes).rows,
        ended=lambda seen: progress(seen.answer, wishes).outcomes.keys() >= wishes.keys(),
        doing=lambda seen: ", rows the target has beyond them" if progress(seen.answer, wishes).beyond else "",
    )
    seen = asyncio.run(watched(settings, work, patience=_PATIENCE, within=timeout))
    found = [progress(seen.answer, wishes).outcomes[name] for name in wishes]
    if as_json:
        data(json.dumps(_as_json(found), indent=2))
    else:
        _show(found)
    sys.exit(0 if all(one.state == "equal" for one in found) else FOUND)


def _as_json(found: Sequence[Outcome]) -> dict[str, Any]:
    """One verdict and one time for all of them, then each."""
    verdict = summed(found)
    return {
        "verdict": verdict.said, "equal": verdict.equal, "through": _iso(verdict.through), "rows": verdict.rows,
        "tables": [told(one, _when(one)) for one in found],
    }  # fmt: skip


def _show(found: Sequence[Outcome]) -> None:
    table(_HEAD, [_cells(one) for one in found])
    for one in found:
        if one.samples:
            show("", f"{one.table}: {one.drift} differ, {len(one.samples)} shown")
            for row in one.samples:
                show(f"  {row['kind']:<9}  {row['key']}  {', '.join(row['columns'])}".rstrip())
    verdict = summed(found)
    by = f", of all that had committed by {_iso(verdict.through)}" if verdict.equal else ""
    say("", *([said for one in found if (said := advice(one))] or [f"{verdict.said}{by}"]))


def _cells(one: Outcome) -> tuple[str, ...]:
    counts = [str(count) for count in (one.missing, one.different, one.extra, one.held, one.repaired)]
    equal = {"equal": "yes" if not one.held else "but held", "differs": "NO"}.get(one.state, one.state)
    if one.state in {"out", "copying"}:
        return one.table, "-", equal, *("-" for _ in counts), _when(one) or "never"
    return one.table, str(one.rows), equal, *counts, _when(one) or "never"


def _when(one: Outcome) -> str | None:
    return _iso(one.through)


def _iso(when: float | None) -> str | None:
    from daemon.report import iso  # with the relay: not for `outboxd --help`

    return iso(when)
