"""The commands. Data goes to stdout, talk to stderr; `--json` where a program would read it.

Knows how to ask and how to print. What a command does stands in the module it calls.
Exit codes: 0 ok, 1 error, 2 usage, 3 a check found something, 75 a dependency is down, 78 bad configuration.
"""

import asyncio
import json
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import click
import psycopg

from daemon import (
    addresses,
    cli_backfill,
    cli_dead_letters,
    cli_rebase,
    cli_schema,
    cli_uninstall,
    cli_verify,
    install,
    selection,
)
from daemon.configuration import ConfigError, Loaded, Need, load, load_admin, load_without_target
from daemon.errors import DaemonError, SourceUnavailable, TargetError, passes
from daemon.printable import printable, word
from daemon.refusal_words import told_of
from daemon.secrecy import mask
from daemon.settings import Settings, redacted
from daemon.tables import said_of
from daemon.talk import agreed, data, fail, fields, say, show, table
from outbox import OutboxError, __version__
from outbox.migrations import Side, literal, script, step

FAILED, FOUND, AWAY, CONFIG = 1, 3, 75, 78


def _last_words(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    """Python's own traceback has the texts of errors, which may quote rows, and paints whatever is in them."""
    from daemon import logs

    logs.last_words(error, FAILED)


class _Group(click.Group):
    """Turns expected errors into one sentence and the right exit code; of a bug the log tells kind and place."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        sys.excepthook = _last_words
        return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _usage():
            return super().make_context(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not all(map(_is_text, args)):
            raise click.UsageError("an argument has a NUL byte, or is not in UTF-8")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _usage():
                return super().invoke(ctx)
        except ConfigError as exc:
            fail(exc.lines, CONFIG)
        except OutboxError as exc:
            fail(mask(str(exc)), FAILED)
        except DaemonError as exc:
            fail(mask(str(exc)), AWAY if _away(exc) else FAILED)
        except psycopg.OperationalError as exc:
            fail(
                f"the database cannot be reached ({exc.sqlstate or type(exc).__name__}): is the address right, and the server up?",
                AWAY,
            )
        except psycopg.Error as exc:
            fail(told_of(exc.sqlstate, exc.diag.message_primary, exc.diag.context, type(exc).__name__), FAILED)


@contextmanager
def _usage() -> Iterator[None]:
    """click repeats what it was given, which may be a script's."""
    try:
        yield
    except click.MissingParameter:
        raise
    except click.ClickException as exc:
        object.__setattr__(exc, "message", printable(exc.message))
        raise


def _is_text(argument: str) -> bool:
    """As Postgres has it, whatever it is the name of."""
    try:
        return b"\0" not in argument.encode()
    except UnicodeEncodeError:  # bytes that are none, as Python hands them on
        return False


def _away(exc: DaemonError) -> bool:
    return isinstance(exc, SourceUnavailable) or (isinstance(exc, TargetError) and passes(exc.kind))


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(path_type=Path), help="TOML file (default: ./outboxd.toml if there).")
@click.version_option(__version__, prog_name="outboxd")
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """Carries every committed change of your Postgres to Supabase."""
    ctx.obj = config


def _settings(ctx: click.Context, *needs: Need, **overrides: Any) -> Settings:
    return load(ctx.obj, overrides, needs=needs)


# -- setting up ----------------------------------------------------------------------------------------------


@main.command()
@click.argument("side", type=click.Choice(["source", "target"]))
@click.option(
    "--print", "print_only", is_flag=True, help="Print the SQL for a migration tool or the SQL editor; touch nothing."
)
@click.option("--role", is_flag=True, help="Source only: (also) the least-privilege role for the daemon.")
@click.pass_context
def setup(ctx: click.Context, side: Side, *, print_only: bool, role: bool) -> None:
    """Install outboxd's schema on one side. Running it again is harmless."""
    if role and side == "target":
        raise click.UsageError("--role is for the source")
    if print_only:
        settings = _settings(ctx)
        data(script(side, exposed_schema=settings.exposed_schema) + (step("source", "role") if role else ""), nl=False)
        return
    settings = _settings(ctx, "source") if side == "source" else _settings(ctx)
    if side == "target" and settings.target_dsn is None:
        fail(
            [
                "setup target needs a direct connection to the project's database: set OUTBOXD_TARGET_DSN (or SUPABASE_DB_URL),",
                "or run `outboxd setup target --print` and paste the output into the Supabase SQL editor",
            ],
            CONFIG,
        )
    if amiss := addresses.amiss(settings):
        fail(f"{amiss}; nothing was done", CONFIG)
    dsn = settings.source_conninfo if side == "source" else settings.target_conninfo
    applied = install.setup(dsn, side, exposed_schema=settings.exposed_schema, role=role)
    say(f"{side}: applied {', '.join(applied)}" if applied else f"{side}: up to date")
    if role:
        say("role outboxd: give it a password with  alter role outboxd password '…'")


