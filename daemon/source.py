"""The application's Postgres: windows of changes, read in batches of whole transactions.

Knows the outbox's tables and how far a batch may reach. Knows nothing of the target: a cursor comes in, a batch
and the cursor it leads to come out, and reading the same window twice gives the same changes.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg
import structlog

from daemon.breaker import Breaker, Thresholds
from daemon.connection import Link
from daemon.copies import Progress
from daemon.errors import STANDBY, CopyRefused, SourceForeign, SourceUnavailable, SourceUnfit
from daemon.identity import Held, Identity, Named, require_fit, require_held, require_passed, require_schema, to_add_up
from daemon.plan import Change
from daemon.session import Session, failure, query
from daemon.snapshot import Run, Snapshot, between
from daemon.verification import Checked
from daemon.window import Cut, Window
from outbox import Cursor, Mark
from outbox.migrations import migrations

log = structlog.get_logger()

# Once, so that an upgrade on disk does not mix with the version that runs.
NEEDS = migrations("source")[-1].version
_CHANGE = partial(tuple.__new__, Change)  # what Change._make does, without its checks
_FLOORS = 64
_FLOOR_EVERY = 10_000  # ids: each floor spends a transaction id
_DEEP = 50_000  # ids drawn since the last look: a window that is larger is read in stretches
_LAST_XID = 2**63 - 1
_HEADERS, _HEADER_BYTES = 128, 16_384  # different ones of a batch, and of one: more are of no use to tracing
_LONGEST_SPAN = 500_000  # ids looked at for one page, where the window has few


@dataclass(frozen=True, slots=True)
class Limits:
    """What one batch may hold, and how long the source may keep silent (seconds).

    A row of more than `row_bytes` is not fetched: its change has a size and no row.
    """

    changes: int = 5000
    bytes: int = 4 * 1024 * 1024
    row_bytes: int = 16 * 1024 * 1024
    deadline: float = 15.0


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be read of a table as of a window's end: see outbox.copy_work."""

    table: str
    what: str
    keys: tuple[str, ...] | None
    rows: int = 0
    bytes: int = 0


