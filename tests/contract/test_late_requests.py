"""A first attempt that is given up and reaches the target late: at every moment, beside every kind of successor.

Two connections to the target's own function, each in a transaction that ends when the test says so. What may come
out is computed here from the plans that the target says it took, and from nothing else.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psycopg
import pytest

from daemon.demo.supabase import EmbeddedSupabase
from daemon.errors import Kind, TargetError
from daemon.plan import Plan
from daemon.target import Answer, Standing
from outbox import Cursor
from tests.contract.conftest import Stand, patient, standing, upserts

# The source's changes, in order: transaction id, item, value.
HISTORY = [(10, 1, "a"), (11, 2, "b"), (12, 1, "c"), (13, 3, "d"), (14, 2, "e"), (15, 4, "f")]
FINAL = {1: "c", 2: "e", 3: "d", 4: "f"}

MOMENTS = [
    "before the question",
    "during the question",
    "after the question",
    "before the successor",
    "behind the successor",
    "after the successor",
]

# The successor's transactions: of what the first attempt wanted, or of what is left when that was applied. `held`
# leads to the same cursor with fewer rows, as when a key is put aside meanwhile.
SUCCESSORS: dict[str, tuple[set[int], set[int]]] = {
    "same": ({10, 11, 12}, {13, 14}),
    "smaller": ({10}, {13}),
    "larger": ({10, 11, 12, 13, 14}, {13, 14, 15}),
    "cut otherwise": ({10, 12, 13}, {13, 15}),
    "held": ({10, 12}, {13}),
}


@dataclass(frozen=True)
class Batch:
    """Some transactions, and where they lead: past `seen`, all of them together."""

    rows: frozenset[int]
    seen: frozenset[int]

    @property
    def cursor(self) -> Cursor:
        top = max(self.seen) + 1
        missing = [xid for xid in range(10, top) if xid not in self.seen]
        return Cursor(f"{min([*missing, top])}:{top}:{','.join(map(str, missing))}", 0, (), "a system")

    @property
    def plan(self) -> Plan:
        return upserts(*((item, value) for xid, item, value in HISTORY if xid in self.rows))

    def final(self) -> dict[int, str]:
        """Its last value of each item: what it writes, once."""
        return {item: value for xid, item, value in HISTORY if xid in self.rows}


class Late:
    """A door whose requests arrive and end when they are told to."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.arrives, self.ends, self.worked = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.commits = True

    async def send(self, document: bytes) -> str:
        await self.arrives.wait()
        async with await psycopg.AsyncConnection.connect(self._dsn) as conn:
            row = await (await conn.execute("select public.outboxd(%s)::text", (document.decode(),))).fetchone()
            self.worked.set()
            await self.ends.wait()
            if not self.commits:
                await conn.rollback()
                raise TargetError(Kind.TRANSIENT, "its backend was terminated (test)")
        assert row is not None
        return str(row[0])

    async def close(self) -> None:
        """Nothing is kept."""


@pytest.fixture
async def direct(project: EmbeddedSupabase) -> AsyncIterator[Stand]:
    async with standing("postgres", project) as each:
        yield each


@dataclass
class Race:
    """The two attempts, and what the target took of them."""

    stand: Stand
    first: Late
    successor: Late
    tasks: asyncio.TaskGroup
    sent: "asyncio.Task[Answer | None]"
    told: Standing | None = None

    async def let_first(self, moment: str, now: str) -> None:
        """At its moment the first attempt runs to its end; elsewhere nothing happens."""
        if moment != now:
            return
        self.first.arrives.set()
        self.first.ends.set()
        await self.sent


@asynccontextmanager
async def racing(stand: Stand, batch: Batch, commits: bool) -> AsyncIterator[Race]:
    first, successor = Late(stand.project.dsn()), Late(stand.project.dsn())
    first.commits = commits
    async with asyncio.TaskGroup() as tasks:
        sent = tasks.create_task(apply(stand, first, batch, 1))
        yield Race(stand, first, successor, tasks, sent)


