"""Sequences nobody named: several events one after the other, and both sides compared when all has come to rest."""

import pytest

from daemon.batch import Limits
from daemon.survey import survey
from daemon.watchlist import State
from tests.integration.test_aim import half_copied, on_source, on_target
from tests.integration.test_copy import filled
from tests.integration.test_dead_letters import AT_ONCE, held
from tests.integration.test_letters_aim import (
    EAGER,
    REFUSES,
    STORY,
    TAKES,
    none_is_left,
    rest,
    retried,
)
from tests.integration.test_out_emitted import there
from tests.integration.test_verify import ask
from tests.pairs import Pair, Parts

SMALL = Limits(changes=100)


async def still(parts: Parts) -> None:
    """Everything the relay knows without having looked anew, within a second."""
    await parts.relay.drain()


SECRET = "create table story (id int primary key, n int, secret text)"


REORDERED = ("create unique index two on story (b, a)", "drop index one")


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


async def test_new_rows_where_a_column_that_was_taken_off_has_a_default(pair: Pair) -> None:
    pair.create("create table story (id int primary key, n int, note text default 'none')", "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1, 'raw')")
        await rest(parts)
        on_source(pair, "select outbox.watch('story', exclude => array['note'])")
        await rest(parts)
        pair.write(
            "insert into story values (2, 2, 'raw')",
            "delete from story where id = 1",
            "insert into story values (1, 5, 'raw')",
        )
        await rest(parts)
        ask(pair)
        for _ in range(3):
            parts.relay.verifier.ring()
            await rest(parts)
        record = parts.relay.verifier.records["public.story"]
        assert record.drift == 0


@pytest.mark.parametrize("way", ["mapped", "renamed"])
async def test_a_place_there_and_back_again(pair: Pair, way: str) -> None:
    """For a moment it went elsewhere: what arrived there meanwhile is nowhere else."""
    ways = {
        "mapped": (["select outboxd.map('tale', 'public.story')"], ["select outboxd.map('story')"]),
        "renamed": (
            ["alter table story rename to aside", "alter table tale rename to story"],
            ["alter table story rename to tale", "alter table aside rename to story"],
        ),
    }
    to, back = ways[way]
    pair.create(STORY, "story")
    on_target(pair, STORY.replace("story", "tale"))
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2), (3, 3)")
        await rest(parts)
        on_target(pair, *to)
        pair.write(
            "update story set n = 7 where id = 1", "delete from story where id = 2", "insert into story values (4, 4)"
        )
        await still(parts)
        on_target(pair, *back)
        parts.relay.ask_again()
        await rest(parts)
        await rest(parts)
    async with pair.relay(timing=EAGER) as parts:
        await rest(parts)
    pair.assert_equal("story")


async def test_a_row_that_is_refused_while_its_column_is_emptied_and_taken_right_after(pair: Pair) -> None:
    """The copy goes on without it; the source records it anew, and it arrives as a change like any other."""
    pair.create(SECRET, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 13, 'raw'), (2, 1, 'raw')")
        await rest(parts)
        on_target(pair, REFUSES + " not valid")
        on_source(pair, "select outbox.watch('story', exclude => array['secret'])")
        parts.relay.copier.ring()
        with pair.source.connect() as conn:
            newest = "select max(id) from outbox.change"
            before = conn.execute(newest).fetchall()
            while conn.execute(newest).fetchall() == before:
                await parts.relay.step()
        on_target(pair, TAKES)
        await rest(parts)
        assert parts.relay.copier.copies["public.story"].state == "done"
        none_is_left(pair)
    assert there(pair, "select * from story order by 1") == [(1, 13, None), (2, 1, None)]


@pytest.mark.parametrize("way", ["made anew", "watched anew", "deleted meanwhile"])
async def test_a_table_whose_first_rows_came_within_the_second_in_which_it_was_watched(pair: Pair, way: str) -> None:
    """As a migration makes a table, watches it and fills it: where its rows went is on record all the same."""
    pair.create("create table other (id int primary key)", "other")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into other values (1)")
        await rest(parts)
        pair.create(STORY, "story")
        pair.write("insert into story values (1, 1), (2, 2)")
        await still(parts)
        assert there(pair, "select count(*) from story") == [(2,)]
        pair.write("insert into other values (2)")
        await rest(parts)
        if way == "made anew":
            on_target(pair, "drop table story", STORY, "select outboxd.map('story')")
        elif way == "watched anew":
            on_source(pair, "select outbox.unwatch('story')", "delete from story", "select outbox.watch('story')")
        else:
            on_source(
                pair,
                "select outbox.watch('story', capture => false)",
                "delete from story",
                "select outbox.watch('story')",
            )
        parts.relay.ask_again()
        await rest(parts)
    async with pair.relay(timing=EAGER) as parts:
        await rest(parts)
    pair.assert_equal("story")


