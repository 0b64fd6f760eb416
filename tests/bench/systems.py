"""The systems that are compared, each as a thing that can be told to move, and to stop.

Knows how each is set up, started and when it says it began. Must not know what is measured of it.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from psycopg import sql

from daemon.demo.child import Outboxd
from daemon.demo.process import Command, end, poll_until, spawn
from daemon.demo.supabase import EmbeddedSupabase
from tests.bench.site import Site, Stores, connect

NAMES = {
    "native": "native replication",
    "rows": "script, row by row",
    "batch": "script, batches of 500",
    "rest": "outboxd, Data API",
    "direct": "outboxd, direct",
}
KIND = {"native": "plain", "rows": "script", "batch": "script", "rest": "outboxd", "direct": "outboxd"}
_UNASKED = {"verify_interval": "0"}  # a pass through a table is measured apart (W11), and is in nobody else's time
_PATIENCE = 60.0  # seconds for a process to start, or to stop
_ROOT = Path(__file__).parents[2]


class BenchFailed(Exception):
    """The bench cannot go on, or what it measured is worth nothing; says which system and why."""


class Mover(Protocol):
    """`start` returns the moment at which it began to move: what a process needs to come up is not counted."""

    def start(self) -> float: ...

    def stop(self) -> None: ...

    def last_words(self) -> str: ...

    @property
    def groups(self) -> Mapping[str, int]:
        """The first process of each group that takes part, beside the two clusters."""


@dataclass(eq=False)
class Child:
    """A Python program of ours, whose first word is `began` and what it has to say about that."""

    folder: Path
    module: str
    environment: Mapping[str, str]
    arguments: tuple[str, ...] = ()

    def start(self) -> str:
        self.log = self.folder / f"{self.module.rpartition('.')[2]}-{time.monotonic_ns()}.log"
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
        argv = [sys.executable, "-m", self.module, *self.arguments]
        environment = {**kept, **self.environment, "PYTHONPATH": str(_ROOT)}
        self.process = spawn(Command(argv, environment, self.folder, self.log))
        if not poll_until(lambda: self.process.poll() is not None or b"began" in self.log.read_bytes(), _PATIENCE):
            raise BenchFailed(f"{self.module} did not start: {self.last_words()}")
        if self.process.poll() is not None:
            raise BenchFailed(f"{self.module} ended by itself: {self.last_words()}")
        return self.log.read_text(encoding="utf-8").partition("began")[2].split()[0]

    def stop(self) -> None:
        end(self.process, signal.SIGTERM, 10)

    def last_words(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-600:].strip()


@contextmanager
def child(folder: Path, module: str, environment: Mapping[str, str]) -> Iterator[Child]:
    one = Child(folder, module, environment)
    one.start()
    try:
        yield one
    finally:
        one.stop()


@dataclass(eq=False)
class Native:
    """CREATE SUBSCRIPTION with its defaults, but for the copy at the start: both tables are empty then."""

    stores: Stores
    groups: Mapping[str, int] = field(default_factory=dict)

    def start(self) -> float:
        began = time.time()
        self._tell("alter subscription {} enable")
        return began

    def stop(self) -> None:
        self._tell("alter subscription {} disable")
        with connect(self.stores.source) as conn:
            gone = "select not exists (select from pg_replication_slots where slot_name = %s and active)"
            if not poll_until(lambda: bool(conn.execute(gone, (self._name,)).fetchall()[0][0]), _PATIENCE):
                raise BenchFailed("native replication did not stop")

    def create(self) -> None:
        database = self.stores.source
        with connect(database) as conn:
            conn.execute(f"create publication bench for table {', '.join(self.stores.tables)}".encode())
        address = f"host=127.0.0.1 port={database.cluster.port} dbname={database.name} user=postgres"
        self._tell(
            f"create subscription {{}} connection '{address}' publication bench with (enabled = false, copy_data = false)"
        )

    def drop(self) -> None:
        self.stop()
        self._tell("drop subscription {}")

    def last_words(self) -> str:
        return self.stores.target.cluster.log.read_text(errors="replace")[-600:]

    @property
    def _name(self) -> str:
        return f"bench_{self.stores.target.name}"

    def _tell(self, statement: str) -> None:
        with connect(self.stores.target) as conn:
            conn.execute(sql.SQL(statement).format(sql.Identifier(self._name)))


@dataclass(eq=False)
class Script:
    process: Child
    before: Mapping[str, int]

    def start(self) -> float:
        return float(self.process.start())

    def stop(self) -> None:
        self.process.stop()

    def last_words(self) -> str:
        return self.process.last_words()

    @property
    def groups(self) -> Mapping[str, int]:
        return {**self.before, "script": self.process.process.pid}


@dataclass(eq=False)
class Daemon:
    """`outboxd run`, as shipped. It began when it had claimed the target."""

    outboxd: Outboxd
    before: Mapping[str, int]

    def start(self) -> float:
        self.outboxd.log.touch()
        self.outboxd.said()  # of the time before
        self.outboxd.start()
        claims: list[float] = []

        def claimed() -> bool:
            lines = [line for line in self.outboxd.said() if line["event"] == "target_claimed"]
            claims.extend(datetime.fromisoformat(line["timestamp"]).timestamp() for line in lines)
            return bool(claims) or self.outboxd.returncode is not None

        if not (poll_until(claimed, _PATIENCE) and claims):
            raise BenchFailed(f"outboxd did not claim the target: {self.last_words()}")
        return claims[0]

    def stop(self) -> None:
        code = self.outboxd.stop(_PATIENCE)
        if code != 0:
            raise BenchFailed(f"outboxd ended with exit code {code}: {self.last_words()}")

    def last_words(self) -> str:
        return self.outboxd.last_words()

    @property
    def groups(self) -> Mapping[str, int]:
        return {**self.before, "daemon": self.outboxd.pid}


@contextmanager
def moving(
    name: str, site: Site, stores: Stores, *, delay: float = 0.0, settings: Mapping[str, str] | None = None
) -> Iterator[Mover]:
    """A system over its stores, not moving yet. `delay`: seconds each way between it and the target. `settings` are
    outboxd's, where it is not to run as shipped."""
    with ExitStack() as stack:
        if name == "native":
            native = Native(stores)
            native.create()
            stack.callback(native.drop)
            yield native
            return
        far = _far(site, stack, delay)
        if name == "direct":
            dsn = stores.target.dsn.replace(f":{stores.target.cluster.port}/", f":{far(stores.target.cluster.port)}/")
            way = {"transport": "postgres", "target_dsn": dsn}
            yield _daemon(site, stack, stores, {**way, **(settings or {})}, {})
            return
        url, key, groups = _project(site, stack, stores, far)
        if name == "rest":
            way = {"supabase_url": url, "supabase_key": key}
            yield _daemon(site, stack, stores, {**way, **(settings or {})}, groups)
            return
        environment = {"BENCH_SOURCE": stores.source.dsn, "BENCH_URL": url, "BENCH_KEY": key}
        script = Script(Child(site.folder, "tests.bench.script", environment, (name,)), groups)
        stack.callback(_quietly, script)
        yield script


