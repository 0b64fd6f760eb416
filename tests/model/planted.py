"""Bugs, planted one at a time: each replaces one piece of the daemon or of the target by a plausible wrong one.

What the model must find. Each is a context in which the wrong piece is in place; those of the target are a Mirror.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, cast
from unittest.mock import patch

from daemon import answers, delivery, hold, session, snapshot, window
from daemon import plan as planning
from daemon.batch import Batch, Limits
from daemon.delivery import Delivery, Load, Parcel
from daemon.flight import Flight
from daemon.letters import Letters
from daemon.opening import Floors, Opening
from daemon.pages import Pages, Part
from daemon.plan import Plan
from daemon.relay import Relay
from daemon.sheaf import Sheaves, bind, unbind
from daemon.source import Source
from daemon.target import Target
from daemon.window import Cut, Window
from outbox import Cursor
from tests.model import wire
from tests.model.mirror import Applied, Group, Mirror


@dataclass(frozen=True, slots=True)
class Planted:
    """`promises`: one of these must break; `within`: in at most so many schedules; `seed`: the one that is tried first."""

    name: str
    promises: tuple[str, ...]
    within: int = 2000
    seed: int = 0
    mirror: Callable[[], Mirror] = Mirror
    context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext


# -- of the target ---------------------------------------------------------------------------------------------


class Unfenced(Mirror):
    """The epoch is not compared."""

    fences = False


class WithoutDigest(Mirror):
    """A batch of the stored number passes for the one that is stored."""

    compares_digest = False


class CursorLater(Mirror):
    """Rows in one transaction, the cursor in a second."""

    def _move(self, header: dict[str, Any], groups: list[Group]) -> Iterator[str]:
        applied = Applied(header, self.epoch)
        self._write(groups, applied)
        yield cast("str", None)
        self._advance(header)
        self.on_commit(applied)
        yield self._answer("applied")


class CursorFirst(Mirror):
    """The cursor in one transaction, the rows in a second."""

    def _move(self, header: dict[str, Any], groups: list[Group]) -> Iterator[str]:
        applied = Applied(header, self.epoch)
        self._advance(header)
        yield cast("str", None)
        self._write(groups, applied)
        self.on_commit(applied)
        yield self._answer("applied")


class WithoutAfter(Mirror):
    """The second of two on their way is applied behind whatever has the number before its own."""

    compares_after = False


class Uncounted(Mirror):
    """Any batch is applied, whatever its number."""

    def _apply(self, header: dict[str, Any], records: list[bytes]) -> Iterator[str]:
        if header["epoch"] == self.epoch:
            header = {**header, "batch_no": self.batch_no + 1, "after": self.digest or ""}
        yield from super()._apply(header, records)


# -- of the source ---------------------------------------------------------------------------------------------


@contextmanager
def ids_after_the_last() -> Iterator[None]:
    """No windows: whatever is visible with an id above the last one."""

    async def read(self: Source, cursor: Cursor) -> Batch:
        async with self.connected() as conn:
            pages = await self._opening.open(conn, cursor, self.limits)
            opened = pages.window
            everything = {"from_snapshot": "3:3:", "to_snapshot": str(opened.goal), "after": cursor.floor_id}
            page = await pages._sheaves(
                conn, "window_by_id", {**everything, "upto": opened.ceiling, "limit": 10**6, "bytes": 10**6}
            )
            await self._learn_shapes(
                conn, {sheaf.shape for sheaf in page if sheaf.shape is not None} - self._shapes.keys()
            )
            await conn.execute(session.query("flush"))
            last = max((sheaf.ids[-1] for sheaf in page), default=cursor.floor_id)
            return Batch(page, Cursor(str(opened.goal), last, (), "7001"), self._shapes, 0, False, 0)

    with patch.object(Source, "read", read):
        yield


@contextmanager
def cut_by_id() -> Iterator[None]:
    """A page is a batch: what a transaction has beyond it comes later."""

    def cut(self: Window, page: Sheaves, *, upto: int, beyond: Mapping[int, int]) -> Cut | None:
        before = self.after
        self._last.update(beyond)
        xids = {xid for sheaf in page for xid in sheaf.xids}
        unfinished = xids & self._last.keys()
        unfinished = {xid for xid in unfinished if self._last[xid] > upto}
        sheaves = bind(change for change in unbind(page) if change.id > self._torn.get(change.xid, 0))
        taken = xids - unfinished
        self.after = upto
        ended = self.after >= self.ceiling
        if not (sheaves or ended):
            return None
        for xid in taken:
            self._last.pop(xid, None)
            self._torn.pop(xid, None)
        self._torn.update(dict.fromkeys(unfinished, upto))
        self.reached = snapshot.cut(self.reached, self.goal, taken, self._last)
        return Cut(sheaves, {}, before, bool(unfinished), ended)

    with patch.object(Window, "cut", cut):
        yield


@contextmanager
def no_wait_for_the_disk() -> Iterator[None]:
    """Commits with synchronous_commit = off are sent as soon as they are visible."""
    with (
        patch.dict(session._QUERIES, {"flush": session._QUERIES["shapes"]}),
        patch.object(Pages, "next", _unflushed),
    ):
        yield


async def _unflushed(self: Pages, conn: Any, limits: Limits) -> Part:
    self.flushed = True
    return await _REAL_NEXT(self, conn, limits)


_REAL_NEXT = Pages.next


@contextmanager
def cursor_beyond_the_disk() -> Iterator[None]:
    """The cursor goes to the window's goal, whether that is durable or not."""
    real = Window.move

    def move(self: Window, sent: Any, home: Cursor, *, to_goal: bool) -> Cursor:
        return real(self, sent, home, to_goal=to_goal or self.after >= self.ceiling)

    with patch.object(Window, "move", move):
        yield


