"""`outboxd backfill`: copy tables as a whole, with a progress bar.

Knows how to ask and how to print.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import click

from daemon import install, logs
from daemon.backfill import copies, settled
from daemon.cli_follow import Work, watched
from daemon.configuration import load
from daemon.talk import data, say

FOUND = 3
_PATIENCE = 300.0  # seconds that a store may be away


@click.command()
@click.argument("tables", nargs=-1, required=True, metavar="TABLE…")
@click.option("--restart", is_flag=True, help="Begin anew, also where a copy is under way.")
@click.option("--prune", is_flag=True, help="Delete rows of the target that the source does not have.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Exit 75 when it has not ended by then."
)
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def backfill(
    ctx: click.Context, tables: Sequence[str], *, restart: bool, prune: bool, timeout: float | None, as_json: bool
) -> None:
    """Copy all rows of TABLE… while changes go on. By the daemon that runs, or by this process. 3: a table is out; 75: a
    store has been away for five minutes. What was asked for stays asked for."""
    settings = load(ctx.obj, needs=("source", "target"))
    logs.configure("warning", settings.log_format, stream=sys.stderr)
    wishes = install.ask_copies(settings.source_conninfo, tables, prune=prune, restart=restart)
    work = Work(
        "copying",
        "copies",
        most=lambda seen: sum(max(1, seen.estimates.get(table, 0)) for table in wishes),
        rows=lambda seen: sum(copy.rows for copy in copies(seen.answer, wishes).values()),
        ended=lambda seen: settled(seen.answer, wishes),
    )
    found = copies(asyncio.run(watched(settings, work, patience=_PATIENCE, within=timeout)).answer, wishes)
    if as_json:
        data(json.dumps([asdict(copy) for copy in found.values()], indent=2))
    for copy in [] if as_json else found.values():
        if copy.state == "out":
            say(f"{copy.table} is out: {copy.reason}; it is copied by itself once that is mended")
            continue
        kept = copy.extra - copy.pruned
        extra = f", {copy.pruned} deleted that the source does not have" if copy.pruned else ""
        extra += f"; the target has {kept} rows that the source does not have (--prune deletes them)" if kept else ""
        say(f"{copy.table}: {copy.rows} rows copied{extra}")
    sys.exit(FOUND if any(copy.state == "out" for copy in found.values()) else 0)
