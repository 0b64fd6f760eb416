"""One window of changes: read page by page in id order, cut along transactions.

Knows which transactions of a page may be sent and the cursor they lead to. Knows nothing of connections: pages
are handed in. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from daemon.plan import Change
from daemon.snapshot import Run, Snapshot, between, cut
from outbox import Cursor, Mark, Span

_MODULO = 10**15
_LAST = 16


@dataclass(slots=True)
class _Begun:
    """What went by of a transaction that is not sent yet: the id of its first change, rows and bytes."""

    first: int
    rows: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
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
class Window:
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

    def cut(self, page: Sequence[Change], *, upto: int, beyond: Mapping[int, int]) -> Cut | None:
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
        return Cut(changes, rest, before, begun_here, ended)

    def _whole(self, page: Sequence[Change], upto: int) -> Cut | None:
        """The cut, when all transactions of the page begin and end there and fit: the quick way, and the usual one."""
        xids = {change.xid for change in page}
        if not page or self._torn or self._begun or not self._last.keys().isdisjoint(xids):
            return None
        size = fetched(page)
        if len(page) > self.max_changes or size - fetched(page[-1:]) >= self.max_bytes:
            return None
        self.after, after = page[-1].id if self._is_full(len(page), size) else upto, self.after
        self._advance(xids, 0)
        return Cut(tuple(page), {}, after, torn=False, ended=self.after >= self.ceiling)

    def move(self, sent: Iterable[Change], system: str, *, to_goal: bool) -> Cursor:
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
        self.cursor = Cursor(snapshot, floor, tuple(sorted(self._torn.items())), system, mark)
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
