"""Dead letters where they end: deletes that a copy's pruning cannot do, what is dropped and what came later, and very many."""

import resource
from typing import Any

import pytest

from daemon import dead_letters
from tests.integration.test_dead_letters import ASKED, AT_ONCE, PICKY, STORY, asked, held, ids, letters
from tests.integration.test_out_emitted import on_target, turned
from tests.pairs import Pair, Parts


@pytest.fixture
def stories(pair: Pair) -> Pair:
    pair.create(STORY, "story", on_target=PICKY)
    return pair


def copies(pair: Pair, query: str = "select state, extra, pruned from outboxd.copy") -> list[Any]:
    with pair.target.connect() as conn:
        return conn.execute(query.encode()).fetchall()


async def copied(pair: Pair, parts: Parts, prune: bool = True) -> None:
    with pair.source.connect() as conn:
        ((wish,),) = conn.execute("select outbox.ask_copy('story', %s)", (prune,)).fetchall()
    parts.relay.copier.ring()
    await turned(parts, lambda: copies(pair, f"select 1 from outboxd.copy where state = 'done' and wish = {wish}"))


async def test_a_delete_that_the_target_refuses_while_pruning_is_a_letter(stories: Pair) -> None:
    """A client's table refers to the row. What is counted is what was done; later changes of the row wait behind it; once
    the reference is gone the letter goes."""
    stories.write("insert into story select n, 'n', 1 from generate_series(1, 5) n")
    await stories.drain()
    on_target(stories, "create table likes (story_id int references story)", "insert into likes values (2)")
    stories.write("delete from story where id in (2, 3)")
    on_target(stories, "alter table story rename to away")
    async with stories.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()  # out: the deletes are skipped
        on_target(stories, "alter table away rename to story")
        parts.relay.copier.ring()
        await turned(parts, lambda: copies(stories, "select 1 from outboxd.copy where state = 'done'"))
        assert ids(stories) == [1, 2, 4, 5]
        assert copies(stories) == [("done", 2, 1)]
        [(key, op, state, *_)] = letters(stories)
        assert (key, op, state) == ('{"id":2}', "delete", "23503")
        assert held(stories) == [("public.story", '{"id":2}')]
        [letter] = dead_letters.listed(stories.source.dsn)
        outcome = await asked(stories, parts, "retry")
        assert [id_ for id_, _, _ in outcome.refused] == [letter.letter]
        on_target(stories, "delete from likes")
        await asked(stories, parts, "retry")
        assert letters(stories) == held(stories) == []
    stories.assert_equal("story")


async def test_a_row_that_comes_again_waits_behind_the_letter_that_deletes_it(stories: Pair) -> None:
    stories.write("insert into story values (1, 'a', 1), (2, 'b', 1)")
    await stories.drain()
    on_target(stories, "create table likes (story_id int references story)", "insert into story values (3, 'extra', 1)")
    on_target(stories, "insert into likes values (3)")
    async with stories.relay(timing=ASKED) as parts:
        await parts.relay.drain()
        await copied(stories, parts)
        assert held(stories) == [("public.story", '{"id":3}')]
        await copied(stories, parts)  # once more: it stays one letter
        assert [(key, op) for key, op, *_ in letters(stories)] == [('{"id":3}', "delete")]
        stories.write("insert into story values (3, 'mine', 2)")
        await parts.relay.drain()
        assert [op for _, op, *_ in letters(stories)] == ["delete", "upsert"]
        await asked(stories, parts, "retry")
    stories.assert_equal("story")
    assert letters(stories) == []


async def test_a_copy_with_prune_keeps_letters_whose_rows_it_does_not_meet(stories: Pair) -> None:
    """A refused row stays a letter at every moment, and comes once it may."""
    stories.write("insert into story values (1, 'a', 9), (2, 'b', 1)")
    async with stories.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        await copied(stories, parts)
        assert held(stories) == [("public.story", '{"id":1}')]
        assert letters(stories)
        stories.write("delete from story where id = 1")
        await copied(stories, parts)
        assert letters(stories) == held(stories) == []
        assert copies(stories) == [("done", 0, 0)]
    stories.assert_equal("story")


async def test_what_came_after_a_letter_was_to_be_dropped_is_not_dropped(stories: Pair) -> None:
    """It flows, or is refused by itself."""
    stories.write("insert into story values (1, 'a', 9), (2, 'b', 9)")
    async with stories.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        dead_letters.ask(stories.source.dsn, "discard", None, patience=0.0)
        stories.write("update story set stars = 1 where id = 1", "update story set stars = 8 where id = 2")
        parts.relay._letters_seen = float("inf")
        await parts.relay.drain()
        assert len(letters(stories)) == 4
        parts.relay._letters_seen = float("-inf")
        await parts.relay.drain()
        assert ids(stories) == [1]
        assert held(stories) == [("public.story", '{"id":2}')]
        [(key, _, state, _, wanted)] = letters(stories)
        assert (key, state, wanted) == ('{"id":2}', "23514", None)


