"""What the plan takes for the same, for a value, and for a name: without a database."""

import pytest

from daemon import schema_ddl as ddl
from daemon.audience import same
from daemon.column_types import compare
from daemon.structure import Place, Policy
from daemon.wanted import constant, home


@pytest.mark.parametrize(
    ("source", "target", "verdict"),
    [
        ("integer", "integer", "fits"),
        ("smallint", "bigint", "fits"),
        ("integer", "numeric", "fits"),
        ("integer", "numeric(5,2)", "rewrite"),
        ("bigint", "integer", "rewrite"),
        ("character varying(5)", "character varying(9)", "fits"),
        ("character varying(9)", "character varying(5)", "widen"),
        ("character varying", "character varying(5)", "widen"),
        ("character varying(5)", "text", "fits"),
        ("text", "character varying(5)", "widen"),
        ("text", "character varying", "widen"),
        ("text[]", "character varying(5)[]", "rewrite"),
        ("character varying(9)[]", "character varying(5)[]", "rewrite"),
        ("character varying(5)[]", "character varying(9)[]", "fits"),
        ("character(5)", "character(9)", "rewrite"),
        ("numeric(6,2)", "numeric(9,2)", "fits"),
        ("numeric(9,2)", "numeric(6,2)", "widen"),
        ("numeric(9,3)", "numeric(9,2)", "rewrite"),
        ("numeric(6,2)", "numeric(6,4)", "rewrite"),
        ("numeric", "numeric(6,2)", "widen"),
        ("numeric(6,2)", "numeric", "fits"),
        ("timestamp(3) with time zone", "timestamp with time zone", "fits"),
        ("timestamp with time zone", "timestamp(3) with time zone", "widen"),
        ("timestamp with time zone", "timestamp without time zone", "rewrite"),
        ("json", "jsonb", "fits"),
        ("jsonb", "json", "rewrite"),
        ("real", "double precision", "fits"),
        ('public."Mood"', "text", "fits"),
        ('public."Mood"', "public.mood", "rewrite"),
        ('public."line\nbreak"', "text", "fits"),
        ("uuid", "integer", "rewrite"),
        ("integer[]", "integer", "rewrite"),
    ],
)
def test_which_types_hold_which(source, target, verdict):
    """Whatever might lose or round a value is a change; what only gets wider costs nothing."""
    assert compare(source, target) == verdict


@pytest.mark.parametrize(
    "default",
    ["7", "(-7)", "'-1.5'::numeric", "1.5", "true", "'untitled'::character varying", "'it''s'::text", "'{}'::text[]", "ARRAY[]::text[]",
     "'DRAFT'::public.\"SceneStatus\"", "'2026-01-01 00:00:00+00'::timestamp with time zone", "'a'::character varying(40)"],
)  # fmt: skip
def test_values_are_defaults_on_a_mirror(default):
    assert constant(default)


@pytest.mark.parametrize(
    "default",
    [None, "nextval('thing_id_seq'::regclass)", "now()", "CURRENT_TIMESTAMP", "gen_random_uuid()", "('a'::text || 'b'::text)", "'thing'::regclass",
     "(random() * (10)::double precision)", "public.mine()", "ROW(1, 2)"],
)  # fmt: skip
def test_what_is_computed_is_none(default):
    """The source has computed it already; here it would be another value."""
    assert not constant(default)


def test_policies_are_compared_without_what_postgres_adds():
    wanted = Policy("outboxd_select", "select", ("authenticated",), using='(select auth.uid()) = "User Id"')
    there = Policy("outboxd_select", "select", ("authenticated",), using='(( SELECT auth.uid() AS uid) = "User Id")')
    assert same(wanted, there)
    assert not same(wanted, None)
    assert not same(wanted, Policy("outboxd_select", "select", ("public",), using=there.using))
    assert not same(wanted, Policy("outboxd_select", "select", ("authenticated",), using="true"))
    assert not same(wanted, Policy("outboxd_select", "all", ("authenticated",), using=there.using))


def test_names_and_texts_are_quoted():
    assert ddl.ident('a"b', "c d") == '"a""b"."c d"'
    assert ddl.literal("it's") == "'it''s'"
    assert ddl.guarded("true", "select 1") == "do $outboxd$ begin if true then select 1; end if; end $outboxd$"


def test_extensions_live_where_the_project_has_them():
    assert home("hstore", Place(extensions={"hstore": "other"})) == "other"
    assert home("hstore", Place(schemas=frozenset({"public", "extensions"}))) == "extensions"
    assert home("hstore", Place()) == "public"
