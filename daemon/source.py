"""The application's Postgres: windows of changes, read in batches of whole transactions.

Knows the outbox's tables and how far a batch may reach. Knows nothing of the target: a cursor comes in, a batch
and the cursor it leads to come out, and reading the same window twice gives the same changes.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.adapt import Loader
from psycopg.pq import Format

from daemon.breaker import Breaker, Thresholds
from daemon.connection import connect
from daemon.errors import SourceUnavailable, SourceUnfit
from daemon.plan import Change
from daemon.snapshot import Snapshot, cut
from outbox import Cursor
from outbox.migrations import FILES

# Two clocks never meet: created_at and the window's instant are both the source's.
_POSTGRES_EPOCH_US = 946_684_800_000_000
_FLOORS = 64
_FLOOR_EVERY = 10_000  # ids: each floor spends a transaction id
_NARROW = 10_000  # transactions: beyond this a window is read in id order


def query(name: str) -> bytes:
    """Text of sql/queries/<name>.sql."""
    return Path(FILES / "queries" / f"{name}.sql").read_bytes()


class _BigEndian(Loader):
    """xid8 as a number."""

    format = Format.BINARY

    def load(self, data: Any) -> int:
        return int.from_bytes(data, "big")


class _Microseconds(Loader):
    """timestamptz as Unix time in microseconds."""

    format = Format.BINARY

    def load(self, data: Any) -> int:
        return int.from_bytes(data, "big", signed=True) + _POSTGRES_EPOCH_US


@dataclass(frozen=True, slots=True)
class Limits:
    """What one batch may hold, and how long one statement on the source may take (seconds)."""

    changes: int = 2000
    bytes: int = 4 * 1024 * 1024
    deadline: float = 30.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes in id order, of whole transactions, and the cursor they lead to.

    `torn` counts transactions that are only begun here because each alone is larger than the limit. `more`: the
    window goes on. `read_us` is the source's clock when the batch was read.
    """

    changes: tuple[Change, ...]
    cursor: Cursor
    shapes: Mapping[int, tuple[str, ...]]
    torn: int
    more: bool
    read_us: int


@dataclass(frozen=True, slots=True)
class Identity:
    """What this server is."""

    system: str
    in_recovery: bool
    version: int
    identity_cache: int
    prepared_transactions: int
    migration: int


@dataclass(slots=True)
class _Window:
    """A window being read: fixed ends, and how far the pages have come.

    `pending`: transactions begun on earlier pages, not taken yet, with the id of their last change. `seen`: rows
    and bytes of each that went by.
    """

    cursor: Cursor
    reached: Snapshot
    goal: Snapshot
    ceiling: int
    after: int
    read_us: int
    opened: float
    flushed: bool
    wide: bool
    torn: dict[int, int]
    pending: dict[int, int] = field(default_factory=dict)
    seen: dict[int, tuple[int, int]] = field(default_factory=dict)


