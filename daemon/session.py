"""The connection to the source: opened when it is needed, behind a breaker, and dropped after any failure.

Knows what server answers, the texts of sql/queries and how numbers are written in them, and what its errors mean.
Knows nothing of windows.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg.types.numeric import Int8BinaryLoader, IntLoader

from daemon.breaker import Breaker
from daemon.connection import Link, cause, connect, require_encoding
from daemon.errors import SourceUnavailable, SourceUnfit
from daemon.identity import Identity
from daemon.refusal_words import spoken
from daemon.snapshot import Run
from outbox.migrations import FILES

# Read once, so that an upgrade on disk does not mix with the version that runs.
_QUERIES = {path.stem: path.read_bytes() for path in (FILES / "queries").glob("*.sql")}


def query(name: str) -> bytes:
    """Text of sql/queries/<name>.sql."""
    return _QUERIES[name]


def array(numbers: Iterable[int]) -> str:
    """As Postgres reads it."""
    return "{" + ",".join(map(str, numbers)) + "}"


def bounds(runs: Sequence[Run]) -> dict[str, str]:
    """As two arrays: the first and the last of each."""
    return {"first": array(first for first, _ in runs), "last": array(last for _, last in runs)}


def first(row: Sequence[Any] | None) -> int:
    """The number that a query answers with, 0 when it answers with none."""
    return int(row[0]) if row else 0


class Session:
    """One connection at a time. `on_drop` is told when it is gone, and with it all that was learnt through it."""

    def __init__(self, dsn: str, name: str, breaker: Breaker, patience: float) -> None:
        self._dsn = dsn
        self._name = name
        self._patience = patience
        self.breaker = breaker
        self.conn: Link | None = None
        self.identity: Identity | None = None
        self.on_drop: Callable[[], None] = lambda: None
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Link]:
        """The connection, opened when there is none; dropped after any failure of it. Uses take turns."""
        async with self._turn:
            with self.breaker.attempt() as attempt:
                try:
                    async with self._guarded() as conn:
                        yield conn
                except SourceUnavailable as exc:
                    attempt.failed(str(exc))
                    raise

    async def identify(self, conn: Link) -> Identity:
        """What server this is."""
        row = await (await conn.execute(query("source_identity"))).fetchone()
        assert row is not None
        self.identity = Identity(*row)
        return self.identity

    async def drop(self) -> None:
        """Let go of the connection; the next use opens another."""
        conn, self.conn = self.conn, None
        self.on_drop()
        if conn is not None:
            await conn.close()

    @asynccontextmanager
    async def _guarded(self) -> AsyncIterator[Link]:
        try:
            if self.conn is None:
                await self._connect()
            assert self.conn is not None
            yield self.conn
        except psycopg.Error as exc:
            await self.drop()
            raise failure(exc) from None
        except BaseException:
            await self.drop()
            raise

    async def _connect(self) -> None:
        self.conn = await connect(self._dsn, self._name, patience=self._patience)
        require_encoding(self.conn.info)
        # Both are eight bytes: a number, and microseconds since 2000-01-01, which is the clock of all that is read here.
        self.conn.adapters.register_loader("xid8", IntLoader)
        self.conn.adapters.register_loader("xid8", Int8BinaryLoader)
        self.conn.adapters.register_loader("timestamptz", Int8BinaryLoader)
        identity = await self.identify(self.conn)
        # A pooler tells its clients numbers of its own.
        self.conn.direct = identity.backend == self.conn.info.backend_pid


def failure(exc: psycopg.Error) -> SourceUnavailable | SourceUnfit:
    """What an error of the source means: try again, or a person has to act."""
    match exc:
        case psycopg.errors.InsufficientPrivilege():
            said = spoken(exc.sqlstate, exc.diag.message_primary, exc.diag.context)
            return SourceUnfit(
                f"the source's role lacks a right{f': {said}' if said else ' (42501)'}; see sql/source/role.sql, which `outboxd setup source --role` runs"
            )
        case psycopg.errors.UndefinedTable() | psycopg.errors.InvalidSchemaName():
            return SourceUnfit("schema outbox is not installed on the source: run `outboxd setup source`")
        case psycopg.errors.LockNotAvailable():
            return SourceUnavailable("another session holds a lock on the outbox (55P03): pg_locks names it")
        case psycopg.errors.QueryCanceled():
            return SourceUnavailable(
                "the source ended a statement that took too long, or somebody cancelled it (57014); behind a pooler the "
                "role's own limit holds: alter role … set statement_timeout = '14s'"
            )
        case psycopg.errors.IdleSessionTimeout() | psycopg.errors.IdleInTransactionSessionTimeout():
            return SourceUnavailable(
                f"the source closes idle connections ({exc.sqlstate}): alter role … set idle_session_timeout = 0"
            )
        case psycopg.OperationalError() | psycopg.InterfaceError():
            return SourceUnavailable(f"the connection to the source failed ({cause(exc)})")
    return SourceUnfit(
        f"the source cannot be read ({cause(exc)}): is its schema of this version? Run `outboxd setup source`; see `outboxd check`"
    )
