"""A tenant of the source who names things: what a plan brings to the target is what it says, by `apply` and by psql.

Whoever owns a watched table chooses its names, types, labels, comments and expressions. The plan runs as the target's owner.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from daemon.demo.binaries import library_path
from daemon.errors import SchemaUnfit
from daemon.schema_apply import look
from daemon.schema_script import script
from tests.captured import watch
from tests.databases import Database, clone
from tests.schemas import Schemas

PARTS = [
    '"', "'", "\r", "\n", "\t", "--", "/*", "*/", "$$", "$outboxd$", "$outboxd_copied$", "\\", ";", ":USER", ":'USER'", ':"USER"',
    "%s", "%", "{0}", "\u2028", "\u2029", "\x85", "\x7f", "\u202e", "\x1b[2J", "é", "😀", "[]", "(3)", "(max)", "U&", " with time zone",
    "grant service_role to anon;", "create table pwned();", "\\! touch pwned\n", "\n\\! touch pwned\n", "end $outboxd$;", "x",
]  # fmt: skip
NAMES = st.lists(st.sampled_from(PARTS), min_size=1, max_size=5).map(
    lambda parts: "".join(parts).encode()[:63].decode(errors="ignore") or "x"
)
WORST = [
    "x\rgrant service_role to anon;--", "x\ncreate table pwned();--", "$outboxd$; create table pwned(); --", "a:\"USER\"", "USER",
    "\\! touch pwned", "it's", 'a"b', "%s%", "\u202ex\u2028create table pwned();", "x" * 63, "line\nbreak", "é😀",
]  # fmt: skip

# All that there is, by name; what outboxd's own tables hold is not of this.
EVERYTHING = r"""
select 'relation', relname, relacl::text, relkind::text, relrowsecurity::text from pg_class c where relnamespace::regnamespace::text not like 'pg\_%'
union all select 'column', attname, attrelid::regclass::text, format_type(atttypid, atttypmod), attnotnull::text from pg_attribute where attnum > 0 and attrelid in (select oid from pg_class where relnamespace::regnamespace::text not like 'pg\_%')
union all select 'default', pg_get_expr(adbin, adrelid), adrelid::regclass::text, null, null from pg_attrdef
union all select 'type', typname, typtype::text, format_type(typbasetype, typtypmod), typacl::text from pg_type where typnamespace::regnamespace::text not like 'pg\_%'
union all select 'label', enumlabel, enumtypid::regtype::text, null, null from pg_enum
union all select 'function', proname, prosrc, proacl::text, null from pg_proc where pronamespace::regnamespace::text not like 'pg\_%'
union all select 'schema', nspname, nspacl::text, null, null from pg_namespace where nspname not like 'pg\_%'
union all select 'policy', polname, polroles::regrole[]::text, pg_get_expr(polqual, polrelid), null from pg_policy
union all select 'constraint', conname, pg_get_constraintdef(oid), convalidated::text, null from pg_constraint where connamespace::regnamespace::text not in ('pg_catalog', 'information_schema')
union all select 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid), null, null from pg_index where indexrelid in (select oid from pg_class where relnamespace::regnamespace::text not like 'pg\_%')
union all select 'comment', description, classoid::regclass::text, null, null from pg_description where objoid >= 16384
union all select 'extension', extname, null, null, null from pg_extension
union all select 'event', evtname, null, null, null from pg_event_trigger
union all select 'member', roleid::regrole::text, member::regrole::text, null, null from pg_auth_members
union all select 'role', rolname, rolsuper::text, rolconfig::text, null from pg_roles
"""


def everything(database: Database) -> set[tuple[Any, ...]]:
    with database.connect() as conn:
        conn.execute("set search_path = ''")
        return set(conn.execute(EVERYTHING.encode()).fetchall())


def made(names: list[str]) -> Iterator[sql.Composed]:
    """A table of all that has a name, and its parent."""
    n = [sql.Identifier(name) for name in names]
    s = [sql.Literal(name) for name in names]
    a, b, c, d, e, f, g, h, i = n[:9]
    yield sql.SQL("create schema {0}; create type {0}.{1} as enum ({2}, {3})").format(a, b, s[2], s[3])
    yield sql.SQL("create domain {0}.{1} as text; create type {0}.{2} as ({3} int, {4} {0}.{5})").format(
        a, c, d, e, f, b
    )
    yield sql.SQL("create table {0}.{1} (id int primary key, comment_ text)").format(a, e)
    yield sql.SQL(
        "create table {0}.{1} (id int primary key, p int references {0}.{2}, {3} {0}.{4} default {5}, {6} {0}.{7}, {8} {0}.{9}, {10} varchar,"
        " list int[], \"HOST\" int, kind text, constraint {11} unique ({10}, p))"
    ).format(a, f, e, d, b, s[2], g, c, h, d, i, n[9])  # fmt: skip
    yield sql.SQL("create index {2} on {0}.{1} (lower({3})) where p > 0").format(a, f, n[10], i)
    yield sql.SQL('create index on {0}.{1} ((list[1:"HOST"]))').format(a, f)
    yield sql.SQL("comment on table {0}.{1} is {2}; comment on column {0}.{1}.{3} is {4}").format(a, f, s[3], i, s[5])
    yield sql.SQL("select outbox.watch(format('%I.%I', {0}, {1})::regclass), outbox.watch(format('%I.%I', {0}, {2})::regclass)").format(s[0], s[4], s[5])  # fmt: skip


def changed(names: list[str]) -> Iterator[sql.Composed]:
    """Another day: a label comes, a column goes and one is of another type, each of which the plan speaks of in comments."""
    a, b, d, f = (sql.Identifier(names[n]) for n in (0, 1, 3, 5))
    yield sql.SQL("alter type {0}.{1} add value {2}").format(a, b, sql.Literal(f"{names[2][:20]}2"))
    yield sql.SQL("alter table {0}.{1} drop column {2}").format(a, f, d)
    yield sql.SQL("alter table {0}.{1} alter p type bigint, alter kind type {0}.{2} using null").format(a, f, b)
    yield sql.SQL("alter table {0}.{1} add column {2} {0}.{3}").format(a, f, d, b)


def psql(database: Database, text: str, folder: Path) -> None:
    """As a person runs the file, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "plan.sql").write_text(text, "utf-8", newline="")
    program = str(database.cluster.installed / "psql")
    argv = [program, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database.dsn, "-f", "plan.sql"]
    environment = {"PATH": os.defpath, "HOME": str(folder), **library_path(database.cluster.installed)}
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (done.stderr, text)
    assert [one.name for one in folder.iterdir()] == ["plan.sql"]


