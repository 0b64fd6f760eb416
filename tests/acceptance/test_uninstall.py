"""`outboxd uninstall`: nothing of outboxd is left in either catalogue, nothing of the user's is gone, and nobody waited."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest

from daemon.demo.cluster import Cluster
from daemon.demo.supabase import prepare
from daemon.demo.writer import Writer
from outbox.migrations import Side
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import STORIES, Pair, Start, streaming, wait_until
from tests.databases import Database

SIDES: list[Side] = ["source", "target"]

# All that could be left: by name, so that what is dropped and made again counts as the same.
_CATALOGUE = """
select 'schema', nspname, nspacl::text from pg_namespace
union all
select 'relation', oid::regclass::text, concat_ws(' ', relkind, relacl, relrowsecurity, relreplident) from pg_class
union all
select 'column', attrelid::regclass || '.' || attname, concat_ws(' ', atttypid::regtype, attacl, attnotnull) from pg_attribute
 where attrelid in (select oid from pg_class where relnamespace = 'public'::regnamespace)
union all
select 'function', oid::regprocedure::text, concat_ws(' ', proacl, md5(prosrc)) from pg_proc
union all
select 'trigger', tgrelid::regclass || '.' || tgname, tgenabled::text from pg_trigger
union all
select 'type', oid::regtype::text, typacl::text from pg_type
union all
select 'constraint', conrelid::regclass || '.' || conname, contype::text from pg_constraint
union all
select 'role', rolname, concat_ws(' ', rolcanlogin, rolconfig) from pg_roles
union all
select 'member', roleid::regrole::text, member::regrole::text from pg_auth_members
union all
select 'event trigger', evtname, evtevent from pg_event_trigger
union all
select 'default acl', defaclrole::regrole || ' ' || defaclnamespace::regnamespace, defaclacl::text from pg_default_acl
union all
select 'publication', pubname, tablename from pg_publication_tables
union all
select 'setting', setrole::regrole::text, setconfig::text from pg_db_role_setting where setdatabase = (select oid from pg_database where datname = current_database())
union all
select 'comment', classoid::regclass || ' ' || objoid, description from pg_description where objoid >= 16384
order by 1, 2, 3
"""
_QUEUED = """
select exists (select from pg_locks l join pg_database d on d.oid = l.database
                where d.datname = current_database() and not l.granted and l.mode = 'AccessExclusiveLock')
"""
_TABLES = """
create table "Story" (id int primary key, title text);
create table part (id int, day date, primary key (id, day)) partition by range (day);
create table part_1 partition of part for values from ('2026-01-01') to ('2027-01-01');
create table plain (id int primary key, "Email" text);
comment on table plain is 'mine';
"""


def catalogue(dsn: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(_CATALOGUE).fetchall()


@contextmanager
def empty(cluster: Cluster, name: str) -> Iterator[Database]:
    """A database of an owner who may do nothing else."""
    owner = f"{name}_owner"
    cluster.execute(
        psycopg.sql.SQL("create role {} login nosuperuser nocreatedb").format(psycopg.sql.Identifier(owner))
    )
    cluster.create_database(name, owner=owner)
    try:
        yield Database(cluster, name, owner)
    finally:
        cluster.drop_database(name)
        cluster.execute(psycopg.sql.SQL("drop role {}").format(psycopg.sql.Identifier(owner)))


@pytest.fixture
def stores(source_cluster: Cluster, target_cluster: Cluster) -> Iterator[tuple[Database, Database]]:
    """Two databases with the same tables, which have never heard of outboxd; the target with Supabase's roles."""
    with empty(source_cluster, "leaving_source") as source, ExitStack() as stack:
        target = Database(target_cluster, "leaving_target", "supabase_owner")
        target_cluster.create_database(target.name)
        stack.callback(target_cluster.drop_database, target.name)
        prepare(target_cluster, target.name)
        for each in (source, target):
            with each.connect() as conn:
                conn.execute(_TABLES)
                conn.execute("insert into plain values (1, 'a')")
        with target.connect() as conn:
            conn.execute("alter table plain add origin text")
        yield source, target


