"""Where few rows of a large table travel: they are looked for some at a time, and keys of the others stay at home."""

import json

import pytest

from daemon.batch import Limits
from daemon.sheaf import unpack
from daemon.source import Source
from daemon.target import PostgresDoor
from tests.integration.test_verify import counts, drifted, verified
from tests.pairs import Pair, Parts

ROWS, INSIDE = 3000, (1, 250, 251, 252, 1707, 3000)


class Told:
    """The direct door; all that was said to the target."""

    def __init__(self, pair: Pair) -> None:
        self._door = PostgresDoor(pair.target.dsn)
        self.documents: list[bytes] = []

    async def send(self, document: bytes) -> str:
        self.documents.append(document)
        return await self._door.send(document)

    async def close(self) -> None:
        await self._door.close()


@pytest.fixture
def sparse(pair: Pair) -> Pair:
    """Six rows of three thousand travel."""
    with pair.source.connect() as source, pair.target.connect() as target:
        for conn in (source, target):
            conn.execute("create table story (id text primary key, open bool not null, note text)")
        source.execute(
            "insert into story select 'key-' || to_char(n, 'FM0000') || '-', n = any (%s), 'note ' || n"
            " from generate_series(1, %s) n",
            (list(INSIDE), ROWS),
        )
        source.execute("select outbox.watch('story', filter => 'open')")
        target.execute("select outboxd.map('story')")
    return pair


def left_outside(told: Told) -> set[int]:
    """Rows that do not travel of which something was said."""
    return {
        n
        for n in range(1, ROWS + 1)
        if n not in INSIDE and any(f"key-{n:04}-".encode() in text for text in told.documents)
    }


def one_by_one(pieces: list[tuple[str, bytes]]) -> list[tuple[str, int]]:
    """Each key, and the size of its row."""
    return [pair for keys, sizes in pieces for pair in zip(keys.split("\x1d"), unpack(sizes), strict=True)]


async def test_rows_are_looked_for_some_at_a_time(sparse: Pair) -> None:
    """As many are looked at as a batch may have, whether they travel or not; the last key tells how far it came."""
    with sparse.source.connect() as source:
        rows = source.execute(
            "select named, sizes from outbox.copy_of('story', 'rows', null, 300, 1e9::bigint, 1e9::bigint)"
        ).fetchall()
        assert [(json.loads(key)["id"], size == -2) for key, size in one_by_one(rows)] == [
            *((f"key-{n:04}-", False) for n in INSIDE[:4]), ("key-0300-", True)
        ]  # fmt: skip
        rows = source.execute(
            "select named, sizes from outbox.copy_of('story', 'digests', array[%s], 300, 1e9::bigint, 1e9::bigint)",
            (rows[-1][0],),
        ).fetchall()
        assert [(json.loads(key)["id"], size) for key, size in one_by_one(rows)] == [("key-0600-", -2)]


async def test_they_are_copied_and_compared_and_the_others_are_not_spoken_of(sparse: Pair) -> None:
    """Through ranges in which nothing travels, and past a lost connection in the middle."""
    told = Told(sparse)
    async with sparse.relay(limits=Limits(changes=100), door=told) as parts:
        await parts.relay.step()
        await lost(parts)
        await parts.relay.drain()
        assert parts.relay.copier.copies["public.story"].rows == len(INSIDE)
        assert parts.relay.copier.copies["public.story"].state == "done"
        record = await verified(parts, sparse)
        assert counts(record) == (len(INSIDE), 0, 0, 0)
        drifted(
            sparse, "delete from story where id = 'key-1707-'", "update story set note = 'x' where id = 'key-0251-'",
            "insert into story values ('key-2000-', true, 'extra')",
        )  # fmt: skip
        assert left_outside(told) == set()
        record = await verified(parts, sparse, repair=True)
        assert (counts(record), record.repaired) == ((len(INSIDE), 0, 0, 0), 3)
    with sparse.target.connect() as target:
        found = target.execute("select id from story order by id").fetchall()
    assert [row[0] for row in found] == [f"key-{n:04}-" for n in INSIDE]


async def lost(parts: Parts) -> None:
    """The connection to the source breaks, and what was read is let go of."""
    source: Source = parts.source
    await source.close()
    parts.relay.meet()
