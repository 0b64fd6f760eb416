"""A key that is another one on the two sides: nothing is written by it, the table is out until both have the same."""

import pytest

from daemon.copies import Copy
from daemon.survey import survey
from daemon.watchlist import State
from tests.integration.test_aim import looked, on_source, on_target
from tests.integration.test_dead_letters import AT_ONCE
from tests.pairs import Pair, Parts

TO = "alter table story drop constraint story_pkey, add primary key ({})"
STORY = "create table story (id int not null, tenant text not null, primary key ({}))"
KEYS = [("id", "id, tenant"), ("id, tenant", "id"), ("id", "tenant")]
CHANGES = {
    "upsert": "insert into story values (2, 'b')",
    "update": "update story set tenant = 'b'",
    "delete": "delete from story",
}


async def seen(pair: Pair, parts: Parts) -> tuple[Copy, State]:
    """The record of the copy, and what `status` says."""
    copy = await looked(parts)
    tables = await survey(parts.source, (await parts.target.describe()).more)
    return copy, tables.entries(parts.relay.copier.copies)[0].state


@pytest.mark.parametrize(
    ("was", "now", "change", "again"),
    [
        ("id", "id, tenant", "upsert", True), ("id", "id, tenant", "delete", False), ("id, tenant", "id", "update", True),
        ("id, tenant", "id", "delete", False), ("id", "tenant", "upsert", False), ("id", "tenant", "delete", True),
    ],
)  # fmt: skip
async def test_a_table_whose_key_is_another_one_is_out_until_its_mirror_has_it(
    pair: Pair, was: str, now: str, change: str, again: bool
) -> None:
    pair.create(STORY.format(was), "story")
    async with pair.relay(timing=AT_ONCE) as parts:
        pair.write("insert into story values (1, 'a')")
        await looked(parts)
        pair.write(TO.format(now))
        if again:
            on_source(pair, "select outbox.watch('story')")
        pair.write(CHANGES[change])
        copy, state = await seen(pair, parts)
        assert (copy.state, state) == ("out", State.UNFIT)
        assert "key" in (copy.reason or "")
        with pair.target.connect() as target:
            assert target.execute("select * from story").fetchall() == [(1, "a")], "nothing was written"
        on_target(pair, TO.format(now), "select outboxd.map('story')")
        parts.relay.copier.recheck()
        copy, state = await seen(pair, parts)
        assert (copy.state, state) == ("done", State.WELL)
    pair.assert_equal("story")


async def test_a_key_that_changes_between_two_changes_of_a_batch(pair: Pair) -> None:
    """Neither is written by the other's key."""
    pair.create(STORY.format("id"), "story")
    pair.write("insert into story values (1, 'a')")
    pair.write(TO.format("id, tenant"))
    pair.write("insert into story values (1, 'b')")
    async with pair.relay(timing=AT_ONCE) as parts:
        assert (await looked(parts)).state == "out"
        on_target(pair, TO.format("id, tenant"), "select outboxd.map('story')")
        parts.relay.copier.recheck()
        await looked(parts)
    pair.assert_equal("story")


async def test_an_emitted_key_that_is_wider_than_the_mirrors_waits(pair: Pair) -> None:
    on_source(pair, "select outbox.map('public.story', array['id', 'tenant'])")
    on_target(pair, STORY.format("id"), "select outboxd.map('story')")
    pair.write(*(f"""select outbox.emit('public.story', 'upsert', '{{"id": 1, "tenant": "{one}"}}')""" for one in "ab"))
    async with pair.relay(timing=AT_ONCE) as parts:
        await looked(parts)
        with pair.target.connect() as target:
            assert target.execute("select * from story").fetchall() == []
        on_target(pair, TO.format("id, tenant"), "select outboxd.map('story')")
        parts.relay.copier.recheck()
        await looked(parts)
        with pair.target.connect() as target:
            assert target.execute("select * from story order by 2").fetchall() == [(1, "a"), (1, "b")]
