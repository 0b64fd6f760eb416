"""Windows and plans as they were before sheaves: change by change. What sheaves are compared with.

Knows a page as a list of changes. Slow, plain, and not to be improved: it is the measure (docs/decisions/0025).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from daemon.batch import Limits
from daemon.connection import Link
from daemon.errors import CaptureLost
from daemon.session import array, bounds, query
from daemon.sheaf import Change
from daemon.snapshot import Run, Snapshot, between, cut
from outbox import Cursor, Mark, Span

_MODULO = 10**15
_LAST = 16
_LONGEST_SPAN = 500_000

BY_ID = """
-- The next changes of a window in a stretch of ids: each page begins where the last one ended.
select xid, id, table_name, op, shape, key, case when octet_length(row) <= %(row_bytes)s then row end, coalesce(octet_length(row), 0), unflushed, created_at
  from (select c.*, sum(case when octet_length(c.row) <= %(row_bytes)s then octet_length(c.row) end) over (order by c.id rows between unbounded preceding and 1 preceding) as before
          from (select * from outbox.change c
                 where c.id > %(after)s and c.id <= %(upto)s
                   and not pg_visible_in_snapshot(c.xid, %(from_snapshot)s::pg_snapshot)
                   and pg_visible_in_snapshot(c.xid, %(to_snapshot)s::pg_snapshot)
                 order by c.id
                 limit %(limit)s) c) c
 where coalesce(c.before, 0) < %(bytes)s
 order by id
"""

BY_XID = """
-- The first changes of a window, found by transaction: one that has been open for hours and holds the floor
-- back costs nothing here. The runs name exactly the transactions of the window (daemon/snapshot.py).
select xid, id, table_name, op, shape, key, case when octet_length(row) <= %(row_bytes)s then row end, coalesce(octet_length(row), 0), unflushed, created_at
  from (select c.*, sum(case when octet_length(c.row) <= %(row_bytes)s then octet_length(c.row) end) over (order by c.id rows between unbounded preceding and 1 preceding) as before
          from (select c.*
                  from unnest(%(first)s::xid8[], %(last)s::xid8[]) run(first, last)
                  join outbox.change c on c.xid >= run.first and c.xid <= run.last
                 where c.id > %(after)s and c.id <= %(upto)s
                 order by c.id
                 limit %(limit)s) c) c
 where coalesce(c.before, 0) < %(bytes)s
 order by id
"""

REST = """
-- What transactions that began on earlier pages left there, without what of them was sent before.
select xid, id, table_name, op, shape, key, case when octet_length(row) <= %(row_bytes)s then row end, coalesce(octet_length(row), 0), unflushed, created_at
  from unnest(%(xids)s::xid8[], %(above)s::int8[]) begun(of_xid, above)
  join outbox.change on xid = of_xid and id > above and id <= %(upto)s
 order by id
