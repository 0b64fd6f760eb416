"""One window of changes: read page by page in id order, cut along transactions.

Knows which transactions of a page may be sent and the cursor they lead to. Knows nothing of connections: pages
are handed in. Pure.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, compress, count
from typing import NamedTuple

from daemon.sheaf import Sheaf, Sheaves, of_others, select
from daemon.sheaf import count as counted
from daemon.snapshot import Run, Snapshot, between, cut
from outbox import Cursor, Mark, Span

_MODULO = 10**15
_LAST = 16


class _Begun(NamedTuple):
    """What went by of a transaction that is not sent yet: the id of its first change, rows and bytes."""

    first: int
    rows: int = 0
    size: int = 0

    def plus(self, more: "_Begun") -> "_Begun":
        """With what came later."""
        return _Begun(self.first, self.rows + more.rows, self.size + more.size)


class _Outline(NamedTuple):
    """Of each change of a sheaf its id, transaction and fetched bytes."""

    ids: Sequence[int]
    xids: Sequence[int]
    sizes: Sequence[int]

    def parted(self, at: int) -> tuple["_Outline", "_Outline"]:
        """So many changes, and the others."""
        return _Outline(*(column[:at] for column in self)), _Outline(*(column[at:] for column in self))


@dataclass(frozen=True, slots=True)
class Cut:
    """What may be sent now.

    `sheaves` are of the page; the transactions in `rest` began on earlier pages and belong here too, with their
    changes above the id given and up to `upto`. `torn`: a transaction is only begun here, because it is larger than
    a batch by itself. `ended`: this is the last of the window.
    """

    sheaves: Sheaves
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

    def unknown(self, page: Sheaves) -> list[Run]:
        """Transactions that may have changes beyond this page, and of which it is not known yet."""
        return between(self.reached, self.goal, self._last, 1 + max((max(sheaf.xids) for sheaf in page), default=0))

    def cut(self, page: Sheaves, *, upto: int, beyond: Mapping[int, int]) -> Cut | None:
        """Take what ends on the page, as far as a batch may hold it; None when the next page is needed first.

        The page holds the window's changes from `after` to id `upto`. `beyond`: of `unknown`, those with changes
        beyond the page, and the id of their last. At most a batch's worth of whole transactions is taken, plus
        the one that fills it: many that ran side by side may end on one page.
        """
        self._last.update(beyond)
        before, (calm, further) = self.after, self._parted(_outlines(page))
        last = _last_ids(further) | self._last
        taken, rows, size = self._pass(calm, last)
        torn = 0
        for id_, xid, length in _one_by_one(further):
            self.after = id_
            if id_ <= self._torn.get(xid, 0):
                continue  # on the target already
            self._begun[xid] = begun = self._begun.get(xid, _Begun(id_)).plus(_Begun(id_, 1, length))
            if id_ == last[xid]:
                taken.add(xid)
            elif self._is_full(begun.rows, begun.size):
                torn = xid
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
        sheaves = self._chosen(page, wanted)
        begun_before = {xid: self._begun[xid].first for xid in wanted & self._begun.keys()}
        rest = {xid: first - 1 for xid, first in begun_before.items() if first <= before}
        begun_here = torn != 0 and torn not in self._torn
        self._advance(taken, torn)
        return Cut(sheaves, rest, before, begun_here, ended)

    def _parted(self, page: Sequence[_Outline]) -> tuple[Sequence[_Outline], Sequence[_Outline]]:
        """The changes of a page up to which nothing can be full, and those from there on: usually a few.

        They and all that is begun are less together than fills a batch, so neither what is taken of them fills one, nor
        is a transaction among them larger than a batch.
        """
        if self._torn:
            return (), page  # of which some are on the target already
        rows = self.max_changes - 1 - sum(begun.rows for begun in self._begun.values())
        size = self.max_bytes - 1 - sum(begun.size for begun in self._begun.values())
        ids = sorted(chain.from_iterable(outline.ids for outline in page))
        rows = max(0, min(rows, len(ids)))
        if sum(sum(outline.sizes) for outline in page) > size:
            sizes = (length for _, _, length in _one_by_one(page))
            rows = min(rows, bisect_right(list(accumulate(sizes)), size))
        if rows == len(ids):
            return page, ()
        if not rows:
            return (), page
        parts = [outline.parted(bisect_right(outline.ids, ids[rows - 1])) for outline in page]
        return [calm for calm, _ in parts if calm.ids], [further for _, further in parts if further.ids]

    def _pass(self, calm: Sequence[_Outline], last: Mapping[int, int]) -> tuple[set[int], int, int]:
        """Take the transactions that end among these changes, of which none can fill a batch: which, their rows and bytes.
        Single changes are looked at only of those that go on (`last` has the last id of each) or began before."""
        if not calm:
            return set(), 0, 0
        self.after = max(outline.ids[-1] for outline in calm)
        xids = set[int]().union(*(outline.xids for outline in calm))
        stay = {xid for xid in xids & last.keys() if last[xid] > self.after}
        begun = xids & self._begun.keys()
        here = _weighed(calm, stay | begun)
        rows = sum(len(outline.ids) for outline in calm) - sum(here[xid].rows for xid in stay)
        size = sum(sum(outline.sizes) for outline in calm) - sum(here[xid].size for xid in stay)
        ends = begun - stay
        rows += sum(self._begun[xid].rows for xid in ends)
        size += sum(self._begun[xid].size for xid in ends)
        self._begun.update((xid, self._begun[xid].plus(more) if xid in begun else more) for xid, more in here.items())
        return xids - stay, rows, size

    def _chosen(self, page: Sheaves, wanted: AbstractSet[int]) -> Sheaves:
        """The page's changes of these transactions as far as it was looked at, without those on the target already. What
        was looked at is wanted, or only begun."""
        upto, sent, stay = self.after, self._torn, self._begun.keys() - wanted
        if sent:
            return select(page, lambda sheaf: [
                id_ <= upto and xid in wanted and id_ > sent.get(xid, 0) for id_, xid in zip(sheaf.ids, sheaf.xids, strict=True)
            ])  # fmt: skip
        if all(sheaf.ids[-1] <= upto for sheaf in page):
            return of_others(page, stay) if stay else page
        return select(page, lambda sheaf: [
            id_ <= upto and xid not in stay for id_, xid in zip(sheaf.ids, sheaf.xids, strict=True)
        ])  # fmt: skip

    def move(self, sent: Sheaves, home: Cursor, *, to_goal: bool) -> Cursor:
        """The cursor after the changes of a cut, which must be durable; with `to_goal`, so must the goal be. `home`: where
        cursors of this source begin.

        Promise I1: the cursor claims no transaction id, and its floor no id, that a crash of the source could
        give away again. What a transaction wrote that was flushed lies beyond those; the goal itself may not.
        """
        floors = [self.goal_floor]
        if to_goal:
            self.reached, self._torn = self.goal, {}
        else:
            floors += [max((sheaf.ids[-1] for sheaf in sent), default=0)]
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

    def _is_full(self, rows: int, size: int) -> bool:
        return rows >= self.max_changes or size >= self.max_bytes

    def _advance(self, taken: AbstractSet[int], torn: int) -> None:
        for known in (self._last, self._torn, self._begun):
            for xid in known.keys() & taken:
                del known[xid]
        if torn:
            self._torn[torn] = self.after
            del self._begun[torn]
        self.reached = cut(self.reached, self.goal, taken, self._last)


def fetched(page: Iterable[Sheaf]) -> int:
    """Bytes of these changes' rows; one that is too large is not fetched."""
    return sum(sheaf.fetched for sheaf in page)


