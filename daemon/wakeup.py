"""The bell: when to read again. And the lock that says who leads, on the same connection.

Knows LISTEN, advisory locks and a rhythm. Knows nothing of what a change is: a writer's notification has no content, it
only rings. One that says `fits` is of who has changed the target's tables (sql/queries/ring_fits.sql).

A NOTIFY makes its commit take a cluster-wide lock, so writers ring only a sleeper. Writers try to take lock K
shared, without waiting, and keep it until after their commit is visible. The relay takes K exclusively only to
sleep; it gets it only when no writer that found it awake is still in flight. It then reads once more, and waits
only if that found nothing. So every commit is either in that read or has rung. A stranger can hold K as well: then the
relay polls (it never gets K), or every commit rings (no writer gets it), and nothing is lost.

The leader's lock has a number that changes when a stranger holds it: sql/source/0012.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from daemon.connection import cause, connect
from daemon.errors import STANDBY, SourceUnavailable, SourceUnfit
from daemon.leaders import Stranger

_LOCK_CLASS = 1869968482
_ASIDE_CLASS = _LOCK_CLASS + 2  # whoever has a lock of these cannot lead: for sql/queries/leaders.sql
_BELL = 1
_SQL = {
    # A frozen process pings no more: the server then drops this connection and with it both locks.
    "guard": "set idle_session_timeout = '10s'",
    "standby": "select pg_is_in_recovery()",
    "where": "select channel from outbox.leadership",
    "lead": "select leads, key, channel, who, remedy from outbox.lead()",
    "aside": "select pg_try_advisory_lock_shared(%s, %s)",
    "back": "select pg_advisory_unlock_shared(%s, %s)",
    "arm": "select pg_try_advisory_lock(%s, %s)",
    "disarm": "select pg_advisory_unlock(%s, %s)",
    "ping": "select pg_backend_pid()",
    "proof": "select pg_backend_pid(), (select key from outbox.leadership)",
}
_GONE = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)  # schema outbox


@dataclass(slots=True)
class Pace:
    """When to poll and when to sleep, from the gaps between changes. Seconds; the clock is the caller's."""

    shortest: float = 0.003
    longest: float = 0.02
    linger: float = 0.05
    gaps: float = 20.0
    mean_gap: float = 1.0
    last_found: float = float("-inf")

    def found(self, now: float) -> None:
        """Changes were found."""
        self.mean_gap += (min(now - self.last_found, 1.0) - self.mean_gap) / 8
        self.last_found = now

    def pause(self, now: float) -> float | None:
        """Seconds until the next look; None when it is quiet enough to sleep."""
        quiet = now - self.last_found
        if quiet >= max(self.linger, min(self.gaps * self.mean_gap, 1.0)):
            return None
        return min(max(self.mean_gap / 4, self.shortest), self.longest)


