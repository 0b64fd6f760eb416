"""Dead letters of a table whose key is something else by now, under the name that it had: of another type, or another column."""

from dataclasses import replace

import psycopg
import pytest

from tests.integration.test_aim import on_source, on_target
from tests.integration.test_dead_letters import held, letters
from tests.integration.test_letters_aim import EAGER, REFUSES, STORY, TAKES, none_is_left, rest, retried
from tests.integration.test_out_emitted import there
from tests.pairs import Pair, Parts


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
async def test_a_letter_of_a_key_that_is_wider_by_now(pair: Pair, again: bool) -> None:
    """As an int that has become a bigint: its texts are the same, and newer changes wait behind the letter."""
    wider = "alter table story alter column id type bigint"
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2), (3, 3)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id < 3")
        await rest(parts)
        pair.write(wider)
        on_target(pair, wider)
        if again:
            on_source(pair, "select outbox.watch('story')")
        pair.write("delete from story where id = 1", "insert into story values (5000000000, 5)")
        await retried(pair, parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
        await rest(parts)
    pair.assert_equal("story")
    none_is_left(pair)


async def test_a_letter_is_not_sent_before_it_is_known_of_what_it_is(pair: Pair) -> None:
    """The key has been altered, and a writer is still under way: since when changes are of the new one cannot be said yet."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        pair.write("alter table story alter column id type text")
        on_target(pair, "alter table story alter column id type text")
        with psycopg.connect(pair.source.dsn) as writer:
            writer.execute("update story set n = 13 where id = '2'")
            pair.write("update story set n = 7 where id = '1'")
            on_target(pair, TAKES)
            await retried(pair, parts)
            assert there(pair, "select n from story where id = '1'") == [(7,)]
            assert letters(pair)
            writer.commit()
        await retried(pair, parts)
        await rest(parts)
    pair.assert_equal("story")
    none_is_left(pair)


async def test_noticing_that_the_key_is_another_one_spends_no_number(pair: Pair) -> None:
    pair.create(STORY, "story")
    with pair.source.connect() as source:
        newest = "select last_value, is_called from outbox.change_id_seq"
        before = source.execute(newest).fetchall()
        source.execute("select outbox.notice()")
        source.execute("alter table story alter column id type bigint")
        assert source.execute("select outbox.notice()").fetchall()
        assert source.execute("select outbox.notice()").fetchall() == []
        assert source.execute(newest).fetchall() == before


@pytest.mark.parametrize("end", ["unwatch", "emit-only"])
async def test_a_letter_of_a_key_of_another_type_whose_table_is_given_up(pair: Pair, end: str) -> None:
    """Nobody has noticed the new type before."""
    ends = {"unwatch": "select outbox.unwatch('story')", "emit-only": "select outbox.watch('story', capture => false)"}
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        on_target(pair, "alter table story alter column id type text")
        pair.write("alter table story alter column id type text", "update story set n = 7 where id = '1'")
        await still(parts)
        on_source(pair, ends[end])
        on_target(pair, TAKES)
        await retried(pair, parts)
    assert there(pair, "select id, n from story order by 1") == [("1", 7), ("2", 2)]
    assert [state for _, _, state, *_ in letters(pair)] == ["OB013"]


async def test_the_letter_of_a_delete_whose_key_is_another_column_by_now(pair: Pair) -> None:
    """A copy made it, for a row that the source did not have; by now there is a row of that key."""
    swap = (
        "alter table story drop constraint story_pkey",
        "alter table story rename column id to tmp",
        "alter table story rename column other to id",
        "alter table story rename column tmp to other",
        "alter table story add primary key (id)",
    )
    pair.create("create table story (id int primary key, other int not null unique, n int)", "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (2, 9, 2)")
        await rest(parts)
        on_target(
            pair, "insert into story values (9, 109, 0)", "create table likes (id int references story)",
            "insert into likes values (9)",
        )  # fmt: skip
        on_source(pair, "select outbox.ask_copy('story', true)")
        await rest(parts)
        assert held(pair) == [("public.story", '{"id":9}')]
        on_target(pair, "drop table likes")
        pair.write(*swap)
        on_target(pair, *swap, "select outboxd.map('story')")
        await still(parts)
        pair.write("update story set n = 7 where id = 9")
        await still(parts)
        assert there(pair, "select count(*) from story where id = 9") == [(1,)]
        await retried(pair, parts)
    source, target = pair.rows("select id, other, n from story order by 1")
    assert target == source
    none_is_left(pair)


@pytest.mark.parametrize("again", [True, False], ids=["watched again", "not"])
async def test_a_letter_of_a_key_whose_label_was_renamed(pair: Pair, again: bool) -> None:
    """Of an enum: its rows have another key without having been written. The target has texts."""
    pair.create(
        "create type kind as enum ('old', 'other'); create table story (id kind primary key, n int)",
        on_target="create table story (id text primary key, n int)",
    )
    on_source(pair, "select outbox.watch('story')")
    on_target(pair, "select outboxd.map('story')")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values ('old', 1), ('other', 1)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 'old'")
        await rest(parts)
        on_source(pair, "alter type kind rename value 'old' to 'new'")
        if again:
            on_source(pair, "select outbox.watch('story')")
        pair.write("update story set n = 7 where id = 'new'")
        await retried(pair, parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
    assert there(pair, "select id, n from story order by 1") == [("new", 7), ("other", 1)]
    none_is_left(pair)


AND_BACK = {
    "another type": (
        "create table story (id int primary key, n int)",
        "alter table story alter column id type text",
        "alter table story alter column id type int using id::int",
    ),
    "another order": (
        "create table story (id int, b int default 0, n int, primary key (id, b))",
        "alter table story drop constraint story_pkey, add constraint story_pkey primary key (b, id)",
        "alter table story drop constraint story_pkey, add constraint story_pkey primary key (id, b)",
    ),
    "another type of a chosen key": (
        "create table story (id int not null unique, n int)",
        "alter table story alter column id type text",
        "alter table story alter column id type int using id::int",
    ),
}
LATER = ["delete from story where id::int = 1", "update story set n = 4 where id::int = 1"]


def keyed(pair: Pair, way: str) -> tuple[str, str]:
    """A table whose key becomes another one, and is what it was again: how."""
    ddl, to, back = AND_BACK[way]
    pair.create(ddl)
    chosen = ", key_columns => array['id']" if "chosen" in way else ""
    on_source(pair, f"select outbox.watch('story'{chosen})")
    on_target(pair, f"select outboxd.map('story'{chosen})")
    return to, back


@pytest.mark.parametrize("change", LATER)
@pytest.mark.parametrize("way", list(AND_BACK))
async def test_a_key_that_was_another_one_for_less_than_a_look(pair: Pair, way: str, change: str) -> None:
    """The change travels by a key that is spelled otherwise, and is not behind the letter; afterwards all is called as it was."""
    to, back = keyed(pair, way)
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story (id, n) values (1, 1), (2, 2)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        pair.write(to)
        pair.write(change)
        pair.write(back)
        await rest(parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
        await retried(pair, parts)
    pair.assert_equal("story")
    none_is_left(pair)


async def test_a_letter_that_somebody_wants_sent_before_the_next_look(pair: Pair) -> None:
    """It waits for that: what it is of is not known since the key was another one."""
    to, back = keyed(pair, "another type")
    async with pair.relay(timing=replace(EAGER, recheck=3600.0)) as parts:
        pair.write("insert into story (id, n) values (1, 1), (2, 2)")
        await still(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await still(parts)
        pair.write(to)
        pair.write(LATER[0])
        pair.write(back)
        on_target(pair, TAKES)
        on_source(pair, "update outbox.held set wanted = 'retry'")
        for _ in range(3):
            parts.relay.copier.ring()
            await still(parts)
        assert there(pair, "select id from story") == [(2,)]
        await retried(pair, parts)
    pair.assert_equal("story")
    none_is_left(pair)


@pytest.mark.parametrize("way", list(AND_BACK))
async def test_a_row_of_both_spellings_of_its_key_in_one_batch(pair: Pair, way: str) -> None:
    """Without any letter: it was deleted by the other one, and is there again. Upserts go first."""
    to, back = keyed(pair, way)
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story (id, n) values (1, 1), (2, 2)")
        await rest(parts)
        pair.write(to)
        pair.write(LATER[0])
        pair.write(back)
        pair.write("insert into story (id, n) values (1, 9)")
        await rest(parts)
        await rest(parts)
    pair.assert_equal("story")


async def test_a_label_of_the_key_that_was_another_one_for_less_than_a_look(pair: Pair) -> None:
    ddl = "create table story (id {} primary key, n int)"
    pair.create("create type kind as enum ('old', 'other');" + ddl.format("kind"), on_target=ddl.format("text"))
    on_source(pair, "select outbox.watch('story')")
    on_target(pair, "select outboxd.map('story')")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values ('old', 1), ('other', 1)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 'old'")
        await rest(parts)
        on_source(pair, "alter type kind rename value 'old' to 'new'")
        pair.write("delete from story where id = 'new'")
        on_source(pair, "alter type kind rename value 'new' to 'old'")
        on_target(pair, TAKES)
        await retried(pair, parts)
        await retried(pair, parts)
    assert there(pair, "select id, n from story") == [("other", 1)]
    none_is_left(pair)


@pytest.mark.parametrize("end", ["unwatch", "emit-only"])
async def test_a_key_that_was_another_one_and_its_table_is_given_up_before_the_next_look(pair: Pair, end: str) -> None:
    ends = {"unwatch": "select outbox.unwatch('story')", "emit-only": "select outbox.watch('story', capture => false)"}
    to, back = keyed(pair, "another type")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        pair.write(to)
        pair.write("update story set n = 7 where id = '1'")
        pair.write(back)
        on_source(pair, ends[end])
        await still(parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
    assert there(pair, "select id, n from story order by 1") == [(1, 7), (2, 2)]
    assert [state for _, _, state, *_ in letters(pair)] == ["OB013"]


UPKEEP = [
    "vacuum full story", "cluster story using story_pkey", "reindex table story", "reindex table concurrently story", "analyze story",
    "vacuum freeze story", "alter table story add extra int", "create index on story (n)", "alter table story set (fillfactor = 90)",
]  # fmt: skip


async def test_upkeep_of_the_table_is_no_other_key(pair: Pair) -> None:
    """Neither its letters nor its rows are of something else."""
    pair.create(STORY, "story")
    pair.write("insert into story values (1, 1)")
    with pair.source.connect() as source:
        identity = "select sure, since_id from outbox.identities(array['public.story'])"
        source.execute("select outbox.notice()")
        [before] = source.execute(identity).fetchall()
        assert before[0]
        for statement in UPKEEP:
            source.execute(statement)
            assert source.execute(identity).fetchall() == [before], statement
            assert source.execute("select outbox.notice()").fetchall() == [], statement
            assert source.execute(identity).fetchall() == [before], statement
