"""`alter default privileges … grant … to app` before setup, and grants by hand after it: nobody has what nobody meant."""

from collections.abc import Iterator

import psycopg
import pytest

from daemon.check import Item, check
from daemon.install import setup
from tests.captured import Connection, ops, rows, value, watch
from tests.databases import Database
from tests.security.test_privileges import OPEN_FUNCTIONS, OPEN_RELATIONS, OPEN_SCHEMA

KINDS = ("schemas", "tables", "sequences", "functions", "types")

# Whatever anybody but the owner was given, of all that has rights, columns included.
GIVEN = """
select c.oid::regclass::text, a.grantee::regrole::text, a.privilege_type
  from pg_class c cross join lateral aclexplode(c.relacl) a where c.relnamespace = 'outbox'::regnamespace and a.grantee <> c.relowner
union all
select c.oid::regclass || '.' || t.attname, a.grantee::regrole::text, a.privilege_type
  from pg_class c join pg_attribute t on t.attrelid = c.oid cross join lateral aclexplode(t.attacl) a where c.relnamespace = 'outbox'::regnamespace
union all
select p.proname, a.grantee::regrole::text, a.privilege_type
  from pg_proc p cross join lateral aclexplode(p.proacl) a where p.pronamespace = 'outbox'::regnamespace and a.grantee <> p.proowner
union all
select n.nspname, a.grantee::regrole::text, a.privilege_type
  from pg_namespace n cross join lateral aclexplode(n.nspacl) a where n.nspname = 'outbox' and a.grantee <> n.nspowner
"""


@pytest.fixture
def generous(source: Database, watcher: Connection) -> Iterator[str]:
    """A database whose owner gives all that is made to a role, and to everybody; outboxd is not there yet. Its name."""
    role = f"app_{source.name}"
    watcher.execute(f"drop schema outbox cascade; create role {role} login")
    for kind in KINDS:
        watcher.execute(f"alter default privileges grant all on {kind} to {role} with grant option".encode())
        if kind in ("tables", "sequences"):
            watcher.execute(f"alter default privileges grant all on {kind} to public".encode())
    yield role
    watcher.execute(
        "drop owned by outboxd" if rows(watcher, "select from pg_roles where rolname = 'outboxd'") else "select"
    )
    watcher.execute(f"drop owned by {role}; drop role {role}; drop role if exists outboxd".encode())


def given_to(watcher: Connection, role: str) -> list[tuple[object, ...]]:
    return [one for one in rows(watcher, GIVEN) if one[1] in (role, "-")]


async def grants(source: Database) -> list[Item]:
    return [item for item in await check(source.dsn, None) if item.name == "grants"]


