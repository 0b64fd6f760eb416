"""Bringing changes to the target, and holding those that it refuses.

Knows the three gears from the relay's side, which keys are held, and the order of the target's tables. Knows
nothing of windows, of pauses or of what a person is told: it raises, and the relay decides.

A change that is refused is copied to the dead letters on the source first; only then the target's cursor passes it,
in the transaction that records its key as held. Whatever dies in between, the change is before the cursor or a
letter, and a letter of a key that the target does not hold is none (promise I1).
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import structlog

from daemon.copies import Copy, note
from daemon.errors import Kind, Refusal, TargetError, alone, classify, of_rows
from daemon.failpoint import reach
from daemon.hold import BEHIND, STRANGER, Key, Letter, Why, key_of, name_of, names, part, refuse
from daemon.letters import Letters
from daemon.plan import Group, Plan, plan, table_order
from daemon.sheaf import Change, Sheaf, Sheaves, count, glue, split, unbind
from daemon.spelling import Types, asked, spelled, types_of
from daemon.target import Answer, Target, digest_of
from outbox import Cursor

log = structlog.get_logger()

_UNBLAMED = 3  # times that a table is refused, and no row of it, until it is the table
_SLOW = 3  # times that a change takes too long, until it is the change
_OFTEN = 3  # times that all others wait for slow or locked rows of a table, until it is the table
_OFTEN_BY_NAME = 2 * _OFTEN  # times that they do for all tables of the target that had its name, or were its place
_LATELY = 3600.0  # seconds
_QUICK = 1.0  # seconds in which a target that is slow for one row alone answers a request without any, and commits
_LOCKED = 3  # times in a row that somebody's lock is waited for, until what it is on is left behind
_ROUNDS = 3  # isolate finds all there is in one; a second is for what changes on the target meanwhile
_USEFUL = 8192  # bytes of a request that any gateway of use takes: twice as many as a key may have
_MOST_HELD = 10  # times as many, for each table, as are ever held by itself
_SHAPES = 128  # sets of columns of one table in a batch
_WHOLE = 10  # rows: when as many are copied and all are refused, it is no row's fault
REFERENCES = {"23503", "23505", "23P01", "23001"}  # speak of other rows
SLOW, LOCKED = "57014", "55P03"  # a statement took too long, or waited too long for a lock
_CONFLICTS = {"40001", "40P01"}  # others write the same rows; or a trigger says so
ACTS = "OB005"  # gear 2 was needed, and a foreign key that deletes or empties rows forbids it


class Listener(Protocol):
    """Who is told of planning and of dead letters."""

    def stage(self, name: str, seconds: float) -> None: ...
    def letters_held(self, tables: Mapping[str, int]) -> None: ...
    def keys_held(self, keys: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Parcel:
    """Changes to bring over, the cursor they lead to, and what the target must stand at: the batch before, by its
    digest (`after`). `letters`: they are dead letters already; of the keys `retried` all flow again unless they are
    refused again.

    `notes` are recorded with it. `copied`: these are rows as of the cursor; held keys among them flow again, and those that are no
    row's are `freed`; `copy` is how far they lead. `picked`: they are single rows that differed, so that all being refused
    says nothing of their table. `vacates`: columns of tables that these rows set to null;
    `called`: by which columns rows of a table are told apart by now, where they were recorded by others. `aside`: changes of tables that are out, `reasons` why.
    """

    sheaves: Sheaves
    shapes: Mapping[int, tuple[str, ...]]
    cursor: Cursor
    epoch: int
    batch_no: int
    after: str
    letters: bool = False
    retried: frozenset[Key] = frozenset()
    notes: tuple[Group, ...] = ()
    copied: bool = False
    copy: Copy | None = None
    freed: frozenset[Key] = frozenset()
    picked: bool = False
    aside: Sheaves = ()
    vacates: Mapping[str, Sequence[str]] = field(default_factory=dict)
    called: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Load:
    """What of a parcel is to be sent, and the plan for it. `left_out`: changes that nobody waits for, because a copy
    will bring their rows. `kept`: ids of those of its changes that wait. `unpruned`: rows that the source does not
    have, and the target does not let go. `singly`: row by row all of it fits. `slow`: a row of it took the target too
    long, and is held. `hurdles`: tables for whose rows all others have waited. `refused`: how it was refused last. `emptied`: held keys whose table a TRUNCATE of this id empties."""

    parcel: Parcel
    flow: Sheaves
    left_out: int = 0
    kept: set[int] = field(default_factory=set)
    unpruned: int = 0
    singly: bool = False
    slow: bool = False
    hurdles: set[str] = field(default_factory=set)
    refused: TargetError | None = None
    hold: set[Key] = field(default_factory=set)
    release: set[Key] = field(default_factory=set)
    emptied: Mapping[Key, int] = field(default_factory=dict)
    planned: Plan = field(init=False)

    @property
    def digest(self) -> str:
        """What the batch that follows is read behind."""
        return digest_of(self.planned, self.parcel.cursor)

    @property
    def settles(self) -> bool:
        """Does it change which keys are held? Then nothing may be prepared until it is known to have arrived."""
        return bool(self.hold or self.release)


class Delivery:
    """Sends parcels, whole or without what is refused. `limit`, `limit_bytes`: held keys of a table beyond which it is no row's fault."""

    def __init__(
        self,
        target: Target,
        letters: Letters,
        listener: Listener,
        *,
        row_bytes: int,
        limit: int = 10_000,
        limit_bytes: int = 1024**2,
    ) -> None:
        self._target = target
        self._letters = letters
        self._listener = listener
        self._row_bytes = row_bytes
        self._limit = limit
        self._limit_bytes = limit_bytes
        self.order: Mapping[str, int] = {}
        self.held: set[Key] = set()
        self.holds = 0  # how often keys were held
        self._attempted = 0  # letters of attempts that came to nothing so far
        self.captured: Callable[[], Collection[str]] = tuple  # tables whose keys the source's types have spelled
        self.places: Mapping[str, str] = {}  # which table of the target each one goes to
        self._types: Mapping[str, Types] = {}
        # How often in a row a table, or its copy, was refused, and no row of it.
        self._unblamed: Counter[tuple[str, bool]] = Counter()

        self.slow: dict[str, set[Key]] = {}  # keys of a table that are held because the target takes too long for them
        # When all others waited for rows of a table that were slow, or locked, and are held; and which table of the target that was.
        self._hurdles: dict[str, list[tuple[float, int | None]]] = {}
        self._numbers: Mapping[str, int | None] = {}  # of the target's tables: one that is made anew has another
        self._tries: tuple[Key | None, int] = (None, 0)  # of the change that took it too long last
        self._conflicts = 0  # batches in a row that were refused because others write the same rows
        self._locks = 0  # batches in a row that were refused because of somebody's lock

    def learn_tables(self, described: Mapping[str, Any]) -> None:
        """The order of the target's tables, parents first, from its own foreign keys."""
        references = [(reference["child"], reference["parent"]) for reference in described["references"]]
        self._types = types_of(described)
        self.places = {table["table"]: table.get("target", table["table"]) for table in described["tables"]}
        self._numbers = {table["table"]: table.get("number") for table in described["tables"]}
        self.order = table_order([table["table"] for table in described["tables"]], references)

    async def learn_held(self, answer: Answer) -> None:
        """The keys the target says it holds, when its answer has them: the first of them, where they are many."""
        if "held" not in answer.more:
            return
        held = {(table, key) for table, key in answer.more["held"]}
        while answer.more.get("held_after"):
            before, answer = len(held), await self._target.held(answer.more["held_after"])
            held |= {(table, key) for table, key in answer.more["held"]}
            ends = not answer.more.get("held_after") or len(held) > before  # keys may be released meanwhile
            if not ends or len(held) > _MOST_HELD * self._limit * (len(self.places) + 1):
                raise TargetError(Kind.AMBIGUOUS, "the target's list of held keys does not end")
        self.held = held
        self.slow = {table: keys & self.held_of(table) for table, keys in self.slow.items()}
        self._listener.keys_held(len(self.held))

    async def out_since(self, table: str) -> Cursor:
        """The cursor up to which nothing of a table that is out was skipped."""
        copies = (await self._target.cursor()).more.get("copies", ())
        since = next((one.get("after") for one in copies if one["table"] == table and one["state"] == "out"), None)
        return Cursor.from_json(since) if since else Cursor.beginning()

    def held_of(self, table: str) -> set[str]:
        """The keys of a table that are held."""
        return {key for of_table, key in self.held if of_table == table}

    async def settle(self, cursor: Cursor, out: Collection[str]) -> None:
        """Remove letters of attempts that came to nothing, once it is known where the target stands.

        The target does not hold their keys and its cursor has passed them: they were applied, or released. Those of
        tables that are `out` by its own word wait for their table.
        """
        self._attempted = await self._letters.settle(self.held, out, cursor)

    async def prepare(self, parcel: Parcel) -> Load:
        """Part what flows from what waits, and plan it. What waits is written down on the source first."""
        if not (parcel.copied or parcel.retried):  # those keep the key by which they are held
            parcel = replace(parcel, sheaves=await self._spelled(parcel.sheaves))
        again = parcel.retried
        if parcel.copied and self.held:
            among = {(sheaf.table, key) for sheaf in parcel.sheaves for key in split(sheaf.keys)}
            again = frozenset(key for key in self.held if key in among or key in parcel.freed)
        held = self.held - again if again else self.held
        strangers = self._strangers(parcel)
        if not parcel.letters:
            await self._require_few_shapes(parcel.sheaves)
        parted = part(parcel.sheaves, held | strangers if strangers else held, self._row_bytes)
        self._bound({(letter.change.table, name_of(letter.change.key)) for letter in parted.letters})
        emptied = {key: parted.emptied[key[0]] for key in parted.freed if key[0] in parted.emptied}
        load = Load(parcel, parted.flow, release=set(again | parted.freed), emptied=emptied)
        await self._keep(load, told(parted.letters, strangers))
        if parcel.aside:
            load.left_out = await self._set_aside(parcel)
        self._plan(load)
        return load

    async def send(self, load: Load) -> tuple[Plan, Answer]:
        """Lead the target to the load's cursor. What it refuses is held. Raises what the target's requests raise:
        of kind DATA only when a refused row must halt the relay, or cannot be told apart."""
        for earlier in range(_ROUNDS):
            if earlier:
                self._plan(load)
            answer = await self._apply(load)
            if answer is not None:
                await self.learn_held(answer)
                return load.planned, replace(answer, more={**answer.more, "gear": 3}) if earlier else answer
        assert load.refused is not None
        raise await self._nobodys(load.refused, load)

    async def _require_few_shapes(self, sheaves: Sheaves) -> None:
        """The target composes a statement for each set of columns, while all others wait. One table's that is altered again and
        again a copy can bring; what is emitted goes as letters then, some at a time. Raises what leads there."""
        kinds = {(sheaf.table, sheaf.shape) for sheaf in sheaves if sheaf.op == "upsert"}
        for table, many in Counter(table for table, _ in kinds).items():
            if many <= _SHAPES:
                continue
            said = f"rows of {table} come with more than {_SHAPES} sets of columns at once: it is out, and "
            if table in self.captured():
                said += "copied anew"
            elif await self.spares(table):
                said += "they go some at a time"
            else:
                raise TargetError(Kind.SIZE, f"rows of {table} come with more than {_SHAPES} sets of columns at once")
            raise TargetError(Kind.CONTRACT, said, Refusal("OB014", table=table, message=said))

    def _plan(self, load: Load) -> None:
        started, notes = time.monotonic(), load.parcel.notes
        if load.unpruned and load.parcel.copy is not None:
            notes = (*notes, note(load.parcel.copy.less_pruned(load.unpruned), begins=False))
        load.planned = plan(
            load.flow, self.order, load.parcel.shapes, hold=load.hold, release=load.release, notes=notes,
            vacates=load.parcel.vacates, called=load.parcel.called, places=self.places,
        )  # fmt: skip
        self._listener.stage("plan", time.monotonic() - started)

    async def _spelled(self, sheaves: Sheaves) -> Sheaves:
        """With the keys of emitted tables as the target spells them."""
        captured = self.captured()
        emitted = {sheaf.table for sheaf in sheaves if sheaf.op != "truncate"} - set(captured)
        if emitted - self._types.keys():  # the target's table may have come since
            self.learn_tables((await self._target.describe()).more)
        if not (emitted := emitted & self._types.keys()):
            return sheaves
        done: list[Sheaf] = []
        for sheaf in sheaves:
            if sheaf.table in emitted:
                given = list(map(bytes.decode, sheaf.named()))
                keys = [spelled(key, self._types[sheaf.table]) for key in given]
                if None in keys:
                    there = (await self._target.spelled(sheaf.table, asked(given), len(given))).more["keys"]
                    keys = [other or key for key, other in zip(given, there, strict=True)]
                if aliases := await self._aliases(sheaf.table):
                    keys = [aliases.get(key or "", key) for key in keys]
                done.append(replace(sheaf, keys=glue(key or "" for key in keys)))
            else:
                done.append(sheaf)
        return tuple(done)

    async def _aliases(self, table: str) -> dict[str, str]:
        """Held keys by how the target would spell them now, where that is not how they are held: its types may be others."""
        held = self.held_of(table)
        keys = {key: spelled(key, self._types[table]) for key in held}
        if unsure := sorted(key for key, now in keys.items() if now is None):
            there = (await self._target.spelled(table, asked(unsure), len(unsure))).more["keys"]
            keys |= dict(zip(unsure, there, strict=True))
        return {now: key for key, now in keys.items() if now is not None and now not in held}

    def _strangers(self, parcel: Parcel) -> set[Key]:
        """Keys of emitted rows while keys of other columns are held of their place, or the same by another name: which rows those
        are nobody knows, or they are these, so that these must not go first (promise I4)."""
        if parcel.copied or parcel.retried or not self.held:
            return set()
        captured, found = self.captured(), set()
        emitted = [(table, key) for table, key in self.held if table not in captured]
        for table in {sheaf.table for sheaf in parcel.sheaves} - set(captured):
            there = [(other, key) for other, key in emitted if self.place(other) == self.place(table)]
            held, others = {names(key) for _, key in there}, {key for other, key in there if other != table}
            given = {
                key
                for sheaf in parcel.sheaves
                if there and sheaf.table == table and sheaf.op != "truncate"
                for key in split(sheaf.keys)
            }
            found |= {(table, key) for key in given if key in others or held - {names(key)}}
        return found

    def place(self, table: str) -> str:
        """Where it goes on the target; what is mapped nowhere is a place by itself."""
        return self.places.get(table, table)

    async def _set_aside(self, parcel: Parcel) -> int:
        """Changes of tables that are out: where a copy will bring their rows they are skipped; returns how many. Where
        nothing else ever will, they wait (promise I1)."""
        waits = (await self._letters.uncopied({sheaf.table for sheaf in parcel.aside})).keys()
        kept = [sheaf for sheaf in parcel.aside if sheaf.table in waits]
        if kept:
            await self._letters.park(kept, parcel.reasons)
            self._listener.letters_held(Counter({sheaf.table: len(sheaf) for sheaf in kept}))
        return count(parcel.aside) - count(kept)

    async def spares(self, table: str) -> bool:
        """May this table be out, for what is the matter with it, while the others flow? Not where its changes can only
        wait and its owner wants the relay to halt for them."""
        return not (await self._letters.uncopied({table})).get(table, False)

    async def _apply(self, load: Load) -> Answer | None:
        """The target's answer; None when the load was lightened by what it refused."""
        parcel = load.parcel
        reach("before_send")
        try:
            answer = await self._target.apply(
                load.planned, parcel.cursor, parcel.epoch, parcel.batch_no, after=parcel.after, singly=load.singly,
                gently=self._gently(load),
            )  # fmt: skip
        except TargetError as exc:
            load.refused = exc
            refused = await self._refused(exc, load)
            if isinstance(refused, Answer):
                return refused
            parted = refuse(load.flow, refused)
            load.flow = parted.flow
            await self._keep(load, parted.letters)
            return None
        reach("after_answer")
        if answer.what in {"applied", "duplicate"}:
            await self._settled(load, parcel.cursor)
        return answer

    # -- what is refused -----------------------------------------------------------------------------------

    async def _refused(self, exc: TargetError, load: Load) -> Answer | dict[Key, Why]:
        """Which keys the target refuses; or its answer, when it stands elsewhere by now. Raises `exc` when no row can
        be blamed for it. A foreign key that acts is to blame for rows that gear 2 would write, not for those that nothing would."""
        parcel, planned = load.parcel, load.planned
        # Either way the one change is looked for.
        if self._fails_at_rows(exc) or (exc.kind is Kind.SIZE and exc.refusal.sqlstate == SLOW):
            return await self._too_slow(TargetError(Kind.SIZE, str(exc), exc.refusal), load)
        if exc.kind is Kind.SIZE and _one(load) and not load.hold:
            return await self._too_large(exc, load)
        locked = exc.refusal.sqlstate == LOCKED and await self._waited(exc, load)
        if exc.kind is not Kind.DATA and exc.refusal.sqlstate != ACTS and not locked:
            raise exc
        answer = await self._isolate(load, locked=locked)
        if not isinstance(answer, Answer) or answer.what != "isolated":
            return answer
        try:
            refused = _read(answer.more["refused"], planned, exc, locked=locked)
        except TargetError as failing:
            if not self._fails_at_rows(failing):
                raise
            return await self._too_slow(TargetError(Kind.SIZE, str(failing), failing.refusal), load)
        exc = _blaming(exc, refused)
        if not refused:
            if load.singly:
                raise await self._nobodys(exc, load)
            load.singly = True
        if not parcel.retried:  # those are held already
            tables = {table for (table, _), why in refused.items() if why.sqlstate == LOCKED}
            await self._require_seldom(tables)
            await self._judge(exc, load, refused)
            load.hurdles |= tables
        return refused

    def _fails_at_rows(self, exc: TargetError) -> bool:
        """Did what it wrote fail as if the target were away, or as if others wrote the same rows, which passes, but not again and again?"""
        if exc.refusal.sqlstate not in _CONFLICTS or exc.refusal.gear is None:
            return of_rows(exc)
        self._conflicts += 1
        return self._conflicts >= _SLOW

    async def _isolate(self, load: Load, *, locked: bool) -> Answer | dict[Key, Why]:
        """The target's answer to which rows it refuses; or the one row of which it cannot say that in time. Raises where it finds too
        many that are locked (`locked`: they have been waited for)."""
        parcel = load.parcel
        try:
            return await self._target.isolate(
                load.planned, parcel.cursor, parcel.epoch, parcel.batch_no, after=parcel.after
            )
        except TargetError as exc:
            table = exc.refusal.table
            if exc.refusal.sqlstate == LOCKED and table and (locked or await self._waited(exc, load)):
                raise _locked_table(table) from None
            if exc.kind is not Kind.SIZE or exc.refusal.sqlstate != SLOW:
                raise
            return await self._too_slow(exc, load)

    async def _too_large(self, exc: TargetError, load: Load) -> dict[Key, Why]:
        """The one change that something in between refuses for its size. Raises where that takes nothing at all."""
        changes = unbind(load.flow)
        change, size = changes[-1], sum(one.size for one in changes)
        kind = alone(exc, size)
        # A gateway that takes others' rows: they must not wait behind this one for good.
        if kind is Kind.CONTRACT and await self._target.takes(_USEFUL, load.parcel.epoch):
            kind = Kind.DATA
        if kind is not Kind.DATA:
            raise TargetError(kind, f"{exc}, for a single change", exc.refusal) from None
        why = f"the target refuses a row of {size or len(change.key)} bytes as too large ({exc})"
        return {key_of(change): Why(why, "54000")}

    async def _too_slow(self, exc: TargetError, load: Load) -> dict[Key, Why]:
        """The one change that the target takes too long for, although it answers others: they must not wait behind it for
        good. Raises where it may pass, where a smaller batch may do, and where it is the table's matter."""
        parcel, flow, tables = load.parcel, load.flow, {sheaf.table for sheaf in load.flow}
        one, table = _one(load), next(iter(tables), "")
        often = len(tables) == 1 and not parcel.retried and await self._often(table)
        if load.hold or not (one or often):
            raise exc
        passing = TargetError(Kind.TRANSIENT, f"{exc}, for a single change", exc.refusal) if one else exc
        asked = time.monotonic()
        if not await self._target.takes(_USEFUL, parcel.epoch) or time.monotonic() > asked + _QUICK:
            raise passing from None  # slow for all: no row is to blame
        if often:
            raise _slow_table(exc, table)
        change = unbind(flow)[-1]
        key = key_of(change)
        self._tries = key, self._tries[1] + 1 if self._tries[0] == key else 1
        if self._tries[1] < _SLOW and not parcel.letters:
            raise passing from None
        self._tries = None, 0
        if change.op == "truncate":
            raise _slow_table(exc, table)
        said = "takes too long for" if exc.refusal.sqlstate == SLOW else "fails at"
        why = f"the target {said} the {change.op} of this row, and answers others ({exc}): an index or a trigger of its table there"
        if not parcel.retried:
            await self._judge(TargetError(Kind.DATA, str(exc), exc.refusal), load, {key})
            load.hurdles.add(table)
        self.slow.setdefault(table, set()).add(key)
        load.slow = True
        return {key: Why(why, exc.refusal.sqlstate)}

    async def _require_seldom(self, tables: Collection[str]) -> None:
        """Rows of these are locked. Raises where that is their table's matter."""
        for table in sorted(tables):
            if await self._often(table):
                raise _locked_table(table)

    def _hurdle(self, tables: Collection[str]) -> None:
        """All others have waited for rows of these tables, which are held. By the number that was known last: nothing is asked here."""
        for table in tables:
            self._hurdles.setdefault(table, []).append((time.monotonic(), self._numbers.get(table)))

    async def _often(self, table: str) -> bool:
        """Was that so often lately, also if those rows went again, that the others are not to wait for one more? Not what was so of
        another table of its name, or at another place: this one has its own triggers, and its own owner. But not once more for each
        that somebody makes."""
        lately = [one for one in self._hurdles.get(table, ()) if one[0] > time.monotonic() - _LATELY]
        self._hurdles[table] = lately
        if len(lately) < _OFTEN or len(lately) >= _OFTEN_BY_NAME:
            return len(lately) >= _OFTEN_BY_NAME
        number = await self._number(table)
        return sum(there == number for _, there in lately) >= _OFTEN

    async def _number(self, table: str) -> int | None:
        """Which table of the target it goes to by now."""
        self.learn_tables((await self._target.describe()).more)
        return self._numbers.get(table)

    def _gently(self, load: Load) -> bool:
        """Is a lock of others to be waited for shortly? By letters; by a change that took too long, which may have been waiting;
        and once it is known that somebody does not let go."""
        one = unbind(load.flow) if self._tries[0] and count(load.flow) == 1 else []
        tried = any(key_of(change) == self._tries[0] for change in one)
        return load.parcel.letters or tried or self._locks >= _LOCKED - 1

    async def _waited(self, exc: TargetError, load: Load) -> bool:
        """Has somebody's lock on the target been waited for long enough? The others do not wait for as long as it pleases.
        Raises where that is its table's matter: that one is out."""
        table, said = exc.refusal.table, exc.refusal.message
        if exc.refusal.gear is None:  # not what it was writing: the cursor's own row
            return False
        self._locks += not load.parcel.letters
        often = table is not None and not load.parcel.retried and await self._often(table)
        if self._locks < _LOCKED and not load.parcel.letters and not often:
            return False
        if said:
            raise TargetError(Kind.CONTRACT, said, Refusal(LOCKED, table=table, message=said))
        if table is not None and often:
            raise _locked_table(table)
        return True

    async def _nobodys(self, exc: TargetError, load: Load) -> TargetError:
        """The target refuses it, and names no row that it refuses: it has changed meanwhile, or, if that goes on, it is the
        table's matter. The others must not wait for it, unless its owner wants the relay to halt."""
        parcel, tables = load.parcel, {sheaf.table for sheaf in load.flow}
        table = exc.refusal.table or (next(iter(tables)) if len(tables) == 1 else None)
        if parcel.retried or table is None or await self._letters.halting({table}):
            return exc
        self._unblamed[table, parcel.copied] += 1
        if self._unblamed[table, parcel.copied] < _UNBLAMED and not parcel.letters:
            return exc
        del self._unblamed[table, parcel.copied]
        state = exc.refusal.sqlstate
        why = f"the target refuses changes of {table}, and none of them alone ({state}): `outboxd check` names what is missing; else it is a trigger there"
        return TargetError(Kind.CONTRACT, why, Refusal(state, table=table, message=why))

    async def _judge(self, exc: TargetError, load: Load, refused: Collection[Key]) -> None:
        """May these keys be held? Raises where it is no row's fault, or their table halts the relay."""
        parcel, flow = load.parcel, load.flow
        whole = parcel.copied and not parcel.picked and len(refused) == count(flow) >= _WHOLE
        if whole and exc.refusal.sqlstate not in REFERENCES:
            table = flow[0].table
            every = f"the target refuses every row of {table} ({exc.refusal.sqlstate}): its columns are of other types, or need what the source does not have"
            raise TargetError(Kind.CONTRACT, every, Refusal(exc.refusal.sqlstate, table=table, message=every))
        self._bound(refused, f"{exc}; ")
        if halting := await self._letters.halting({table for table, _ in refused}):
            raise TargetError(exc.kind, f"{exc}, and {', '.join(sorted(halting))} has on_error = halt", exc.refusal)

    def _bound(self, keys: Collection[Key], because: str = "") -> None:
        """May so many keys be held? The target tells them all to whoever resumes. What is too much is the matter of its table,
        which is out while the others go on (promise I8)."""
        for table in {table for table, _ in keys}:
            held = self.held_of(table)
            new = {key for of_table, key in keys if of_table == table} - held
            size = sum(map(len, held)) + sum(map(len, new))
            if new and (len(held) + len(new) > self._limit or size > self._limit_bytes):
                many = f"{self._limit} keys" if size <= self._limit_bytes else f"{self._limit_bytes} bytes of keys"
                said = f"{because}more than {many} of {table} would be held, which is no row's fault: it is out until its rows fit"
                raise TargetError(Kind.CONTRACT, said, Refusal("OB014", table=table, message=said))

    async def _keep(self, load: Load, letters: Sequence[Letter]) -> None:
        """Write letters down on the source, and their keys into the load."""
        if not letters:
            return
        parcel = load.parcel
        if parcel.copied:
            await self._touch(load, [letter for letter in letters if letter.change.op != "delete"])
            letters = [letter for letter in letters if letter.change.op == "delete"]
            if not letters:
                return
            load.unpruned += len(letters)
            await self._letters.hold_gone(letters, parcel.cursor)
        elif parcel.letters:
            await self._letters.hold_again(letters)
        else:
            reach("before_hold")
            await self._letters.hold(letters)
            reach("after_hold")
        keys = {key_of(letter.change) for letter in letters}
        load.kept |= {letter.change.id for letter in letters}
        load.release -= keys
        load.hold |= keys - self.held
        refused = [letter for letter in letters if letter.why is not BEHIND]
        if refused:
            self._listener.letters_held(Counter(letter.change.table for letter in refused))
            log.error(
                "changes_held", keys=len({key_of(letter.change) for letter in refused}), changes=len(letters), again=parcel.letters,
                tables=sorted({letter.change.table for letter in refused}), sqlstates=sorted({letter.why.sqlstate or "" for letter in refused}),
                advice="`outboxd dead-letters list` says why; once the target's tables are mended they go by themselves, else `outboxd dead-letters retry`",
            )  # fmt: skip

    async def _touch(self, load: Load, letters: Sequence[Letter]) -> None:
        """Copied rows that the target refuses: the source records them as changed before the copy goes on without them,
        so that they come once more, as changes, and are held as such (promise I1)."""
        keys = {key_of(letter.change) for letter in letters}
        if not keys:
            return
        for table in sorted({table for table, _ in keys}):
            reach("before_touch")
            await self._letters.touch(table, sorted(key for of_table, key in keys if of_table == table))
        load.release -= keys
        log.warning("rows_left_out", rows=len(letters), tables=sorted({table for table, _ in keys}))

    async def _settled(self, load: Load, cursor: Cursor) -> None:
        """The target has taken the load: its keys are held, or flow again."""
        if self._unblamed:
            for sheaf in load.flow:
                self._unblamed.pop((sheaf.table, load.parcel.copied), None)
        self.held = (self.held | load.hold) - load.release
        for key in load.release if self.slow else ():
            self.slow.get(key[0], set()).discard(key)
        self._locks *= load.parcel.letters or not load.flow
        self._conflicts *= not load.flow
        self._hurdle(load.hurdles)
        self.holds += bool(load.hold)
        self._listener.keys_held(len(self.held))
        if self._attempted and load.flow and not load.parcel.letters:
            self._attempted -= await self._letters.accepted(load.flow, cursor)
        if not (load.release or load.emptied):
            return
        reach("before_release")
        # What is parked behind a TRUNCATE was not sent with it; and what came before it is of no row, also where its key is held again.
        upto = {key: at for key, at in load.emptied.items() if load.parcel.letters or key not in load.release}
        if whole := load.release - upto.keys():
            await self._letters.forget(whole, cursor)
        if upto:
            await self._letters.forget(upto, cursor, upto=upto)
        reach("after_release")


