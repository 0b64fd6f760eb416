"""Windows cut along transactions, against a small model of Postgres: transactions, row locks, ids, commits.

The model obeys the two rules that the cut rests on: a transaction has its xid before its first id, and who
writes a key that another transaction wrote waits until that one has ended.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daemon.sheaf import Change, bind, unbind
from daemon.snapshot import Snapshot
from daemon.window import Window, sent_too
from outbox import Cursor, Mark, Span

KEYS = "abcd"


@dataclass
class Outbox:
    """What the model's transactions wrote, and who has committed."""

    changes: list[Change] = field(default_factory=list)
    open: dict[int, set[str]] = field(default_factory=dict)  # xid -> the keys it has locked
    committed: set[int] = field(default_factory=set)
    next_xid: int = 10
    ended: int = 9  # the latest transaction that has

    def act(self, who: int, key: str, size: int) -> None:
        """Somebody begins, writes a key or, when that is locked or size is 0, commits or rolls back."""
        if who >= len(self.open):
            self.open[self.next_xid] = set()
            self.next_xid += 1
            if not size:
                return  # its first write was to a table that nobody watches
        xid = list(self.open)[min(who, len(self.open) - 1)]
        locked = any(key in keys for other, keys in self.open.items() if other != xid)
        if size and not locked:
            self.open[xid].add(key)
            self.changes.append(
                Change(xid, len(self.changes) + 1, "t", "upsert", 1, key, str(len(self.changes)), size, False, 0)
            )
            return
        del self.open[xid]
        self.ended = max(self.ended, xid)
        if key != "d" or locked:
            self.committed.add(xid)

    def snapshot(self) -> Snapshot:
        return Snapshot.of(self.ended + 1, self.open)

    def visible(self, goal: Snapshot) -> list[Change]:
        return [change for change in self.changes if change.xid in self.committed and goal.sees(change.xid)]


@dataclass
class Reader:
    """What daemon/pages.py does with a window, on the model."""

    outbox: Outbox
    max_changes: int
    max_bytes: int
    floors: list[tuple[int, int]] = field(default_factory=list)

    def open(self, cursor: Cursor) -> Window:
        self.floors.append((self.outbox.next_xid, len(self.outbox.changes)))
        self.outbox.next_xid += 1
        self.outbox.ended = max(self.outbox.ended, self.outbox.next_xid - 1)
        goal = self.outbox.snapshot()
        floor = max((floor for xid, floor in self.floors if xid < goal.xmin), default=0)
        return Window(cursor, goal, floor, len(self.outbox.changes), self.max_changes, self.max_bytes)

    def read(self, window: Window, span: int) -> tuple[list[Change], bool, bool]:
        """The next batch, whether a transaction was torn, and whether the window has ended."""
        while True:
            rows = [
                change for change in self.outbox.visible(window.goal)
                if change.id > window.after and not window.reached.sees(change.xid)
            ]  # fmt: skip
            upto = min(window.ceiling, window.after + span)
            page = [change for change in rows if change.id <= upto][: self.max_changes]
            while sum(change.size for change in page[:-1]) >= self.max_bytes:
                page.pop()
            if len(page) >= self.max_changes or sum(change.size for change in page) >= self.max_bytes:
                upto = page[-1].id
            sheaves = bind(page)
            unknown = {xid for a, b in window.unknown(sheaves) for xid in range(a, b + 1)}
            beyond = {c.xid: c.id for c in rows if page and c.id > upto and c.xid in unknown}
            if cut := window.cut(sheaves, upto=upto, beyond=beyond):
                rest = [
                    change for change in self.outbox.visible(window.goal)
                    if change.xid in cut.rest and cut.rest[change.xid] < change.id <= cut.upto
                ]  # fmt: skip
                return [*rest, *unbind(cut.sheaves)], cut.torn, cut.ended


acts = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(KEYS), st.integers(0, 3)), max_size=80)
limits = st.tuples(st.integers(1, 6), st.integers(1, 12))

# A batch that is full before its page ends: the younger of two new transactions is taken, the older comes next.
BEHIND_THE_CUT = [
    *[(0, "a", 1), (0, "a", 1), (1, "b", 1), (1, "b", 0)],
    *[(1, "b", 0), (2, "c", 0), (2, "c", 1), (2, "c", 0), (0, "a", 1), (0, "a", 0), (0, "b", 1), (0, "b", 0)],
]


