"""One table structure on both sides and a real relay between them, by the direct transport."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from daemon.batch import Batch
from daemon.breaker import Breaker, Thresholds
from daemon.check import Item, check
from daemon.errors import TargetError
from daemon.plan import Plan
from daemon.progress import Status, Timing
from daemon.relay import Relay
from daemon.source import Source
from daemon.target import Answer, PostgresDoor, Target
from daemon.wakeup import Bell
from tests.databases import Database
from tests.silent import Silent
from tests.waiting import wait_until_async


class Gears(Silent):
    """Notes which gear each batch was applied in."""

    def __init__(self) -> None:
        self.used: list[int] = []

    def batch_applied(self, batch: Batch, plan: Plan, answer: Answer, seconds: float) -> None:
        self.used.append(int(answer.more["gear"]))


@dataclass
class Mirrored:
    """Both databases, and the relay between them."""

    source: Database
    target: Database
    gears: Gears = field(default_factory=Gears)

    def __post_init__(self) -> None:
        self._source = Source(self.source.dsn)
        self._target = Target(PostgresDoor(self.target.dsn), "main", Breaker("target", Thresholds()))
        self.relay = Relay(self._source, self._target, Bell(self.source.dsn), self.gears, Timing(recheck=0.05))

    async def close(self) -> None:
        await self._source.close()
        await self._target.close()

    def both(self, source: str, target: str | None = None, *, watch: Sequence[str], map_too: bool = True) -> None:
        """Create tables on the source and (the same, or others) on the target, watch and map them."""
        self.on_source(source)
        self.on_target(source if target is None else target)
        for table in watch:
            self.on_source(f"select outbox.watch('{table}')")
            if map_too:
                self.on_target(f"select outboxd.map('{table}')")

    def on_source(self, *statements: str) -> None:
        """One transaction of the application."""
        _execute(self.source, statements)

    def on_target(self, *statements: str) -> None:
        """One transaction of the target's owner."""
        _execute(self.target, statements)

    async def carry(self, *statements: str) -> int:
        """One transaction on the source, brought over; returns the gear of the batch."""
        self.on_source(*statements)
        await self.relay.drain()
        return self.gears.used[-1]

    async def refused(self, *statements: str) -> TargetError:
        """One transaction on the source that the target refuses, and that halts; nothing on the target may move."""
        self.on_source("update outbox.watched set on_error = 'halt'")
        self.on_source(*statements)
        before = self.stored()
        with pytest.raises(TargetError) as caught:
            await self.relay.drain()
        # A claim raises the epoch; only an apply moves these.
        assert self.stored() == before
        return caught.value

    async def mend(self, *statements: str) -> None:
        """Run what the advice says on the target: the relay that was refused goes on."""
        self.on_target(*statements)
        assert await self.relay.drain() > 0

    async def put_out(self, *statements: str) -> str:
        """One transaction on the source whose table the target cannot take: it is out, and why is returned. Nothing of
        it is applied, and the cursor passes it."""
        self.on_source(*statements)
        await self.relay.drain()
        ((state, reason),) = rows(self.target, "select state, reason from outboxd.copy")
        assert state == "out"
        return str(reason)

    async def mend_out(self, *statements: str) -> None:
        """Run what the reason says on the target: the table is copied, and flows again."""
        self.on_target(*statements)

        async def copied() -> bool:
            self.relay.copier.ring()
            await self.relay.drain()
            return rows(self.target, "select state from outboxd.copy") == [("done",)]

        await wait_until_async(copied)

    async def run_until_paused(self) -> Status:
        """The loop itself, until it waits for a person."""
        self.on_source("update outbox.watched set on_error = 'halt'")
        self.relay.lead()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.relay.run())
            await wait_until_async(self._paused)
            self.relay.stop()
        return self.relay.status

    async def _paused(self) -> bool:
        return self.relay.status.state == "paused"

    async def check(self) -> list[Item]:
        """What `outboxd check` says of the target, but for what is well."""
        return [item for item in await check(self.source.dsn, self._target) if item.level == "FAIL"]

    def stored(self) -> list[tuple[Any, ...]]:
        """The target's cursor, as far as a batch moves it."""
        return rows(self.target, "select batch_no, digest, cursor from outboxd.cursor where batch_no > 0")

    def equal(self, *tables: str, columns: str = "t") -> bool:
        """Do both sides hold the same rows, to the last character?"""
        queries = [f"select ({columns})::text from {table} t order by 1" for table in tables]
        return all(rows(self.source, query) == rows(self.target, query) for query in queries)


def rows(database: Database, query: str) -> list[tuple[Any, ...]]:
    """All rows of a query, spelled alike on both sides."""
    with database.connect() as conn:
        conn.execute("set timezone = 'UTC'")
        return conn.execute(query.encode()).fetchall()


def _execute(database: Database, statements: Sequence[str]) -> None:
    with database.connect(autocommit=False) as conn:
        for statement in statements:
            conn.execute(statement.encode())
