"""A filter compares each column by the column's own collation, as a query on the table does: also beside columns of others."""

import itertools
import json
import random
from collections.abc import Iterator

import psycopg
import pytest

from tests.captured import Connection, changes, ops, value, watch
from tests.databases import Database

SOME = {
    '"C.utf8"': """select 'a' collate "C.utf8\"""",
    "any_case": "create collation public.any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    "upper_first": "create collation public.upper_first (provider = icu, locale = 'und-u-kf-upper')",
}
PEOPLE = """
create collation public.bytewise (provider = libc, locale = 'POSIX');
create domain public.coded as text collate "C";
create type public.mood as enum ('b', 'B', 'ä')
"""
COLLATIONS = ["", ' collate "C"', ' collate "POSIX"', " collate bytewise"]
TYPES = ["text", "varchar(9)", "char(3)"]
OTHERS = ["name", "coded", "text[]", 'text[] collate "C"', "mood", "citext", 'citext collate "C"']
VALUES = ["a", "A", "ä", "Ä", "b", "B"]
ONE = ["{c} = 'ä'", "{c} < 'B'", "{c} >= 'a'", "{c} between 'A' and 'b'", "lower({c}) = 'ä'", "upper({c}) = 'Ä'", "{c} ~* 'ä'",
       "{c} like 'a%'", "{c} ilike 'Ä%'", "initcap({c}) = 'Ä'", "greatest({c}, 'B') = 'B'", "{c} in ('a', 'Ä')", "strpos({c}, 'A') > 0"]  # fmt: skip
ARRAYS = ["'ä' = any ({c})", "{c} < '{{B}}'", "{c} @> '{{A}}'"]
LABELS = ["{c} in ('b', 'ä')", "{c}::text < 'a'", "lower({c}::text) = 'b'"]
BOTH = ["{a} < {b}", "{a} = {b}", "least({a}, {b}) = {a}"]


def conditions(column: str, kind: str) -> list[str]:
    if "citext" in kind:  # uncast it is refused
        column = f"{column}::text"
    return [one.format(c=column) for one in (ARRAYS if "[]" in kind else LABELS if kind == "mood" else ONE)]


def written(kind: str, text: str) -> str:
    return "{" + text + "}" if "[]" in kind else text


def has(conn: Connection, made: str) -> bool:
    """Has this build of Postgres what this makes?"""
    try:
        conn.execute(made.encode())
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile, psycopg.errors.UndefinedObject):
        return False
    return True


def queried(conn: Connection, filter_: str) -> set[int]:
    with conn.transaction():
        conn.execute("set local search_path = pg_catalog")
        return {n for (n,) in conn.execute(f"select id from public.t where {filter_}".encode())}


def matters(conn: Connection, kinds: tuple[str, str], filter_: str) -> bool:
    """The filter gives what the table's own query gives, by the names that a filter sees; whether there is something to see in it. A query that Postgres refuses
    is no filter: it is refused, or says of each row that nobody can tell."""
    conn.execute(
        f"drop table if exists t; create table t (id int primary key, a {kinds[0]}, b {kinds[1]}); truncate outbox.change".encode()
    )
    pairs = [(x, y) for x, y in itertools.product(VALUES, VALUES) if "mood" not in kinds or {"b", "B", "ä"} >= {x, y}]
    rows = [(n, written(kinds[0], x), written(kinds[1], y)) for n, (x, y) in enumerate(pairs)]
    try:
        watch(conn, "t", filter=filter_)
    except psycopg.errors.InvalidParameterValue as refused:
        with pytest.raises(psycopg.Error):
            queried(conn, filter_)
        if "collation" not in str(refused):
            raise
        return False
    conn.cursor().executemany("insert into t values (%s, %s, %s)", rows)
    try:
        passes = queried(conn, filter_)
    except psycopg.Error:
        assert set(ops(conn)) == {"resync"}
        return False
    found = {json.loads(change.key)["id"]: change.op for change in changes(conn)}
    assert found == dict.fromkeys(passes, "upsert"), (kinds, filter_)
    return 0 < len(passes) < len(rows)


