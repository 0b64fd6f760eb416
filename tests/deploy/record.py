"""Records what Prometheus would have scraped during a real run with everything in it that an operator may meet.

    python -m tests.deploy.record

Two embedded databases, an application that writes, two daemons. In four minutes: a first copy, a burst, a refused row,
Supabase away and back, rows that somebody changes on the target, which are found and repaired, a long transaction, the
leader killed and a takeover, the source restarted, a table that does not fit. Writes tests/deploy/samples/run.om.xz, which test_board.py asks, and the picture drawn from it.
"""

import lzma
import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from daemon.demo.child import Outboxd
from daemon.demo.process import poll_until
from daemon.demo.stage import Stage, connect
from daemon.demo.writer import Writer

SAMPLES = Path(__file__).parent / "samples" / "run.om.xz"
JOB, INTERVAL = "outboxd", 2.0
_LE = re.compile(r'\ble="[^"]*"')
_KEPT = ("outboxd_", "process_")
_SEED = """
insert into "Story" ("id", "title", "updatedAt") select gen_random_uuid(), 'story ' || i, now() from generate_series(1, 30000) i
"""
_REFUSED = """insert into "Story" ("id", "title", "updatedAt") select gen_random_uuid(), 'refused', now() from generate_series(1, 3)"""
# What somebody may do on the target: no daemon hears of it, and no change of the source's will mend it.
_MEDDLE = """
update "Story" set "title" = 'mended by hand' where "id" in (select "id" from "Story" where "title" like 'story %' order by "id" limit 36);
delete from "Story" where "id" in (select "id" from "Story" where "title" like 'story %' order by "id" desc limit 12);
insert into "Story" ("id", "title", "createdAt", "updatedAt") select gen_random_uuid(), 'only here', now(), now() from generate_series(1, 5);
update visit set page = 'home' where id <= 20
"""
# Shorter waits than in production: the run is to show an outage's end, not its length; several verifications, not one a day.
_SETTINGS = {
    "copy_rows_per_second": "1500",
    "breaker__open_cap": "8",
    "verify_interval": "15",
    "verify_rows_per_second": "6000",
}
# Long repetitions, not sought for long: a preset takes minutes for as little, or seconds for half as much again.
_PACKED = [{"id": lzma.FILTER_LZMA2, "preset": 4, "nice_len": 273, "depth": 16}]

Series = dict[str, list[tuple[float, str]]]


class Scraper:
    """Asks every daemon in turn, as Prometheus does, and keeps what it says by series."""

    def __init__(self) -> None:
        self.series: Series = defaultdict(list)
        self.asked: dict[str, Outboxd] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scraper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            at = round(time.time(), 3)
            for instance, outboxd in list(self.asked.items()):
                self._scrape(instance, outboxd, at)
            due += INTERVAL

    def _scrape(self, instance: str, outboxd: Outboxd, at: float) -> None:
        code, body = outboxd.get("/metrics")
        where = {"instance": instance, "job": JOB}
        self.series[_name("up", where)].append((at, "1" if code == 200 else "0"))
        for family in text_string_to_metric_families(body if code == 200 else ""):
            for sample in family.samples:
                if sample.name.startswith(_KEPT):
                    self.series[_name(sample.name, {**sample.labels, **where})].append((at, _number(sample)))


def _name(name: str, labels: dict[str, str]) -> str:
    pairs = sorted((key, value.replace("\\", "\\\\").replace('"', '\\"')) for key, value in labels.items())
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in pairs) + "}"


def written(series: Series) -> str:
    """As OpenMetrics, which `promtool tsdb create-blocks-from openmetrics` reads."""
    kept = sorted(name for name in series if not _silent(name, series))
    lines = (f"{name} {value} {at:.3f}" for name in kept for at, value in series[name])
    return "\n".join([*lines, "# EOF\n"])


def _silent(name: str, series: Series) -> bool:
    """A bucket of a histogram that saw nothing: a third of all that is recorded."""
    return "_bucket{" in name and {value for _, value in series[_LE.sub('le="+Inf"', name)]} == {"0"}


def _number(sample: Sample) -> str:
    """As OpenMetrics spells it, and no longer than a picture needs."""
    digits = 13 if "time" in sample.name.split("_") or "timestamp" in sample.name else 7
    return {"nan": "NaN", "inf": "+Inf"}.get(found := f"{sample.value:.{digits}g}", found)


