"""Tables that outbox.watch refuses, each with a sentence that says why and the way on."""

from typing import Any

import psycopg
import pytest

from tests.captured import Connection, rows, watch

FITS = "create table t (id int primary key, other int unique not null, note text)"

# What is created; how it is watched; words of the sentence.
REFUSED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "no key": (
        "create table t (id int)",
        {},
        ["public.t has no primary key", "outbox.watch('public.t', key_columns =>"],
    ),
    "not unique": (FITS, {"key_columns": ["note"]}, ["(note) is no key of public.t", "NOT NULL"]),
    "part of a key": (
        "create table t (a int, b int, primary key (a, b))",
        {"key_columns": ["a"]},
        ["(a) is no key of public.t"],
    ),
    "more than a key": (FITS, {"key_columns": ["id", "other"]}, ["(id, other) is no key of public.t"]),
    "nullable key": (
        "create table t (id int primary key, o int unique)",
        {"key_columns": ["o"]},
        ["(o) is no key of public.t", "all NOT NULL"],
    ),
    "partial index": (
        "create table t (id int not null); create unique index on t (id) where id > 0",
        {"key_columns": ["id"]},
        ["not partial"],
    ),
    "index on an expression": (
        "create table t (id int not null); create unique index on t ((id + 1))",
        {"key_columns": ["id"]},
        ["(id) is no key of public.t"],
    ),
    "index being built": (
        ("create table t (id int not null); create unique index broken on t (id);"
        " update pg_index set indisvalid = false where indexrelid = 'broken'::regclass"),
        {"key_columns": ["id"]},
        ["(id) is no key of public.t"],
    ),
    "deferrable key": (
        "create table t (id int primary key deferrable)",
        {},
        ["the key (id) of public.t is DEFERRABLE", "the row would be lost", "without DEFERRABLE"],
    ),
    "deferred key": (
        "create table t (id int primary key deferrable initially deferred)",
        {},
        ["the key (id) of public.t is DEFERRABLE"],
    ),
    "interval": ("create table t (id interval primary key)", {}, ["id (interval)", "different texts"]),
    "real": ("create table t (id real primary key)", {}, ["id (real)", "different texts"]),
    "double precision": ("create table t (id float8 primary key)", {}, ["id (double precision)", "Choose another"]),
    "char(n)": ("create table t (id char(3) primary key)", {}, ["id (character)", "different texts"]),
    "jsonb": ("create table t (id jsonb primary key)", {}, ["id (jsonb)", "different texts"]),
    "array": ("create table t (id int[] primary key)", {}, ["id (integer[])", "different texts"]),
    "a domain over one of them": (
        "create domain code as char(3); create table t (id code primary key)",
        {},
        ["id (public.code)", "different texts"],
    ),
    "a type of that name elsewhere": (
        'create type public.text as (a int); create table t (id public.text primary key)',
        {},
        ["id (public.text)"],
    ),
    "nondeterministic collation": (
        # As ICU makes them; a build without ICU cannot, and watch looks no further than the catalogue.
        ("create collation loose (locale = 'C');"
        " update pg_collation set collisdeterministic = false where collname = 'loose';"
        " create table t (id text collate loose primary key)"),
        {},
        ["id (collation loose)", "nondeterministic", "choose another unique key"],
    ),
    "unlogged": (
        "create unlogged table t (id int primary key)",
        {},
        ["temporary or unlogged", "alter table public.t set logged"],
    ),
    "temporary": ("create temporary table t (id int primary key)", {}, ["temporary or unlogged"]),
    "view": ("create view t as select 1 as id", {}, ["public.t is not a table"]),
    "materialised view": ("create materialized view t as select 1 as id", {}, ["public.t is not a table"]),
    "partition": (
        ("create table r (id int primary key) partition by list (id);"
        " create table t partition of r for values in (1)"),
        {},
        ["public.t is a partition: watch its root, public.r"],
    ),
    "inheriting": (
        "create table r (id int primary key); create table t (primary key (id)) inherits (r)",
        {},
        ["public.t takes part in inheritance"],
    ),
    "inherited from": (
        "create table t (id int primary key); create table c (primary key (id)) inherits (t)",
        {},
        ["public.t takes part in inheritance", "use partitioning"],
    ),
    "foreign partition": (
        ("create table t (id int) partition by list (id); create table p partition of t (primary key (id)) for values in (1);"
        " create foreign data wrapper w; create server s foreign data wrapper w;"
        " create foreign table f partition of t for values in (2) server s"),
        {"key_columns": ["id"]},
        ["public.f, a partition of public.t, is a foreign table", "detach it"],
    ),
    "unlogged partition": (
        ("create table t (id int primary key) partition by list (id);"
        " create unlogged table p partition of t for values in (1)"),
        {},
        ["public.p, a partition of public.t, is unlogged", "alter table public.p set logged"],
    ),
    "unknown key column": (FITS, {"key_columns": ["nope"]}, ["public.t has no column nope"]),
    "unknown column to include": (FITS, {"include": ["id", "nope"]}, ["public.t has no column nope"]),
    "unknown column to exclude": (FITS, {"exclude": ["NOPE"]}, ['public.t has no column "NOPE"']),
    "a dropped column": (FITS + "; alter table t drop note", {"exclude": ["note"]}, ["public.t has no column note"]),
    "key excluded": (FITS, {"exclude": ["id"]}, ["the key (id) must be among the columns that travel"]),
    "key not included": (FITS, {"include": ["note"]}, ["the key (id) must be among the columns that travel"]),
    "include and exclude": (FITS, {"include": ["id"], "exclude": ["note"]}, ["give include or exclude, not both"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_captured_is_refused_in_a_sentence(scratch: Connection, case: str) -> None:
    """An unfit table is refused when it is watched, not when the application writes to it."""
    ddl, options, words = REFUSED[case]
    scratch.execute("set local allow_system_table_mods = on")
    scratch.execute(ddl)
    with pytest.raises(psycopg.errors.InvalidParameterValue) as refused, scratch.transaction():
        watch(scratch, "t", **options)
    sentence = refused.value.diag.message_primary or ""
    assert sentence.startswith("cannot watch ")
    assert [word for word in words if word not in sentence] == [], sentence
    assert rows(scratch, "select * from outbox.watched") == []
    assert rows(scratch, "select tgname from pg_trigger where tgrelid = 't'::regclass and not tgisinternal") == []


FITTING = {
    "numeric": "create table t (id numeric primary key)",
    "varchar": "create table t (id varchar(20) primary key)",
    "uuid": "create table t (id uuid primary key)",
    "bytea": "create table t (id bytea primary key)",
    "timestamptz": "create table t (id timestamptz primary key)",
    "enum": "create type mood as enum ('ok'); create table t (id mood primary key)",
    "domain": "create domain code as text; create table t (id code primary key)",
    "deterministic collation": "create collation strict (locale = 'C'); "
    "create table t (id text collate strict primary key)",
    "several columns, mixed case": 'create table t ("B" int, a int, "_c" int, primary key (a, "B", "_c"))',
    "columns beside the key in its index": "create table t (id int, x int, primary key (id) include (x))",
    "identity": "create table t (id int generated always as identity primary key)",
    "partitioned": "create table t (id int primary key) partition by list (id)",
}


@pytest.mark.parametrize("case", FITTING)
def test_a_fit_key_is_accepted(scratch: Connection, case: str) -> None:
    """Nothing is refused without a reason."""
    scratch.execute(FITTING[case])
    assert watch(scratch, "t") == "public.t"


def test_an_extensions_text_is_refused_as_a_key(scratch: Connection) -> None:
    """citext takes two texts for one key."""
    try:
        with scratch.transaction():
            scratch.execute("create extension citext")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this Postgres has no citext: install its contrib package")
    scratch.execute("create table t (id citext primary key)")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"id \(public\.citext\): two equal values"):
        watch(scratch, "t")


def test_a_cached_identity_is_refused(scratch: Connection) -> None:
    """With CACHE > 1 ids would not follow the order of commits."""
    scratch.execute(FITS)
    scratch.execute("alter sequence outbox.change_id_seq cache 20")
    with (
        pytest.raises(
            psycopg.errors.InvalidParameterValue, match=r"CACHE 20.*alter sequence outbox\.change_id_seq cache 1"
        ),
        scratch.transaction(),
    ):
        watch(scratch, "t")
    scratch.execute("alter sequence outbox.change_id_seq cache 1")
    assert watch(scratch, "t") == "public.t"


def test_the_outbox_itself_is_refused(scratch: Connection) -> None:
    """Nobody records the changes of the record."""
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"outbox\.shape belongs to the outbox itself"):
        watch(scratch, "outbox.shape")
