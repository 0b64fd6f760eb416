"""What incidents are rehearsed on: an application that writes, a Supabase project, two daemons, and a Prometheus.

Knows how it is put together, and starts again what ends, as systemd does. Must not know what is done to it.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from daemon import schema_apply
from daemon.demo.binaries import postgrest_binary
from daemon.demo.child import Outboxd
from daemon.demo.cluster import Cluster
from daemon.demo.stage import AUDIENCE, TABLES
from daemon.demo.supabase import EmbeddedSupabase
from daemon.demo.writer import Writer
from tests.acceptance.cli import Cli, Said
from tests.databases import SETTINGS, Database, source_template, target_template
from tests.deploy import prometheus

# A breaker that tries again soon, heartbeats that are soon missed, an outbox that is soon emptied, tables that are
# compared again and again.
_QUICK = {
    "breaker__open_first": "0.2", "breaker__open_cap": "1.0", "poll_interval": "0.2", "heartbeat_interval": "1",
    "retention": "5", "batch_changes": "1000", "verify_interval": "15", "verify_rows_per_second": "0",
}  # fmt: skip
_WRITES = 20.0  # transactions a second


class Stage:
    """Made by `raised`."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        postgrest_binary()  # before anything starts: raises MissingPostgrest, MissingPrometheus
        prometheus.program("prometheus")
        self.folder = folder
        self.source = stack.enter_context(Cluster.create(folder / "source", settings=SETTINGS))
        self.target = stack.enter_context(Cluster.create(folder / "target", settings=SETTINGS))
        self.app, self.project = source_template(self.source), target_template(self.target)
        self.app.install("example_app.sql")
        with self.app.connect() as conn:
            for table in TABLES:
                conn.execute("select outbox.watch(%s::regclass)", (table,))
        schema_apply.apply(self.app.dsn, self.project.dsn, AUDIENCE)
        self.supabase = stack.enter_context(EmbeddedSupabase(self.target, self.project.name, folder))
        self.key = folder / "key"
        self.write_key(self.supabase.secret_key)
        self.daemons = [self.daemon(f"outboxd-{letter}", self.app) for letter in "ab"]
        self.supervised = list(self.daemons)
        self.prometheus: prometheus.Prometheus
        self._stopped = threading.Event()
        self._writer: Writer | None = None
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def start(self) -> None:
        """The daemons and the application; one leads when this returns."""
        for one in self.supervised:
            one.start()
        self._thread.start()
        if not until(lambda: self.leader() is not None, 60):
            raise RuntimeError(f"no outboxd leads: {self.daemons[0].last_words()}")

    def stop(self) -> None:
        """Whatever still runs."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._writer:
            self._writer.stop()
        for one in {*self.supervised, *self.daemons}:
            one.send(signal.SIGCONT)
            one.stop()

    def daemon(self, name: str, source: Database, **settings: str) -> Outboxd:
        """One between a source and the project; not started."""
        way = {"source_dsn": source.dsn, "supabase_url": self.supabase.url, "supabase_key_file": str(self.key)}
        return Outboxd(self.folder, {**_QUICK, **way, **settings}, name=name)

    def leader(self) -> Outboxd | None:
        """Who says that it leads."""
        return next((one for one in self.daemons if _says(one, leads=True)), None)

    def standby(self) -> Outboxd:
        """Who does not, once another does."""
        found: list[Outboxd] = []

        def stands_by() -> bool:
            if self.leader() is not None:
                found.extend(one for one in self.daemons if _says(one, leads=False))
            return bool(found)

        if not until(stands_by, 60):
            raise RuntimeError("no outboxd stands by")
        return found[0]

    def outboxd(self, *command: str) -> Said:
        """A command as a person types it."""
        way = {"source_dsn": self.app.dsn, "target_dsn": self.project.dsn, "supabase_url": self.supabase.url}
        said = Cli({**way, "supabase_key": self.supabase.secret_key})(*command)
        if said.code != 0:
            raise RuntimeError(f"outboxd {' '.join(command)} failed: {said.err}{said.out}")
        return said

    def write_key(self, key: str) -> None:
        """As a secret should be kept, and in place at once."""
        new = self.key.with_suffix(".new")
        new.touch(0o600)
        new.write_text(key)
        new.replace(self.key)

    @contextmanager
    def nobody_restarts(self) -> Iterator[None]:
        """Meanwhile what ends stays ended."""
        kept, self.supervised = self.supervised, []
        try:
            yield
        finally:
            self.supervised = kept

    def _supervise(self) -> None:
        while not self._stopped.wait(0.1):
            for one in self.supervised:
                if one.returncode is not None:
                    one.start()
            if self._writer is None or self._writer.failure:
                with suppress(psycopg.OperationalError):
                    psycopg.connect(self.app.dsn, connect_timeout=2).close()
                    self._writer = Writer(self.app.dsn, _WRITES)
                    self._writer.start()


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Did it come true in time? Asked four times a second: what is rehearsed shares the machine."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        if time.monotonic() > end:
            return False
        pause.wait(0.25)
    return True


def connect(database: Database) -> "closing[psycopg.Connection[Any]]":
    """As superuser, to interfere. Closed afterwards without another word: it may have been terminated."""
    return closing(psycopg.connect(database.superuser_dsn, autocommit=True, application_name="rehearsal"))


def _says(one: Outboxd, *, leads: bool) -> bool:
    return one.returncode is None and (one.status() or {}).get("leads") is leads


@contextmanager
def raised(folder: Path) -> Iterator[Stage]:
    """Everything at work; nothing of it is left afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stage = Stage(folder, stack)
        stack.callback(stage.stop)
        stage.start()
        daemons = [f"127.0.0.1:{one.port}" for one in stage.daemons]
        stage.prometheus = stack.enter_context(prometheus.running(folder, daemons))
        if not until(lambda: stage.prometheus.value("job:outboxd_lag:seconds") is not None, 60):
            raise RuntimeError("Prometheus does not see who leads")
        yield stage
