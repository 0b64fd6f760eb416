"""A pulled cable: nothing is refused and nothing reset, the other side is simply no more.

The real daemon in a network namespace, with real veth links and its real deadlines: each test takes half a minute.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daemon.demo.child import Outboxd
from daemon.demo.supabase import EmbeddedSupabase
from tests.databases import Database
from tests.forwarding import forwarded
from tests.namespace import Cable, Namespace, NoNamespace, namespace
from tests.relaying import Connection, install, same
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

FOUND = 20.0  # seconds within which the status must say so
_AGAIN = 40.0  # seconds within which it goes on, on a loaded machine


@dataclass
class Distant:
    """An outboxd at the other end of three cables: to the source, to the target, and for whoever asks how it does."""

    outboxd: Outboxd
    to_source: Cable
    to_target: Cable
    app: Connection
    mirror: Connection

    def told(self, what: Callable[[Mapping[str, Any]], object], deadline: float = 30.0) -> float:
        """Wait until the status says so; after how many seconds it did."""
        began = time.monotonic()
        wait_until(lambda: what(self.outboxd.status() or {}), deadline)
        return time.monotonic() - began

    def arrives(self) -> None:
        """Everything written is on the target."""
        wait_until(lambda: same(self.app, self.mirror), _AGAIN)


@pytest.fixture
def island(run_folder: Path) -> Iterator[Namespace]:
    with ExitStack() as stack:
        try:
            yield stack.enter_context(namespace(run_folder))
        except NoNamespace as none:
            pytest.skip(str(none))


@contextmanager
def distant(
    island: Namespace, source: Database, target: Database, folder: Path, *, way: Mapping[str, str], port: int
) -> Iterator[Distant]:
    """It runs, and has carried a first row."""
    install(source, target)
    with ExitStack() as stack:
        to_source = stack.enter_context(forwarded(source.cluster.port, island.cable.here))
        to_target = stack.enter_context(forwarded(port, island.aside.here))
        settings = {
            "source_dsn": f"postgresql://{source.owner}@{to_source.host}:{to_source.port}/{source.name}",
            "admin_host": island.third.there,
            "heartbeat_interval": "0",
            **{name: value.format(host=to_target.host, port=to_target.port) for name, value in way.items()},
        }
        place = folder / f"distant-{source.name}"
        place.mkdir()
        outboxd = Outboxd(place, settings, enter=island.enter)
        stack.callback(outboxd.stop)
        stack.callback(lambda: print(outboxd.last_words()))  # pytest shows it when the test failed
        outboxd.start()
        app, mirror = stack.enter_context(source.connect()), stack.enter_context(target.connect())
        one = Distant(outboxd, island.cable, island.aside, app, mirror)
        one.told(lambda status: status.get("state") == "streaming")
        app.execute("insert into item values (1, 1)")
        one.arrives()
        yield one


@pytest.fixture
def direct(island: Namespace, source: Database, target: Database, run_folder: Path) -> Iterator[Distant]:
    way = {"transport": "postgres", "target_dsn": f"postgresql://{target.owner}@{{host}}:{{port}}/{target.name}"}
    with distant(island, source, target, run_folder, way=way, port=target.cluster.port) as one:
        yield one


def test_a_link_to_the_source_that_goes_half_open_in_its_sleep_is_found(direct: Distant) -> None:
    """Idle and asleep: the ping finds it, the status says so, and once the link is up everything goes on by itself."""
    direct.told(lambda status: status["listener"]["asleep"])
    direct.to_source.pull()
    took = direct.told(lambda status: status["problem"] and not status["listener"]["connected"])
    assert took < FOUND
    assert (direct.outboxd.status() or {})["problem_kind"] == "source"
    assert "outboxd_listener_connected 0.0" in direct.outboxd.get("/metrics")[1]
    direct.app.execute("insert into item values (2, 2)")
    direct.to_source.plug()
    direct.arrives()
    direct.told(lambda status: status["state"] == "streaming" and status["problem"] is None)


def test_a_link_to_the_source_that_goes_half_open_under_a_query_is_found(direct: Distant, source: Database) -> None:
    """The read waits for its answer behind somebody's lock, and the link goes: no later than that it is given up."""
    with source.connect(autocommit=False) as holder:
        holder.execute("lock table outbox.change in access exclusive mode")
        direct.app.execute("select pg_current_xact_id()")  # something happened: the relay reads
        wait_until(lambda: _waits(direct.app))
        direct.to_source.pull()
        took = direct.told(lambda status: status["problem"] and "source" in status["problem"])
        assert took < FOUND
    direct.app.execute("insert into item values (2, 2)")
    direct.to_source.plug()
    direct.arrives()
    direct.told(lambda status: status["state"] == "streaming" and status["problem"] is None)


