"""Peers that hang, restart, refuse or hang up: found in time, met without haste, and gone on from by itself."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from daemon.connection import Unanswered, connect
from daemon.demo.child import Outboxd
from daemon.demo.cluster import Cluster
from daemon.progress import Timing
from tests.databases import SETTINGS, Database, clone, source_template
from tests.forwarding import forwarded
from tests.relaying import Connection, Parts, assembled, install, running, same, until, within
from tests.waiting import wait_until

FOUND = 20.0  # seconds within which a peer that hangs must be known
POLL = Timing(poll=0.2)
_numbers = count(1)


@pytest.fixture(scope="module")
def server(new_folder: Callable[[str], Path], pytestconfig: pytest.Config) -> Iterator[Database]:
    """A source of its own, which may be stopped."""
    version = pytestconfig.getoption("postgres")
    with Cluster.create(new_folder("links"), version=version, settings=SETTINGS) as cluster:
        yield source_template(cluster)


@pytest.fixture
def source(server: Database) -> Iterator[Database]:
    with clone(server) as database:
        yield database


@asynccontextmanager
async def moving(source: Database, target: Database) -> AsyncIterator[Parts]:
    """A relay that has carried a first row."""
    install(source, target)
    async with assembled(source.dsn, target.dsn, timing=POLL, attempt=1.0) as parts, running(parts):
        await parts.leading()
        with source.connect() as app, target.connect() as mirror:
            app.execute("insert into item values (0, 0)")
            await until(lambda: same(app, mirror), 20)
        yield parts


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A server process that is frozen, and thawed at the end."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def backend(conn: psycopg.AsyncConnection[Any] | None) -> int:
    assert conn is not None
    return conn.info.backend_pid


# Frozen: what is sent is acknowledged, and nobody answers


async def found(parts: Parts, what: Callable[[], Any]) -> float:
    began = time.monotonic()
    await until(what, FOUND + 10)
    return time.monotonic() - began


@pytest.mark.slow
async def test_frozen_server_processes_are_found_and_left(source: Database, server: Database, target: Database) -> None:
    """One behind the read connection, one behind the bell, one behind the direct target, at once; real deadlines."""
    async with moving(source, target) as parts:
        status = parts.relay.status
        with source.connect() as app, target.connect() as mirror:
            reads, rings = backend(parts.source._session.conn), backend(parts.bell._conn)
            await until(lambda: parts.door._door._idle)  # the one that the next request takes; now it may be in use
            applies = backend(parts.door._door._idle[-1].conn)
            with stopped(applies):  # first: a request in flight
                app.execute("insert into item values (1, 1)")
                took = await found(parts, lambda: status.problem)
                assert took < FOUND + 1
                assert status.problem_kind in {"ambiguous", "transient"}
                await until(lambda: same(app, mirror), 40)  # on another connection
            await until(lambda: status.problem is None, 20)
            with stopped(reads):
                took = await found(parts, lambda: status.problem)
                assert took < FOUND
                app.execute("insert into item values (2, 2)")
                await until(lambda: same(app, mirror), 40)
            await until(lambda: status.problem is None, 20)
            parts.led.clear()
            with stopped(rings):
                took = await found(parts, lambda: (False, False) in parts.led)
                assert took < FOUND
                app.execute("insert into item values (3, 3)")  # its dead session has the leader's lock: nobody leads
                await until(lambda: status.state in {"standby", "paused"}, 20)
            await until(lambda: same(app, mirror), 40)
            await until(lambda: status.state == "streaming" and status.problem is None, 20)


@pytest.mark.slow
async def test_a_frozen_source_is_found_and_gone_on_from(source: Database, target: Database) -> None:
    """All of it, as a paused virtual machine: new connections hang as well, and are given up each in its turn."""
    async with moving(source, target) as parts:
        status = parts.relay.status
        with source.connect() as app, target.connect() as mirror:
            app.execute("insert into item values (1, 1)")
            source.cluster.freeze()
            try:
                took = await found(parts, lambda: status.problem and status.problem_kind == "source")
                assert took < FOUND
                parts.log.clear()
                await until(lambda: [line["event"] for line in parts.log].count("listener_lost") >= 2, 40)
            finally:
                source.cluster.thaw()
            app.execute("insert into item values (2, 2)")
            await until(lambda: same(app, mirror), 40)
            await until(lambda: status.state == "streaming" and status.problem is None, 20)


async def test_a_call_that_is_cancelled_ends_at_once_though_its_server_hangs(source: Database) -> None:
    """psycopg would ask the server to cancel, and wait ten seconds for that."""
    link = await connect(source.dsn, "test")
    with stopped(link.info.backend_pid):
        call = asyncio.create_task(link.execute("select 1"))
        await until(lambda: link.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE)
        began = time.monotonic()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert time.monotonic() - began < 2
        assert link.closed


async def test_a_silent_server_is_left_at_the_deadline_and_not_later(source: Database) -> None:
    """Also in a transaction block, which would like to roll back."""
    link = await connect(source.dsn, "test", patience=0.5)
    with stopped(link.info.backend_pid):
        began = time.monotonic()
        with pytest.raises(Unanswered, match=r"0\.5 s"):
            async with link.transaction():
                await link.execute("select 1")
        assert 0.4 < time.monotonic() - began < 3
        assert link.closed


async def test_connecting_is_bounded_whatever_hangs(source: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several addresses that accept and say nothing, then a name server: ten seconds in all. A living one is reached."""
    loop = asyncio.get_running_loop()
    mute = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]  # the kernel accepts, and nobody answers
    ports = [one.getsockname()[1] for one in mute]

    def dsn(*through: int) -> str:
        return f"postgresql://{','.join(f'127.0.0.1:{port}' for port in through)}/{source.name}?user={source.owner}"

    began = time.monotonic()
    with pytest.raises(Unanswered):
        await within(15, connect(dsn(*ports), "test"))
    assert time.monotonic() - began < 12
    link = await within(12, connect(dsn(ports[0], source.cluster.port), "test"))
    await link.close()

    async def never(*_: Any, **__: Any) -> Any:
        await loop.create_future()

    monkeypatch.setattr(loop, "getaddrinfo", never)
    began = time.monotonic()
    with pytest.raises(Unanswered):
        await within(15, connect(f"postgresql://{source.owner}@db.invalid/{source.name}", "test"))
    assert time.monotonic() - began < 12
    for one in mute:
        one.close()


