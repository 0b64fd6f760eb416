"""Two stores with the same tables, watched on one side and mapped on the other, and a relay driven by hand."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from daemon.batch import Batch, Limits
from daemon.breaker import Breaker, Thresholds
from daemon.progress import Observer, Timing
from daemon.prune import Pruner
from daemon.relay import Relay
from daemon.sheaf import Change
from daemon.source import Source
from daemon.target import Door, PostgresDoor, Target
from daemon.wakeup import Bell
from outbox import Cursor
from tests.databases import Database
from tests.silent import Silent

QUICK = Timing(poll=0.05, recheck=0.02, retry_first=0.01, retry_cap=0.05)


@dataclass(frozen=True)
class Parts:
    """One relay and what it is made of; nothing runs by itself."""

    relay: Relay
    source: Source
    target: Target
    bell: Bell


@dataclass(frozen=True)
class Pair:
    source: Database
    target: Database

    def create(self, ddl: str, *tables: str, on_target: str | None = None) -> None:
        """Make tables on both sides (by other DDL on the target, if given), watch them and map them."""
        with self.source.connect() as source, self.target.connect() as target:
            source.execute(ddl.encode())
            target.execute((ddl if on_target is None else on_target).encode())
            for table in tables:
                source.execute("select outbox.watch(%s)", (table,))
                target.execute("select outboxd.map(%s)", (table,))

    def write(self, *statements: str) -> None:
        """One transaction of the application."""
        with self.source.connect(autocommit=False) as conn:
            for statement in statements:
                conn.execute(statement.encode())

    def rows(self, query: str) -> tuple[list[Any], list[Any]]:
        """What each side answers: the source first."""
        with self.source.connect() as source, self.target.connect() as target:
            return source.execute(query.encode()).fetchall(), target.execute(query.encode()).fetchall()

    def assert_equal(self, *tables: str) -> None:
        """Both sides hold the same rows, compared as text and sorted."""
        for table in tables:
            source, target = self.rows(f"select t::text from {table} t order by 1")
            assert target == source, table

    @asynccontextmanager
    async def relay(
        self,
        *,
        limits: Limits | None = None,
        door: Door | None = None,
        timing: Timing = QUICK,
        observer: Observer | None = None,
        thresholds: Thresholds | None = None,
        pruner: Pruner | None = None,
    ) -> AsyncIterator[Parts]:
        """A relay that leads, by the direct transport unless a door is given."""
        source = Source(self.source.dsn, limits)
        breaker = Breaker("target", thresholds or Thresholds())
        target = Target(door or PostgresDoor(self.target.dsn), "main", breaker)
        bell = Bell(self.source.dsn)
        relay = Relay(source, target, bell, observer or Silent(), timing, pruner=pruner)
        relay.lead()
        try:
            yield Parts(relay, source, target, bell)
        finally:
            for part in (source, target, bell):
                await part.close()

    async def drain(self, **options: Any) -> int:
        """Bring everything over with a new relay; returns how many changes were applied."""
        async with self.relay(**options) as parts:
            return await parts.relay.drain()


@asynccontextmanager
async def reading(database: Database, **limits: Any) -> AsyncIterator[Source]:
    """A source that is closed again."""
    source = Source(database.dsn, Limits(**limits))
    try:
        yield source
    finally:
        await source.close()


async def batches(source: Source, cursor: Cursor | None = None) -> list[Batch]:
    """Everything after a cursor (the beginning), batch by batch, to the end of the window."""
    found = [await source.read(cursor or Cursor.beginning())]
    while found[-1].more:
        found.append(await source.read(found[-1].cursor))
    return found


def changes(found: Sequence[Batch]) -> list[Change]:
    """The changes of some batches."""
    return [change for batch in found for change in batch.changes]


def run(conn: psycopg.Connection[Any], *statements: str) -> None:
    """Statements of a test on a connection that stays open."""
    for statement in statements:
        conn.execute(statement.encode())
