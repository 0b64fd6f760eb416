"""A relay as the daemon runs it, between two databases, with what it does written down."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from structlog.testing import capture_logs
from structlog.typing import EventDict

from daemon.batch import Batch, Limits
from daemon.breaker import Breaker, Thresholds
from daemon.errors import Kind, TargetError
from daemon.lead import Keeper
from daemon.plan import SEPARATOR, Plan
from daemon.progress import Timing
from daemon.relay import Relay
from daemon.source import Source
from daemon.target import Answer, PostgresDoor, Target
from daemon.tracing import Tracing
from daemon.wakeup import Bell, Pace
from tests.databases import Database
from tests.silent import Silent
from tests.waiting import wait_until_async

Connection = psycopg.Connection[Any]

# No timer: what is missed stays missed.
NO_POLL = Timing(poll=3600)

# Two tables, alike on both sides: `item` is captured, `memo` emitted.
_TABLES = """
create table item (id int primary key, n int not null);
create table memo (id int primary key, n int not null);
"""


def install(source: Database, target: Database) -> None:
    """Create the two tables, watch and map them."""
    with source.connect() as app, target.connect() as mirror:
        app.execute(_TABLES)
        app.execute("select outbox.watch('item'), outbox.watch('memo', capture => false)")
        app.execute("select outbox.on_error('item', 'halt')")
        mirror.execute(_TABLES)
        mirror.execute("select outboxd.map('item'), outboxd.map('memo')")


class Recorder(Silent):
    """The relay's observer."""

    def __init__(self) -> None:
        self.woken_by: list[str] = []
        self.applied: list[tuple[int, str]] = []
        self.failures: list[str] = []
        self.states: list[str] = []

    def batch_applied(self, batch: Batch, plan: Plan, answer: Answer, seconds: float) -> None:
        self.applied.append((plan.changes, answer.what))

    def turn_failed(self, reason: str) -> None:
        self.failures.append(reason)

    def woken(self, reason: str) -> None:
        self.woken_by.append(reason)

    def state_changed(self, state: str) -> None:
        self.states.append(state)


class WatchedBell(Bell):
    """A bell that tells, to threads too, when the relay is asleep: it has K, and its read after that was empty."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.asleep = threading.Event()
        self.naps = self.armings = self.refusals = 0

    async def try_arm(self) -> bool:
        self.armings += 1
        armed = await super().try_arm()
        self.refusals += not armed
        return armed

    async def wait(self, seconds: float) -> bool:
        if not self.armed:
            return await super().wait(seconds)
        self.naps += 1
        self.asleep.set()
        try:
            return await super().wait(seconds)
        finally:
            self.asleep.clear()


class WatchedDoor:
    """The direct door. `lose` answers of `apply` get lost on their way back; a closed `gate` holds `apply` up."""

    def __init__(self, dsn: str) -> None:
        self._door = PostgresDoor(dsn)
        self.modes: list[str] = []
        self.lose = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()

    async def send(self, document: bytes) -> str:
        mode = json.loads(document.split(SEPARATOR, 1)[0])["mode"]
        self.modes.append(mode)
        if mode == "apply":
            self.reached.set()
            await self.gate.wait()
        answer = await self._door.send(document)
        if mode == "apply" and self.lose:
            self.lose -= 1
            raise TargetError(Kind.AMBIGUOUS, "the connection failed before the answer (test)")
        return answer

    async def close(self) -> None:
        await self._door.close()


@dataclass
class Parts:
    """One outboxd, without its process."""

    source: Source
    door: WatchedDoor
    target: Target
    bell: WatchedBell
    relay: Relay
    keeper: Keeper
    seen: Recorder
    led: list[tuple[bool, bool]]
    log: list[EventDict]

    def eager(self) -> None:
        """From now on, sleep whenever a read was empty."""
        self.relay._pace = Pace(linger=0.0, gaps=0.0, longest=0.002)

    async def asleep(self, deadline: float = 10.0) -> None:
        """Wait until the relay sleeps."""
        assert await asyncio.to_thread(self.bell.asleep.wait, deadline), "the relay did not fall asleep"

    async def leading(self) -> None:
        """Wait until the target is claimed."""
        await until(lambda: self.keeper.leads and self.relay.status.epoch > 0)


@asynccontextmanager
async def assembled(
    source: str,
    target: str,
    *,
    timing: Timing = NO_POLL,
    attempt: float = 0.02,
    breaker: Breaker | None = None,
    limits: Limits | None = None,
    bell_type: Callable[[str], WatchedBell] = WatchedBell,
    relay_type: type[Relay] = Relay,
    tracing: Tracing | None = None,
) -> AsyncIterator[Parts]:
    """The parts, wired as the daemon wires them; nothing runs and nobody leads yet."""
    reader = Source(source, limits)
    reader.traced = tracing is not None
    door = WatchedDoor(target)
    sender = Target(door, "main", breaker or Breaker("target", Thresholds(open_first=0.05, open_cap=0.05)))
    bell = bell_type(source)
    seen = Recorder()
    relay = relay_type(reader, sender, bell, seen, timing, tracing=tracing)
    relay._pace = Pace(gaps=0.2)  # falls asleep within 0.2 s; the usual 20 gaps may take a second
    led: list[tuple[bool, bool]] = []
    keeper = Keeper(bell, relay, lambda leads, connected: led.append((leads, connected)), attempt=attempt)
    try:
        with capture_logs() as log:
            yield Parts(reader, door, sender, bell, relay, keeper, seen, led, log)
    finally:
        for part in (reader, sender, bell):
            await part.close()


@asynccontextmanager
async def keeping(parts: Parts) -> AsyncIterator[None]:
    """Run the keeper alone: turns are the test's own calls of `step`."""
    task = asyncio.create_task(parts.keeper.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def running(parts: Parts) -> AsyncIterator["asyncio.Task[None]"]:
    """Run keeper and relay; the relay is stopped at the end, and an error the test has not awaited fails it."""
    async with keeping(parts):
        task = asyncio.create_task(parts.relay.run())
        try:
            yield task
            if not task.done():
                parts.relay.stop()
                await within(10, task)
        finally:
            task.cancel()
            await asyncio.wait([task])


async def until(condition: Callable[[], Any], deadline: float = 10.0) -> None:
    """Wait, leaving the loop free, until a plain condition is true."""

    async def true() -> Any:
        return condition()

    true.__qualname__ = getattr(condition, "__qualname__", repr(condition))
    await wait_until_async(true, deadline)


async def within(seconds: float, awaitable: Awaitable[Any]) -> Any:
    """The result, which must come in time."""
    async with asyncio.timeout(seconds):
        return await awaitable


def same(app: Connection, mirror: Connection) -> bool:
    """Do both sides hold the same rows?"""
    return contents(app) == contents(mirror)


def contents(conn: Connection) -> tuple[Any, ...] | None:
    """A fingerprint of both tables."""
    return conn.execute(
        "select (select row(count(*), sum(hashtextextended(t::text, 0)))::text from item t),"
        " (select row(count(*), sum(hashtextextended(t::text, 0)))::text from memo t)"
    ).fetchone()
