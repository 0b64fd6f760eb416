"""Two stores, a relay that turns by hand on an unsteady way, and what must be true once nobody hurts anybody any more.

Knows the tables, how each is mirrored at the moment, and the oracle: plain SQL over the source says what the target must
hold. Must not know what is done to them.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg

from daemon.batch import Limits
from daemon.breaker import BreakerOpen, Thresholds
from daemon.errors import CaptureLost, Kind, SourceUnavailable, SourceUnfit, TargetError
from daemon.plan import SEPARATOR
from daemon.progress import Timing
from daemon.session import query
from daemon.target import PostgresDoor
from tests.databases import Database
from tests.pairs import Pair, Parts

Connection = psycopg.Connection[Any]

TABLES = """
create table story (id int primary key, n int not null, note text);
create table line (id int primary key, story int not null references story on delete cascade on update cascade, n int not null, note text);
create table item (j int, k text, n int not null, note text, primary key (j, k)) partition by list (j);
create table item_0 partition of item for values in (0); create table item_1 partition of item for values in (1);
create table card (id int primary key, n int not null, note text);
"""
KEYS = {"story": "id", "line": "id", "item": "j, k", "card": "id"}
WATCHED = ("story", "line", "item")
_TIMING = Timing(poll=0.01, recheck=0.0, retry_first=0.001, retry_cap=0.002, letters=0.0)
_NEVER = Thresholds(consecutive_failures=10**9, minimum_calls=10**9)  # a breaker that opens only makes a test wait
_STEADY = 400  # turns: far more than any of them needs
_STUMBLES = (BreakerOpen, TargetError, SourceUnavailable, SourceUnfit, CaptureLost)


class Way:
    """The direct door, on which requests and answers get lost as somebody wishes."""

    def __init__(self, dsn: str) -> None:
        self._door = PostgresDoor(dsn)
        self.lose = ""  # the next apply's "request" or "answer"

    async def send(self, document: bytes) -> str:
        if b'"apply"' not in document.split(SEPARATOR, 1)[0]:
            return await self._door.send(document)
        lost, self.lose = self.lose, ""
        if lost == "request":
            raise TargetError(Kind.TRANSIENT, "no connection (test)")
        answer = await self._door.send(document)
        if lost == "answer":
            raise TargetError(Kind.AMBIGUOUS, "the connection failed before the answer (test)")
        return answer

    async def close(self) -> None:
        await self._door.close()


@dataclass
class World:
    """`filters`: which rows of a table travel; `hidden`: tables whose `note` does not; `story`: what was
    done."""

    pair: Pair
    app: Connection
    mirror: Connection
    rng: random.Random
    filters: dict[str, str] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    open: Connection | None = None  # a transaction that is under way
    story: list[str] = field(default_factory=list)
    parts: Parts | None = None
    way: Way | None = None

    async def turn(self) -> None:
        """One turn of the relay, as `run` would make it."""
        assert self.parts is not None
        self.parts.relay.copier.ring()
        with suppress(*_STUMBLES):
            await self.parts.relay.step(self.rng.choice((1, 64)))

    async def interrupted(self) -> None:
        """A turn that is cancelled somewhere."""
        assert self.parts is not None
        turn = asyncio.create_task(self.turn())
        for _ in range(self.rng.randrange(30)):
            await asyncio.sleep(0)
        turn.cancel()
        await asyncio.gather(turn, return_exceptions=True)

    def mirrored(self, table: str, condition: str | None, *, hidden: bool) -> None:
        """From now on only these rows of it travel, with or without their notes."""
        self.filters.pop(table, None)
        self.hidden.discard(table)
        if condition is not None:
            self.filters[table] = condition
        if hidden:
            self.hidden.add(table)

    def wanted(self, table: str) -> list[Any]:
        """What the target must hold, by the source's own rows."""
        note = "null" if table in self.hidden else "note"
        others = {"story": "id, n", "line": "id, story, n", "item": "j, k, n", "card": "id, n"}[table]
        condition = self.filters.get(table, "true")
        return self.app.execute(
            f"select {others}, {note} from {table} where {condition} order by {KEYS[table]}".encode()
        ).fetchall()

    def there(self, table: str) -> list[Any]:
        """What it holds."""
        others = {"story": "id, n", "line": "id, story, n", "item": "j, k, n", "card": "id, n"}[table]
        return self.mirror.execute(f"select {others}, note from {table} order by {KEYS[table]}".encode()).fetchall()

    def wrong(self) -> list[str]:
        """Tables that differ, letters that are left, copies that are not done."""
        found = [
            f"{table}: {self.there(table)} instead of {self.wanted(table)}"
            for table in KEYS
            if self.there(table) != self.wanted(table)
        ]
        letters = self.app.execute("select table_name, key, sqlstate from outbox.held").fetchall()
        copies = self.mirror.execute(
            "select table_name, state, reason from outboxd.copy where state <> 'done'"
        ).fetchall()
        return found + [f"letters: {letters}"] * bool(letters) + [f"copies: {copies}"] * bool(copies)

    async def rest(self) -> list[str]:
        """Turn, and ask for letters to be sent again, until all is as it must be; else what is not."""
        assert self.way is not None
        self.way.lose = ""
        for turn in range(_STEADY):
            if turn % 10 == 9:
                self.app.execute(query("letters_want"), {"wanted": "retry", "ids": None, "table": None})
            await self.turn()
            if turn % 5 == 4 and not self.wrong():
                return []
        return self.wrong()

    async def again(self) -> None:
        """The relay's process ends, and another begins."""
        await self.close()
        self.way = Way(self.pair.target.dsn)
        limits = Limits(changes=self.rng.choice((3, 20, 2000)))
        self._context = self.pair.relay(door=self.way, limits=limits, timing=_TIMING, thresholds=_NEVER)
        self.parts = await self._context.__aenter__()

    async def close(self) -> None:
        if self.parts is not None:
            await self._context.__aexit__(None, None, None)
            self.parts = None


@asynccontextmanager
async def opened(source: Database, target: Database, seed: int) -> AsyncIterator[World]:
    """The tables are there, watched and mapped; the application's role and the target's are whom they are in life."""
    pair = Pair(source, target)
    pair.create(TABLES, *WATCHED)
    with source.connect() as app, target.connect() as mirror:
        app.execute("select outbox.watch('card', capture => false)")
        app.execute("set lock_timeout = '30ms'")  # who would wait for the open transaction waits for this thread itself
        mirror.execute("set lock_timeout = '5s'")
        mirror.execute("select outboxd.map('card')")
        world = World(pair, app, mirror, random.Random(seed))
        await world.again()
        try:
            yield world
        finally:
            await world.close()
            if world.open is not None:
                world.open.close()