async def apply(stand: Stand, door: Late, batch: Batch, batch_no: int) -> Answer | None:
    """The target's answer, or None when its transaction was rolled back."""
    try:
        return await patient(door, stand.name).apply(batch.plan, batch.cursor, 1, batch_no)
    except TargetError:
        return None


def successor_of(told: Standing, kind: str) -> Batch:
    rows = SUCCESSORS[kind][1 if told.batch_no else 0]
    seen = (FIRST.seen if told.batch_no else set()) | rows
    if kind == "held":
        seen |= {14} if told.batch_no else {11}
    return Batch(frozenset(rows), frozenset(seen))


FIRST = Batch(frozenset({10, 11, 12}), frozenset({10, 11, 12}))


@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
@pytest.mark.parametrize("kind", SUCCESSORS)
@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_late_first_attempt_changes_nothing_that_is_not_right(
    direct: Stand, moment: str, kind: str, commits: bool
) -> None:
    """One of the two is taken for a number; each taken plan takes effect once; going on leads to the source's state."""
    await direct.claimed()
    asking = direct.target()
    async with racing(direct, FIRST, commits) as race:
        await race.let_first(moment, "before the question")
        question = await ask(race, moment)
        await race.let_first(moment, "after the question")
        successor = successor_of(question, kind)
        answer, order = await send_successor(race, moment, successor, question.batch_no + 1)
        await race.let_first(moment, "after the successor")
    late = race.sent.result()
    both = [(FIRST, late), (successor, answer)]
    if order == "first last":
        both.reverse()
    taken = [batch for batch, each in both if each and each.what == "applied"]
    now = (await asking.cursor()).standing

    # What they were told is what is there, and no two were taken for one number.
    assert (question.batch_no, question.cursor) == (
        (1, FIRST.cursor) if MOMENTS.index(moment) < 2 and commits else (0, None)
    )
    assert now.batch_no == len(taken) >= 1
    assert now.cursor == taken[-1].cursor
    assert answer is not None
    assert answer.standing == now if order == "successor last" else answer.what == "applied"
    for each, batch in ((late, FIRST), (answer, successor)):
        if each and each.what == "duplicate":
            assert batch in taken
    assert direct.items() == written(taken)
    assert direct.effects() == sorted(pair for batch in taken for pair in batch.final().items())

    # From there on to the end.
    seen = taken[-1].seen
    rest = Batch(frozenset(xid for xid, *_ in HISTORY if xid not in seen), frozenset(xid for xid, *_ in HISTORY))
    if rest.rows:
        assert (await asking.apply(rest.plan, rest.cursor, 1, now.batch_no + 1)).what == "applied"
        taken.append(rest)
    assert direct.items() == written(taken)
    assert direct.effects() == sorted(pair for batch in taken for pair in batch.final().items())
    if kind != "held":
        assert direct.items() == FINAL


def written(taken: list[Batch]) -> dict[int, str]:
    return {item: value for batch in taken for item, value in batch.final().items()}


async def ask(race: Race, moment: str) -> Standing:
    """Where the target stands; perhaps while the first attempt holds the cursor's row."""
    target = race.stand.target()
    if moment != "during the question":
        return (await target.cursor()).standing
    race.first.arrives.set()
    await race.first.worked.wait()
    question = race.tasks.create_task(target.cursor())
    await race.stand.waiting(1)
    race.first.ends.set()
    return (await question).standing


async def send_successor(race: Race, moment: str, batch: Batch, batch_no: int) -> tuple[Answer | None, str]:
    """Its answer, and whether it or the first attempt had the cursor's row last."""
    successor = race.successor
    sending = race.tasks.create_task(apply(race.stand, successor, batch, batch_no))
    if moment == "before the successor":
        race.first.arrives.set()
        await race.first.worked.wait()
        successor.arrives.set()
        await race.stand.waiting(1)
        race.first.ends.set()
    successor.arrives.set()
    await successor.worked.wait()
    if moment == "behind the successor":
        race.first.arrives.set()
        await race.stand.waiting(1)
        race.first.ends.set()
    successor.ends.set()
    return await sending, "first last" if moment.endswith(
        ("behind the successor", "after the successor")
    ) else "successor last"