def _one(load: Load) -> bool:
    """Is there no smaller part of it? Letters of a key go together: several may decide what is left of it."""
    if count(load.flow) == 1 or not load.parcel.retried:
        return count(load.flow) == 1
    return len({key for sheaf in load.flow for key in sheaf.named()}) == 1 == len({sheaf.table for sheaf in load.flow})


def _slow_table(exc: TargetError, table: str) -> TargetError:
    """The others must not wait for each row of it."""
    how, what = ("take the target too long", "takes long") if exc.refusal.sqlstate == SLOW else ("fail", "fails")
    said = f"changes of {table} {how}, one by one ({exc}): an index or a trigger there {what}; it is out until its rows fit"
    return TargetError(Kind.CONTRACT, said, Refusal(SLOW, table=table, message=said))


def _locked_table(table: str) -> TargetError:
    """The others must not wait for each row of it that somebody has locked."""
    said = f"rows of {table} are locked on the target, very many at once or again and again: pg_locks and pg_stat_activity there name the sessions; it is out until its rows fit"
    return TargetError(Kind.CONTRACT, said, Refusal(LOCKED, table=table, message=said))


def few_shapes(changes: Iterable[Change]) -> tuple[Change, ...]:
    """The first of these changes, of one table, with as many sets of columns as go at once."""
    seen: set[int | None] = set()
    few: list[Change] = []
    for change in changes:
        seen.add(change.shape)
        if len(seen) > _SHAPES:
            break
        few.append(change)
    return tuple(few)