class Source:
    """One connection that reads. Not for concurrent use."""

    def __init__(
        self,
        dsn: str,
        limits: Limits | None = None,
        *,
        breaker: Breaker | None = None,
        application_name: str = "outboxd",
    ) -> None:
        self._dsn = dsn
        self._name = application_name
        self.breaker = breaker or Breaker("source", Thresholds())
        self.limits = limits or Limits()
        self._conn: psycopg.AsyncConnection[Any] | None = None
        self._window: _Window | None = None
        self._shapes: dict[int, tuple[str, ...]] = {}
        self._floors: list[tuple[int, int]] = []  # (xid, id): see floor.sql
        self.identity: Identity | None = None
        self.newest_id = 0

    async def read(self, cursor: Cursor) -> Batch:
        """The next batch after `cursor`. No changes: there are none up to the batch's cursor.

        Raises SourceUnavailable (the connection is dropped; read again) or SourceUnfit.
        """
        async with self._connected() as conn:
            window = self._window
            if window is None or window.cursor != cursor:
                window = self._window = await self._open(conn, cursor)
            return await self._next(conn, window)

    async def backlog(self, cursor: Cursor, limit: int = 100_000) -> tuple[int, float]:
        """Changes waiting behind `cursor` (exact up to `limit`), and the age of the oldest in seconds."""
        reached = Snapshot.parse(cursor.snapshot)
        async with self._connected() as conn:
            row = await (await conn.execute(query("backlog"), {**_bounds(reached), "limit": limit})).fetchone()
        return (int(row[0]), float(row[1])) if row else (0, 0.0)

    async def health(self) -> tuple[float, float, float, int]:
        """Oldest open transaction (s), rows and bytes of the outbox, highest id drawn."""
        async with self._connected() as conn:
            row = await (await conn.execute(query("source_health"))).fetchone()
        return row or (0.0, 0.0, 0.0, 0)

    async def identify(self) -> Identity:
        """Connect if need be, and say what server this is."""
        async with self._connected():
            pass
        assert self.identity is not None
        return self.identity

    async def close(self) -> None:
        """Drop the connection; the next call opens another."""
        conn, self._conn, self._window = self._conn, None, None
        if conn is not None:
            await conn.close()

    # -- one window ----------------------------------------------------------------------------------------

    async def _open(self, conn: psycopg.AsyncConnection[Any], cursor: Cursor) -> _Window:
        self._fits(cursor)
        results = await conn.execute(query("window_open"))
        results.nextset()
        snapshot, in_recovery = await results.fetchone() or ("", True)
        results.nextset()
        ceiling = _first(await results.fetchone())
        results.nextset()
        flushed, read_us = await results.fetchone() or (False, 0)
        if in_recovery:
            raise SourceUnfit(
                "the source is a standby: give the primary's address (a standby cannot say what has committed)"
            )
        reached, goal = Snapshot.parse(cursor.snapshot), Snapshot.parse(snapshot)
        if goal.xmax < reached.xmax:
            raise SourceUnfit(
                "the target's cursor lies in this source's future: the source was restored from a backup or is another "
                "database; nothing is applied until that is settled"
            )
        self.newest_id = ceiling
        if ceiling - self._floors[-1][1] >= _FLOOR_EVERY if self._floors else True:
            await self._take_floor(conn)
        return _Window(
            cursor, reached, goal, ceiling, cursor.floor_id, read_us, time.monotonic(), flushed,
            goal.xmax - reached.xmax > _NARROW, dict(cursor.torn),
        )  # fmt: skip

    def _fits(self, cursor: Cursor) -> None:
        assert self.identity is not None
        if self.identity.in_recovery:
            raise SourceUnfit(
                "the source is a standby: give the primary's address (a standby cannot say what has committed)"
            )
        if self.identity.identity_cache != 1:
            raise SourceUnfit(
                f"the identity of outbox.change has CACHE {self.identity.identity_cache}, so ids do not follow commits: "
                "alter table outbox.change alter column id set cache 1"
            )
        if cursor.system and cursor.system != self.identity.system:
            raise SourceUnfit(
                f"the target's cursor belongs to another database cluster ({cursor.system}, this one is "
                f"{self.identity.system}): transaction ids of one mean nothing in the other"
            )

    async def _next(self, conn: psycopg.AsyncConnection[Any], window: _Window) -> Batch:
        """Read pages until whole transactions can be taken, or the window ends."""
        empty = window.goal == window.reached
        while True:
            page = [] if empty else await self._page(conn, window)
            full = len(page) >= self.limits.changes or sum(change.size for change in page) >= self.limits.bytes
            if not full:
                changes = await self._with_rest(conn, window, page, window.seen.keys(), window.after)
                self._window = None
                cursor = Cursor(str(window.goal), self._floor(window.goal, window.cursor), (), self._system)
                return await self._batch(conn, window, changes, cursor, 0, more=False)
            if batch := await self._cut(conn, window, page):
                return batch

    async def _cut(self, conn: psycopg.AsyncConnection[Any], window: _Window, page: Sequence[Change]) -> Batch | None:
        """Take from a full page the transactions that end on it; None when there are none yet."""
        after, end = window.after, page[-1].id
        window.after, window.wide = end, True
        window.pending.update(await self._stragglers(conn, window, page, end))
        page = [change for change in page if change.id > window.torn.get(change.xid, 0)]
        here = {change.xid for change in page}
        taken = {xid for xid in here | window.pending.keys() if window.pending.get(xid, 0) <= end}
        earlier = set(window.seen)
        too_large = self._note(window, page, taken)
        if not taken and not too_large:
            return None
        wanted = taken | too_large
        changes = await self._with_rest(conn, window, [c for c in page if c.xid in wanted], wanted & earlier, after)
        torn = len(too_large - window.torn.keys())
        for xid in taken:
            window.pending.pop(xid, None)
            window.torn.pop(xid, None)
        for xid in wanted:
            window.seen.pop(xid, None)
        window.torn.update(dict.fromkeys(too_large, end))
        window.reached = cut(window.reached, window.goal, taken, window.pending.keys())
        window.cursor = Cursor(
            str(window.reached),
            self._floor(window.reached, window.cursor),
            tuple(sorted(window.torn.items())),
            self._system,
        )
        return await self._batch(conn, window, changes, window.cursor, torn, more=True) if changes else None

    def _note(self, window: _Window, page: Sequence[Change], taken: Collection[int]) -> set[int]:
        """Count what went by of transactions that go on; returns those too large for a batch by themselves."""
        for change in page:
            if change.xid not in taken:
                rows, size = window.seen.get(change.xid, (0, 0))
                window.seen[change.xid] = rows + 1, size + change.size
        return {
            xid for xid, (rows, size) in window.seen.items()
            if xid not in taken and (rows >= self.limits.changes or size >= self.limits.bytes)
        }  # fmt: skip

    async def _with_rest(
        self,
        conn: psycopg.AsyncConnection[Any],
        window: _Window,
        page: Sequence[Change],
        begun: Collection[int],
        upto: int,
    ) -> list[Change]:
        """The page's changes and those that transactions `begun` on earlier pages left there, in id order."""
        changes = {change.id: change for change in page}
        if begun:
            rest = await self._changes(conn, "window_rest", {"xids": _xids(begun), "upto": upto})
            changes.update((change.id, change) for change in rest)
        # What a torn transaction has sent already is on the target.
        return [changes[id_] for id_ in sorted(changes) if id_ > window.torn.get(changes[id_].xid, 0)]

    async def _batch(
        self,
        conn: psycopg.AsyncConnection[Any],
        window: _Window,
        changes: Sequence[Change],
        cursor: Cursor,
        torn: int,
        *,
        more: bool,
    ) -> Batch:
        if not window.flushed and any(change.unflushed for change in changes):
            # Promise I2: a commit with synchronous_commit = off is visible before it is durable. A crash would
            # take it back and give its xid away again.
            await conn.execute(query("flush"))
            window.flushed = True
        unknown = {c.shape for c in changes if c.shape is not None and c.shape not in self._shapes}
        if unknown:
            rows = await (await conn.execute(query("shapes"), {"ids": sorted(unknown)})).fetchall()
            self._shapes.update((shape, tuple(columns)) for shape, columns in rows)
        read_us = window.read_us + int((time.monotonic() - window.opened) * 1e6)
        return Batch(tuple(changes), cursor, self._shapes, torn, more, read_us)

    async def _page(self, conn: psycopg.AsyncConnection[Any], window: _Window) -> list[Change]:
        name = "window_by_id" if window.wide else "window_by_xid"
        limits = {"after": window.after, "limit": self.limits.changes, "bytes": self.limits.bytes}
        return await self._changes(conn, name, {**_between(window), **limits})

    async def _stragglers(
        self, conn: psycopg.AsyncConnection[Any], window: _Window, page: Sequence[Change], end: int
    ) -> dict[int, int]:
        bounds = {"page_xid": str(max(c.xid for c in page)), "page_end": end, "pending": _xids(window.pending)}
        results = await conn.execute(query("window_stragglers"), {**_between(window), **bounds}, binary=True)
        return dict(await results.fetchall())

    async def _changes(
        self, conn: psycopg.AsyncConnection[Any], name: str, parameters: Mapping[str, Any]
    ) -> list[Change]:
        results = await conn.execute(query(name), parameters, binary=True)
        return [Change._make(row) for row in await results.fetchall()]

    async def _take_floor(self, conn: psycopg.AsyncConnection[Any]) -> None:
        results = await conn.execute(query("floor"))
        results.nextset()
        floor = _first(await results.fetchone())
        results.nextset()
        self._floors.append((_first(await results.fetchone()), floor))
        if len(self._floors) > _FLOORS:
            del self._floors[1::2]

    def _floor(self, reached: Snapshot, cursor: Cursor) -> int:
        """Whoever `reached` does not see got its xid after the floor's, so drew its ids above the floor."""
        return max([cursor.floor_id, *(floor for xid, floor in self._floors if xid < reached.xmin)])

    @property
    def _system(self) -> str:
        return self.identity.system if self.identity else ""

    # -- the connection ------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """The connection, opened when there is none; dropped after any failure of it."""
        with self.breaker.attempt() as attempt:
            try:
                async with self._guarded() as conn:
                    yield conn
            except SourceUnavailable as exc:
                attempt.failed(str(exc))
                raise

    @asynccontextmanager
    async def _guarded(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        try:
            async with asyncio.timeout(self.limits.deadline):
                if self._conn is None:
                    await self._connect()
                assert self._conn is not None
                yield self._conn
        except TimeoutError:
            await self._drop()
            raise SourceUnavailable(f"the source did not answer within {self.limits.deadline:g} s") from None
        except (psycopg.OperationalError, psycopg.InterfaceError) as exc:
            await self._drop()
            raise SourceUnavailable(
                f"the connection to the source failed ({exc.sqlstate or type(exc).__name__})"
            ) from None
        except psycopg.errors.InsufficientPrivilege as exc:
            await self._drop()
            raise SourceUnfit(
                f"the source's role lacks a right: {exc.diag.message_primary}; see sql/source/role.sql"
            ) from None
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            await self._drop()
            raise SourceUnfit("schema outbox is not installed on the source: run `outboxd setup source`") from None
        except BaseException:
            await self._drop()
            raise

    async def _connect(self) -> None:
        self._conn = await connect(self._dsn, self._name)
        self._conn.adapters.register_loader("xid8", _BigEndian)
        self._conn.adapters.register_loader("timestamptz", _Microseconds)
        row = await (await self._conn.execute(query("source_identity"))).fetchone()
        assert row is not None
        self.identity = Identity(*row)

    async def _drop(self) -> None:
        conn, self._conn, self._window = self._conn, None, None
        self._floors.clear()
        if conn is not None:
            await conn.close()


def _between(window: _Window) -> dict[str, Any]:
    return {
        **_bounds(window.reached),
        "to_xmax": str(window.goal.xmax),
        "to_snapshot": str(window.goal),
        "ceiling": window.ceiling,
    }


def _bounds(reached: Snapshot) -> dict[str, Any]:
    return {"from_xmax": str(reached.xmax), "from_snapshot": str(reached), "running": _xids(reached.running)}


def _xids(xids: Collection[int]) -> str:
    return "{" + ",".join(map(str, sorted(xids))) + "}"


def _first(row: Sequence[Any] | None) -> int:
    return int(row[0]) if row else 0
