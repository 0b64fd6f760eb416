"""Dead letters of everyday migrations go by themselves, once what refused them may be gone; and cost little while it is not."""

import asyncio
from typing import Any

import pytest

from tests.integration.test_dead_letters import AT_ONCE, held, letters
from tests.integration.test_out_emitted import on_target, there, turned
from tests.pairs import Pair
from tests.relaying import until

# What the target does not take, and the statement there that mends it.
CAUSES = {
    "a label": ("mood", "create type mood as enum ('calm')", "alter type mood add value 'glad'", "create type mood as enum ('calm', 'glad')"),
    "a constraint": ("text constraint calm check (mood = 'calm')", "", "alter table story drop constraint calm", ""),
    "a type": ("int", "", "alter table story alter mood type text", ""),
    "a length": ("varchar(3)", "", "alter table story alter mood type text", ""),
    "a unique value": ("text constraint one unique", "", "alter table story drop constraint one", ""),
}  # fmt: skip


@pytest.mark.parametrize("what", list(CAUSES))
async def test_once_the_targets_table_is_mended_its_letters_go(pair: Pair, what: str) -> None:
    of_type, before, mend, at_home = CAUSES[what]
    at_home_type = "mood" if at_home else "text"
    ddl = "{}; create table story (id int primary key, mood {})"
    pair.create(
        ddl.format(at_home or "select 1", at_home_type), "story", on_target=ddl.format(before or "select 1", of_type)
    )
    async with pair.relay(timing=AT_ONCE) as parts:
        pair.write("insert into story values (1, 'glad'), (2, 'glad')")
        await parts.relay.drain()
        assert letters(pair)
        on_target(pair, mend)
        await turned(parts, lambda: not letters(pair))
        assert held(pair) == []
    pair.assert_equal("story")


FAMILY = """
create table person (id int primary key, email text unique {0});
create table post (id int primary key, person_id int references person {0}, title text);
create table comment (id int primary key, post_id int references post {0})
"""


async def test_a_column_is_added_while_the_application_writes(pair: Pair) -> None:
    """The table is out, rows of its neighbours are refused; once the column is there all of it arrives, by itself."""
    pair.create(FAMILY.format(""), "person", "post", "comment", on_target=FAMILY.format("deferrable"))
    async with pair.relay(timing=AT_ONCE) as parts:
        pair.write("insert into person values (1, 'a'), (2, 'b')", "insert into post values (1, 1, 'x')")
        await parts.relay.drain()
        pair.write("alter table post add column views int not null default 0")
        for n in range(10, 20):
            pair.write(f"insert into post values ({n}, 1, 'y')", f"insert into comment values ({n}, {n})")
            await parts.relay.drain()
        pair.write(
            "delete from post where id = 1",
            "insert into person values (3, 'c')",
            "insert into post values (30, 3, 'z')",
        )
        pair.write(
            "update post set person_id = 1", "delete from person where id = 3", "insert into person values (4, 'c')"
        )
        await parts.relay.drain()
        assert len(letters(pair)) >= 10
        on_target(pair, "alter table post add column views int not null default 0")
        parts.relay.copier.ring()
        await turned(parts, lambda: not letters(pair) and not parts.relay.copier.out)
    pair.assert_equal("person", "post", "comment")


async def test_a_row_that_wants_what_another_gives_up_comes_when_that_has_arrived(pair: Pair) -> None:
    """Nothing was done on the target: other changes have arrived."""
    ddl = "create table person (id int primary key, email text {} unique, name text {})"
    pair.create(ddl.format("", ""), "person", on_target=ddl.format("", "check (name <> 'x')"))
    async with pair.relay(timing=AT_ONCE) as parts:
        pair.write("insert into person values (1, 'a', 'n')")
        await parts.relay.drain()
        pair.write("update person set email = 'b', name = 'x' where id = 1", "insert into person values (2, 'a', 'n')")
        await parts.relay.drain()
        assert [state for _, _, state, *_ in letters(pair)] == ["23514", "23505"]
        on_target(pair, "update person set email = 'elsewhere' where id = 1")
        pair.write("insert into person values (3, 'c', 'n')")
        await turned(parts, lambda: [state for _, _, state, *_ in letters(pair)] == ["23514"])


