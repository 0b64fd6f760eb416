"""Batches shrink until the target takes them and grow again; a row that never fits is a dead letter."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from daemon.batch import Limits
from daemon.errors import Kind, Refusal, TargetError
from daemon.plan import SEPARATOR
from daemon.target import PostgresDoor
from tests.pairs import QUICK, Pair
from tests.silent import Silent


@dataclass
class NarrowDoor:
    """The direct door behind a gateway that refuses documents above a size, as 413 does."""

    dsn: str
    limit: int
    refused: int = 0
    sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._door = PostgresDoor(self.dsn)

    async def send(self, document: bytes) -> str:
        if json.loads(document.split(SEPARATOR, 1)[0])["mode"] == "apply":
            if len(document) > self.limit:
                self.refused += 1
                raise TargetError(Kind.SIZE, "the target answered 413", Refusal(None, 413))
            self.sizes.append(len(document))
        return await self._door.send(document)

    async def close(self) -> None:
        await self._door.close()


class Torn(Silent):
    def __init__(self) -> None:
        self.torn = 0

    def batch_applied(self, batch: Any, plan: Any, answer: Any, seconds: float) -> None:
        self.torn += batch.torn


@pytest.fixture
def notes(pair: Pair) -> Pair:
    pair.create("create table note (id int primary key, body text)", "note")
    return pair


async def until_idle(parts: Any) -> int:
    """Drain as the loop does: an error is met by the next turn."""
    failures = 0
    while True:
        try:
            if not await parts.relay.step():
                return failures
        except TargetError as exc:
            failures += 1
            parts.relay._stumble(exc)
            assert failures < 50, "no end to it"


async def test_batches_shrink_below_the_targets_limit_and_are_remembered(notes):
    for part in range(40):
        notes.write(
            f"insert into note select n, repeat('x', 1000) from generate_series({part * 25}, {part * 25 + 24}) n"
        )
    door = NarrowDoor(notes.target.dsn, limit=200_000)
    async with notes.relay(door=door) as parts:
        assert 0 < await until_idle(parts) <= 4
        assert min(door.sizes[:-1]) > 40_000, "no smaller than need be"
        refused = door.refused
        notes.write("insert into note select n, repeat('x', 1000) from generate_series(2000, 2900) n")
        await until_idle(parts)
        assert door.refused == refused, "what was refused is not tried again at once"
    notes.assert_equal("note")


async def test_a_row_above_the_targets_limit_is_a_dead_letter_with_its_size(notes):
    notes.write(
        "insert into note values (1, 'small')",
        "insert into note values (2, repeat('x', 300000))",
        "insert into note values (3, 'small')",
    )
    notes.write("insert into note values (4, 'after it')")
    told = Torn()
    async with notes.relay(door=NarrowDoor(notes.target.dsn, limit=100_000), observer=told) as parts:
        await until_idle(parts)
    assert [row for (row,) in notes.rows("select id from note order by 1")[1]] == [1, 3, 4]
    assert told.torn == 1, "the transaction had to be taken apart, which is counted"
    with notes.source.connect() as conn:
        [(key, state, reason)] = conn.execute("select key, sqlstate, reason from outbox.held").fetchall()
    assert (key, state) == ('{"id":2}', "54000")
    assert "a row of 300" in reason
    assert "413" in reason


async def test_a_gateway_that_takes_nothing_makes_no_dead_letter(notes):
    """413 for a few bytes says nothing about the row: a person is asked, and all of it arrives once it is mended."""
    notes.write("insert into note select n, 'n' from generate_series(1, 8) n")
    door = NarrowDoor(notes.target.dsn, limit=10)
    async with notes.relay(door=door) as parts:
        kinds = []
        for _ in range(8):
            with pytest.raises(TargetError) as caught:
                await parts.relay.step()
            parts.relay._stumble(caught.value)
            kinds.append(caught.value.kind)
        assert kinds[-1] is Kind.CONTRACT
        assert parts.relay.status.state == "paused"
        door.limit = 10**6
        await until_idle(parts)
    notes.assert_equal("note")
    with notes.source.connect() as conn:
        assert conn.execute("select count(*) from outbox.held").fetchone() == (0,)


async def test_a_statement_timeout_halves_the_batch_and_spares_a_single_change(notes):
    """57014 for one change is a lock or a slow target: no row is blamed for it."""
    notes.write("insert into note select n, 'n' from generate_series(1, 64) n")

    class Slow(NarrowDoor):
        async def send(self, document: bytes) -> str:
            if json.loads(document.split(SEPARATOR, 1)[0])["mode"] == "apply" and self.refused < 20:
                self.refused += 1
                raise TargetError(Kind.SIZE, "the target answered 57014", Refusal("57014"))
            return await self._door.send(document)

    async with notes.relay(door=Slow(notes.target.dsn, 0)) as parts:
        await until_idle(parts)
    notes.assert_equal("note")
    with notes.source.connect() as conn:
        assert conn.execute("select count(*) from outbox.held").fetchone() == (0,)


async def test_rows_beyond_row_bytes_are_held_and_the_rest_is_bounded_by_bytes(notes):
    notes.write("insert into note select n, repeat('x', 100000) from generate_series(1, 30) n")
    notes.write("insert into note values (99, repeat('y', 900000))")
    notes.write("insert into note values (100, 'z')")
    sizes: list[int] = []

    class Sizes(Silent):
        def batch_read(self, batch: Any, seconds: float) -> None:
            sizes.append(sum(len(change.row or "") for change in batch.changes))

    limits = Limits(bytes=500_000, row_bytes=400_000)
    await notes.drain(limits=limits, observer=Sizes(), timing=QUICK)
    assert max(sizes) < 500_000 + 400_000
    assert len(notes.rows("select id from note")[1]) == 31
    with notes.source.connect() as conn:
        [(reason,)] = conn.execute("select reason from outbox.held").fetchall()
    assert reason.startswith("the row is 900")
