"""`outboxd schema`: the plan for the target's tables, applying it, and whether anything is left to do.

Knows how to ask and how to print.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from daemon.configuration import load
from daemon.settings import Settings
from daemon.talk import agreed as agree
from daemon.talk import data, fail, say, show, table
from outbox import __version__

if TYPE_CHECKING:
    from daemon.schema_apply import Done
    from daemon.schema_steps import Plan, Step

FAILED, FOUND, CONFIG = 1, 3, 78


@click.group("schema")
def group() -> None:
    """The target's tables: what they lack, and bringing them there."""


def _settings(ctx: click.Context) -> Settings:
    return load(ctx.find_root().obj, needs={"source"})


def _target(settings: Settings, what: str) -> str:
    if settings.target_dsn is None:
        fail(
            f"schema {what} needs a direct connection to the project's database: set OUTBOXD_TARGET_DSN (or SUPABASE_DB_URL);\n"
            "or, without one: outboxd schema plan --sql > supabase/migrations/<timestamp>_outboxd.sql, or paste that into the SQL editor",
            CONFIG,
        )
    return settings.target_conninfo


@group.command("plan")
@click.argument("tables", nargs=-1, metavar="[TABLE]…")
@click.option("--json", "as_json", is_flag=True)
@click.option("--sql", "as_sql", is_flag=True, help="One file for the Supabase CLI or the SQL editor; may run again.")
@click.pass_context
def plan_command(ctx: click.Context, tables: Sequence[str], *, as_json: bool, as_sql: bool) -> None:
    """What would be done to the target, step by step, each with its SQL and its reason. Changes nothing."""
    from daemon.schema_apply import look
    from daemon.schema_script import script

    settings = _settings(ctx)
    if as_json and as_sql:
        raise click.UsageError("--json or --sql, not both")
    dsn = None if as_sql and settings.target_dsn is None else _target(settings, "plan")
    found = look(settings.source_conninfo, dsn, settings.tables, tables)
    if as_sql:
        if dsn is None:
            say("without OUTBOXD_TARGET_DSN this is the script for a project that has none of these tables")
        data(script(found, __version__), nl=False)
        for note in (*found.notes, *found.problems):
            say(f"note: {note}")
    elif as_json:
        data(json.dumps(_as_json(found), indent=2))
    else:
        _print(found)
    sys.exit(FAILED if found.problems else 0)


@group.command("apply")
@click.argument("tables", nargs=-1, metavar="[TABLE]…")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--allow-destructive", is_flag=True, help="Also what loses or rewrites something.")
@click.pass_context
def apply_command(ctx: click.Context, tables: Sequence[str], *, yes: bool, allow_destructive: bool) -> None:
    """Do what the plan says. Running it again is harmless. 3: something is left that you have to allow."""
    from daemon.schema_apply import apply

    settings = _settings(ctx)

    def agreed(found: "Plan") -> bool:
        if yes:
            return True
        _print(found)
        if not sys.stdin.isatty():
            fail("nothing was done: say --yes to do this without being asked", FOUND)
        return agree("Do this on the target?", else_end=False)

    done = apply(
        settings.source_conninfo, _target(settings, "apply"), settings.tables, tables,
        allow_destructive=allow_destructive, agreed=agreed, on_step=lambda step: say(f"{step.table}: {_title(step)}"),
        record=True,
    )  # fmt: skip
    for note in done.plan.notes if yes else ():
        say(f"note: {note}")
    if done.steps:
        _wait(settings, done.plan)
    _say_done(done, named=yes)
    if done.plan.problems or done.refused:
        sys.exit(FAILED)
    sys.exit(FOUND if done.left or (done.plan.due and not done.steps) else 0)


