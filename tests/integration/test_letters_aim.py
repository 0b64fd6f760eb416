"""Dead letters of a row that has another name by now, or travels as something else: none is sent over what is newer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
import pytest

from daemon import dead_letters
from daemon.progress import Timing
from tests.integration.test_aim import on_source, on_target
from tests.integration.test_dead_letters import held, letters
from tests.integration.test_out_emitted import there
from tests.pairs import Pair, Parts

EAGER = Timing(poll=0.05, recheck=0.0, retry_first=0.01, retry_cap=0.05, letters=0.0)
STORY = "create table story (id int primary key, n int, note text)"
KEYED = "create table story (id int primary key, email text not null unique, n int)"
REFUSES = "alter table story add constraint lucky check (n <> 13)"
TAKES = "alter table story drop constraint lucky"
BY_EMAIL = "select outboxd.map('story', key_columns => array['email'])"


async def rest(parts: Parts) -> None:
    """The daemon has looked at everything, several times."""
    for _ in range(6):
        parts.relay.copier.ring()
        parts.relay.copier.recheck()
        await parts.relay.drain()


async def retried(pair: Pair, parts: Parts) -> None:
    """As `outboxd dead-letters retry --all`, more than once."""
    on_source(pair, "select outbox.notice()")
    await rest(parts)
    for _ in range(3):
        on_source(pair, "update outbox.held set wanted = 'retry'")
        await rest(parts)


def watched(pair: Pair, ddl: str, copied: bool, *rows: str) -> None:
    """`copied`: it has rows before it is watched."""
    if copied:
        pair.create(ddl)
        on_source(pair, *rows, "select outbox.watch('story')")
        on_target(pair, "select outboxd.map('story')")
    else:
        pair.create(ddl, "story")
        pair.write(*rows)


def none_is_left(pair: Pair) -> None:
    assert held(pair) == letters(pair) == []


@pytest.mark.parametrize("copied", [False, True], ids=["", "copied"])
@pytest.mark.parametrize("change", ["update story set n = 7 where id = 1", "delete from story where id = 1"])
async def test_under_the_key_that_was(pair: Pair, change: str, copied: bool) -> None:
    """Newer changes of the row go by another key. The letter is dropped once the row has been copied by that one."""
    watched(pair, KEYED, copied, "insert into story values (1, 'a', 1), (2, 'b', 1)")
    async with pair.relay(timing=EAGER) as parts:
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        on_source(pair, "select outbox.watch('story', key_columns => array['email'])")
        on_target(pair, BY_EMAIL)
        pair.write(change)
        await retried(pair, parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
    none_is_left(pair)
    pair.assert_equal("story")


async def test_the_index_of_the_key_is_another_one_since_the_copy(pair: Pair) -> None:
    """A copy that is done stands in whatever order ranges are read by then: letters of before end with it, too."""
    pair.create("create table story (a int not null, b int not null, unique (a, b))")
    pair.write("create unique index one on story (b, a)", "insert into story values (2, 3), (1, 4)")
    on_source(pair, "select outbox.watch('story', key_columns => array['a', 'b'])")
    on_target(pair, "select outboxd.map('story', key_columns => array['a', 'b'])")
    async with pair.relay(timing=EAGER) as parts:
        await rest(parts)
        copier = parts.relay.copier
        copied, before = copier.copies["public.story"], copier.wishes["public.story"].aim
        pair.write("alter table story drop constraint story_a_b_key")
        await rest(parts)
        assert copied.state == "done"
        assert copier.copies["public.story"] == copied
        assert before != (aim := copier.wishes["public.story"].aim), "the order is the same"
        assert copier.settled("public.story", aim)


async def test_there_and_back_again(pair: Pair) -> None:
    """Both keys have letters, and in the end all is called as it was: the row as it is decides."""
    watched(pair, KEYED, False, "insert into story values (1, 'a', 1), (2, 'b', 1)")
    async with pair.relay(timing=EAGER) as parts:
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13")
        await rest(parts)
        on_source(pair, "select outbox.watch('story', key_columns => array['email'])")
        on_target(pair, BY_EMAIL)
        pair.write("update story set n = 7 where id = 1")
        on_source(pair, "select outbox.watch('story', key_columns => '{}')")
        on_target(pair, "select outboxd.map('story')")
        on_target(pair, TAKES)
        await retried(pair, parts)
    none_is_left(pair)
    pair.assert_equal("story")


async def test_of_the_name_that_was(pair: Pair) -> None:
    """A table is renamed and goes on into the same mirror."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        on_source(
            pair, "alter table story rename to tale", "select outbox.unwatch('public.story')",
            "select outbox.watch('tale', target => 'public.story')",
        )  # fmt: skip
        on_target(pair, "select outboxd.map('story', 'public.tale')")
        pair.write("update tale set n = 5 where id = 1")
        await retried(pair, parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
    none_is_left(pair)
    assert there(pair, "select id, n from story order by 1") == [(1, 5), (2, 2)]


@pytest.mark.parametrize(
    "change", ["delete from story where nr = 1", "update story set n = 5 where nr = 1", "select 1"]
)
async def test_whose_key_was_renamed(pair: Pair, change: str) -> None:
    """On both sides, as the README has it."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 1)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        pair.write("alter table story rename column id to nr")
        on_target(pair, "alter table story rename column id to nr", "select outboxd.map('story')")
        on_source(pair, "select outbox.watch('story')")
        pair.write(change)
        await retried(pair, parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
    none_is_left(pair)
    pair.assert_equal("story")


@pytest.mark.parametrize("change", [(), ("update story set n = 5 where id = 1",), ("delete from story where id = 1",)])
@pytest.mark.parametrize("again", [True, False], ids=["watched again", "not"])
async def test_with_a_column_that_was_dropped_on_both_sides(pair: Pair, again: bool, change: Sequence[str]) -> None:
    """The letter names it. A newer row of the key is whole, and decides; without one the row is recorded anew."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1, 'a')")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        pair.write("alter table story drop column note")
        on_target(pair, "alter table story drop column note", TAKES)
        if again:
            on_source(pair, "select outbox.watch('story')")
        pair.write(*change)
        await retried(pair, parts)
    none_is_left(pair)
    pair.assert_equal("story")


