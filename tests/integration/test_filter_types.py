"""A filter reads a type with operators of its own as a query on the table does, or is refused: it sees those of pg_catalog alone."""

import json
from collections.abc import Iterator

import psycopg
import pytest

from tests.captured import Connection, changes, ops, watch
from tests.databases import Database

# What the extension has of what is asked here, for a PostgreSQL without its contrib package.
CITEXT = """
create type citext;
create function citextin(cstring) returns citext language internal immutable strict as 'textin';
create function citextout(citext) returns cstring language internal immutable strict as 'textout';
create type citext (input = citextin, output = citextout, internallength = variable, storage = extended, category = 'S', collatable = true);
create cast (citext as text) without function as implicit;
create cast (text as citext) without function as assignment;
create function citext_eq(a citext, b citext) returns bool language sql immutable return lower(a::text) = lower(b::text);
create function citext_lt(a citext, b citext) returns bool language sql immutable return lower(a::text) < lower(b::text);
create function citext_le(a citext, b citext) returns bool language sql immutable return lower(a::text) <= lower(b::text);
create function citext_ge(a citext, b citext) returns bool language sql immutable return lower(a::text) >= lower(b::text);
create function citext_gt(a citext, b citext) returns bool language sql immutable return lower(a::text) > lower(b::text);
create function citext_like(a citext, b citext) returns bool language sql immutable return a::text ilike b::text;
create function citext_cmp(a citext, b citext) returns int language sql immutable
  return case when lower(a::text) < lower(b::text) then -1 when lower(a::text) = lower(b::text) then 0 else 1 end;
create function citext_larger(a citext, b citext) returns citext language sql immutable return case when lower(a::text) > lower(b::text) then a else b end;
create function strpos(a citext, b citext) returns int language sql immutable return strpos(lower(a::text), lower(b::text));
create function replace(a citext, b citext, c citext) returns text language sql immutable return replace(lower(a::text), lower(b::text), c::text);
create function split_part(a citext, b citext, n int) returns text language sql immutable return split_part(lower(a::text), lower(b::text), n);
create operator = (function = citext_eq, leftarg = citext, rightarg = citext, commutator = =);
create operator < (function = citext_lt, leftarg = citext, rightarg = citext);
create operator <= (function = citext_le, leftarg = citext, rightarg = citext);
create operator >= (function = citext_ge, leftarg = citext, rightarg = citext);
create operator > (function = citext_gt, leftarg = citext, rightarg = citext);
create operator ~~ (function = citext_like, leftarg = citext, rightarg = citext);
create operator class citext_ops default for type citext using btree as
  operator 1 <, operator 2 <=, operator 3 =, operator 4 >=, operator 5 >, function 1 citext_cmp(citext, citext)
"""


@pytest.fixture
def mails(source: Database) -> Iterator[Connection]:
    """A table of citext in every form."""
    with source.connect() as conn:
        try:
            conn.execute("create extension citext")
        except (psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported):
            conn.execute(CITEXT.encode())
        conn.execute(
            "create function btrim(mail citext) returns text language sql immutable return lower(btrim(mail::text))"
        )
        conn.execute(
            "create type contact as (n int, mail citext); create domain mail as citext; create domain coded as text"
        )
        conn.execute("create function first_of(mail text) returns citext language sql immutable return mail::citext")
        conn.execute("create function as_mail(mail text) returns mail language sql immutable return mail::citext")
        conn.execute(
            "create table t (id int primary key, mail citext, mails citext[], c contact, other mail, name text, cs contact[], others mail[], code coded, codes coded[])"
        )
        yield conn


INSERT = "insert into t values (1, 'A', '{A}', row(1, 'A'), 'A', 'A', array[row(1, 'A')::contact], '{A}', 'A', '{A}'), (2, 'b', '{b}', row(1, 'b'), 'b', 'b', '{}', '{b}', 'b', '{b}')"


