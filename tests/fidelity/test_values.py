"""Every value of every type arrives as it was: through capture, daemon, PostgREST and door, from any session.

One table a type, with a column of it and one of its arrays. What a session is set to must not show in what is
carried, and what the target's role is set to must not show in what is written.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg import sql

from tests.fidelity.kinds import KINDS, TYPES, WITHOUT_VALUES, Kind, array, arrays
from tests.fidelity.stores import Connection, Stores

MAY_BE_MISSING = {"xml", "extensions.hstore", "extensions.citext", "extensions.ltree", "extensions.cube"}

# What a writer's session may be set to. `hostile` holds namesakes of what capture uses.
SESSIONS = {
    "as it comes": "",
    "German": "set datestyle = 'German, DMY'; set timezone = 'Asia/Kathmandu'; set intervalstyle = 'sql_standard'",
    "Postgres": "set datestyle = 'Postgres, MDY'; set timezone = 'America/St_Johns'; set intervalstyle = 'postgres_verbose'",
    "SQL": "set datestyle = 'SQL, DMY'; set timezone = 'America/Argentina/Buenos_Aires'; set intervalstyle = 'iso_8601'",
    "few digits": "set extra_float_digits = -15; set bytea_output = 'escape'; set lc_monetary = 'C.UTF-8'",
    "no extra digits": "set extra_float_digits = 0; set array_nulls = off; set transform_null_equals = on",
    "quoting": "set quote_all_identifiers = on; set standard_conforming_strings = off; set backslash_quote = on; "
    "set escape_string_warning = off",
    "namesakes": "set search_path = hostile, pg_temp, pg_catalog; create temp table pg_attribute (x int); create temp table t (x int)",
    "replica": "set session_replication_role = replica; set row_security = off; set xmloption = document; "
    "set default_toast_compression = 'pglz'",
}  # fmt: skip

NAMESAKES = """
create schema hostile;
create domain hostile.text as pg_catalog.int4; create domain hostile.json as pg_catalog.bytea; create domain hostile.regclass as pg_catalog.text;
create function hostile.row_to_json(anyelement) returns pg_catalog.json language sql as $$ select '{}'::pg_catalog.json $$;
create function hostile.concat(anyelement) returns pg_catalog.text language sql as $$ select 'broken'::pg_catalog.text $$;
create function hostile.concat(anynonarray) returns pg_catalog.text language sql as $$ select 'broken'::pg_catalog.text $$;
create function hostile.trim_scale(pg_catalog.numeric) returns pg_catalog.numeric language sql as $$ select 0::pg_catalog.numeric $$;
create function hostile.age(pg_catalog.xid) returns pg_catalog.int4 language sql as $$ select 1 $$;
create function hostile.never(pg_catalog.int4, pg_catalog.int4) returns pg_catalog.bool language sql as 'select false';
create operator hostile.= (leftarg = pg_catalog.int4, rightarg = pg_catalog.int4, function = hostile.never);
create operator hostile.<= (leftarg = pg_catalog.int4, rightarg = pg_catalog.int4, function = hostile.never);
"""

# What somebody may have set for the target's role: the door must not be misled by it.
TARGET_SETTINGS = {
    "datestyle": "German", "intervalstyle": "sql_standard", "timezone": "Asia/Kathmandu", "extra_float_digits": "-15",
    "bytea_output": "escape", "xmloption": "document", "array_nulls": "off", "lc_monetary": "C.UTF-8",
    "quote_all_identifiers": "on", "standard_conforming_strings": "off", "transform_null_equals": "on",
    "search_path": "hostile, pg_catalog",
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """The stores, and the types that this server has."""

    stores: Stores
    kinds: Sequence[Kind]
    comparable: dict[str, list[str]]

    @property
    def tables(self) -> list[str]:
        return [kind.table for kind in self.kinds]

    def assert_same(self, tables: Sequence[str]) -> int:
        """Byte by byte as text, and by IS NOT DISTINCT FROM where the type has an equality."""
        rows = self.stores.assert_equal([f"public.{table}" for table in tables])
        for table in tables:
            if self.comparable[table]:
                assert self.stores.distinct(table, self.comparable[table]) == [], table
        return rows


def world_of(made: Stores) -> World:
    """Types and tables on both sides, all odd values in schema stock, nothing written yet."""
    extensions = installed_extensions(made)
    made.both(TYPES.format(extensions=extensions))
    kinds = [kind for kind in KINDS if known(made.here, kind)]
    with made.here.transaction(), made.there.transaction():
        fill(made, kinds)
    made.mirror(f"public.{kind.table}" for kind in kinds)
    return World(made, kinds, {kind.table: columns_with_equality(made.here, kind) for kind in kinds})


def fill(made: Stores, kinds: Sequence[Kind]) -> None:
    for kind in kinds:
        columns = f"v {kind.name}{kind.modifier}, a {kind.name}{kind.modifier}[]"
        made.both(f"create table public.{kind.table} (id int primary key, {columns})")
    made.here.execute("create schema stock; create schema back;" + NAMESAKES)
    for kind in kinds:
        for schema in ("stock", "back"):
            made.here.execute(f"create table {schema}.{kind.table} (like public.{kind.table})")
        for number, text in enumerate(kind.values):
            stock(made, kind, number, text, array([text, None], [1, 2], [0, -1], kind.delimiter))
        stock(made, kind, len(kind.values), None, "{}")
        stock(
            made,
            kind,
            len(kind.values) + 1,
            None,
            array([None, *kind.values], [len(kind.values) + 1], [7], kind.delimiter),
        )


def stock(made: Stores, kind: Kind, number: int, value: str | None, many: str | None) -> None:
    """Keep one row for later: how a value is written is the test's affair, not that of the session under test."""
    made.here.execute(f"insert into stock.{kind.table} values (%s, %s, %s)".encode(), (number, value, many))


