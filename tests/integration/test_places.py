"""A table's rows go elsewhere on the target for a moment: what arrived there is not here, and what was there is not compared here."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from daemon import install
from daemon.batch import Limits
from daemon.selection import Selection
from daemon.target import Answer
from tests.integration.test_aim import half_copied, on_source, on_target
from tests.integration.test_copy import filled
from tests.integration.test_dead_letters import AT_ONCE, held
from tests.integration.test_letters_aim import EAGER, REFUSES, STORY, TAKES, none_is_left, rest, retried
from tests.integration.test_out_emitted import there
from tests.integration.test_verify import ask
from tests.pairs import Pair

SMALL = Limits(changes=100)
WAYS = {
    "mapped": (["select outboxd.map('tale', 'public.story')"], ["select outboxd.map('story')"]),
    "renamed": (
        ["alter table story rename to aside", "alter table tale rename to story"],
        ["alter table story rename to tale", "alter table aside rename to story"],
    ),
}
CHANGES = {
    "all": ["update story set n = 7 where id = 1", "delete from story where id = 2", "insert into story values (4, 4)"],
    "a delete": ["delete from story where id = 2"],
    "a truncate": ["truncate story"],
}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("changes", list(CHANGES))
async def test_a_place_there_and_back_again(pair: Pair, way: str, changes: str) -> None:
    """For a moment it went elsewhere: what arrived there meanwhile is nowhere else."""
    to, back = WAYS[way]
    pair.create(STORY, "story")
    on_target(pair, STORY.replace("story", "tale"))
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2), (3, 3)")
        await rest(parts)
        on_target(pair, *to)
        pair.write(*CHANGES[changes])
        await parts.relay.drain()
        on_target(pair, *back)
        parts.relay.ask_again()
        await rest(parts)
        await rest(parts)
    async with pair.relay(timing=EAGER) as parts:
        await rest(parts)
    pair.assert_equal("story")


async def test_a_letter_that_was_delivered_elsewhere(pair: Pair) -> None:
    pair.create(STORY, "story")
    on_target(pair, STORY.replace("story", "tale"))
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        on_target(pair, *WAYS["mapped"][0])
        await retried(pair, parts)
        on_target(pair, TAKES, *WAYS["mapped"][1])
        parts.relay.ask_again()
        await rest(parts)
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
        on_target(pair, *WAYS["mapped"][0])
        await parts.relay.drain()
        on_target(pair, *WAYS["mapped"][1])
        parts.relay.ask_again()
        for _ in range(3):
            parts.relay.verifier.ring()
            await rest(parts)
        record = parts.relay.verifier.records["public.story"]
        differ = there(pair, "select count(*)::int from story where n = -1")
        assert (record.state, record.rows, [(record.different,)]) == ("done", 2500, differ)


def elsewhere(pair: Pair, asked: Callable[..., Awaitable[Answer]]) -> Callable[..., Awaitable[Answer]]:
    """This question, the first time put to the target while the table is another one."""
    left = [*WAYS["mapped"]]

    async def answered(*given: Any) -> Answer:
        if not left:
            return await asked(*given)
        to, back = left
        left.clear()
        on_target(pair, *to)
        try:
            return await asked(*given)
        finally:
            on_target(pair, *back)

    return answered


async def test_what_is_too_much_is_looked_for_elsewhere(pair: Pair) -> None:
    """An empty table has nothing too much."""
    filled(pair)
    on_target(pair, "create table tale (id int primary key, n int)", "insert into story values (9000, 1)")
    on_source(pair, "select outbox.ask_copy('story', prune => true)")
    async with pair.relay(limits=SMALL, timing=AT_ONCE) as parts:
        parts.target.unwritten = elsewhere(pair, parts.target.unwritten)  # type: ignore[method-assign,assignment]
        await half_copied(parts)
        await rest(parts)
        assert parts.relay.copier.copies["public.story"].state == "done"
    pair.assert_equal("story")


async def test_keys_beyond_those_compared_are_looked_for_elsewhere(pair: Pair) -> None:
    filled(pair)
    on_target(pair, "create table tale (id int primary key, n int)")
    async with pair.relay(limits=SMALL, timing=AT_ONCE) as parts:
        await rest(parts)
        on_target(pair, "insert into story values (9000, 1)")
        parts.target.keys = elsewhere(pair, parts.target.keys)  # type: ignore[method-assign,assignment]
        ask(pair)
        parts.relay.verifier.ring()
        for _ in range(3):
            await rest(parts)
        record = parts.relay.verifier.records["public.story"]
        assert (record.state, record.rows, record.extra) == ("done", 2500, 1)


@pytest.mark.parametrize("way", ["made anew", "watched anew", "deleted meanwhile"])
async def test_a_table_whose_first_rows_came_within_the_second_in_which_it_was_watched(pair: Pair, way: str) -> None:
    """As a migration makes a table, watches it and fills it: where its rows went is on record all the same."""
    pair.create("create table other (id int primary key)", "other")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into other values (1)")
        await rest(parts)
        pair.create(STORY, "story")
        pair.write("insert into story values (1, 1), (2, 2)")
        await parts.relay.drain()
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


@pytest.mark.parametrize("left", [True, False], ids=["some are left", "none is left"])
async def test_what_was_recorded_before_it_was_watched_anew_arrives_first(pair: Pair, left: bool) -> None:
    """Rows went meanwhile that nobody saw, and the target has no record of the table yet."""
    pair.create("create table other (id int primary key)", "other")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into other values (1)")
        await rest(parts)
        pair.create(STORY, "story")
        pair.write("insert into story values (1, 1), (2, 2)")
        on_source(pair, "select outbox.unwatch('story')", "truncate story", "select outbox.watch('story')")
        if left:
            pair.write("insert into story values (3, 3)")
        await parts.relay.drain()
        await rest(parts)
        await rest(parts)
    pair.assert_equal("story")


def called(pair: Pair, was: str, now: str, by: str) -> None:
    """A table has another name, and goes on into the place `story`."""
    if by == "SQL":
        on_source(
            pair,
            f"select outbox.unwatch('public.{was}')",
            f"select outbox.watch('{now}', target => 'public.story')",
        )
        on_target(pair, f"select outboxd.map('story', 'public.{now}')")
    elif by == "the map alone":
        on_source(pair, f"select outbox.unwatch('public.{was}')", f"select outbox.watch('{now}')")
        on_target(pair, f"select outboxd.map('story', 'public.{now}')")
    else:
        place = lambda was, called: install.moved(pair.target.dsn, was, called)  # noqa: E731
        selected = Selection(copy=False)
        for _, found in install.watch(pair.source.dsn, [f"public.{now}"], lambda *_: selected, print, place):
            list(install.map_on_target(pair.target.dsn, [found], print))


WAYS_OF_NAMING = ["SQL", "the map alone", "the command, without a copy"]


@pytest.mark.parametrize("gone", ["delete from {}", "truncate {}"])
@pytest.mark.parametrize("now", ["tale", "another"])  # before and behind it
@pytest.mark.parametrize("by", WAYS_OF_NAMING)
async def test_a_table_that_is_renamed_while_it_is_empty(pair: Pair, by: str, now: str, gone: str) -> None:
    """What was recorded by the old name arrives first, though both come in one batch."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        pair.write(gone.format("story"), f"alter table story rename to {now}")
        called(pair, "story", now, by)
        pair.write(f"insert into {now} values (1, 5)")
        await parts.relay.step()
        assert there(pair, "select id, n from story order by 1") == [(1, 5)]
        await rest(parts)
    assert there(pair, "select id, n from story order by 1") == [(1, 5)]
    none_is_left(pair)


