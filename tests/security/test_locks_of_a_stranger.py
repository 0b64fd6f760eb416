"""A role that may connect to the source, and nothing else, takes locks of outboxd's, names itself a daemon, and notifies.

It stops nobody from leading, pruning, watching or reading, and is named. Out of reach: whoever has the daemon's own role, or
the owner's, and whoever uses up what all sessions of a server share (its table of locks, its queue of notifications).
"""

import asyncio
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from structlog.testing import capture_logs

from daemon.demo.cluster import Cluster
from daemon.errors import SchemaUnfit, SourceUnavailable
from daemon.install import retried, setup
from daemon.leaders import Company, Stranger
from daemon.main import NAME
from daemon.prune import Pruner
from daemon.schema_apply import apply
from daemon.survey import strangers
from daemon.wakeup import Bell
from outbox import Cursor
from outbox.migrations import step
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import Pair, Start, streaming, wait_until
from tests.captured import Connection, listen, value, watch
from tests.databases import SETTINGS, Database, clone, source_template
from tests.pairs import Pair as Plain
from tests.pairs import reading
from tests.relaying import assembled, install, running, same, until
from tests.security.tenants import Tenants

KEY = "select key from outbox.leadership"
WAITS = "select count(*) = 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query ~ 'outbox.lead'"
EVERY_LEADER = (
    "select count(*) from pg_locks where locktype = 'advisory' and classid = 1869968483 and granted and mode = 'ExclusiveLock'"
    " and database = (select oid from pg_database where datname = current_database())"
)


def made(database: Database, name: str) -> Connection:
    """A session of a new role that may connect and nothing more."""
    with psycopg.connect(database.superuser_dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("create role {} login").format(sql.Identifier(name)))
    return psycopg.connect(database.cluster.dsn(database.name, name), autocommit=True)


@pytest.fixture
def stranger(source: Database) -> Iterator[Connection]:
    role = f"stranger_{source.name}"
    with closing(made(source, role)) as conn:
        yield conn
    source.cluster.execute(f"drop role {role}")


def pid(conn: Connection) -> int:
    return conn.info.backend_pid


def of(conn: Connection) -> str:
    """As it is told of."""
    return f"pid {pid(conn)} (role {conn.info.user}, without a name)"


# -- who leads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["pg_advisory_lock", "pg_advisory_lock_shared"])
async def test_who_holds_the_leaders_lock_is_left_behind_and_named_once(
    source: Database, target: Database, stranger: Connection, how: str
) -> None:
    """The lock gets another number, which the daemon has before anybody can read it."""
    install(source, target)
    with source.connect() as app, target.connect() as mirror:
        known = value(app, KEY)
        stranger.execute(f"select {how}(1869968483, {known})")
        async with assembled(source.dsn, target.dsn) as parts, running(parts):
            app.execute("insert into item values (1, 1)")
            await until(lambda: same(app, mirror) and parts.keeper.leads)
            assert value(app, KEY) != known
        [told] = [line for line in parts.log if line["event"] == "leadership_contested"]
        assert told["held_by"] == of(stranger)
        assert f"select pg_terminate_backend({pid(stranger)})" in told["advice"]


