"""Every value arrives as it was, to the last digit, whatever the target does with its own columns."""

from collections.abc import AsyncIterator

import pytest

from tests.databases import Database
from tests.mirrored import Mirrored, rows

Values = list[tuple[str, list[str]]]

TYPES = """
create schema if not exists extensions;
create type mood as enum ('ok', 'so "so"', 'bad, worse');
create type point3 as (x numeric, label text, at timestamptz);
create domain email as text check (value like '%@%');
create domain scores as int[] check (cardinality(value) < 9);
create domain place as point3;
"""


@pytest.fixture
async def mirrored(source: Database, target: Database) -> AsyncIterator[Mirrored]:
    both = Mirrored(source, target)
    yield both
    await both.close()


async def test_values_arrive_exactly(mirrored: Mirrored) -> None:
    """Each type with its odd values, inserted, updated and replaced: the texts are equal."""
    known = what_this_server_knows(mirrored.source)
    columns = ", ".join(f"v{number} {kind}" for number, (kind, _) in enumerate(known))
    extensions = "".join(
        f"create extension {kind.partition('.')[2]} schema extensions;" for kind, _ in known if "extensions." in kind
    )
    table = f"{TYPES}; {extensions} create table v (id int primary key, u int unique {{}}, {columns})"
    mirrored.both(table.format("deferrable"), table.format(""), watch=["public.v"])
    longest = max(len(values) for _, values in known)
    lines = [["null" if i >= len(values) else values[i] for _, values in known] for i in range(longest + 1)]
    filled = "insert into v values " + ", ".join(f"({i}, {i}, {', '.join(line)})" for i, line in enumerate(lines))
    assert await mirrored.carry(filled) == 1
    assert_equal(mirrored, known)
    assert await mirrored.carry("update v set u = -u") == 1
    assert_equal(mirrored, known)
    assert await mirrored.carry(f"update v set u = (u - 1) % {longest + 1}") == 2
    assert_equal(mirrored, known)


def assert_equal(mirrored: Mirrored, known: Values) -> None:
    for number, (kind, values) in enumerate(known):
        query = f"select id, u, v{number}::text from v order by id"
        found = rows(mirrored.target, query)
        assert found == rows(mirrored.source, query), kind
        assert sum(row[2] is not None for row in found) == len(values), kind


def what_this_server_knows(database: Database) -> Values:
    """Not every build has contrib or libxml."""
    extensions = [f"extensions.{name}" for (name,) in rows(database, "select name from pg_available_extensions")]
    ((configured,),) = rows(database, "select setting from pg_config() where name = 'CONFIGURE'")
    missing = [] if "--with-libxml" in configured else ["xml"]
    return [
        (kind, values)
        for kind, values in VALUES
        if kind not in missing and ("extensions." not in kind or kind in extensions)
    ]