@settings(max_examples=300, deadline=None)
@given(acts, limits, st.integers(1, 30), st.booleans(), st.randoms(use_true_random=False))
@example([(0, "a", 1), (1, "b", 1), (0, "a", 1), (1, "b", 1), (0, "a", 0), (0, "b", 0)], (2, 99), 99, True, None)
@example(BEHIND_THE_CUT, (3, 99), 99, True, None)
def test_every_change_is_taken_once_and_in_order(acts, limits, span, durable, random):
    """Whatever interleaves, whatever the limits, wherever it restarts: all committed changes, once, per key in order."""
    outbox = Outbox()
    reader = Reader(outbox, *limits)
    cursor, taken, todo = Cursor.beginning(), list[Change](), list(acts)
    window, everything = None, False

    def play(acts: list[tuple[int, str, int]], count: int) -> None:
        for act in acts[:count]:
            outbox.act(*act)
        del acts[:count]

    while not everything or window:
        if window is None or (random and random.random() < 0.3):
            if random and random.random() < 0.2:
                reader.floors.clear()  # another process, or another connection
            play(todo, random.randint(0, 30) if random else 99)
            window, everything = reader.open(cursor), not todo and not outbox.open
        play(todo, 2)
        batch, torn, ended = reader.read(window, span)
        taken += batch
        assert_whole(batch, window, outbox, torn=torn)
        reached = window.reached
        cursor = window.move(bind(batch), Cursor.beginning(), to_goal=ended and (durable or not batch))
        assert_floor(cursor, taken, outbox)
        assert ended or batch or window.reached != reached
        if ended:
            window = None
            if not todo and outbox.open:
                outbox.act(0, "a", 0)
    assert sorted(change.id for change in taken) == [c.id for c in outbox.changes if c.xid in outbox.committed]
    by_key = defaultdict(list)
    for change in taken:
        by_key[change.key].append(change.id)
    assert all(ids == sorted(ids) for ids in by_key.values())


def assert_whole(batch: list[Change], window: Window, outbox: Outbox, *, torn: bool) -> None:
    """Every transaction is in the batch as a whole, unless it alone is larger than the limit."""
    assert [change.id for change in batch] == sorted({change.id for change in batch})
    begun_before = {xid for xid, upto in window.cursor.torn}
    for xid in {change.xid for change in batch}:
        everything = [change for change in outbox.changes if change.xid == xid]
        if len([change for change in batch if change.xid == xid]) < len(everything):
            assert torn or xid in begun_before
            too_many = len(everything) > window.max_changes
            assert too_many or sum(change.size for change in everything) >= window.max_bytes
    # Bounded: not more than a batch, the rest of the transaction that fills it, and one page.
    assert len(batch) < 2 * window.max_changes + 1


def assert_floor(cursor: Cursor, taken: list[Change], outbox: Outbox) -> None:
    """No change that is still to come, of whomever, lies at or below the floor."""
    ids = {change.id for change in taken}
    may_come = [c.id for c in outbox.changes if c.id not in ids and (c.xid in outbox.committed or c.xid in outbox.open)]
    assert min(may_come, default=cursor.floor_id + 1) > cursor.floor_id


def change(xid: int, id_: int, size: int = 1) -> Change:
    return Change(xid, id_, "t", "upsert", 1, f"k{id_}", "{}", size, False, 0)


def test_a_cursor_claims_no_transaction_that_a_crash_could_give_away_again():
    """Until the goal is durable the cursor stops at the last transaction taken: 23 ended, but may not be on disk."""
    page = [change(20, 5), change(21, 6)]
    for durable, xmax, floor in ((False, 22, 6), (True, 24, 9)):
        window = Window(Cursor("20:20:", 4), Snapshot.parse("24:24:"), 9, 9, 10, 100)
        cut = window.cut(bind(page), upto=9, beyond={})
        assert cut is not None
        cursor = window.move(cut.sheaves, Cursor.beginning("s"), to_goal=durable)
        assert (Snapshot.parse(cursor.snapshot).xmax, cursor.floor_id) == (xmax, floor)