def test_daemons_lead_while_a_stranger_queues_and_calls_itself_one(
    direct: Pair, start: Start, stranger: Connection
) -> None:
    """It gets the lock when the leader is killed. While the next one cannot change its number, that one is not ready and says
    why, as `check` and the verdict do; then it leads, and neither the stranger nor what it calls itself is taken for a daemon."""
    first = streaming(start(direct.settings))
    second = start(direct.settings)
    wait_until(lambda: (second.status() or {}).get("state") == "standby")
    role = stranger.info.user
    forged = psycopg.connect(
        direct.source.cluster.dsn(direct.source.name, role), application_name=f"{NAME} bell evil 1"
    )
    with closing(forged), direct.source.connect() as holder:
        known = value(holder, KEY)
        queue = threading.Thread(target=stranger.execute, args=(f"select pg_advisory_lock(1869968483, {known})",))
        queue.start()
        wait_until(lambda: value(holder, "select count(*) from pg_locks where pid = %s and not granted", pid(stranger)))
        with holder.transaction():
            holder.execute("select from outbox.leadership for update")
            first.send(signal.SIGKILL)
            queue.join(30)
            wait_until(lambda: second.get("/readyz")[0] == 503)
            why = json.loads(second.get("/readyz")[1])["problem"]
            ends = f"{of(stranger)} holds the leader's lock and may not lead: `select pg_terminate_backend({pid(stranger)})`"
            assert why == f"{ends} on the source"
            assert ends in (second.status() or {})["verdict"]
            asked = Cli(direct.settings)
            assert ends in asked("status", "--json").json()["verdict"]
            found = {item["name"]: item for item in asked("check", "--json").json()}
            assert found["locks"]["level"] == "FAIL"
            assert found["locks"]["fix"] == f"select pg_terminate_backend({pid(stranger)});"
        streaming(second)
        direct.write('delete from "Story"')
        direct.arrives()
        told = asked("status", "--json").json()
        assert told["leader"]["who"].endswith(f":{second.pid}")
        assert told["standbys"] == told["disabled"] == []
        assert told["strangers"] == [
            {"what": f"{of(stranger)} holds a lock of outboxd's that nobody needs: nothing comes of it",
             "remedy": f"select pg_terminate_backend({pid(stranger)})"}
        ]  # fmt: skip
        found = {item["name"]: item for item in asked("check", "--json").json()}
        assert found["locks"]["level"] == "WARN"
        assert second.get("/readyz")[0] == 200
        assert second.log.read_text().count('"leadership_contested"') == 1
        assert second.log.read_text().count('"lock_held_by_stranger"') == 1


async def test_who_took_a_number_that_is_changed_lets_go(source: Database) -> None:
    """It has the lock and waits for the row, in which another one writes the next number."""
    bell = Bell(source.dsn)
    await bell.connect()
    with source.connect() as row, source.connect() as look:
        with row.transaction():
            row.execute("select from outbox.leadership for update")
            trying = asyncio.create_task(bell.try_lead())
            await until(lambda: value(look, WAITS))
            row.execute("update outbox.leadership set key = key # 1")
        assert not await trying
        assert value(row, EVERY_LEADER) == 0
        assert await bell.try_lead()
    await bell.close()


async def test_a_daemon_that_has_come_since_is_no_stranger(source: Database, stranger: Connection) -> None:
    """Who changes the number looks again when it has the row: the stranger may be gone, and a daemon lead by then."""
    bell = Bell(source.dsn)
    await bell.connect()
    with source.connect() as row, source.connect() as look:
        known = value(row, KEY)
        stranger.execute(f"select pg_advisory_lock(1869968483, {known})")
        with row.transaction():
            row.execute("select from outbox.leadership for update")
            trying = asyncio.create_task(bell.try_lead())
            await until(lambda: value(look, WAITS))
            stranger.execute("select pg_advisory_unlock_all()")
            late = source.connect()
            assert value(late, f"select pg_try_advisory_lock(1869968483, {known})")
        with closing(late):
            assert not await trying
            assert (value(row, KEY), value(row, EVERY_LEADER)) == (known, 1)
    await bell.close()


async def test_a_prepared_transaction_that_holds_it_is_left_behind(run_folder: Path) -> None:
    """It has no session: what ends it is named all the same."""
    settings = SETTINGS | {"max_prepared_transactions": "2"}
    with (
        Cluster.create(run_folder / "prepared-lock", settings=settings) as cluster,
        clone(source_template(cluster)) as source,
        source.connect() as app,
        closing(made(source, "preparer")) as conn,
    ):
        conn.execute(
            f"begin; select pg_advisory_xact_lock(1869968483, {value(app, KEY)}), pg_advisory_xact_lock(1869968482, 1); prepare transaction 'it''s'"
        )
        bell, told = Bell(source.dsn), list[Stranger]()
        await bell.connect()
        assert await bell.try_lead(told.append)
        assert told == [Stranger("lead", "prepared transaction 'it''s' (role preparer)", "rollback prepared 'it''s'")]
        assert not await bell.try_arm()
        async with reading(source) as reader:
            assert [one.what for one in await strangers(reader)] == ["ring"]
        app.execute(told[0].remedy)
        assert await bell.try_arm()
        await bell.close()


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [("right", "may not lead: permission denied for table leadership"), ("read-only", "takes no writes (25006)")],
)
async def test_where_nobody_can_be_elected_it_says_so(
    source: Database, target: Database, spoilt: str, why: str
) -> None:
    """Paused, so /readyz is 503, with the cause; never "standing by"."""
    install(source, target)
    with psycopg.connect(source.superuser_dsn, autocommit=True) as conn:
        conn.execute(step("source", "role"))
        conn.execute("revoke update on outbox.leadership from outboxd")
        dsn = {
            "right": source.cluster.dsn(source.name, "outboxd"),
            "read-only": f"{source.dsn}?options=-c%20default_transaction_read_only%3Don",
        }
        async with assembled(dsn[spoilt], target.dsn) as parts, running(parts):
            await until(lambda: parts.relay.status.problem)
            assert parts.relay.status.state == "paused"
            assert why in (parts.relay.status.problem or "")
            assert "standby" not in parts.seen.states[1:]
        conn.execute("drop owned by outboxd; drop role outboxd")


