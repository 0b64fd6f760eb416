"""A request of one change that a gateway refuses as too large: it is that change's matter, whatever the gateway's limit is."""

import pytest

from tests.integration.test_sizes import NarrowDoor, until_idle
from tests.pairs import Pair


@pytest.fixture
def notes(pair: Pair) -> Pair:
    pair.create("create table note (id text primary key, body text)", "note")
    pair.create("create table item (id int primary key)", "item")
    return pair


@pytest.mark.parametrize(("limit", "size"), [(20_000, 30_000), (10_000, 10_000)])
async def test_a_row_that_the_gateway_does_not_take_waits_alone(notes: Pair, limit: int, size: int) -> None:
    """Below any size that says something of the gateway: another request is tried, and comes through."""
    notes.write(
        f"insert into note values ('big', repeat('x', {size}))",
        "insert into note values ('small', 'y')",
        "insert into item values (1)",
    )
    async with notes.relay(door=NarrowDoor(notes.target.dsn, limit)) as parts:
        await until_idle(parts)
        assert notes.rows("select id from note")[1] == [("small",)]
        notes.write("insert into item values (2)", "update note set body = 'x' where id = 'big'")
        await until_idle(parts)
        assert notes.rows("select count(*) from item")[1] == [(2,)]
        assert parts.relay.status.state != "paused"
        with notes.source.connect() as conn:
            states = conn.execute("select sqlstate from outbox.held order by id").fetchall()
    assert states == [("54000",), (None,)]


async def test_deletes_of_long_keys_make_a_batch_smaller_and_no_more(notes: Pair) -> None:
    """A change without a row has the size of its key: what is refused is halved, not cut down to single changes."""
    notes.write("insert into note select repeat(md5(i::text), 120) || i, 'x' from generate_series(1, 64) i")
    door = NarrowDoor(notes.target.dsn, 10**6)
    async with notes.relay(door=door) as parts:
        await until_idle(parts)
        door.limit, door.sizes[:] = 100_000, []
        notes.write("delete from note where id like '%1'")
        for _ in range(8):
            notes.write("delete from note where id in (select id from note limit 8)")
        assert await until_idle(parts) <= 3
        assert min(door.sizes[:-1]) > 30_000
        assert parts.relay._sizing.bytes > 30_000, "nor are the batches that follow"
    notes.assert_equal("note")