def installed_extensions(made: Stores) -> str:
    wanted = [kind.name.partition(".")[2] for kind in KINDS if kind.extension]
    found = made.here.execute("select name from pg_available_extensions where name = any (%s)", (wanted,)).fetchall()
    return "".join(f"create extension {name} schema extensions;" for (name,) in found)


def known(conn: Connection, kind: Kind) -> bool:
    """Does this server have the type? Not every build has contrib or libxml."""
    try:
        with conn.transaction():
            conn.execute(f"select %s::{kind.name}".encode(), (kind.values[0],))
    except (psycopg.errors.UndefinedObject, psycopg.errors.InvalidSchemaName, psycopg.errors.FeatureNotSupported):
        assert kind.name in MAY_BE_MISSING, kind.name
        return False
    return True


def columns_with_equality(conn: Connection, kind: Kind) -> list[str]:
    """Those that `is distinct from` works on: the others are compared as text alone."""
    found = []
    for column in ("v", "a"):
        try:
            with conn.transaction():
                query = f"select distinct {column}, {column} is distinct from {column} from stock.{kind.table}"
                conn.execute(query.encode())
            found.append(column)
        except psycopg.errors.UndefinedFunction:
            continue
    return found


@pytest.fixture(scope="module")
def world(rest: Stores) -> World:
    """Over PostgREST."""
    return world_of(rest)


@pytest.fixture(scope="module")
def direct_world(direct: Stores) -> World:
    """Over a direct connection."""
    return world_of(direct)


@pytest.fixture
def writer(world: World) -> Iterator[Connection]:
    with world.stores.source.connect(autocommit=False) as conn:
        yield conn