# Restarts


@pytest.mark.parametrize("how", ["kill", "immediate", "fast"])
async def test_the_source_restarts_and_everything_arrives(source: Database, target: Database, how: str) -> None:
    """Whether it is killed, stopped at once or stopped in order: the relay comes back with nobody's help."""
    async with moving(source, target) as parts:
        with source.connect() as app:
            app.execute("insert into item select i, 0 from generate_series(1, 500) i")
        if how == "kill":
            source.cluster.kill()
        else:
            source.cluster.stop("fast" if how == "fast" else "immediate")
        await until(lambda: parts.relay.status.problem_kind == "source", 20)
        source.cluster.start()
        with source.connect() as app, target.connect() as mirror:
            app.execute("insert into item values (1000, 0)")
            await until(lambda: same(app, mirror), 30)
            await until(lambda: parts.relay.status.state == "streaming", 20)


# No haste


@contextmanager
def daemon(source_dsn: str, target: Database, run_folder, **settings: str) -> Iterator[Outboxd]:
    folder = run_folder / f"links-daemon-{next(_numbers)}"
    folder.mkdir()
    way = {"transport": "postgres", "target_dsn": target.dsn, "heartbeat_interval": "0"}
    one = Outboxd(folder, {"source_dsn": source_dsn, **way, **settings})
    with ExitStack() as stack:
        stack.callback(lambda: print(one.last_words()))  # pytest shows it when the test failed
        stack.callback(one.stop)
        one.start()
        assert one.answering()
        yield one