VALUES: Values = [
    ("mood", ["'ok'", """'so "so"'""", "'bad, worse'"]),
    ("mood[]", ["""array['so "so"', 'bad, worse']::mood[]""", "array[null]::mood[]"]),
    ("email", ["'ada@example.org'"]),
    ("scores", ["'{1,2,null}'", "'[0:1]={7,8}'", "'{}'"]),
    ("point3", ["""row(1.50, 'a,"b"\\(', '2026-01-01 00:00+02')""", "row(null, null, null)", "row(null, '', null)"]),
    ("point3[]", ["array[row(1, 'x', null)]::point3[]"]),
    ("place", ["row(1.50, 'home', null)"]),
    ("jsonb", ["'null'", """'{"a": [1, 1.0, 1e400, null], "b": "\\u001e \\\\ é"}'""", "'[]'", "'\"\"'", "'0.10'"]),
    ("json", ["'null'", """'{"a":1,  "a":2, "n": 1.00}'""", "'  [ ]'"]),
    ("jsonb[]", ["""array['null', '{"a": 1}']::jsonb[]"""]),
    ("int[]", ["'{1,2}'", "'[2:3]={1,2}'", "'{{1,2},{3,null}}'", "'[-1:0][5:5]={{1},{2}}'", "'{}'"]),
    ("text[]", ["""'{"a,b","c\\"d","NULL",NULL,""}'""", "array[e'\\n\\t\\x1e']"]),
    ("int4range", ["'[1,5)'", "'empty'", "'(,)'"]),
    ("tstzrange", ["'[2026-01-01 00:00:00.000001+00, infinity)'"]),
    ("nummultirange", ["'{[1.0,2.50),(3,4]}'", "'{}'"]),
    ("bytea", [r"'\x'", r"'\x00ff5c1e'"]),
    (
        "numeric",
        ["'NaN'", "'Infinity'", "'-Infinity'", "1.00", "1e-30", "12345678901234567890123456789.0123456789", "-0.0"],
    ),
    ("numeric(12,6)", ["1.5", "-999999.999999"]),
    ("bigint", ["9223372036854775807", "-9223372036854775808"]),
    ("double precision", ["'NaN'", "'-Infinity'", "'-0'", "0.1", "5e-324", "1.7976931348623157e308"]),
    ("real", ["0.1", "3.4028235e38", "'NaN'"]),
    ("money", ["'-1234.56'"]),
    ("boolean", ["true", "false"]),
    (
        "text",
        [
            "''",
            "'null'",
            "'NULL'",
            "e'\\x01\\x1e\\x1f\\x7f\\u2028\\\\ \"'",
            "'😀 e\u0301'",
            "repeat('x', 100000)",
            "' a '",
        ],
    ),
    ("char(5)", ["'a'", "'a b  '"]),
    ("varchar(5)", ["'abcde'", "'a    '"]),
    (
        "timestamptz",
        [
            "'infinity'",
            "'-infinity'",
            "'2026-03-29 02:30:00.123456+02'",
            "'0044-03-15 12:00:00+00 BC'",
            "'99999-12-31 00:00+00'",
        ],
    ),
    ("timestamp(3)", ["'2026-03-29 02:30:00.999'", "'infinity'"]),
    ("date", ["'infinity'", "'4713-01-01 BC'", "'2026-02-28'"]),
    ("time", ["'24:00:00'", "'00:00:00.000001'"]),
    ("timetz", ["'23:59:59.5-07:30'"]),
    ("interval", ["'1 mon -1 days +02:03:04.5'", "'-1 year'", "'0'"]),
    ("uuid", ["'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"]),
    ("inet", ["'10.0.0.1/8'", "'::1'"]),
    ("cidr", ["'10.0.0.0/8'"]),
    ("macaddr", ["'08:00:2b:01:02:03'"]),
    ("bit(3)", ["B'101'"]),
    ("bit(3)[]", ["array[B'101', B'000']"]),
    ("varbit", ["B''", "B'1'"]),
    ("xml", ["'<a b=\"c\">&amp;</a>'"]),
    ("tsvector", ["'a:1A b'"]),
    ("point", ["'(0.1,-0)'"]),
    ("box", ["'(2,2),(1,1)'"]),
    ("oid", ["4294967295"]),
    ("pg_lsn", ["'16/B374D848'"]),
    ('"char"', ["'x'"]),
    ("extensions.hstore", ['\'"a"=>NULL, "b"=>"c,\\"d\\""\'']),
    ("extensions.citext", ["'Ada'"]),
]


async def test_a_record_separator_inside_a_key_or_value_divides_nothing(mirrored: Mirrored) -> None:
    """The byte between the document's records may stand in a row: JSON writes it as an escape."""
    mirrored.both("create table r (id text primary key, v text, doc json)", watch=["public.r"])
    await mirrored.carry("""insert into r values (e'a\\x1eb', e'\\x1e', '{"a": "\\u001e"}'), ('c', '[]', null)""")
    assert mirrored.equal("r")
    await mirrored.carry("delete from r where id <> 'c'")
    assert mirrored.equal("r")


# The target's own columns


