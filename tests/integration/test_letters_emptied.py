"""A TRUNCATE and the letters of its table: what came before it is of no row any more, what came behind it is sent."""

import pytest

from daemon import dead_letters
from tests.integration.test_dead_letters import ASKED, AT_ONCE, PICKY, STORY
from tests.integration.test_out_emitted import on_target
from tests.integration.test_sizes import until_idle
from tests.pairs import Pair
from tests.security.relayed import turned_until


@pytest.fixture
def stories(pair: Pair) -> Pair:
    """The target takes fewer than six stars."""
    pair.create(STORY, "story", on_target=PICKY)
    return pair


@pytest.mark.parametrize("end", ["select outbox.unwatch('story')", "select outbox.watch('story', capture => false)"])
async def test_a_row_that_waits_behind_a_truncate_is_sent_also_where_its_key_was_held(stories: Pair, end: str) -> None:
    stories.write("insert into story values (1, 'a', 9), (2, 'b', 1)")
    async with stories.relay(timing=AT_ONCE) as parts:
        await until_idle(parts)
        on_target(stories, "alter table story rename to away")
        stories.write("update story set title = 'x' where id = 2")
        await until_idle(parts)
        assert parts.relay.copier.out == {"public.story"}
        stories.write("truncate story", "insert into story values (1, 'new', 1), (3, 'n', 1)")
        await until_idle(parts)
        stories.write(end)
        await until_idle(parts)
        on_target(stories, "alter table away rename to story")
        await turned_until(parts, lambda: not parts.relay.copier.out)
        await until_idle(parts)
    with stories.source.connect() as conn:
        assert conn.execute("select id from outbox.held").fetchall() == []
    stories.assert_equal("story")


async def test_a_letter_before_a_truncate_is_of_no_row_where_its_key_is_refused_behind_it(stories: Pair) -> None:
    stories.write("insert into story values (1, 'a', 9)")
    async with stories.relay(timing=ASKED) as parts:
        await until_idle(parts)
        stories.write("truncate story", "insert into story values (1, 'b', 8)")
        await until_idle(parts)
        with stories.source.connect() as conn:
            assert conn.execute("select row::jsonb ->> 'stars' from outbox.held").fetchall() == [("8",)]
        stories.write("update story set stars = 2")
        dead_letters.ask(stories.source.dsn, "retry", None, patience=0.0)
        await until_idle(parts)
        assert stories.rows("select stars from story")[1] == [(2,)]