"""


@dataclass(slots=True)
class _Begun:
    """What went by of a transaction that is not sent yet: the id of its first change, rows and bytes."""

    first: int
    rows: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class RowCut:
    """What may be sent now.

    `changes` are of the page; the transactions in `rest` began on earlier pages and belong here too, with their
    changes above the id given and up to `upto`. `torn`: a transaction is only begun here, because it is larger than
    a batch by itself. `ended`: this is the last of the window.
    """

    changes: tuple[Change, ...]
    rest: Mapping[int, int]
    upto: int
    torn: bool
    ended: bool


@dataclass(slots=True)
class RowWindow:
    """The changes between two snapshots: fixed ends, and how far the pages have come.

    `cursor` is where the target stands once all cuts so far are applied. `goal_floor` is an id below which no
    transaction that `goal` does not see can write, `ceiling` one above which `goal` sees nothing. Every change up
    to id `after` was on a page. `timeline` and `lsn`: see Mark.
    """

    cursor: Cursor
    goal: Snapshot
    goal_floor: int
    ceiling: int
    max_changes: int
    max_bytes: int
    timeline: int = 0
    lsn: str = ""
    reached: Snapshot = field(init=False)
    after: int = field(init=False)
    _torn: dict[int, int] = field(init=False)
    _begun: dict[int, _Begun] = field(init=False, default_factory=dict)
    _last: dict[int, int] = field(init=False, default_factory=dict)  # of transactions that go on: their last id

    def __post_init__(self) -> None:
        self.reached = Snapshot.parse(self.cursor.snapshot)
        self.after = self.cursor.floor_id
        self._torn = dict(self.cursor.torn)

    def runs(self) -> list[Run]:
        """The window's transactions."""
        return between(self.reached, self.goal)

    def unknown(self, page: Sequence[Change]) -> list[Run]:
        """Transactions that may have changes beyond this page, and of which it is not known yet."""
        return between(self.reached, self.goal, self._last, 1 + max((change.xid for change in page), default=0))

    def cut(self, page: Sequence[Change], *, upto: int, beyond: Mapping[int, int]) -> "RowCut | None":
        """Take what ends on the page, as far as a batch may hold it; None when the next page is needed first.

        The page holds the window's changes from `after` to id `upto`. `beyond`: of `unknown`, those with changes
        beyond the page, and the id of their last. At most a batch's worth of whole transactions is taken, plus
        the one that fills it: many that ran side by side may end on one page.
        """
        before = self.after
        self._last.update(beyond)
        if whole := self._whole(page, upto):
            return whole
        last = {change.xid: change.id for change in page} | self._last
        taken, torn, rows, size = set[int](), 0, 0, 0
        for change in page:
            self.after = change.id
            if change.id <= self._torn.get(change.xid, 0):
                continue  # on the target already
            begun = self._note(change)
            if change.id == last[change.xid]:
                taken.add(change.xid)
            elif self._is_full(begun.rows, begun.size):
                torn = change.xid
            else:
                continue
            rows, size = rows + begun.rows, size + begun.size
            if torn or self._is_full(rows, size):
                break
        else:
            self.after = upto
        ended = self.after >= self.ceiling
        self._last.update((xid, id_) for xid, id_ in last.items() if id_ > self.after)
        if not (taken or torn or ended):
            return None
        wanted = taken | {torn} if torn else taken
        changes = tuple(c for c in page if c.id <= self.after and c.xid in wanted and c.id > self._torn.get(c.xid, 0))
        rest = {xid: self._begun[xid].first - 1 for xid in wanted if self._begun[xid].first <= before}
        begun_here = torn != 0 and torn not in self._torn
        self._advance(taken, torn)
        return RowCut(changes, rest, before, begun_here, ended)

    def _whole(self, page: Sequence[Change], upto: int) -> "RowCut | None":
        """The cut, when all transactions of the page begin and end there and fit: the quick way, and the usual one."""
        xids = {change.xid for change in page}
        if not page or self._torn or self._begun or not self._last.keys().isdisjoint(xids):
            return None
        size = fetched(page)
        if len(page) > self.max_changes or size - fetched(page[-1:]) >= self.max_bytes:
            return None
        self.after, after = page[-1].id if self._is_full(len(page), size) else upto, self.after
        self._advance(xids, 0)
        return RowCut(tuple(page), {}, after, torn=False, ended=self.after >= self.ceiling)

    def move(self, sent: Iterable[Change], home: Cursor, *, to_goal: bool) -> Cursor:
        """The cursor after the changes of a cut, which must be durable; with `to_goal`, so must the goal be.

        Promise I1: the cursor claims no transaction id, and its floor no id, that a crash of the source could
        give away again. What a transaction wrote that was flushed lies beyond those; the goal itself may not.
        """
        sent, floors = list(sent), [self.goal_floor]
        if to_goal:
            self.reached, self._torn = self.goal, {}
        else:
            floors += [max((change.id for change in sent), default=0)]
            floors += [begun.first - 1 for begun in self._begun.values()]
        floor = max(self.cursor.floor_id, min(floors))
        ended = self.after >= self.ceiling and not self._torn
        snapshot, mark = str(self.reached), self._mark()
        if sent:
            mark = sent_too(mark, sent)
        if ended and mark.spans and mark.spans[-1].count:
            mark = replace(mark, spans=(*mark.spans[-2:], Span(snapshot, 0, 0, 0)))
        torn = tuple(sorted(self._torn.items()))
        self.cursor = replace(home, snapshot=snapshot, floor_id=floor, torn=torn, mark=mark)
        return self.cursor

    def _mark(self) -> Mark:
        """The mark so far. It begins where nothing is half sent: what of that went before is not known."""
        before = self.cursor.mark or Mark(0, "")
        spans = before.spans or (() if self.cursor.torn else (Span(self.cursor.snapshot, 0, 0, 0),))
        return Mark(self.timeline, self.lsn, spans, before.last)

    def _note(self, change: Change) -> _Begun:
        begun = self._begun.setdefault(change.xid, _Begun(change.id))
        begun.rows += 1
        begun.size += fetched((change,))
        return begun

    def _is_full(self, rows: int, size: int) -> bool:
        return rows >= self.max_changes or size >= self.max_bytes

    def _advance(self, taken: set[int], torn: int) -> None:
        for known in (self._last, self._torn, self._begun):
            for xid in known.keys() & taken:
                del known[xid]
        if torn:
            self._torn[torn] = self.after
            del self._begun[torn]
        self.reached = cut(self.reached, self.goal, taken, self._last)


