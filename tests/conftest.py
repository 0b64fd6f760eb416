"""Fixtures for every test: clusters, fresh databases, an embedded Supabase; and nothing left behind."""

import os
import platform
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from functools import cache
from importlib.metadata import version
from itertools import count
from pathlib import Path

import coverage
import psycopg
import pytest

from daemon.demo.binaries import MissingPostgres, MissingPostgrest, binaries, postgrest_binary, server_version
from daemon.demo.cluster import Cluster
from daemon.demo.process import signal_all
from daemon.demo.supabase import EmbeddedSupabase
from tests.databases import (
    Database,
    clone,
    example_template,
    in_memory,
    running_cluster,
    source_template,
    target_template,
)
from tests.leftovers import left_behind
from tests.pairs import Pair

# Whatever the developer's shell is set up for must not reach a test.
for name in list(os.environ):
    if name.startswith(("OUTBOXD_", "SUPABASE_", "DATABASE_URL", "PG", "OTEL_")):
        del os.environ[name]
# Nor be paid for: a daemon that compiles everything it imports takes twice as long to start, and there are hundreds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


# A shell that runs its commands in the background has them ignore SIGINT, and so would every process they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--postgres", type=int, help="run on this major version of PostgreSQL (default: 17)")
    parser.addoption("--schedules", type=int, default=10_000, help="schedules of the model (default: 10000)")
    parser.addoption(
        "--changes", type=int, default=200_000, help="how many the soak test pushes through (default: 200000)"
    )
    parser.addoption("--seeds", type=int, default=30, help="random sequences of tests/edges (default: 30)")
    parser.addoption("--schemas", type=int, default=1, help="random schemas of tests/clients (default: 1)")
    parser.addoption("--tables", type=int, default=40, help="tables of each of them (default: 40)")
    parser.addoption("--backlog", type=int, default=100_000, help="changes of the deep backlog (default: 100000)")


def pytest_report_header(config: pytest.Config) -> list[str]:
    try:
        postgres = f"PostgreSQL {server_version(binaries(config.getoption('postgres')))}"
    except MissingPostgres as missing:
        postgres = str(missing)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("psycopg", "supabase", "httpx", "h11"))
    return [f"{postgres}, libpq {psycopg.pq.version()}, {platform.platform()}", libraries]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """Fail a run that leaves processes behind, and end them. Under load a worker may take longer to end than xdist waits
    (10 s) before it kills it: what it has measured is saved by then."""
    if (measuring := coverage.Coverage.current()) is not None:
        measuring.save()
    yield
    left = left_behind(_run_folder())
    if left:
        print("\nLeft behind by the tests:", *(f"  {pid} {line}" for pid, line in left.items()), sep="\n")
        signal_all(list(left), signal.SIGKILL)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def _others_unmeasured() -> None:
    """Coverage counts what the tests call themselves. The daemons and commands that they start run as a user's do: measured,
    they took a quarter more of the two cores, and the bound holds without them."""
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


@cache
def _run_folder() -> Path:
    from daemon.demo.cluster import shared_folder

    return shared_folder("outboxd-tests-", *in_memory())


@pytest.fixture(scope="session")
def run_folder() -> Path:
    """A folder for clusters and logs: `nobody` can enter it, and it goes when the run ends."""
    return _run_folder()


@pytest.fixture(scope="session")
def new_folder(run_folder: Path) -> Callable[[str], Path]:
    """Names a folder that is not there yet: with worksteal a worker may come back to a module whose fixtures it has
    ended, and makes them again."""
    numbers = count(1)
    return lambda name: run_folder / f"{name}-{next(numbers)}"


@pytest.fixture(scope="session")
def source_cluster(run_folder: Path, pytestconfig: pytest.Config) -> Iterator[Cluster]:
    with running_cluster(run_folder / "source", pytestconfig.getoption("postgres")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def target_cluster(run_folder: Path, pytestconfig: pytest.Config) -> Iterator[Cluster]:
    with running_cluster(run_folder / "target", pytestconfig.getoption("postgres")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def _source_template(source_cluster: Cluster) -> Database:
    return source_template(source_cluster)


@pytest.fixture(scope="session")
def _target_template(target_cluster: Cluster) -> Database:
    return target_template(target_cluster)


@pytest.fixture(scope="session")
def _app_template(_source_template: Database) -> Database:
    return example_template(_source_template, "app_template", "example_app.sql", "select outbox.watch(%s::regclass)")


@pytest.fixture(scope="session")
def _mirror_template(_target_template: Database) -> Database:
    return example_template(
        _target_template, "mirror_template", "example_mirror.sql", "select outboxd.map(%s::regclass)"
    )


@pytest.fixture
def source(_source_template: Database) -> Iterator[Database]:
    """An application's database with outboxd's side installed and no tables yet."""
    with clone(_source_template) as database:
        yield database


@pytest.fixture
def target(_target_template: Database) -> Iterator[Database]:
    """A Supabase project's database with outboxd's side installed and no tables yet."""
    with clone(_target_template) as database:
        yield database


@pytest.fixture
def pair(source: Database, target: Database) -> Pair:
    """Both, to be given the same tables."""
    return Pair(source, target)


@pytest.fixture
def supabase(target: Database, run_folder: Path) -> Iterator[EmbeddedSupabase]:
    """A running Supabase project over `target`."""
    try:
        postgrest_binary()
    except MissingPostgrest as missing:
        pytest.skip(str(missing))
    with EmbeddedSupabase(target.cluster, target.name, run_folder) as project:
        yield project
