"""A letter of an attempt that came to nothing goes as soon as the target has accepted the change after all."""

import contextlib
from typing import Any

import pytest

from daemon.batch import Limits
from daemon.errors import Kind, TargetError
from daemon.target import PostgresDoor
from tests.integration.test_dead_letters import AT_ONCE, PICKY, STORY
from tests.integration.test_out_emitted import on_target
from tests.integration.test_sizes import until_idle
from tests.pairs import Pair, Parts


class LosingDoor(PostgresDoor):
    """The direct door; the first request that holds a key never comes there."""

    lost = False

    async def send(self, document: bytes) -> str:
        if b'"op":"hold"' in document and not self.lost:
            self.lost = True
            raise TargetError(Kind.AMBIGUOUS, "no answer in time")
        return await super().send(document)


@pytest.fixture
def stories(pair: Pair) -> Pair:
    pair.create(STORY, "story", on_target=PICKY)
    return pair


def letters(pair: Pair) -> list[Any]:
    with pair.source.connect() as conn:
        return conn.execute("select key, op from outbox.held order by id").fetchall()


async def attempted(parts: Parts) -> None:
    """A key's letter is written, and the request that would hold it is lost."""
    with contextlib.suppress(TargetError):
        while await parts.relay.step():
            pass
    assert not parts.relay._delivery.held


@pytest.mark.parametrize("next_one", [False, True], ids=["the same", "the next leader"])
async def test_a_change_that_is_accepted_after_all_leaves_no_letter(stories: Pair, next_one: bool) -> None:
    stories.write("insert into story select n, 'n', case n when 5 then 9 else 1 end from generate_series(1, 6) n")
    door = LosingDoor(stories.target.dsn)
    async with stories.relay(door=door, timing=AT_ONCE) as first:
        await attempted(first)
        assert letters(stories) == [('{"id":5}', "upsert")]
        on_target(stories, "alter table story drop constraint stars_check")
        if not next_one:
            await until_idle(first)
    if next_one:
        async with stories.relay(timing=AT_ONCE, limits=Limits(changes=2)) as parts:
            await until_idle(parts)
    stories.assert_equal("story")
    assert letters(stories) == []


async def test_a_letter_stays_as_long_as_its_change_has_not_been_accepted(stories: Pair) -> None:
    """Also while others are: what is still to be read may be refused again."""
    stories.write("insert into story values (1, 'a', 1)", "insert into story values (2, 'b', 9)")
    stories.write("insert into story values (3, 'c', 9)")
    door = LosingDoor(stories.target.dsn)
    async with stories.relay(door=door, timing=AT_ONCE) as first:
        await attempted(first)
    on_target(stories, "alter table story drop constraint stars_check")
    on_target(stories, "alter table story add constraint stars_check check (id < 3)")
    async with stories.relay(timing=AT_ONCE, limits=Limits(changes=1)) as parts:
        await until_idle(parts)
        assert letters(stories) == [('{"id":3}', "upsert")]
        assert parts.relay._delivery.held == {("public.story", '{"id":3}')}


async def test_a_delete_that_is_accepted_after_all_leaves_no_letter(stories: Pair) -> None:
    """Of a row that the target has too much, which is no change."""
    stories.write("insert into story values (1, 'a', 1)")
    await stories.drain()
    on_target(stories, "insert into story values (7, 'too much', 1)", "create table own (id int references story)")
    on_target(stories, "insert into own values (7)")
    with stories.source.connect() as conn:
        conn.execute("select outbox.ask_copy('story', true)")
    async with stories.relay(door=LosingDoor(stories.target.dsn), timing=AT_ONCE) as parts:
        await attempted(parts)
        assert letters(stories) == [('{"id":7}', "delete")]
        on_target(stories, "delete from own")
        await until_idle(parts)
        assert not parts.relay.copier.asked
    stories.assert_equal("story")
    assert letters(stories) == []