def fetched(changes: Iterable[Change]) -> int:
    """Bytes of these changes' rows; one that is too large is not fetched."""
    return sum(change.size for change in changes if change.row is not None)


def sent_too(mark: Mark, sent: Sequence[Change]) -> Mark:
    """The mark after these changes, too."""
    spans = mark.spans
    if spans:
        now = spans[-1]
        lowest = min(change.id for change in sent)
        times = (now.sum + sum(change.created_us for change in sent)) % _MODULO
        spans = (*spans[:-1], Span(now.since, min(now.first_id or lowest, lowest), now.count + len(sent), times))
    newest = {xid: (xid, id_, at) for xid, id_, at in mark.last}
    ends = {change.xid: change for change in sent}
    for xid in (
        *(newest.keys() & ends.keys()),
        *sorted(ends)[-_LAST:],
        max(sent, key=lambda change: change.id).xid,
    ):
        newest[xid] = (xid, ends[xid].id, ends[xid].created_us)
    highest = max(newest.values(), key=lambda entry: entry[1])
    last = {highest, *sorted(newest.values())[1 - _LAST :]}
    return replace(mark, spans=spans, last=tuple(sorted(last)))


@dataclass(frozen=True, slots=True)
class RowPart:
    """Changes of whole transactions, and the cursor they lead to. `torn`: the last is only begun here. `durable`: a
    crash of the source cannot take the cursor back."""

    changes: tuple[Change, ...]
    cursor: Cursor
    torn: bool
    more: bool
    durable: bool


