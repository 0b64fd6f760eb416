"""A schema made at random is watched, mirrored, copied while it is written to, and equal in the end; by the commands and the
process that an operator has. `--tables N` makes it larger, `--schemas N` plays more of them."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from daemon.demo.child import Outboxd
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import QUICK, Start, wait_until
from tests.clients.invented import Invented, Table, insert, write
from tests.databases import Database
from tests.fidelity.stores import SPELLING, Connection, dump, first_difference

ROWS, WRITES = 8, 15  # of each table
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
        assert [line for table in made.tables if (line := differs(app, mirror, table))] == []
        assert structure(mirror) == structure(app)
        planned = outboxd("schema", "plan")
        assert "nothing to do" in planned.out + planned.err, planned.out
        assert outboxd.found() == {}
        assert outboxd("verify", "--timeout", "60").code == 0


def arrives(running: Outboxd, left: Callable[[], list[Any]]) -> None:
    """Wait until nothing is left; or say what is."""
    try:
        wait_until(lambda: running.returncode is not None or not left(), 120)
    finally:
        assert (running.returncode, left()) == (None, []), running.last_words()


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
                except (psycopg.errors.IntegrityError, psycopg.errors.TriggeredDataChangeViolation, psycopg.DataError):
                    continue
    except psycopg.errors.IntegrityError:  # a constraint that has waited for the end
        return Counter()
    return done


_REACHED = "select coalesce(max(cursor::json ->> 'snapshot'), '3:3:') from outboxd.cursor"
_WAITING = "select exists (select from outbox.change where not pg_visible_in_snapshot(xid, %s))"


def unsettled(app: Connection, mirror: Connection, tables: int) -> list[Any]:
    """Tables that are not copied, what is held, whether anything waits."""
    copies = mirror.execute("select table_name, state, reason from outboxd.copy order by 1").fetchall()
    found: list[Any] = [copy for copy in copies if copy[1] != "done"] + [tables - len(copies)] * (len(copies) != tables)
    found += app.execute("select table_name, key, sqlstate, reason from outbox.held limit 9").fetchall()
    reached = mirror.execute(_REACHED).fetchone()
    assert reached is not None
    return found + ["changes wait"] * (app.execute(_WAITING, reached).fetchone() == (True,))


def differs(app: Connection, mirror: Connection, table: Table) -> str:
    columns = ", ".join(f'"{column.name.replace(chr(34), chr(34) * 2)}"' for column in table.columns)
    query = f"copy (select {columns} from {table.called} order by {table.ordered}) to stdout"
    found = []
    for conn in (app, mirror):
        with conn.transaction(force_rollback=True):
            conn.execute(SPELLING)
            found.append(dump(conn, query))
    return "" if found[0] == found[1] else f"{table.called}: {first_difference(*found)}"


def structure(conn: Connection) -> list[Any]:
    """Columns with their types, keys and foreign keys of every table that is no partition."""
    return conn.execute(_STRUCTURE.encode()).fetchall()