async def test_what_is_made_by_default_opens_nothing(source: Database, watcher: Connection, generous: str) -> None:
    """By setup, and by each watch afterwards: tables, sequences, functions, the schema; to a role, and to everybody."""
    setup(source.dsn, "source", exposed_schema="public", role=False)
    assert given_to(watcher, generous) == []
    for query in (OPEN_FUNCTIONS, OPEN_RELATIONS, OPEN_SCHEMA):
        assert watcher.execute(query.encode(), ("outbox",)).fetchall() == [], query
    watcher.execute(
        "create table t (id int primary key, a text, mail text); create table p (id int primary key) partition by range (id)"
    )
    watch(watcher, "t", filter="a <> ''", mask='{"mail": "hash"}')
    watch(watcher, "t", filter="a <> 'x'")
    watch(watcher, "p")
    assert given_to(watcher, generous) == []
    assert await grants(source) == []
    with psycopg.connect(source.cluster.dsn(source.name, generous), autocommit=True) as app:
        app.execute("insert into t values (1, 'a', 'm')")
        for statement in (
            "select key from outbox.mask_key", "select * from outbox.change", "truncate outbox.change_0",
            "insert into outbox.change (table_name, op, key) values ('public.t', 'delete', '{\"id\":1}')",
            "select outbox.emit('public.t', 'delete', '{\"id\":1}')", "select outbox.copy_1('rows', null, 1, 1, 1)", "select outbox.prune(1, '0 s')",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                app.execute(statement)
    assert ops(watcher) == ["upsert"]


async def test_what_is_given_by_hand_is_named_and_taken_back(source: Database, watcher: Connection) -> None:
    """By what `check` says, pasted; or by setup, run again. A column, everybody, and rights that were handed on are no exception."""
    role, friend = f"app_{source.name}", f"friend_{source.name}"
    watcher.execute("create table t (id int primary key)")
    watch(watcher, "t")
    watcher.execute(f"create role {role} login; create role {friend}")
    for mend in ("pasted", "setup"):
        watcher.execute(f"""
            grant create, usage on schema outbox to {role}; grant select on outbox.change to {role} with grant option; grant select (key) on outbox.mask_key to {role};
            grant select on outbox.held to public; grant usage on sequence outbox.slot to {role};
            grant execute on function outbox.ask_copy(text, boolean, boolean), outbox.capture_1() to {role}; grant usage on schema outbox to public;
            set role {role}; grant select on outbox.change to {friend}; reset role""")
        named = await grants(source)
        assert {item.level for item in named} == {"FAIL"}
        said = " ".join(item.what for item in named)
        for what in (
            role,
            friend,
            "public",
            "outbox.mask_key",
            "outbox.change",
            "outbox.held",
            "outbox.slot",
            "outbox.ask_copy",
            "schema outbox",
        ):
            assert what in said, what
        if mend == "pasted":
            for item in named:
                watcher.execute(item.fix.encode())
        else:
            setup(source.dsn, "source", exposed_schema="public", role=False)
        assert given_to(watcher, role) == given_to(watcher, friend) == []
        assert await grants(source) == []
    watcher.execute(f"drop role {role}; drop role {friend}")


async def test_what_was_meant_stays(source: Database, watcher: Connection) -> None:
    """Who may emit, who watches, who owns a watched table, and the daemon's role: setup again leaves them what they need."""
    emits, watches, owns = (f"{name}_{source.name}" for name in ("emits", "watches", "owns"))
    watcher.execute(f"""
        create role {emits} login; grant usage on schema outbox to {emits}; grant execute on function outbox.emit to {emits};
        create role {watches} login; grant usage, create on schema public, outbox to {watches}; grant select, insert, update on all tables in schema outbox to {watches};
        grant usage on all sequences in schema outbox to {watches}; grant execute on all functions in schema outbox to {watches};
        create role {owns} login; grant usage, create on schema public to {owns}; grant usage on schema outbox to {owns};
        set role {owns}; create table p (id int primary key) partition by range (id); reset role""")
    watch(watcher, "p")
    with psycopg.connect(source.cluster.dsn(source.name, watches), autocommit=True) as second:
        second.execute("create table t (id int primary key)")
        watch(second, "t")
    setup(source.dsn, "source", exposed_schema="public", role=True)
    watcher.execute("grant insert, truncate on outbox.change to outboxd; grant select on outbox.mask_key to outboxd")
    assert [(item.what.split()[0], "outbox.mask_key" in item.what) for item in await grants(source)] == [
        ("outboxd", True)
    ]
    setup(source.dsn, "source", exposed_schema="public", role=False)
    assert await grants(source) == []
    assert not value(
        watcher,
        "select has_table_privilege('outboxd', 'outbox.change', 'insert') or has_table_privilege('outboxd', 'outbox.mask_key', 'select')",
    )
    assert value(watcher, "select has_table_privilege('outboxd', 'outbox.change', 'select')")
    with psycopg.connect(source.cluster.dsn(source.name, emits), autocommit=True) as app:
        app.execute("""select outbox.emit('public.t', 'delete', '{"id": 1}')""")
    with psycopg.connect(source.cluster.dsn(source.name, owns), autocommit=True) as app:
        app.execute("create table p_1 partition of p for values from (0) to (9); insert into p values (1)")
    with psycopg.connect(source.cluster.dsn(source.name, watches), autocommit=True) as app:
        app.execute("insert into t values (1)")
        watch(app, "t")
    assert ops(watcher) == ["delete", "upsert", "upsert"]
    watcher.execute(
        f"drop owned by outboxd, {emits}, {watches}, {owns} cascade; drop role outboxd, {emits}, {watches}, {owns}"
    )


def test_a_watcher_is_who_watches_and_needs_no_key_of_hash(source: Database, watcher: Connection) -> None:
    """Given the key, a watcher is named; who made a function of a capture's name, for no table that is captured, is none."""
    role = f"second_{source.name}"
    watcher.execute(f"create role {role} login; grant usage, create on schema public, outbox to {role}")
    watcher.execute(
        f"grant all on all tables in schema outbox to {role}; grant all on all sequences in schema outbox to {role}"
    )
    watcher.execute(f"grant execute on all functions in schema outbox to {role}")
    named = f"select object from outbox.foreign_grants() where grantee = '{role}'".encode()
    try:
        with psycopg.connect(source.cluster.dsn(source.name, role), autocommit=True) as second:
            second.execute(
                "create function outbox.capture_77() returns trigger language plpgsql as 'begin return null; end'"
            )
            assert ("outbox.held",) in watcher.execute(named).fetchall()
            second.execute("create table t (id int primary key)")
            watch(second, "t")
            for open_ in (
                "outbox.mask_key",
                "outbox.held",
                "outbox.change",
                "outbox.watched",
            ):  # the last for its trigger alone
                assert (open_,) in watcher.execute(named).fetchall()
            assert watcher.execute(f"select rights from outbox.foreign_grants() where grantee = '{role}' and object = 'outbox.shape'".encode()).fetchone() in (
                (["maintain", "references", "trigger", "truncate"],), (["references", "trigger", "truncate"],)
            )  # fmt: skip
            setup(source.dsn, "source", exposed_schema="public", role=False)
            assert watcher.execute(named).fetchall() == []
            watch(second, "t")
    finally:
        watcher.execute(f"drop owned by {role} cascade; drop role {role}".encode())


ALL_OF_OUTBOX = """
grant usage, create on schema public, outbox to {0}; grant all on all tables in schema outbox to {0};
grant all on all sequences in schema outbox to {0}; grant execute on all functions in schema outbox to {0}
"""


@pytest.mark.parametrize(
    ("meanwhile", "watches"),
    [
        ("alter role {0} rename to {0}_then; create role {0}", "{0}_then"),
        ("drop owned by {0}; drop role {0}; create role {0}; create role {0}_then", None),
        # As after a dump and restore: its number is another's there.
        ("create role {0}_then; update outbox.watched set watcher_system = '1', watcher = '{0}_then'::regrole", "{0}"),
    ],
    ids=["renamed, and another made", "dropped, and another made", "in another cluster"],
)
def test_a_watcher_is_the_role_and_not_whoever_has_its_name(
    source: Database, watcher: Connection, meanwhile: str, watches: str | None
) -> None:
    """Of a table that the application emits, for which nothing is made that would belong to the watcher."""
    role = f"second_{source.name}"
    other = f"{role}_then"
    watcher.execute(f"create role {role} login; {ALL_OF_OUTBOX.format(role)}".encode())
    try:
        with psycopg.connect(source.cluster.dsn(source.name, role), autocommit=True) as second:
            second.execute("create table t (id int primary key)")
            watch(second, "t", capture=False)
        watcher.execute(meanwhile.format(role).encode())
        watcher.execute(f"{ALL_OF_OUTBOX.format(role)}; {ALL_OF_OUTBOX.format(other)}".encode())
        given = rows(
            watcher,
            "select grantee from outbox.foreign_grants() where object = 'outbox.change' and 'insert' = any (rights) order by 1",
        )
        named = watches and watches.format(role)
        assert given == [(one,) for one in (role, other) if one != named]
    finally:
        watcher.execute(f"drop owned by {role}, {other} cascade; drop role {role}, {other}".encode())
