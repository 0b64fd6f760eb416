"""Ranges are read in the order of the key's index: what was read in another one says nothing of how far a copy or a comparison is."""

from collections.abc import Sequence
from typing import Any

import pytest

from daemon.batch import Limits
from daemon.survey import survey
from daemon.watchlist import State
from tests.integration.test_aim import REORDERED, half_copied, on_source, on_target
from tests.integration.test_copy import filled
from tests.integration.test_dead_letters import AT_ONCE
from tests.integration.test_letters_aim import rest
from tests.integration.test_out_emitted import there
from tests.integration.test_verify import ask
from tests.pairs import Pair, Parts

SMALL = Limits(changes=100)
BACK = ("create unique index one on story (a, b)", "drop index two")


async def still(parts: Parts) -> None:
    """Everything the relay knows without having looked anew, within a second."""
    await parts.relay.drain()


def ordered(pair: Pair) -> None:
    pair.create(
        "create table story (a int not null, b int not null, n int)",
        on_target="create table story (a int, b int, n int, primary key (a, b))",
    )
    on_source(
        pair,
        "create unique index one on story (a, b)",
        "insert into story select g, (g * 7919) % 1009, g from generate_series(1, 1000) g",
        "select outbox.watch('story', key_columns => array['a', 'b'])",
    )
    on_target(pair, "select outboxd.map('story')")


async def test_the_index_of_the_key_is_another_one_in_the_last_second_of_a_copy(pair: Pair) -> None:
    ordered(pair)
    async with pair.relay(limits=SMALL, timing=AT_ONCE) as parts:
        await half_copied(parts)
        pair.write(*REORDERED)
        await still(parts)
        await rest(parts)
        assert parts.relay.copier.copies["public.story"].state == "done"
    pair.assert_equal("story")


async def test_the_index_of_the_key_is_another_one_in_the_last_second_of_a_comparison(pair: Pair) -> None:
    ordered(pair)
    async with pair.relay(limits=SMALL, timing=AT_ONCE) as parts:
        await rest(parts)
        on_target(pair, "update story set n = -1 where a > 400")
        ask(pair)
        parts.relay.verifier.ring()
        while (record := parts.relay.verifier.records.get("public.story")) is None or record.rows < 200:
            await parts.relay.step()
        assert record.state == "running"
        pair.write(*REORDERED)
        await still(parts)
        await rest(parts)
        record = parts.relay.verifier.records["public.story"]
        assert (record.state, record.rows, record.different) == ("done", 1000, 600)


async def test_another_collation_of_the_key_is_noticed(pair: Pair) -> None:
    """It is the order in which ranges are read, as another index is: `after` says nothing in it."""
    pair.create("""create table story (id text collate "C" primary key, n int)""", "story")
    with pair.source.connect() as source:
        aim = "select aim from outbox.aims()"
        before = source.execute(aim).fetchall()
        source.execute("""alter table story alter column id type text collate "POSIX" """)
        noticed = source.execute("select outbox.notice()").fetchall()
        assert noticed or source.execute(aim).fetchall() != before


async def test_what_status_says_of_a_copy_whose_order_was_another_one(pair: Pair) -> None:
    """And what a comparison says that somebody asks for afterwards."""
    ordered(pair)
    async with pair.relay(limits=SMALL, timing=AT_ONCE) as parts:
        await half_copied(parts)
        pair.write(*REORDERED)
        await still(parts)
        await rest(parts)
        tables = await survey(parts.source, (await parts.target.describe()).more)
        state = tables.entries(parts.relay.copier.copies)[0].state
    [(many,)] = there(pair, "select count(*) from story")
    assert (many, state) == (1000, State.WELL)


TYPES = {
    "text": "alter table story alter column id type text",
    "uuid": "alter table story alter column id type uuid using lpad(id::text, 32, '0')::uuid",
}


@pytest.mark.parametrize("now", list(TYPES))
async def test_the_type_of_the_key_is_another_one_during_a_comparison(pair: Pair, now: str) -> None:
    """Where it had come to says nothing in the order of another type."""
    filled(pair)
    async with pair.relay(limits=SMALL, timing=AT_ONCE) as parts:
        await rest(parts)
        ask(pair)
        parts.relay.verifier.ring()
        while (record := parts.relay.verifier.records.get("public.story")) is None or record.rows < 300:
            await parts.relay.step()
        assert record.state == "running"
        pair.write(TYPES[now])
        on_target(pair, TYPES[now])
        on_source(pair, "select outbox.notice()")
        parts.relay.copier.ring()
        while not parts.relay.copier.away("public.story"):
            await parts.relay.step()
        while parts.relay.copier.away("public.story"):
            await parts.relay.step()
        on_target(pair, "update story set n = -1")
        for _ in range(6):
            parts.relay.verifier.ring()
            await rest(parts)
        record = parts.relay.verifier.records["public.story"]
        assert record.state == "failed" or record.different >= 1900, "it is not said that the others are equal"