@contextmanager
def memory_outlives_a_crash() -> Iterator[None]:
    """After the connection was lost the relay goes on from where an empty window led, and does not ask the target."""
    real = Opening.forget

    def forget(self: Opening) -> None:
        self._ended = None
        real(self)

    async def step(self: Relay, batches: int = 1) -> bool:
        batch = await self._read()
        if batch is not None:
            await self._send(batch, on=False)
            flight = await self._flights.landed()
            assert flight is not None
            await self._land(flight)
        return batch is not None

    with patch.object(Opening, "forget", forget), patch.object(Relay, "step", step):
        yield


@contextmanager
def floor_without_an_xid() -> Iterator[None]:
    """The floor is the sequence as it is, whoever is still running."""
    with patch.object(Floors, "below", lambda self, _: max((id_ for _, id_ in self._floors), default=0)):
        yield


@contextmanager
def floor_at_the_ceiling() -> Iterator[None]:
    """The cursor's floor is the last id drawn, whoever is still running: nothing is lost before it is pruned."""
    with patch.object(Floors, "below", lambda self, _: self.newest):
        yield


@contextmanager
def running_transactions_forgotten() -> Iterator[None]:
    """The cut's snapshot has no list of those that are not taken."""

    def cut(reached: Any, goal: Any, taken: Any, untaken: Any) -> Any:
        return snapshot.Snapshot.of(max(reached.xmax, 1 + max(taken, default=0)), goal.running - frozenset(taken))

    with patch.object(window, "cut", cut):
        yield


@contextmanager
def beyond_not_asked() -> Iterator[None]:
    """A transaction is taken for whole when the page has no more of it."""

    async def nothing(*_: Any) -> dict[int, int]:
        return {}

    with patch.object(Pages, "_beyond", nothing):
        yield


# -- of the relay ----------------------------------------------------------------------------------------------


@contextmanager
def digest_taken_on_trust() -> Iterator[None]:
    """The relay does not look whether an answer has the digest of its batch."""
    trusting = patch.object(answers, "_same_place", lambda *_: True)
    with patch.object(answers, "_SAME", ("epoch", "batch_no")), trusting:
        yield


@contextmanager
def goes_on_from_what_was_meant() -> Iterator[None]:
    """After a mismatch the relay goes on from its own cursor, not from the target's."""
    real = Relay._land

    async def land(self: Relay, flight: Flight) -> None:
        await real(self, flight)
        if self._cursor is None:
            self._cursor = flight.batch.cursor

    with patch.object(Relay, "_land", land):
        yield


@contextmanager
def held_without_a_letter() -> Iterator[None]:
    """A refused change is left out of the batch, and nobody writes it down."""

    async def hold(self: Letters, letters: Any) -> None: ...

    with patch.object(Letters, "hold", hold):
        yield


@contextmanager
def letter_after_the_cursor() -> Iterator[None]:
    """The target's cursor moves first, the letter is written after it."""
    real_hold, real_settled = Letters.hold, Delivery._settled
    late: dict[int, Any] = {}

    async def hold(self: Letters, letters: Any) -> None:
        late[id(self)] = letters

    async def settled(self: Delivery, load: Any, cursor: Cursor) -> None:
        if letters := late.pop(id(self._letters), None):
            await real_hold(self._letters, letters)
        await real_settled(self, load, cursor)

    with patch.object(Letters, "hold", hold), patch.object(Delivery, "_settled", settled):
        yield


class NotRecorded(Mirror):
    """The target does not write down which keys are held."""

    def _write(self, groups: list[Group], applied: Applied) -> None:
        super()._write([group for group in groups if group[0]["op"] != "hold"], applied)


@contextmanager
def flows_past_a_held_change() -> Iterator[None]:
    """A later change of a held key does not wait."""

    with patch.object(delivery, "part", lambda sheaves, _, row_bytes: hold.part(sheaves, (), row_bytes)):
        yield


@contextmanager
def letters_settled_without_the_cursor() -> Iterator[None]:
    """Letters of keys that are not held are removed, though the attempt that holds them may still arrive. So may a leader
    that was frozen, where nobody asks whether it still leads."""
    real = Letters.settle

    async def settle(self: Letters, held: Any, out: Any, _: Cursor) -> None:
        await real(self, held, out, Cursor("99999:99999:"))

    leads = patch.dict(wire._STATEMENTS, still_leads=lambda *_: [lambda: [(True,)]])
    with patch.object(Letters, "settle", settle), leads:
        yield


