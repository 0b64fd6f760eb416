"""Sequences nobody named: several events one after the other, and both sides compared when all has come to rest."""

import pytest

from daemon.batch import Limits
from tests.integration.test_aim import on_source, on_target
from tests.integration.test_dead_letters import held, letters
from tests.integration.test_letters_aim import (
    BY_EMAIL,
    EAGER,
    KEYED,
    REFUSES,
    STORY,
    TAKES,
    emitted,
    forgotten,
    none_is_left,
    rest,
    retried,
)
from tests.integration.test_out_emitted import there
from tests.pairs import Pair, Parts

SMALL = Limits(changes=100)


async def still(parts: Parts) -> None:
    """Everything the relay knows without having looked anew, within a second."""
    await parts.relay.drain()


@pytest.mark.parametrize("again", [True, False], ids=["watched again", "not"])
@pytest.mark.parametrize(
    "change", ["update story set n = 7 where id::text = '1'", "delete from story where id::text = '1'"]
)
async def test_a_letter_of_a_key_of_another_type(pair: Pair, change: str, again: bool) -> None:
    """Both sides alter the key's type: newer changes are spelled otherwise, and are not behind the letter."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        pair.write("alter table story alter column id type text")
        on_target(pair, "alter table story alter column id type text")
        if again:
            on_source(pair, "select outbox.watch('story')")
        pair.write(change)
        await retried(pair, parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
        await rest(parts)
    pair.assert_equal("story")
    none_is_left(pair)


@pytest.mark.parametrize("again", [True, False], ids=["watched again", "not"])
async def test_a_letter_of_a_key_whose_columns_changed_places(pair: Pair, again: bool) -> None:
    """The usual dance to another primary key: a column is added, filled, and takes the name of the key."""
    pair.create(STORY, "story")
    dance = (
        "alter table story drop constraint story_pkey, alter column id drop not null",
        "alter table story rename column id to old_id",
        "alter table story rename column new_id to id",
        "alter table story add primary key (id)",
    )
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        on_target(pair, "alter table story add new_id int")
        pair.write("alter table story add new_id int", "update story set new_id = id + 100")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        pair.write(*dance)
        on_target(pair, *dance, "select outboxd.map('story')")
        if again:
            on_source(pair, "select outbox.watch('story')")
        pair.write("update story set n = 7 where id = 101")
        await retried(pair, parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
        await rest(parts)
    source, target = pair.rows("select id, n, old_id from story order by 1")
    assert target == source
    none_is_left(pair)


SWAP = (
    "alter table story rename column a to c",
    "alter table story rename column b to a",
    "alter table story rename column c to b",
)


async def test_a_letter_of_a_key_whose_two_columns_swapped_names(pair: Pair) -> None:
    pair.create("create table story (a int, b int, n int, primary key (a, b))", "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 2, 1), (3, 4, 1)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where a = 1")
        await rest(parts)
        pair.write(*SWAP)
        on_target(pair, *SWAP, "select outboxd.map('story')")
        on_source(pair, "select outbox.watch('story')")
        pair.write("update story set n = 7 where b = 1")
        await retried(pair, parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
        await rest(parts)
    source, target = pair.rows("select a, b, n from story order by 1")
    assert target == source
    none_is_left(pair)


SECRET = "create table story (id int primary key, n int, secret text)"


@pytest.mark.parametrize("rested", [True, False], ids=["the copy is done", "at once"])
@pytest.mark.parametrize("end", ["unwatch", "emit-only"])
@pytest.mark.parametrize("way", ["exclude", "mask"])
async def test_a_raw_value_after_capture_is_given_up(pair: Pair, way: str, end: str, rested: bool) -> None:
    """A letter in the clear; the column is taken off; then the table is captured no longer."""
    pair.create(SECRET, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1, 'raw'), (2, 1, 'raw')")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13, secret = 'rawer' where id = 1")
        await rest(parts)
        assert len(letters(pair)) == 1
        hidden = {"exclude": "exclude => array['secret']", "mask": """mask => '{"secret": "hash"}'"""}[way]
        on_source(pair, f"select outbox.watch('story', {hidden})")
        if rested:
            await rest(parts)
        ends = {"unwatch": "select outbox.unwatch('story')", "emit-only": "select outbox.watch('story', capture => false"
                + (", mask => '{}')" if way == "mask" else ")")}[end]  # fmt: skip
        on_source(pair, ends)
        await rest(parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
    values = there(pair, "select id, secret from story order by 1")
    assert (1, "rawer") not in values


async def test_a_stale_letter_after_there_and_back_and_unwatched(pair: Pair) -> None:
    """By another key a newer change went; by the first again; then it is watched no longer."""
    pair.create(KEYED, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 'a', 1), (2, 'b', 1)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        on_source(pair, "select outbox.watch('story', key_columns => array['email'])")
        on_target(pair, BY_EMAIL)
        pair.write("update story set n = 7 where id = 1")
        await still(parts)
        before = there(pair, "select id, n from story order by 1")
        on_source(pair, "select outbox.watch('story', key_columns => '{}')", "select outbox.unwatch('story')")
        on_target(pair, "select outboxd.map('story')")
        await rest(parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
    assert before == [(1, 7), (2, 1)]
    assert there(pair, "select id, n from story order by 1") == [(1, 7), (2, 1)]


@pytest.mark.parametrize("end", ["unwatch", "emit-only"])
async def test_a_raw_value_of_a_table_that_is_out_after_capture_is_given_up(pair: Pair, end: str) -> None:
    """What was skipped becomes letters: also what was recorded before a column was taken off."""
    pair.create(SECRET, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1, 'raw'), (2, 1, 'raw')")
        await rest(parts)
        on_target(pair, "alter table story rename column n to m")
        pair.write("update story set n = 2, secret = 'rawer' where id = 1")
        await rest(parts)
        assert parts.relay.copier.out
        on_source(pair, "select outbox.watch('story', exclude => array['secret'])")
        await rest(parts)
        on_source(
            pair,
            {
                "unwatch": "select outbox.unwatch('story')",
                "emit-only": "select outbox.watch('story', capture => false)",
            }[end],
        )
        await rest(parts)
        on_target(pair, "alter table story rename column m to n")
        await retried(pair, parts)
    values = there(pair, "select id, secret from story order by 1")
    assert (1, "rawer") not in values


@pytest.mark.parametrize("before", [True, False], ids=["letters of the first key", "of the second alone"])
async def test_an_emitted_table_that_is_out_is_mapped_by_another_key(pair: Pair, before: bool) -> None:
    """What waits is of the key before; its rows have the new one, and it comes back."""
    on_source(pair, "select outbox.map('public.story', array['id'])")
    async with pair.relay(timing=EAGER) as parts:
        if before:
            pair.write(emitted(1), emitted(1, id_=2, email="b"))
        await rest(parts)
        on_source(pair, "select outbox.map('public.story', array['email'])")
        pair.write(emitted(5))
        await rest(parts)
        assert parts.relay.copier.out
        on_target(pair, KEYED, BY_EMAIL)
        await rest(parts)
        await retried(pair, parts)
        pair.write(emitted(6, id_=3, email="c"))
        await rest(parts)
        assert not parts.relay.copier.out, parts.relay.copier.copies
    none_is_left(pair)
    assert there(pair, "select id, n from story order by 1") == [*[(1, 5)], *([(2, 1)] if before else []), (3, 6)]


async def test_the_key_there_and_back_within_a_second_without_watching(pair: Pair) -> None:
    pair.create("create table story (id int not null, t text not null, n int, primary key (id))", "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 'a', 1), (2, 'b', 1)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        wide = "alter table story drop constraint story_pkey, add primary key (id, t)"
        slim = "alter table story drop constraint story_pkey, add primary key (id)"
        on_target(pair, wide, "select outboxd.map('story')")
        pair.write(wide)
        pair.write("update story set n = 7 where id = 1")
        await still(parts)
        assert there(pair, "select n from story where id = 1") == [(7,)]
        on_target(pair, slim, "select outboxd.map('story')")
        pair.write(slim)
        on_target(pair, TAKES)
        await retried(pair, parts)
        await rest(parts)
    pair.assert_equal("story")
    none_is_left(pair)


@pytest.mark.parametrize("again", [True, False], ids=["watched again", "not"])
async def test_a_letter_of_a_key_that_is_another_column_by_now(pair: Pair, again: bool) -> None:
    """Two columns swap their names, and the key goes by the name: the aim is the same text, and its rows are others."""
    swap = (
        "alter table story drop constraint story_pkey",
        "alter table story rename column id to tmp",
        "alter table story rename column other to id",
        "alter table story rename column tmp to other",
        "alter table story add primary key (id)",
    )
    pair.create("create table story (id int primary key, other int not null unique, n int)", "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 101, 1), (2, 102, 2)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        pair.write(*swap)
        on_target(pair, *swap, "select outboxd.map('story')")
        if again:
            on_source(pair, "select outbox.watch('story')")
        pair.write("update story set n = 7 where id = 101")
        await retried(pair, parts)
        on_target(pair, TAKES, "alter table story drop constraint story_other_key")
        await retried(pair, parts)
        await rest(parts)
    source, target = pair.rows("select id, other, n from story order by 1")
    assert target == source
    none_is_left(pair)


async def test_a_letter_of_a_table_that_was_renamed_and_not_unwatched(pair: Pair) -> None:
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        on_source(pair, "alter table story rename to tale", "select outbox.watch('tale')")
        on_target(pair, "select outboxd.map('story', 'public.tale')")
        pair.write("update tale set n = 5 where id = 1")
        await retried(pair, parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
        await rest(parts)
    assert there(pair, "select id, n from story order by 1") == [(1, 5), (2, 2)]


async def test_a_letter_of_a_table_that_was_dropped_and_made_anew(pair: Pair) -> None:
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        pair.write("drop table story", STORY, "insert into story values (3, 3)")
        on_source(pair, "select outbox.watch('story')")
        await rest(parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
    pair.assert_equal("story")
    none_is_left(pair)


async def test_a_captured_table_that_went_and_is_mapped(pair: Pair) -> None:
    """The source drops it, and the application emits its rows from now on; then the mirror is out for a while."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1)")
        await rest(parts)
        on_source(pair, "drop table story", "select outbox.map('public.story', array['id'])")
        say = "select outbox.emit('public.story', 'upsert', '{{\"id\": {}, \"n\": {}}}')"
        pair.write(say.format(2, 2))
        await rest(parts)
        assert there(pair, "select id, n from story order by 1") == [(1, 1), (2, 2)]
        on_target(pair, "alter table story rename column n to m")
        pair.write(say.format(3, 3))
        await rest(parts)
        on_target(pair, "alter table story rename column m to n")
        await rest(parts)
        pair.write(say.format(4, 4))
        await rest(parts)
    assert there(pair, "select id, n from story order by 1") == [(1, 1), (2, 2), (3, 3), (4, 4)]


