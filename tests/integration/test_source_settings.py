"""What an operator set for roles and databases, and locks that others hold: the relay works, or says what is in the way."""

from collections.abc import Iterator

import pytest

from daemon.connection import connect
from daemon.progress import Timing
from tests.databases import Database
from tests.relaying import Connection, assembled, running, same, until

pytestmark = pytest.mark.usefixtures("tables")

# Each alone would stop a reader that took what it was given.
HOSTILE = {
    "statement_timeout": "1ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "idle_session_timeout": "1ms",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
}
POLL = Timing(poll=0.2)


@pytest.fixture
def limited(source: Database, app: Connection) -> Iterator[Database]:
    """The source as a role sees it that is limited in every way; the database's own settings are no kinder."""
    role = f"limited_{source.name}"
    app.execute(f"create role {role} superuser login".encode())
    for name, value in HOSTILE.items():
        app.execute(f"alter role {role} set {name} = '{value}'".encode())
    yield Database(source.cluster, source.name, role)
    app.execute(f"drop role {role}".encode())


async def test_what_a_role_was_given_does_not_reach_our_connections(
    limited: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """Timeouts, isolation, read-only: reading, flushing, sleeping and waking go on as if they were not there."""
    async with assembled(limited.dsn, target.dsn, timing=POLL) as relay, running(relay):
        await relay.leading()
        app.execute("insert into item select i, 0 from generate_series(1, 5000) i")
        await until(lambda: same(app, mirror), 20)
        app.execute("set synchronous_commit = off")
        app.execute("insert into item values (0, 0)")  # makes the relay write: a flush
        await until(lambda: same(app, mirror))
        for new in range(3):
            await relay.asleep()
            app.execute("update item set n = n + 1 where id = %s", (new,))
            await until(lambda: same(app, mirror))
        assert relay.bell.rings > 0
        assert relay.seen.failures == []
        assert relay.relay.status.problem is None


async def test_the_addresss_own_options_still_hold(source: Database) -> None:
    """Whoever writes options into the address means this daemon."""
    link = await connect(f"{source.dsn}?options=-c%20statement_timeout%3D3s&connect_timeout=7", "test")
    async with link:
        assert await (await link.execute("show statement_timeout")).fetchone() == ("3s",)
        assert await (await link.execute("show client_connection_check_interval")).fetchone() == ("5s",)


async def test_a_dump_that_reads_the_outbox_holds_up_nobody(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """ACCESS SHARE for as long as pg_dump takes, in its kind of transaction: writers and relay do not notice."""
    async with assembled(source.dsn, target.dsn, timing=POLL) as relay, running(relay):
        await relay.leading()
        with source.connect(autocommit=False) as dump:
            dump.execute("set transaction isolation level repeatable read, read only")
            dump.execute("lock table outbox.change, outbox.shape, outbox.watched in access share mode")
            dump.execute("select count(*) from outbox.change")
            for new in range(3):
                app.execute("insert into item values (%s, 0)", (new,))
                await until(lambda: same(app, mirror))
        assert relay.seen.failures == []


@pytest.mark.slow
async def test_a_lock_on_the_outbox_is_waited_for_and_named(
    source: Database, target: Database, app: Connection, mirror: Connection
) -> None:
    """ACCESS EXCLUSIVE for longer than we wait: the status says that a lock is held; then everything arrives."""
    async with assembled(source.dsn, target.dsn, timing=POLL) as relay, running(relay):
        await relay.leading()
        await relay.asleep()
        with source.connect(autocommit=False) as holder:
            holder.execute("insert into item values (1, 1)")
            holder.execute("lock table outbox.change in access exclusive mode")
            app.execute("select pg_current_xact_id()")  # something happened: the relay reads
            status = relay.relay.status
            await until(lambda: status.problem and "holds a lock on the outbox" in status.problem, 30)
            assert len(relay.seen.failures) <= 3
            holder.commit()
        await until(lambda: same(app, mirror), 30)
        await until(lambda: status.problem is None)
