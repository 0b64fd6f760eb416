"""`outboxd backfill`: copy tables as a whole, with a progress bar.

Knows how to ask and how to print.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from daemon import install, logs
from daemon.configuration import load
from daemon.talk import say

if TYPE_CHECKING:
    from daemon.backfill import Seen
    from daemon.settings import Settings

FOUND = 3


@click.command()
@click.argument("tables", nargs=-1, required=True, metavar="TABLE…")
@click.option("--restart", is_flag=True, help="Begin anew, also where a copy is under way.")
@click.option("--prune", is_flag=True, help="Delete rows of the target that the source does not have.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def backfill(ctx: click.Context, tables: Sequence[str], *, restart: bool, prune: bool, as_json: bool) -> None:
    """Copy all rows of TABLE… while changes go on. By the daemon that runs, or by this process. 3: a table is out."""
    settings = load(ctx.obj, needs=("source", "target"))
    logs.configure("warning", settings.log_format, stream=sys.stderr)
    wishes = install.ask_copies(settings.source_conninfo, tables, prune=prune, restart=restart)
    seen = asyncio.run(_follow(settings, wishes))
    copies = [seen.copies[table] for table in wishes]
    if as_json:
        click.echo(json.dumps([asdict(copy) for copy in copies], indent=2))
    for copy in [] if as_json else copies:
        if copy.state == "out":
            say(f"{copy.table} is out: {copy.reason}; it is copied by itself once that is mended")
            continue
        kept = copy.extra - copy.pruned
        extra = f", {copy.pruned} deleted that the source does not have" if copy.pruned else ""
        extra += f"; the target has {kept} rows that the source does not have (--prune deletes them)" if kept else ""
        say(f"{copy.table}: {copy.rows} rows copied{extra}")
    sys.exit(FOUND if any(copy.state == "out" for copy in copies) else 0)


async def _follow(settings: "Settings", wishes: Mapping[str, int]) -> "Seen":
    from daemon.backfill import follow  # with both transports: not for `outboxd --help`

    began, told, last, bar = time.monotonic(), False, 0, None
    async for seen in follow(settings, wishes):
        if bar is None:
            most = sum(max(1, seen.estimates.get(table, 0)) for table in wishes)
            bar = click.progressbar(length=most, file=sys.stderr, item_show_func=str, show_eta=True)
            bar.__enter__()
        if not told:
            told = True
            say("copying" if seen.alone else "the daemon that runs copies; to interrupt this does not stop it")
        rows = sum(
            seen.copies[table].rows
            for table in wishes
            if table in seen.copies and seen.copies[table].wish >= wishes[table]
        )
        bar.update(max(0, rows - last), _rate(rows, time.monotonic() - began))
        last = max(rows, last)
    assert bar is not None
    bar.__exit__(None, None, None)
    return seen


def _rate(rows: int, seconds: float) -> Any:
    return f"{rows} rows, {rows / max(seconds, 0.1):.0f} rows/s"
