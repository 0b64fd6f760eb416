"""Names that need quoting, names made to break out of quotes, names that are almost the same: each is its own table."""

import pytest
from psycopg import sql

from tests.fidelity.stores import Stores

NAMES = [
    "there", "select", "user", "table", "order", "t", "x", "k", "r", "g", "excluded", "taken", "known", "outbox", "outboxd", "public", "pg_catalog",
    "Mixed Case", " ", "  two spaces ", 'quo"ted', '"', '""', "o'clock", "''", "back\\slash", "\\", "dollar$$dollar", "$body$", "%s", "%1$I %L %%",
    "dotted.name", ".", "a,b", "(a)", "[]", "{}", "::int", ";", "--", "/*", "; drop table pwned; --", "'); drop table pwned; --", '"); drop table pwned; --',
    "$1", ":colon", "@at", "#", "?", "\x1e", "\x1f\x01", "line\nbreak", "tab\t", "\r", "ünï-ço∂é ✓", "😀", "\u2028", "\ufeff", "null", "true", "1", "-1",
    "n" * 63, "n" * 62 + "m", "é" * 31, "😀" * 15 + "abc",  # 63 bytes and one apart
    "paypal", "pаypal", "e\u0301", "é", "ﬁ", "fi", "K", "\u212a", "İ", "i̇", "\u202etxt", "ROW", "row", "Row",  # alike to the eye
]  # fmt: skip


@pytest.fixture(scope="module")
def named(rest: Stores) -> Stores:
    """For each name a schema, table, key, type, label and constraint of that name."""
    rest.both("create table pwned (id int)")
    for number, name in enumerate(NAMES):
        # A table's name is its row type's too, so the enum lives elsewhere.
        parts = {"s": schema_of(name), "h": name, "t": f"types {number}", "u": f"u {name[:12]}"}
        for conn in (rest.here, rest.there):
            conn.execute(
                sql.SQL(
                    "create schema if not exists {s}; create schema {t}; create type {t}.{h} as enum ({label}, 'other'); "
                    "create table {s}.{h} ({h} int primary key, kind {t}.{h}, many {t}.{h}[], u int, v text, constraint {u} unique (u) deferrable)"
                ).format(label=sql.Literal(name), **{key: sql.Identifier(part) for key, part in parts.items()})
            )
    rest.mirror(table_of(rest, name) for name in NAMES)
    return rest


def schema_of(name: str) -> str:
    """The system's own prefix is not for everybody."""
    return f"s {name}" if name.startswith("pg_") or name in ("public", "outbox", "outboxd") else name


def table_of(made: Stores, name: str) -> str:
    return sql.Identifier(schema_of(name), name).as_string(made.here)


def test_any_name_travels_and_none_is_run(named: Stores) -> None:
    """Each of schema, table, key, type and label: inserted, rotated through gear 2, given other keys, deleted, truncated."""
    tables = [table_of(named, name) for name in NAMES]

    def everywhere(statement: str) -> int:
        with named.here.transaction():
            for name, table in zip(NAMES, tables, strict=True):
                column = sql.Identifier(name).as_string(named.here)
                label = sql.Literal(name).as_string(named.here)
                named.here.execute(
                    sql.SQL(statement.replace("<t>", table).replace("<k>", column).replace("<l>", label))
                )
        named.carry()
        found = 0
        for name, table in zip(NAMES, tables, strict=True):
            found += named.assert_equal([table], order=sql.Identifier(name).as_string(named.here))
        return found

    rows = everywhere("insert into <t> (<k>, kind, u, v) select i, <l>, i, <l> from generate_series(1, 3) i")
    assert rows == 3 * len(NAMES)
    everywhere("update <t> set many = array[kind, 'other', null], u = u % 3 + 1")
    everywhere("update <t> set <k> = <k> + 10, kind = 'other' where <k> = 2")
    everywhere("delete from <t> where <k> = 1")
    assert named.there.execute("select count(*) from pwned").fetchone() == (0,)
    assert everywhere("truncate <t>") == 0


def test_names_that_are_almost_the_same_are_not_mixed_up(named: Stores) -> None:
    """A row of its own in each: 63 bytes that differ in the last, composed and decomposed letters, look-alikes."""
    for number, name in enumerate(NAMES):
        query = sql.SQL("insert into {} ({}, v) values ({}, {})")
        table, key = sql.Identifier(schema_of(name), name), sql.Identifier(name)
        named.here.execute(query.format(table, key, sql.Literal(number), sql.Literal(f"only {number}")))
    named.carry()
    for number, name in enumerate(NAMES):
        table = sql.Identifier(schema_of(name), name)
        found = named.there.execute(sql.SQL("select v from {}").format(table)).fetchall()
        assert found == [(f"only {number}",)], name


def test_any_name_is_compared(named: Stores) -> None:
    """One row missing, one different, one extra in each table: found under their names, and repaired."""
    tables = [table_of(named, name) for name in NAMES]
    with named.here.transaction():
        for name, table in zip(NAMES, tables, strict=True):
            key = sql.Identifier(name).as_string(named.here)
            named.here.execute(
                f"delete from {table}; insert into {table} ({key}, v) select n, n from generate_series(1, 9) n".encode()
            )
    named.carry()
    for name, table in zip(NAMES, tables, strict=True):
        key = sql.Identifier(name).as_string(named.here)
        named.there.execute(f"delete from {table} where {key} = 1".encode())
        named.there.execute(f"update {table} set v = 'x' where {key} = 2".encode())
        named.there.execute(f"insert into {table} ({key}) values (100)".encode())
    with named.here.transaction():
        for table in tables:
            named.here.execute("select outbox.ask_verification(%s, true)", (table,))
    named.carry()
    found = named.verifications().values()
    assert {(one.state, one.rows, one.drift, one.repaired) for one in found} == {("done", 9, 0, 3)}
    for name, table in zip(NAMES, tables, strict=True):
        named.assert_equal([table], order=sql.Identifier(name).as_string(named.here))