@dataclass(slots=True)
class RowPages:
    """One window being read.

    `flushed`: its goal is durable. `opened_us` was the source's clock at `opened`. `by_id`: how the first page is
    found, unless it came with the window (`looked`).
    """

    window: RowWindow
    home: Cursor
    flushed: bool
    by_id: bool
    _span: int = field(init=False, default=0)

    async def flush(self, conn: Link) -> None:
        """Wait until the goal is durable.

        Promise I2: a commit with synchronous_commit = off is visible before it is durable. A crash would take it back
        and give its xid away again.
        """
        if not self.flushed:
            await conn.execute(query("flush"))
            self.flushed = True

    async def next(self, conn: Link, limits: Limits) -> RowPart:
        """Read pages until whole transactions can be taken, or the window ends."""
        window = self.window
        while True:
            page, upto = await self._page(conn, limits) if window.goal != window.reached else ([], window.ceiling)
            beyond = await self._beyond(conn, page, upto) if page and upto < window.ceiling else {}
            if taken := window.cut(page, upto=upto, beyond=beyond):
                return await self._part(conn, limits, taken)

    async def _page(self, conn: Link, limits: Limits) -> tuple[list[Change], int]:
        """The next changes of the window in id order, and the id up to which these are all."""
        window = self.window
        asked = {"after": window.after, "limit": limits.changes, "bytes": limits.bytes, "row_bytes": limits.row_bytes}
        upto = window.ceiling
        if self.by_id:
            # A stretch of ids at a time: without statistics Postgres would sort all that is left for each page.
            upto = min(upto, window.after + max(self._span, limits.changes + limits.changes // 4))
            snapshots = {"from_snapshot": str(window.reached), "to_snapshot": str(window.goal)}
            page = await self._changes(conn, BY_ID, {**asked, "upto": upto, **snapshots})
        else:
            self.by_id = True  # for the pages that follow: each begins where the last one ended
            page = await self._changes(conn, BY_XID, {**asked, "upto": upto, **bounds(window.runs())})
        end = _end(page, upto, limits)
        self._span = 0 if end < upto else min(2 * (upto - window.after), _LONGEST_SPAN)
        return page, end

    async def _beyond(self, conn: Link, page: Sequence[Change], upto: int) -> dict[int, int]:
        asked = {"upto": upto, "ceiling": self.window.ceiling, **bounds(self.window.unknown(page))}
        return dict(await (await conn.execute(query("window_beyond"), asked, binary=True)).fetchall())

    async def _part(self, conn: Link, limits: Limits, cut: RowCut) -> RowPart:
        changes = cut.changes
        if cut.rest:
            begun = {"xids": array(cut.rest), "above": array(cut.rest.values()), "upto": cut.upto}
            begun["row_bytes"] = limits.row_bytes
            changes = (*await self._changes(conn, REST, begun), *changes)
        if any(change.unflushed for change in changes):
            await self.flush(conn)
        durable = self.flushed or bool(changes)
        cursor = self.window.move(changes, self.home, to_goal=cut.ended and (self.flushed or not changes))
        return RowPart(changes, cursor, cut.torn, not cut.ended, durable)

    async def _changes(self, conn: Link, statement: str, parameters: Mapping[str, Any]) -> list[Change]:
        results = await conn.execute(statement.encode(), parameters, binary=True)
        return list(map(Change._make, await results.fetchall()))


def _end(page: Sequence[Change], upto: int, limits: Limits) -> int:
    """The id up to which the page has all: it may be full."""
    return page[-1].id if len(page) >= limits.changes or fetched(page) >= limits.bytes else upto


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows of one table for one statement: rows to upsert, keys to delete, keys a truncate must keep, keys that are
    held from here on (`hold`) or no longer (`release`).

    `rank` is the table's: parents have a lower one than their children. `keys` are the rows' keys, one by one.
    """

    table: str
    op: str
    rank: int
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    keys: tuple[str, ...]
    anew: bool = False


def row_plan(
    changes: Sequence[Change], order: Mapping[str, int], shapes: Mapping[int, tuple[str, ...]]
) -> tuple[tuple[RowGroup, ...], Counter[tuple[str, str]], int]:
    """Groups, counts by table and op, superseded."""
    left: dict[str, dict[str, Change]] = {}
    truncated: set[str] = set()
    anew: set[tuple[str, str]] = set()  # rows that went before they were written
    shapes = dict(shapes)
    table, by_key = "", dict[str, Change]()
    for change in changes:
        if change.table != table:
            table = change.table
            by_key = left.setdefault(table, {})
        if change.op == "upsert":
            before = by_key.get(change.key)
            if before.op == "delete" if before else table in truncated:
                anew.add((table, change.key))
            by_key[change.key] = (
                change if before is None or before.shape == change.shape else _over(before, change, shapes)
            )
        elif change.op == "delete":
            by_key[change.key] = change
        elif change.op == "truncate":
            by_key.clear()
            truncated.add(table)
        else:
            raise CaptureLost(table)

    groups = tuple(_groups(left, truncated, anew, order, shapes))
    counts = Counter((change.table, change.op) for change in changes)
    return groups, counts, len(changes) - sum(map(len, left.values())) - len(truncated)


def _over(before: Change, change: Change, shapes: dict[int, tuple[str, ...]]) -> Change:
    """The row as it now is; columns that only an earlier row of the batch had keep that row's values.

    Such a row is of a shape of its own, which `shapes` is told of under a number below zero.
    """
    if before.shape is None or before.row is None or change.shape is None or change.row is None:
        return change  # one of them is no upsert
    columns = shapes[change.shape]
    more = [name for name in shapes[before.shape] if name not in columns]
    if not more:
        return change
    shape = -1 - len(shapes)
    shapes[shape] = (*columns, *more)
    # Spliced, not decoded: of a name that occurs twice json_to_recordset takes the second.
    return change._replace(shape=shape, row=before.row.rstrip()[:-1] + "," + change.row.lstrip()[1:])


def _groups(
    left: Mapping[str, Mapping[str, Change]],
    truncated: Collection[str],
    anew: Collection[tuple[str, str]],
    order: Mapping[str, int],
    shapes: Mapping[int, tuple[str, ...]],
) -> Iterator[RowGroup]:
    ranked = sorted((order.get(table, len(order)), table) for table in left)
    for rank, table in ranked:
        rows: dict[
            tuple[tuple[str, ...], bool], tuple[list[str], list[str]]
        ] = {}  # after an ALTER TABLE there may be both kinds
        for change in left[table].values():
            if change.row is not None and change.shape is not None:  # an upsert
                texts, keys = rows.setdefault((shapes[change.shape], (table, change.key) in anew), ([], []))
                texts.append(change.row)
                keys.append(change.key)
        for (columns, new), (texts, keys) in rows.items():
            yield RowGroup(table, "upsert", rank, columns, tuple(texts), tuple(keys), new)
    for rank, table in reversed(ranked):
        if table in truncated:
            keep = tuple(change.key for change in left[table].values() if change.op == "upsert")
            yield RowGroup(table, "truncate", rank, (), keep, keep)
        elif gone := tuple(change.key for change in left[table].values() if change.op == "delete"):
            yield RowGroup(table, "delete", rank, (), gone, gone)