def _far(site: Site, stack: ExitStack, delay: float) -> Callable[[int], int]:
    def leading_to(port: int) -> int:
        if not delay:
            return port
        way = Child(site.folder, "tests.bench.distance", {"BENCH_TO": str(port), "BENCH_DELAY": str(delay)})
        there = int(way.start())
        stack.callback(way.stop)
        return there

    return leading_to


def _project(
    site: Site, stack: ExitStack, stores: Stores, far: Callable[[int], int]
) -> tuple[str, str, dict[str, int]]:
    """PostgREST over the target and the gateway before it: address, key, and their processes."""
    supabase = EmbeddedSupabase(stores.target.cluster, stores.target.name, site.folder)
    supabase.start_postgrest()
    stack.callback(supabase.stop_postgrest)
    environment = {
        "BENCH_JWT_SECRET": supabase.keys.jwt_secret,
        "BENCH_KEY": supabase.keys.secret,
        "BENCH_UPSTREAM": str(supabase.gateway.upstream_port),
    }
    gateway = Child(site.folder, "tests.bench.gateway", environment)
    port = int(gateway.start())
    stack.callback(gateway.stop)
    groups = {"PostgREST": supabase.pid, "gateway": gateway.process.pid}
    return f"http://127.0.0.1:{far(port)}", supabase.keys.secret, groups


def _daemon(site: Site, stack: ExitStack, stores: Stores, way: Mapping[str, str], groups: Mapping[str, int]) -> Daemon:
    settings = {"source_dsn": stores.source.dsn, **_UNASKED, **way}
    daemon = Daemon(Outboxd(site.folder, settings, name=f"outboxd-{time.monotonic_ns()}"), groups)
    stack.callback(_quietly, daemon)
    return daemon


def _quietly(mover: Script | Daemon) -> None:
    """Whatever state it is in: the measurement is over."""
    process = mover.process.process if isinstance(mover, Script) else mover.outboxd
    process.kill()
