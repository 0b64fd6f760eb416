"""The real process between real parts: an application's database, a Supabase project, and outboxd beside them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from daemon.demo.child import Outboxd
from daemon.demo.compare import Comparison, compare
from daemon.demo.stage import TABLES
from daemon.demo.supabase import EmbeddedSupabase
from tests.databases import Database, clone
from tests.waiting import Result
from tests.waiting import wait_until as wait

# Seconds: what takes an operator's patience in production must not take a test's. Without heartbeats: tests count.
QUICK = {"breaker__open_first": "0.2", "breaker__open_cap": "0.5", "poll_interval": "0.2", "heartbeat_interval": "0"}

_numbers = count(1)
REACHED = "select coalesce(max(cursor::json ->> 'snapshot'), '3:3:') from outboxd.cursor"
WAITING = "select exists (select from outbox.change where not pg_visible_in_snapshot(xid, %s))"


@dataclass(eq=False)
class Pair:
    """Two stores that mirror the example application, and how outboxd reaches them."""

    source: Database
    target: Database
    settings: Mapping[str, str]
    _connections: dict[str, psycopg.Connection[Any]] = field(default_factory=dict)

    def write(self, statement: str, *parameters: Any) -> None:
        """One transaction of the application."""
        with self.source.connect(autocommit=False) as conn:
            conn.execute(statement.encode(), parameters or None)

    def unequal(self) -> list[Comparison]:
        """Tables that differ."""
        source, target = self._connection(self.source), self._connection(self.target)
        return [table for each in TABLES if not (table := compare(source, target, each)).equal]

    def waits(self) -> bool:
        """Whether something is committed on the source and not applied."""
        try:
            ((reached,),) = self.ask(self.target, REACHED)
            ((waiting,),) = self.ask(self.source, WAITING, reached)
            return bool(waiting)
        except psycopg.OperationalError:  # a store that restarts
            return True

    def arrives(self, deadline: float = 30.0) -> None:
        """Wait until nothing waits; then every row must be equal."""
        wait_until(lambda: not self.waits(), deadline)
        assert self.unequal() == []

    def mirrored(self, table: str = "Story") -> int:
        """Rows of a table on the target."""
        ((rows,),) = self.ask(self.target, f'select count(*) from "{table}"')
        return int(rows)

    def ask(self, database: Database, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a query, on a connection that is kept: conditions ask again and again."""
        return self._connection(database).execute(statement.encode(), parameters or None).fetchall()

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    def _connection(self, database: Database) -> psycopg.Connection[Any]:
        known = self._connections.get(database.name)
        if known is None or known.closed:
            known = self._connections[database.name] = database.connect()
        return known


def wait_until(condition: Callable[[], Result], deadline: float = 30.0) -> Result:
    """With a process' patience: it may have to start, on a machine that does other things, too."""
    return wait(condition, deadline)


Start = Callable[..., Outboxd]

STORIES = """
insert into "Story" ("id", "title", "updatedAt") select gen_random_uuid(), 'story ' || i, now() from generate_series(1, %s) i
"""


def _asked(request: pytest.FixtureRequest) -> set[str]:
    """The fixtures a test wants, by name or as a parameter's value."""
    given = request.node.callspec.params.values() if hasattr(request.node, "callspec") else ()
    return {*request.fixturenames, *(value for value in given if isinstance(value, str))}


@pytest.fixture
def source(request: pytest.FixtureRequest) -> Iterator[Database]:
    """An application's database: with the example's tables where `app` is wanted, else without any."""
    ready = _asked(request) & {"app", "direct", "rest"}
    with clone(request.getfixturevalue("_app_template" if ready else "_source_template")) as database:
        yield database


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A project's database: with the example's tables where `mirror` is wanted, else without any."""
    ready = _asked(request) & {"mirror", "direct", "rest"}
    with clone(request.getfixturevalue("_mirror_template" if ready else "_target_template")) as database:
        yield database


@pytest.fixture
def app(source: Database) -> Database:
    """The example application's database, watched."""
    return source


@pytest.fixture
def mirror(target: Database) -> Database:
    """The project's database, with the application's tables mapped."""
    return target


@pytest.fixture
def rest(app: Database, mirror: Database, supabase: EmbeddedSupabase) -> Iterator[Pair]:
    """Through the Data API."""
    way = {"supabase_url": supabase.url, "supabase_key": supabase.secret_key}
    with closing(Pair(app, mirror, {"source_dsn": app.dsn, **way, **QUICK})) as pair:
        yield pair


@pytest.fixture
def direct(app: Database, mirror: Database) -> Iterator[Pair]:
    """Through a connection to the project's Postgres."""
    way = {"transport": "postgres", "target_dsn": mirror.dsn}
    with closing(Pair(app, mirror, {"source_dsn": app.dsn, **way, **QUICK})) as pair:
        yield pair


@pytest.fixture
def folder(run_folder: Path) -> Path:
    """Where a test's processes run and log."""
    made = run_folder / f"acceptance-{next(_numbers)}"
    made.mkdir()
    return made


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Start outboxd; whatever still runs after the test is stopped."""
    started: list[Outboxd] = []

    def starting(settings: Mapping[str, str], *arguments: str, environment: Mapping[str, str] | None = None) -> Outboxd:
        one = Outboxd(folder, settings, name=f"outboxd-{len(started)}", environment=environment)
        started.append(one)
        one.start(arguments or ("run",))
        return one

    yield starting
    for one in started:
        if one.returncode is None:
            one.stop()
        print(f"{one.log.name}: {one.last_words()}")  # pytest shows it when the test failed


def streaming(outboxd: Outboxd) -> Outboxd:
    """Wait until it leads and moves."""

    def is_streaming() -> bool:
        assert outboxd.returncode is None, outboxd.last_words()
        return (outboxd.status() or {}).get("state") == "streaming"

    wait_until(is_streaming)
    return outboxd


def ended(outboxd: Outboxd, deadline: float = 30.0) -> int:
    """Wait until it ended by itself; its exit code."""
    wait_until(lambda: outboxd.returncode is not None, deadline)
    assert outboxd.returncode is not None
    return outboxd.returncode


def measured(outboxd: Outboxd, series: str) -> float:
    """The value of one series of /metrics, named as it is exposed; nan when it is not there."""
    _, body = outboxd.get("/metrics")
    for line in body.splitlines():
        name, _, value = line.rpartition(" ")
        if name == series:
            return float(value)
    return float("nan")
