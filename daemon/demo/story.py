"""`outboxd demo`: the main job on real parts, told in plain lines. Supabase goes away and comes back.

Knows the story: its acts and their order. What stands on the stage, who writes and how it is told is known elsewhere.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, closing

from daemon.demo import narrator
from daemon.demo.binaries import MissingPostgres, MissingPostgrest
from daemon.demo.compare import compare
from daemon.demo.curtain import Curtain, Stopped, curtain
from daemon.demo.narrator import fact, say, title
from daemon.demo.observer import Observer, Sight
from daemon.demo.stage import TABLES, Stage, connect
from daemon.demo.writer import Writer

_PER_SECOND, _PER_SECOND_KEPT = 40.0, 1.0
_PATIENCE = 90.0  # seconds, for what takes a few: beyond it something is wrong


class Failed(Exception):
    """The story cannot go on; says why."""


def play(*, keep: bool, transport: str, seconds: float) -> int:
    """Set everything up, play three acts of `seconds`, compare, clear up. 0 only when every row is equal."""
    with curtain() as falling:
        try:
            try:
                with closing(Stage(transport)) as stage, ExitStack() as stack:
                    return Story(stage, stack, falling, seconds).tell(keep=keep)
            finally:
                falling.wait()  # Ctrl-C reaches npm, too: what failed because of it is no failure
        except Stopped as stopped:
            say(f"\nStopped by {stopped}. Everything that the demo started is gone.")
            return stopped.exit_code
        except MissingPostgrest as missing:
            without = 'outboxd demo --transport postgres (in a checkout: make demo ARGS="--transport postgres")'
            say(f"{missing}\nOr go without it: {without}")
        except (MissingPostgres, Failed, RuntimeError) as error:
            say(f"The demo cannot go on: {error}")
        return 1


class Story:
    def __init__(self, stage: Stage, stack: ExitStack, falling: Curtain, seconds: float) -> None:
        self._stage = stage
        self._stack = stack
        self._curtain = falling
        self._seconds = seconds
        self._began = time.monotonic()
        self._writer: Writer
        self._observer: Observer
        self._lags: dict[str, list[float]] = {}

    def tell(self, *, keep: bool) -> int:
        self._set_up()
        self._all_is_well()
        self._supabase_goes()
        self._supabase_returns()
        self._writer.stop()
        say("\nThe application stops; what it wrote last still travels.")
        self._watch(0, lambda sight: sight.waiting == 0)
        equal = self._compare() and self._verify()
        self._sum_up()
        if keep:
            self._stay()
        code = self._stage.outboxd.stop()
        say(f"\noutboxd was told to stop (SIGTERM) and did, with exit code {code}. The demo clears up.")
        return 0 if equal and code == 0 else 1

    # -- before --------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        stage = self._stage
        title("outboxd demo: an application writes to its Postgres, outboxd carries every change to Supabase.")
        say("Everything is real, runs on this machine alone, and is gone afterwards.\n")
        self._curtain.wait()
        stage.raise_source()
        fact(
            "source",
            f"the application's PostgreSQL {stage.source.version} (port {stage.source.port}), its tables as Prisma makes them",
        )
        self._curtain.wait()
        stage.raise_target()
        how = (
            f"PostgREST behind a gateway, {stage.supabase.url}"
            if stage.supabase
            else "reached directly, without the Data API"
        )
        fact("target", f"a Supabase project: PostgreSQL {stage.target.version} (port {stage.target.port}), {how}")
        stage.watch()
        fact("watched", ", ".join(TABLES))
        fact("schema", f"made on the target by `outboxd schema apply`, {stage.apply_schema()} steps")
        self._curtain.wait()
        outboxd = stage.start_outboxd()
        self._observer = Observer(outboxd, self._stack.enter_context(connect(stage.source_dsn)))
        fact("outboxd", f"process {outboxd.pid}, started by `outboxd run`")
        fact(
            "writer",
            f"about {_PER_SECOND:g} transactions a second: inserts, updates, cascading deletes, changed keys, rollbacks",
        )
        self._write(_PER_SECOND)
        narrator.explain()

    def _write(self, per_second: float) -> None:
        self._writer = Writer(self._stage.source_dsn, per_second)
        self._stack.callback(self._writer.stop)
        self._writer.start()

    # -- the acts ------------------------------------------------------------------------------------------

    def _all_is_well(self) -> None:
        title("\nAct 1 of 3: all is well.")
        self._watch(1, _caught_up)  # outboxd has just started
        self._observer.take_lags()
        self._watch(self._seconds)
        self._lags["before"] = self._observer.take_lags()

    def _supabase_goes(self) -> None:
        what = "PostgREST" if self._stage.supabase else "Supabase's Postgres"
        title(f"\nAct 2 of 3: Supabase goes away ({what} is stopped). The application writes on.")
        self._stage.take_supabase_away()
        self._watch(self._seconds)

    def _supabase_returns(self) -> None:
        title("\nAct 3 of 3: Supabase comes back.")
        self._stage.bring_supabase_back()
        self._watch(1, _caught_up)
        self._lags["during"] = self._observer.take_lags()
        say("  → outboxd has caught up.")
        self._watch(self._seconds)
        self._lags["after"] = self._observer.take_lags()

    def _watch(self, seconds: float, until: Callable[[Sight], bool] = lambda _: True) -> None:
        """A line a second: for `seconds`, and on until the condition holds."""
        began = at = time.monotonic()
        applied = self._observer.applied
        while True:
            left = seconds - (at - began)
            self._curtain.wait(min(1.0, left) if left > 0.05 else 0.2 if seconds == 0 else 1.0)
            sight, now = self._observer.look(), time.monotonic()
            narrator.second(sight, self._writer.committed, (sight.applied - applied) / (now - at))
            applied, at = sight.applied, now
            self._check()
            if at - began >= seconds - 0.05 and until(sight):
                return
            if at - began > seconds + _PATIENCE:
                raise Failed(
                    f"{sight.waiting} changes still wait, the breaker is {sight.breaker}: {self._stage.outboxd.last_words()}"
                )

    def _check(self) -> None:
        if self._stage.outboxd.returncode is not None:
            raise Failed(f"outboxd ended by itself: {self._stage.outboxd.last_words()}")
        if self._writer.failure is not None:
            raise Failed(f"the application failed: {self._writer.failure}")

    # -- after ---------------------------------------------------------------------------------------------

    def _compare(self) -> bool:
        title("\nBoth stores, row by row, every column:")
        with connect(self._stage.source_dsn) as source, connect(self._stage.target_dsn) as target:
            tables = [compare(source, target, table) for table in TABLES]
        return narrator.comparison(tables)

    def _verify(self) -> bool:
        title("\nAnd by outboxd's own word, which you can have while rows are being written, too: `outboxd verify`")
        command, deadline = self._stage.start_verify(), time.monotonic() + _PATIENCE
        while command.returncode is None:
            self._curtain.wait(0.1)
            if time.monotonic() > deadline:
                raise Failed(f"outboxd verify does not end: {command.last_words()}")
        for line in filter(str.strip, command.log.read_text("utf-8").splitlines()):
            say(f"  {line}")
        return command.returncode == 0

    def _sum_up(self) -> None:
        title("\nIn short:")
        writer, observer = self._writer, self._observer
        narrator.summary(writer.committed, writer.rolled_back, observer.applied, self._lags, observer.breaker)
        fact("time", f"{time.monotonic() - self._began:.0f} s")

    def _stay(self) -> None:
        """Leave everything up until a signal comes."""
        stage = self._stage
        self._write(_PER_SECOND_KEPT)
        psql = "psql" if shutil.which("psql") else stage.source.installed / "psql"
        title("\nEverything stays up, and the application goes on with one transaction a second. Ctrl-C ends it.")
        if stage.supabase:
            fact("Supabase", stage.supabase.url)
            fact(
                "",
                f"curl -s '{stage.supabase.url}/rest/v1/Story?select=id,title&limit=3' -H 'apikey: {stage.supabase.publishable_key}'",
            )
        fact("source", f"{psql} {stage.source_dsn}")
        fact("target", f"{psql} {stage.target_dsn}")
        fact("status", f"curl -s {stage.outboxd.url}/api/status")
        fact("metrics", f"curl -s {stage.outboxd.url}/metrics")
        fact("log", f"tail -f {stage.outboxd.log}")
        fact(
            "try",
            f"""{psql} {stage.source_dsn} -c 'update "Story" set "title" = upper("title")', and look at the target""",
        )
        while True:
            self._curtain.wait(1.0)
            self._check()


def _caught_up(sight: Sight) -> bool:
    return sight.breaker == "closed" and sight.lag < 1.0