async def test_a_stranger_that_came_while_the_table_was_out(pair: Pair) -> None:
    on_source(pair, "select outbox.map('public.story', array['id'])")
    on_target(pair, KEYED, REFUSES, "select outboxd.map('story')")
    async with pair.relay(timing=EAGER) as parts:
        pair.write(emitted(13), emitted(1, id_=2, email="b"))
        await rest(parts)
        on_source(pair, "select outbox.map('public.story', array['email'])")
        on_target(pair, BY_EMAIL, "alter table story rename column n to m")
        pair.write(emitted(5), emitted(6, id_=2, email="b"))
        await rest(parts)
        on_target(pair, "alter table story rename column m to n", TAKES)
        await retried(pair, parts)
        await rest(parts)
        assert not parts.relay.copier.out
    assert there(pair, "select id, n from story order by 1") == [(1, 5), (2, 6)]
    none_is_left(pair)


@pytest.mark.parametrize("change", ["update tale set n = 5 where id = 1", "select 1"])
async def test_a_table_that_is_out_is_renamed_and_goes_on_into_the_same_mirror(pair: Pair, change: str) -> None:
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        on_target(pair, "alter table story rename column n to m")
        pair.write("update story set n = 3 where id = 1")
        await rest(parts)
        pair.write("update story set n = 4 where id = 1")
        await rest(parts)
        assert parts.relay.copier.out
        on_source(
            pair, "alter table story rename to tale", "select outbox.unwatch('public.story')",
            "select outbox.watch('tale', target => 'public.story')",
        )  # fmt: skip
        on_target(pair, "select outboxd.map('story', 'public.tale')")
        pair.write(change)
        await rest(parts)
        on_target(pair, "alter table story rename column m to n")
        await retried(pair, parts)
        await rest(parts)
    with pair.source.connect() as conn:
        source = conn.execute("select id, n from tale order by 1").fetchall()
    assert there(pair, "select id, n from story order by 1") == source
    none_is_left(pair)


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