def _outlines(page: Sheaves) -> list[_Outline]:
    return [
        _Outline(sheaf.ids, sheaf.xids, array("q", bytes(8 * len(sheaf))) if sheaf.rows is None else sheaf.sizes)
        for sheaf in page
    ]


def _last_ids(page: Sequence[_Outline]) -> dict[int, int]:
    """The last id of each transaction."""
    last: dict[int, int] = {}
    for outline in page:
        here = dict(zip(outline.xids, outline.ids, strict=True))
        for xid in last.keys() & here.keys():
            here[xid] = max(here[xid], last[xid])
        last |= here
    return last


def _one_by_one(page: Sequence[_Outline]) -> Iterable[tuple[int, int, int]]:
    """Id, transaction and fetched bytes of each change, in id order."""
    return sorted(chain.from_iterable(zip(*outline, strict=True) for outline in page))


def _weighed(page: Sequence[_Outline], xids: AbstractSet[int]) -> dict[int, _Begun]:
    """What the page has of these transactions."""
    found: dict[int, _Begun] = {}
    for outline in page if xids else ():
        theirs = compress(zip(*outline, strict=True), map(xids.__contains__, outline.xids))
        for id_, xid, size in theirs:
            here = found.get(xid, _Begun(id_))
            more = here.plus(_Begun(id_, 1, size))
            found[xid] = more._replace(first=min(more.first, id_))
    return found


def sent_too(mark: Mark, sent: Sheaves) -> Mark:
    """The mark after these changes, too."""
    spans = mark.spans
    if spans:
        now = spans[-1]
        lowest = min(sheaf.ids[0] for sheaf in sent)
        times = (now.sum + sum(sum(sheaf.times) for sheaf in sent)) % _MODULO
        spans = (*spans[:-1], Span(now.since, min(now.first_id or lowest, lowest), now.count + counted(sent), times))
    newest = {xid: (xid, id_, at) for xid, id_, at in mark.last}
    newest |= _ends(sent, newest.keys())
    highest = max(newest.values(), key=lambda entry: entry[1])
    last = {highest, *sorted(newest.values())[1 - _LAST :]}
    return replace(mark, spans=spans, last=tuple(sorted(last)))


def _ends(sent: Sheaves, named: AbstractSet[int]) -> dict[int, tuple[int, int, int]]:
    """The last changes of the transactions `named`, of those with the highest numbers, and of the one that wrote last. (Of
    others, too, perhaps not the last one: their numbers are below sixteen that are here.)"""
    ends: dict[int, tuple[int, int, int]] = {}
    for sheaf in sent:
        last_at = dict(zip(sheaf.xids, count(), strict=False))
        for xid in (*(named & last_at.keys()), *sorted(last_at)[-_LAST:], sheaf.xids[-1]):
            at = last_at[xid]
            ends[xid] = max(ends.get(xid, (xid, 0, 0)), (xid, sheaf.ids[at], sheaf.times[at]))
    return ends
