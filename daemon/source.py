"""The application's Postgres: windows of changes, read in batches of whole transactions.

Knows what else is asked of the outbox, and which window is being read: it is opened in daemon/opening.py, and read on
in daemon/pages.py. Knows nothing of the target: a cursor comes in, a batch and the cursor it leads to come out, and
reading the same window twice gives the same changes.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

import psycopg

from daemon.batch import Batch, Found, Limits, Pruned, Question
from daemon.breaker import Breaker, Thresholds
from daemon.connection import Link
from daemon.errors import CopyRefused, SourceForeign, SourceUnavailable
from daemon.identity import Identity, reached, require_schema
from daemon.opening import Opening
from daemon.pages import Pages
from daemon.refusal_words import spoken
from daemon.session import Session, array, bounds, failure, query
from daemon.sheaf import Sheaves
from daemon.snapshot import stretches
from outbox import Cursor
from outbox.migrations import migrations

# Once, so that an upgrade on disk does not mix with the version that runs.
NEEDS = migrations("source")[-1].version
_HEADERS, _HEADER_BYTES = 128, 16_384  # different ones of a batch, and of one: more are of no use to tracing


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
        self._opening = Opening(self._session)
        self._pages: Pages | None = None  # of the window being read
        self._shapes: dict[int, tuple[str, ...]] = {}

    @property
    def identity(self) -> Identity | None:
        """What server this is; None before the first connection."""
        return self._session.identity

    @property
    def proven(self) -> bool:
        """Has this connection shown that it leads to the source of the cursor that was read from last?"""
        return self._opening.proven is not None

    async def read(self, cursor: Cursor, *, beyond: bool = True) -> Batch:
        """The next batch after `cursor`. No changes: when this was called there were none.

        Without `beyond` it ends where the window ends that is being read. Raises SourceUnavailable (the connection is
        dropped; read again) or SourceUnfit.
        """
        if self._opening.revoked(cursor):
            raise SourceUnavailable("the connection was lost meanwhile: go on from where the target stands")
        async with self.connected() as conn:
            older = self._pages is not None and self._pages.window.cursor == cursor
            if self._pages is None or not older:
                self._pages = await self._opening.open(conn, cursor, self.limits)
            batch = await self._next(conn, self._pages)
            if older and beyond and not batch.sheaves:
                # What was left of a window from before this call is nothing: look at what has come since.
                self._pages = await self._opening.open(conn, batch.cursor, self.limits)
                batch = await self._next(conn, self._pages)
            return batch

    async def read_as_of(self, cursor: Cursor, question: Question | None) -> tuple[Batch, Found, str]:
        """The first batch of a new window after `cursor`, what `question` asks as of that window's end, and the end.

        Whoever reads on without `beyond` comes to that end: its cursor is the very snapshot, and durable (promise I2:
        the rows may be those of a commit that a crash would take back). Raises what `read` raises, or CopyRefused.
        """
        async with self.connected() as conn:
            found: Found = []
            aim: str | None = None
            try:
                if question is None:
                    pages = await self._opening.open(conn, cursor, self.limits)
                else:
                    pages, found, aim = await self._opening.open_as_of(conn, cursor, self.limits, question)
            except psycopg.Error as exc:
                code = exc.sqlstate or ""
                if conn.closed or question is None or not code.startswith(("OB", "42", "22", "55P03", "57014")):
                    raise
                await conn.rollback()
                # Our own sentences only: Postgres' may carry a value (promise I10).
                said = spoken(code, exc.diag.message_primary, exc.diag.context)
                ours = said if code.startswith("OB") or code == "22000" else None
                why = ours or f"its rows cannot be read ({code}): `outboxd check`"
                refused = CopyRefused(question.table, why, busy=code == "55P03", slow=code == "57014")
            else:
                if question is None or question.aim is None or aim in (None, question.aim):
                    await pages.flush(conn)
                    goal = str(pages.window.goal)
                    return await self._next(conn, pages), found, goal
                refused = CopyRefused(
                    question.table, "it is of something else, or in another order, by now", other=True
                )
        raise refused

    async def touch(self, table: str, keys: Sequence[str]) -> None:
        """Record rows as changed, as they are: durably, so that the target's cursor may pass a copy without them."""
        async with self.connected() as conn:
            for key in keys:
                await conn.several(query("touch"), {"table": table, "key": key, "row_bytes": self.limits.row_bytes})

    async def backlog(self, cursor: Cursor, limit: int = 100_000) -> tuple[int, float]:
        """Changes waiting behind `cursor` (exact up to `limit`), and the age of the oldest in seconds."""
        seen = reached(cursor)
        behind = {"from_xmax": str(seen.xmax), "running": array(seen.running), "limit": limit}
        async with self.connected() as conn:
            row = await (await conn.execute(query("backlog"), behind)).fetchone()
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
                await self._opening.floors.note(
                    conn, every=1
                )  # on a quiet source, cursors to come need a floor for the next
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

    async def remembered(self, relay: str) -> tuple[int, int, str]:
        """The epoch and the batch number at which the relay's target last stood, as far as the source was told, and by
        what address it was reached."""
        async with self.connected() as conn:
            row = await (await conn.execute(query("remembered"), {"relay": relay})).fetchone()
        return (int(row[0]), int(row[1]), str(row[2])) if row else (0, 0, "")

    async def remember(self, relay: str, epoch: int, batch_no: int, cursor: Cursor | None, place: str) -> None:
        """Tell the source where the relay's target stands."""
        snapshot = cursor.snapshot if cursor else None
        told = {"relay": relay, "epoch": epoch, "batch_no": batch_no, "snapshot": snapshot, "place": place}
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
            self._pages = await self._opening.open(conn, cursor, self.limits)

    async def judge(self, cursor: Cursor) -> str | None:
        """Why this source may not be read from `cursor` on, when `outboxd rebase` is the way on; None: it may.

        Raises SourceUnfit when something else is in the way.
        """
        try:
            async with self.connected() as conn:
                await self._opening.open(conn, cursor, self.limits)
        except SourceForeign as exc:
            return str(exc)
        return None

    async def ask(self, name: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """The rows of sql/queries/<name>.sql, none for one that has several statements."""
        async with self.connected() as conn:
            results = await conn.execute(query(name), parameters)
            return await results.fetchall() if results.description else []

    async def records(self, name: str) -> list[dict[str, Any]]:
        """The rows of sql/queries/<name>.sql, each by its columns' names."""
        async with self.connected() as conn:
            results = await conn.execute(query(name))
            names = [column.name for column in results.description or ()]
            return [dict(zip(names, row, strict=True)) for row in await results.fetchall()]

    async def close(self) -> None:
        """Drop the connection; the next call opens another."""
        await self._session.drop()

    # -- one batch -----------------------------------------------------------------------------------------

    async def _next(self, conn: Link, pages: Pages) -> Batch:
        part = await pages.next(conn, self.limits)
        await self._learn_shapes(
            conn, {sheaf.shape for sheaf in part.sheaves if sheaf.shape is not None} - self._shapes.keys()
        )
        self._opening.led_to(pages, part)
        self._pages = pages if part.more else None
        headers, left_out = await self._headers(conn, part.sheaves) if self.traced else ((), 0)
        return Batch(
            part.sheaves, part.cursor, self._shapes, int(part.torn), part.more, pages.now_us,
            headers=headers, headers_left_out=left_out,
        )  # fmt: skip

    async def _headers(self, conn: Link, sheaves: Sheaves) -> tuple[tuple[str, ...], int]:
        """The first of the changes' headers, and how many there are beyond them."""
        asked = {
            "limit": _HEADERS,
            "bytes": _HEADER_BYTES,
            **bounds(stretches(sorted(chain.from_iterable(sheaf.ids for sheaf in sheaves)))),
        }
        rows = await (await conn.execute(query("batch_headers"), asked)).fetchall() if sheaves else []
        return tuple(text for text, _ in rows), rows[0][1] - len(rows) if rows else 0

    async def _learn_shapes(self, conn: Link, unknown: Collection[int]) -> None:
        if unknown:
            rows = await (await conn.execute(query("shapes"), {"ids": sorted(unknown)})).fetchall()
            self._shapes.update((shape, tuple(columns)) for shape, columns in rows)

    def _forget(self) -> None:
        """The connection is gone, and with it what was learnt through it."""
        self._pages = None
        self._opening.forget()