@pytest.mark.parametrize("pruned", [True, False], ids=["the outbox let go of it", "the outbox has it"])
async def test_a_target_restored_to_when_an_emitted_key_was_held_for_long(pair: Pair, pruned: bool) -> None:
    """The letter was delivered since, and nothing has its change any more: somebody must be told."""
    on_source(pair, "select outbox.map('public.story', array['id'])")
    on_target(pair, KEYED, REFUSES, "select outboxd.map('story')")
    async with pair.relay(timing=EAGER) as parts:
        pair.write(emitted(1), emitted(13))
        await rest(parts)
        pair.write(emitted(1, id_=2, email="b"))
        await rest(parts)
        assert len(held(pair)) == 1
        if pruned:
            for _ in range(3):
                pair.write(emitted(1, id_=3, email="c"))
                await rest(parts)
                assert parts.relay.stated is not None
                await parts.source.prune(parts.relay.stated.floor_id, 0.0)
        on_target(pair, TAKES)
    with forgotten(pair):
        async with pair.relay(timing=EAGER) as parts:
            await retried(pair, parts)
            assert there(pair, "select n from story where id = 1") == [(13,)]
    async with pair.relay(timing=EAGER) as parts:
        await rest(parts)
    assert there(pair, "select n from story where id = 1") == [(13,)] or letters(pair) or held(pair)


