"""`outboxd dead-letters`: look at what the target refused, have it sent again, or drop it.

Knows how to ask and how to print. Values are shown only when they are asked for.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import click

from daemon import dead_letters
from daemon.configuration import load
from daemon.talk import agreed, data, say, table
from daemon.talk import show as show_

FOUND, AWAY = 3, 75
_NUMBERS = {"ignore_unknown_options": True}  # a letter that is no change has a number below 0


@click.group("dead-letters")
def group() -> None:
    """Changes that the target refused, and those of the same rows that wait with them."""


@group.command("list")
@click.option("--table", "of_table", help="Only this table, as `outboxd watched` names it.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def list_(ctx: click.Context, *, of_table: str | None, as_json: bool) -> None:
    """One line a held row: which change was refused, and why. No values."""
    found = dead_letters.listed(_dsn(ctx), of_table)
    if as_json:
        data(json.dumps([asdict(one) for one in found], indent=2))
    elif not found:
        say("no dead letters")
    else:
        head = ("LETTER", "TABLE", "OP", "CHANGES", "ATTEMPTS", "SINCE", "REASON")
        table(
            head, [(str(o.letter), o.table, o.op, str(o.changes), str(o.attempts), o.since, _reason(o)) for o in found]
        )
        say(
            "once the target's tables are mended they go by themselves; else, when it is mended: outboxd dead-letters retry --all"
        )


@group.command(context_settings=_NUMBERS)
@click.argument("letters", nargs=-1, required=True, type=int, metavar="LETTER…")
@click.option("--values", is_flag=True, help="Show the rows' values, too.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def show(ctx: click.Context, letters: Sequence[int], *, values: bool, as_json: bool) -> None:
    """The changes that wait with LETTER…, in their order."""
    found = [asdict(one) for one in dead_letters.shown(_dsn(ctx), letters, values=values)]
    if not found:
        raise click.UsageError("no such dead letter: `outboxd dead-letters list` names them")
    for one in found:
        if not values:
            del one["key"], one["row"], one["headers"]
    if as_json:
        data(json.dumps(found, indent=2))
        return
    for one in found:
        width = max(map(len, one))
        show_(*(f"{name:<{width}}  {'-' if value is None else value}" for name, value in one.items()), "")
    if len(found) == dead_letters.SHOWN:
        say(f"these are the first {len(found)}; there may be more")
    if not values:
        say("--values shows key, row and headers")


@group.command(context_settings=_NUMBERS)
@click.argument("letters", nargs=-1, type=int, metavar="[LETTER…]")
@click.option("--all", "every", is_flag=True, help="All dead letters.")
@click.option("--table", "of_table", help="Those of this table.")
@click.option("--wait", default=30.0, show_default=True, help="Seconds to wait for what comes of it.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def retry(
    ctx: click.Context, letters: Sequence[int], *, every: bool, of_table: str | None, wait: float, as_json: bool
) -> None:
    """Send dead letters again. What arrives lets its row flow again; what is refused again stays. 3: some did."""
    _choose(letters, every=every, of_table=of_table)
    _report(
        dead_letters.ask(_dsn(ctx), "retry", list(letters) or None, of_table, patience=wait),
        "delivered",
        as_json=as_json,
    )


@group.command(context_settings=_NUMBERS)
@click.argument("letters", nargs=-1, type=int, metavar="[LETTER…]")
@click.option("--all", "every", is_flag=True, help="All dead letters.")
@click.option("--table", "of_table", help="Those of this table.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--wait", default=30.0, show_default=True, help="Seconds to wait for what comes of it.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def discard(
    ctx: click.Context,
    letters: Sequence[int],
    *,
    every: bool,
    of_table: str | None,
    yes: bool,
    wait: float,
    as_json: bool,
) -> None:
    """Drop dead letters for good: the target keeps what it has of their rows, until they change again."""
    _choose(letters, every=every, of_table=of_table)
    dsn = _dsn(ctx)
    if not yes and (chosen := dead_letters.listed(dsn, of_table, letters or None)):
        many = sum(one.changes for one in chosen)
        agreed(f"drop {many} change(s) of {len(chosen)} row(s) for good?")
    _report(
        dead_letters.ask(dsn, "discard", list(letters) or None, of_table, patience=wait), "dropped", as_json=as_json
    )


def _choose(letters: Sequence[int], *, every: bool, of_table: str | None) -> None:
    if bool(letters) + every + bool(of_table) != 1:
        raise click.UsageError("say which: LETTER…, --table, or --all")


def _report(outcome: dead_letters.Outcome, done: Literal["delivered", "dropped"], *, as_json: bool) -> None:
    if as_json:
        data(json.dumps(asdict(outcome), indent=2))
    else:
        if not (outcome.done or outcome.refused or outcome.waiting):
            say("no such dead letter: `outboxd dead-letters list` names them")
        if outcome.done:
            say(f"{done}: {outcome.done} change(s)")
        for letter, of_table, reason in outcome.refused:
            say(f"refused again: letter {letter} of {of_table}: {reason}")
        if outcome.waiting:
            say(f"{outcome.waiting} change(s) still wait: asked for; a running outboxd does it when the target answers")
    sys.exit(AWAY if outcome.waiting else FOUND if outcome.refused else 0)


def _reason(one: dead_letters.HeldKey) -> str:
    parent = f" (letter {one.parent})" if one.parent else ""
    return f"{one.reason}{parent}{f'; {one.wanted} asked for' if one.wanted else ''}"


def _dsn(ctx: click.Context) -> str:
    settings: Any = load(ctx.find_root().obj, {}, needs=["source"])
    return str(settings.source_conninfo)
