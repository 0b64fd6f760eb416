"""A leader that was frozen writes no letters once another one leads (promises I4 and I6)."""

import asyncio
from typing import Any

import psycopg
import pytest

from daemon import dead_letters
from daemon.errors import Fenced
from tests.integration.test_dead_letters import AT_ONCE
from tests.integration.test_out_emitted import on_target
from tests.integration.test_sizes import until_idle
from tests.pairs import Pair


@pytest.fixture
def cards(pair: Pair) -> Pair:
    """A table that the application emits, with two columns of which the target refuses some values."""
    pair.write("select outbox.map('public.card', array['id'])")
    on_target(pair, "create table card (id int primary key, title text, stars int)", "select outboxd.map('card')")
    on_target(pair, "alter table card add constraint title_check check (title <> 'bad')")
    on_target(pair, "alter table card add constraint stars_check check (stars < 6)")
    return pair


def held(pair: Pair) -> list[Any]:
    with pair.source.connect() as conn:
        return conn.execute("select table_name, row from outbox.held order by id").fetchall()


def there(pair: Pair) -> list[Any]:
    with pair.target.connect() as conn:
        return conn.execute("select title, stars from card order by id").fetchall()


@pytest.mark.parametrize("write", ["hold", "park"])
async def test_a_leader_that_wakes_up_late_leaves_no_letter(cards: Pair, write: str) -> None:
    if write == "park":
        on_target(cards, "alter table card rename to away")
    waking, frozen = asyncio.Event(), asyncio.Event()
    cards.write("""select outbox.emit('public.card', 'upsert', '{"id": 1, "title": "bad"}')""")
    async with cards.relay(timing=AT_ONCE) as late, cards.relay(timing=AT_ONCE) as parts:
        real = getattr(late.relay._letters, write)

        async def written_late(*given: Any) -> None:
            frozen.set()
            await waking.wait()
            await real(*given)

        setattr(late.relay._letters, write, written_late)
        turn = asyncio.create_task(until_idle(late))
        async with asyncio.timeout(20):
            await frozen.wait()
        if write == "park":
            on_target(cards, "alter table away rename to card")
        await until_idle(parts)
        cards.write("""select outbox.emit('public.card', 'upsert', '{"id": 1, "title": "good"}')""")
        await until_idle(parts)
        dead_letters.ask(cards.source.dsn, "retry", None, patience=0.0)
        await until_idle(parts)
        assert held(cards) == []
        waking.set()
        with pytest.raises(Fenced):
            await turn
        assert held(cards) == []
        on_target(cards, "alter table card drop constraint title_check")
        cards.write("""select outbox.emit('public.card', 'upsert', '{"id": 1, "stars": 9}')""")
        await until_idle(parts)
        on_target(cards, "alter table card drop constraint stars_check")
        dead_letters.ask(cards.source.dsn, "retry", None, patience=0.0)
        await until_idle(parts)
    assert there(cards) == [("good", 9)]


async def test_whoever_leads_next_waits_for_what_is_being_written(pair: Pair) -> None:
    """It looks at the letters only then, so that none comes behind its back."""
    with pair.source.connect(autocommit=False) as writing, pair.source.connect() as next_one:
        next_one.execute("select outbox.confirm('main', 1, 1, null)")
        assert writing.execute("select outbox.still_leads('main', 1)").fetchone() == (True,)
        next_one.execute("set lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            next_one.execute("select outbox.confirm('main', 2, 1, null)")
        writing.commit()
        next_one.execute("select outbox.confirm('main', 2, 1, null)")
        assert writing.execute("select outbox.still_leads('main', 1)").fetchone() == (False,)