@pytest.mark.parametrize("by", WAYS_OF_NAMING)
async def test_a_table_that_is_renamed_twice_while_rows_of_it_are_written(pair: Pair, by: str) -> None:
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2), (3, 3), (4, 4)")
        await rest(parts)
        pair.write("delete from story where id < 3", "update story set n = 7", "alter table story rename to tale")
        called(pair, "story", "tale", by)
        pair.write("insert into tale values (1, 5)", "update tale set n = 8 where id = 3", "alter table tale rename to another")  # fmt: skip
        called(pair, "tale", "another", by)
        pair.write("insert into another values (2, 6)", "delete from another where id = 1", "update another set n = 9 where id = 4")  # fmt: skip
        await rest(parts)
        await rest(parts)
    with pair.source.connect() as source:
        rows = source.execute("select id, n from another order by 1").fetchall()
    assert there(pair, "select id, n from story order by 1") == rows == [(2, 6), (3, 8), (4, 9)]
    none_is_left(pair)


@pytest.mark.parametrize("by", WAYS_OF_NAMING)
async def test_a_table_that_is_renamed_and_whose_key_is_spelled_otherwise(pair: Pair, by: str) -> None:
    """Which row is which is not seen by the text: a copy follows."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        pair.write(
            "delete from story", "alter table story rename to tale", "alter table tale alter column id type text"
        )
        called(pair, "story", "tale", by)
        pair.write("insert into tale values ('1', 5)")
        await rest(parts)
        await rest(parts)
    assert there(pair, "select id, n from story order by 1") == [(1, 5)]


@pytest.mark.parametrize("by", WAYS_OF_NAMING)
async def test_a_letter_of_the_name_that_a_table_had_while_it_was_empty(pair: Pair, by: str) -> None:
    """It is of a row that is another one by now, or of none."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13")
        await rest(parts)
        assert len(held(pair)) == 2
        pair.write("delete from story", "alter table story rename to tale")
        called(pair, "story", "tale", by)
        pair.write("insert into tale values (1, 5)")
        await rest(parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
        await retried(pair, parts)
    assert there(pair, "select id, n from story order by 1") == [(1, 5)]
    none_is_left(pair)


async def test_two_tables_that_swap_their_names(pair: Pair) -> None:
    pair.create(STORY + ";" + STORY.replace("story", "tale"), "story", "tale")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)", "insert into tale values (1, 10), (3, 30)")
        await rest(parts)
        pair.write("delete from story", "delete from tale")
        pair.write(
            "alter table story rename to aside",
            "alter table tale rename to story",
            "alter table aside rename to tale",
        )
        on_source(pair, "select outbox.watch('story')", "select outbox.watch('tale')")
        pair.write("insert into story values (1, 5)", "insert into tale values (3, 6)")
        await rest(parts)
        await rest(parts)
    pair.assert_equal("story", "tale")
    none_is_left(pair)


