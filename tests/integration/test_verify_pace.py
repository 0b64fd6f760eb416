"""Verification is quick when asked for, and gentle by the clock: what is read ahead, what needs no request, who goes first."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from daemon.batch import Limits
from daemon.relay import Relay
from daemon.target import PostgresDoor
from daemon.verifier import Verifier
from tests.integration.test_copy import filled
from tests.integration.test_verify import ask, counts, drifted, verified
from tests.pairs import QUICK, Pair, Parts
from tests.silent import Silent

SEPARATOR = b"\x1e"


class Door(PostgresDoor):
    """Notes what is asked of the target. `spoil`: the next comparisons that are answered with this instead. `together`:
    the first comparison is not brought over before a second has come."""

    def __init__(self, dsn: str, *, spoil: tuple[dict[str, Any], ...] = (), together: bool = False) -> None:
        super().__init__(dsn)
        self.modes: list[str] = []
        self.compared: list[tuple[dict[str, Any], dict[str, Any]]] = []  # of each digest: its group, the note beside it
        self.overlapped = False
        self._spoil = list(spoil)
        self._second = asyncio.Event() if together else None

    async def send(self, document: bytes) -> str:
        parts = document.split(SEPARATOR)
        heads = [json.loads(part) for part in parts[1::2]]
        bodies = dict(zip((head["op"] for head in heads), parts[2::2], strict=True))
        self.modes.append(json.loads(parts[0])["mode"])
        digests = [head for head in heads if head["op"] == "digest"]
        if digests:
            self.compared.append((digests[0], json.loads(bodies["verification"])[0]))
            await self._meet()
        answer = await super().send(document)
        if digests and self._spoil:
            spoilt = json.loads(answer)
            spoilt["more"]["compared"] = self._spoil.pop(0)
            return json.dumps(spoilt)
        return answer

    async def _meet(self) -> None:
        if self._second is None:
            return
        if len(self.compared) > 1:
            self._second.set()
            return
        async with asyncio.timeout(30):
            await self._second.wait()
        self.overlapped = True


async def test_the_next_range_is_read_and_sent_while_the_target_compares(pair: Pair) -> None:
    """And what it has not answered yet, nobody says is equal."""
    filled(pair, many=850)
    door = Door(pair.target.dsn, together=True)
    async with pair.relay(limits=Limits(changes=300), door=door) as parts:
        await parts.relay.drain()
        assert counts(await verified(parts, pair)) == (850, 0, 0, 0)
    assert door.overlapped
    notes = [note for _, note in door.compared]
    assert [note["rows"] for note in notes[:2]] == [0, 0]
    assert all(note["rows"] <= max(0, 300 * (number - 1)) for number, note in enumerate(notes))


@pytest.mark.parametrize("spoilt", [{"failed": "55P03"}, {"failed": "57014"}, None])
async def test_what_was_read_ahead_of_a_comparison_that_failed_is_read_again(
    pair: Pair, spoilt: dict[str, Any] | None
) -> None:
    filled(pair, many=850)
    door = Door(pair.target.dsn, together=True, spoil=(spoilt or {},) if spoilt else ())
    async with pair.relay(limits=Limits(changes=300), door=door) as parts:
        await parts.relay.drain()
        drifted(pair, "update story set n = -1 where id in (3, 303, 603)", "delete from story where id = 850")
        ask(pair)
        parts.relay.verifier.ring()
        async with asyncio.timeout(60):
            while (record := parts.relay.verifier.records.get("public.story")) is None or record.state == "running":
                await parts.relay.step(8)
        assert (record.state, counts(record)) == ("done", (850, 1, 3, 0))
    assert door.overlapped
    firsts = [group["span"][0] for group, _ in door.compared]
    assert firsts.count(None) == (2 if spoilt else 1)


class Overtaken(PostgresDoor):
    """Of a pass with two comparisons by `op` on their way the next range is asked for (`what`) before the first of the two
    is answered, with `spoilt`, and not had before that answer has landed."""

    def __init__(self, dsn: str, op: str, spoilt: dict[str, Any] | None) -> None:
        super().__init__(dsn)
        self._op, self._spoilt = op, spoilt
        self._compared = 0
        self._asked, self._landed = asyncio.Event(), asyncio.Event()

    @property
    def overtook(self) -> bool:
        return self._landed.is_set()

    async def send(self, document: bytes) -> str:
        parts = document.split(SEPARATOR)
        first = False
        if any(json.loads(part)["op"] == self._op for part in parts[1::2]):
            self._compared += 1
            first = self._compared == 1
        answer = await super().send(document)
        if not first:
            return answer
        async with asyncio.timeout(30):
            await self._asked.wait()
        spoilt = json.loads(answer)
        spoilt["more"]["compared"] = self._spoilt
        return json.dumps(spoilt)

    def meet(self, parts: Parts, what: str) -> None:
        """`what`: a question to the source, or `keys` of the target."""
        verifier, arrived = parts.relay.verifier, parts.relay.verifier.arrived

        def landed(*args: Any) -> None:
            arrived(*args)
            if self._asked.is_set():
                self._landed.set()

        def held(ask: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def asked(*args: Any) -> Any:
                found = await ask(*args)
                waits = what == "keys" or (args[1] is not None and args[1].what == what)
                if waits and not self._asked.is_set() and len(verifier._flying) == 2:
                    self._asked.set()
                    async with asyncio.timeout(30):
                        await self._landed.wait()
                return found

            return asked

        verifier.arrived = landed  # type: ignore[method-assign,assignment]
        if what == "keys":
            parts.target.keys = held(parts.target.keys)  # type: ignore[method-assign,assignment]
        else:
            parts.source.read_as_of = held(parts.source.read_as_of)  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize(
    ("spoilt", "state"),
    [({"failed": "55P03"}, "done"), ({"failed": "57014"}, "done"), (None, "done"), ({"failed": "XX000"}, "failed")],
    ids=["locked", "cancelled", "lost", "broken"],
)
@pytest.mark.parametrize(("op", "what"), [("digest", "digests"), ("present", "missing"), ("present", "keys")])
async def test_what_is_still_being_read_when_a_comparison_fails_is_read_again(
    pair: Pair, op: str, what: str, spoilt: dict[str, Any] | None, state: str
) -> None:
    """It lies behind ranges that nobody has compared: were it taken, these would pass for equal."""
    filled(pair, many=850)
    door = Overtaken(pair.target.dsn, op, spoilt)
    async with pair.relay(limits=Limits(changes=300), door=door) as parts:
        await parts.relay.drain()
        if op == "digest":
            drifted(pair, "update story set n = -1 where id in (3, 303, 603)", "delete from story where id = 850")
        else:
            drifted(pair, "insert into story select n, n from generate_series(1001, 2200) n")
        door.meet(parts, what)
        ask(pair)
        parts.relay.verifier.ring()
        async with asyncio.timeout(60):
            while (record := parts.relay.verifier.records.get("public.story")) is None or record.state == "running":
                await parts.relay.step(8)
        assert door.overtook
        await parts.relay.drain()
        record = parts.relay.verifier.records["public.story"]
    assert record.state == state, record
    if state == "done":
        assert counts(record) == ((850, 1, 3, 0) if op == "digest" else (850, 0, 0, 1200))
    with pair.target.connect() as conn:
        told = conn.execute("select state, rows, missing + different + extra from outboxd.verification").fetchall()
    assert told == [(record.state, record.rows, record.drift)]


@pytest.mark.parametrize(("rows", "ranges"), [(850, 3), (900, 4)])
async def test_equal_stores_cost_a_request_a_range(pair: Pair, rows: int, ranges: int) -> None:
    filled(pair, many=rows)
    door = Door(pair.target.dsn)
    async with pair.relay(limits=Limits(changes=300), door=door) as parts:
        await parts.relay.drain()
        door.modes.clear()
        assert counts(await verified(parts, pair)) == (rows, 0, 0, 0)
    assert door.modes == ["apply"] * (ranges + 1)  # the last says that the pass has ended
    assert len(door.compared) == ranges


@pytest.mark.parametrize("extra", [0, 5001, 9000])
async def test_a_row_beyond_the_sources_is_found_wherever_it_lies(pair: Pair, extra: int) -> None:
    filled(pair, rows="n * 10, n", many=850)
    door = Door(pair.target.dsn)
    async with pair.relay(limits=Limits(changes=300), door=door) as parts:
        await parts.relay.drain()
        drifted(pair, f"insert into story values ({extra}, 1)")
        assert counts(await verified(parts, pair)) == (850, 0, 0, 1)
        assert "keys" in door.modes
        door.modes.clear()
        assert counts(await verified(parts, pair, repair=True)) == (850, 0, 0, 0)
        door.modes.clear()
        assert counts(await verified(parts, pair)) == (850, 0, 0, 0)
        assert "keys" not in door.modes
    pair.assert_equal("story")


async def test_empty_tables_cost_no_batch_of_their_own(pair: Pair) -> None:
    tables = ("a", "b", "c")
    pair.create("".join(f"create table {name} (id int primary key);" for name in tables), *tables)
    door = Door(pair.target.dsn)
    async with pair.relay(door=door) as parts:
        await parts.relay.drain()
        door.modes.clear()
        for name in tables:
            ask(pair, name)
        parts.relay.verifier.ring()
        await parts.relay.drain()
        assert {record.state for record in parts.relay.verifier.records.values()} == {"done"}
        assert len(parts.relay.verifier.records) == 3
    assert door.modes.count("apply") == 1  # how the passes have ended
    assert door.modes.count("keys") == 3


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def by_the_clock(parts: Parts, clock: Clock, rate: float) -> Relay:
    verifier = Verifier(parts.source, parts.target, every=3600.0, rate=rate, clock=clock)
    relay = Relay(parts.source, parts.target, parts.bell, Silent(), QUICK, verifier=verifier)
    relay.lead()
    return relay


async def test_a_pass_by_the_clock_keeps_its_pace(pair: Pair) -> None:
    filled(pair, many=900)
    door, clock = Door(pair.target.dsn), Clock()
    async with pair.relay(limits=Limits(changes=300), door=door) as parts:
        relay = by_the_clock(parts, clock, rate=200)
        await relay.drain()
        while clock.now < 1000.0 + 900 / 200 - 0.3:
            clock.now += 0.1
            await relay.drain()
            sent = sum(record.rows for record in relay.verifier.records.values())
            assert sent <= (clock.now - 1000.0) * 200 + 101, (sent, clock.now)  # one range more, which began it
        assert relay.verifier.records["public.story"].state == "running"
        assert len(door.compared) >= 8
        clock.now += 2.0
        await relay.drain()
        assert relay.verifier.records["public.story"].state == "done"
        assert relay.verifier.due_in() is None
        door.modes.clear()
        clock.now += 3000.0
        await relay.drain()
        assert door.modes == []  # nothing is due: nothing is asked
        clock.now += 700.0
        await relay.drain()
        assert door.modes


async def test_a_backlog_goes_first(pair: Pair) -> None:
    filled(pair, many=300)
    door, clock = Door(pair.target.dsn), Clock()
    async with pair.relay(limits=Limits(changes=100), door=door) as parts:
        relay = by_the_clock(parts, clock, rate=2000)
        await relay.drain()
        clock.now += 4000.0  # nothing rests any more
        relay.verifier.passed(changes=True, more=True)
        assert await relay.verifier.begin() is None
        relay.verifier.passed(changes=True, more=False)
        assert await relay.verifier.begin() is not None
