"""Which table is copied next, and how its rows come into the relay's batches; which tables are out.

Knows the source's wishes, the target's records, and the rule that makes a copy right: rows are read as of the very
snapshot to which the window before them leads (docs/decisions/0016). Knows nothing of flights, nor of SQL. What it
keeps is only ahead of the target while batches are on their way: `learn` begins anew from the target's own word.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import structlog

from daemon import spelling
from daemon.aim import same_rows
from daemon.batch import Batch, Found, Question, stretch
from daemon.copies import (
    COLUMNS,
    Copy,
    Page,
    Progress,
    Wish,
    begun_by,
    choose,
    empties,
    gone,
    known,
    misfit,
    note,
    slowly,
)  # fmt: skip
from daemon.errors import CaptureLost, CopyRefused, DaemonError, Kind, SourceUnavailable, TargetError, advice
from daemon.hold import Key, is_digest
from daemon.letters import Letters
from daemon.noticing import Noticing
from daemon.plan import Group
from daemon.printable import word
from daemon.ranges import Look
from daemon.sheaf import Sheaves, glue, split
from daemon.source import Source
from daemon.target import Answer, Target

log = structlog.get_logger()

_ALL = {"OB005", "OB006"}  # speak of the door or of a reference, not of a table that does not fit
# No step of a plan mends what a table has too much of, nor that somebody has it locked.
_NO_STEP = {"OB014", "55P03", "57014"}
_PASSES = {"55P03", "57014"}  # somebody has the table locked, or it takes too long
_REASON = 1000  # characters: the target tells it in every answer that lists copies
_LONGEST = 64  # times `recheck` that a table which goes out again and again is left alone at most
_LOOK = 1.0  # seconds between two looks at the source's wishes


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What of a batch is sent: without changes of tables that are out (`aside`), with what is to be noted, and which columns its
    rows set to null (`vacates`)."""

    sheaves: Sheaves
    notes: tuple[Group, ...]
    aside: Sheaves = ()
    vacates: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Copier:
    """Reads for the relay. `rate`: rows a second that are copied at most, 0: as many as there are.

    `recheck`: seconds between looks whether a table that is out fits again. `mend`, when given, is asked to make it fit.
    """

    def __init__(
        self, source: Source, target: Target, *, rate: float = 0.0, recheck: float = 15.0,
        mend: Callable[[str], Awaitable[None]] | None = None, noticing: Noticing | None = None,
    ) -> None:  # fmt: skip
        self._source = source
        self._target = target
        self._rate = rate
        self._recheck = recheck
        self._mend = mend
        self.noticing = noticing or Noticing(source)
        self.order: Mapping[str, int] = {}
        self.copies: dict[str, Copy] = {}
        self.out: set[str] = set()
        self.wishes: dict[str, Wish] = {}
        self.stopping = False
        self._only_held: dict[str, set[str]] = {}  # keys that are held, of rows that the target does not have
        self._no_values: dict[str, set[str]] = {}  # of these those that no row there can have
        self.held_of: Callable[[str], Collection[str]] = lambda _: ()  # keys of a table that are held
        self._noting: dict[str, Copy] = {}  # tables that have just gone out: the target is told with the next batch
        self._telling: dict[str, Copy] = {}  # what batches on their way tell it: they may be refused for another table
        self._fit: set[str] = set()
        self._begun: set[str] = set()  # copies that the target has not yet said it knows of
        # When a table kept all others waiting last, and its pause then.
        self._hurdles: dict[str, tuple[float, float]] = {}
        self._numbers: dict[str, Any] = {}  # of the target's tables: one that is made anew has another
        self._patience: dict[str, float] = {}  # how long a table that went out while it was copied is left alone
        self._mending: asyncio.Task[None] | None = None
        self._watched: set[str] | None = None  # None: not looked yet
        self._looked = self._mended_at = float("-inf")
        self._fits_at: dict[str, float] = {}  # when a table that is out is looked at again
        self._due = 0.0
        self._busy: dict[str, float] = {}  # until when a table that is locked, or slow, is left alone
        self._most: dict[str, int] = {}  # rows of a table that are read at once, where more took too long
        self._unasked: dict[
            str, tuple[tuple[str, ...], str | None]
        ] = {}  # keys found on the target, and the next place

    def learn(self, answer: Answer) -> None:
        """Begin anew from what the target says."""
        if "copies" not in answer.more:
            return
        seen = {(table, copy.after): copy.seen for table, copy in self.copies.items() if copy.step == "rows"}
        there = known(answer.more["copies"])
        untold = {**self._telling, **self._noting}
        self._noting = {name: one for name, one in untold.items() if name not in there or there[name].state != "out"}
        self._telling = {}
        self.copies = {
            name: replace(one, seen=seen.get((name, one.after))) for name, one in there.items()
        } | self._noting
        self.out = {table for table, copy in self.copies.items() if copy.state == "out"}
        self._begun = set()
        self._unasked.clear()

    def ring(self) -> None:
        """Somebody may have asked for something: look at once."""
        self._looked = float("-inf")

    def recheck(self) -> None:
        """What was out may fit by now: look at once."""
        self._looked = float("-inf")
        self._fits_at.clear()

    # -- reading ---------------------------------------------------------------------------------------------

    def due_in(self) -> float | None:
        """Seconds until there are rows to be copied; None: there are none."""
        return None if self.stopping or not self._candidates() else max(0.0, self._due - time.monotonic())

    @property
    def asked(self) -> bool:
        """Is there something to be copied? A table that is locked is waited for, one that is out is not."""
        return not self.stopping and bool(self._candidates(locked=True))

    async def begin(self) -> Look | None:
        """What to ask next of the source as of a snapshot."""
        now = time.monotonic()
        if now >= self._looked + _LOOK:
            self._looked = now
            await self._look(now)
        candidates = self._candidates()
        chosen = choose([copy for copy, _ in candidates.values()], self.order)
        if self.stopping or chosen is None or now < self._due:
            nothing = Progress(None)  # but what is to be noted of tables that have gone out
            return Look(None, lambda _, end: _after(end, nothing)) if self._noting else None
        copy, begins = candidates[chosen.table]
        if begins:
            self._unasked.pop(copy.table, None)  # of the one before
            copy = await self._emptying(copy)
        if copy.step == "rows":
            limits = self._source.limits
            most = min(limits.changes, max(1, int(self._rate / 5))) if self._rate else limits.changes
            most = min(most, self._most.get(copy.table, most))
            behind = copy.seen or copy.after
            keys = None if behind is None else (behind,)
            question = Question(copy.table, "rows", keys, most, limits.bytes, copy.aim)
            return Look(question, partial(self._rows, copy, begins, question), self._refused)
        if copy.table in self._begun:
            return None  # since when it has not been written, the target knows once it has the first of the rows
        if copy.table not in self._unasked and not await self._unwritten(copy):
            return None
        extra, place = self._unasked[copy.table]
        some = min(self._most.get(copy.table, len(extra)), self._source.limits.changes)
        if left := extra[some:]:
            place = copy.after
        question = Question(copy.table, "missing", extra[:some], aim=copy.aim)
        return Look(question, partial(self._extra, copy, place, question, left=left), self._refused)

    async def _unwritten(self, copy: Copy) -> bool:
        """Learn keys of rows that the target may have too much, and where it is to be asked next. False: they are of another
        table than the copy is in, or it is locked, or too slow, now."""
        # Held keys, too: what a table that was out has missed may be the delete of one. They are released key by key.
        # Those of other columns than its key are no rows of it: they go once it is copied.
        held = sorted(self.held_of(copy.table) if copy.prune and copy.after is None else ())
        if held:
            identity = (await Letters(self._source).identities({copy.table}))[copy.table]
            held = [key for key in held if identity.names(key) and not is_digest(key)]  # whose row may be there
        try:
            more = (await self._too_many(copy, held)).more
        except TargetError as exc:
            if exc.refusal.sqlstate not in _PASSES or exc.refusal.table is None:
                raise
            self._busy[copy.table] = time.monotonic() + self._recheck  # the others go on
            return False
        if more.get("elsewhere"):
            self.copies[copy.table] = replace(self.copies[copy.table], here=False)
            return False
        self._only_held[copy.table] = set(held).difference(more["keys"])
        self._no_values[copy.table] = {held[at] for at in more.get("no_values", ())}
        self._unasked[copy.table] = (*more["keys"], *sorted(self._only_held[copy.table])), more.get("place")
        return True

    async def _too_many(self, copy: Copy, held: Sequence[str]) -> Answer:
        try:
            return await self._target.unwritten(copy.table, copy.after, spelling.asked(held) if held else (), len(held))
        except TargetError as exc:
            if exc.kind is not Kind.DATA:
                raise
            why = f"the target cannot say which rows of {copy.table} it has too many ({exc.refusal.sqlstate})"
            raise TargetError(Kind.CONTRACT, why, replace(exc.refusal, table=copy.table, message=why)) from None

    async def _emptying(self, copy: Copy) -> Copy:
        """With columns that travelled before this copy and do not any more: what the target has in them goes, where it can."""
        before = self.copies.get(copy.table)
        if before is not None and before.here and same_rows(before.aim, copy.aim):
            return copy
        try:
            left = {name for (name,) in await self._source.ask("copy_left_home", {"table": copy.table})}
        except SourceUnavailable:  # should it be this question that takes too long, the other tables go on
            self._busy[copy.table] = time.monotonic() + self._recheck
            raise
        if not left:
            return copy
        goes, stays = empties(copy.table, (await self._target.describe()).more, left)
        return replace(copy, empties=goes, kept=stays)

    def _refused(self, exc: CopyRefused) -> None:
        if exc.other:
            self.ring()
        elif exc.busy:
            self._busy[exc.table] = time.monotonic() + _LOOK
        elif exc.slow:
            self._slow_down(exc.table)
        elif not self._put_out(exc.table, str(exc)):
            self.stays_out(exc.table, str(exc))

    def _candidates(self, *, locked: bool = False) -> dict[str, tuple[Copy, bool]]:
        """Tables of which something is to be copied, and whether that begins with it. `locked`: also those."""
        found, now = {}, time.monotonic()
        for table, wish in self.wishes.items():
            if not locked and self._busy.get(table, now) > now:
                continue
            copy = self.copies.get(table)
            if copy is not None and copy.state == "out":
                if table in self._fit:
                    found[table] = copy.begun(wish), True
            elif begun_by(copy, wish):
                found[table] = (copy or Copy(table)).begun(wish), True
            elif copy is not None and copy.state == "copying":
                prune = copy.prune or wish.missed(wish.prune, copy)
                found[table] = replace(copy, wish=wish.number or copy.wish, prune=prune), False
        return found

    def _rows(self, copy: Copy, begins: bool, question: Question, found: Found, end: Batch) -> Batch | None:
        read = stretch(question, found, end.read_us)
        then = copy.further(Page(read.last or copy.after, read.whole, read.seen), read.count, 0)
        if self._rate:
            self._due = max(self._due, time.monotonic()) + read.count / self._rate
        if begins:
            self._begun.add(copy.table)
        self.copies[copy.table] = then
        if not (read.sheaves or begins or read.whole):
            return None  # looked further, and that is nothing to tell
        shapes = {COLUMNS: read.columns}
        return _after(end, Progress(then, begins, read.count), read.sheaves, shapes, more=self._goes_on())

    def _slow_down(self, table: str) -> None:
        """Fewer rows of this table at once, after the others' turn; one that is too slow alone waits for long."""
        before = self._most.get(table, self._source.limits.changes)
        self._most[table] = max(1, before // 4)
        self._busy[table] = time.monotonic() + (_LOOK if before > 1 else self._recheck)
        log.warning("copy_slowed", table=table, rows=self._most[table], because="its rows take too long to read: large ones, or a slow filter")  # fmt: skip

    def _extra(
        self, copy: Copy, place: str | None, question: Question, found: Found, end: Batch, *, left: tuple[str, ...]
    ) -> Batch:
        read = stretch(question, found, end.read_us)
        _, after = self._unasked.pop(copy.table)
        if left:
            self._unasked[copy.table] = left, after
        sheaves, freed = self._freed(copy.table, read.sheaves) if copy.prune else ((), frozenset())
        extra = sum(key not in self._only_held[copy.table] for sheaf in read.sheaves for key in split(sheaf.keys))
        then = copy.further(Page(place, place is None and not left), extra, extra if copy.prune else 0)
        self.copies[copy.table] = then
        return _after(end, Progress(then, freed=freed), sheaves, more=self._goes_on())

    def _freed(self, table: str, sheaves: Sheaves) -> tuple[Sheaves, frozenset[Key]]:
        """Without deletes of keys that no row of the target can have (a label of an enum has another name by now): it would refuse
        them."""
        no_values = self._no_values.get(table)
        if not no_values:
            return sheaves, frozenset()
        keys = [key for sheaf in sheaves for key in split(sheaf.keys)]
        left = [key for key in keys if key not in no_values]
        deletes = (gone(table, glue(left), sheaves[0].times[0]),) if left else ()
        return deletes, frozenset((table, key) for key in no_values.intersection(keys))

    def _goes_on(self) -> bool:
        return not self._rate and bool(self._candidates())

    def settled(self, table: str, aim: str | None) -> bool:
        """Has a copy, or every change, brought it as it is wanted now?"""
        copy, wish = self.copies.get(table), self.wishes.get(table)
        if copy is None or wish is None or copy.state != "done" or table in self._noting:
            return False
        return copy.here and aim == wish.aim and same_rows(copy.aim, aim) and wish.number in (0, copy.wish)

    @property
    def keeps(self) -> bool:
        """Are there columns that are to be set to null as soon as they can be?"""
        return any(copy.kept or copy.awaits for copy in self.copies.values())

    @property
    def slow(self) -> Mapping[str, int]:
        """Tables whose rows take too long to read: how many are read at once."""
        return self._most

    def away(self, table: str) -> bool:
        """Is it out, or not yet copied as somebody wishes? Then it says nothing to compare it."""
        copy, wish = self.copies.get(table), self.wishes.get(table)
        begins = wish is not None and begun_by(copy, wish)
        return begins or table in self._noting or (copy is not None and copy.state != "done")

    def vacant(self, table: str) -> Sequence[str]:
        """Columns that once travelled and do not any more: rows that are written again set them to null."""
        copy, wish = self.copies.get(table), self.wishes.get(table)
        return copy.vacant if copy is not None and wish is not None and copy.fits(wish) else ()

    # -- sending ---------------------------------------------------------------------------------------------

    async def meets(self, batch: Batch) -> None:
        """Are there tables in it that have been watched since the last look? Where their first rows go is to be on record."""
        if batch.copied is None and batch.checked is None:
            unknown = {sheaf.table for sheaf in batch.sheaves} - self.wishes.keys() - self.copies.keys()
            if unknown and await self._source.ask("copy_met", {"tables": sorted(unknown)}):
                await self._wish()

    def outgoing(self, batch: Batch) -> Outgoing:
        """What of it is sent."""
        notes = [note(copy, begins=False) for copy in self._noting.values()]
        self._telling |= self._noting
        self._noting = {}
        if batch.checked is not None:
            vacates = {table: self.vacant(table) for table in {sheaf.table for sheaf in batch.sheaves}}
            return Outgoing(batch.sheaves, (*notes, *batch.checked.notes), vacates=vacates)
        if batch.copied is None or batch.copied.copy is None:
            sheaves = tuple(sheaf for sheaf in batch.sheaves if sheaf.table not in self.out)
            aside = tuple(sheaf for sheaf in batch.sheaves if sheaf.table in self.out)
            tables = {sheaf.table for sheaf in sheaves}
            vacates = {table: self.vacant(table) for table in tables}
            return Outgoing(sheaves, (*notes, *self._first(tables)), aside, vacates)
        copy = batch.copied.copy
        if batch.copied.begins:
            self.out.discard(copy.table)
            self._fit.discard(copy.table)
        notes.append(note(copy, begins=batch.copied.begins))
        return Outgoing(batch.sheaves, tuple(notes), vacates={copy.table: copy.empties})

    def _first(self, tables: set[str]) -> list[Group]:
        """Of tables that were empty when they were watched: rows go there from here on, so that it is known where to."""
        first = []
        for table in sorted(tables & self.wishes.keys() - self.copies.keys()):
            wish = self.wishes[table]
            if wish.number == 0 and wish.aim is not None:
                self.copies[table] = Copy(table, "done", step="extra", aim=wish.aim)
                first.append(note(self.copies[table], begins=True))
        return first

    @property
    def captured(self) -> set[str]:
        """Tables that are captured, as far as is known."""
        return self._watched or set()

    @property
    def renewed(self) -> set[str]:
        """Tables of which letters may be older than what is on its way: changes were skipped, and a copy makes that good. It
        would take a row that such a letter wrote for a new one."""
        return self.out | {table for table, copy in self.copies.items() if copy.state == "copying" and copy.prune}

    @property
    def told_out(self) -> set[str]:
        """Tables that are out by the target's own word."""
        return self.out - self._noting.keys()

    def told(self, notes: Sequence[Group]) -> None:
        """The target has these notes."""
        for group in notes:
            self._telling.pop(group.table, None)

    async def arrived(self, progress: Progress) -> None:
        """The target has it."""
        copy = progress.copy
        if copy is None:
            return
        if progress.begins:
            self._begun.discard(copy.table)
            log.info("copy_begun", table=copy.table, wish=copy.wish, prune=copy.prune)
        if copy.state == "done":
            self._most.pop(copy.table, None)
            self._patience.pop(copy.table, None)
            log.info("table_copied", table=copy.table, rows=copy.rows, extra=copy.extra, pruned=copy.pruned)
            await self._source.ask("letters_wake", {"states": None})

    # -- tables that do not fit --------------------------------------------------------------------------------

    def blames(self, exc: DaemonError) -> bool:
        """Is one table to blame for what failed? Then it is out, and the others may go on."""
        if isinstance(exc, CaptureLost):
            return self._put_out(exc.table, str(exc))
        if not isinstance(exc, TargetError) or (table := exc.refusal.table) is None:
            return False
        reason = advice(exc.kind, exc.refusal)
        if exc.kind is Kind.AUTH:  # a missing right; one that the door itself lacks names no table
            return self._put_out(table, reason)
        if exc.kind is Kind.CONTRACT and exc.refusal.sqlstate not in _ALL:
            planned = (self._watched is None or table in self._watched) and exc.refusal.sqlstate not in _NO_STEP
            step = f"; `outboxd schema plan {word(table)}` names the step" if planned else ""
            return self._put_out(table, f"{reason}{step}", hurdle=exc.refusal.sqlstate in _PASSES)
        return False

    def stays_out(self, table: str, reason: str) -> None:
        """It was tried again, and does not fit yet."""
        reason = reason[:_REASON]
        if table in self.copies and self.copies[table].reason != reason:
            self.copies[table] = replace(self.copies[table], reason=reason)
            log.warning("table_out", table=table, reason=reason)

    def unmet(self, table: str) -> str | None:
        """Why a table that is gone here stays out although nothing waits for it: it would begin to be copied, and be out again."""
        copy, wish = self.copies.get(table, Copy(table)), self.wishes.get(table)
        if wish is None or not begun_by(replace(copy, state="done"), wish):
            return None
        return (
            f"{table} is to be copied, and the source has no such table any more: it goes on once the table is there again; "
            f"`outboxd unwatch {word(table)}` gives it up"
        )

    def came_back(self, copy: Copy) -> None:
        """All that waited for the table has arrived, and the target knows."""
        self.copies[copy.table] = copy
        self.out.discard(copy.table)
        log.info("table_back", table=copy.table)

    def _put_out(self, table: str, reason: str, *, hurdle: bool = False) -> bool:
        """`hurdle`: all others have waited to find that out, so that it is left alone for longer each time it comes soon."""
        self._fit.discard(table)
        pause, now = self._recheck, time.monotonic()
        if hurdle:
            last, before = self._hurdles.get(table, (float("-inf"), 0.0))
            pause = min(2 * before or pause, _LONGEST * pause) if now < last + 2 * _LONGEST * pause else pause
            self._hurdles[table] = now, pause
        going = table not in self.out or self.copies[table].state != "out"
        if going and table in self.copies and self.copies[table].state == "copying":  # it seemed to fit, and did not
            patience = min(2 * self._patience.get(table, self._recheck / 2), _LONGEST * self._recheck)
            pause, self._patience[table] = max(pause, patience), patience
        self._fits_at[table] = now + pause
        if not going:
            return False  # none of its changes was sent: it cannot be that
        reason = reason[:_REASON]
        aim = self.wishes[table].aim if table in self.wishes else None  # with it: a copy is to bring what is skipped
        self.copies[table] = self._noting[table] = self.copies.get(table, Copy(table, aim=aim)).went_out(reason)
        self.out.add(table)
        log.error("table_out", table=table, reason=reason)
        return True

    async def _wish(self) -> None:
        self.wishes = {wished[0]: Wish(*wished) for wished in await self._source.ask("copy_wanted")}
        self._watched = set(self.wishes)

    async def _look(self, now: float) -> None:
        """What does the source want, and does a table that is out fit again?"""
        await self.noticing.due(now, self._recheck)
        await self._wish()
        waiting = (self.out & self.wishes.keys()) - self._fit
        due = sorted(table for table in waiting if now >= self._fits_at.get(table, float("-inf")))
        if not due:
            return
        self._fits_at |= dict.fromkeys(due, now + self._recheck)
        if (
            self._mend is not None
            and now >= self._mended_at + self._recheck
            and (self._mending is None or self._mending.done())
        ):
            self._mended_at = now
            self._mending = asyncio.create_task(self._mended(self._mend, due))
        described = (await self._target.describe()).more
        for other in (one for one in described["tables"] if one["table"] in due):
            table, number = other["table"], other.get("number")
            if self._numbers.setdefault(table, number) != number:  # it has kept nobody waiting
                self._hurdles.pop(table, None)
                self._patience.pop(table, None)
                self._numbers[table] = number
        for table, unfit, columns, key in await self._source.ask("copy_fit", {"tables": due}):
            reason = unfit or misfit(table, described, columns, key)
            if reason is None:
                self._fit.add(table)

    async def _mended(self, mend: Callable[[str], Awaitable[None]], tables: Sequence[str]) -> None:
        """Beside the relay, which does not wait for it; then it looks again."""
        for table in tables:
            await mend(table)
            self._fits_at.pop(table, None)

    def report(self) -> list[dict[str, Any]]:
        """One line a watched table that has been, is or will be copied, and one a table that is out."""
        shown = []
        tables = {table for table, copy in self.copies.items() if not copy.never}
        tables |= {wish.table for wish in self.wishes.values() if wish.number}
        for table in sorted(tables if self._watched is None else tables & (self._watched | self.out)):
            copy, wish = self.copies.get(table, Copy(table)), self.wishes.get(table)
            shown.append({
                "table": table, "state": copy.state, "rows": copy.rows, "estimate": wish.estimate if wish else None,
                "extra": copy.extra, "pruned": copy.pruned, "reason": copy.reason or slowly(self._most.get(table)),
                "slow": self._most.get(table),
            })  # fmt: skip
        return shown


def _after(
    end: Batch, progress: Progress, sheaves: Sheaves = (), shapes: Mapping[int, tuple[str, ...]] | None = None,
    *, more: bool = False,
) -> Batch:  # fmt: skip
    """What was read as a batch of its own, which stays at the cursor where the window has led."""
    return replace(end, sheaves=sheaves, shapes=shapes or {}, torn=0, more=more, copied=progress)