@pytest.mark.parametrize("how", ["while it was out", "without triggers", "with its partition"])
async def test_a_row_that_left_unseen_and_that_the_target_does_not_let_go(pair: Pair, how: str) -> None:
    """It has a letter of before, which is no delete; the copy that prunes leaves another, which is one."""
    parts_of = how == "with its partition"
    ddl = STORY + (" partition by range (id)" if parts_of else "")
    pair.create(STORY)
    with pair.source.connect() as conn:
        if parts_of:
            conn.execute("drop table story")
            conn.execute(ddl.encode())
            conn.execute("create table low partition of story for values from (0) to (4)")
            conn.execute("create table high partition of story for values from (4) to (9)")
    on_source(pair, "select outbox.watch('story')")
    on_target(pair, "select outboxd.map('story')")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (5, 5)")
        await rest(parts)
        on_target(pair, REFUSES, "create table fan (id int references story)", "insert into fan values (5)")
        pair.write("update story set n = 13 where id = 5")
        await rest(parts)
        assert held(pair) == [("public.story", '{"id":5}')]
        if how == "while it was out":
            on_target(pair, "alter table story rename column note to memo")
            pair.write("update story set n = 2 where id = 1")
            await rest(parts)
            assert parts.relay.copier.out
            pair.write("delete from story where id = 5")
            await rest(parts)
            on_target(pair, "alter table story rename column memo to note")
        elif parts_of:
            pair.write("alter table story detach partition high")
        else:
            pair.write("alter table story disable trigger user", "delete from story where id = 5")
            on_source(pair, "select outbox.watch('story')")
        on_source(pair, "select outbox.notice()")
        await rest(parts)
        on_target(pair, TAKES, "drop table fan")
        await retried(pair, parts)
        await rest(parts)
    pair.assert_equal("story")
    none_is_left(pair)


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


async def test_emitted_for_a_while_with_letters_and_captured_again(pair: Pair) -> None:
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1, 'a'), (2, 2, 'b')")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        on_source(pair, "select outbox.watch('story', capture => false)")
        pair.write("select outbox.emit('public.story', 'upsert', '{\"id\": 1, \"n\": 13, \"note\": \"said\"}')",
                   "select outbox.emit('public.story', 'upsert', '{\"id\": 9, \"n\": 13}')")  # fmt: skip
        pair.write("update story set n = 8 where id = 1")
        await rest(parts)
        on_target(pair, "alter table story rename column note to memo")
        pair.write('select outbox.emit(\'public.story\', \'upsert\', \'{"id": 7, "n": 1, "note": "x"}\')')
        await rest(parts)
        on_source(pair, "select outbox.watch('story')")
        await rest(parts)
        on_target(pair, "alter table story rename column memo to note", TAKES)
        await retried(pair, parts)
        await rest(parts)
    pair.assert_equal("story")
    none_is_left(pair)


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


async def test_a_place_there_and_back_again_during_a_comparison(pair: Pair) -> None:
    """The half that was compared elsewhere says nothing of what is here."""
    filled(pair)
    on_target(pair, "create table tale (id int primary key, n int)")
    async with pair.relay(limits=SMALL, timing=AT_ONCE) as parts:
        await rest(parts)
        on_target(pair, "insert into tale select * from story", "update story set n = -1 where id > 1000")
        ask(pair)
        parts.relay.verifier.ring()
        while (record := parts.relay.verifier.records.get("public.story")) is None or record.rows < 300:
            await parts.relay.step()
        on_target(pair, "select outboxd.map('tale', 'public.story')")
        await still(parts)
        on_target(pair, "select outboxd.map('story')")
        parts.relay.ask_again()
        for _ in range(3):
            parts.relay.verifier.ring()
            await rest(parts)
        record = parts.relay.verifier.records["public.story"]
        assert (record.state, record.different) == ("done", 1500)
