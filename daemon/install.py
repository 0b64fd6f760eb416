"""What `setup` and `watch` do to the databases.

Knows which statements, in which order, and how to wait for a lock without making the application queue. Knows
nothing of settings or of printing.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from daemon.errors import SourceUnavailable
from daemon.session import query
from outbox import __version__
from outbox.migrations import Side, migrate, require, step


@dataclass(frozen=True, slots=True)
class Watched:
    """One row of `outboxd watched`."""

    table: str
    capture: bool
    key: list[str] | None
    include: list[str] | None
    exclude: list[str] | None
    on_error: str


@dataclass(frozen=True, slots=True)
class Selection:
    """How a table is to be watched. None: the primary key; all columns."""

    key: list[str] | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None
    capture: bool = True
    on_error: str = "hold"
    copy: bool = True  # rows that are there already


def setup(dsn: str, side: Side, *, exposed_schema: str, role: bool) -> list[str]:
    """Apply what is pending on one side; returns the names of what was applied."""
    with _connect(dsn) as conn:
        applied = migrate(conn, side, exposed_schema=exposed_schema)
        if role:
            conn.execute(step("source", "role").encode())
    return [f"{migration.version:04}_{migration.name}" for migration in applied]


def watch(dsn: str, tables: Sequence[str], selection: Selection) -> Iterator[str]:
    """Watch one table after the other, a transaction each; yields each name as the outbox has it."""
    with _connect(dsn) as conn:
        require(conn, "source")
        for table in tables:
            parameters = (
                _quoted(conn, table),
                selection.key,
                selection.include,
                selection.exclude,
                selection.capture,
            )
            name = _patiently(
                conn,
                "select outbox.watch(%s::regclass, %s, %s, %s, %s) where set_config('outbox.copy', %s, true) is not null",
                (*parameters, "on" if selection.copy else "off"),
            )
            conn.execute("select outbox.on_error(%s, %s)", (name, selection.on_error))
            yield name


def ask_copies(dsn: str, tables: Sequence[str], *, prune: bool, restart: bool) -> dict[str, int]:
    """Ask for copies of watched tables; returns the number of each wish by the table's name."""
    with _connect(dsn) as conn, conn.transaction():
        require(conn, "source")
        wishes = {}
        for table in tables:
            row = conn.execute(
                "select (outbox.known(%(t)s)).table_name, outbox.ask_copy(%(t)s, %(prune)s, %(restart)s)",
                {"t": _quoted(conn, table), "prune": prune, "restart": restart},
            ).fetchone()
            assert row is not None
            wishes[str(row[0])] = int(row[1])
        return wishes


def unwatch(dsn: str, tables: Sequence[str]) -> Iterator[str]:
    """Stop watching; yields each name."""
    with _connect(dsn) as conn:
        require(conn, "source")
        for table in tables:
            yield _patiently(conn, "select outbox.unwatch(%s)", (_quoted(conn, table),))


def watched(dsn: str) -> list[Watched]:
    """Every watched table."""
    with _connect(dsn) as conn:
        require(conn, "source")
        return [Watched(*row) for row in conn.execute(query("watched"))]


def map_on_target(dsn: str, names: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Allow tables on the target; yields (name, whether the target has such a table)."""
    with _connect(dsn) as conn:
        require(conn, "target")
        for name in names:
            row = conn.execute("select to_regclass(%s) is not null", (name,)).fetchone()
            there = bool(row and row[0])
            if there:
                conn.execute("select outboxd.map(%s::regclass)", (name,))
            yield name, there


def _connect(dsn: str) -> psycopg.Connection[Any]:
    return psycopg.connect(dsn, autocommit=True, connect_timeout=10, application_name=f"outboxd/{__version__}")


def _patiently(
    conn: psycopg.Connection[Any], statement: str, parameters: Sequence[Any], *, patience: float = 60.0
) -> str:
    """Run DDL on a busy table (promise I7): wait 200 ms for its lock, then step back so that nobody queues."""
    deadline = time.monotonic() + patience
    while True:
        try:
            with conn.transaction():
                conn.execute("set local lock_timeout = '200ms'")
                row = conn.execute(statement.encode(), parameters).fetchone()
                return str(row[0]) if row else ""
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() > deadline:
                raise SourceUnavailable(
                    f"{parameters[0]} is locked by long transactions: try again when they have ended"
                ) from None
            time.sleep(0.3)


def _quoted(conn: psycopg.Connection[Any], table: str) -> str:
    """SQL's own `public."Story"`, or `public.Story` as a person types it: whichever exists."""
    with_quotes = ".".join(part if part.startswith('"') else f'"{part}"' for part in table.split("."))
    for spelling in (table, with_quotes):
        try:
            row = conn.execute("select to_regclass(%s) is not null", (spelling,)).fetchone()
        except psycopg.Error:  # not even the form of a name
            continue
        if row and row[0]:
            return spelling
    return with_quotes
