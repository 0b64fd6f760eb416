"""A window's changes, read from the outbox page by page and taken in parts of whole transactions.

Knows the queries for changes, and which way to the next page is the cheap one. Knows nothing of how a window is
opened, nor whether it is this source's: daemon/opening.py. What of a page may be taken, daemon/window.py says.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from daemon.batch import Limits
from daemon.connection import Link
from daemon.identity import require_kept
from daemon.session import array, bounds, first, query
from daemon.sheaf import Sheaf, Sheaves, count, merge
from daemon.window import Cut, Window, fetched
from outbox import Cursor

_LONGEST_SPAN = 500_000  # ids looked at for one page, where the window has few


@dataclass(frozen=True, slots=True)
class Part:
    """Changes of whole transactions, and the cursor they lead to. `torn`: the last is only begun here. `durable`: a
    crash of the source cannot take the cursor back."""

    sheaves: Sheaves
    cursor: Cursor
    torn: bool
    more: bool
    durable: bool


@dataclass(slots=True)
class Pages:
    """One window being read.

    `home`: where cursors of this source begin. `flushed`: its goal is durable. `opened_us` was the source's clock at `opened`. `by_id`: how the first page is
    found, unless it came with the window (`looked`).
    """

    window: Window
    home: Cursor
    flushed: bool
    opened_us: int
    opened: float
    by_id: bool
    looked: Sheaves | None
    _span: int = field(init=False, default=0)
    _small: bool = field(init=False, default=True)  # are rows such that they need not be added up on the source?

    @property
    def now_us(self) -> int:
        """The source's clock."""
        return self.opened_us + int((time.monotonic() - self.opened) * 1e6)

    async def flush(self, conn: Link) -> None:
        """Wait until the goal is durable.

        Promise I2: a commit with synchronous_commit = off is visible before it is durable. A crash would take it back
        and give its xid away again.
        """
        if not self.flushed:
            await conn.execute(query("flush"))
            self.flushed = True

    async def next(self, conn: Link, limits: Limits) -> Part:
        """Read pages until whole transactions can be taken, or the window ends."""
        window = self.window
        while True:
            looked, self.looked = self.looked, None
            if looked is not None:
                page, upto = looked, _end(looked, window.ceiling, limits)
            else:
                page, upto = await self._page(conn, limits) if window.goal != window.reached else ((), window.ceiling)
            beyond = await self._beyond(conn, page, upto) if page and upto < window.ceiling else {}
            if looked is None or upto < window.ceiling:
                # Promise I1: one that no longer leads may prune by a cursor that the target, restored, has taken back.
                require_kept(await pruned(conn), window.cursor)
            if cut := window.cut(page, upto=upto, beyond=beyond):
                return await self._part(conn, limits, cut)

    async def _page(self, conn: Link, limits: Limits) -> tuple[Sheaves, int]:
        """The next changes of the window in id order, and the id up to which these are all."""
        window = self.window
        asked, upto = limited(limits, window.after), window.ceiling
        if self.by_id:
            # A stretch of ids at a time: without statistics Postgres would sort all that is left for each page.
            upto = min(upto, window.after + max(self._span, limits.changes + limits.changes // 4))
            snapshots = {"from_snapshot": str(window.reached), "to_snapshot": str(window.goal)}
            page = await self._stretch(conn, limits, {**asked, "upto": upto, **snapshots})
        else:
            self.by_id = True  # for the pages that follow: each begins where the last one ended
            page = await self._sheaves(conn, "window_by_xid", {**asked, "upto": upto, **bounds(window.runs())})
        end = _end(page, upto, limits)
        self._span = 0 if end < upto else min(2 * (upto - window.after), _LONGEST_SPAN)
        return page, end

    async def _stretch(self, conn: Link, limits: Limits, asked: Mapping[str, Any]) -> Sheaves:
        """The changes of a stretch of ids: without a running sum on the source, as long as rows are small.

        The bound on bytes holds either way: as many rows as may come, none larger than its share, are not too many. One
        that is larger was left out, and then the page is read again; so are the next, until one has none of these.
        """
        share = min(limits.row_bytes, limits.bytes // limits.changes)
        if self._small:
            page = await self._sheaves(conn, "window_by_id_small", {**asked, "row_bytes": share})
            self._small = _small(page, share)
            if self._small:
                return page
        page = await self._sheaves(conn, "window_by_id", asked)
        self._small = _small(page, share)
        return page

    async def _beyond(self, conn: Link, page: Sheaves, upto: int) -> dict[int, int]:
        asked = {"upto": upto, "ceiling": self.window.ceiling, **bounds(self.window.unknown(page))}
        return dict(await (await conn.execute(query("window_beyond"), asked, binary=True)).fetchall())

    async def _part(self, conn: Link, limits: Limits, cut: Cut) -> Part:
        sheaves = cut.sheaves
        if cut.rest:
            begun = {"xids": array(cut.rest), "above": array(cut.rest.values()), "upto": cut.upto}
            begun["row_bytes"] = limits.row_bytes
            sheaves = merge((*await self._sheaves(conn, "window_rest", begun), *sheaves))
        if any(sheaf.unflushed for sheaf in sheaves):
            await self.flush(conn)
        durable = self.flushed or bool(sheaves)
        cursor = self.window.move(sheaves, self.home, to_goal=cut.ended and (self.flushed or not sheaves))
        return Part(sheaves, cursor, cut.torn, not cut.ended, durable)

    async def _sheaves(self, conn: Link, name: str, parameters: Mapping[str, Any]) -> Sheaves:
        """They come in pieces, each of a stretch of ids: what the source joins at once stays small."""
        return merge(Sheaf.of(piece) for piece in await conn.pieces(query(name), parameters))


def limited(limits: Limits, after: int) -> dict[str, int]:
    """What a query for a page is told: behind which id, and how much may come."""
    return {"after": after, "limit": limits.changes, "bytes": limits.bytes, "row_bytes": limits.row_bytes}


async def pruned(conn: Link) -> int:
    """The id up to which the outbox has let go of its changes."""
    return first(await (await conn.execute(query("pruned"))).fetchone())


def _small(page: Sheaves, share: int) -> bool:
    """Is no row larger than its share? (One that was not fetched has its size, too.)"""
    return all(max(sheaf.sizes) <= share for sheaf in page)


def _end(page: Sheaves, upto: int, limits: Limits) -> int:
    """The id up to which the page has all: it may be full."""
    full = count(page) >= limits.changes or fetched(page) >= limits.bytes
    return max(sheaf.ids[-1] for sheaf in page) if full else upto
