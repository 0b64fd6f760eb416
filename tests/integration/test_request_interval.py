"""`request_interval`: freshness for requests, while the relay is up to date; and nothing else is any different."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from daemon.batch import Batch, Limits
from daemon.progress import Timing
from outbox import Cursor
from tests.databases import Database
from tests.relaying import Connection, Parts, assembled, install, running, same, until, within

LONG = Timing(poll=3600, request=10.0)  # longer than any test waits: whatever waits for it fails
SHORT = 0.2


@pytest.fixture(autouse=True)
def tables(source: Database, target: Database) -> None:
    install(source, target)


@asynccontextmanager
async def led(source: Database, target: Database, timing: Timing, limits: Limits | None = None) -> AsyncIterator[Parts]:
    async with assembled(source.dsn, target.dsn, timing=timing, limits=limits) as relay, running(relay):
        await relay.asleep()
        yield relay


async def test_requests_keep_their_distance_and_everything_arrives(
    source: Database, target: Database, app: Connection, mirror: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first goes at once; what is committed meanwhile goes together, an interval after the request before."""
    sent: list[float] = []
    looks: list[float] = []
    async with led(source, target, Timing(poll=3600, request=SHORT)) as relay:
        send, read = relay.door.send, relay.source.read

        async def note_requests(document: bytes) -> str:
            sent.append(time.monotonic())
            return await send(document)

        async def note_looks(cursor: Cursor, **options: bool) -> Batch:
            looks.append(time.monotonic())
            return await read(cursor, **options)

        monkeypatch.setattr(relay.door, "send", note_requests)
        monkeypatch.setattr(relay.source, "read", note_looks)
        written = 0

        def written_until_six_were_sent() -> bool:
            nonlocal written
            written += 1
            app.execute("insert into item values (%s, 0)", (written,))
            return len(sent) >= 6

        await until(written_until_six_were_sent, 30)
        await until(lambda: same(app, mirror))
    assert written > len(sent)
    assert all(later - earlier > 0.9 * SHORT for earlier, later in pairwise(sent))
    # The bell's last look before sleep follows the one before it at once.
    close = [later - earlier for earlier, later in pairwise(looks) if later - earlier < SHORT / 2]
    assert len(close) <= relay.bell.armings


async def test_a_backlog_does_not_wait(source: Database, target: Database, app: Connection, mirror: Connection) -> None:
    """Full batches go at once: ten seconds lie between two of them otherwise."""
    app.execute("insert into item select n, 0 from generate_series(1, 3) n")
    for first in range(0, 40, 4):
        app.execute("insert into item select n, 0 from generate_series(%s::int, %s::int) n", (first + 100, first + 103))
    async with assembled(source.dsn, target.dsn, timing=LONG, limits=Limits(changes=5)) as relay, running(relay):
        await until(lambda: same(app, mirror))
        assert len(relay.seen.applied) >= 8


async def test_told_to_stop_it_brings_what_is_there_at_once(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """SIGTERM does not wait for the interval, and leaves nothing behind that was committed before."""
    async with assembled(source.dsn, target.dsn, timing=LONG) as relay, running(relay) as turning:
        await relay.asleep()
        app.execute("insert into item values (1, 0)")
        await until(lambda: same(app, mirror))
        for new in range(2, 6):
            app.execute("insert into item values (%s, 0)", (new,))
        assert not same(app, mirror)
        relay.relay.stop()
        await within(5, turning)
        assert same(app, mirror)


async def test_a_command_that_drains_does_not_wait(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """`run --until-idle`: one batch after the other, to the end."""
    async with assembled(source.dsn, target.dsn, timing=LONG) as relay:
        relay.relay.lead()
        for new in range(3):
            app.execute("insert into item values (%s, 0)", (new,))
            assert await within(5, relay.relay.drain()) == 1
        assert same(app, mirror)