def told(letters: Sequence[Letter], strangers: Collection[Key]) -> list[Letter]:
    """Of each stranger the last letter says what it waits for."""
    last = {key_of(one.change): one.change.id for one in letters}
    return [
        replace(one, why=STRANGER)
        if one.why is BEHIND and key_of(one.change) in strangers and last[key_of(one.change)] == one.change.id
        else one
        for one in letters
    ]


def _read(
    refused: Collection[Mapping[str, Any]], planned: Plan, exc: TargetError, *, locked: bool = False
) -> dict[Key, Why]:
    """The target's list of refused rows, by key. Raises when what refuses one is no matter of the row. `locked`: so are those
    that somebody has locked; else they are not refused for good, and neither is what only misses one of them. Nor are rows that
    fail as if the target were away, beside others: once those are held, it is they that are looked for."""
    found: dict[Key, Why] = {}
    keys = {part: _group(planned, part).keys for part in {one["part"] for one in refused}}
    passing: TargetError | None = None
    left: set[tuple[Any, Any]] = set()
    for one in _parents_first(refused):
        group, why = _group(planned, one["part"]), one["why"]
        names = Refusal(why.get("sqlstate"), None, why.get("table") or group.table, why.get("constraint"), why.get("column"), why.get("message"))  # fmt: skip
        kind, relative = classify(names.sqlstate), one.get("relative") or {}
        waits = names.sqlstate == LOCKED and not locked
        fails = kind is Kind.TRANSIENT and names.sqlstate != LOCKED
        if waits or fails or (relative.get("part"), relative.get("pos")) in left:
            left.add((one["part"], one["pos"]))
            if fails:
                passing = TargetError(kind, f"the target refused the batch ({names.sqlstate})", replace(names, gear=1))
            continue
        if kind is not Kind.DATA and names.sqlstate != LOCKED:
            raise TargetError(kind, f"the target refused the batch ({names.sqlstate})", names)
        if group.op == "truncate":
            raise exc  # nobody can hold one row of it
        found[group.table, keys[one["part"]][one["pos"]]] = _why(names, group.op, relative, planned)
    if passing and not found:
        raise passing
    return found