@contextmanager
def letters_of_attempts_left() -> Iterator[None]:
    """What an attempt that came to nothing has written stays once its change has been accepted."""

    async def accepted(self: Letters, flow: Sheaves, cursor: Cursor) -> int:
        return 0

    with patch.object(Letters, "accepted", accepted):
        yield


@contextmanager
def letters_forgotten_first() -> Iterator[None]:
    """A retry removes the letters, then sends them."""
    real = Delivery.prepare

    async def prepare(self: Delivery, parcel: Parcel) -> Load:
        if parcel.retried:
            await self._letters.forget(parcel.retried, parcel.cursor)
        return await real(self, parcel)

    with patch.object(Delivery, "prepare", prepare):
        yield


@contextmanager
def digest_without_the_cursor() -> Iterator[None]:
    """Two batches of one number that write the same rows pass for one, though they lead to different cursors."""
    real = Target._header

    def header(self: Target, mode: str, plan: Plan, *rest: Any) -> dict[str, Any]:
        return {**real(self, mode, plan, *rest), "digest": plan.digest}

    with patch.object(Target, "_header", header):
        yield


@contextmanager
def sleeps_without_another_look() -> Iterator[None]:
    """Having taken K the relay waits at once."""

    async def rest(self: Relay) -> None:
        if self._pace.pause(1e9) is None and await self._bell.try_arm():
            await self._bell.wait(1.0)
            await self._bell.disarm()

    with patch.object(Relay, "_rest", rest):
        yield


@contextmanager
def newest_by_transaction() -> Iterator[None]:
    """Of one key the change of the highest transaction id is taken for the newest. In planning alone: a letter goes by its id."""
    real = planning.plan

    def plan(sheaves: Sheaves, *given: Any, **more: Any) -> Plan:
        changes = unbind(sheaves)
        ordered = sorted(changes, key=lambda change: (change.xid, change.id))
        renumbered = (here._replace(id=there.id) for here, there in zip(ordered, changes, strict=True))
        return real(bind(renumbered), *given, **more)

    with patch.object(delivery, "plan", plan):
        yield


PLANTED = (
    Planted("windows replaced by id > last", ("I1", "I4", "I5"), context=ids_after_the_last),
    Planted("the fence removed", ("I6",), mirror=Unfenced),
    Planted("the cursor written in a second transaction", ("I5",), mirror=CursorLater),
    Planted("the rows written in a second transaction", ("I5",), mirror=CursorFirst),
    Planted(
        "the digest not compared",
        ("I1", "I3", "I5"),
        within=20_000,
        seed=1504,
        mirror=WithoutDigest,
        context=digest_taken_on_trust,
    ),
    Planted("the batch before not compared", ("I1", "I3", "I4", "I5"), within=20_000, seed=243, mirror=WithoutAfter),
    Planted("the digest without the cursor", ("I1", "I4"), within=20_000, seed=1900, context=digest_without_the_cursor),
    Planted("windows cut by id", ("atomicity",), context=cut_by_id),
    Planted("batch numbers not compared", ("I1", "I3", "I4", "I5"), mirror=Uncounted),
    Planted("unflushed commits sent", ("I1", "I2", "I5"), seed=164, context=no_wait_for_the_disk),
    Planted(
        "the cursor beyond the disk", ("I1", "I2", "I5"), within=20_000, seed=10126, context=cursor_beyond_the_disk
    ),
    Planted("memory outlives a crash", ("I1", "I5"), within=5000, context=memory_outlives_a_crash),
    Planted("the floor without an xid", ("I1", "I5"), context=floor_without_an_xid),
    Planted("the floor at the ceiling", ("I1", "I5"), context=floor_at_the_ceiling),
    Planted("running transactions forgotten", ("I1", "I5"), context=running_transactions_forgotten),
    Planted("beyond the page not asked", ("I1", "I5", "atomicity"), context=beyond_not_asked),
    Planted(
        "goes on from what was meant",
        ("I1", "I3", "I4", "I5"),
        within=5000,
        seed=222,
        context=goes_on_from_what_was_meant,
    ),
    Planted("sleeps without another look", ("I1",), within=5000, context=sleeps_without_another_look),
    Planted("a refused change without a letter", ("I1",), context=held_without_a_letter),
    Planted("the letter after the cursor", ("I1",), context=letter_after_the_cursor),
    Planted("held keys not recorded with the cursor", ("I5",), mirror=NotRecorded),
    Planted("flows past a held change", ("I1", "I4", "I5"), within=5000, seed=176, context=flows_past_a_held_change),
    Planted("letters forgotten before they are sent", ("I1",), within=5000, context=letters_forgotten_first),
    Planted(
        "letters settled without the cursor",
        ("I1",),
        within=20_000,
        seed=1146,
        context=letters_settled_without_the_cursor,
    ),
    Planted("letters of attempts left", ("I9",), within=5000, seed=1448, context=letters_of_attempts_left),
    Planted("newest by transaction", ("I4", "I5"), context=newest_by_transaction),
)