class Bell:
    """One connection: LISTEN, lock K, the leader's lock. Commands on it take turns."""

    def __init__(
        self, dsn: str, *, application_name: str = "outboxd", session_name: str | None = None, deadline: float = 10.0
    ) -> None:
        self._dsn = dsn
        self._session_name = session_name or f"{application_name} bell"
        self._name = application_name
        self._deadline = deadline
        self._conn: psycopg.AsyncConnection[Any] | None = None
        self._turn = asyncio.Lock()
        self._rung = asyncio.Event()
        self._watched_fd: int | None = None
        self._aside: int | None = None  # the number of the lock that says so, not to be guessed
        self._channel = ""
        self._key: int | None = None  # of the leader's lock, while it is held here
        self._backend = 0  # the server process at the other end
        self.on_lost: Callable[[], None] = lambda: None
        self.on_fits: Callable[[], None] = lambda: None
        self.armed = False
        self.rings = 0
        self.pooled = False

    @property
    def connected(self) -> bool:
        """Is LISTEN up?"""
        return self._conn is not None

    def ring(self) -> None:
        """Wake whoever waits. Signals and reconnects ring as well."""
        self._rung.set()

    async def connect(self) -> None:
        """Open, probe and LISTEN. Raises SourceUnavailable, or SourceUnfit on a standby.

        Behind a pooler in transaction mode locks and LISTEN belong to whichever transaction comes next: `pooled`
        is set, nothing is locked, and the relay polls.
        """
        await self.close()
        try:
            async with asyncio.timeout(self._deadline):
                conn = await connect(self._dsn, self._session_name, patience=self._deadline)
                try:
                    await self._settle(conn)
                except BaseException:
                    await conn.close()
                    raise
        except TimeoutError:
            raise SourceUnavailable(f"the source did not answer within {self._deadline:g} s") from None
        except psycopg.OperationalError as exc:
            raise SourceUnavailable(f"no connection to the source ({cause(exc)})") from None
        except psycopg.Error as exc:
            raise _failure(exc) from None
        self._conn = conn  # only now: who arms before LISTEN is up would miss the ring
        self._watch()
        self.ring()

    async def _settle(self, conn: psycopg.AsyncConnection[Any]) -> None:
        standby = await (await conn.execute(_SQL["standby"])).fetchone()
        if standby and standby[0]:
            raise SourceUnfit(STANDBY)
        self.pooled = await self._is_pooled(conn)
        if not self.pooled:
            conn.add_notify_handler(self._notified)
            await conn.execute(_SQL["guard"])
            row = await (await conn.execute(_SQL["where"])).fetchone()
            self._channel = str(row[0]) if row else ""
            await conn.execute(sql.SQL("listen {}").format(sql.Identifier(self._channel)))

    async def _is_pooled(self, conn: psycopg.AsyncConnection[Any]) -> bool:
        """Two clients, one backend, or one client, two backends?

        A pooler gives the server connection just used to whoever asks next, or takes its server connections in turn.
        A busy one may lend it to a third, so it is asked more than once: three busy server connections would
        have to look like one ten times over.
        """
        other = await connect(self._dsn, f"{self._name} probe", patience=self._deadline)
        try:
            for _ in range(3):
                mine, again = await _backend(conn), await _backend(conn)
                async with other.transaction():
                    theirs = await _backend(other)
                if mine != again or again == theirs:
                    return True
                self._backend = mine
            for _ in range(7):
                if await _backend(conn) != self._backend:
                    return True
        finally:
            await other.close()
        return False

    async def try_lead(self, said: Callable[[Stranger], None] = lambda _: None) -> bool:
        """Take the leader's lock if it is free. It is held as long as this connection lives. `said` is told of a stranger
        who had it: the lock has another number now. Raises SourceUnavailable, or SourceUnfit where it cannot be taken."""
        if self.pooled:
            return True
        leads, key, channel, who, remedy = await self._row("lead", ())
        self._key = key if leads else None
        if channel != self._channel:  # schema outbox is another one than when this connection was opened
            await self._fail()
            raise SourceUnavailable("writers ring on another channel by now")
        if who is not None:
            said(Stranger("lead", who, remedy))
        return bool(leads)

    async def stand_aside(self, aside: bool) -> None:
        """Let others see that this one cannot lead, or again can."""
        if aside is (self._aside is not None) or self.pooled:
            return
        number = self._aside if self._aside is not None else random.getrandbits(31)
        done = await self._command("aside" if aside else "back", (_ASIDE_CLASS, number))
        self._aside = number if aside and done else None

    async def try_arm(self) -> bool:
        """Take K: from here on writers ring. Read once more before waiting."""
        if self.pooled or not self.connected:
            return False
        self._rung.clear()  # before the read that follows, never after it
        self.armed = bool(await self._command("arm", (_LOCK_CLASS, _BELL)))
        return self.armed

    async def disarm(self) -> None:
        """Give K back: writers are silent again."""
        if self.armed:
            self.armed = False
            await self._command("disarm", (_LOCK_CLASS, _BELL))

    async def wait(self, seconds: float) -> bool:
        """Wait for a ring; False when the time ran out."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._rung.wait()
        rung = self._rung.is_set()
        self._rung.clear()
        return rung

    async def ping(self) -> None:
        """Prove the connection alive, to both ends, and the lead still the lead. Raises SourceUnavailable when it is not, or
        not the same."""
        backend, *key = await self._row("ping" if self._key is None else "proof", ())
        if not self.pooled and backend != self._backend:
            await self._fail()
            raise SourceUnavailable("another server process answers: a pooler is in between")
        if key and key[0] != self._key:  # schema outbox is another one, or was written to by hand
            await self._fail()
            raise SourceUnavailable("the leader's lock on the source has another number by now")

    async def close(self) -> None:
        """Drop the connection, and with it the locks."""
        self._unwatch()
        conn, self._conn, self.armed, self._aside, self._key = self._conn, None, False, None, None
        if conn is not None:
            await conn.close()

    async def _command(self, name: str, parameters: tuple[int, ...]) -> Any:
        return (await self._row(name, parameters))[0]

    async def _row(self, name: str, parameters: tuple[int, ...]) -> tuple[Any, ...]:
        async with self._turn:
            conn = self._conn
            if conn is None:
                raise SourceUnavailable("the bell's connection to the source is gone")
            self._unwatch()  # psycopg watches the same descriptor while a command runs
            try:
                row = await (await conn.execute(_SQL[name], parameters or None)).fetchone()
            except psycopg.Error as exc:
                if name == "proof" and isinstance(exc, _GONE):  # nobody can be elected until there is another
                    self._watch()
                    return self._backend, self._key
                await self._fail()
                raise _failure(exc) from None
            except BaseException:
                await self._fail()
                raise
            self._watch()
            return row or (None,)

    async def _fail(self) -> None:
        await self.close()
        self.on_lost()
        self.ring()

    def _notified(self, told: psycopg.Notify) -> None:
        self._heard(told.payload)

    def _heard(self, payload: str) -> None:
        self.rings += 1
        if payload == "fits":
            self.on_fits()
        self.ring()

    def _watch(self) -> None:
        """Wake on input without psycopg's notifies(), which wakes ten times a second."""
        if self._conn is not None and not self.pooled:
            self._drain(self._conn)  # what came with the last command's answer
            self._watched_fd = self._conn.fileno()
            asyncio.get_running_loop().add_reader(self._watched_fd, self._readable)

    def _unwatch(self) -> None:
        if self._watched_fd is not None:
            asyncio.get_running_loop().remove_reader(self._watched_fd)
            self._watched_fd = None

    def _readable(self) -> None:
        if self._conn is None:
            return
        try:
            self._conn.pgconn.consume_input()
        except psycopg.OperationalError:
            self._unwatch()  # the next command finds the connection gone and closes it
            self.on_lost()
            self.ring()
            return
        self._drain(self._conn)

    def _drain(self, conn: psycopg.AsyncConnection[Any]) -> None:
        while told := conn.pgconn.notifies():
            self._heard(told.extra.decode(errors="replace"))


def _failure(exc: psycopg.Error) -> SourceUnavailable | SourceUnfit:
    match exc:
        case psycopg.errors.InsufficientPrivilege():
            return SourceUnfit(
                f"the source's role may not lead: {exc.diag.message_primary}; `outboxd setup source --role` grants it to role "
                "outboxd (sql/source/role.sql)"
            )
        case _ if isinstance(exc, _GONE):
            return SourceUnfit("schema outbox is not installed on the source: run `outboxd setup source`")
        case psycopg.errors.UndefinedFunction():
            return SourceUnfit("schema outbox on the source is of an older version: run `outboxd setup source`")
        case psycopg.errors.ReadOnlySqlTransaction():
            return SourceUnavailable("the source takes no writes (25006), so nobody can be elected there")
    return SourceUnavailable(f"the bell's connection to the source failed ({cause(exc)})")


async def _backend(conn: psycopg.AsyncConnection[Any]) -> int:
    row = await (await conn.execute(_SQL["ping"])).fetchone()
    return int(row[0]) if row else 0