@pytest.mark.parametrize("limits", [(10, 1000), (1000, 10)], ids=["changes", "bytes"])
def test_side_by_side_transactions_do_not_pile_up_in_one_batch(limits):
    """Four transactions of nine changes that end together make four batches, not one four times the limit."""
    page_by_page = [change(20 + n % 4, 1 + n) for n in range(36)]
    window = Window(Cursor("20:20:"), Snapshot.parse("24:24:"), 0, 36, *limits)
    sizes = []
    while True:
        page = [c for c in page_by_page if c.id > window.after and not window.reached.sees(c.xid)][:10]
        beyond = {c.xid: c.id for c in page_by_page if page and c.id > page[-1].id}
        if cut := window.cut(bind(page), upto=page[-1].id if len(page) == 10 else 36, beyond=beyond):
            rest = [c for c in page_by_page if c.xid in cut.rest and cut.rest[c.xid] < c.id <= cut.upto]
            sizes.append(len(unbind(cut.sheaves)) + len(rest))
            window.move((), Cursor.beginning(), to_goal=False)
            if cut.ended:
                break
    assert sum(sizes) == 36
    assert max(sizes) == 18


def test_what_a_torn_transaction_sent_before_a_restart_is_not_sent_again():
    """The cursor says up to which id a torn transaction was sent; a new window goes on behind it."""
    everything = [change(20, id_) for id_ in range(1, 8)]
    window = Window(Cursor("20:20:"), Snapshot.parse("21:21:"), 0, 7, 3, 1000)
    cut = window.cut(bind(everything[:3]), upto=3, beyond={20: 7})
    assert cut is not None
    assert cut.torn
    cursor = window.move(cut.sheaves, Cursor.beginning(), to_goal=False)
    assert cursor.torn == ((20, 3),)
    window = Window(Cursor(cursor.snapshot, 0, cursor.torn), Snapshot.parse("21:21:"), 0, 7, 3, 1000)
    assert window.cut(bind(everything[:3]), upto=3, beyond={20: 7}) is None
    cut = window.cut(bind(everything[3:6]), upto=6, beyond={})
    assert cut is not None
    assert not cut.torn  # it was torn before: counted once
    assert [c.id for c in unbind(cut.sheaves)] == [4, 5, 6]


def moved(cursor: Cursor, goal: str, sent: list[Change], *, ceiling: int) -> Cursor:
    """One window, sent in one batch."""
    window = Window(cursor, Snapshot.parse(goal), 0, ceiling, 10, 1000, 1, "0/15")
    cut = window.cut(bind(sent), upto=ceiling, beyond={})
    assert cut is not None
    assert cut.ended
    return window.move(cut.sheaves, Cursor.beginning("s"), to_goal=True)


def timed(xid: int, id_: int, at: int) -> Change:
    return change(xid, id_)._replace(created_us=at)


def test_the_mark_adds_up_what_the_last_two_windows_sent():
    """Not one alone: who had written its commit and was not yet visible when that window began proves nothing."""
    first = moved(Cursor("20:20:"), "22:22:", [timed(20, 1, 100), timed(21, 2, 200)], ceiling=2)
    assert first.mark == Mark(
        1, "0/15", (Span("20:20:", 1, 2, 300), Span("22:22:", 0, 0, 0)), ((20, 1, 100), (21, 2, 200))
    )
    idle = moved(first, "25:25:", [], ceiling=2)
    assert idle.mark == first.mark
    second = moved(idle, "26:26:", [timed(25, 3, 400)], ceiling=3)
    third = moved(second, "27:27:", [timed(26, 4, 10**15)], ceiling=4)
    assert third.mark is not None
    assert third.mark.spans == (Span("22:22:", 3, 1, 400), Span("26:26:", 4, 1, 0), Span("27:27:", 0, 0, 0))
    assert third.mark.last == ((20, 1, 100), (21, 2, 200), (25, 3, 400), (26, 4, 10**15))


def test_the_mark_names_the_highest_transactions_and_the_last_change():
    """At most sixteen, however many there were."""
    sent = [timed(100 - n, n, n) for n in range(1, 60)]
    mark = sent_too(Mark(1, "0/15"), bind(sent))
    assert {xid for xid, _, _ in mark.last} == {41, *range(85, 100)}
    assert len(mark.last) == 16


def test_a_mark_does_not_begin_where_something_is_half_sent():
    """A cursor of an older outboxd inside a torn transaction: what went before was not added up."""
    window = Window(Cursor("20:20:", 0, ((20, 1),)), Snapshot.parse("21:21:"), 0, 3, 10, 1000)
    cut = window.cut(bind([change(20, 1), change(20, 2), change(20, 3)]), upto=3, beyond={})
    assert cut is not None
    cursor = window.move(cut.sheaves, Cursor.beginning("s"), to_goal=True)
    assert cursor.mark is not None
    assert cursor.mark.spans == ()
    assert moved(cursor, "23:23:", [change(21, 4)], ceiling=4).mark.spans[0].since == "21:21:"  # type: ignore[union-attr]
