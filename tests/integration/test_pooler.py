"""Behind a real PgBouncer: in transaction mode the relay polls and says so, in session mode nothing is missing."""

import asyncio
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from daemon.check import check
from daemon.demo.child import Outboxd
from daemon.errors import Fenced, SourceUnavailable
from daemon.main import AWAY
from daemon.progress import Timing
from daemon.source import Source
from outbox import Cursor
from tests.databases import Database
from tests.pairs import reading
from tests.pgbouncer import MissingPgBouncer, pgbouncer, pgbouncer_before
from tests.relaying import Connection, assembled, install, running, same, until
from tests.waiting import wait_until

LOCKS = """
select objid::bigint from pg_locks
 where locktype = 'advisory' and classid in (1869968482, 1869968483, 1869968484) and granted
   and database = (select oid from pg_database where datname = current_database())
"""
ANOTHER = "insert into item select max(id) + 1, 1 from item"
POLL = 0.5


@pytest.fixture(autouse=True)
def tables(source: Database, target: Database) -> None:
    try:
        pgbouncer()
    except MissingPgBouncer as missing:
        pytest.skip(str(missing))
    install(source, target)


async def arrival(app: Connection, mirror: Connection, new: int) -> float:
    """Seconds from a commit to the row on the target."""
    app.execute("insert into item values (%s, 0)", (new,))
    began = time.monotonic()
    await until(lambda: mirror.execute("select from item where id = %s", (new,)).rowcount)
    return time.monotonic() - began


async def test_in_transaction_mode_the_relay_polls_and_says_so(
    source: Database, target: Database, app: Connection, mirror: Connection, run_folder: Path
) -> None:
    """The probe finds it before anything is locked; changes arrive within a poll; log, status and check name it."""
    with pgbouncer_before(source, run_folder, "transaction") as dsn:
        async with assembled(dsn, target.dsn, timing=Timing(poll=POLL)) as relay, running(relay):
            await relay.leading()
            assert relay.bell.pooled
            assert relay.bell.connected
            assert relay.led[-1] == (True, False)  # it leads, and there is no listener
            waits = [await arrival(app, mirror, new) for new in range(8)]
            assert sorted(waits)[len(waits) // 2] < POLL
            assert same(app, mirror)
            assert app.execute(LOCKS).fetchall() == []
            assert relay.bell.rings == 0
            (told,) = [line for line in relay.log if line["event"] == "listener_pooled"]
            assert "session-mode address" in told["advice"]
        (item,) = [item for item in await check(dsn, None) if item.name == "listener"]
        assert (item.level, "pooler in transaction mode" in item.what) == ("FAIL", True)


async def test_in_transaction_mode_a_busy_pool_is_found_as_well(
    source: Database, target: Database, app: Connection, run_folder: Path
) -> None:
    """Other clients take the server connections in between: the probe asks more than once."""
    stop = asyncio.Event()
    with pgbouncer_before(source, run_folder, "transaction", size=3) as dsn:

        async def client() -> None:
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, prepare_threshold=None) as conn:
                while not stop.is_set():
                    await conn.execute("select 1")

        clients = [asyncio.create_task(client()) for _ in range(6)]
        try:
            for _ in range(10):
                async with assembled(dsn, target.dsn) as relay:
                    await relay.bell.connect()
                    assert relay.bell.pooled
        finally:
            stop.set()
            await asyncio.gather(*clients)
    assert app.execute(LOCKS).fetchall() == []


async def test_in_transaction_mode_nothing_of_ours_stays_on_the_applications_connections(
    source: Database, target: Database, app: Connection, mirror: Connection, run_folder: Path
) -> None:
    """The pool's one server connection serves the application next: it has its own settings, and no LISTEN."""
    with pgbouncer_before(source, run_folder, "transaction", size=1) as dsn:
        async with assembled(dsn, target.dsn, timing=Timing(poll=0.01)) as relay, running(relay):
            await relay.leading()
            await arrival(app, mirror, 1)
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as other:
            changed = "select name from pg_settings where source = 'session' and name <> 'application_name'"
            names = {row[0] for row in other.execute(changed).fetchall()}
            assert not names & {
                "statement_timeout",
                "lock_timeout",
                "idle_session_timeout",
                "default_transaction_isolation",
            }
            assert other.execute("select pg_listening_channels()").fetchall() == []