def test_every_built_in_type_is_tried(world: World) -> None:
    """What a new version of Postgres brings must be tried here, or named with the reason why not."""
    found = world.stores.here.execute("""
        select t.oid::regtype::text, t.typname from pg_type t join pg_namespace n on n.oid = t.typnamespace
         where n.nspname = 'pg_catalog' and t.typtype in ('b', 'd', 'e', 'r', 'm') and t.typcategory <> 'A'
        union select t.oid::regtype::text, t.typname from pg_type t where t.oid in ('int2vector'::regtype, 'oidvector'::regtype)
    """).fetchall()  # array types are tried with their elements', row types of the catalogue as composites
    tried = {name for kind in KINDS for name in (kind.name, spelled(world.stores.here, kind.name))}
    forgotten = {title for title, name in found if not {title, name} & (tried | WITHOUT_VALUES.keys())}
    assert len(found) > 70
    assert forgotten == set()


def test_what_has_no_values_takes_none(world: World) -> None:
    """The reasons of the list hold: no column can be given such a value."""
    for name in WITHOUT_VALUES:
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            world.stores.here.execute(f"select ''::{name}".encode())


def spelled(conn: Connection, name: str) -> str:
    row = conn.execute("select to_regtype(%s)::text", (name,)).fetchone()
    return str(row[0]) if row else name


@pytest.mark.parametrize("session", SESSIONS)
def test_odd_values_from_any_session(world: World, writer: Connection, session: str) -> None:
    """All of them in one transaction: inserted, then each given another row's values, half deleted, all truncated."""
    writer.execute(SESSIONS[session].encode())
    for table in world.tables:
        writer.execute(f"insert into public.{table} select * from stock.{table}".encode())
    writer.commit()
    world.stores.carry()
    assert world.assert_same(world.tables) > 3 * len(world.tables)
    for table in world.tables:
        rotated = f"(select s.{{0}} from stock.{table} s where s.id operator(pg_catalog.>) t.id order by s.id limit 1)"
        writer.execute(f"update public.{table} t set v = {rotated.format('v')}, a = {rotated.format('a')}".encode())
        writer.execute(
            f"delete from public.{table} where id operator(pg_catalog.%) 3 operator(pg_catalog.=) 1".encode()
        )
    writer.commit()
    world.stores.carry()
    world.assert_same(world.tables)
    writer.execute(("truncate " + ", ".join(f"public.{table}" for table in world.tables)).encode())
    writer.commit()
    world.stores.carry()
    assert world.assert_same(world.tables) == 0


def test_odd_values_into_a_project_with_its_own_ideas(direct_world: World) -> None:
    """By the other transport, into a database whose settings are all against it: none reaches what is written."""
    made, tables = direct_world.stores, direct_world.tables
    for setting, value in TARGET_SETTINGS.items():
        change = sql.SQL("alter database {} set {} = {}").format(
            sql.Identifier(made.target.name), sql.Identifier(setting), sql.SQL(value) if "," in value else sql.Literal(value)
        )  # fmt: skip
        made.there.execute(change)
    made.reconnect()
    for table in tables:
        made.here.execute(f"insert into public.{table} select * from stock.{table}".encode())
    made.carry()
    assert direct_world.assert_same(tables) > 3 * len(tables)


# The same values, compared by verification


def passed(made: Stores, tables: Sequence[str], *, repair: bool) -> dict[str, tuple[str, int, int, int]]:
    """What a pass through each table has come to: its state, rows, drift and repaired rows."""
    with made.here.transaction():
        for table in tables:
            made.here.execute("select outbox.ask_verification(%s, %s)", (f"public.{table}", repair))
    made.carry()
    records = made.verifications()
    return {
        table: (one.state, one.rows, one.drift, one.repaired)
        for table, one in ((table, records[f"public.{table}"]) for table in tables)
    }


@pytest.fixture
def emptied(request: pytest.FixtureRequest) -> Iterator[Callable[[str], World]]:
    """The stores by a transport; no rows are left for the tests that follow."""
    used: list[World] = []

    def one(transport: str) -> World:
        used.append(request.getfixturevalue(transport))
        return used[-1]

    yield one
    for world in used:
        with world.stores.here.transaction():
            for table in world.tables:
                world.stores.here.execute(f"delete from public.{table}".encode())
        world.stores.carry()