async def test_a_letter_of_a_key_of_another_type_on_the_source_alone(pair: Pair) -> None:
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        pair.write("alter table story alter column id type text", "delete from story where id = '1'")
        await rest(parts)
        assert there(pair, "select id from story") == [(2,)]
        on_target(pair, TAKES)
        await retried(pair, parts)
        await rest(parts)
    assert there(pair, "select id from story") == [(2,)]


async def test_a_letter_of_a_table_that_moved_to_another_schema(pair: Pair) -> None:
    """On both sides, and is watched there; the old name is left as it is."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        on_source(pair, "create schema app", "alter table story set schema app", "select outbox.watch('app.story')")
        on_target(pair, "select outboxd.map('story', 'app.story')")
        pair.write("delete from app.story where id = 1")
        await retried(pair, parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
        await rest(parts)
    assert there(pair, "select id, n from story order by 1") == [(2, 2)]


async def test_an_emitted_table_that_is_mapped_anew_keeps_its_letters_in_order(pair: Pair) -> None:
    """Unmapped, mapped by another key, and by the first again, each with letters, while it is out."""
    on_source(pair, "select outbox.map('public.story', array['id'])")
    async with pair.relay(timing=EAGER) as parts:
        pair.write(emitted(1))
        await rest(parts)
        on_source(pair, "select outbox.unwatch('public.story')", "select outbox.map('public.story', array['id'])")
        pair.write(emitted(2), emitted(3, id_=2, email="b"), emitted(0, op="delete", id_=2))
        await rest(parts)
        on_target(pair, KEYED, "select outboxd.map('story')")
        await rest(parts)
        assert not parts.relay.copier.out
    assert there(pair, "select id, n from story order by 1") == [(1, 2)]
    none_is_left(pair)


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