def test_a_filter_compares_as_a_query_on_the_table(source: Database) -> None:
    """Pairs of columns of any two collations, and of types that carry one."""
    chosen = random.Random(14)
    with source.connect() as conn:
        conn.execute(PEOPLE.encode())
        collations = COLLATIONS + [f" collate {name}" for name, made in SOME.items() if has(conn, made)]
        others = [kind for kind in OTHERS if "citext" not in kind or has(conn, "create extension if not exists citext")]
        kinds = [f"{kind}{collation}" for kind in TYPES for collation in collations] + others
        every = list(itertools.product(kinds, kinds))
        beside = [pair for pair in every if pair[1] in others]
        seen = 0
        for first, second in chosen.sample(every, 30) + chosen.sample(beside, 20):
            one, two = chosen.choice(conditions("a", first)), chosen.choice(conditions("b", second))
            seen += matters(
                conn, (first, second), chosen.choice([f"{one} and {two}", f"{one} or {two}", f"not ({one}) and {two}"])
            )
        for first, second in chosen.sample(list(itertools.product(collations, collations)), 10):
            seen += matters(conn, (f"text{first}", f"text{second}"), chosen.choice(BOTH).format(a="a", b="b"))
        assert seen > 30


@pytest.mark.parametrize("filter_", ["kind <> 'x' and lower(name) = 'ä'", "kind <> 'x' and name ~* 'ä'"])
@pytest.mark.parametrize("kind", ['text collate "C"', "name", 'text[] collate "C"'])
def test_a_column_of_one_collation_leaves_that_of_another_alone(source: Database, kind: str, filter_: str) -> None:
    with source.connect() as conn:
        other = "" if value(conn, "select lower('Ä') = 'ä'") else ' collate "C.utf8"'
        conn.execute(f"create table t (id int primary key, kind {kind}, name text{other})".encode())
        watch(conn, "t", filter=filter_.replace("'x'", "'{x}'") if "[]" in kind else filter_)
        conn.execute("insert into t values (1, %s, 'Ä')", ("{a}" if "[]" in kind else "a",))
        assert ops(conn) == ["upsert"]


def test_a_column_that_is_given_another_collation_is_compared_by_that_or_not_at_all(source: Database) -> None:
    """Not at all where columns have different ones, until it is watched again."""
    with source.connect() as conn:
        conn.execute("""create table t (id int primary key, name text collate "C.utf8", kind text collate "C.utf8")""")
        watch(conn, "t", filter="lower(name) = 'ä' and kind <> 'x'")
        conn.execute("insert into t values (1, 'Ä', 'a')")
        conn.execute("""alter table t alter name type text collate "C" """)
        conn.execute("insert into t values (2, 'Ä', 'a')")
        assert ops(conn) == ["upsert", "resync"]
        watch(conn, "t", filter="lower(name) = 'ä' and kind <> 'x'")
        conn.execute("truncate outbox.change; insert into t values (3, 'Ä', 'a'), (4, 'ä', 'a')")
        assert [json.loads(change.key)["id"] for change in changes(conn)] == [4]
        conn.execute("""alter table t alter kind type text collate "C" """)
        conn.execute("insert into t values (5, 'ä', 'a')")
        assert ops(conn) == ["upsert", "resync"]


@pytest.fixture
def mails(source: Database) -> Iterator[Connection]:
    with source.connect() as conn:
        if not has(conn, "create extension citext"):
            pytest.skip("this PostgreSQL has no citext: install its contrib package")
        conn.execute(
            "create domain mail as citext; create table t (id int primary key, mail citext, mails citext[], other mail)"
        )
        yield conn


@pytest.mark.parametrize(
    ("column", "filter_"),
    [
        ("mail", "mail = 'a'"),
        ("mail", "mail in ('a', 'b')"),
        ("mail", "id > 3 and not (mail like 'a%')"),
        ("mail", "strpos(mail, 'a') > 0"),
        ("mail", "mail is distinct from 'a'"),
        ("mail", "case mail when 'a' then true else false end"),
        ("mail", "coalesce(mail, 'b') = 'a'"),
        ("mail", "greatest(mail, 'B') = 'B'"),
        ("mails", "'a' = any (mails)"),
        ("other", "other = 'a'"),
    ],
)
def test_a_column_whose_type_tells_no_case_apart_is_refused_where_a_filter_would(
    mails: Connection, column: str, filter_: str
) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue) as refused:
        watch(mails, "t", filter=filter_)
    said = str(refused.value.diag.message_primary)
    assert f"it reads column {column} as another type than public.citext" in said
    if column != "mails":
        watch(mails, "t", filter=said.rpartition("as in  ")[2])
        mails.execute(f"insert into t (id, {column}) values (1, 'A'), (2, 'b')")
        assert [json.loads(change.key)["id"] for change in changes(mails)] == [1]


@pytest.mark.parametrize(
    "filter_",
    [
        "mail is null",
        "mail::text = 'a'",
        "coalesce(mail::text, 'b') = 'a'",
        "'a' = any (mails::text[])",
        "lower(mail::text) = 'a'",
    ],
)
def test_such_a_column_is_read_where_it_says_as_what(mails: Connection, filter_: str) -> None:
    watch(mails, "t", filter=filter_)
