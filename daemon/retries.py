"""Dead letters on their way again: those that somebody wants sent or dropped, and those of tables that are out.

Knows which letters may go and in which order. Knows nothing of batches of changes, nor how a parcel is sent: that is
daemon/delivery.py.

A table that is out and that a copy can bring back loses nothing: its changes were skipped. What a table has that only
the application fills waits as letters, all of it, in order (promise I1): these are tried again every `recheck` seconds,
and once the last has arrived the table is no longer out.

A letter is sent again by itself when what refused it may have gone: the target's tables are others than before, or other
rows have arrived. The first is looked for every `recheck` seconds; the second costs a try each time, so after one that
brings nothing the next waits twice as long.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

import structlog

from daemon.copier import Copier
from daemon.copies import Copy, note
from daemon.delivery import LOCKED, REFERENCES, SLOW, Delivery, Load, Parcel, few_shapes
from daemon.errors import CaptureLost, DaemonError, Kind, SourceUnfit, TargetError, advice, passes
from daemon.hold import STRANGER, Identity, Key, Letter, Why, is_digest, key_of, names
from daemon.letters import LEFT, OUT, Letters, Wanted
from daemon.plan import Plan
from daemon.sheaf import Change, Sheaves, bind
from daemon.sizing import Portion
from daemon.target import Answer
from outbox import Cursor

log = structlog.get_logger()

_RETRIED = 100  # keys that go into one retry
_DRAINED = 1000  # letters of a table that was out that go at once
_SELDOM = 4  # times `recheck` between two tries of what takes long, though the target's tables change all the time
_LONGEST = 64  # times `recheck` that letters wait at most for another try, while changes arrive

RESTORED = Why("the target was restored to when this was a dead letter; it is sent again", "OB012")
LEFT_OVER = "what waits was recorded while it was watched as something else: discard those letters"
LOST = Why(
    "the target holds its key, and nothing has its change any more: emit the row again, or discard this", LEFT.sqlstate
)

Done = tuple[Plan, Answer]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the target stands, and the number that comes next: letters go without moving its cursor."""

    cursor: Cursor
    epoch: int
    batch_no: int
    after: str

    def parcel(self, sheaves: Sheaves, shapes: dict[int, tuple[str, ...]]) -> Parcel:
        """Letters, to be sent behind what the target has."""
        return Parcel(sheaves, shapes, self.cursor, self.epoch, self.batch_no, self.after, letters=True)


@dataclass(slots=True)
class Hurdles:
    """When letters are tried again that took the target too long, or that somebody had locked: that may end without any change.
    All that is behind them waits with each try, so that nothing makes these more frequent but
    their own success, and a change of the target's tables (`hasten`)."""

    recheck: float
    most: int = 1
    _keys: set[Key] = field(default_factory=set)
    _due: float | None = None
    _pause: float = 0.0
    _at: float = float("-inf")

    def due(self, now: float, held: Collection[Key]) -> bool:
        if self._keys and self._keys.isdisjoint(held):
            self._keys, self._pause, self._due, self.most = set(), 0.0, now, min(_RETRIED, 2 * self.most)
        if self._due is None:
            self._due = now + self.recheck
        return now >= self._due

    def tried(self, now: float, keys: set[Key]) -> None:
        if self._keys:
            self.most = 1
        self._keys, self._at = keys, now
        self._pause = min(max(2 * self._pause, self.recheck), _LONGEST * self.recheck)
        self._due = now + self._pause

    def hasten(self, now: float) -> None:
        """What took long may be another by now."""
        if self._due is not None:
            self._due = max(now, min(self._due, self._at + _SELDOM * self.recheck))