@main.command()
@click.argument("tables", nargs=-1, required=True, metavar="TABLE…")
@click.option("--key", multiple=True, help="Key column, when not the primary key (once for each column).")
@click.option("--include", multiple=True, help="Only this column travels (once for each).")
@click.option("--exclude", multiple=True, help="This column does not travel (once for each).")
@click.option("--emit-only", is_flag=True, help="No triggers: the application calls outbox.emit itself.")
@click.option("--no-copy", is_flag=True, help="Leave the rows that are there already: only changes travel.")
@click.option(
    "--on-error",
    type=click.Choice(["hold", "halt"]),
    help="When the target refuses a row: hold that row alone (at first), or halt.",
)
@click.option("--target", help="Its name on the target, as in app.story (default: the same).")
@click.option("--rename", multiple=True, metavar="COLUMN=NAME", help="This column has another name on the target.")
@click.option("--constant", multiple=True, metavar="NAME=TEXT", help="A column of the target with one fixed text.")
@click.option("--mask", multiple=True, metavar="COLUMN=null|hash|redact", help="This column's values stay here.")
@click.option("--where", metavar="SQL", help="Only rows for which this is true travel, as in 'deleted_at is null'.")
@click.option("--plain", is_flag=True, help="Without the key, columns, names, masks and filter of before.")
@click.pass_context
def watch(
    ctx: click.Context,
    tables: Sequence[str],
    key: Sequence[str],
    include: Sequence[str],
    exclude: Sequence[str],
    *,
    emit_only: bool,
    no_copy: bool,
    on_error: str | None,
    target: str | None,
    rename: Sequence[str],
    constant: Sequence[str],
    mask: Sequence[str],
    where: str | None,
    plain: bool,
) -> None:
    """Record every change of TABLE… from now on, and allow it on the target. The rows it has are copied.

    What options and [tables] of the configuration do not name stays as it is in force: watching again never takes a
    mask off. Only --plain does.
    """
    settings = _settings(ctx, "source")
    if target and len(tables) > 1:
        raise click.UsageError("--target names one table: watch the others by themselves")
    try:
        options = selection.Selection(
            list(key) or None, list(include) or None, list(exclude) or None, not emit_only, on_error, not no_copy,
            selection.target(target), selection.pairs("--rename", rename), selection.pairs("--constant", constant),
            selection.pairs("--mask", mask), where,
        )  # fmt: skip
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None

    def selected(name: str, alike: Collection[str]) -> selection.Selection:
        chosen = selection.combined(options, said_of(settings.tables, name, alike))
        return selection.plain(chosen) if plain else chosen

    def place(was: str, called: str) -> str:
        """Of a table that was renamed: where its mirror is, unless that was renamed alike."""
        return was if settings.target_dsn is None else install.moved(settings.target_conninfo, was, called)

    watching = []
    try:
        for before, now in install.watch(
            settings.source_conninfo, tables, selected, lambda text: say(f"warning: {text}"), place
        ):
            watching.append(now)
            _say_watched(before, now, copied=not no_copy)
    finally:  # where one is refused, those before it are watched: they must be mapped as well
        mapped = _map(settings, watching)
    if not mapped:
        sys.exit(FAILED)


def _say_watched(before: install.Watched | None, now: install.Watched, *, copied: bool) -> None:
    say(f"watching {now.table}")
    if before and before.table != now.table:
        say(f"  it was watched as {before.table}, and goes on as that was; [tables] is to name it by its name of now")
        return
    if now.mapped:
        say(f"  {now.mapped}")
    if before and before.differs(now):
        say(
            "  this differs from before: "
            + (
                "the daemon copies the table anew; rows that do not travel any more are deleted on the target, and columns "
                "emptied where they may be null (`outboxd schema plan` says where they may not)"
                if copied
                else "rows that are on the target already stay as they are until they are copied again (`outboxd backfill --prune`)"
            )
        )


def _map(settings: Settings, watching: Sequence[install.Watched]) -> bool:
    """With a direct connection the target learns of the tables at once; without, say what to run there. False: it refuses one."""
    if not watching:
        return True
    if settings.target_dsn is None:
        say("on the target, in the SQL editor:")
        for one in watching:
            data(_map_statement(one))
        return True
    refused = False
    for one, there, because in install.map_on_target(
        settings.target_conninfo, watching, lambda text: say(f"warning: {text}")
    ):
        if because is not None:
            refused = True
            say(f"error: {one.table} is watched, and not mapped on the target: {because}")
        elif there:
            say(f"mapped {one.on_target} on the target")
        else:
            say(
                f"the target has no table {one.on_target} yet: `outboxd schema apply` makes it; if you do,  {_map_statement(one)}"
            )
    return not refused