def settled(source: Database, target: Database) -> Cli:
    """Set up, watched in every way there is, written to, moved."""
    outboxd = Cli({"source_dsn": source.dsn, "transport": "postgres", "target_dsn": target.dsn})
    for step in (
        ["setup", "source"], ["setup", "target"], ["watch", "Story", "--where", "id > 0"], ["watch", "part"],
        ["watch", "plain", "--mask", "Email=hash", "--constant", "origin=main"],
    ):  # fmt: skip
        said = outboxd(*step)
        assert said.code == 0, said.err
    with source.connect() as conn:
        conn.execute("""insert into "Story" values (1, 'a'); insert into part values (1, '2026-05-01')""")
    moved = outboxd("run", "--until-idle", admin="false")
    assert moved.code == 0, moved.err
    with target.connect() as conn:
        assert conn.execute('select (select count(*) from "Story"), (select count(*) from part)').fetchone() == (1, 1)
    return outboxd


def rows_of(database: Database) -> list[tuple[Any, ...]]:
    with database.connect() as conn:
        return conn.execute("""select t::text from "Story" t union all select t::text from part t
            union all select t::text from plain t order by 1""").fetchall()


@pytest.mark.parametrize("way", ["command", "script"])
def test_nothing_of_outboxd_is_left(stores: tuple[Database, Database], way: str) -> None:
    """Both catalogues are to the last entry what they were before setup, by the role that set up; the rows stay."""
    source, target = stores
    before = [catalogue(each.dsn) for each in stores]
    outboxd = settled(source, target)
    assert all(then != catalogue(each.dsn) for then, each in zip(before, stores, strict=True)), "set up"
    kept = [rows_of(each) for each in stores]
    for side, database in zip(SIDES, stores, strict=True):
        if way == "command":
            said = outboxd("uninstall", side, "--yes")
            assert (said.code, said.err.splitlines()[-1]) == (0, f"{side}: outboxd is gone")
        else:
            script = outboxd("uninstall", side, "--print").out
            for _ in range(2):
                with database.connect() as conn:
                    conn.execute(script.encode())
        again = outboxd("uninstall", side)
        assert (again.code, again.err) == (0, f"{side}: nothing of outboxd is there\n")
    for then, database in zip(before, stores, strict=True):
        now = catalogue(database.dsn)
        assert [entry for entry in now if entry not in then] == [], "left behind"
        assert [entry for entry in then if entry not in now] == [], "gone, and was not outboxd's"
    assert [rows_of(each) for each in stores] == kept
    assert [outboxd("setup", side).code for side in SIDES] == [0, 0], "it can come back"


@pytest.mark.parametrize(
    ("side", "dropped"),
    [
        ("target", "drop schema outboxd cascade"),
        ("target", "drop table outboxd.cursor, outboxd.mirror cascade"),
        ("target", "drop table outboxd.migration"),
        ("source", "drop table outbox.watched, outbox.held, outbox.change cascade"),
        ("source", "drop table outbox.migration"),
    ],
    ids=["all but the exposed function", "tables", "the version", "the source's tables", "the source's version"],
)
def test_what_somebody_has_left_of_half_an_uninstall_goes_as_well(
    stores: tuple[Database, Database], side: Side, dropped: str
) -> None:
    """A schema or a function that was forgotten is something of outboxd, and is named by no table any more."""
    database = stores[SIDES.index(side)]
    before = catalogue(database.dsn)
    outboxd = settled(*stores)
    with database.connect() as conn:
        conn.execute(dropped.encode())
    said = outboxd("uninstall", side)
    assert (said.code, said.err.splitlines()[-1]) == (
        2,
        "error: nothing was done: say --yes to do this without being asked",
    )
    said = outboxd("uninstall", side, "--yes")
    assert (said.code, said.err.splitlines()[-1]) == (0, f"{side}: outboxd is gone")
    assert catalogue(database.dsn) == before
    assert outboxd("uninstall", side).err == f"{side}: nothing of outboxd is there\n"