@pytest.mark.parametrize(
    ("what", "filter_"),
    [
        ("column mails", "mails[1] = 'a'"),
        ("column mails", "mails[1] in ('a', 'c')"),
        ("column c", "(c).mail = 'a'"),
        ("column mail", "'a' = any (array[mail])"),
        ("column mails", "'a' = any (mails[1:2])"),
        ("column mails", "'a' = any (mails)"),
        ("column mails", "'a' = any (array_remove(mails, 'q'))"),
        ("column mails", "nullif(mails[1], 'b') = 'a'"),
        ("column mails", "case mails[1] when 'a' then true end"),
        ("column mail", "public.citext_larger(mail, mail) = 'a'"),
        ("column mail", "nullif(mail, 'a') is null"),
        ("column mail", "(mail, id) < ('aa', 1)"),
        ("column mail", "mail collate \"C\" = 'a'"),
        ("column other", "public.citext_larger(other, mail) is not distinct from 'a'"),
        ("column other", "case when id > 0 then mail else other end = 'a'"),
        ("column mail", "replace(mail, 'a', 'x') = 'x'"),
        ("column mail", "'a' = split_part(mail, 'X', 1)"),
        ("column others", "others[1] = 'a'"),
        ("column others", "'a' = any (others)"),
        ("column mail", "btrim(mail) = 'a'"),
        ("column other", "other in ('a', 'c')"),
        ("a value made of column name", "public.first_of(mail => name) = 'a'"),
        ("a value made of column name", "public.as_mail(name) = 'a'"),
        ("a value", "'A'::public.citext = lower(name)"),
        ("column cs", "cs[1].mail = 'a'"),
    ],
)
def test_a_filter_that_reads_citext_through_something_is_refused_and_says_what_to_write(
    mails: Connection, what: str, filter_: str
) -> None:
    """However the value is come by. What it says instead is taken, and tells no case apart."""
    with pytest.raises(psycopg.errors.InvalidParameterValue) as refused:
        watch(mails, "t", filter=filter_)
    said = str(refused.value.diag.message_primary)
    assert f"it reads {what} as another type than public.citext" in said
    pasted = said.rpartition("as in  ")[2]
    watch(mails, "t", filter=pasted)
    mails.execute(INSERT)
    assert [json.loads(change.key)["id"] for change in changes(mails)] == [1]


@pytest.mark.parametrize(
    "filter_",
    [
        "coalesce(mail, other) is not null",
        "lower(mail) = 'a'",
        "length(mail) = 1 and mail::text = 'A'",
        "(mails[1])::text = 'A'",
        "lower((c).mail::text) = 'a'",
        "case when mail is null then false else upper(mails[1]) = 'A' end",
        "mail || 'x' = 'Ax'",
        "trim(mail) = 'A'",
        "code = 'A' and 'A' = any (codes) and codes[1] = 'A' and strpos(code, 'A') = 1",
        "mails = array['a'::public.citext]",
        "mails @> array['a'::public.citext]",
        "greatest(mail, 'a') is not null and name = 'A'",
        "mail operator(public.=) 'a'",
        "public.strpos(mail, 'a'::public.citext) = 1",
        "lower(public.citext_larger(mail, mail)) = 'a'",
        "coalesce(mail, 'b'::text) = 'A'",
    ],
)
def test_a_filter_that_compares_nothing_otherwise_is_taken(mails: Connection, filter_: str) -> None:
    mails.execute(INSERT)
    asked = mails.execute(f"select id from t where {filter_}".encode()).fetchall()
    mails.execute("delete from t")
    watch(mails, "t", filter=filter_)
    mails.execute(INSERT)
    assert [(json.loads(change.key)["id"],) for change in changes(mails)] == asked
    assert (1,) in asked


@pytest.mark.parametrize("filter_", ["coalesce(a, b) is not null", "case when id > 0 then a else b end is not null"])
@pytest.mark.parametrize(
    ("extension", "row"), [("hstore", "a=>1"), ("ltree", "x.y"), ("cube", "(1,2)"), ("citext", "a")]
)
def test_of_any_extension(source: Database, extension: str, row: str, filter_: str) -> None:
    with source.connect() as conn:
        try:
            conn.execute(f"create extension {extension}".encode())
        except (psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported):
            pytest.skip(f"this PostgreSQL has no {extension}: install its contrib package")
        conn.execute(f"create table t (id int primary key, a {extension}, b {extension})".encode())
        watch(conn, "t", filter=filter_)
        conn.execute("insert into t values (1, %s, %s)", (row, row))
        assert ops(conn) == ["upsert"]


@pytest.mark.parametrize("cast", ["with function public.written(pair) as implicit", "with inout as implicit"])
def test_a_type_is_taken_for_another_by_a_function_or_its_text_too(source: Database, cast: str) -> None:
    with source.connect() as conn:
        conn.execute("create type pair as range (subtype = int4)")
        conn.execute("create function written(p pair) returns text language sql immutable return lower(p)::text")
        conn.execute(
            "create function alike(a pair, b pair) returns bool language sql immutable return lower(a) = lower(b)"
        )
        conn.execute("create operator ~~ (function = alike, leftarg = pair, rightarg = pair)")
        conn.execute(f"create cast (pair as text) {cast}".encode())
        conn.execute("create table t (id int primary key, p pair)")
        with pytest.raises(
            psycopg.errors.InvalidParameterValue, match=r"reads column p as another type than public\.pair"
        ):
            watch(conn, "t", filter="p like '[1,2)'")
        watch(conn, "t", filter="p::text like '%1%'")


@pytest.mark.parametrize("inner", ["mail is not null", "length(mail) > 0", "lower(mail) <> 'z'"])
def test_a_deep_filter_is_read_to_its_end(mails: Connection, inner: str) -> None:
    deep = " + 1" * 1000
    watch(mails, "t", filter=f"{inner} and id {deep} > 0")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="reads column mail as another type"):
        watch(mails, "t", filter=f"{inner} and id {deep} + (mail = 'a')::int > 0")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="reads column mail as another type"):
        watch(mails, "t", filter=f"{inner} and (mail = 'a')::int {deep} > 0")
