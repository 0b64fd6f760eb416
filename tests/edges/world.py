"""Two stores, a relay that turns by hand on an unsteady way, and what must be true once nobody hurts anybody any more.

Knows how the tables are mirrored at the moment. Must not know what is done to them.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from daemon import dead_letters
from daemon.batch import Limits
from daemon.breaker import BreakerOpen, Thresholds
from daemon.errors import CaptureLost, Kind, SourceUnavailable, SourceUnfit, TargetError
from daemon.plan import SEPARATOR
from daemon.progress import Timing
from daemon.session import query
from daemon.target import PostgresDoor
from tests.databases import Database
from tests.edges.tables import FIRST, KEYS, SOURCE_ONLY, TABLES, TARGET_ONLY, WATCHED, Connection, Mirrored
from tests.pairs import Pair, Parts

_TIMING = Timing(poll=0.01, recheck=0.0, retry_first=0.001, retry_cap=0.002, letters=0.0)
_PATIENCE = 60.0  # seconds for one turn
_NEVER = Thresholds(consecutive_failures=10**9, minimum_calls=10**9)  # a breaker that opens only makes a test wait
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
    """`story`: what was done; `turns`: of the relay; `drifted`: tables of the target that somebody wrote to."""

    pair: Pair
    app: Connection
    mirror: Connection
    rng: random.Random
    tables: dict[str, Mirrored] = field(default_factory=lambda: {table: Mirrored(table) for table in KEYS})
    drifted: set[str] = field(default_factory=set)
    open: Connection | None = None  # a transaction that is under way
    story: list[str] = field(default_factory=list)
    turns: int = 0
    parts: Parts | None = None
    way: Way | None = None

    @property
    def watched(self) -> list[str]:
        """Tables that are captured now."""
        return [table for table in WATCHED if self.tables[table].watched]

    async def turn(self, batches: int | None = None) -> None:
        """One turn of the relay, as `run` would make it: of so many batches, or of some."""
        assert self.parts is not None
        relay = self.parts.relay
        self.turns += 1
        relay.copier.ring()
        relay.verifier.ring()
        with suppress(*_STUMBLES):
            async with asyncio.timeout(_PATIENCE):
                await relay.step(batches or self.rng.choice((1, 64)))

    def beat(self) -> None:
        """A heartbeat, as the daemon writes one every few seconds."""
        assert self.parts is not None
        relay = self.parts.relay
        if relay.stated is not None:
            told = {"relay": "main", "epoch": relay.status.epoch, "snapshot": relay.stated.snapshot}
            self.app.execute(query("heartbeat"), told)

    async def interrupted(self) -> None:
        """A turn that is cancelled somewhere."""
        assert self.parts is not None
        turn = asyncio.create_task(self.turn())
        for _ in range(self.rng.randrange(30)):
            await asyncio.sleep(0)
        turn.cancel()
        await asyncio.gather(turn, return_exceptions=True)

    def wrong(self) -> list[str]:
        """Tables that differ, letters that are left, copies that are not done."""
        found = [said for table in self.tables.values() if (said := table.wrong(self.app, self.mirror)) is not None]
        letters = self.app.execute("select table_name, key, sqlstate from outbox.held").fetchall()
        copies = self.mirror.execute(
            "select table_name, state, reason from outboxd.copy where state <> 'done'"
        ).fetchall()
        return found + [f"letters: {letters}"] * bool(letters) + [f"copies: {copies}"] * bool(copies)

    async def until(self, wrong: Callable[[], list[str]], turns: int) -> list[str]:
        """Turn, and ask for letters to be sent again, until nothing is wrong; else what is."""
        assert self.way is not None
        self.way.lose = ""
        for turn in range(turns):
            if turn % 10 == 9:
                dead_letters.mark(self.app, "retry")
                self.beat()
            await self.turn()
            if turn % 5 == 4 and not wrong():
                return []
        return wrong()

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
    """The tables are there, watched, mapped and written to; the application's role and the target's are whom they are in life."""
    pair = Pair(source, target)
    pair.create(TABLES, *WATCHED)
    with source.connect() as app, target.connect() as mirror:
        app.execute(SOURCE_ONLY.encode())
        app.execute("select outbox.watch('card', capture => false)")
        app.execute(FIRST.encode())
        app.execute("set lock_timeout = '30ms'")  # who would wait for the open transaction waits for this thread itself
        mirror.execute(TARGET_ONLY.encode())
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
