"""Both stores are compared, exactly, while they are written to; what differs is named, and repaired when asked."""

import asyncio
from collections.abc import Callable

import pytest

from daemon.batch import Limits
from daemon.verification import Verification
from tests.integration.test_copy import KEYS, Writers, anything, filled
from tests.pairs import Pair, Parts


def ask(pair: Pair, table: str = "story", *, repair: bool = False) -> int:
    """The number of the wish."""
    with pair.source.connect() as source:
        asked = source.execute("select outbox.ask_verification(%s, %s)", (f"public.{table}", repair)).fetchone()
    assert asked is not None
    return int(asked[0])


async def verified(parts: Parts, pair: Pair, table: str = "story", *, repair: bool = False) -> Verification:
    """The record of a whole pass that is asked for now."""
    ask(pair, table, repair=repair)
    parts.relay.verifier.ring()
    await parts.relay.drain()
    record = parts.relay.verifier.records[f"public.{table}"]
    assert record.state == "done", record
    return record


def drifted(pair: Pair, *statements: str) -> None:
    """Somebody writes to the mirror."""
    with pair.target.connect() as target:
        for statement in statements:
            target.execute(statement.encode())


def counts(record: Verification) -> tuple[int, int, int, int]:
    return record.rows, record.missing, record.different, record.extra


@pytest.mark.parametrize("kind", list(KEYS))
async def test_what_differs_is_counted_named_and_repaired(pair: Pair, kind: str) -> None:
    columns, key, made = KEYS[kind]
    filled(pair, f"{columns}, note text", f"{made}, 'note ' || n", keys=key if "unique" in columns else "")
    async with pair.relay(limits=Limits(changes=300)) as parts:
        await parts.relay.drain()
        record = await verified(parts, pair)
        assert counts(record) == (2500, 0, 0, 0)
        drifted(
            pair,
            f"delete from story where ({key}) in (select {key} from story order by md5(note) limit 3)",
            f"update story set note = 'other' where ({key}) in (select {key} from story order by md5(note) desc limit 5)",
            f"insert into story select {made.replace('n', 'm')}, 'x' from generate_series(100001, 100002) m".replace(
                "mot", "not"
            ),
        )
        record = await verified(parts, pair)
        assert counts(record) == (2500, 3, 5, 2)
        assert record.repaired == 0
        assert {one["kind"] for one in record.samples} == {"missing", "different", "extra"}
        assert all(list(one["columns"]) == ["note"] for one in record.samples if one["kind"] == "different")
        record = await verified(parts, pair, repair=True)
        assert (counts(record), record.repaired) == ((2500, 0, 0, 0), 10)
        record = await verified(parts, pair)
        assert (counts(record), record.repaired) == ((2500, 0, 0, 0), 0)
    pair.assert_equal("story")


async def passes(parts: Parts, pair: Pair, stop: asyncio.Event, seen: list[Verification]) -> None:
    """One after the other, until told to stop."""
    while not stop.is_set():
        wish = ask(pair)
        while (record := parts.relay.verifier.records.get("public.story")) is None or not (
            record.state == "done" and record.wish >= wish
        ):
            await parts.relay.step(8)
            parts.relay.verifier.ring()
        seen.append(record)


@pytest.mark.parametrize("kind", ["bigint", "text"])
async def test_nothing_in_flight_looks_like_a_difference(pair: Pair, kind: str) -> None:
    """Three writers insert, update, delete and change keys; pass after pass finds both stores equal."""
    columns, _, made = KEYS[kind]
    filled(pair, f"{columns}, n int, note text", f"{made}, n, 'note ' || n", many=600)
    value: Callable[[int], str] = str if kind == "bigint" else (lambda n: f"'k{n * 7919 % 100003}'")
    seen: list[Verification] = []
    async with pair.relay(limits=Limits(changes=100)) as parts:
        await parts.relay.drain()
        stop = asyncio.Event()
        with Writers(pair, anything(value, "id")) as writers:
            going = asyncio.create_task(passes(parts, pair, stop, seen))
            async with asyncio.timeout(60):
                while len(seen) < 10 or writers.written < 1000:
                    await asyncio.wait([going], timeout=0.1)
                    assert not going.done(), going.result()
            stop.set()
            await going
        await parts.relay.drain()
    assert [record.drift for record in seen] == [0] * len(seen)
    pair.assert_equal("story")
