"""Which table is compared next, and how its rows come to be compared: the passes of `outboxd verify`, and those by the clock.

Promise: no false alarm. Rows are read as of the very snapshot at which the target stands when it compares them
(daemon.ranges), so neither what is in flight nor what is late can look like a difference; held keys are counted apart.
What a digest says differs is looked at once more, as rows; what is repaired is looked at once more, too.

Knows the source's wishes, the target's records and its answers. Knows nothing of flights, nor of SQL. Whatever is wrong
with a comparison, changes go on: the pass has failed, and another begins later.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from daemon.batch import Batch, Found, Question, stretch
from daemon.copies import COLUMNS, choose, slowly
from daemon.errors import CopyRefused, Kind, TargetError
from daemon.hold import KEY_BYTES, is_long, longest, name_of
from daemon.ranges import Look
from daemon.sheaf import Sheaf, split
from daemon.source import Source
from daemon.stride import Stride
from daemon.target import Answer, Target
from daemon.verification import (
    NOT_THERE,
    Checked,
    Drift,
    Op,
    Verification,
    Wanted,
    answered,
    begun_by,
    fresh,
    known,
    question,
    shown,
)

log = structlog.get_logger()

_LOOK = 1.0  # seconds between two looks at the source's wishes
_AHEAD = 3  # comparisons of a pass: one that is being read, and two on their way; while changes flow only one
_DOUBTFUL = 50  # rows that seem to differ from which on a share of them says something
_ENOUGH, _FAR = 500, 40  # rows that seem to differ, ranges behind the first of them: then they are looked at again
_NOTED = 5.0  # seconds until the target is told how far a pass has come that has nothing to be sent
_UNANSWERED = 3
_LOST, _WAITS = 5, 8  # comparisons that were lost, or took too long, while the pass got no further: it has failed
_PAUSE = 15.0  # seconds between two of these, at most
_AGAIN = 900.0  # seconds after which a pass that failed begins anew, at most
_NOT_THERE = {"OB002", "OB003", "42P01"}  # the target does not know the table, or has it no longer
_THERE = 15.0  # seconds until such a table is looked for again
_EPOCH = 946_684_800  # the source counts its microseconds from 2000 on


@dataclass(slots=True)
class _Suspects:
    """Rows that seem to differ, and are looked at again, some at a time (`todo`). `stage`: they are compared as rows
    (`confirm`), written again (`mend`), and compared once more (`again`). `drifts`: what this stage has found;
    `mended`: the keys of the stage before."""

    before: Verification
    then: Verification
    op: Op
    todo: list[str]
    stage: str = "confirm"
    looked: int = 0
    held: int = 0
    drifts: list[Drift] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Landed:
    """What a comparison has shown. `doubtful`: the rows are to be looked at again."""

    checked: Checked
    drifts: tuple[Drift, ...]
    held: int
    doubtful: bool


class Verifier:
    """Compares for the relay. `every`: seconds between passes through a table, 0: only when somebody asks; `rate`: rows a
    second of such a pass at most, 0: as many as there are. `verified` is told of (table, rows compared, rows repaired)."""

    def __init__(
        self, source: Source, target: Target, *, every: float = 0.0, rate: float = 0.0,
        verified: Callable[[str, int, int], None] = lambda *_: None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._source = source
        self._target = target
        self.every = every
        self._verified = verified
        self._clock = clock
        self.order: Mapping[str, int] = {}
        self.places: Mapping[str, str] = {}  # which table of the target each one goes to
        self.absent: Callable[[str], bool] = lambda _: False  # is this table out, or being copied?
        self.records: dict[str, Verification] = {}
        self.wanted: dict[str, Wanted] | None = None  # None: not looked yet
        self.stopping = False
        self._due: dict[str, float] = {}  # when a pass by the clock begins
        # A pass in order: what is known to be equal (its record), ranges whose rows that seem to differ wait to be looked
        # at again, those on their way, and the one that is being read.
        self._suspects: _Suspects | None = None
        self._landed: list[_Landed] = []
        self._flying: deque[Checked] = deque()
        self._reading: object | None = None  # once it is another one, or none, what was being read counts no more
        self._unanswered = 0  # comparisons in a row
        # Of a table: how many took too long, or were lost, since its pass was at its farthest, and where that was.
        self._waits: dict[str, int] = {}
        self._farthest: dict[str, tuple[bool, int]] = {}
        self._slow: set[str] = set()  # tables whose pass has met a range that took too long
        self._alone: set[str] = set()  # tables whose pass has begun here and met no row that the source may lack
        self._by_rows: set[str] = set()  # digests of these tables say nothing: the target writes the same otherwise
        self._busy: dict[str, float] = {}
        self._unsaved: set[str] = set()  # passes that have ended, which the target has not been told
        self._stride = Stride(clock, rate)
        self._behind = False  # changes wait that have not been read: they go first
        self._read_in = 0.0
        self._looked = self._paced = self._noted = self._arrived = float("-inf")

    @property
    def rate(self) -> float:
        """Rows a second of a pass by the clock at most; 0: as many as there are."""
        return self._stride.rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self._stride.rate = rate

    def passed(self, *, changes: bool, more: bool) -> None:
        """What has just been read besides: were there changes, and are there more of them?"""
        self._behind = more
        if changes:
            self._stride.flowed()

    def learn(self, answer: Answer) -> None:
        """Begin anew from what the target says."""
        self._begin_anew()
        self._alone.clear()
        if "verifications" not in answer.more:
            return
        now, before = self._clock(), self._due
        failed = {table: self.records[table] for table in self._unsaved if self.records[table].state == "failed"}
        self.records, self._due = {}, {}
        for table, (record, ago) in known(answer.more["verifications"]).items():
            self.records[table] = record
            self._due[table] = before.get(table, now + self._pause(record) - max(0.0, ago))
        self._unsaved.clear()
        for table, record in failed.items():  # the target has not been told, and would have it go on
            there = self.records.get(table)
            older = there is None or there.wish < record.wish or there.began_at < record.began_at
            if there is None or older or (there.state == "running" and there.wish <= record.wish):
                self.records[table], self._due[table] = record, before[table]
                self._unsaved.add(table)

    def _begin_anew(self) -> None:
        """What is on its way counts no more: from what is known on it is read again."""
        self._suspects = None
        self._landed.clear()
        self._let_go()

    def _let_go(self) -> None:
        """Comparisons on their way count no more, nor does the range that is being read behind them: when it has been read
        there may be none before it, and it would pass for the one that is next."""
        self._flying.clear()
        self._reading = None

    def ring(self) -> None:
        """Somebody may have asked for something: look at once."""
        self._looked = float("-inf")

    def due_in(self) -> float | None:
        """Seconds until there is something to compare; None: there is nothing."""
        if self.stopping or not (self._suspects or self._landed or self._unsaved or self._candidates()):
            return None
        now = self._clock()
        tables = [self._suspects.then.table] if self._suspects else self._candidates()
        free = now if self._unsaved or not tables else min(self._busy.get(table, now) for table in tables)
        return max(0.0, self._paced - now, free - now)

    @property
    def asked(self) -> bool:
        """Is a pass that somebody asked for to be made, or its end to be told? One through a table that is locked is waited
        for, one through a table that is out is not."""
        if self.stopping:
            return False
        never = Verification("")
        for table, wanted in (self.wanted or {}).items():
            record = self.records.get(table, never)
            here = record.asked and (record.state == "running" or table in self._unsaved)
            if (here or fresh(record, wanted)) and not self.absent(table):
                return True
        return False

    # -- asking ----------------------------------------------------------------------------------------------------

    async def begin(self) -> Look | None:
        """What to ask of the source next."""
        now = self._clock()
        if now >= self._looked + _LOOK:
            self._looked = now
            self.wanted = {one[0]: Wanted(*one) for one in await self._source.ask("verify_wanted")}
        if self.stopping or self._behind or self._reading is not None or now < self._paced:
            return None
        self._gather()
        suspects, head = self._suspects, self._head()
        if self._flying and (suspects or head is None or not self._goes_on(head)):
            return None
        if suspects is not None and not self._goes_with(suspects.then):
            self._begin_anew()
            suspects = head = None
        self._reading = reading = object()
        look: Look | None = None
        if suspects is not None:
            look = self._look_again(suspects) if self._busy.get(suspects.then.table, now) <= now else None
        else:
            free = [record for table, record in self._candidates().items() if self._busy.get(table, now) <= now]
            record = head or self._next(free)
            if record is None:
                look = self._tell() if self._unsaved else None
            else:
                self._noted = self._noted if record.began_at else now
                look = self._look_at(record) if record.step == "rows" else await self._look_beyond(record)
        if self._reading is not reading:
            return None  # let go of while the target was asked
        self._reading = reading if look else None
        return look

    def _next(self, free: Sequence[Verification]) -> Verification | None:
        """Whose turn it is: what somebody asked for, parents first, for it may be repaired; then the pass by the clock that is
        under way, then the one that has waited longest."""
        if asked := [one for one in free if one.asked]:
            return choose(asked, self.order)
        never = float("-inf")
        return min(
            free, default=None,
            key=lambda one: (not one.began_at, one.began_at, self._due.get(one.table, never), self.order.get(one.table, 0)),
        )  # fmt: skip

    def _head(self) -> Verification | None:
        """Where the next range begins, if all that is on its way turns out to be equal."""
        if self._flying:
            return self._flying[-1].then
        return self._landed[-1].checked.then if self._landed else None

    def _goes_on(self, head: Verification) -> bool:
        """May the next range be read before it is known what is to be said of those before it?"""
        first = self._landed[0].checked if self._landed else self._flying[0]
        if head.state != "running" or head.step != first.before.step or len(self._flying) >= self._ahead(head):
            return False
        wanted = (self.wanted or {}).get(head.table)
        busy = self._busy.get(head.table, 0.0) > self._clock()
        same = wanted is not None and wanted.number in (0, head.wish) and head.fits(wanted)
        return same and not busy and not self.absent(head.table)

    def _ahead(self, head: Verification) -> int:
        gently = self._stride.flows or (self.rate and not head.asked) or head.table in self._waits
        return 1 if gently else _AHEAD

    def _compares(self, table: str) -> bool:
        """Is it watched, and does the target have it as a whole?"""
        return table in (self.wanted or ()) and not self.absent(table)

    def _goes_with(self, record: Verification) -> bool:
        """Is what it is of to be compared still? As rows are looked at again they are asked for by its aim."""
        return self._compares(record.table) and record.fits((self.wanted or {})[record.table])

    def _candidates(self) -> dict[str, Verification]:
        """Passes that go on, or begin."""
        found, now = {}, self._clock()
        for table, wanted in (self.wanted or {}).items():
            if not self._compares(table):
                continue
            record = self.records.get(table)
            anew = record is not None and not record.fits(wanted)
            due = self.every > 0 and (anew or now >= self._due.get(table, now))
            if begun_by(record, wanted, due=due):
                found[table] = (record or Verification(table)).begun(wanted, asked=fresh(record, wanted))
            elif record is not None and record.state == "running" and not anew:
                found[table] = record
        return found

    def _look_at(self, record: Verification) -> Look:
        """The next rows of the source."""
        what: Op = "compare" if record.table in self._by_rows else "digest"
        most = self._range(record)
        behind = record.seen or record.after
        keys = None if behind is None else (behind,)
        asked = Question(
            record.table, "rows" if what == "compare" else "digests", keys, most, self._source.limits.bytes, record.aim
        )

        def made(found: Found, end: Batch) -> Batch | None:
            before = record if record.began_at else replace(record, began_at=end.read_us / 1e6 + _EPOCH)
            read = stretch(asked, found, end.read_us)
            then = before.further(read.last or before.after, read.count, ends=read.whole, seen=read.seen)
            looked = most if read.seen else read.count  # those that do not travel take their time, too
            checked = _checked(before, then, what, read.columns, read.sheaves, keys=looked)
            return self._sends(
                end, checked if then.seen and not read.sheaves else self._spanning(checked, read.columns)
            )

        return self._asks(record, asked, made)

    def _spanning(self, checked: Checked, columns: Sequence[str]) -> Checked:
        """With the question whether these are all the rows that the target has in their place: as long as they are, from
        the beginning to the end, nothing is left to look for beyond them."""
        before, then, group = checked.before, checked.then, checked.group
        if before.after is None and group is not None:
            self._alone.add(then.table)  # so far
        if then.table in self._by_rows or checked.unread or (group is None and before.after is None):
            self._alone.discard(then.table)
        if then.table not in self._alone:
            return checked
        group = group or question(then.table, "digest", columns, None)
        return replace(checked, group=replace(group, span=(before.after, then.after)))

    async def _look_beyond(self, record: Verification) -> Look | None:
        """Of the next keys of the target those that the source does not have."""
        try:
            more = (await self._target.keys(record.table, record.after, self._range(record), record.began_at)).more
        except TargetError as exc:
            if exc.kind is Kind.SIZE:
                self._took_too_long(record, exc.refusal.sqlstate or str(exc.kind))
                return None
            if exc.kind is Kind.AMBIGUOUS:
                self._went_unanswered(record, "the target")
            raise
        if "failed" in more:
            self._stumbled(record, str(more["failed"]), "list its keys")
            return None
        if more.get("elsewhere"):  # and back before anything was compared there
            self._begin_anew()
            self.records[record.table] = replace(self.records.get(record.table, record), here=False)
            return None
        keys = tuple(more["keys"])
        then = record.further(keys[-1] if keys else None, ends=bool(more["ends"]))

        asked = Question(record.table, "missing", keys, aim=record.aim)

        def made(found: Found, end: Batch) -> Batch | None:
            absent = stretch(asked, found, end.read_us).sheaves
            return self._sends(end, _checked(record, then, "present", (), absent, keys=len(keys)))

        return self._asks(record, asked, made)

    def _look_again(self, suspects: _Suspects) -> Look:
        """At rows that seem to differ: as they are now."""
        before, then, todo = suspects.before, suspects.then, tuple(suspects.todo[: self._range(suspects.then)])
        asked = Question(then.table, "these", todo, len(todo), self._source.limits.bytes, then.aim)

        def made(found: Found, end: Batch) -> Batch | None:
            read = stretch(asked, found, end.read_us)
            if suspects.stage == "mend":
                checked = Checked(before, then, (), None, read.count, mends=True, again=True)
                return self._sends(replace(end, sheaves=read.sheaves, shapes={COLUMNS: read.columns}), checked)
            kind = (
                "delete" if suspects.op == "present" else "upsert"
            )  # the others are on both sides by now, or on neither
            wanted = [sheaf for sheaf in read.sheaves if sheaf.op == kind]
            columns = () if suspects.op == "present" else read.columns
            checked = _checked(before, then, suspects.op, columns, wanted, keys=read.count)
            return self._sends(end, replace(checked, again=True))

        return self._asks(then, asked, made)

    def _tell(self) -> Look:
        """That passes have ended, when no other batch has said so."""
        record = self.records[min(self._unsaved)]
        return Look(None, lambda _, end: self._sends(end, Checked(record, record)), dropped=self._dropped)

    def _asks(self, record: Verification, asked: Question, made: Callable[[Found, Batch], Batch | None]) -> Look:
        began, reading = self._clock(), self._reading

        def timed(found: Found, end: Batch) -> Batch | None:
            if self._reading is not reading:
                return None
            self._read_in = self._clock() - began
            return made(found, end)

        def refused(exc: CopyRefused) -> None:
            self._reading = None
            if exc.other:
                self.ring()
            elif exc.busy:
                self._busy[record.table] = self._clock() + _LOOK
            elif exc.slow:
                self._went_unanswered(record, "the source")
            else:
                self._failed(record, str(exc))

        return Look(asked, timed, refused, self._dropped, lambda: self._went_unanswered(record, "the source"))

    def _sends(self, end: Batch, checked: Checked) -> Batch | None:
        """A batch of its own, which stays at the cursor where the window has led; None: there is nothing to compare."""
        self._reading = None
        ended = (self.records[table] for table in sorted(self._unsaved - {checked.before.table}))
        checked = replace(checked, known=(self._known(checked.before), *ended), reading=self._read_in)
        nothing = checked.group is None and not (checked.unread or checked.mends or checked.before == checked.then)
        if nothing and not self._flying and self._clock() < self._noted + _NOTED:
            self._rest(checked, checked.reading)
            self._decided(checked, [], 0)
            return None
        self._noted = self._clock()
        self._flying.append(checked)
        sheaves, shapes = (end.sheaves, end.shapes) if checked.mends else ((), {})
        more = not checked.again and checked.before != checked.then and self._goes_on(checked.then)
        return replace(end, sheaves=sheaves, shapes=shapes, torn=0, more=more, checked=checked)

    def _known(self, before: Verification) -> Verification:
        """What is known of the pass that has come to `before`, if what is under way is equal."""
        record = self.records.get(before.table)
        if before.state != "running":
            return before
        if record is not None and record.state == "running" and record.began_at == before.began_at:
            return record
        if self._suspects is not None:
            return self._suspects.before
        oldest = self._landed[0].checked if self._landed else self._flying[0] if self._flying else None
        return oldest.before if oldest else before

    def _dropped(self) -> None:
        self._reading = None

    def _halve(self, table: str, least: int = 0) -> bool:
        """Fewer rows from the next comparison on; False: it was the least already."""
        return self._stride.halve(table, self._source.limits.changes, least)

    def _range(self, record: Verification) -> int:
        return self._stride.rows(record.table, self._source.limits.changes, asked=record.asked)

    # -- what the target says ----------------------------------------------------------------------------------------

    def arrived(self, checked: Checked, answer: Answer, seconds: float, waiting: Collection[tuple[str, str]]) -> None:
        """The target has answered. `waiting`: the keys that are held."""
        if not self._flying or self._flying[0] is not checked:
            return  # what went before it came to something else: it is read again
        self._flying.popleft()
        self._unanswered = 0
        record, compared = checked.then, answer.more.get("compared")
        now = self._clock()
        seconds, self._arrived = min(seconds, now - self._arrived), now
        self._rest(checked, checked.reading + seconds)
        unread = [Drift(key, "different") for key in checked.unread if (record.table, key) not in waiting]
        self._unsaved.difference_update(one.table for one in checked.known if one == self.records.get(one.table))
        if checked.before == checked.then:
            pass  # that was all
        elif checked.mends:
            self._looked_again(checked.keys, [], 0)
        elif checked.group is None:
            self._decided(checked, unread, len(checked.unread) - len(unread))
        elif compared is None:
            self._let_go()  # it had been applied before, and what was said is lost: once more
        elif "failed" in compared:
            self._let_go()
            self._stumbled(record, str(compared["failed"]), "compare its rows")
        else:
            self._stride.took(record.table, checked.keys, checked.reading + seconds)
            if not checked.again and checked.before.step == "rows" and not compared.get("alone"):
                self._alone.discard(record.table)
            drifts, held = answered(checked.group, compared, waiting)
            self._decided(checked, drifts + unread, held + len(checked.unread) - len(unread))

    def _rest(self, checked: Checked, seconds: float) -> None:
        rest = self._stride.rest(checked.keys, seconds, asked=checked.then.asked)
        self._paced = max(self._paced, self._clock()) + rest if rest else self._paced

    def refused(self, checked: Checked, exc: TargetError) -> bool:
        """The request itself did not come through: was it too large? True: that is nobody else's concern."""
        record, code = checked.then, exc.refusal.sqlstate
        if code == "55P03":
            self._busy[record.table] = self._clock() + _LOOK
            return True
        if checked.mends and exc.kind in (Kind.DATA, Kind.CONTRACT):
            self._failed(record, f"the target refuses rows that were to be written again ({code})")
            return True
        if checked.group is None and not checked.mends:
            return False
        if exc.kind is Kind.AMBIGUOUS:
            self._went_unanswered(record, "the target")
        elif exc.kind is Kind.SIZE:
            self._took_too_long(record, code or str(exc.kind), least=1)
        return exc.kind is Kind.SIZE

    def _went_unanswered(self, record: Verification, who: str) -> None:
        """Once is an accident. Again and again, with nothing answered in between or at the same place, it is what was asked:
        changes wait behind it each time."""
        self._unanswered += 1
        if self._waited(record.table) >= _LOST or self._unanswered >= _UNANSWERED:
            self._unanswered = 0
            why = f": {self._shows(record.table)}" if who == "the target" else ""
            self._failed(record, f"{who} does not answer in time when its rows are compared{why}")
            return
        self._halve(record.table)
        if self._waits[record.table] > 1:
            self._lets_others(record.table)

    def _took_too_long(self, record: Verification, code: str, least: int = 0) -> None:
        """Changes have waited behind it. The next is of fewer rows, and comes after a pause that grows, until it is the least."""
        waits, most = self._waited(record.table), self._range(record)
        if waits < _WAITS and self._halve(record.table, least):
            self._halve(record.table, least)  # each costs a timeout
            self._lets_others(record.table)
            return
        many = "a single row" if most == 1 else f"{most} rows"
        self._failed(
            record, f"the target cannot compare {many} of {record.table} in time ({code}): {self._shows(record.table)}"
        )

    def _waited(self, table: str) -> int:
        self._slow.add(table)
        self._waits[table] = self._waits.get(table, 0) + 1
        return self._waits[table]

    def _lets_others(self, table: str) -> None:
        """Changes, and passes through other tables: this one goes on later, from what is known."""
        self._begin_anew()
        self._busy[table] = self._clock() + min(_LOOK * 2 ** (self._waits[table] - 1), _PAUSE)

    def _shows(self, table: str) -> str:
        place = self.places.get(table, table)
        return f"`explain analyze select t::text from {place} t limit 50` there shows what takes long"  # noqa: S608

    def _decided(self, checked: Checked, drifts: list[Drift], held: int) -> None:
        """What one comparison has shown: go on, or look again."""
        if checked.again:
            self._looked_again(checked.keys, drifts, held)
            return
        digests = checked.group is not None and checked.group.op == "digest"  # one that differs may be of the same row
        light = replace(checked, group=None if checked.group is None else replace(checked.group, texts=(), named=b""))
        self._landed.append(_Landed(light, tuple(drifts), held, bool(drifts) and (digests or checked.then.repair)))
        self._gather()

    def _gather(self) -> None:
        """Go on to the first range of which rows are to be looked at again; once there are enough of them, do that."""
        while self._suspects is None and self._landed and not self._landed[0].doubtful:
            first = self._landed[0]
            then = first.checked.then.onto(self._known(first.checked.before))
            del self._landed[0]
            self._advance(then.found(first.drifts, held=first.held))
        if self._suspects is not None or not self._landed:
            return
        landed = self._landed
        few = sum(len(one.drifts) for one in landed) < _ENOUGH and len(landed) < _FAR
        if few and (self._flying or self._reading is not None or self._goes_on(landed[-1].checked.then)):
            return
        before, then = self._known(landed[0].checked.before), landed[-1].checked.then
        self._landed = []
        certain = [drift for one in landed if not one.doubtful for drift in one.drifts]
        then = then.onto(before).found(certain, held=sum(one.held for one in landed))
        ops = {one.checked.group.op for one in landed if one.checked.group is not None}
        keys = [drift.key for one in landed if one.doubtful for drift in one.drifts]
        op: Op = "present" if "present" in ops else "compare"
        self._suspects = _Suspects(before, then, op, keys, "confirm" if "digest" in ops else "mend", mended=keys)

    def _looked_again(self, keys: int, drifts: list[Drift], held: int) -> None:
        """At some of the suspects; when that was the last of them, on to the next stage."""
        suspects = self._suspects
        assert suspects is not None
        suspects.todo = suspects.todo[keys:]
        suspects.looked += keys
        suspects.held += held
        suspects.drifts += drifts
        if suspects.todo:
            return
        found, then = suspects.drifts, suspects.then
        if suspects.stage == "mend":
            self._suspects = replace(suspects, stage="again", todo=suspects.mended, looked=0, drifts=[])
        elif suspects.stage == "again":
            repaired = len(suspects.mended) - len(found) - suspects.held
            self._advance(then.found(found, held=suspects.held, repaired=repaired))
        else:
            if suspects.looked >= _DOUBTFUL and len(found) < suspects.looked / 2:
                self._by_rows.add(then.table)
            if found and then.repair:
                confirmed, keys_ = then.found([], held=suspects.held), [one.key for one in found]
                self._suspects = _Suspects(suspects.before, confirmed, suspects.op, keys_, "mend", mended=keys_)
            else:
                self._advance(then.found(found, held=suspects.held))

    def report(self) -> list[dict[str, Any]]:
        """One line a watched table: see daemon.verification.shown."""
        said = {table: record for table, record in self.records.items() if self._stands(record)}
        return [self._shown(table, said.get(table)) for table in sorted(self.wanted or ())]

    def _shown(self, table: str, record: Verification | None) -> dict[str, Any]:
        most = self._range(record or Verification(table)) if table in self._slow else None
        told = shown(table, record)
        return {**told, "reason": told["reason"] or slowly(most), "slow": most}

    def _stands(self, record: Verification) -> bool:
        """Is it of what is there now? What was found of something else says nothing."""
        wanted = (self.wanted or {}).get(record.table)
        return wanted is None or record.fits(wanted)

    def _advance(self, record: Verification) -> None:
        self._suspects = None
        if record.step == "extra" and record.after is None and record.table in self._alone:
            record = replace(record, step="done")
        before = self.records.get(record.table)
        new = before is None or before.began_at != record.began_at
        rows, repaired = (0, 0) if new or before is None else (before.rows, before.repaired)
        self._verified(record.table, record.rows - rows, record.repaired - repaired)
        place = record.step != "rows", record.rows
        if place > self._farthest.get(record.table, (False, -1)):
            self._farthest[record.table] = place
            self._waits.pop(record.table, None)
        self.records[record.table] = record = record.done() if record.step == "done" else record
        if record.state == "done":
            self._ended(record)

    def _stumbled(self, record: Verification, state: str, what: str) -> None:
        if state == "55P03":
            self._busy[record.table] = self._clock() + _LOOK
        elif state in _NOT_THERE:
            self._missing(record)
        elif state in {"57014", "53200", "54000"}:
            self._took_too_long(record, state)
        else:
            self._failed(record, f"the target cannot {what} ({state})")

    def _missing(self, record: Verification) -> None:
        """There is nothing to compare with: that is no failure, and over as soon as the target has the table."""
        self._busy[record.table] = self._clock() + _THERE
        if record.asked:
            self._failed(record, NOT_THERE)
        else:
            self._begin_anew()

    def _failed(self, record: Verification, reason: str) -> None:
        self._begin_anew()
        self.records[record.table] = failed = record.failed(reason)
        log.warning("verification_failed", table=record.table, reason=reason)
        self._ended(failed)

    def _ended(self, record: Verification) -> None:
        self._slow.discard(record.table)
        self._waits.pop(record.table, None)
        self._farthest.pop(record.table, None)
        self._unsaved.add(record.table)
        self._due[record.table] = self._clock() + self._pause(record)
        if record.state == "done":
            told = {
                "rows": record.rows,
                "missing": record.missing,
                "different": record.different,
                "extra": record.extra,
            }
            log.log(
                30 if record.drift else 20,
                "table_verified",
                table=record.table,
                **told,
                held=record.held,
                repaired=record.repaired,
            )

    def _pause(self, record: Verification) -> float:
        again = _THERE if record.reason == NOT_THERE else _AGAIN
        return min(self.every, again) if record.state == "failed" else self.every


def _checked(
    before: Verification,
    then: Verification,
    op: Op,
    columns: Sequence[str],
    sheaves: Sequence[Sheaf],
    *,
    keys: int,
) -> Checked:
    """A comparison of what was read: rows without their text are too large to be, as are those with long keys."""
    group, unread = None, list[str]()
    for sheaf in sheaves:  # one of each kind
        if op == "present" or (sheaf.rows is not None and longest(sheaf) <= KEY_BYTES):
            group = question(then.table, op, columns, sheaf)
            continue
        named = split(sheaf.keys)
        short = [sheaf.rows is not None and not is_long(key) for key in named]
        unread += [name_of(key) for key, compared in zip(named, short, strict=True) if not compared]
        if (left := sheaf.only(short)) is not None:
            group = question(then.table, op, columns, left)
    return Checked(before, then, (), group, keys, tuple(unread))