class Run:
    """The run, act by act, each at its second."""

    def __init__(self, stage: Stage, stack: ExitStack) -> None:
        self._stage, self._stack = stage, stack
        self._scraper = Scraper()
        self._writer: Writer
        self._began = time.monotonic()

    def play(self) -> Series:
        self._set_up()
        acts: list[tuple[float, str, Callable[[], object]]] = [
            (24, "visits", self._visit),
            (34, "the application writes four times as much", lambda: self._pace(120)),
            (46, "and less again", lambda: self._pace(30)),
            (54, "three rows that Supabase refuses", self._refuse),
            (66, "Supabase goes away", self._stage.take_supabase_away),
            (104, "Supabase comes back", self._stage.bring_supabase_back),
            (110, "somebody changes rows on the target", self._meddle),
            (130, "the refused rows are let in", self._let_in),
            (138, "a transaction stays open", self._hold),
            (142, "repair is asked for", self._repair),
            (152, "it commits; the leader is killed", self._kill),
            (168, "it is started again", self._scraper.asked["outboxd-0:9631"].start),
            (184, "the source restarts", self._restart_source),
            (204, "a column that the target lacks", self._widen),
            (212, "more visits", self._visit),
            (224, "the schema is applied", self._stage.apply_schema),
            (250, "the end", lambda: None),
        ]
        for at, what, act in acts:
            time.sleep(max(0.0, self._began + at - time.monotonic()))
            print(f"{time.monotonic() - self._began:5.0f} s  {what}", flush=True)
            act()
            if self._writer.failure is not None:
                raise RuntimeError("the application failed") from self._writer.failure
        self._scraper.stop()
        return self._scraper.series

    def _set_up(self) -> None:
        stage = self._stage
        stage.raise_source()
        stage.raise_target()
        with connect(stage.source_dsn) as conn:
            conn.execute(_SEED)
            conn.execute("create table visit (id bigint generated always as identity primary key, page text not null)")
            conn.execute("select outbox.watch('visit')")
        stage.watch()
        stage.apply_schema()
        assert stage.supabase
        way = {"supabase_url": stage.supabase.url, "supabase_key": stage.supabase.secret_key}
        self._settings = {"source_dsn": stage.source_dsn, **way, **_SETTINGS}
        self._began = time.monotonic()
        self._stack.callback(self._scraper.stop)
        self._scraper.start()
        for number in (0, 1):
            one = Outboxd(stage.folder, self._settings, name=f"outboxd-{number}")
            self._stack.callback(one.stop)
            one.start()
            self._scraper.asked[f"outboxd-{number}:9631"] = one
            if not one.answering():
                raise RuntimeError(f"outboxd did not start: {one.last_words()}")
        self._write(30)

    def _write(self, per_second: float) -> None:
        self._writer = Writer(self._stage.source_dsn, per_second, seed=6)
        self._stack.callback(self._writer.stop)
        self._writer.start()

    def _pace(self, per_second: float) -> None:
        self._writer.per_second = per_second

    def _refuse(self) -> None:
        with connect(self._stage.target_dsn) as conn:
            conn.execute("""alter table "Story" add constraint unwanted check (title <> 'refused') not valid""")
        with connect(self._stage.source_dsn) as conn:
            conn.execute(_REFUSED)

    def _let_in(self) -> None:
        with connect(self._stage.target_dsn) as conn:
            conn.execute("""alter table "Story" drop constraint unwanted""")
        retry = Outboxd(self._stage.folder, self._settings, name="retry")
        retry.start(("dead-letters", "retry", "--all"))
        if not poll_until(lambda: retry.returncode is not None, 30) or retry.returncode:
            raise RuntimeError(f"the dead letters were not delivered: {retry.last_words()}")

    def _meddle(self) -> None:
        with connect(self._stage.target_dsn) as conn:
            conn.execute(_MEDDLE)

    def _repair(self) -> None:
        """As `outboxd verify --repair` does."""
        with connect(self._stage.source_dsn) as conn:
            conn.execute(
                """select outbox.ask_verification(t, true) from unnest(array['public."Story"', 'public.visit']) t"""
            )

    def _hold(self) -> None:
        self._held = connect(self._stage.source_dsn)
        self._stack.callback(self._held.close)
        self._held.execute("begin")
        self._held.execute(
            """insert into "Story" ("id", "title", "updatedAt") values (gen_random_uuid(), 'late', now())"""
        )

    def _kill(self) -> None:
        self._held.execute("commit")
        self._scraper.asked["outboxd-0:9631"].kill()

    def _restart_source(self) -> None:
        self._writer.stop()
        self._stage.source.stop("fast")
        time.sleep(8)
        self._stage.source.start()
        self._write(30)

    def _widen(self) -> None:
        with connect(self._stage.source_dsn) as conn:
            conn.execute("alter table visit add column referrer text")
        self._visit()

    def _visit(self) -> None:
        with connect(self._stage.source_dsn) as conn:
            conn.execute("insert into visit (page) select 'page ' || i from generate_series(1, 200) i")


def record() -> None:
    # Told to end, it takes everything down that it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with closing(Stage("rest")) as stage, ExitStack() as stack:
        series = Run(stage, stack).play()
    SAMPLES.parent.mkdir(exist_ok=True)
    SAMPLES.write_bytes(lzma.compress(written(series).encode(), filters=_PACKED))
    print(f"{len(series)} series, {SAMPLES.stat().st_size / 1000:.0f} kB: {SAMPLES.name}")


if __name__ == "__main__":
    record()
    subprocess.run([sys.executable, "-m", "tests.deploy.draw"], check=True)
