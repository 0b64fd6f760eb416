"""A window opened behind a cursor: from where the target stands to what has committed by now, and the proof that this
is the cursor's source.

Knows what one connection has shown, so that its own cursors need no second proof, and a quiet source costs one query.
Knows nothing of how a window is read on: daemon/pages.py. What a proof is, daemon/identity.py says.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import structlog

from daemon.batch import Found, Limits, Question
from daemon.connection import Link
from daemon.errors import STANDBY, SourceUnfit
from daemon.identity import Held, Named, reached, require_fit, require_held, require_kept, require_passed, to_add_up
from daemon.pages import Pages, Part, pruned
from daemon.session import Session, array, bounds, first, query
from daemon.sheaf import Sheaves, as_change, bind
from daemon.snapshot import Snapshot, between
from daemon.window import Window
from outbox import Cursor, Mark

log = structlog.get_logger()

_FLOORS = 64
_FLOOR_EVERY = 10_000  # ids: each floor spends a transaction id
_DEEP = 50_000  # ids drawn since the last look: a window that is larger is read in stretches
_LAST_XID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class _Ended:
    """The last window that was read to its end. `durable`: a crash of the source cannot take the cursor back."""

    cursor: Cursor
    ceiling: int
    durable: bool


@dataclass(frozen=True, slots=True)
class _Seen:
    """What window_open.sql and window_look.sql answer, in their order."""

    snapshot: str
    in_recovery: bool
    started_us: int
    ceiling: int
    up_to_id: int
    installation: str | None
    flushed: bool
    opened_us: int
    lsn: str


class Floors:
    """Ids below which no transaction writes that began after they were noted: (xid, id), see floor.sql."""

    def __init__(self) -> None:
        self.newest = 0  # the highest id drawn, as of the last look
        self._floors: list[tuple[int, int]] = []

    async def note(self, conn: Link, every: int | None = None) -> None:
        """Note one, unless the last was noted fewer ids ago than `every`."""
        if self._floors and self.newest - self._floors[-1][1] < (_FLOOR_EVERY if every is None else every):
            return
        results = await conn.execute(query("floor"))
        results.nextset()
        floor = first(await results.fetchone())
        results.nextset()
        self._floors.append((first(await results.fetchone()), floor))
        if len(self._floors) > _FLOORS:
            del self._floors[1::2]

    def below(self, goal: Snapshot) -> int:
        """Whoever `goal` does not see began after such a floor was noted, so draws its ids above it."""
        return max((floor for xid, floor in self._floors if xid < goal.xmin), default=0)

    def clear(self) -> None:
        self._floors.clear()


class Opening:
    """What one connection has shown. `proven`: the cursor it led to, so what that speaks of is there."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.floors = Floors()
        self.proven: Cursor | None = None
        self._ended: _Ended | None = None
        self._revoked: Cursor | None = None
        self._promoted = 0

    async def open(self, conn: Link, cursor: Cursor, limits: Limits) -> Pages:
        """The window after `cursor`. Raises SourceUnfit when there is none."""
        known = await self._begin(conn, cursor)
        answer = None
        if known and cursor == self.proven:  # up to date: the window is small
            answer = await conn.planned(query("window_look"), _after(cursor, limits, known + _DEEP))
        if answer is not None:
            seen, columns = _Seen(*answer[:9]), answer[9:]
            if seen.in_recovery or seen.snapshot is not None:
                page = bind(map(as_change, zip(*columns, strict=True))) if columns[0] else ()
                return await self._opened(conn, cursor, limits, seen, page if seen.ceiling <= known + _DEEP else None)
        seen = _seen(await conn.several(query("window_open")))
        return await self._opened(conn, cursor, limits, seen)

    async def open_as_of(
        self, conn: Link, cursor: Cursor, limits: Limits, question: Question
    ) -> tuple[Pages, Found, str | None]:
        """The window after `cursor`, what `question` asks as of its goal, and the aim of its table as of then."""
        await self._begin(conn, cursor)
        asked = {
            "table": question.table, "what": question.what, "keys": list(question.keys) if question.keys is not None else None,
            "most": question.rows, "max_bytes": question.bytes, "row_bytes": limits.row_bytes,
        }  # fmt: skip
        *sets, aim, rows = await conn.several(query("window_copy"), asked)
        return await self._opened(conn, cursor, limits, _seen(sets)), rows, aim[0][0]

    def led_to(self, pages: Pages, part: Part) -> None:
        """This was read, through this connection."""
        self.proven = part.cursor
        if not part.more:
            self._ended = _Ended(part.cursor, pages.window.ceiling, part.durable)

    def revoked(self, cursor: Cursor) -> bool:
        """Was the connection lost that led to this cursor, and perhaps the cursor with it? Said once."""
        if cursor != self._revoked:
            return False
        self._revoked = None
        return True

    def forget(self) -> None:
        """The connection is gone, and with it what was learnt through it."""
        self.proven = None
        if self._ended and not self._ended.durable:
            # The server may have crashed: what an empty window led to is not what it was (see Window.move).
            self._revoked = self._ended.cursor
        self._ended = None
        self.floors.clear()

    async def _begin(self, conn: Link, cursor: Cursor) -> int:
        """What comes before each look. The highest id there was where this cursor came to its window's end, if it did."""
        assert self._session.identity is not None
        require_fit(self._session.identity, cursor)
        await self.floors.note(conn)
        return self._known(cursor)

    def _known(self, cursor: Cursor) -> int:
        return self._ended.ceiling if self._ended and self._ended.cursor == cursor else 0

    async def _opened(
        self, conn: Link, cursor: Cursor, limits: Limits, seen: _Seen, page: Sheaves | None = None
    ) -> Pages:
        opened = time.monotonic()
        if seen.in_recovery:
            raise SourceUnfit(STANDBY)
        self.floors.newest = ceiling = seen.ceiling
        goal = Snapshot.parse(seen.snapshot)
        require_passed(reached(cursor), goal)
        assert self._session.identity is not None
        known, here = self._session.identity, seen.installation or ""
        if cursor != self.proven or (seen.started_us, here) != (known.started_us, known.installation):
            await self._prove(conn, cursor)
        require_kept(seen.up_to_id, cursor)
        timeline = self._session.identity.timeline
        window = Window(
            cursor, goal, self.floors.below(goal), ceiling, limits.changes, limits.bytes, timeline, seen.lsn
        )
        # Two ways to the first page: by the window's transactions, which costs its rows, or up from the floor,
        # which costs the rows between floor and window: many, while a transaction is open for hours.
        upto = self._known(cursor)
        by_id = ceiling - upto > upto - window.after
        return Pages(window, self._session.identity.beginning(), seen.flushed, seen.opened_us, opened, by_id, page)

    async def _prove(self, conn: Link, cursor: Cursor) -> None:
        """This cursor comes from elsewhere: is everything it claims to have been applied still here?"""
        identity = await self._session.identify(conn)
        require_fit(identity, cursor)
        mark = cursor.mark
        if mark is not None and mark.last:
            require_held(mark, identity, await _held(conn, cursor, mark))
            if identity.timeline not in (mark.timeline, self._promoted):
                self._promoted = identity.timeline
                log.warning("source_promoted", timeline_before=mark.timeline, timeline=identity.timeline)
        self.proven = cursor