async def test_rows_that_are_emitted_by_two_names_of_one_place(pair: Pair) -> None:
    """No copy can bring them: the order of their ids decides, whatever they are called."""
    pair.create("select 1", on_target=STORY)
    on_source(pair, "select outbox.map('public.story', array['id'])", "select outbox.map('public.tale', array['id'])")
    on_target(pair, "select outboxd.map('story')", "select outboxd.map('story', 'public.tale')")
    emit = "select outbox.emit('{}', '{}', '{}')".format
    async with pair.relay(timing=EAGER) as parts:
        pair.write(emit("story", "upsert", '{"id": 1, "n": 1}'), emit("story", "upsert", '{"id": 2, "n": 2}'))
        await rest(parts)
        on_target(pair, "update story set note = 'kept'")
        pair.write(
            emit("story", "delete", '{"id": 1}'),
            emit("story", "upsert", '{"id": 2, "n": 7}'),
            emit("tale", "upsert", '{"id": 1, "n": 5}'),
            emit("tale", "upsert", '{"id": 2, "n": 8}'),
            emit("tale", "upsert", '{"id": 3, "n": 3}'),
            emit("story", "upsert", '{"id": 2, "n": 9}'),
            emit("story", "delete", '{"id": 3}'),
        )
        await rest(parts)
    assert there(pair, "select id, n, note from story order by 1") == [(1, 5, None), (2, 9, "kept")]
    none_is_left(pair)


@pytest.mark.parametrize("was", ["emitted", "captured"])
@pytest.mark.parametrize("last", [("upsert", '{"id": 1, "n": 5}'), ("delete", '{"id": 1}')], ids=["written", "deleted"])
async def test_a_letter_of_the_name_that_an_emitted_table_had(pair: Pair, was: str, last: tuple[str, str]) -> None:
    """What is emitted by the new one waits behind it: no copy would make it good."""
    pair.create(STORY if was == "captured" else "select 1", on_target=STORY)
    watched = "select outbox.map('public.story', array['id'])" if was == "emitted" else "select outbox.watch('story')"
    on_source(pair, watched)
    on_target(pair, "select outboxd.map('story')")
    emit = "select outbox.emit('{}', '{}', '{}')".format
    rows = {
        "emitted": [emit("story", "upsert", '{"id": 1, "n": 1}'), emit("story", "upsert", '{"id": 1, "n": 13}')],
        "captured": ["insert into story values (1, 1)", "update story set n = 13"],
    }
    async with pair.relay(timing=EAGER) as parts:
        pair.write(rows[was][0])
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write(rows[was][1])
        await rest(parts)
        on_source(pair, "select outbox.unwatch('story')", "select outbox.map('public.tale', array['id'])")
        on_target(pair, "select outboxd.map('story', 'public.tale')")
        pair.write(emit("tale", *last), emit("tale", "upsert", '{"id": 2, "n": 2}'))
        await retried(pair, parts)
        assert there(pair, "select id, n from story order by 1") == [(1, 1), (2, 2)]
        on_target(pair, TAKES)
        await retried(pair, parts)
        await retried(pair, parts)
    assert there(pair, "select id, n from story order by 1") == [*([(1, 5)] if last[0] == "upsert" else []), (2, 2)]
    none_is_left(pair)
