"""What is known of a table that kept all others waiting is of that table of the target: another of its name does not inherit it."""

import pytest

from tests.integration.test_dead_letters import ASKED
from tests.integration.test_out_emitted import on_target
from tests.integration.test_sizes import until_idle
from tests.pairs import Pair, Parts
from tests.security.test_poison_slow import SlowDoor, held

ANEW = {
    "dropped": (
        ["drop table note", "create table note (id int primary key, body text)", "select outbox.watch('note')"],
        ["drop table note", "create table note (id int primary key, body text)"],
    ),
    "made anew on the target": ([], ["drop table note", "create table note (id int primary key, body text)"]),
    "elsewhere": (
        [],
        ["create table letter (id int primary key, body text)", "select outboxd.map('letter', 'public.note')"],
    ),
}


async def slow_rows(pair: Pair, parts: Parts) -> None:
    """Three, which go again: the next one would be their table's matter."""
    for n in range(3):
        pair.write(f"insert into note values ({n}, 'slow')")
        await until_idle(parts)
        pair.write(f"delete from note where id = {n}")
        await until_idle(parts)
        with pair.source.connect() as conn:
            conn.execute("update outbox.held set wanted = 'retry'")
        await until_idle(parts)
    assert held(pair) == []


@pytest.mark.parametrize("anew", ANEW)
async def test_another_table_begins_with_nothing(pair: Pair, anew: str) -> None:
    pair.create("create table note (id int primary key, body text)", "note")
    here, there = ANEW[anew]
    async with pair.relay(door=SlowDoor(pair.target.dsn), timing=ASKED) as parts:
        await slow_rows(pair, parts)
        pair.write(*here)
        on_target(pair, *there)
        pair.write("insert into note values (8, 'quick')")
        parts.relay.copier.recheck()
        await until_idle(parts)
        pair.write("insert into note values (9, 'slow')")
        await until_idle(parts)
        assert parts.relay.copier.out == set()
        assert held(pair) == [("public.note", '{"id":9}', "57014")]


async def test_how_long_a_table_is_left_alone_is_not_inherited(pair: Pair) -> None:
    pair.create("create table note (id int primary key, body text)", "note")
    async with pair.relay(timing=ASKED) as parts:
        await until_idle(parts)
        copier, pauses = parts.relay.copier, list[float]()
        for _ in range(3):
            copier._put_out("public.note", "slow", hurdle=True)
            pauses.append(copier._hurdles["public.note"][1])
            copier.recheck()
            await until_idle(parts)
            assert copier.out == set()
            if len(pauses) == 2:
                on_target(pair, *ANEW["made anew on the target"][1])
                copier._put_out("public.note", "gone", hurdle=False)
                copier.recheck()
                await until_idle(parts)
        assert pauses[0] == pauses[2] < pauses[1]


async def test_who_drops_a_table_and_watches_it_anew_sets_no_clock_back(pair: Pair) -> None:
    """Its mirror is the one that kept the others waiting: else they would wait whenever its owner likes."""
    pair.create("create table note (id int primary key, body text)", "note")
    async with pair.relay(door=SlowDoor(pair.target.dsn), timing=ASKED) as parts:
        await slow_rows(pair, parts)
        pair.write(*ANEW["dropped"][0])
        await until_idle(parts)
        pair.write("insert into note values (9, 'slow')")
        await until_idle(parts)
        assert parts.relay.copier.out == {"public.note"}
        assert held(pair) == []


async def test_how_long_letters_wait_ends_with_them(pair: Pair) -> None:
    """Also where they are discarded, and none of them shows that its table takes no longer as long."""
    pair.write("select outbox.map('public.card', array['id'])")
    on_target(pair, "create table card (id int primary key, title text)", "select outboxd.map('card')")
    async with pair.relay(timing=ASKED) as parts:
        on_target(pair, "alter table card rename to away")
        pair.write("""select outbox.emit('public.card', 'upsert', '{"id": 1, "title": "x"}')""")
        await until_idle(parts)
        assert parts.relay.copier.out == {"public.card"}
        slow = parts.relay._retries._slow
        slow["public.card"] = 900.0
        on_target(pair, "alter table away rename to card")
        pair.write("update outbox.held set wanted = 'discard'")
        await until_idle(parts)
        assert parts.relay.copier.out == set()
        assert not slow
