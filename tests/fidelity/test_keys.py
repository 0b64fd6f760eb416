"""A row travels under one key, whatever its type: right, or refused by watch with a sentence.

For every type that can be a key at all. Two spellings of one value must be one row; two values must be two.
"""

import psycopg
import pytest

from tests.fidelity.kinds import KINDS, TYPES, Kind
from tests.fidelity.stores import Stores
from tests.fidelity.test_values import installed_extensions, known

# Other spellings of values that are equal to the first: rows that must keep their one key.
TWINS = {
    "numeric": ["1", "1.00", "1e0"], "numeric(12,6)": ["1", "1.000"], "timestamptz": ["2026-01-01 02:00+02", "2026-01-01 00:00+00"],
    "inet": ["10.0.0.1", "10.0.0.1/32"], "cidr": ["10/8", "10.0.0.0/8"], "uuid": ["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "{a0eebc999c0b4ef8bb6d6bb9bd380a11}"],
    "macaddr": ["08-00-2b-01-02-03", "08002b:010203"], "bytea": ["\\x61", "a"], "boolean": ["t", "yes"], "date": ["2026-01-01", "J2461042"],
    "time": ["24:00", "24:00:00.0"], "xid8": ["1", "01"], "pg_lsn": ["0/1", "0/01"], "bigint": ["1", "+1"],
    "timestamp": ["2026-01-01", "2026-01-01T00:00:00"], "oid": ["1", "+1"],
}  # fmt: skip

# Their equality is not that of their text: never a key.
REFUSED = {
    "real", "double precision", "money", "interval", "interval day to second(2)", "timetz", "character(5)", "bpchar", "jsonb",
    "tsvector", "tsquery", "tid", "scores", "cheer", "point3", "nested", "place", "textrange", "textmultirange", "moodrange", "extensions.hstore",
    "extensions.citext", "extensions.ltree", "extensions.cube", "oidvector", "int2vector", "regclass", "regcollation", "regconfig", "regdictionary",
    "regnamespace", "regoper", "regoperator", "regproc", "regprocedure", "regrole", "regtype",
    *(f"{kind}{multi}range" for kind in ("int4", "int8", "num", "date", "ts", "tstz") for multi in ("", "multi")),
}  # fmt: skip


@pytest.fixture(scope="module")
def keyed(rest: Stores) -> Stores:
    rest.both(TYPES.format(extensions=installed_extensions(rest)))
    return rest


def test_every_type_is_a_right_key_or_a_refused_one(keyed: Stores) -> None:
    """All of them, in a few transactions: inserted, updated, given other keys, respelled, deleted."""
    accepted = [kind for kind in KINDS if known(keyed.here, kind) and is_accepted(keyed, kind)]
    assert len(accepted) >= 28
    tables = [f"public.k{kind.table}" for kind in accepted]
    keyed.mirror(tables)

    def everywhere(statement: str) -> None:
        with keyed.here.transaction():
            for kind in accepted:
                keyed.here.execute(
                    statement.format(table=f"public.k{kind.table}", kind=kind.name + kind.modifier).encode()
                )
        keyed.carry()
        keyed.assert_equal(tables, order="v, k")

    with keyed.here.transaction():
        for kind in accepted:
            for number, text in enumerate(odd(kind)):
                into = f"insert into public.k{kind.table} values (%s, %s, 'first') on conflict (k) do update set note = 'again'"
                keyed.here.execute(into.encode(), (text, number))
    keyed.carry()
    assert keyed.assert_equal(tables, order="v, k") > 2 * len(accepted)
    everywhere("update {table} set note = 'second'")
    for kind in accepted:
        respell(keyed, kind)
    everywhere("delete from {table} where v % 2 = 0")
    everywhere("insert into {table} select k, v + 100, 'new' from {table} on conflict (k) do update set v = excluded.v")
    everywhere("delete from {table}")
    assert keyed.assert_equal(tables, order="v, k") == 0


def odd(kind: Kind) -> list[str]:
    """Not the largest: an index row holds some 2700 bytes, and a key that is written in more than 4096 does not travel."""
    return [text for text in kind.values if len(text) < 1000 and text not in {"1e131071", "1e-16383"}]


def is_accepted(made: Stores, kind: Kind) -> bool:
    """Make its table, and ask watch. What has no ordering cannot be a primary key in Postgres either."""
    table, name = f"public.k{kind.table}", kind.name + kind.modifier
    try:
        with made.here.transaction():
            made.here.execute(f"create table {table} (k {name} primary key, v int not null, note text)".encode())
    except psycopg.errors.UndefinedObject:
        return False
    watching = made.here.transaction(force_rollback=True)
    if name in REFUSED:
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"(?i)choose another unique key"), watching:
            made.here.execute("select outbox.watch(%s)", (table,))
        return False
    with watching:
        made.here.execute("select outbox.watch(%s)", (table,))
    made.there.execute(f"create table {table} (k {name} primary key, v int not null, note text)".encode())
    return True


def respell(made: Stores, kind: Kind) -> None:
    """One value in several spellings: always one row, with the spelling that was written last."""
    table = f"public.k{kind.table}"
    for number, spelling in enumerate(twins := TWINS.get(kind.name + kind.modifier, [])):
        with made.here.transaction():
            if number:
                made.here.execute(f"update {table} set k = %s, v = v + 1 where k = %s".encode(), (spelling, twins[0]))
            else:
                made.here.execute(
                    f"insert into {table} values (%s, 50, 'twin') on conflict (k) do update set v = 50".encode(),
                    (spelling,),
                )
        made.carry()
        made.assert_equal([table], order="v, k")
    if twins:
        made.here.execute(f"delete from {table} where k = %s".encode(), (twins[-1],))
        made.carry()
        made.assert_equal([table], order="v, k")


def test_a_key_of_several_types_under_a_hostile_session(keyed: Stores) -> None:
    """The parts keep their order and their spelling."""
    keyed.both(
        "create table public.several (n numeric, at timestamptz, t text, b bytea, m mood, d date, id int, v text, primary key (t, n, at, m, b, d))"
    )
    keyed.mirror(["public.several"])
    with keyed.source.connect() as writer:
        writer.execute(
            "insert into several select i * 1.10, 'epoch'::timestamptz + i * interval '1.000001 s', e'\\x1e' || i, decode('00', 'hex'), 'é', "
            "'infinity', i, 'v' from generate_series(1, 50) i"
        )
        keyed.carry()
        keyed.assert_equal(["public.several"])
        writer.execute(
            "set datestyle = 'German'; set timezone = 'Asia/Kathmandu'; set bytea_output = 'escape'; set extra_float_digits = -15"
        )
        writer.execute(
            "update several set v = 'w' where id % 2 = 0; update several set n = n * 1.0, at = at + interval '1 day' where id < 20"
        )
        writer.execute("delete from several where id % 3 = 0")
        keyed.carry()
        assert keyed.assert_equal(["public.several"]) == 34