async def test_where_nothing_happens_nothing_is_tried(pair: Pair) -> None:
    pair.create("create table story (id int primary key, n int unique)", "story")
    async with pair.relay(timing=AT_ONCE) as parts:
        on_target(pair, "insert into story values (9, 1)")
        pair.write("insert into story values (1, 1)")

        def attempts() -> Any:
            with pair.source.connect() as conn:
                return conn.execute("select attempts from outbox.held").fetchall()

        await parts.relay.drain()
        for _ in range(20):
            await parts.relay.step()
        tried = attempts()
        for _ in range(20):
            await parts.relay.step()
        assert attempts() == tried
        assert tried[0][0] <= 2


async def test_letters_of_columns_that_are_gone_stay_and_their_table_flows(pair: Pair) -> None:
    """The table is not out for them: its other changes fit."""
    pair.write("select outbox.map('public.card', array['id'])")
    on_target(pair, "create table card (id int primary key, a text, b int check (b < 6))", "select outboxd.map('card')")
    async with pair.relay(timing=AT_ONCE) as parts:
        pair.write('select outbox.emit(\'public.card\', \'upsert\', \'{"id":1,"a":"x","b":9}\')')
        await parts.relay.drain()
        on_target(pair, "alter table card drop constraint card_b_check, drop column a")
        pair.write("select outbox.emit('public.card', 'upsert', '{\"id\":2,\"b\":1}')")
        await turned(parts, lambda: "has no column a" in letters(pair)[0][3])
        assert [wanted for *_, wanted in letters(pair)] == [None]
        assert parts.relay.copier.out == set()
        on_target(pair, "alter table card add column a text")
        await turned(parts, lambda: not letters(pair))
    assert there(pair, "select id, a, b from card order by 1") == [(1, "x", 9), (2, None, 1)]


async def test_rows_whose_key_has_a_label_that_the_target_lacks_come_with_it(pair: Pair) -> None:
    """Inserted and moved there, changed while they wait; and what comes later goes the same way."""
    pair.create("create type kind as enum ('a', 'b'); create table t (k kind, n int, v text, primary key (k, n))", "t")
    pair.write("insert into t values ('a', 1, 'x'), ('b', 2, 'y')")
    async with pair.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        pair.write("alter type kind add value 'c' before 'b'")
        pair.write(
            "insert into t values ('c', 1, 'z'), ('a', 3, 'q')",
            "update t set k = 'c' where k = 'b'",
            "update t set v = 'w' where n = 1",
        )
        await parts.relay.drain()
        assert [key for _, key in held(pair)] == ['{"k":"c","n":1}', '{"k":"c","n":2}']
        on_target(pair, "alter type kind add value 'c' before 'b'")
        await turned(parts, lambda: not held(pair))
        pair.write("delete from t where k = 'c' and n = 1")
        await parts.relay.drain()
    here, there = pair.rows("select * from t order by n")
    assert here == there == [("a", 1, "w"), ("c", 2, "y"), ("a", 3, "q")]


async def test_what_halts_goes_on_once_the_row_that_it_waits_for_may_arrive(pair: Pair) -> None:
    """A parent is held, its child halts the relay: no turn succeeds until the parent's letter has gone."""
    family = "create table parent (id int primary key, n int{}); create table child (id int primary key, parent int references parent)"
    pair.create(family.format(""), "parent", "child", on_target=family.format(" constraint small check (n < 6)"))
    pair.write(
        "select outbox.watch('child')", "update outbox.watched set on_error = 'halt' where table_name = 'public.child'"
    )
    async with pair.relay(timing=AT_ONCE) as parts:
        pair.write("insert into parent values (1, 9)")
        await parts.relay.drain()
        pair.write("insert into child values (1, 1)", "insert into parent values (2, 2)")
        running = asyncio.create_task(parts.relay.run())
        parts.relay.lead()
        await until(lambda: parts.relay.status.state == "paused")
        on_target(pair, "alter table parent drop constraint small")
        await until(lambda: not letters(pair) and there(pair, "select * from child") == [(1, 1)])
        parts.relay.stop()
        await running
    pair.assert_equal("parent")
    pair.assert_equal("child")