def _say_done(done: "Done", *, named: bool) -> None:
    if done.steps:
        say(f"{len(done.steps)} step{'s' * (len(done.steps) > 1)} done")
    elif not (done.plan.due or done.plan.problems):
        say("nothing to do: the target has all that it should")
    if done.unrecorded:
        say("note: the source's role may not record who may see the tables: apply once as the owner of schema outbox")
    if done.plan.waiting:
        say(f"{_waiting(done.plan)}: run this again when their tables are copied")
    if done.left and (done.steps or named):
        say("left, because it loses or rewrites something (--allow-destructive does it):")
        for step in done.left:
            say(f"  {step.table}: {_title(step)}: {step.loses}")
    for sentence in (*done.plan.problems, *done.refused):
        say(f"error: {sentence}")


@group.command("status")
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def status_command(ctx: click.Context, *, as_json: bool) -> None:
    """Whether the target has all that it should. 3: there are steps to do."""
    from daemon.schema_apply import look

    settings = _settings(ctx)
    found = look(settings.source_conninfo, _target(settings, "status"), settings.tables)
    rows = [_counted(found, one.watched.name, ".".join(one.name)) for one in found.wanted]
    if as_json:
        data(json.dumps({"tables": rows, "notes": found.notes}, indent=2))
    elif not rows:
        say("no table is watched: outboxd watch public.your_table")
    else:
        head = ("TABLE", "TARGET", "TO DO", "DESTRUCTIVE", "AFTER THE COPY")
        table(head, [tuple(str(value) for value in row.values()) for row in rows])
        if found.due or found.problems:
            say("what there is to do: outboxd schema plan")
    sys.exit(FOUND if found.due or found.problems else 0)


def _counted(found: "Plan", name: str, target: str) -> dict[str, Any]:
    due = [step for step in found.due if step.table == name]
    return {
        "table": name,
        "target": target,
        "to_do": sum(not step.destructive for step in due),
        "destructive": sum(step.destructive for step in due),
        "after_copy": sum(step.table == name for step in found.waiting),
    }


def _as_json(found: "Plan") -> dict[str, Any]:
    return {
        "steps": [asdict(step) for step in found.steps],
        "notes": list(found.notes),
        "problems": list(found.problems),
    }


def _title(step: "Step") -> str:
    return f"{step.kind.replace('_', ' ')} {step.what}"


def _waiting(found: "Plan") -> str:
    count = sum(step.kind == "foreign_key" for step in found.waiting)
    return f"{count} foreign key{'s' * (count != 1)} wait{'s' * (count == 1)} for the first copy"


def _print(found: "Plan") -> None:
    if not (found.steps or found.problems):
        say("nothing to do: the target has all that it should")
    for number, step in enumerate(found.steps, 1):
        when = f" (after the copy of {', '.join(step.waits_for)})" if step.waits_for else ""
        show(f"{number}. {step.table}: {_title(step)}{when}", bold=True)
        show(f"   {step.reason}")
        if step.destructive:
            show(f" {step.loses}", mark="   loses:", colour="red")
        show(*(f"     {line}" for line in step.sql.split("\n")))
    for note in found.notes:
        say(f"note: {note}")
    for problem in found.problems:
        say(f"error: {problem}")


def _wait(settings: Settings, found: "Plan") -> None:
    """Until the Data API shows the tables, to read and to write, where it is known how to ask it."""
    from daemon.exposed import Shown, wait_until_shown

    for one in found.wanted:
        if one.name[0] != settings.exposed_schema and one.audience.access != "none":
            say(
                f"note: {'.'.join(one.name)} is seen through the Data API only when the project exposes schema {one.name[0]}"
            )
    shown = [
        Shown(one.name, tuple(column.name for column in one.table.columns))
        for one in found.wanted
        if one.name[0] == settings.exposed_schema
    ]
    if settings.supabase_url is None or settings.supabase_key is None or not shown:
        return
    key = settings.supabase_key.get_secret_value()
    for seen in wait_until_shown(settings.supabase_url, key, shown, user_agent=f"outboxd/{__version__}"):
        schema, name = seen.name
        if seen.denied:
            say(f"note: the key's role may not use {schema}.{name} through the Data API: {seen.denied}")
        else:
            say(f"note: the Data API does not show {schema}.{name} yet: does it expose schema {schema}?")
