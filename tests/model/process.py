"""One daemon process: the real Relay, Source, Target and Breaker on a loop of their own.

Only what they touch is simulated: the connection to the source (wire), the door, the bell. Every await of theirs
is a call here, which the world serves when it likes, or never.
"""

import asyncio
from typing import TYPE_CHECKING, Any, cast

import psycopg

from daemon.batch import Batch, Limits
from daemon.breaker import Breaker
from daemon.errors import Fenced, SourceUnavailable
from daemon.plan import Plan
from daemon.progress import Timing
from daemon.relay import Relay
from daemon.source import Source
from daemon.target import Answer, Target
from daemon.wakeup import Bell
from tests.model.clockwork import Loop
from tests.model.wire import Call, Connection, Gone, Rows, Statement
from tests.silent import Silent

if TYPE_CHECKING:
    from tests.model.world import World

# The poll timer is off for a sleeper: a wake-up that is lost stays lost, and the model says so.
TIMING = Timing(poll=1.0, recheck=15.0)


class Request:
    """A document on its way: the sender's future, and the answer once the target has given one."""

    __slots__ = ("answer", "document", "future", "mode", "number", "running", "sender")

    def __init__(self, number: int, sender: "Process", document: bytes, future: "asyncio.Future[str]") -> None:
        self.number, self.sender, self.document, self.future = number, sender, document, future
        self.mode = document.partition(b",")[0].decode().split('"')[3]
        self.running: Any = None  # the target's transactions, once it has begun
        self.answer: str | None = None


class Process:
    """`call` is what everything simulated waits with."""

    def __init__(self, world: "World", number: int, limits: Limits) -> None:
        self.world = world
        self.number = number
        self.loop = Loop(world.clock)  # type: ignore[abstract]  # the rest of a loop is never asked for
        self.calls: list[Call] = []
        self.frozen = self.dead = False
        self.leads = False  # as it believes
        self.bell = SimulatedBell(self)
        clock = world.clock.monotonic
        source = Source(cast("str", self), limits, breaker=Breaker("source", clock=clock, random=_half))
        target = Target(Door(self), "main", Breaker("target", clock=clock, random=_half))
        self.relay = Relay(source, target, cast("Bell", self.bell), Told(world, source), TIMING)
        self.task = asyncio.Task(self.relay.run(), loop=self.loop)
        self.task._log_destroy_pending = False  # type: ignore[attr-defined]  # a schedule may end at any time
        self.loop.turn()

    async def call(self, name: str, statements: list[Statement]) -> list[Rows]:
        """Wait until the world has served these."""
        if self.dead:
            raise Gone
        call = Call(name, statements, self.loop.create_future())
        self.calls.append(call)
        try:
            return cast("list[Rows]", await call.future)
        finally:
            if call in self.calls:
                self.calls.remove(call)

    async def open(self) -> Connection:
        """A connection to the source."""
        database = self.world.database
        results = await self.call("connect", [lambda: [Connection(self, database)]])
        return cast("Connection", results[0][0])

    def answered(self, call: Call, error: Exception | None = None) -> None:
        """The call's answer arrives and the process goes on to its next await."""
        if not call.future.done():
            if error is None:
                call.future.set_result(call.results)
            else:
                call.future.set_exception(error)
        if call in self.calls:
            self.calls.remove(call)
        self.go_on()

    def go_on(self) -> None:
        """Run until it waits again; a frozen process does not."""
        if self.frozen or self.dead:
            return
        self.loop.turn()
        if self.task.done():
            self.dead = True
            self.bell.drop()
            error = self.task.exception()
            if error is not None and not isinstance(error, Fenced):
                raise error

    def kill(self) -> None:
        """Crash: nothing of it runs any more; what it has sent is still on its way."""
        self.dead = True
        self.frozen = False
        self.bell.drop()
        for call in [*self.calls]:
            if not call.future.done():
                call.future.set_exception(Gone())
        for request in self.world.requests:
            if request.sender is self and not request.future.done():
                request.future.set_exception(Gone())
        self.bell.cut()
        self.loop.turn()
        assert self.task.done(), "a crashed process still waits for something"
        self.task.exception()


class Told(Silent):
    """The relay's observer: what it says is applied must be so."""

    def __init__(self, world: "World", source: Source) -> None:
        self._world = world
        self._source = source

    def batch_read(self, batch: Batch, seconds: float) -> None:
        if batch.torn and (pages := self._source._pages):
            for xid, _ in batch.cursor.torn:
                self._world.oracle.read_torn(xid, pages.window.max_changes, pages.window.max_bytes)

    def batch_applied(self, batch: Batch, plan: Plan, answer: Answer, seconds: float) -> None:
        self._world.oracle.check_told(batch.changes)


def _half() -> float:
    return 0.5


class Door:
    """Puts documents on the network."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def send(self, document: bytes) -> str:
        if self._process.dead:
            raise Gone
        return await self._process.world.post(self._process, document).future

    async def close(self) -> None: ...


class SimulatedBell:
    """daemon.wakeup.Bell's protocol over the simulated lock K: who sleeps is woken by a ring, and by nothing else."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._waiter: asyncio.Future[None] | None = None
        self._rung = False
        self.connected = True
        self.pooled = False
        self.armed = False

    def ring(self) -> None:
        self._rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def try_arm(self) -> bool:
        if not self.connected:
            return False
        self._rung = False
        await self._command("arm", self._arm)
        return self.armed

    async def disarm(self) -> None:
        if self.armed:
            await self._command("disarm", self._disarm)

    async def _command(self, name: str, statement: Statement) -> None:
        try:
            await self._process.call(name, [statement])
        except psycopg.Error:
            self.drop()
            raise SourceUnavailable("the bell's connection to the source failed") from None

    async def wait(self, seconds: float) -> bool:
        if self._process.dead:
            raise Gone
        if not self._rung:
            loop = self._process.loop
            self._waiter = loop.create_future()
            # Asleep, it has K: no timer, so that only a ring leads on.
            timer = None if self.armed else loop.call_later(seconds, self._time_is_up, self._waiter)
            try:
                await self._waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        rung, self._rung = self._rung, False
        return rung

    def drop(self) -> None:
        """The connection ends, and with it the locks."""
        self._unlock()
        self.connected = False
        self._process.world.unseat(self._process)

    def cut(self) -> None:
        """The process that waits is gone."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(Gone())

    def _arm(self) -> Rows:
        self._alive()
        database = self._process.world.database
        if database.sleeper is None and not database.sharers:
            database.sleeper = self
            self.armed = True
        return []

    def _disarm(self) -> Rows:
        self._alive()
        self._unlock()
        return []

    def _alive(self) -> None:
        if not self.connected:
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    def _unlock(self) -> None:
        if self._process.world.database.sleeper is self:
            self._process.world.database.sleeper = None
        self.armed = False

    @staticmethod
    def _time_is_up(waiter: "asyncio.Future[None]") -> None:
        if not waiter.done():
            waiter.set_result(None)


async def connect(dsn: str, *_: object, **__: object) -> Connection:
    """Stands in for daemon.connection.connect: the address is the process itself."""
    return await cast("Process", dsn).open()