async def test_whose_number_is_another_one_leads_no_longer(source: Database) -> None:
    """Schema outbox was taken away and made anew, say: whoever leads by the old number notices with its next ping."""
    bell = Bell(source.dsn)
    await bell.connect()
    assert await bell.try_lead()
    await bell.ping()
    with source.connect() as conn:
        conn.execute("update outbox.leadership set key = key # 1")
    with pytest.raises(SourceUnavailable, match="another number"):
        await bell.ping()
    assert not bell.connected


async def test_who_cannot_lead_is_seen_to_stand_aside_whatever_a_stranger_holds(
    source: Database, stranger: Connection
) -> None:
    """The lock that says so has a number that nobody guesses; a stranger that has one is no daemon."""
    stranger.execute("select pg_advisory_lock(1869968484, 0); set application_name = 'outboxd/9 bell evil 1'")
    bell = Bell(source.dsn, session_name="outboxd/9 bell a 1")
    await bell.connect()
    async with reading(source) as reader:
        for aside in (True, False, True):
            await bell.stand_aside(aside)
            company = Company()
            company.learn(await reader.ask("leaders"))
            shown = [one["who"] for one in (company.disabled if aside else company.standbys)]
            assert (shown, len(company.disabled) + len(company.standbys)) == (["a:1"], 1)
    await bell.close()


# -- the bell --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "what"), [("_shared", "wake"), ("", "ring")])
async def test_who_holds_the_bells_lock_delays_nothing_and_is_named(
    source: Database, target: Database, stranger: Connection, how: str, what: str
) -> None:
    """Without a timer: shared, the relay polls, 50 times a second; exclusive, every commit notifies as well."""
    install(source, target)
    with source.connect() as app, target.connect() as mirror, source.connect() as listener:
        stranger.execute(f"select pg_advisory_lock{how}(1869968482, 1)")
        listen(listener)
        async with assembled(source.dsn, target.dsn) as parts, running(parts):
            await parts.leading()
            slowest = 0.0
            for new in range(5):
                await until(lambda: parts.bell.refusals > 3)
                parts.bell.refusals = 0
                began = time.monotonic()
                app.execute("insert into item values (%s, 0)", (new,))
                await until(lambda: same(app, mirror))
                slowest = max(slowest, time.monotonic() - began)
            assert parts.bell.naps == 0
        print(f"the slowest of five: {1000 * slowest:.0f} ms")
        assert slowest < 1.0
        assert bool(list(listener.notifies(timeout=0))) == (what == "ring")
        async with reading(source) as reader:
            [one] = await strangers(reader)
        assert (one.what, one.who, one.remedy) == (what, of(stranger), f"select pg_terminate_backend({pid(stranger)})")


async def test_a_transaction_id_makes_no_writer_of_a_stranger(source: Database, stranger: Connection) -> None:
    """Any role gets one: pg_current_xact_id() is everybody's. A writer has written to something of outboxd's as well."""
    with source.connect() as app:
        app.execute("create table item (id int primary key, n int)")
        watch(app, "item")
        with stranger.transaction():
            stranger.execute("select pg_current_xact_id(), pg_advisory_xact_lock_shared(1869968482, 1)")
            async with reading(source) as reader:
                [one] = await strangers(reader)
            assert (one.what, one.who) == ("wake", of(stranger))