def over(seconds: float) -> Callable[[], bool]:
    """A condition that comes true by the clock: how long an outage is watched."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


@pytest.mark.slow
def test_a_source_that_is_down_is_knocked_at_seldom(source: Database, target: Database, run_folder, mirror) -> None:
    """12 s of an address that hangs up: few attempts, few lines, the status says why; afterwards it goes on."""
    install(source, target)
    with forwarded(source.cluster.port) as way, source.connect() as app:
        dsn = f"postgresql://{source.owner}@127.0.0.1:{way.port}/{source.name}"
        with daemon(dsn, target, run_folder) as outboxd:
            app.execute("insert into item values (1, 1)")
            wait_until(lambda: same(app, mirror), 30)
            outboxd.said()
            way.closed, way.knocks = True, 0
            app.execute(_END, (source.name,))
            wait_until(over(12), 20)
            status, lines = outboxd.status() or {}, outboxd.said()
            assert status["problem_kind"] == "source"
            assert "outboxd_listener_connected 0.0" in outboxd.get("/metrics")[1]
            assert 3 <= way.knocks <= 4 * 12
            assert len(lines) <= 4 * 12
            way.closed = False
            app.execute("insert into item values (2, 2)")
            wait_until(lambda: same(app, mirror), 30)
            wait_until(lambda: (outboxd.status() or {})["state"] == "streaming", 30)
            assert outboxd.returncode is None


@pytest.mark.slow
def test_a_source_whose_name_is_not_known_is_asked_for_seldom(target: Database, run_folder) -> None:
    """DNS fails: the daemon stays, says so, and asks again with growing waits."""
    with daemon("postgresql://nobody@db.invalid/none", target, run_folder) as outboxd:
        wait_until(lambda: (outboxd.status() or {})["problem"], 30)
        outboxd.said()
        wait_until(over(8), 20)
        lines = outboxd.said()
        assert 1 <= sum(line["event"] == "listener_lost" for line in lines) <= 2 * 8
        assert len(lines) <= 3 * 8
        status = outboxd.status() or {}
        assert (status["state"], status["problem_kind"]) == ("paused", "source")
        assert outboxd.returncode is None


_END = "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and application_name like 'outboxd%%'"


@pytest.mark.slow
def test_connections_that_are_ended_again_and_again_are_not_opened_in_a_loop(
    source: Database, target: Database, run_folder, mirror: Connection
) -> None:
    """Every 0.2 s somebody ends all of them, for 10 s: few connections, few lines, few claims; then all arrives."""
    install(source, target)
    with forwarded(source.cluster.port) as way, source.connect() as app:
        dsn = f"postgresql://{source.owner}@127.0.0.1:{way.port}/{source.name}"
        with daemon(dsn, target, run_folder) as outboxd:
            app.execute("insert into item values (0, 0)")
            wait_until(lambda: same(app, mirror), 30)
            outboxd.said()
            way.knocks = 0
            done, due = over(10), [time.monotonic()]

            def ending() -> bool:
                if time.monotonic() >= due[0]:
                    due[0] += 0.2
                    app.execute(_END, (source.name,))
                    app.execute("insert into item select max(id) + 1, 0 from item")
                return done()

            wait_until(ending, 30)
            lines = outboxd.said()
            assert 3 <= way.knocks <= 8 * 10
            assert len(lines) <= 10 * 10
            assert sum(line["event"] == "target_claimed" for line in lines) <= 2 * 10
            wait_until(lambda: same(app, mirror), 60)
            assert outboxd.returncode is None


async def test_a_connection_that_is_lost_as_soon_as_it_is_opened_makes_the_waits_grow(
    source: Database, target: Database, app: Connection
) -> None:
    """Opening it proves nothing: only a later answer on it takes the waits back to the first."""
    async with assembled(source.dsn, target.dsn) as parts:
        keeper, waits = parts.keeper, []
        for _ in range(5):
            await keeper.step()
            app.execute("select pg_terminate_backend(%s)", (backend(parts.bell._conn),))
            waits.append(await keeper.step())  # finds it gone
        assert waits[-1] > 3 * waits[0]
        assert max(waits) <= 6
        await keeper.step()  # opens
        await keeper.step()  # an answer
        app.execute("select pg_terminate_backend(%s)", (backend(parts.bell._conn),))
        assert await keeper.step() < 1