def commented(text: str) -> list[str]:
    return [line for line in re.split("[\r\n]", text) if line.startswith("--")]


# The worst names in each place once, and then whatever comes.
@settings(
    max_examples=2, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip
@example(WORST[:11])
@given(st.lists(NAMES, min_size=11, max_size=11, unique=True))
def test_the_plan_does_what_it_says_and_nothing_else(
    source: Database, target: Database, tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("psql")
    with clone(source) as app, clone(target) as project, clone(target) as other:
        schemas = Schemas(app, project)
        before = everything(project)
        with app.connect() as conn:
            for statement in made(names):
                conn.execute(statement)
        for day in range(2):
            if day == 1:
                with app.connect() as conn:
                    for statement in changed(names):
                        conn.execute(statement)
            found = look(app.dsn, other.dsn, {})
            assert found.problems == ()
            psql(other, script(found, "0"), folder)
            schemas.apply()
            assert everything(project) ^ everything(other) == set()
            left = look(app.dsn, other.dsn, {})
            assert [step for step in left.due if not step.destructive] == []
            psql(other, script(left, "0"), folder)  # all that waits for a person stands in comments
            assert everything(project) ^ everything(other) == set()
        schemas.settle(allow_destructive=True)
        new = everything(project) - before
        assert {row for row in new if row[0] in {"function", "event", "extension", "member", "role"}} == set()
        assert {row[1] for row in new if row[0] in {"relation", "type"}}.isdisjoint({"pwned", "_pwned"})
        assert {row[1] for row in new if row[0] == "schema"} <= set(names)
        tables = {row[1] for row in new if row[0] == "relation" and row[3] in {"r", "p"}}
        assert tables == {names[4], names[5]}
        assert {row[1] for row in new if row[0] == "label"} == {names[2], names[3], f"{names[2][:20]}2"}


def test_no_name_ends_a_comment_of_the_file(source: Database, target: Database) -> None:
    """In a comment stands nothing that acts, hides or ends the line; in a statement nothing either."""
    schemas = Schemas(source, target)
    with source.connect() as conn:
        for statement in made(WORST[:11]):
            conn.execute(statement)
    schemas.apply()
    with source.connect() as conn:
        for statement in changed(WORST[:11]):
            conn.execute(statement)
    found = schemas.look()
    text = script(found, "0")
    assert any(step.destructive for step in found.steps)
    assert all(character == "\n" or character.isprintable() for character in text)
    assert [line for line in text.split("\n") if line.startswith(("grant service_role", "create table pwned"))] == []
    assert len(commented(text)) == len([line for line in text.split("\n") if line.startswith("--")])


async def test_a_type_of_a_strange_extension_or_place_is_a_persons_to_make(source: Database, target: Database) -> None:
    """An extension may be a language, and a schema may be somebody's: that table alone waits, and says why."""
    schemas = Schemas(source, target)
    schemas.on_source(
        "create extension hstore; create extension tcn; create type sly as enum ('x'); alter extension tcn add type sly",
        "create table good (id int primary key, v hstore)", "create table odd (id int primary key, v sly)",
        "create schema auth; create type auth.level as enum ('x'); create table sly2 (id int primary key, v auth.level)",
    )  # fmt: skip
    schemas.watch("good", "odd", "sly2")
    found = look(source.dsn, target.dsn, {})
    assert len(found.problems) == 2
    assert "extension tcn" in found.problems[0]
    assert 'type "auth"."level"' in found.problems[1]
    assert {step.table for step in found.steps} == {"public.good"}


def test_an_index_that_would_run_its_owners_code_stays_at_home(source: Database, target: Database) -> None:
    """Also by way of a constant that names something, or of a collation."""
    schemas = Schemas(source, target)
    schemas.on_source(
        "create function mine(text) returns text immutable language sql as 'select $1'",
        "create text search configuration words (copy = english)",
        "create collation mine (provider = libc, locale = 'POSIX')",
        "create table thing (id int primary key, a text, b varchar)",
        "create index one on thing (mine(a))", "create index two on thing (to_tsvector('words', a))",
        "create index three on thing (id) where a collate mine > 'x'", "create index four on thing (lower(b))",
        "create index five on thing (a collate mine)",
    )  # fmt: skip
    schemas.watch("thing")
    assert {step.what for step in schemas.look().steps if step.kind == "index"} == {"four", "five"}


def test_a_comment_that_is_an_order_stays_at_home(source: Database, target: Database) -> None:
    """pg_graphql takes some for what it is to show."""
    schemas = Schemas(source, target)
    schemas.on_source(
        "create table thing (id int primary key, a text)",
        """comment on table thing is '@graphql({"totalCount": {"enabled": true}})'; comment on column thing.a is 'said'""",
    )
    schemas.watch("thing")
    assert [step.what for step in schemas.look().steps if step.kind == "comment"] == ["a"]


def test_the_file_asks_for_no_function_but_the_systems_own(source: Database, target: Database, tmp_path: Path) -> None:
    """psql runs each statement by itself: an overload that fits better, in the target's schema public, is not called."""
    schemas = Schemas(source, target)
    schemas.on_source(
        "create table thing (id int primary key, list int[])", "create index counted on thing (cardinality(list))"
    )
    schemas.on_target(
        "create table thing (id int primary key, list int[]); insert into thing values (1, '{1}')",
        "create function public.cardinality(int[]) returns int immutable language plpgsql as "
        "$$ begin raise exception 'called as %', current_user; end $$",
    )
    schemas.watch("thing")
    psql(target, script(schemas.look(), "0"), tmp_path / "psql")
    assert schemas.ask("select array_agg(refobjid) from pg_depend where objid = 'counted'::regclass and refclassid = 'pg_proc'::regclass") is None  # fmt: skip


@pytest.mark.parametrize(
    "name", ["$(touch pwned)", "`touch pwned`", "';touch pwned;'", "x;touch pwned", "a\ntouch pwned"]
)
def test_a_command_in_a_sentence_runs_nothing_of_a_name(source: Database, tmp_path: Path, name: str) -> None:
    """Said by the source, and pasted into a shell: it is the one word that names the table."""
    quoted = f'public."{name}"'
    with source.connect() as conn:
        conn.execute(f"create table {quoted} (id int primary key, mail text)".encode())
        watch(conn, quoted, mask='{"mail": "hash"}')
        conn.execute(f"alter table {quoted} rename mail to post".encode())
        (said,) = conn.execute("select unfit from outbox.fit_of(array[%s])", (quoted,)).fetchone() or ("",)
    found = re.search(r"run `(.*)` again", said, re.DOTALL)
    assert found
    pasted = f'outboxd() {{ printf %s "$2"; }}; {found[1]}'
    ran = subprocess.run(["bash", "-c", pasted], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (ran.stdout, list(tmp_path.iterdir())) == (quoted, [])


def test_a_table_that_is_not_watched_is_named_as_a_word(source: Database, target: Database) -> None:
    """By the plan that asks for it."""
    with pytest.raises(SchemaUnfit, match=re.escape("outboxd watch '$(touch pwned)'")):
        look(source.dsn, target.dsn, {}, only=["$(touch pwned)"])