Found = list[tuple[tuple[str, ...] | None, str | None, str | None, int]]  # columns, key, row, its bytes


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
    copied: Progress | None = None  # no changes then, but rows as of `cursor`, in the clothes of changes
    checked: Checked | None = None  # no changes, or such rows, but what the target is to compare
    headers: tuple[str, ...] = ()  # of the changes, each once: only when the source is asked for them
    headers_left_out: int = 0  # because there are too many
    beats: tuple[Change, ...] = ()  # heartbeats, once they are set apart: see daemon.heartbeat

    @property
    def tells(self) -> bool:
        """Is there something for the target in it?"""
        return bool(self.changes or self.beats) or self.copied is not None or self.checked is not None


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one pruning did: the slot it emptied, the highest id removed so far, whether a slot that was due could
    not be locked, whether new changes go to another slot now.
    """

    emptied: int | None
    up_to_id: int
    locked: bool
    rotated: bool


@dataclass(frozen=True, slots=True)
class _Ended:
    """The last window that was read to its end. `durable`: a crash of the source cannot take the cursor back."""

    cursor: Cursor
    ceiling: int
    durable: bool


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
        self.limits = limits or Limits()
        self.traced = False  # are headers read? They cost a question for each batch
        self.breaker = breaker or Breaker("source", Thresholds())
        self._session = Session(dsn, application_name, self.breaker, self.limits.deadline)
        self._session.on_drop = self._forget
        self.connected = self._session.connected
        self._window: Window | None = None
        self._shapes: dict[int, tuple[str, ...]] = {}
        self._floors: list[tuple[int, int]] = []  # (xid, id): see floor.sql
        # Of the window being read: is its goal durable, when was it taken (by both clocks), how its next page is
        # found.
        self._flushed, self._opened, self._read_us, self._by_id, self._span = False, 0.0, 0, True, 0
        self._looked: list[Change] | None = None  # the first page of the window, when it came with it
        self._newest = 0
        self._ended: _Ended | None = None
        self._revoked: Cursor | None = None
        self._proven: Cursor | None = None  # led to by this connection: what it speaks of is there
        self._promoted = 0

    @property
    def identity(self) -> Identity | None:
        """What server this is; None before the first connection."""
        return self._session.identity

    @property
    def proven(self) -> bool:
        """Has this connection shown that it leads to the source of the cursor that was read from last?"""
        return self._proven is not None

    async def read(self, cursor: Cursor, *, beyond: bool = True) -> Batch:
        """The next batch after `cursor`. No changes: when this was called there were none.

        Without `beyond` it ends where the window ends that is being read. Raises SourceUnavailable (the connection is
        dropped; read again) or SourceUnfit.
        """
        if cursor == self._revoked:
            self._revoked = None
            raise SourceUnavailable("the connection was lost meanwhile: go on from where the target stands")
        async with self.connected() as conn:
            older = self._window is not None and self._window.cursor == cursor
            if self._window is None or not older:
                self._window = await self._open(conn, cursor)
            batch = await self._next(conn, self._window)
            if older and beyond and not batch.changes:
                # What was left of a window from before this call is nothing: look at what has come since.
                self._window = await self._open(conn, batch.cursor)
                batch = await self._next(conn, self._window)
            return batch

    async def read_as_of(self, cursor: Cursor, question: Question | None) -> tuple[Batch, Found, str]:
        """The first batch of a new window after `cursor`, what `question` asks as of that window's end, and the end.

        Whoever reads on without `beyond` comes to that end: its cursor is the very snapshot, and durable (promise I2:
        the rows may be those of a commit that a crash would take back). Raises what `read` raises, or CopyRefused.
        """
        async with self.connected() as conn:
            found: Found = []
            refused: CopyRefused | None = None
            try:
                self._window = await self._open(conn, cursor, question, found)
            except psycopg.Error as exc:
                code = exc.sqlstate or ""
                if conn.closed or question is None or not code.startswith(("OB", "42", "22", "55P03")):
                    raise
                await conn.rollback()
                # Our own sentences only: Postgres' may carry a value (promise I10).
                ours = exc.diag.message_primary if code.startswith("OB") or code == "22000" else None
                refused = CopyRefused(
                    question.table, ours or f"its rows cannot be read ({code}): `outboxd check`", busy=code == "55P03"
                )
            if refused is None:
                assert self._window is not None
                if not self._flushed:
                    await conn.execute(query("flush"))
                    self._flushed = True
                goal = str(self._window.goal)
                return await self._next(conn, self._window), found, goal
        raise refused

    async def touch(self, table: str, keys: Sequence[str]) -> None:
        """Record rows as changed, as they are: durably, so that the target's cursor may pass a copy without them."""
        async with self.connected() as conn:
            await conn.several(query("touch"), {"table": table, "keys": list(keys)})

    async def backlog(self, cursor: Cursor, limit: int = 100_000) -> tuple[int, float]:
        """Changes waiting behind `cursor` (exact up to `limit`), and the age of the oldest in seconds."""
        reached = _reached(cursor)
        bounds = {"from_xmax": str(reached.xmax), "running": _array(reached.running), "limit": limit}
        async with self.connected() as conn:
            row = await (await conn.execute(query("backlog"), bounds)).fetchone()
        return (int(row[0]), float(row[1])) if row else (0, 0.0)

    async def health(self) -> tuple[float, float, float, int]:
        """Oldest open transaction (s), rows and bytes of the outbox, highest id drawn."""
        async with self.connected() as conn:
            row = await (await conn.execute(query("source_health"))).fetchone()
        return row or (0.0, 0.0, 0.0, 0)

    async def prune(self, floor_id: int, retention: float) -> Pruned:
        """Remove applied changes older than `retention` seconds, a slot at most; see outbox.prune.

        `floor_id` must be that of a cursor the target has stated. A refusal leaves the connection, and with it the
        window that is being read, as they are.
        """
        given = {"floor_id": floor_id, "retention": retention}
        refused: psycopg.Error | None = None
        async with self.connected() as conn:
            try:
                (((*answer,),),) = await conn.several(query("prune"), given)
                pruned = Pruned(*answer)
                await self._note_floor(conn, every=1)  # on a quiet source, cursors to come need a floor for the next
                return pruned
            except psycopg.Error as exc:
                if conn.closed:
                    raise
                await conn.rollback()
                refused = exc
        raise failure(refused)

    async def identify(self, *, to_read: bool = False) -> Identity:
        """Connect if need be, and say what server this is. `to_read`: its schema must be as new as this version."""
        async with self.connected():
            assert self.identity is not None
            if to_read:
                require_schema(self.identity, NEEDS)
        return self.identity

    async def shapes(self, wanted: Collection[int]) -> Mapping[int, tuple[str, ...]]:
        """Which columns the rows of these shapes have."""
        async with self.connected() as conn:
            await self._learn_shapes(conn, set(wanted) - self._shapes.keys())
        return self._shapes

    async def remembered(self, relay: str) -> tuple[int, int]:
        """The epoch and the batch number at which the relay's target last stood, as far as the source was told."""
        async with self.connected() as conn:
            row = await (await conn.execute(query("remembered"), {"relay": relay})).fetchone()
        return (int(row[0]), int(row[1])) if row else (0, 0)

    async def remember(self, relay: str, epoch: int, batch_no: int, cursor: Cursor | None) -> None:
        """Tell the source where the relay's target stands."""
        told = {"relay": relay, "epoch": epoch, "batch_no": batch_no, "snapshot": cursor.snapshot if cursor else None}
        async with self.connected() as conn:
            await conn.execute(query("remember"), told)

    async def remembered_cursor(self, relay: str) -> Cursor:
        """From where on changes wait, to be counted while the target cannot be asked. Nothing may be read by it."""
        async with self.connected() as conn:
            row = await (await conn.execute(query("remembered_snapshot"), {"relay": relay})).fetchone()
        return Cursor(row[0]) if row and row[0] else Cursor.beginning()

    async def begin(self, cursor: Cursor) -> None:
        """Open the window after `cursor`, which the next read goes on with: first of all, is it this source's?

        Raises what `read` raises.
        """
        async with self.connected() as conn:
            self._window = await self._open(conn, cursor)

    async def judge(self, cursor: Cursor) -> str | None:
        """Why this source may not be read from `cursor` on, when `outboxd rebase` is the way on; None: it may.

        Raises SourceUnfit when something else is in the way.
        """
        try:
            async with self.connected() as conn:
                await self._open(conn, cursor)
        except SourceForeign as exc:
            return str(exc)
        return None

    async def ask(self, name: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """The rows of sql/queries/<name>.sql, none for one that has several statements."""
        async with self.connected() as conn:
            results = await conn.execute(query(name), parameters)
            return await results.fetchall() if results.description else []

    async def close(self) -> None:
        """Drop the connection; the next call opens another."""
        await self._session.drop()

    # -- one window ----------------------------------------------------------------------------------------

    async def _open(
        self, conn: Link, cursor: Cursor, question: Question | None = None, found: Found | None = None
    ) -> Window:
        assert self.identity is not None
        require_fit(self.identity, cursor)
        await self._note_floor(conn)
        known = self._ended.ceiling if self._ended and self._ended.cursor == cursor else 0
        if question is not None and found is not None:
            asked = {
                "table": question.table, "what": question.what, "keys": list(question.keys) if question.keys is not None else None,
                "most": question.rows, "max_bytes": question.bytes, "row_bytes": self.limits.row_bytes,
            }  # fmt: skip
            *sets, rows = await conn.several(query("window_copy"), asked)
            found.extend(rows)
        elif known and cursor == self._proven:  # up to date: the window is small
            sets = await conn.several(query("window_look"), self._after(cursor, known + _DEEP))
        else:
            sets = await conn.several(query("window_open"))
        (
            [(snapshot, in_recovery, started_us)],
            *looked,
            [(ceiling,)],
            [(pruned,)],
            [(self._flushed, self._read_us, lsn)],
        ) = sets
        self._opened, self._newest = time.monotonic(), ceiling
        if in_recovery:
            raise SourceUnfit(STANDBY)
        goal = Snapshot.parse(snapshot)
        require_passed(_reached(cursor), goal)
        if cursor != self._proven or started_us != self.identity.started_us:
            await self._prove(conn, cursor)
        _not_pruned(pruned, cursor)
        window = Window(
            cursor,
            goal,
            self._floor(goal),
            ceiling,
            self.limits.changes,
            self.limits.bytes,
            self.identity.timeline,
            lsn,
        )
        # Two ways to the first page: by the window's transactions, which costs its rows, or up from the floor,
        # which costs the rows between floor and window: many, while a transaction is open for hours.
        self._by_id = ceiling - known > known - window.after
        self._span = 0
        self._looked = list(map(_CHANGE, looked[0])) if looked and ceiling <= known + _DEEP else None
        return window

    def _after(self, cursor: Cursor, deep: int) -> dict[str, Any]:
        """What to look for: changes of transactions that the cursor does not see, and these are all there are up to
        now. Beyond id `deep` they are too many to be sorted at once."""
        reached = _reached(cursor)
        runs = [*((xid, xid) for xid in sorted(reached.running)), (reached.xmax, _LAST_XID)]
        return {**self._limited(cursor.floor_id), **_runs(runs), "deep": deep}

    def _limited(self, after: int) -> dict[str, int]:
        limits = self.limits
        return {"after": after, "limit": limits.changes, "bytes": limits.bytes, "row_bytes": limits.row_bytes}

    async def _prove(self, conn: Link, cursor: Cursor) -> None:
        """This cursor comes from elsewhere: is everything it claims to have been applied still here?"""
        identity = await self._session.identify(conn)
        require_fit(identity, cursor)
        mark = cursor.mark
        if mark is not None and mark.last:
            require_held(mark, identity, await self._held(conn, cursor, mark))
            if identity.timeline not in (mark.timeline, self._promoted):
                self._promoted = identity.timeline
                log.warning("source_promoted", timeline_before=mark.timeline, timeline=identity.timeline)
        self._proven = cursor

    async def _held(self, conn: Link, cursor: Cursor, mark: Mark) -> Held:
        count, total = None, 0
        if to_add_up(mark, 0):
            runs = between(Snapshot.parse(mark.spans[0].since), _reached(cursor))
            torn = {"torn": _array(xid for xid, _ in cursor.torn), "upto": _array(upto for _, upto in cursor.torn)}
            count, total = await (await conn.execute(query("mark_sum"), {**_runs(runs), **torn})).fetchone() or (0, 0)
        xids, ids, times = zip(*mark.last, strict=True)
        names = {"xids": _array(xids), "ids": _array(ids), "times": _array(times)}
        rows = await (await conn.execute(query("mark_named"), names)).fetchall()
        # Asked last: what is pruned meanwhile must not seem to be lost.
        pruned = _first(await (await conn.execute(query("pruned"))).fetchone())
        return Held(pruned, count if to_add_up(mark, pruned) else None, total, [Named(*row) for row in rows])

    async def _next(self, conn: Link, window: Window) -> Batch:
        """Read pages until whole transactions can be taken, or the window ends."""
        while True:
            looked, self._looked = self._looked, None
            if looked is not None:
                page, upto = self._upto(looked, window.ceiling)
            else:
                page, upto = await self._page(conn, window) if window.goal != window.reached else ([], window.ceiling)
            beyond = await self._beyond(conn, window, page, upto) if page and upto < window.ceiling else {}
            if looked is None or upto < window.ceiling:
                # Promise I1: one that no longer leads may prune by a cursor that the target, restored, has taken back.
                _not_pruned(_first(await (await conn.execute(query("pruned"))).fetchone()), window.cursor)
            if cut := window.cut(page, upto=upto, beyond=beyond):
                return await self._batch(conn, window, cut)

    async def _page(self, conn: Link, window: Window) -> tuple[list[Change], int]:
        """The next changes of the window in id order, and the id up to which these are all."""
        limits, upto = self._limited(window.after), window.ceiling
        if self._by_id:
            # A stretch of ids at a time: without statistics Postgres would sort all that is left for each page.
            upto = min(upto, window.after + max(self._span, self.limits.changes + self.limits.changes // 4))
            snapshots = {"from_snapshot": str(window.reached), "to_snapshot": str(window.goal)}
            page = await self._changes(conn, "window_by_id", {**limits, "upto": upto, **snapshots})
        else:
            self._by_id = True  # for the pages that follow: each begins where the last one ended
            page = await self._changes(conn, "window_by_xid", {**limits, "upto": upto, **_runs(window.runs())})
        page, end = self._upto(page, upto)
        self._span = 0 if end < upto else min(2 * (upto - window.after), _LONGEST_SPAN)
        return page, end

    def _upto(self, page: list[Change], upto: int) -> tuple[list[Change], int]:
        """The page, and the id up to which it has all: it may be full."""
        full = len(page) >= self.limits.changes or sum(c.size for c in page if c.row is not None) >= self.limits.bytes
        return page, page[-1].id if full else upto

    async def _beyond(self, conn: Link, window: Window, page: Sequence[Change], upto: int) -> dict[int, int]:
        bounds = {"upto": upto, "ceiling": window.ceiling, **_runs(window.unknown(page))}
        return dict(await (await conn.execute(query("window_beyond"), bounds, binary=True)).fetchall())

    async def _batch(self, conn: Link, window: Window, cut: Cut) -> Batch:
        changes = cut.changes
        if cut.rest:
            begun = {"xids": _array(cut.rest), "above": _array(cut.rest.values()), "upto": cut.upto}
            begun["row_bytes"] = self.limits.row_bytes
            changes = (*await self._changes(conn, "window_rest", begun), *changes)
        if not self._flushed and any(change.unflushed for change in changes):
            # Promise I2: a commit with synchronous_commit = off is visible before it is durable. A crash would
            # take it back and give its xid away again.
            await conn.execute(query("flush"))
            self._flushed = True
        await self._learn_shapes(conn, {c.shape for c in changes if c.shape is not None} - self._shapes.keys())
        cursor = window.move(changes, self._system, to_goal=cut.ended and (self._flushed or not changes))
        if cut.ended:
            self._window = None
            self._ended = _Ended(cursor, window.ceiling, durable=self._flushed or bool(changes))
        self._proven = cursor
        headers, left_out = await self._headers(conn, changes) if self.traced else ((), 0)
        read_us = self._read_us + int((time.monotonic() - self._opened) * 1e6)
        more = not cut.ended
        return Batch(
            changes, cursor, self._shapes, int(cut.torn), more, read_us, headers=headers, headers_left_out=left_out
        )

    async def _headers(self, conn: Link, changes: Sequence[Change]) -> tuple[tuple[str, ...], int]:
        """The first of the changes' headers, and how many there are beyond them."""
        asked = {"limit": _HEADERS, "bytes": _HEADER_BYTES, **_runs(_stretches(change.id for change in changes))}
        rows = await (await conn.execute(query("batch_headers"), asked)).fetchall() if changes else []
        return tuple(text for text, _ in rows), rows[0][1] - len(rows) if rows else 0

    async def _learn_shapes(self, conn: Link, unknown: Collection[int]) -> None:
        if unknown:
            rows = await (await conn.execute(query("shapes"), {"ids": sorted(unknown)})).fetchall()
            self._shapes.update((shape, tuple(columns)) for shape, columns in rows)

    async def _changes(self, conn: Link, name: str, parameters: Mapping[str, Any]) -> list[Change]:
        results = await conn.execute(query(name), parameters, binary=True)
        return list(map(_CHANGE, await results.fetchall()))

    async def _note_floor(self, conn: Link, every: int = _FLOOR_EVERY) -> None:
        if self._floors and self._newest - self._floors[-1][1] < every:
            return
        results = await conn.execute(query("floor"))
        results.nextset()
        floor = _first(await results.fetchone())
        results.nextset()
        self._floors.append((_first(await results.fetchone()), floor))
        if len(self._floors) > _FLOORS:
            del self._floors[1::2]

    def _floor(self, goal: Snapshot) -> int:
        """Whoever `goal` does not see began after such a floor was noted, so draws its ids above it."""
        return max((floor for xid, floor in self._floors if xid < goal.xmin), default=0)

    @property
    def _system(self) -> str:
        return self.identity.system if self.identity else ""

    def _forget(self) -> None:
        """The connection is gone, and with it what was learnt through it."""
        self._window = self._proven = self._looked = None
        if self._ended and not self._ended.durable:
            # The server may have crashed: what an empty window led to is not what it was (see Window.move).
            self._revoked = self._ended.cursor
        self._ended = None
        self._floors.clear()


def _not_pruned(up_to_id: int, cursor: Cursor) -> None:
    """Every change that a reader at `cursor` wants has an id above its floor."""
    if cursor.floor_id < up_to_id:
        raise SourceForeign(
            "the outbox no longer holds the changes after the target's cursor (they were kept for `retention`): "
            "`outboxd rebase` (a dry run first) leads on"
        )


def _reached(cursor: Cursor) -> Snapshot:
    try:
        return Snapshot.parse(cursor.snapshot)
    except ValueError:
        raise SourceUnfit("the target's cursor cannot be read: its snapshot is none") from None


def _runs(runs: Sequence[Run]) -> dict[str, str]:
    """As two arrays: the first and the last of each."""
    return {"first": _array(first for first, _ in runs), "last": _array(last for _, last in runs)}


def _stretches(ids: Iterable[int]) -> list[Run]:
    """Ascending ids as stretches without a gap."""
    found: list[Run] = []
    for one in ids:
        if found and found[-1][1] == one - 1:
            found[-1] = (found[-1][0], one)
        else:
            found.append((one, one))
    return found


def _array(numbers: Iterable[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"


def _first(row: Sequence[Any] | None) -> int:
    return int(row[0]) if row else 0