@pytest.mark.parametrize("analyzed", [False, True], ids=["", "analyzed"])
async def test_of_very_many_letters_of_one_key_only_what_decides_is_read(stories: Pair, analyzed: bool) -> None:
    """Also where Postgres knows that they are of one key: it would rather look through all of them for each."""
    stories.write("insert into story values (1, 'a', 9)")
    await stories.drain()
    with stories.source.connect() as conn:
        conn.execute(
            "insert into outbox.held (id, xid, table_name, op, shape, key, row, created_at, reason)"
            " select id + n, xid, table_name, op, shape, key, replace(row, '\"a\"', '\"' || repeat('x', 2000) || '\"'), created_at, 'behind'"
            "   from outbox.held, generate_series(1, 50000) n"
        )
        conn.execute("select setval('outbox.change_id_seq', 100000)")
        if analyzed:
            conn.execute("analyze outbox.held")
    on_target(stories, "alter table story drop constraint stars_check")
    async with stories.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert (await asked(stories, parts, "retry")).done == 50001
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
        assert letters(stories) == held(stories) == []
        assert stories.rows("select length(title) from story")[1] == [(2000,)]


async def test_columns_of_several_letters_of_a_key_come_together(pair: Pair) -> None:
    """Emitted in parts: the newest of each set of columns behind the last delete."""
    pair.write("select outbox.map('public.card', array['id'])")
    on_target(
        pair,
        "create table card (id int primary key, a text, b text, c int check (c < 6))",
        "select outboxd.map('card')",
    )
    async with pair.relay(timing=AT_ONCE) as parts:
        for row in (
            '{"id":1,"a":"gone","c":9}',
            None,
            '{"id":1,"b":"1"}',
            '{"id":1,"a":"2","c":8}',
            '{"id":1,"b":"3"}',
            '{"id":1,"c":1}',
        ):
            pair.write(
                f"select outbox.emit('public.card', 'upsert', '{row}')"
                if row
                else "select outbox.emit('public.card', 'delete', key => '{\"id\":1}')"
            )
            await parts.relay.drain()
        await asked(pair, parts, "retry")
    with pair.target.connect() as conn:
        assert conn.execute("select * from card").fetchall() == [(1, "2", "3", 1)]


async def test_very_many_held_keys_come_in_pages(stories: Pair) -> None:
    """20 MB of them: no answer has all."""
    on_target(
        stories,
        "insert into outboxd.held (relay, table_name, key) select 'main', 'public.' || n % 3, jsonb_build_object('id', n, 'k', repeat('k', 2000))::text"
        " from generate_series(1, 9000) n",
    )
    stories.write(
        "insert into outbox.held (id, xid, table_name, op, key, created_at, reason) select 100000 + n, pg_current_xact_id(), 'public.' || n % 3,"
        " 'delete', jsonb_build_object('id', n, 'k', repeat('k', 2000))::text, now(), '' from generate_series(1, 9000) n"
    )
    stories.write("insert into story values (1, 'a', 1)")
    async with stories.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        assert len(parts.relay._delivery.held) == 9000
        answer = await parts.target.cursor()
        assert answer.more["held_keys"] == 9000
        assert len(answer.more["held"]) < 300
    stories.assert_equal("story")


async def test_a_letter_older_than_what_was_skipped_is_not_sent_before_the_copy(stories: Pair) -> None:
    """Its row was deleted while its table was out: written now, it would pass for a row that the copy has brought."""
    stories.write("insert into story values (1, 'a', 9), (2, 'b', 1), (3, 'c', 9)")
    async with stories.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        on_target(stories, "alter table story rename to away")
        stories.write("update story set title = 'e' where id = 2")  # not held: refused, it puts the table out
        await parts.relay.drain()
        stories.write("delete from story where id = 1", "update story set title = 'd', stars = 1 where id = 3")
        await parts.relay.drain()
        dead_letters.ask(stories.source.dsn, "retry", None, patience=0.0)
        on_target(stories, "alter table away drop constraint stars_check", "alter table away rename to story")
        await turned(parts, lambda: copies(stories, "select 1 from outboxd.copy where state = 'done'"))
        await turned(parts, lambda: not letters(stories) and not held(stories))
    stories.assert_equal("story")


async def test_a_delete_that_the_target_refuses_while_it_is_repaired_is_a_letter(stories: Pair) -> None:
    stories.write("insert into story values (1, 'a', 1)")
    on_target(stories, "insert into story values (2, 'extra', 1), (3, 'extra', 1)")
    on_target(stories, "create table likes (story_id int references story)", "insert into likes values (2)")
    async with stories.relay(timing=ASKED) as parts:
        await parts.relay.drain()
        stories.write("select outbox.ask_verification('story', true)")
        parts.relay.verifier.ring()
        await turned(parts, lambda: held(stories))
        await turned(parts, lambda: not parts.relay.verifier.asked)
        assert ids(stories) == [1, 2]
        assert [(key, op) for key, op, *_ in letters(stories)] == [('{"id":2}', "delete")]
        on_target(stories, "delete from likes")
        await asked(stories, parts, "retry")
    stories.assert_equal("story")
