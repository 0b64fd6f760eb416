"""`make bench`: outboxd beside what people would use instead, on the same rows, in the same run."""

import json
import os
import shutil
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import click

from daemon.demo.binaries import MissingPostgres, MissingPostgrest
from daemon.demo.cluster import shared_folder
from tests.bench import page
from tests.bench.figures import Measured, Results
from tests.bench.goals import goals
from tests.bench.growth import steps as grown
from tests.bench.run import WORKLOADS, Plan, Step, steps
from tests.bench.site import SETTINGS, machine, opened
from tests.bench.systems import NAMES, BenchFailed
from tests.bench.table import rendered


def _listed(_: click.Context, option: click.Parameter, given: str) -> list[str]:
    known = WORKLOADS if option.name == "only" else tuple(NAMES)
    chosen = [word.strip() for word in given.split(",") if word.strip()]
    if unknown := [word for word in chosen if word not in known]:
        raise click.BadParameter(f"{', '.join(unknown)}: none of {', '.join(known)}")
    return chosen


def _numbers(_: click.Context, __: click.Parameter, given: str) -> list[int]:
    words = [word.strip() for word in given.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        raise click.BadParameter(f"{given}: not numbers, such as 1000000,10000000")
    return [int(word) for word in words]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Under 3 minutes: smaller backlogs, one repeat.")
@click.option("--only", default=",".join(WORKLOADS), callback=_listed, help="Workloads, such as W1,W4.")
@click.option("--systems", default=",".join(NAMES), callback=_listed, help="Systems, such as native,rest,direct.")
@click.option("--repeats", type=click.IntRange(1), help="Default: 3, or 1 with --quick.")
@click.option("--changes", type=click.IntRange(100), help="Of a backlog; default: 100000, or 20000 with --quick.")
@click.option(
    "--deadline", type=float, default=300.0, help="Seconds for a system to catch up; beyond it the bench fails."
)
@click.option(
    "--growth", is_flag=True, help="More waiting, tables, bytes: docs/benchmark.md with its picture, and no table."
)
@click.option("--waiting", default="", callback=_numbers, help="Backlogs of --growth; default: 100000,1000000.")
@click.option(
    "--into", type=click.Path(exists=True, file_okay=False, path_type=Path), default=page.DOCS, help="Of --growth."
)
@click.option("--postgres", type=int, help="Major version of PostgreSQL (default: 17).")
@click.option("--json", "as_json", type=click.Path(dir_okay=False, path_type=Path), help="Write everything there, too.")
def main(
    *, quick: bool, only: list[str], systems: list[str], repeats: int | None, changes: int | None, deadline: float,
    growth: bool, waiting: list[int], into: Path, postgres: int | None, as_json: Path | None,
) -> None:  # fmt: skip
    """Measure outboxd beside native replication and a supabase-py script, and print one table."""
    plan = Plan(
        only, systems, repeats or (1 if quick or growth else 3), changes or (20_000 if quick else 100_000), deadline,
        quick, waiting or ([20_000, 60_000] if quick else [100_000, 1_000_000]),
    )  # fmt: skip
    for name in list(os.environ):  # what the shell is set up for must not reach a measurement
        if name.startswith(("OUTBOXD_", "SUPABASE_", "DATABASE_URL", "PG")):
            del os.environ[name]
    folder = shared_folder("outboxd-bench-")
    try:
        results, about, failure = _measure(list((grown if growth else steps)(plan)), plan, folder, postgres)
    except (MissingPostgres, MissingPostgrest) as missing:
        raise click.ClickException(str(missing)) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not growth:
        click.echo(rendered(results, about))
    elif not failure:  # a run that failed leaves the page as it was
        chosen = [
            "--growth",
            *(["--quick"] if quick else []),
            *([f"--waiting {','.join(map(str, waiting))}"] if waiting else []),
        ]
        click.echo(page.written(results, about, chosen, into))
    if as_json:
        as_json.write_text(json.dumps(_as_dict(results, about, failure), indent=1) + "\n", encoding="utf-8")
    if failure:
        click.secho(f"\nThe bench failed. {failure}", fg="red", err=True)
        sys.exit(1)


def _measure(
    todo: list[Step], plan: Plan, folder: Path, postgres: int | None
) -> tuple[Results, dict[str, str], str | None]:
    """Everything in order; on the first failure what was measured so far, and why."""
    measured: list[Measured] = []
    spent: dict[str, float] = defaultdict(float)
    failure = None
    began = time.monotonic()
    with opened(folder / "run", postgres) as site:
        about = machine(site)
        with click.progressbar(
            todo, label="bench", file=sys.stderr, item_show_func=lambda step: step.title if step else ""
        ) as bar:  # fmt: skip
            try:
                for step in bar:
                    started = time.monotonic()
                    measured += step.measure(site)
                    spent[step.title.split()[0]] += time.monotonic() - started
            except BenchFailed as failed:
                failure = str(failed)
    about["repeats"] = f"{plan.repeats}, interleaved; figures are medians, with the least and the greatest"
    parts = ", ".join(f"{workload} {seconds:.0f}" for workload, seconds in sorted(spent.items()))
    about["took"] = f"{time.monotonic() - began:.0f} s: {parts}"
    return Results(measured), about, failure


def _as_dict(results: Results, about: dict[str, str], failure: str | None) -> dict[str, Any]:
    return {
        "machine": about,
        "settings": SETTINGS,
        "measured": [one.as_dict() for one in results.all],
        "figures": [goal.as_dict() for goal in goals(results)],
        "failure": failure,
    }


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # clears up on the way
    main()