async def _held(conn: Link, cursor: Cursor, mark: Mark) -> Held:
    count, total = None, 0
    if to_add_up(mark, 0):
        runs = between(Snapshot.parse(mark.spans[0].since), reached(cursor))
        torn = {"torn": array(xid for xid, _ in cursor.torn), "upto": array(upto for _, upto in cursor.torn)}
        count, total = await (await conn.execute(query("mark_sum"), {**bounds(runs), **torn})).fetchone() or (0, 0)
    xids, ids, times = zip(*mark.last, strict=True)
    names = {"xids": array(xids), "ids": array(ids), "times": array(times)}
    rows = await (await conn.execute(query("mark_named"), names)).fetchall()
    # Asked last: what is pruned meanwhile must not seem to be lost.
    up_to_id = await pruned(conn)
    return Held(up_to_id, count if to_add_up(mark, up_to_id) else None, total, [Named(*row) for row in rows])


def _seen(sets: Sequence[Sequence[Any]]) -> _Seen:
    return _Seen(*chain.from_iterable(row for (row,) in sets))


def _after(cursor: Cursor, limits: Limits, deep: int) -> list[bytes]:
    """What to look for: changes of transactions that the cursor does not see, and these are all there are up to now.
    Beyond id `deep` they are too many to be sorted at once."""
    seen = reached(cursor)
    runs = bounds([*((xid, xid) for xid in sorted(seen.running)), (seen.xmax, _LAST_XID)])
    asked = (cursor.floor_id, runs["first"], runs["last"], deep, limits.changes, limits.bytes, limits.row_bytes)
    return [str(one).encode() for one in asked]