@dataclass(slots=True)
class Stumbles:
    """Letters whose try met what may pass, or was lost: all others wait with each such try. They go one by one, by one clock that
    doubles, and the one that was tried last waits twice as long as those beside it; other letters go on meanwhile."""

    recheck: float
    _dues: dict[Key, float] = field(default_factory=dict)
    _due: float = float("-inf")
    _pause: float = 0.0

    def later(self, now: float) -> set[Key]:
        """Those that are not to go now."""
        return {key for key, due in self._dues.items() if now < max(due, self._due)}

    def alone(self, now: float) -> set[Key]:
        """Those of which one may go now, by itself."""
        return self._dues.keys() - self.later(now)

    def met(self, keys: Collection[Key], now: float) -> None:
        self._pause = min(max(2 * self._pause, self.recheck), _LONGEST * self.recheck)
        self._due = now + self._pause
        self._dues |= dict.fromkeys(keys, now + 2 * self._pause)

    def settle(self, held: Collection[Key], now: float) -> None:
        """Some of them may have arrived: then the others may go as well."""
        left = {key: due for key, due in self._dues.items() if key in held}
        if len(left) < len(self._dues):
            self._dues, self._pause, self._due = left, 0.0, now


class Retries:
    """Sends letters again when it is asked to, and once they may fit. `structured` tells one state of the target's tables
    from another; `cover` is told of letters on their way."""

    def __init__(
        self, delivery: Delivery, letters: Letters, copier: Copier, *, recheck: float = 15.0,
        structured: Callable[[], Awaitable[str | None]],
        cover: Callable[["asyncio.Task[Done]", Wanted, Load], object] | None = None,
    ) -> None:  # fmt: skip
        self._delivery = delivery
        self._letters = letters
        self._copier = copier
        self._recheck = recheck
        self._structured = structured
        self._cover = cover
        self._at_once = _RETRIED
        self._orphans: set[Key] = set()  # keys that were held without a letter when it was looked last
        self._tried: dict[str, float] = {}  # when a table that is out was tried last, also if that brought it back
        self._slow: dict[str, float] = {}  # seconds that a table that is out waits, where its letters took too long
        self._portions: dict[str, Portion] = {}  # letters of such a table that go at once
        self._left: dict[str, float] = {}  # when letters of a table that nobody sends were looked for last
        self._structure: str | None = None  # of the target's tables, when it was looked at last
        self._holds = 0
        self._looked = self._due = float("-inf")
        self._pause = recheck
        self._hurdles = Hurdles(recheck)
        self._stumbles = Stumbles(recheck)
        self._sent = 0  # batches of letters of which none arrived
        self._woken_at = 0  # the target's number without these, when letters were woken

    @property
    def any(self) -> bool:
        """Are there letters that may go at some time?"""
        return bool(self._delivery.held or self._copier.out)

    async def turn(self, place: Place) -> Done | None:
        """Send what is wanted; None: nothing is, or nothing of it may go now. Raises what sending raises."""
        await self._wake(place)
        return await self._asked(place) or await self._parked(place)

    def learn(self, described: Mapping[str, Any]) -> None:
        """The target's tables as they are when nothing is known of letters yet."""
        self._structure = self._structure or described.get("structure")

    async def adopt(self, cursor: Cursor, *, restored: bool) -> None:
        """Keys that are held and have no letter: the target was restored to when they had one. Of a captured table their rows
        are recorded anew, and where there is none any more a letter deletes it; of others the outbox may still have them, and
        where it has not they stay held, and say so. So with tables that are out (`restored`)."""
        lost = await self._letters.orphans(self._delivery.held)
        identities = await self._letters.identities(
            {table for table, _ in lost} | (self._copier.out if restored else set())
        )
        self._orphans = set(lost)
        for table in {table for table, _ in lost}:
            identity, keys = identities[table], {key for of_table, key in lost if of_table == table}
            if identity.aim is None:
                await self._letters.restore(table, keys, RESTORED, cursor)
                if nowhere := await self._letters.orphans({(table, key) for key in keys}):
                    changes = [Change(0, 0, table, "lost", None, key, None, 0, False, 0) for _, key in sorted(nowhere)]
                    await self._letters.hold_gone([Letter(one, LOST) for one in changes], cursor)
                continue
            rows = {
                key for key in keys if identity.names(key) and not is_digest(key)
            }  # the others go once their table is copied
            if any(map(is_digest, keys)):  # nobody can say whose names these are
                await self._letters.copy(table)
            try:
                await self._letters.touch(table, sorted(rows))
                gone = await self._letters.missing(table, rows)
            except SourceUnfit as exc:  # its rows cannot be read as it is: they come with it once they can
                log.warning("table_unread", table=table, reason=str(exc))
                await self._letters.copy(table)
                self._orphans -= {(table, key) for key in keys}
                continue
            deletes = [Change(0, 0, table, "delete", None, key, None, 0, False, 0) for key in sorted(rows & gone)]
            if deletes:
                await self._letters.hold_gone([Letter(one, RESTORED) for one in deletes], cursor)
                await self._letters.ask([key_of(one) for one in deletes])
        for table in await self._letters.uncopied(self._copier.out) if restored and self._copier.out else ():
            why = Why(f"{table} is out: {self._copier.copies[table].reason}", OUT)
            await self._letters.restore(table, None, why, cursor)

    async def _adopted(self, others: Collection[Key]) -> set[Key]:
        """Of keys that had no letter those that have none still: what was recorded anew of them may flow. The letters that
        others have by now go."""
        orphans = self._orphans & self._delivery.held
        self._orphans = set()
        if not orphans:
            return set()
        still = await self._letters.orphans(orphans)
        await self._letters.ask(orphans - still)
        return still.difference(others)

    # -- by itself -----------------------------------------------------------------------------------------

    async def _wake(self, place: Place) -> None:
        """Ask for letters whose cause may have gone."""
        now, holds = time.monotonic(), self._delivery.holds
        self._stumbles.settle(self._delivery.held, now)
        if not self._delivery.held:
            self._holds, self._due, self._pause = holds, float("-inf"), self._recheck
            self._hurdles = Hurdles(self._recheck)
            return
        if self._due == float("-inf"):
            self._due = now + self._recheck
        if holds != self._holds or now >= self._looked + self._recheck:
            self._holds, self._looked = holds, now
            before, self._structure = self._structure, await self._structured()
            if None not in (before, self._structure) and before != self._structure:
                log.info("letters_woken", because="the target's tables have changed")
                await self._letters.wake(None)
                self._pause, self._due = self._recheck, now + self._recheck
                self._hurdles.hasten(now)
        if now >= self._due and (arrived := place.batch_no - self._sent) != self._woken_at:
            await self._letters.wake({*REFERENCES, str(STRANGER.sqlstate)})
            self._due, self._woken_at = now + self._pause, arrived
            self._pause = min(2 * self._pause, _LONGEST * self._recheck)
        if self._hurdles.due(now, self._delivery.held):
            self._hurdles.tried(now, await self._letters.wake_hurdles(self._hurdles.most))

    # -- of keys that are held -----------------------------------------------------------------------------

    async def _asked(self, place: Place) -> Done | None:
        delivery, now = self._delivery, time.monotonic()
        if not delivery.held:
            return None
        before = len(delivery.held)
        identities = await self._letters.identities({table for table, _ in delivery.held})
        others = self._others(identities)
        identities |= await self._letters.identities(set(others.values()) - identities.keys())
        copied = {
            table for table, one in identities.items() if one.aim and one.sure and self._copier.settled(table, one.aim)
        }
        left = {table for table, one in identities.items() if one.left_over and one.aim is None and one.sure}
        await self._leave(left.difference(table for table, _ in others))
        unsure = {table for table, one in identities.items() if not one.sure}
        heirs = {heir for (table, _), heir in others.items() if heir != table and heir in copied}
        copied -= {heir for heir in heirs if not await self._inherited(heir)}
        obsolete = {key for key, table in others.items() if table in copied} | await self._letters.obsolete(copied)
        obsolete |= await self._adopted(others.keys())
        asking = self._copier.renewed | unsure
        not_now = others.keys() | self._later(identities) | self._stumbles.later(now)
        slow: set[Key] = self._stumbles.alone(now).union(*delivery.slow.values()) - not_now
        wanted = await self._letters.wanted(place.cursor, self._at_once, asking, not_now | slow)
        if slow and not (wanted.retry or wanted.discard):  # by itself: what went with it would be refused, too
            wanted = await self._letters.wanted(place.cursor, 1, asking, not_now)
        retried = {key_of(change) for change in wanted.retry}
        asked = retried | wanted.discard | obsolete
        if stale := asked - delivery.held:
            await self._letters.forget(stale, place.cursor, wake=False)
        keys = frozenset(asked & delivery.held)
        if not keys:
            return None
        waiting = [change for change in wanted.retry if key_of(change) in keys]
        changes, shapes = vacated(waiting, wanted.shapes, self._copier.vacant)
        log.info(
            "letters_retried", changes=len(changes), discarded_keys=len(wanted.discard & delivery.held),
            obsolete_keys=len(obsolete & keys),
        )  # fmt: skip
        try:
            vacates = {table: self._copier.vacant(table) for table, _ in keys}
            parcel = replace(
                place.parcel(bind(changes), shapes), retried=keys, vacates=vacates, called=called(identities)
            )
            load = await delivery.prepare(parcel)
            sending = asyncio.create_task(delivery.send(load))
            if self._cover is not None:
                self._cover(sending, wanted, load)
            done = await sending
        except (TargetError, CaptureLost) as exc:
            if isinstance(exc, TargetError) and exc.kind is Kind.SIZE and len(asked) > 1 and self._at_once > 1:
                self._at_once = 1 if exc.refusal.sqlstate is not None else self._at_once // 2
                return await self._asked(place)
            if not await self._stay(exc, changes):
                raise
            await self._renew(changes, shapes, identities)
            return None
        self._at_once = min(_RETRIED, 2 * self._at_once)
        if len(delivery.held) < before:  # what arrived may be what others wait for
            self._pause = self._recheck
            self._due = min(self._due, time.monotonic() + self._recheck)
        else:
            self._sent += 1
        return done

    async def _stay(self, exc: TargetError | CaptureLost, changes: Sequence[Change]) -> bool:
        """Letters that are refused as a whole stay, and say why: they must neither stop the relay nor put their table out,
        of which changes may well fit. False: that is not what is the matter."""
        table: str | None = exc.table if isinstance(exc, CaptureLost) else exc.refusal.table
        state = "OB007" if isinstance(exc, CaptureLost) else exc.refusal.sqlstate
        reason = _misfit(exc)
        if reason is None and isinstance(exc, TargetError) and exc.kind is Kind.DATA:
            reason, table = f"the target refuses it together with others ({state})", None
        if reason is None and isinstance(exc, TargetError) and _alive(exc):
            reason, table, state = f"{exc}, when it was tried again", None, state or "54000"
        if reason is None:
            if isinstance(exc, TargetError) and passes(exc.kind):
                self._stumbles.met({key_of(change) for change in changes}, time.monotonic())
            return False
        why = Why(reason, state)
        letters = [Letter(change, why) for change in changes if table in {None, change.table}]
        if letters:
            await self._letters.hold_again(letters)
        return bool(letters)

    async def _leave(self, tables: Collection[str]) -> None:
        """Let letters of these tables that nobody sends say so: there may be very many, so that it is not asked each time."""
        now = time.monotonic()
        if due := {table for table in tables if now >= self._left.get(table, float("-inf")) + self._recheck}:
            self._left |= dict.fromkeys(due, now)
            await self._letters.leave(due)

    def _others(self, identities: Mapping[str, Identity]) -> dict[Key, str]:
        """Held keys that are no keys of their table any more, and the table whose copy brings what they were about: its key has
        other columns now, or it goes by another name to the same place. Sent, their letters would write over newer rows."""
        heirs = {table: self._heir(table, identities[table]) for table, _ in self._delivery.held}
        found = {}
        for table, key in self._delivery.held:
            identity = identities[table]
            if identity.aim is not None and not identity.names(key):
                found[table, key] = table
            elif (heir := heirs[table]) is not None:
                found[table, key] = heir
        return found

    def _heir(self, table: str, identity: Identity) -> str | None:
        """The captured table that has the place on the target of one that is not captured any more, or has gone."""
        places = self._delivery.places
        if identity.aim is not None or not identity.sure or table not in places:
            return None
        captured = (one.table for one in self._copier.wishes.values() if one.aim is not None and one.table != table)
        return next((other for other in sorted(captured) if places.get(other) == places[table]), None)

    async def _inherited(self, heir: str) -> bool:
        """Has a copy of that one brought all that the other's letters are about? With prune, for one may be a delete."""
        if not self._copier.settled(heir, (await self._letters.identities({heir}))[heir].aim):
            return False
        if not (pruned := self._copier.copies[heir].prune):
            await self._letters.copy(heir)
            self._copier.ring()
        return pruned

    def _later(self, identities: Mapping[str, Identity]) -> set[Key]:
        """Held keys of emitted tables, as long as others are held by a key that was, or by a name that their place had: those go
        first (see Delivery.prepare)."""
        place, emitted = self._delivery.place, [one for one in self._delivery.held if identities[one[0]].aim is None]
        mixed = {table for table, key in emitted if not identities[table].names(key)}
        later = {(table, key) for table, key in emitted if table in mixed and identities[table].names(key)}
        ended = {(place(table), key) for table, key in emitted if not identities[table].watched}
        return later | {
            (table, key) for table, key in emitted if identities[table].watched and (place(table), key) in ended
        }

    async def _renew(
        self, changes: Sequence[Change], shapes: Mapping[int, tuple[str, ...]], identities: Mapping[str, Identity]
    ) -> None:
        """Rows that wait with columns which do not travel any more are recorded anew, as they are: the newest row decides."""
        for change in changes:
            travel = identities[change.table].columns
            if travel is not None and change.shape is not None and not travel.issuperset(shapes[change.shape]):
                with contextlib.suppress(SourceUnfit):  # it cannot be read as it is: the letter stays, and says why
                    await self._letters.touch(change.table, [change.key])

    # -- of tables that are out ----------------------------------------------------------------------------

    async def _parked(self, place: Place) -> Done | None:
        """Try the tables that no copy can bring back."""
        if not self._copier.out:
            return None
        waiting = await self._letters.waiting(sorted(self._copier.out), self._delivery.held)
        identities = await self._letters.identities({table for table, *_ in waiting})
        for table, retry, discard in waiting:
            if discard:
                await self._letters.drop(table, self._delivery.held)
            pause = self._slow.get(table, self._recheck)
            due = retry or discard or time.monotonic() >= self._tried.get(table, float("-inf")) + pause
            if (heir := self._heir(table, identities[table])) is not None:
                done = await self._ended_by(heir, table, place)
            else:
                done = await self._again(table, identities[table], place) if due else None
            if done:
                return done
        return None

    async def _ended_by(self, heir: str, table: str, place: Place) -> Done | None:
        """Another one has its place on the target: once that has brought all, nothing waits for this one."""
        if not await self._inherited(heir):
            return None
        await self._letters.end(table, self._delivery.held)
        return await self._come_back(table, place)

    async def _again(self, table: str, identity: Identity, place: Place) -> Done | None:
        """Try what waits for it. It has come back, or part of it has arrived; None: not yet, and not again before `recheck`."""
        self._tried[table] = time.monotonic()
        done = await self._skipped(table, place)
        if done is None:
            if identity.left_over:
                await self._letters.leave({table})
            done = await self._drain(table, identity, place)
        if done and table in self._copier.out:
            del self._tried[table]  # there may be more
        return done

    async def _skipped(self, table: str, place: Place) -> Done | None:
        """What of a table was skipped while it was still captured, for a copy was to bring it, becomes letters, once."""
        copy = self._copier.copies.get(table)
        if copy is None or copy.aim is None or table not in self._copier.told_out:
            return None
        reason = f"{table} is out: {copy.reason or ''}"
        await self._letters.hold_skipped(table, reason, await self._delivery.out_since(table), place.cursor)
        settled = replace(copy, aim=None)
        load = await self._delivery.prepare(replace(place.parcel((), {}), notes=(note(settled, begins=False),)))
        done = await self._delivery.send(load)
        if done[1].what != "mismatch":
            self._copier.copies[table] = settled
        return done

    async def _drain(self, table: str, identity: Identity, place: Place) -> Done | None:
        """Send the first of a table's letters; without any left the table is back. None: it does not fit yet, or those that
        are left are to be discarded."""
        portion = self._portions.setdefault(table, Portion(_DRAINED))
        parked = await self._letters.parked(table, self._delivery.held, place.cursor, portion.now)
        if not parked.changes:
            if identity.left_over and await self._letters.remain(table, self._delivery.held):
                self._copier.stays_out(table, LEFT_OVER)
                return None
            return await self._come_back(table, place)
        # By one key at a time: which row of another one is the same nobody knows, so that the later ones come later.
        named = names(parked.changes[0].key)
        changes = few_shapes(takewhile(lambda one: names(one.key) == named, parked.changes))
        try:
            parcel = place.parcel(bind(changes), dict(parked.shapes))
            load = await self._delivery.prepare(replace(parcel, called=called({table: identity})))
            done = await self._delivery.send(load)
        except (TargetError, CaptureLost) as exc:
            reason = await self._unfit(exc, table)
            if reason is None:
                raise
            if isinstance(exc, TargetError) and (exc.kind is Kind.SIZE or exc.refusal.sqlstate in {SLOW, LOCKED}):
                if exc.refusal.sqlstate != LOCKED:
                    portion.refused(len(changes), time.monotonic())
                self._slow[table] = min(2 * self._slow.get(table, self._recheck / 2), _LONGEST * self._recheck)
            self._copier.stays_out(table, reason)
            await self._letters.stay(table, f"{table} is out: {reason}")
            return None
        self._slow.pop(table, None)
        portion.arrived(time.monotonic())
        if done[1].what != "mismatch":
            await self._letters.delivered([one.id for one in changes if one.id not in load.kept])
        return done

    async def _unfit(self, exc: TargetError | CaptureLost, table: str) -> str | None:
        """Why a table that is out cannot be back; None: that is not what is the matter. What is refused and cannot be held row by
        row (a TRUNCATE) is nothing that the other tables have to wait for, unless its owner wants the relay to halt."""
        if isinstance(exc, TargetError) and exc.kind is Kind.DATA and await self._delivery.spares(table):
            return f"{exc}: {advice(exc.kind, exc.refusal)}"
        if isinstance(exc, TargetError) and exc.kind is Kind.SIZE and await self._delivery.spares(table):
            return f"{exc}, for what waits of {table}: it is sent one by one"
        return _misfit(exc)

    async def _come_back(self, table: str, place: Place) -> Done | None:
        if (unmet := self._copier.unmet(table)) is not None:
            self._copier.stays_out(table, unmet)
            return None
        back = replace(self._copier.copies.get(table, Copy(table)), state="done", reason=None)
        load = await self._delivery.prepare(replace(place.parcel((), {}), notes=(note(back, begins=False),)))
        done = await self._delivery.send(load)
        if done[1].what != "mismatch":
            self._copier.came_back(back)
            self._portions.pop(table, None)
            self._slow.pop(table, None)  # also where nothing arrived, for it was discarded
        return done