def test_a_function_of_the_users_that_is_called_outboxd_is_no_remnant(stores: tuple[Database, Database]) -> None:
    """What counts is what it calls."""
    _, target = stores
    with target.connect() as conn:
        conn.execute("create function public.outboxd(text) returns text language sql as 'select $1'")
    outboxd = Cli({"source_dsn": target.dsn, "transport": "postgres", "target_dsn": target.dsn})
    for side in SIDES:
        said = outboxd("uninstall", side, "--yes")
        assert (said.code, said.err) == (0, f"{side}: nothing of outboxd is there\n")
    assert [entry for entry in catalogue(target.dsn) if entry[1] == "outboxd(text)"], "it stays"


def test_what_would_be_lost_is_named_and_nothing_goes_unasked(direct: Pair) -> None:
    """Waiting changes, dead letters, tables; without a terminal and --yes nothing happens."""
    outboxd = Cli(direct.settings)
    direct.write(STORIES, 3)
    direct.write(
        "insert into outbox.held (id, xid, table_name, op, key, created_at, reason)"
        " select id, xid, table_name, op, key, created_at, 'refused' from outbox.change limit 1"
    )
    before = catalogue(direct.source.dsn), catalogue(direct.target.dsn)
    for side, told in (
        ("source", ["4 table(s) are captured no more", "lost: 3 change(s) that the target may not have", "lost: 1 dead letter(s)",
                    "outbox.emit will fail"]),
        ("target", ["4 table(s) are written no more"]),
    ):  # fmt: skip
        said = outboxd("uninstall", side)
        assert said.code == 2
        assert [line for line in told if line not in said.err] == []
        assert said.err.endswith("error: nothing was done: say --yes to do this without being asked\n")
    assert (catalogue(direct.source.dsn), catalogue(direct.target.dsn)) == before


@pytest.mark.parametrize(
    ("side", "mine", "named", "away"),
    [
        ("source", "create table outbox.mine (id int)", "table outbox.mine", "drop table outbox.mine"),
        ("source", "create view public.seen as select id from outbox.change", "view seen", "drop view public.seen"),
        ("target", "create table outboxd.mine (id int)", "table outboxd.mine", "drop table outboxd.mine"),
        ("target", "create view public.seen as select relay from outboxd.cursor", "view seen", "drop view public.seen"),
    ],
    ids=["table", "view", "target's table", "target's view"],
)
def test_what_is_the_users_stays_and_is_named(direct: Pair, side: Side, mine: str, named: str, away: str) -> None:
    """No CASCADE: whatever hangs on outboxd's schemas keeps them standing until somebody decides."""
    database = direct.source if side == "source" else direct.target
    outboxd = Cli(direct.settings)
    with database.connect() as conn:
        conn.execute(mine.encode())
        refused = outboxd("uninstall", side, "--yes")
        assert refused.code == 1
        assert "what is not outboxd's is in the way, and stays" in refused.err
        assert named in refused.err
        conn.execute(away.encode())
    assert outboxd("uninstall", side, "--yes").err.endswith(f"{side}: outboxd is gone\n")


class Steady(Writer):
    """The example application, which notes how long its slowest transaction took."""

    slowest = 0.0

    def step(self, conn: psycopg.Connection[Any]) -> None:
        began = time.monotonic()
        super().step(conn)
        self.slowest = max(self.slowest, time.monotonic() - began)


def test_writers_go_on_while_a_lock_is_waited_for_and_after(direct: Pair) -> None:
    """Somebody holds a table for long: the uninstall steps back again and again, and nobody queues behind it."""
    writers = [Steady(direct.source.dsn, 50.0, seed=n) for n in range(3)]
    with direct.source.connect(autocommit=False) as holder, ThreadPoolExecutor(1) as pool:
        holder.execute('lock table "VideoAsset" in row exclusive mode')
        for writer in writers:
            writer.start()
        try:
            wait_until(lambda: all(writer.committed > 20 for writer in writers))
            leaving = pool.submit(Cli(direct.settings), "uninstall", "source", "--yes")
            for waits in (True, False, True, False, True):  # in the queue for the lock, and away again
                wait_until(lambda waits=waits: direct.ask(direct.source, _QUEUED) == [(waits,)], 60)  # type: ignore[misc]
            behind = [writer.committed for writer in writers]
            wait_until(
                lambda: all(writer.committed > was + 20 for writer, was in zip(writers, behind, strict=True)), 60
            )
            assert not leaving.done()
            holder.rollback()
            said = leaving.result(60)
            after = [writer.committed for writer in writers]
            wait_until(lambda: all(writer.committed > was + 20 for writer, was in zip(writers, after, strict=True)), 60)
        finally:
            holder.rollback()
            for writer in writers:
                writer.stop()
    assert (said.code, said.err.splitlines()[-1]) == (0, "source: outboxd is gone")
    assert [writer.failure for writer in writers] == [None] * 3
    assert max(writer.slowest for writer in writers) < 5.0  # seconds, of a machine that does other things
    assert direct.ask(direct.source, "select to_regnamespace('outbox')") == [(None,)]