@main.command()
@click.argument("tables", nargs=-1, required=True, metavar="TABLE…")
@click.option("--yes", is_flag=True, help="Do not ask, also where the table lives on under another name.")
@click.pass_context
def unwatch(ctx: click.Context, tables: Sequence[str], *, yes: bool) -> None:
    """Stop recording changes of TABLE…; what is recorded already still travels."""

    def living(one: install.Renamed, by_its_name: bool) -> None:
        say(f"{one.was} is called {one.called} now, and its changes are recorded no more from here on")
        if not (yes or by_its_name):
            say(f"to go on under that name: outboxd watch {word(one.called)}")
            agreed(f"stop recording changes of {one.called}?")

    for name in install.unwatch(_settings(ctx, "source").source_conninfo, tables, living):
        say(f"no longer watching {name}")
        say(
            "  its mirror and the rows there stay: `outboxd schema plan` offers to drop what is outboxd's of it (foreign keys,"
        )
        say("  policies, the map); while a foreign key stays, deletes of the rows it refers to are refused")


@main.command()
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def watched(ctx: click.Context, *, as_json: bool) -> None:
    """The tables whose changes are recorded."""
    rows = install.watched(_settings(ctx, "source").source_conninfo)
    if as_json:
        data(json.dumps([asdict(row) for row in rows], indent=2))
    elif not rows:
        say("no table is watched: outboxd watch public.your_table")
    else:
        table(("TABLE", "CAPTURE", "KEY", "COLUMNS", "ON ERROR", "MAPPING"), [_watched_cells(row) for row in rows])


def _watched_cells(row: install.Watched) -> tuple[str, ...]:
    columns = (
        f"only {', '.join(row.include)}" if row.include else f"not {', '.join(row.exclude)}" if row.exclude else "all"
    )
    return row.table, "triggers" if row.capture else "emit", ", ".join(row.key or ()), columns, row.on_error, row.mapped


# -- running ---------------------------------------------------------------------------------------------------


@main.command()
@click.option(
    "--until-idle",
    is_flag=True,
    help="Apply what there is and finish what was asked for (copies, verifications), then exit.",
)
@click.option("--strict", is_flag=True, help="Exit 78 when Supabase's settings are missing or wrong, do not wait.")
@click.pass_context
def run(ctx: click.Context, *, until_idle: bool, strict: bool) -> None:
    """Move changes until told to stop (SIGTERM, Ctrl-C). SIGHUP: read the settings again."""

    def read() -> Loaded:
        return load_without_target(ctx.obj)

    loaded = Loaded(_settings(ctx, "source", "target")) if strict or until_idle else read()
    settings = loaded.settings
    from daemon import logs
    from daemon.main import run as run_daemon
    from daemon.metrics import Metrics

    metrics = Metrics(__version__)
    logs.configure(settings.log_level, settings.log_format, on_message=metrics.logged, on_dropped=metrics.log_dropped)
    threading.excepthook = lambda failed: logs.last_words(failed.exc_value)
    sys.unraisablehook = lambda failed: logs.last_words(failed.exc_value)
    try:
        code = asyncio.run(run_daemon(loaded, metrics, read, until_idle=until_idle))
    except OSError as exc:
        if exc.errno is None or settings.admin_port == 0:
            raise
        fail(
            f"cannot listen on {settings.admin_host}:{settings.admin_port} ({exc.strerror}): set OUTBOXD_ADMIN_PORT, or OUTBOXD_ADMIN=false",
            CONFIG,
        )
    sys.exit(code)


@main.command()
@click.option("--json", "as_json", is_flag=True)
@click.option("--probe", is_flag=True, help="Ask the daemon on this machine, and nobody else, if it is alive: 0 or 1.")
@click.pass_context
def status(ctx: click.Context, *, as_json: bool, probe: bool) -> None:
    """Are both stores in sync, by their own word and, where it answers, the daemon's? 3: not, and the verdict says why."""
    if probe:
        _probe(ctx, load_admin(ctx.obj))
    from daemon.status import look

    seen = asyncio.run(look(load_without_target(ctx.obj)))
    if as_json:
        data(json.dumps(seen, indent=2))
    else:
        nobody = {"leader": "nobody: no daemon holds the lead"} if seen.get("leader", "") is None else {}
        told = {name: value for name, value in {**seen, **nobody}.items() if value not in (None, [])}
        passes = told.pop("verifications", [])
        told.pop("findings", None)  # the verdict says them
        if same := told.get("equal"):
            told["equal"] = f"as of {same['through']}, {same['tables']:,} tables, {same['rows']:,} rows"
        fields(told)
        _show_passes(passes)
    sys.exit(AWAY if seen["away"] else FOUND if seen["findings"] else 0)


