"""`outboxd uninstall`: leaving, one side at a time; the counterpart of `setup`.

Knows how to ask and how to print.
"""

import sys

import click

from daemon import uninstall as work
from daemon.configuration import load
from daemon.talk import agreed, data, fail, say
from outbox.migrations import Side

FAILED, USAGE, CONFIG = 1, 2, 78


@click.command()
@click.argument("side", type=click.Choice(["source", "target"]))
@click.option("--print", "print_only", is_flag=True, help="Print the SQL for psql or the SQL editor; touch nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--role", is_flag=True, help="Source only: the daemon's role, too.")
@click.pass_context
def uninstall(ctx: click.Context, side: Side, *, print_only: bool, yes: bool, role: bool) -> None:
    """Take outboxd off one side: triggers, schema and function. Your tables and their rows stay."""
    if role and side == "target":
        raise click.UsageError("--role is for the source")
    if print_only:
        data(work.script(side) + ("drop role if exists outboxd;\n" if role else ""), nl=False)
        return
    dsn = _dsn(ctx, side)
    if role and (kept := work.keeps_role(dsn)):
        fail(f"nothing was done: {kept}", FAILED)
    loss = work.look(dsn, side)
    if loss is None:
        say(f"{side}: nothing of outboxd is there")
    else:
        for line in _told(side, loss):
            say(line)
        _agreed(side, yes=yes)
        work.uninstall(dsn, side, lambda table: say(f"no longer watching {table}"))
        say(f"{side}: outboxd is gone")
    if role:
        say("role outboxd: gone" if work.drop_role(dsn) else "role outboxd: there is none")


def _dsn(ctx: click.Context, side: Side) -> str:
    settings = load(ctx.obj, {}, needs=["source"] if side == "source" else [])
    if side == "source":
        return settings.source_conninfo
    if settings.target_dsn is None:
        fail(
            [
                "uninstall target needs a direct connection to the project's database: set OUTBOXD_TARGET_DSN (or SUPABASE_DB_URL),",
                "or paste the output of `outboxd uninstall target --print` into the Supabase SQL editor",
            ],
            CONFIG,
        )
    return settings.target_conninfo


def _told(side: Side, loss: work.Loss) -> list[str]:
    named = ", ".join(loss.tables[:5]) + (f" and {len(loss.tables) - 5} more" if len(loss.tables) > 5 else "")
    if side == "target":
        told = (
            [f"{len(loss.tables)} table(s) are written no more, and stay as they are: {named}"] if loss.tables else []
        )
        told += [f"where {loss.cursors} relay(s) stand is forgotten: a later setup copies every row again"] * bool(
            loss.cursors
        )
        return told + [f"{loss.letters} held row(s) stay behind the source"] * bool(loss.letters)
    told = [f"{len(loss.tables)} table(s) are captured no more, and stay as they are: {named}"] if loss.tables else []
    many = "100000 or more" if loss.waiting >= 100_000 else str(loss.waiting)
    if loss.leads:
        told += ["an outboxd runs: it will pause and say that schema outbox is not there; stop it first"]
        told += [f"lost: {many} change(s) at most, by what the daemon told this side up to a minute ago"] * bool(
            loss.waiting
        )
    elif loss.waiting:
        told += [f"lost: {many} change(s) that the target may not have (`outboxd run --until-idle` brings them)"]
    told += [f"lost: {loss.letters} dead letter(s) (`outboxd dead-letters list`)"] * bool(loss.letters)
    return [*told, "applications that call outbox.emit will fail: take that out of them first"]


def _agreed(side: Side, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        fail("nothing was done: say --yes to do this without being asked", USAGE)
    agreed(f"Take outboxd off the {side}?")
