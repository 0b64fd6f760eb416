"""A schema made at random is watched, mirrored, copied while it is written to, and equal in the end; by the commands and the
process that an operator has. `--tables N` makes it larger, `--schemas N` plays more of them."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.acceptance.cli import Cli
from tests.acceptance.conftest import QUICK, Start
from tests.clients.alike import arrives, differs, unsettled
from tests.clients.invented import Invented, insert, write
from tests.databases import Database
from tests.fidelity.stores import Connection

ROWS, WRITES = 8, 15  # of each table
# The last: a truncate while a constraint of an earlier statement still waits.
_FORBIDDEN = (
    psycopg.errors.IntegrityError,
    psycopg.errors.TriggeredDataChangeViolation,
    psycopg.DataError,
    psycopg.errors.ObjectInUse,
)
_STRUCTURE = (Path(__file__).parent / "structure.sql").read_text()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("seed", range(metafunc.config.getoption("schemas")))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no configuration lies."""
    monkeypatch.chdir(tmp_path)


def test_whatever_the_schema(
    source: Database, target: Database, start: Start, pytestconfig: pytest.Config, *, seed: int
) -> None:
    made = Invented(seed, pytestconfig.getoption("tables"))
    rng = random.Random(seed)
    with source.connect() as app, target.connect() as mirror:
        for statement in made.ddl():
            app.execute(statement.encode())
        done = fill(app, made, rng)
        # One that is empty when it is watched needs no copy.
        filled = sum(app.execute(f"select from {table.called} limit 1".encode()).rowcount for table in made.tables)
        settings = {"source_dsn": source.dsn, "target_dsn": target.dsn, "transport": "postgres", **QUICK}
        outboxd = Cli(settings)
        names = [table.called for table in made.tables]
        watched = outboxd("watch", *names)
        assert watched.code == 0, watched.err
        applied = outboxd("schema", "apply", "--yes")
        assert applied.code == 0, applied.err
        running = start(settings)

        done += churn(app, made, rng)
        arrives(running, lambda: unsettled(app, mirror, filled))
        applied = outboxd("schema", "apply", "--yes")  # foreign keys
        assert applied.code == 0, applied.err
        done += churn(app, made, rng)
        arrives(running, lambda: unsettled(app, mirror, filled))

        assert min(done[kind] for kind in ("insert", "update", "delete")) > len(names) / 2, done
        found = [differs(app, mirror, table.called, table.names, table.key) for table in made.tables]
        assert list(filter(None, found)) == []
        assert structure(mirror) == structure(app)
        planned = outboxd("schema", "plan")
        assert "nothing to do" in planned.out + planned.err, planned.out
        assert outboxd.found() == {}
        assert outboxd("verify", "--timeout", "60").code == 0


def fill(app: Connection, made: Invented, rng: random.Random) -> Counter[str]:
    """So many rows of each table, unless a constraint is against one."""
    done = Counter[str]()
    for _ in range(ROWS):
        for table in made.tables:
            done += _run(app, [("insert", insert(table, rng))])
    return done


def churn(app: Connection, made: Invented, rng: random.Random) -> Counter[str]:
    """Transactions of some statements; what a constraint forbids is undone, as applications do it."""
    done = Counter[str]()
    left = WRITES * len(made.tables)
    while left > 0:
        statements = [write(made.tables, rng) for _ in range(rng.choice((1, 1, 3, 10)))]
        left -= len(statements)
        done += _run(app, statements)
    return done


def _run(app: Connection, statements: list[tuple[str, str]]) -> Counter[str]:
    done = Counter[str]()
    try:
        with app.transaction():
            for kind, statement in statements:
                try:
                    with app.transaction():
                        done[kind] += app.execute(statement.encode()).rowcount > 0
                except _FORBIDDEN:
                    continue
    except psycopg.errors.IntegrityError:  # a constraint that has waited for the end
        return Counter()
    return done


def structure(conn: Connection) -> list[Any]:
    """Columns with their types, keys and foreign keys of every table that is no partition."""
    return conn.execute(_STRUCTURE.encode()).fetchall()