async def test_a_writer_is_no_stranger_though_it_holds_the_bells_lock(source: Database, stranger: Connection) -> None:
    """An application's role with an open transaction, and a daemon that leads and sleeps."""
    bell = Bell(source.dsn)
    with source.connect() as app:
        app.execute("create table item (id int primary key, n int)")
        app.execute(f"grant all on item to {stranger.info.user}")
        watch(app, "item")
        await bell.connect()
        assert await bell.try_lead()
        with stranger.transaction():
            stranger.execute("insert into item values (1, 1)")
            assert (
                value(app, "select count(*) from pg_locks where pid = %s and locktype = 'advisory'", pid(stranger)) == 1
            )
            async with reading(source) as reader:
                assert await strangers(reader) == []
        assert await bell.try_arm()
        async with reading(source) as reader:
            assert await strangers(reader) == []
        app.execute(f"drop owned by {stranger.info.user}")
    await bell.close()


async def test_a_flood_of_notifications_does_not_reach_the_daemon(
    source: Database, target: Database, stranger: Connection
) -> None:
    """It listens where nobody else can know. Measured on 2 cores, the daemon under 270 000 notifications a second: 2.7 % of a
    core, 2.3 % without; on a channel that all know it took 20 %, moved nothing, and lost the lead."""
    install(source, target)
    with source.connect() as app, target.connect() as mirror:
        async with assembled(source.dsn, target.dsn) as parts, running(parts):
            await parts.asleep()
            for channel in ("outbox", "outboxd", "outbox_"):
                stranger.execute("select count(pg_notify(%s, i::text)) from generate_series(1, 20000) i", (channel,))
            app.execute("insert into item values (1, 1)")
            await until(lambda: same(app, mirror))
            assert parts.bell.rings == 1
            bells = stranger.execute(
                "select query from pg_stat_activity where application_name = 'outboxd bell'"
            ).fetchall()
            assert set(bells) == {("<insufficient privilege>",)}
    for attempt in ("select channel from outbox.leadership", "select outbox.knock()", "select outbox.ring()"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            stranger.execute(attempt)


# -- prune, watch, setup -----------------------------------------------------------------------------------------


def test_no_advisory_lock_stops_watch_prune_or_setup(source: Database, stranger: Connection) -> None:
    """Who takes turns there does it by relations that a stranger has no right to."""
    stranger.execute(f"select {', '.join(f'pg_advisory_lock(1869968482, {n})' for n in (0, 3, 4))}")
    with source.connect() as app:
        app.execute("create table item (id int primary key, n int); set lock_timeout = '200ms'")
        watch(app, "item")
        app.execute("insert into item values (1, 1)")
        assert app.execute("select locked, rotated from outbox.prune(1, '0')").fetchone() == (False, True)
        assert app.execute("select emptied, locked from outbox.prune(1, '0')").fetchone() == (0, False)
        app.execute("select outbox.unwatch('item')")
    assert setup(source.dsn, "source", exposed_schema="public", role=False) == []
    for relation in ("turn", "pruned", "migration", "leadership"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), stranger.transaction():
            stranger.execute(f"lock table outbox.{relation} in access share mode")


def test_watch_says_whom_it_waits_for(source: Database) -> None:
    """In SQL and by the command: whoever watches at the same time, and who has a lock on the table."""
    with source.connect() as app, source.connect(autocommit=False) as busy:
        app.execute("create table item (id int primary key, n int); create table other (id int primary key)")
        watch(busy, "other")
        app.execute("set lock_timeout = '100ms'")
        with pytest.raises(
            psycopg.errors.LockNotAvailable, match=rf"somebody else is watching.*pid {pid(busy)} \(role"
        ):
            watch(app, "item")
        busy.rollback()
        busy.execute("insert into item values (1, 1)")
        ends = rf"public.item is locked by long transactions, pid {pid(busy)} \(role .*pg_terminate_backend\({pid(busy)}\) ends it"
        with pytest.raises(SourceUnavailable, match=ends):
            retried(app, lambda: watch(app, "item"), about="public.item", patience=0)


async def test_prune_says_who_keeps_it_and_obeys_no_name(source: Database) -> None:
    """A reader whose role's name would clear a terminal; and another prune."""
    evil = f"dump\x1b[2J{source.name}"
    with source.connect() as app, closing(made(source, evil)) as dump, source.connect(autocommit=False) as other:
        app.execute("create table item (id int primary key, n int)")
        watch(app, "item")
        app.execute("insert into item values (1, 1); select outbox.prune(1, '0')")
        granted = sql.SQL("grant usage on schema outbox to {0}; grant select on outbox.change_0 to {0}")
        app.execute(granted.format(sql.Identifier(evil)))
        async with reading(source) as reader:
            cursor = (await reader.read(Cursor.beginning())).cursor
            with dump.transaction(), capture_logs() as log:
                dump.execute("lock table outbox.change_0 in access share mode")
                await Pruner(0, clock=lambda: 0.0).turn(reader, cursor.floor_id)
                in_sql = value(app, "select outbox.held_by('outbox.change_0')")
            known = f"pid {pid(dump)} (role {evil.replace(chr(27), '?')}, without a name)"
            assert [(line["event"], line["held_by"]) for line in log] == [("prune_skipped", known)]
            assert in_sql == known
            other.execute("select outbox.prune(0, '1 day')")
            pruned = await reader.prune(cursor.floor_id, 0)
            assert (pruned.emptied, pruned.locked) == (None, False)
            assert (pruned.holder or "").startswith(f"pid {pid(other)} (role ")
            other.rollback()
            assert (await reader.prune(cursor.floor_id, 0)).emptied == 0
        app.execute(sql.SQL("drop owned by {}").format(sql.Identifier(evil)))
    with psycopg.connect(source.superuser_dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("drop role {}").format(sql.Identifier(evil)))


# -- the target --------------------------------------------------------------------------------------------------


async def test_a_lower_role_of_the_target_stops_no_batch_and_is_named_by_apply(pair: Plain) -> None:
    """It holds the lock of a writer that is to be made: statements are composed instead. That of `schema apply` it can hold."""
    pair.create("create table item (id int primary key, n int)", "item")
    pair.write("insert into item values (1, 1)")
    await pair.drain()
    role = f"lower_{pair.target.name}"
    with closing(made(pair.target, role)) as lower, pair.target.connect() as owner:
        writer = value(owner, "select proname from pg_proc where proname like 'write\\_%'")
        lower.execute("select pg_advisory_lock(1869968482, hashtext(%s)), pg_advisory_lock(1869968482, 4)", (writer,))
        owner.execute(f"drop function outboxd.{writer}(json)")
        pair.write("insert into item values (2, 2)")
        await pair.drain()
        pair.assert_equal("item")
        assert value(owner, "select count(*) from pg_proc where proname = %s", writer) == 0
        ends = (
            rf"pid {pid(lower)} \(role {role}, .* may not apply anything: select pg_terminate_backend\({pid(lower)}\)"
        )
        with pytest.raises(SchemaUnfit, match=ends):
            apply(pair.source.dsn, pair.target.dsn, {}, patience=0.1)
    pair.target.cluster.execute(f"drop role {role}")


def test_a_lock_on_a_new_partition_keeps_nobody_elses_copy(tenants: Tenants, source: Database) -> None:
    """Who: an owner of one watched partitioned table. Steps: attach a partition with rows, commit; `lock table p_2 in access exclusive
    mode` in a transaction that stays open. came_filled asks pg_relation_size, which waits for that lock, and outbox.notice goes through
    all tables in one statement: it hangs, is cut off, and hangs again. Gain: a neighbour's rows that were given a column with a default (any
    migration) are not noticed and differ on the target, with /readyz 200 and no line in the log, as long as he likes.
    Right: as outbox.tree has it, who looks at all tables waits for none: lock_timeout, and that table left for the next look."""
    tenants.tenant.execute("create table p (id int primary key) partition by range (id)")
    tenants.tenant.execute("create table p_1 partition of p for values from (0) to (100); select outbox.watch('p')")
    tenants.mirror.execute("create table p (id int primary key); select outboxd.map('p'); alter table item add k int")
    tenants.run()
    with source.connect(autocommit=False) as holder:
        holder.execute("create table p_2 (id int primary key); insert into p_2 values (150)")
        holder.execute("alter table p attach partition p_2 for values from (100) to (200)")
        holder.commit()
        holder.execute("lock table p_2 in access exclusive mode")
        tenants.tenant.execute("alter table item add k int not null default 7")
        wait_until(lambda: tenants.there("select count(*) from item where k is null") == [(0,)], 20)