@pytest.mark.parametrize("transport", ["world", "direct_world"])
def test_values_are_equal_until_one_is_changed(emptied: Callable[[str], World], transport: str) -> None:
    """Digests of every type are equal on both sides, whatever the target's role is set to; one value that is spelled
    otherwise is one difference in each table, and is repaired."""
    world = emptied(transport)
    made, tables = world.stores, world.tables
    with made.here.transaction():
        for table in tables:
            made.here.execute(f"insert into public.{table} select * from stock.{table} on conflict do nothing".encode())
    made.carry()
    world.assert_same(tables)
    rows = {
        table: made.here.execute(f"select count(*) from public.{table}".encode()).fetchall()[0][0] for table in tables
    }
    assert passed(made, tables, repair=False) == {table: ("done", rows[table], 0, 0) for table in tables}
    assert made.compared_as_rows() == set()
    if transport == "direct_world":
        return
    for table in tables:
        other = f"select v from public.{table} s where s.v::text <> t.v::text order by id limit 1"
        made.there.execute(f"update public.{table} t set v = ({other}) where id = 0".encode())
        made.there.execute(
            f"update public.{table} t set a = null where id = 0 and a is not null and mod(length('{table}'), 2) = 1".encode()
        )
    assert passed(made, tables, repair=True) == {table: ("done", rows[table], 0, 1) for table in tables}
    world.assert_same(tables)


# Random values

Written = list[tuple[int, str | None, str | None]]


def of_kind(kind: Kind) -> st.SearchStrategy[tuple[str | None, str | None]]:
    return st.tuples(st.one_of(st.none(), kind.texts), st.one_of(st.none(), arrays(kind)))


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[Kind, list[tuple[str | None, str | None]]]]:
    """Rows of a few tables."""
    random = [kind for kind in KINDS if kind.random is not None]
    chosen = draw(st.lists(st.sampled_from(random), min_size=4, max_size=10, unique_by=lambda kind: kind.table))
    return [(kind, draw(st.lists(of_kind(kind), min_size=1, max_size=4))) for kind in chosen]


@settings(
    max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture, HealthCheck.large_base_example],
)  # fmt: skip
@given(session=st.sampled_from(sorted(SESSIONS)), drawn=batches())
def test_random_values_from_any_session(
    world: World, session: str, drawn: list[tuple[Kind, list[tuple[str | None, str | None]]]]
) -> None:
    """Inserted, moved from row to row, deleted: after each batch both sides hold the same."""
    made = world.stores
    drawn = [(kind, rows) for kind, rows in drawn if kind in world.kinds]
    tables = [kind.table for kind, _ in drawn]
    with made.here.transaction():
        for kind, rows in drawn:
            for number, (value, many) in enumerate(rows):
                stock(made, kind, 1000 + number, value, many)
    with made.source.connect(autocommit=False) as conn:
        conn.execute(SESSIONS[session].encode())
        for table in tables:
            conn.execute(
                f"insert into public.{table} select * from stock.{table} where id operator(pg_catalog.>=) 1000".encode()
            )
        conn.commit()
        made.carry()
        assert world.assert_same(tables) == sum(len(rows) for _, rows in drawn)
        for table in tables:
            conn.execute(
                f"update public.{table} set id = id operator(pg_catalog.+) 1, a = null where id operator(pg_catalog.>) 1002".encode()
            )
            conn.execute(f"delete from public.{table} where id operator(pg_catalog.<) 1002".encode())
        conn.commit()
        made.carry()
        world.assert_same(tables)
        for table in tables:
            conn.execute(f"delete from public.{table}".encode())
            conn.execute(f"delete from stock.{table} where id operator(pg_catalog.>=) 1000".encode())
        conn.commit()
    made.carry()
    assert world.assert_same(tables) == 0