def called(identities: Mapping[str, Identity]) -> dict[str, tuple[str, ...]]:
    """Emitted rows are whole where it matters: they have the columns that the key is of by now."""
    return {table: tuple(sorted(one.keys)) for table, one in identities.items() if one.keys and one.aim is None}


def vacated(
    changes: Sequence[Change], shapes: Mapping[int, tuple[str, ...]], vacant: Callable[[str], Sequence[str]]
) -> tuple[list[Change], dict[int, tuple[str, ...]]]:
    """Rows that waited while columns were taken off: these are null in them, whatever the rows have, and are no columns of
    theirs any more: where they are outboxd's own the target sets them to null."""
    made, known = [], dict(shapes)
    for change in changes:
        names = vacant(change.table)
        if names and change.row is not None and change.shape is not None:
            columns = tuple(name for name in known[change.shape] if name not in names)
            shape = next((number for number, there in known.items() if there == columns), -1 - len(known))
            known[shape] = columns
            # Spliced, not decoded: of a name that occurs twice json_to_recordset takes the second.
            nulls = ",".join(f"{json.dumps(name, ensure_ascii=False)}:null" for name in names)
            change = change._replace(shape=shape, row=f"{change.row.rstrip()[:-1]},{nulls}}}")  # noqa: PLW2901
        made.append(change)
    return made, known


def _alive(exc: TargetError) -> bool:
    """Did the target look at the letters and not take them, so that the others need not wait for them?"""
    return exc.kind is Kind.SIZE or exc.refusal.gear is not None or exc.refusal.sqlstate == SLOW


def _misfit(exc: DaemonError) -> str | None:
    """Why the table does not fit; None: that is not what is the matter."""
    if isinstance(exc, TargetError):
        blamed = exc.kind in (Kind.CONTRACT, Kind.AUTH) and exc.refusal.table is not None
        return advice(exc.kind, exc.refusal) if blamed else None
    return str(exc)