def _parents_first(refused: Collection[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each behind the row of this batch that it refers to, if that is refused, too."""
    known = {(one["part"], one["pos"]): one for one in refused}
    ordered: dict[tuple[Any, Any], Mapping[str, Any]] = {}
    for one in refused:
        line: dict[tuple[Any, Any], Mapping[str, Any]] = {}
        at: tuple[Any, Any] = one["part"], one["pos"]
        while at in known and at not in ordered and at not in line:
            line[at] = known[at]
            relative = known[at].get("relative") or {}
            at = relative.get("part"), relative.get("pos")
        ordered |= dict(reversed(line.items()))
    return list(ordered.values())


def _blaming(exc: TargetError, refused: Mapping[Key, Why]) -> TargetError:
    """A refusal that blames a foreign key, when some rows are refused whatever it does. Raises it when none is."""
    if exc.refusal.sqlstate != ACTS:
        return exc
    if not refused:
        raise exc
    (table, _), why = next(iter(refused.items()))
    return TargetError(Kind.DATA, f"the target refused the batch ({why.sqlstate})", Refusal(why.sqlstate, table=table))


def _group(planned: Plan, part: int) -> Group:
    """By where its rows stand among the document's records."""
    return planned.groups[part // 2 - 1]


def _why(names: Refusal, op: str, relative: Mapping[str, Any], planned: Plan) -> Why:
    if names.sqlstate == LOCKED:
        who = (
            names.message
            or "another session on the target has this row locked: its pg_locks and pg_stat_activity name it"
        )
        return Why(f"{who}; it is tried again by itself", LOCKED)
    cause = names.constraint or (f"column {names.column}" if names.column else "its values")
    reason = f"the target refuses the {op} because of {cause} ({names.sqlstate})"
    if not relative:
        return Why(reason, names.sqlstate)
    table = relative["table"]
    if "part" in relative:
        return Why(
            f"{reason}: the row of {table} it refers to is held",
            names.sqlstate,
            (table, _group(planned, relative["part"]).keys[relative["pos"]]),
        )
    if "key" in relative:
        return Why(f"{reason}: the row of {table} it refers to is held", names.sqlstate, (table, relative["key"]))
    said = {"taken": f"another row of {table} there has what is unique", "missing": f"{table} there has no such row"}
    still = f"a row of {table} on the target still refers to it"
    return Why(f"{reason}: {said.get(relative.get('is', ''), still)}", names.sqlstate)