async def test_generated_columns_are_left_to_the_target(mirrored: Mirrored) -> None:
    """A column that the target computes is not written; one that only the source computes is."""
    table = "create table g (id int primary key, v int, twice int {}, thrice int {}, u int unique {})"
    generated = "generated always as (v * {}) stored"
    mirrored.both(
        table.format(generated.format(2), generated.format(3), "deferrable"),
        table.format(generated.format(20), "", ""),
        watch=["public.g"],
    )
    await mirrored.carry("insert into g (id, v, u) values (1, 1, 1), (2, 2, 2)")
    assert rows(mirrored.target, "select * from g order by id") == [(1, 1, 20, 3, 1), (2, 2, 40, 6, 2)]
    assert await mirrored.carry("update g set v = v + 4, u = 3 - u") == 2
    assert rows(mirrored.target, "select * from g order by id") == [(1, 5, 100, 15, 2), (2, 6, 120, 18, 1)]


async def test_identity_always_columns_take_the_sources_numbers(mirrored: Mirrored) -> None:
    """As a key and beside one, inserted and updated, in gear 1 and 2."""
    table = "create table i (id bigint generated always as identity primary key, v text, u int unique {})"
    mirrored.both(table.format("deferrable"), table.format(""), watch=["public.i"])
    assert await mirrored.carry("insert into i (v, u) select 'row', g from generate_series(1, 3) g") == 1
    assert await mirrored.carry("update i set v = 'new' where id = 2") == 1
    assert await mirrored.carry("update i set u = u % 3 + 1") == 2
    assert mirrored.equal("i")


async def test_an_identity_always_column_beside_the_key_never_goes_stale(mirrored: Mirrored) -> None:
    """A row deleted and inserted again has another number: UPDATE could not write it, so the row is replaced."""
    mirrored.both(
        "create table i (id int primary key, seq int generated always as identity, v text)", watch=["public.i"]
    )
    await mirrored.carry("insert into i (id, v) values (1, 'a'), (2, 'b')")
    await mirrored.carry("delete from i where id = 1", "insert into i (id, v) values (1, 'c')")
    assert mirrored.equal("i")


async def test_a_column_only_the_target_has_keeps_its_default(mirrored: Mirrored) -> None:
    """New rows get the default; what somebody wrote there stays when the row is updated."""
    table = "create table e (id int primary key, v text"
    own = ", seen timestamptz default '2026-01-01Z', rank int not null default 5, note text)"
    mirrored.both(table + ")", table + own, watch=["public.e"])
    await mirrored.carry("insert into e values (1, 'a'), (2, 'b')")
    assert rows(mirrored.target, "select rank, seen is not null, note from e") == [(5, True, None)] * 2
    mirrored.on_target("update e set rank = 9, note = 'mine' where id = 1")
    await mirrored.carry("update e set v = 'z'")
    assert rows(mirrored.target, "select v, rank, note from e order by id") == [("z", 9, "mine"), ("z", 5, None)]


async def test_a_change_with_some_columns_leaves_the_others_alone(mirrored: Mirrored) -> None:
    """An application that emits two columns of three: the third is NOT NULL on the target and stays."""
    table = "create table p (id int primary key, a text not null, b text not null, u int unique {})"
    mirrored.both(table.format("deferrable"), table.format(""), watch=[])
    mirrored.on_source("select outbox.watch('public.p', capture => false)")
    mirrored.on_target("select outboxd.map('public.p')", "insert into p values (1, 'a', 'b', 1), (2, 'a', 'b', 2)")
    emit = "select outbox.emit('public.p', 'upsert', '{}')".format
    assert await mirrored.carry(emit('{"id": 1, "a": "new"}')) == 1
    assert await mirrored.carry(emit('{"id": 1, "u": 2}'), emit('{"id": 2, "b": "two", "u": 1}')) == 2
    assert rows(mirrored.target, "select * from p order by id") == [(1, "new", "b", 2), (2, "a", "two", 1)]
