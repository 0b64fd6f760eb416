"""Who leads: the lock elects, the epoch fences, and the status says what is so."""

from functools import partial

import psycopg
import pytest

from daemon.demo.cluster import Cluster
from daemon.errors import STANDBY, Fenced
from daemon.progress import Timing
from tests.databases import SETTINGS, Database, clone, source_template
from tests.relaying import Connection, Parts, assembled, install, running, same, until, within

QUICK = Timing(poll=0.05)
END_BELL = "select pg_terminate_backend(pid) from pg_stat_activity where pid = %s"


@pytest.fixture
def tables(source: Database, target: Database) -> None:
    install(source, target)


def write(conn: Connection, *ids: int) -> None:
    conn.cursor().executemany("insert into item values (%s, 0)", [(new,) for new in ids])


def end_connection(app: Connection, parts: Parts) -> None:
    """The server drops the bell's connection, and with it the locks."""
    assert parts.bell._conn is not None
    app.execute(END_BELL, (parts.bell._conn.info.backend_pid,))


async def standing_by(parts: Parts) -> None:
    """Wait until it says so, which is no problem."""
    await until(lambda: (parts.relay.status.state, parts.relay.status.problem) == ("standby", None))


@pytest.mark.usefixtures("tables")
async def test_one_leads_and_the_other_does_nothing(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """Only the leader turns and asks the target; the other says that it stands by, which is no problem."""
    async with (
        assembled(source.dsn, target.dsn) as first, running(first),
        assembled(source.dsn, target.dsn) as second,
    ):  # fmt: skip
        await first.leading()
        async with running(second):
            write(app, 1)
            await until(lambda: same(app, mirror) and len(second.led) > 3)
            assert (second.relay.status.state, second.relay.status.problem) == ("standby", None)
            assert (second.relay.turns, second.door.modes, second.keeper.leads) == (0, [], False)
            assert set(second.led) == {(False, True)}
    assert first.relay.status.epoch == 1


@pytest.mark.usefixtures("tables")
async def test_the_standby_takes_over_and_the_late_write_of_the_first_is_fenced(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """A batch that is on its way while another relay takes over changes nothing on the target and ends its process."""
    async with (
        assembled(source.dsn, target.dsn) as first,
        assembled(source.dsn, target.dsn) as second,
        running(first) as task,
    ):
        await first.asleep()
        async with running(second):
            await until(lambda: second.relay.status.state == "standby")
            first.door.gate.clear()
            write(app, 1)
            await within(10, first.door.reached.wait())
            app.execute("update item set n = 7")
            end_connection(app, first)
            await until(lambda: second.keeper.leads, 2)
            await until(lambda: same(app, mirror))
            assert (first.relay.status.epoch, second.relay.status.epoch) == (1, 2)
            assert not first.keeper.leads
            first.door.gate.set()
            with pytest.raises(Fenced):
                await within(10, task)
            assert same(app, mirror)
            assert first.relay.status.applied == 0
            assert second.relay.status.batch_no == 1


@pytest.mark.usefixtures("tables")
async def test_who_lost_the_lead_stands_by_and_may_lead_again(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """Leadership goes there and back; each term claims the target once and goes on where the other stopped."""
    async with (
        assembled(source.dsn, target.dsn) as first, running(first),
        assembled(source.dsn, target.dsn) as second,
    ):  # fmt: skip
        await first.leading()
        async with running(second):
            leader, other = first, second

            def led(term: int) -> bool:
                return term in (first.relay.status.epoch, second.relay.status.epoch)

            for term in (1, 2, 3):
                write(app, term)
                await until(lambda: same(app, mirror))
                assert leader.relay.status.epoch == term
                await standing_by(other)
                end_connection(app, leader)
                # Whoever is quicker: the one that stood by, or the one that was cut off and came back.
                await until(partial(led, term + 1))
                leader, other = (first, second) if first.relay.status.epoch == term + 1 else (second, first)
                await leader.leading()
        assert first.door.modes.count("claim") + second.door.modes.count("claim") == 4


@pytest.mark.usefixtures("tables")
async def test_a_source_that_is_down_is_a_problem_and_no_standby(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """While nobody can connect the relay is paused and says why; once it can again it leads and says nothing."""
    with psycopg.connect(source.cluster.dsn(), autocommit=True) as server:
        async with assembled(source.dsn, target.dsn, timing=QUICK) as parts, running(parts):
            await until(lambda: parts.relay.status.state == "streaming")
            write(app, 1)
            server.execute(f"alter database {source.name} allow_connections false")
            server.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and application_name like 'outboxd%%'",
                (source.name,),
            )
            status = parts.relay.status
            await until(lambda: status.problem and "no connection to the source" in status.problem)
            assert (status.state, status.problem_kind) == ("paused", "source")
            assert "standby" not in parts.seen.states[1:]
            assert parts.led[-1] == (False, False)
            server.execute(f"alter database {source.name} allow_connections true")
            write(app, 2)
            await until(lambda: same(app, mirror) and status.state == "streaming")
            assert (status.problem, status.problem_kind) == (None, None)
            assert parts.led[-1] == (True, True)


async def test_a_server_in_recovery_is_not_led_until_it_is_promoted(run_folder, target: Database) -> None:
    """A standby server says in one sentence that it is none to read from; promoted, it is led without anybody's help."""
    with (
        Cluster.create(run_folder / "recovers", settings=SETTINGS) as cluster,
        clone(source_template(cluster)) as source,
    ):
        install(source, target)
        cluster.stop()
        (cluster.data / "standby.signal").touch()
        cluster.start()
        async with assembled(source.dsn, target.dsn, timing=QUICK) as parts, running(parts):
            status = parts.relay.status
            await until(lambda: status.problem)
            assert (status.state, status.problem, parts.keeper.leads) == ("paused", STANDBY, False)
            assert parts.door.modes == []
            with psycopg.connect(source.superuser_dsn, autocommit=True) as server:
                server.execute("select pg_promote()")
            await until(lambda: status.state == "streaming")
            with source.connect() as app, target.connect() as mirror:
                write(app, 1)
                await until(lambda: same(app, mirror))