async def test_a_row_in_parts_waits_with_the_row_that_it_belongs_to(pair: Pair) -> None:
    """Also of a captured table rows may be emitted, some of their columns alone: those are not whole, and decide nothing."""
    watched(pair, STORY, False, "insert into story values (1, 1, 'a')")
    async with pair.relay(timing=EAGER) as parts:
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("insert into story values (2, 13, 'b')")
        pair.write("select outbox.emit('public.story', 'upsert', '{\"id\": 2, \"n\": 5}')")
        await rest(parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
    assert there(pair, "select * from story order by 1") == [(1, 1, "a"), (2, 5, "b")]


@pytest.mark.parametrize("end", ["select 1", "delete from story where id = 2", "update story set n = 1 where id = 2"])
async def test_a_value_in_the_clear_never_comes_after_its_mask(pair: Pair, end: str) -> None:
    """The letter is of before, and has it under the old name."""
    pair.create(
        "create table story (id int primary key, n int, email text)",
        on_target="create table story (id int primary key, n int, email text, hidden text)",
    )
    on_source(pair, "select outbox.watch('story')")
    on_target(pair, REFUSES, "select outboxd.map('story')")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (2, 13, 'raw')")
        await rest(parts)
        on_source(
            pair,
            """select outbox.watch('story', rename => '{"email": "hidden"}', mask => '{"email": "hash"}')""",
        )
        pair.write(end)
        await retried(pair, parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
    none_is_left(pair)
    gone = end.startswith("delete")
    assert there(pair, "select id, email, hidden is null from story") == ([] if gone else [(2, None, False)])


EMIT = 'select outbox.emit(\'public.story\', \'{op}\', \'{{"id": {id}, "email": "{email}", "n": {n}}}\')'


def emitted(n: int, op: str = "upsert", id_: int = 1, email: str = "a") -> str:
    return EMIT.format(op=op, id=id_, email=email, n=n)


async def test_of_an_emitted_key_that_was(pair: Pair) -> None:
    """Which row of the one key is which of the other nobody knows: what comes by the new one waits until the others have gone."""
    on_source(pair, "select outbox.map('public.story', array['id'])")
    on_target(pair, KEYED, REFUSES, "select outboxd.map('story')")
    async with pair.relay(timing=EAGER) as parts:
        pair.write(emitted(13), emitted(1, id_=2, email="b"))
        await rest(parts)
        on_source(pair, "select outbox.map('public.story', array['email'])")
        on_target(pair, BY_EMAIL)
        pair.write(emitted(5), emitted(6, id_=2, email="b"))
        await rest(parts)
        assert [state for _, _, state, *_ in letters(pair)] == ["23514", "OB011", "OB011"]
        on_target(pair, TAKES)
        await retried(pair, parts)
        pair.write(emitted(9))
        await rest(parts)
    none_is_left(pair)
    assert there(pair, "select id, n from story order by 1") == [(1, 9), (2, 6)]


@pytest.mark.parametrize(("before", "after"), [("int", "text"), ("text", "int"), ("text", "numeric(9,1)")])
async def test_of_an_emitted_key_of_another_type(pair: Pair, before: str, after: str) -> None:
    """What is emitted from now on is spelled otherwise than what is held: it is the same row all the same."""
    on_source(pair, "select outbox.map('public.story', array['id'])")
    on_target(
        pair, f"create table story (id {before} primary key, email text, n int)", REFUSES, "select outboxd.map('story')"
    )
    async with pair.relay(timing=EAGER) as parts:
        pair.write(emitted(13), emitted(13, id_=2))
        await rest(parts)
    on_target(pair, f"alter table story alter column id type {after} using id::{after}")
    async with pair.relay(timing=EAGER) as parts:
        pair.write(emitted(5), emitted(5, op="delete", id_=2))
        await rest(parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
    none_is_left(pair)
    assert there(pair, "select id::int, n from story") == [(1, 5)]


@contextmanager
def forgotten(pair: Pair) -> Iterator[None]:
    """What is done in here the target forgets: a backup of it is put back, at its address."""
    [(name,)] = there(pair, "select current_database()")
    admin = psycopg.conninfo.make_conninfo(pair.target.superuser_dsn, dbname="postgres")
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute(f'create database "{name}_backup" template "{name}" owner supabase_owner'.encode())
        yield
        conn.execute(f'alter database "{name}" rename to "{name}_lost"'.encode())
        conn.execute(f'alter database "{name}_backup" rename to "{name}"'.encode())
        conn.execute(f'drop database "{name}_lost" with (force)'.encode())


@pytest.mark.parametrize("change", ["update story set n = 13 where id = 1", "delete from story where id = 1"])
@pytest.mark.parametrize("later", [(), ("update story set note = 'later'",), ("delete from story",)])
async def test_a_target_restored_to_when_a_key_was_held(pair: Pair, change: str, later: Sequence[str]) -> None:
    """The key is held there again, and its letters were delivered since."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        on_target(pair, REFUSES, "create table likes (id int references story)", "insert into likes values (1)")
        pair.write(change)
        await rest(parts)
        assert held(pair) == [("public.story", '{"id":1}')]
        on_target(pair, TAKES, "drop table likes")
    with forgotten(pair):
        async with pair.relay(timing=EAGER) as parts:
            await retried(pair, parts)
            pair.assert_equal("story")
    pair.write(*later)
    async with pair.relay(timing=EAGER) as parts:
        await rest(parts)
    none_is_left(pair)
    pair.assert_equal("story")


async def test_a_target_restored_to_when_an_emitted_key_was_held(pair: Pair) -> None:
    """The outbox still has its changes."""
    on_source(pair, "select outbox.map('public.story', array['id'])")
    on_target(pair, KEYED, REFUSES, "select outboxd.map('story')")
    async with pair.relay(timing=EAGER) as parts:
        pair.write(emitted(1), emitted(13), emitted(13, id_=2, email="b"))
        await rest(parts)
        pair.write(emitted(0, op="delete", id_=2))
        await rest(parts)
        assert len(held(pair)) == 2
        on_target(pair, TAKES)
    with forgotten(pair):
        async with pair.relay(timing=EAGER) as parts:
            await retried(pair, parts)
    async with pair.relay(timing=EAGER) as parts:
        await rest(parts)
    none_is_left(pair)
    assert there(pair, "select id, n from story") == [(1, 13)]


async def test_a_target_restored_to_when_an_emitted_table_was_out(pair: Pair) -> None:
    """Its letters were delivered since; the backup lacks their rows, and its cursor has passed them."""
    on_source(pair, "select outbox.map('public.story', array['id'])")
    async with pair.relay(timing=EAGER) as parts:
        pair.write(emitted(1), emitted(2))
        await rest(parts)
        assert parts.relay.copier.out == {"public.story"}
        on_target(pair, KEYED)
    with forgotten(pair):
        on_target(pair, "select outboxd.map('story')")
        async with pair.relay(timing=EAGER) as parts:
            await rest(parts)
            assert there(pair, "select id, n from story") == [(1, 2)]
    on_target(pair, "select outboxd.map('story')")
    async with pair.relay(timing=EAGER) as parts:
        pair.write(emitted(3, id_=2, email="b"))
        await rest(parts)
        assert parts.relay.copier.out == set()
    none_is_left(pair)
    assert there(pair, "select id, n from story order by 1") == [(1, 2), (2, 3)]


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


async def test_a_lost_letter_is_discarded_or_emitted_again(pair: Pair) -> None:
    """Nothing has the changes of two keys any more: one is emitted again, the other is given up."""
    on_source(pair, "select outbox.map('public.story', array['id'])")
    on_target(pair, KEYED, REFUSES, "select outboxd.map('story')")
    async with pair.relay(timing=EAGER) as parts:
        pair.write(emitted(13), emitted(13, id_=2, email="b"))
        for _ in range(3):
            pair.write(emitted(1, id_=3, email="c"))
            await rest(parts)
            assert parts.relay.stated is not None
            await parts.source.prune(parts.relay.stated.floor_id, 0.0)
    on_source(pair, "delete from outbox.held")
    async with pair.relay(timing=EAGER) as parts:
        await retried(pair, parts)
        assert [(op, state, wanted) for _, op, state, _, wanted in letters(pair)] == [("lost", "OB013", None)] * 2
        pair.write(emitted(5))
        await rest(parts)
        assert there(pair, "select id, n from story order by 1") == [(1, 5), (3, 1)]
        assert held(pair) == [("public.story", '{"id":2}')]
        dead_letters.ask(pair.source.dsn, "discard", None, patience=0.0)
        await rest(parts)
    none_is_left(pair)


async def test_a_table_that_is_out_is_renamed_and_its_old_name_stays_watched(pair: Pair) -> None:
    """What was skipped of the old name comes with the new one's copy."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        on_target(pair, "alter table story rename column n to m")
        pair.write("update story set n = 3 where id = 1")
        await rest(parts)
        assert parts.relay.copier.out
        on_source(pair, "alter table story rename to tale", "select outbox.watch('tale')")
        on_target(pair, "select outboxd.map('story', 'public.tale')")
        pair.write("update tale set n = 5 where id = 1")
        await rest(parts)
        on_target(pair, "alter table story rename column m to n")
        await retried(pair, parts)
        assert not parts.relay.copier.out
    assert there(pair, "select id, n from story order by 1") == [(1, 5), (2, 2)]
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