async def test_two_relays_behind_a_transaction_pooler_fence_each_other_once(
    source: Database, target: Database, app: Connection, mirror: Connection, run_folder: Path
) -> None:
    """Nobody can elect there. The second claims, the first is refused at its next batch and ends; no ping-pong."""
    with pgbouncer_before(source, run_folder, "transaction") as dsn:
        async with (
            assembled(dsn, target.dsn, timing=Timing(poll=0.01)) as first, running(first) as task,
            assembled(dsn, target.dsn, timing=Timing(poll=0.01)) as second,
        ):  # fmt: skip
            await first.leading()
            async with running(second):
                await second.leading()
                app.execute("insert into item values (1, 1)")
                await until(lambda: same(app, mirror))
                await until(lambda: app.execute(ANOTHER).rowcount and task.done())
                with pytest.raises(Fenced):
                    task.result()
                await until(lambda: same(app, mirror))
                assert first.door.modes.count("claim") + second.door.modes.count("claim") == 2


def test_supervised_processes_behind_a_transaction_pooler_do_not_drive_each_other_round(
    source: Database, target: Database, app: Connection, mirror: Connection, run_folder: Path
) -> None:
    """Each is started again at once when it is fenced; for all that they claim the target seldom."""
    folder = run_folder / f"supervised-{source.name}"
    folder.mkdir()
    with pgbouncer_before(source, run_folder, "transaction", size=8) as dsn, ExitStack() as ending:
        settings = {"source_dsn": dsn, "transport": "postgres", "target_dsn": target.dsn, "poll_interval": "0.05"}
        settings["heartbeat_interval"] = "0"
        pair = [Outboxd(folder, settings, name=f"outboxd-{number}") for number in range(2)]
        for one in pair:
            ending.callback(one.stop)
            one.start()
        app.execute("insert into item values (1, 1)")
        wait_until(lambda: same(app, mirror), 30)
        began, ended = time.monotonic(), [0]

        def ten_seconds_are_over() -> bool:
            app.execute(ANOTHER)
            for one in pair:
                if one.returncode is not None:
                    ended[0] += 1
                    assert one.returncode == AWAY
                    one.start()
            return time.monotonic() - began > 10

        wait_until(ten_seconds_are_over, 30)
        wait_until(lambda: same(app, mirror), 30)
        claims = sum(line["event"] == "target_claimed" for one in pair for line in one.said())
    assert 2 <= claims <= 4


async def test_in_session_mode_everything_works(
    source: Database, target: Database, app: Connection, mirror: Connection, run_folder: Path
) -> None:
    """A server connection of its own: LISTEN, the leader's lock, sleep and bell, as without a pooler."""
    with pgbouncer_before(source, run_folder, "session", size=8) as dsn:
        async with assembled(dsn, target.dsn) as relay, running(relay):  # no poll: only rings wake it
            for new in range(5):
                await relay.asleep()
                await arrival(app, mirror, new)
            assert not relay.bell.pooled
            assert relay.bell.rings >= 5
            assert same(app, mirror)
        items = await check(dsn, None)
        assert [item.level for item in items if item.name == "listener"] == ["OK"]


async def test_a_roles_limit_reaches_through_a_pooler_and_is_named(
    source: Database, app: Connection, run_folder: Path
) -> None:
    """A pooler refuses settings at login, so the role's own hold there: the error says which to change, and how."""
    app.execute("insert into item select i, 0 from generate_series(1, 60000) i")
    role = f"limited_{source.name}"
    app.execute(f"create role {role} superuser login; alter role {role} set statement_timeout = '2ms'".encode())
    try:
        with pgbouncer_before(Database(source.cluster, source.name, role), run_folder, "session") as dsn:
            async with reading(Database(source.cluster, source.name, role)) as direct:
                assert (await direct.backlog(Cursor.beginning()))[0] == 60_000
            reader = Source(dsn)
            try:
                with pytest.raises(SourceUnavailable, match=r"alter role … set statement_timeout = '14s'"):
                    await reader.backlog(Cursor.beginning())
            finally:
                await reader.close()
    finally:
        app.execute(f"drop role {role}".encode())