def test_a_link_to_the_target_that_goes_half_open_under_a_request_is_found(direct: Distant) -> None:
    """The request is in flight and no answer can come; afterwards the target is asked, and nothing is applied twice."""
    with direct.mirror.transaction():
        direct.mirror.execute("select from outboxd.cursor for update")
        direct.app.execute("insert into item values (2, 2)")
        wait_until(lambda: _held_up(direct.mirror))
        direct.to_target.pull()
        took = direct.told(lambda status: status["problem"])
        assert took < FOUND
        assert (direct.outboxd.status() or {})["problem_kind"] in {"ambiguous", "transient"}
    direct.app.execute("insert into item values (3, 3)")
    direct.to_target.plug()
    direct.arrives()
    direct.told(lambda status: status["state"] == "streaming" and status["problem"] is None)


# The settings allow plain HTTP to this machine alone, so this one is the door by itself, as the daemon makes it.
_KNOCKS = """
import asyncio, sys, time
from daemon.errors import TargetError
from daemon.rest import RestDoor

async def main():
    door = RestDoor(sys.argv[1], sys.stdin.readline().strip(), deadline=50)
    await door.send(b'{"mode": "claim", "relay": "main"}')
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    try:
        await door.send(b'{"mode": "cursor", "relay": "main"}')
    except TargetError as exc:
        print(exc.kind, time.monotonic() - began, flush=True)
    sys.stdin.readline()
    plugged = time.monotonic()
    while True:  # for a moment the kernel still holds its neighbour for gone, and says so at once
        try:
            print(await door.send(b'{"mode": "cursor", "relay": "main"}'), flush=True)
            break
        except TargetError as exc:
            if exc.kind != "transient" or time.monotonic() - plugged > 10:
                raise
            await asyncio.sleep(0.05)
    await door.close()

asyncio.run(main())
"""


def test_a_link_to_the_data_api_that_goes_half_open_under_a_request_is_found(
    island: Namespace, supabase: EmbeddedSupabase, mirror: Connection
) -> None:
    """Long before the request's deadline, which is made longer here: by keepalives, which httpx does not set itself."""
    with forwarded(supabase.gateway.port, island.aside.here) as way:
        url = f"http://{way.host}:{way.port}"
        command = [*island.enter, sys.executable, "-c", _KNOCKS, url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as knocks:
            assert knocks.stdin
            assert knocks.stdout
            try:
                print(supabase.secret_key, file=knocks.stdin, flush=True)
                assert knocks.stdout.readline() == "ready\n"
                with mirror.transaction():
                    mirror.execute("select from outboxd.cursor for update")
                    print(file=knocks.stdin, flush=True)
                    wait_until(lambda: _held_up(mirror))
                    island.aside.pull()
                    kind, took = knocks.stdout.readline().split()
                assert kind == "ambiguous"
                assert 5 < float(took) < FOUND
                island.aside.plug()
                print(file=knocks.stdin, flush=True)
                assert '"answer"' in knocks.stdout.readline()
            finally:
                knocks.kill()


def _waits(app: Connection) -> bool:
    """Does the daemon's read wait for a lock?"""
    found = app.execute(
        "select from pg_stat_activity where application_name like 'outboxd%' and wait_event_type = 'Lock'"
        " and datname = current_database() and application_name not like '%gauges'"
    )
    return found.rowcount > 0


def _held_up(mirror: Connection) -> bool:
    """Does a request wait for our lock?"""
    found = mirror.execute("select from pg_locks where not granted and pg_backend_pid() = any (pg_blocking_pids(pid))")
    return found.rowcount > 0
