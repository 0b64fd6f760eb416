"""Of a key some letters are to be dropped and others sent, or two persons want one of each: what comes of it."""

import asyncio
from typing import Literal

import pytest

from daemon import dead_letters
from daemon.errors import Kind, TargetError
from daemon.target import PostgresDoor
from tests.integration.test_dead_letters import ASKED, AT_ONCE, PICKY, STORY
from tests.integration.test_out_emitted import on_target
from tests.integration.test_sizes import until_idle
from tests.pairs import Pair
from tests.security.relayed import turned_until
from tests.waiting import wait_until_async


class Away:
    """The target is away for so many batches."""

    away = 0

    def __init__(self, dsn: str) -> None:
        self._door = PostgresDoor(dsn)

    async def send(self, document: bytes) -> str:
        if b'"mode":"apply"' in document.replace(b" ", b"") and self.away:
            self.away -= 1
            raise TargetError(Kind.TRANSIENT, "the target is away")
        return await self._door.send(document)

    async def close(self) -> None:
        await self._door.close()


def held(pair: Pair) -> list[tuple[object, ...]]:
    with pair.source.connect() as conn:
        return conn.execute("select id, wanted from outbox.held order by id").fetchall()


async def test_what_came_after_a_discard_goes_by_itself_where_the_target_was_away_then(pair: Pair) -> None:
    pair.create(STORY, "story", on_target=PICKY)
    pair.write("insert into story values (1, 'a', 9), (2, 'b', 1)")
    door = Away(pair.target.dsn)
    async with pair.relay(door=door, timing=AT_ONCE) as parts:
        await parts.relay.drain()
        dead_letters.ask(pair.source.dsn, "discard", None, patience=0.0)
        pair.write("update story set stars = 1 where id = 1")
        parts.relay._letters_seen = float("inf")
        await parts.relay.drain()
        assert len(held(pair)) == 2
        door.away = 1
        parts.relay._letters_seen = float("-inf")
        with pytest.raises(TargetError):
            await parts.relay.drain()
        assert len(held(pair)) == 1
        await turned_until(parts, lambda: not held(pair), 8)
    pair.assert_equal("story")


@pytest.mark.parametrize(("first", "second"), [("discard", "retry"), ("retry", "discard")])
async def test_a_retry_and_a_discard_at_once_do_one_of_both_to_the_whole_key(
    pair: Pair, first: Literal["discard", "retry"], second: Literal["discard", "retry"]
) -> None:
    pair.write("select outbox.map('public.card', array['id'])")
    on_target(pair, "create table card (id int primary key, title text, stars int)", "select outboxd.map('card')")
    on_target(pair, "alter table card add constraint title_check check (title <> 'bad')")
    pair.write("""select outbox.emit('public.card', 'upsert', '{"id": 1, "title": "bad"}')""")
    async with pair.relay(timing=ASKED) as parts:
        await until_idle(parts)
        pair.write("""select outbox.emit('public.card', 'upsert', '{"id": 1, "stars": 3}')""")
        await until_idle(parts)
    with pair.source.connect(autocommit=False) as one, pair.source.connect() as two, pair.source.connect() as look:
        one.execute("select")  # so that it does not commit by itself
        dead_letters.mark(one, first)
        other = asyncio.create_task(asyncio.to_thread(dead_letters.mark, two, second))
        blocked = "select 1 from pg_locks where not granted and pid = %s"

        async def met() -> bool:
            return other.done() or bool(look.execute(blocked, (two.info.backend_pid,)).fetchall())

        await wait_until_async(met)
        one.commit()
        await other
        wanted = [row[1] for row in held(pair)]
    # Of what is to be sent the newest is marked; of what is to be dropped each.
    assert wanted in ([None, "retry"], ["retry", "retry"], ["discard", "discard"])
