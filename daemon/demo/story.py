"""`outboxd demo`: the main job on real parts, told in plain lines. Supabase goes away and comes back.

Knows the story and how to tell it. What stands on the stage, who writes and who compares is known elsewhere.
"""

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from statistics import median
from types import FrameType

import click

from daemon.demo.binaries import MissingPostgres, MissingPostgrest
from daemon.demo.compare import Comparison, compare
from daemon.demo.observer import Observer, Sight
from daemon.demo.stage import TABLES, Stage, connect
from daemon.demo.writer import Writer

_PER_SECOND, _PER_SECOND_KEPT = 40.0, 1.0
_PATIENCE = 90.0  # seconds, for what needs no more than a few: then something is wrong

_WORDS = """
  written   transactions that the application has committed
  applied   changed rows that have arrived in Supabase
  waiting   changed rows that are committed and have not arrived
  lag       age of the oldest change: of those waiting, else when it arrived
  breaker   closed: outboxd sends; open: Supabase is away and left in peace; half_open: one request tries"""


class Stopped(Exception):
    """Somebody pressed Ctrl-C, or the like."""


class Failed(Exception):
    """The story cannot go on; says why."""


class Stop:
    """Set by a signal. Nothing is interrupted in the middle: the story asks between its steps."""

    def __init__(self) -> None:
        self.signal = 0
        self._event = threading.Event()

    def caught(self, number: int, _: FrameType | None) -> None:
        self.signal = self.signal or number
        self._event.set()

    def check(self, seconds: float = 0.0) -> None:
        """Wait. Raises Stopped as soon as a signal was caught."""
        if self._event.wait(seconds):
            raise Stopped


def play(*, keep: bool, transport: str, seconds: float) -> int:
    """Set everything up, play three acts of `seconds`, compare, clear up. 0 only when every row is equal."""
    with _signals() as stop:
        try:
            with closing(Stage(transport)) as stage:
                return Story(stage, stop, seconds).tell(keep=keep)
        except Stopped:
            _say("\nStopped; everything that the demo started is gone.")
            return 128 + stop.signal
        except MissingPostgres as missing:
            _say(str(missing))
        except MissingPostgrest as missing:
            stop.signal or _say(f'{missing}\nOr do without: make demo ARGS="--transport postgres"')
            return 128 + stop.signal if stop.signal else 1
        except (Failed, RuntimeError) as failed:
            _say(f"The demo cannot go on: {failed}")
        return 1


@contextmanager
def _signals() -> Iterator[Stop]:
    """Until the end, clearing up included, signals are only noted: the second Ctrl-C must not leave half of it."""
    stop = Stop()
    before = {each: signal.signal(each, stop.caught) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class Story:
    def __init__(self, stage: Stage, stop: Stop, seconds: float) -> None:
        self._stage = stage
        self._stop = stop
        self._seconds = seconds
        self._began = time.monotonic()
        self._writer: Writer
        self._observer: Observer
        self._lags: dict[str, Sequence[float]] = {}

    def tell(self, *, keep: bool) -> int:
        self._set_up()
        try:
            self._act("before", "all is well.", "")
            self._stop.check()
            away = "PostgREST is stopped" if self._stage.supabase else "its Postgres is stopped"
            self._act("during", f"Supabase goes away ({away}). The application writes on.", "away")
            self._act("after", "Supabase is back.", "back")
            self._writer.stop()
            _say("\nThe application stops writing; the last changes travel.")
            self._narrate(0, lambda sight: sight.waiting == 0)
            equal = self._compare()
            self._sum_up(equal=equal)
            return self._keep(equal=equal) if keep else self._bow(equal=equal)
        finally:
            self._writer.stop()
            self._observer.source.close()

    # -- the acts ------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        _title("outboxd demo: an application writes to its Postgres, outboxd carries every committed change to Supabase")
        _say("Everything below is real, runs on this machine only, and is gone afterwards.\n")
        stage = self._stage
        self._stop.check()
        stage.raise_source()
        self._stop.check()
        _fact("source", f"the application's PostgreSQL {stage.source.version}, port {stage.source.port}: 4 tables as Prisma creates them")
        stage.raise_target()
        self._stop.check()
        _fact("target", f"Supabase: PostgreSQL {stage.target.version}, port {stage.target.port}" + (
            f", and PostgREST behind a gateway, {stage.supabase.url}" if stage.supabase else ", reached directly"
        ))  # fmt: skip
        stage.watch()
        _fact("watched", ", ".join(TABLES))
        self._writer = Writer(stage.source_dsn, _PER_SECOND)
        self._writer.start()
        _fact("writer", f"about {_PER_SECOND:g} transactions a second: inserts, updates, deletes with cascades, changed keys")
        outboxd = stage.start_outboxd()
        self._observer = Observer(outboxd, connect(stage.source_dsn))
        _fact("outboxd", f"process {outboxd.pid}, as started by `outboxd run`; {outboxd.url}/api/status")
        _fact("ready", f"after {time.monotonic() - self._began:.1f} s")
        _say(_WORDS)

    def _act(self, name: str, title: str, change: str) -> None:
        number = len(self._lags) + 1
        self._observer.take_lags()
        if change == "away":
            self._stage.take_supabase_away()
        if change == "back":
            self._stage.bring_supabase_back()
        _title(f"\nAct {number} of 3: {title}")
        self._narrate(0 if change == "back" else self._seconds, lambda _: change == "away" or self._caught_up)
        if change == "back":
            self._lags["during"] = [*self._lags["during"], *self._observer.take_lags()]
            _say("  → caught up; the application never noticed.")
            self._narrate(self._seconds, lambda _: True)
        self._lags[name] = self._observer.take_lags()