def _probe(ctx: click.Context, settings: Settings) -> NoReturn:
    from daemon.probe import unwell

    if not settings.admin or not settings.admin_port:
        fail("a probe asks the daemon's own pages: set OUTBOXD_ADMIN=true and OUTBOXD_ADMIN_PORT", CONFIG)
    where = f"outboxd at {settings.admin_host}:{settings.admin_port}"
    if problem := unwell(settings.admin_host, settings.admin_port, settings.relay, lambda: _installation(ctx)):
        fail(f"{where} {problem}", FAILED)
    say(f"{where} is alive")
    sys.exit(0)


def _installation(ctx: click.Context) -> str | None:
    """Which one of schema outbox the daemon is to be of; None where that cannot be said at once. A daemon must not be
    ended because the source is away, or because settings have gone bad."""
    try:
        return install.installation(_settings(ctx, "source").source_conninfo)
    except ConfigError:
        return None


def _show_passes(passes: Sequence[Mapping[str, Any]]) -> None:
    """What is known of the tables' equality, one line each."""
    if not passes:
        return
    show("")
    rows = []
    for one in passes:
        drift = sum((one["drift"] or {}).values())
        now = one["so_far"]
        state = {"done": "", "never": "", "running": f"{now['rows'] if now else 0} rows so far"}.get(
            one["state"], one["state"]
        )
        counts = ["-" if one[name] is None else str(one[name]) for name in ("rows", "held")]
        rows.append((one["table"], one["through"] or "never", counts[0], "-" if one["drift"] is None else str(drift),
                     counts[1], ": ".join(said for said in (state, one["reason"]) if said)))  # fmt: skip
    table(("TABLE", "VERIFIED THROUGH", "ROWS", "DRIFT", "HELD", "NOW"), rows)


@main.command()
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def check(ctx: click.Context, *, as_json: bool) -> None:
    """The doctor: one line an item, OK, WARN or FAIL, and the fix. 3: something failed."""
    from daemon.status import examine

    settings = _settings(ctx, "source", "target")
    items = asyncio.run(examine(settings))
    if as_json:
        data(json.dumps([{"name": i.name, "level": i.level, "what": i.what, "fix": i.fix} for i in items], indent=2))
    else:
        width = max(len(printable(item.name)) for item in items)
        colours = {"OK": "green", "WARN": "yellow", "FAIL": "red"}
        for item in items:
            said = f"  {item.name:<{width - len(printable(item.name)) + len(item.name)}}  {mask(item.what)}"
            show(said, mark=f"{item.level:<4}", colour=colours[item.level])
            if item.fix and item.level != "OK":
                show(f"      {'':<{width}}  → {mask(item.fix)}")
    sys.exit(FOUND if any(item.level == "FAIL" for item in items) else 0)


main.add_command(cli_dead_letters.group)
main.add_command(cli_rebase.rebase)
main.add_command(cli_schema.group)
main.add_command(cli_backfill.backfill)
main.add_command(cli_verify.verify)
main.add_command(cli_uninstall.uninstall)


@main.group()
def config() -> None:
    """The configuration."""


@config.command("show")
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def config_show(ctx: click.Context, *, as_json: bool) -> None:
    """Every setting as it is in force; secrets are not shown."""
    shown = redacted(_settings(ctx))
    if as_json:
        data(json.dumps(shown, indent=2, default=str))
        return
    rows = [(name, "-" if one["value"] is None else str(one["value"]), str(one["from"])) for name, one in shown.items()]
    table(("SETTING", "VALUE", "FROM"), rows)


@main.command()
@click.option("--keep", is_flag=True, help="Leave everything running and print the addresses; Ctrl-C ends it.")
@click.option(
    "--transport",
    type=click.Choice(["rest", "postgres"]),
    default="rest",
    show_default=True,
    help="postgres needs no PostgREST.",
)
@click.option(
    "--seconds", type=click.FloatRange(1, 600), default=5.0, show_default=True, help="Length of each of the three acts."
)
def demo(*, keep: bool, transport: str, seconds: float) -> None:
    """The main job on real parts, in a minute: write, lose Supabase, get it back, compare."""
    from daemon.demo.story import play

    sys.exit(play(keep=keep, transport=transport, seconds=seconds))


@main.command()
@click.option("--json", "as_json", is_flag=True)
def version(*, as_json: bool) -> None:
    """Version of outboxd, Python and the libraries that matter."""
    import platform
    from importlib.metadata import version as of

    known = {
        "outboxd": __version__,
        "python": platform.python_version(),
        **{name: of(name) for name in ("psycopg", "supabase")},
    }
    data(json.dumps(known) if as_json else "\n".join(f"{name} {value}" for name, value in known.items()))


def _map_statement(one: install.Watched) -> str:
    return f"select outboxd.map({', '.join(literal(name) for name in dict.fromkeys((one.on_target, one.table)))});"