@pytest.mark.parametrize("now", list(TYPES))
async def test_the_type_of_the_key_is_another_one_during_a_copy(pair: Pair, now: str) -> None:
    filled(pair)
    async with pair.relay(limits=SMALL, timing=AT_ONCE) as parts:
        await half_copied(parts)
        pair.write(TYPES[now])
        on_target(pair, TYPES[now])
        await rest(parts)
        on_source(pair, "select outbox.notice()")
        await rest(parts)
    pair.assert_equal("story")


def for_one_range(pair: Pair, parts: Parts, to: Sequence[str], back: Sequence[str]) -> None:
    """While the next range is read it is otherwise, and nobody looks."""
    read, left = parts.source.read_as_of, [True]

    async def answered(*given: Any) -> Any:
        if given[1] is None or given[1].keys is None or not left:
            return await read(*given)
        left.clear()
        pair.write(*to)
        try:
            return await read(*given)
        finally:
            pair.write(*back)

    parts.source.read_as_of = answered  # type: ignore[method-assign,assignment]


async def test_the_index_of_the_key_is_another_one_for_one_range_of_a_copy(pair: Pair) -> None:
    ordered(pair)
    async with pair.relay(limits=SMALL, timing=AT_ONCE) as parts:
        await half_copied(parts)
        for_one_range(pair, parts, REORDERED, BACK)
        await rest(parts)
        assert parts.relay.copier.copies["public.story"].state == "done"
    pair.assert_equal("story")


async def test_the_index_of_the_key_is_another_one_for_one_range_of_a_comparison(pair: Pair) -> None:
    ordered(pair)
    async with pair.relay(limits=SMALL, timing=AT_ONCE) as parts:
        await rest(parts)
        on_target(pair, "update story set n = -1 where a > 400")
        ask(pair)
        parts.relay.verifier.ring()
        while (record := parts.relay.verifier.records.get("public.story")) is None or record.rows < 200:
            await parts.relay.step()
        for_one_range(pair, parts, REORDERED, BACK)
        await rest(parts)
        record = parts.relay.verifier.records["public.story"]
        assert (record.state, record.rows, record.different) == ("done", 1000, 600)


async def test_what_a_filter_reads_is_of_another_collation(pair: Pair) -> None:
    """Other rows are inside of it."""
    with pair.source.connect() as source:
        utf8 = "select collname from pg_collation where lower(collname) in ('c.utf8', 'c.utf-8')"
        if (known := source.execute(utf8).fetchone()) is None:
            pytest.skip("this system has no collation C.UTF-8")
    pair.create('create table story (id int primary key, name text collate "C")')
    on_source(pair, "select outbox.watch('story', filter => 'lower(name) <> ''ä''')")
    on_target(pair, "select outboxd.map('story')")
    async with pair.relay(timing=AT_ONCE) as parts:
        pair.write("insert into story values (1, 'ä'), (2, 'Ä'), (3, 'b')")
        await rest(parts)
        assert there(pair, "select id from story order by 1") == [(2,), (3,)]
        pair.write(f'alter table story alter column name type text collate "{known[0]}"')
        on_source(pair, "select outbox.notice()")
        await rest(parts)
    assert there(pair, "select id from story order by 1") == [(3,)]


async def test_the_index_of_the_key_is_another_one_when_rows_are_looked_at_again(pair: Pair) -> None:
    """Those are of a pass that begins anew."""
    ordered(pair)
    async with pair.relay(limits=SMALL, timing=AT_ONCE) as parts:
        await rest(parts)
        on_target(pair, "update story set n = -1 where a > 400")
        read, left = parts.source.read_as_of, [REORDERED]

        async def answered(*given: Any) -> Any:
            if left and given[1] is not None and given[1].what == "these":
                pair.write(*left.pop())
            return await read(*given)

        parts.source.read_as_of = answered  # type: ignore[method-assign,assignment]
        ask(pair)
        parts.relay.verifier.ring()
        await rest(parts)
        record = parts.relay.verifier.records["public.story"]
        assert (record.state, record.rows, record.different, left) == ("done", 1000, 600, [])


async def test_the_index_of_the_key_is_another_one_there_during_a_comparison(pair: Pair) -> None:
    """Keys that the target has beyond those of the source are listed in its order."""
    pair.create(
        "create table story (a int not null, b int not null, n int, primary key (a, b))",
        on_target="create table story (a int not null, b int not null, n int)",
    )
    on_source(
        pair,
        "insert into story select g, g, g from generate_series(1, 1000) g",
        "select outbox.watch('story')",
    )
    on_target(
        pair,
        "create unique index one on story (a, b)",
        "select outboxd.map('story', key_columns => array['a', 'b'])",
    )
    async with pair.relay(limits=SMALL, timing=AT_ONCE) as parts:
        await rest(parts)
        on_target(pair, "insert into story select 2000 * (g % 2), -g, g from generate_series(1, 300) g")
        ask(pair)
        parts.relay.verifier.ring()
        while (record := parts.relay.verifier.records.get("public.story")) is None or not (
            record.step == "extra" and record.after
        ):
            await parts.relay.step()
        on_target(pair, *REORDERED)
        for _ in range(3):
            await rest(parts)
        record = parts.relay.verifier.records["public.story"]
        assert (record.state, record.rows, record.extra) == ("done", 1000, 300)