@pytest.mark.parametrize(
    ("side", "sentence"),
    [
        ("source", "schema outbox is not installed on the source: run `outboxd setup source`"),
        ("target", "function outboxd is not on the target, or one that it calls: run `outboxd setup target`"),
    ],
)
def test_a_running_daemon_says_what_happened(direct: Pair, start: Start, side: Side, sentence: str) -> None:
    """Paused with a sentence, ready no more, ever longer waits; the uninstall says that one is at work."""
    outboxd = streaming(start(direct.settings))
    direct.write(STORIES, 3)
    direct.arrives()

    def paused() -> bool:
        assert outboxd.returncode is None, outboxd.last_words()
        status = outboxd.status() or {}
        return status.get("state") == "paused" and sentence in str(status["problem"])

    said = Cli(direct.settings)("uninstall", side, "--yes")
    assert ("an outboxd runs: it will pause" in said.err) is (side == "source")
    direct.write(STORIES, 3)
    wait_until(paused)
    assert outboxd.get("/readyz")[0] == 503
    failed: list[float] = []

    def thrice() -> bool:
        lines = [line for line in outboxd.said() if line["event"] == "turn_failed"]
        failed.extend(time.monotonic() for _ in lines)
        return len(failed) >= 3

    outboxd.said()
    wait_until(thrice, 60)
    assert failed[-1] - failed[0] > 2.0, "it asks again and again at once"
    assert outboxd.stop() == 0


def test_the_daemons_role_goes_when_asked(direct: Pair) -> None:
    """And not where it still has rights in another database: the sentence names it."""
    outboxd = Cli(direct.settings)
    assert outboxd("setup", "source", "--role").code == 0
    with direct.source.connect() as conn:
        assert outboxd("uninstall", "source", "--yes", "--role").err.endswith("role outboxd: gone\n")
        assert conn.execute("select from pg_roles where rolname = 'outboxd'").fetchall() == []
        assert outboxd("uninstall", "source", "--role").err.endswith("role outboxd: there is none\n")
        assert outboxd("setup", "source", "--role").code == 0
        conn.execute('grant select on "Story" to outboxd')
        refused = outboxd("uninstall", "source", "--yes", "--role")
        assert refused.code == 1
        assert "role outboxd still has rights or objects elsewhere (privileges for table" in refused.err
        conn.execute('revoke select on "Story" from outboxd')
        assert outboxd("uninstall", "source", "--role").code == 0


def test_a_role_that_this_user_may_not_drop_stays_and_so_does_all_else(direct: Pair) -> None:
    """The owner of the schema is no administrator of roles: that is said before anything goes."""
    assert Cli(direct.settings)("setup", "source", "--role").code == 0
    with direct.source.connect() as conn:
        conn.execute("create role plain_leaver login")
        try:
            conn.execute("grant usage on schema outbox to plain_leaver")
            plain = {**direct.settings, "source_dsn": direct.source.cluster.dsn(direct.source.name, "plain_leaver")}
            said = Cli(plain)("uninstall", "source", "--yes", "--role")
            assert said.code == 1
            assert "nothing was done: plain_leaver may not drop role outboxd: run this without --role" in said.err
            assert conn.execute("select to_regclass('outbox.change') is not null").fetchone() == (True,)
        finally:
            conn.execute("drop owned by plain_leaver; drop role plain_leaver; drop owned by outboxd; drop role outboxd")
