"""Judged by others' rules: all that set-up, watch and `schema apply` make on either side, and print."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from daemon.demo.cluster import Cluster
from daemon.schema_apply import look
from daemon.schema_script import script
from outbox.migrations import script as setup
from tests.databases import Database, clone, source_template
from tests.schemas import Schemas
from tests.security.advisors import Finding, NoAdvisor, pgrls, splinter, squawk

PRIVATE = "a private schema that nobody may use: it stands in no API, and its owner alone reads it"
PROJECTS = "a role of the project's own, which outboxd does not make"
SOURCES = "as the application has it; outboxd does not change the source's tables"
MIRRORED = "as on the source"
READ_BY_ALL = "meant: access = 'public_read'"

# Judge and rule, of what (a pattern), and why it stays.
EXPECTED = {
    ("splinter", "rlsEnabledNoPolicy", r"public\.(silent|parts)"): "meant: a mirror without access is nobody's but the secret key's",
    ("splinter", "noPrimaryKey", r"outboxd\.held"): "its key may be longer than an index entry: unique by a hash",
    ("splinter", "noPrimaryKey", r"outbox\.change_\d"): "nothing unique may cost a writer; ids come from one sequence",
    ("splinter", "unusedIndex", r".*"): "counted since a moment ago: nothing has been asked yet",
    ("splinter", "unindexedForeignKeys", r"public\.child .*"): SOURCES,
    ("pgrls", "SEC001", r"outboxd?\..*"): PRIVATE,
    ("pgrls", "SEC001", r"public\.\w+"): SOURCES,
    ("pgrls", "SEC002", r"public\.\w+"): "meant: the owner, with whose rights the door writes, sees all rows",
    ("pgrls", "SEC005", r"public\.openly\.outboxd_select"): READ_BY_ALL,
    ("pgrls", "SEC007", r"public\.\w+"): "one policy a command: there is nothing to restrict",
    ("pgrls", "SEC008", r"public\.openly\.outboxd_select"): READ_BY_ALL,
    ("pgrls", "SEC009", r"public\.(silent|parts)"): "meant: a mirror without access is nobody's but the secret key's",
    ("pgrls", "SEC014", r"outboxd\.door"): "the one door: what it calls has not its rights (decision 8)",
    ("pgrls", "SEC014", r"outbox\.\w+"): "capture writes the outbox for whoever writes the table; nobody else may execute it",
    ("pgrls", "SEC016", r"(service_role|supabase_owner)"): PROJECTS,
    ("pgrls", "SEC022", r"public\.(openly|parent)"): "meant: a mirror is read",
    ("pgrls", "SEC029", r"authenticator"): PROJECTS,
    ("pgrls", "SEC030", r"public\.(child|parent)"): MIRRORED,
    ("pgrls", "SEC035", r"public\.(child|parent) .*"): "unique on the source: who may write is told by the plan and by check",
    ("pgrls", "SEC038", r"public\.openly\.outboxd_select"): READ_BY_ALL,
    ("pgrls", "SEC049", r"public\.openly"): READ_BY_ALL,
    ("squawk", "prefer-bigint-over-int", r'"id" integer not null,'): MIRRORED,
    ("squawk", "prefer-bigint-over-int", r"version +int primary key,"): "the number of a migration",
    ("squawk", "prefer-robust-stmts", r".* (enable row level security|replica identity full|validate constraint .*);"): "it may run again as often as one likes",
    ("squawk", "require-(lock|statement)-timeout", r"create schema if not exists outboxd?;"): "how long set-up waits is for whoever runs it",
    ("squawk", "require-concurrent-index-creation", r"create (unique )?index if not exists .*"): "cannot be in a transaction, as most tools run files; the copy comes later",
    ("squawk", "syntax-error", r".*"): "of set-up: its parser takes a column called include, and a name like within, for keywords",
}  # fmt: skip


@pytest.fixture
def source(target_cluster: Cluster) -> Iterator[Database]:
    """Beside the project, whose roles the advisors ask about; where one is missing they say nothing."""
    template = source_template(target_cluster)
    with clone(template) as database:
        yield database
    target_cluster.drop_database(template.name)


@pytest.fixture
def schemas(source: Database, target: Database) -> Schemas:
    """Tables of all kinds: an owner who reads, one who writes, all who read, nobody; enum, partitions, foreign key."""
    both = Schemas(source, target)
    both.on_source(
        "create type mood as enum ('a', 'b')",
        "create table parent (id uuid primary key, user_id uuid, code text unique, m mood default 'a')",
        "create table child (id int primary key, p uuid references parent, email text unique, owner_id uuid, v jsonb)",
        "create index on child (lower(email)); create index on child (email desc, p) where id > 0",
        "create table parts (id int, at date, v text, primary key (id, at)) partition by range (at)",
        "create table parts_1 partition of parts for values from ('2020-01-01') to ('2030-01-01')",
        "create table openly (id int primary key, v text)",
        "create table silent (id int primary key, v text)",
    )
    both.watch("parent", "child", "parts", "openly", "silent")
    both.say("public.parent", owner="user_id", realtime=True)
    both.say("public.child", owner="owner_id", write=True)
    both.say("public.openly", access="public_read")
    return both


def unexpected(found: set[Finding]) -> set[Finding]:
    return {one for one in found if not any(one.judge == j and re.fullmatch(r, one.rule) and re.fullmatch(of, one.of) for j, r, of in EXPECTED)}  # fmt: skip


def expose(database: Database) -> None:
    """As Supabase's dashboard asks: what is shown to the API is a setting."""
    with psycopg.connect(database.superuser_dsn, autocommit=True) as conn:
        conn.execute(f"alter database {database.name} set pgrst.db_schemas = 'public'".encode())


def judged(judge: Callable[[Database], set[Finding]], schemas: Schemas) -> set[Finding]:
    try:
        schemas.apply(allow_destructive=True)
        expose(schemas.source)
        expose(schemas.target)
        return judge(schemas.source) | judge(schemas.target)
    except NoAdvisor as missing:
        pytest.skip(str(missing))


def stale(found: set[Finding], judge: str) -> list[tuple[str, str, str]]:
    """Exceptions that nothing needs any more."""
    return [
        (j, r, of)
        for j, r, of in EXPECTED
        if j == judge
        and not any(one.judge == j and re.fullmatch(r, one.rule) and re.fullmatch(of, one.of) for one in found)
    ]


def test_supabases_advisors_object_to_nothing_of_ours(schemas: Schemas, tmp_path: Path) -> None:
    found = judged(lambda database: splinter(database, tmp_path), schemas)
    assert unexpected(found) == set()
    assert stale(found, "splinter") == []
    schemas.on_target(
        "create view shown as select * from openly; grant select on shown to anon", "alter table silent disable row level security; grant select on silent to anon"
    )  # fmt: skip
    seen = {(one.rule, one.of) for one in unexpected(splinter(schemas.target, tmp_path))}
    assert ("securityDefinerView", "public.shown") in seen, seen
    assert "rlsDisabledInPublic" in {rule for rule, _ in seen}, seen


def test_pgrls_objects_to_nothing_of_ours(schemas: Schemas, tmp_path: Path) -> None:
    ours = {schemas.source.name: "public,outbox", schemas.target.name: "public,outboxd"}
    found = judged(lambda database: pgrls(database, tmp_path, ours[database.name]), schemas)
    assert unexpected(found) == set()
    assert stale(found, "pgrls") == []


def test_squawk_objects_to_nothing_that_is_printed(schemas: Schemas, tmp_path: Path) -> None:
    plan = squawk(script(look(schemas.source.dsn, schemas.target.dsn, schemas.said), "0"), tmp_path)
    assert {one for one in plan if one.rule == "syntax-error"} == set()
    found = plan | squawk(setup("source"), tmp_path) | squawk(setup("target"), tmp_path)
    assert unexpected(found) == set()
    assert stale(found, "squawk") == []
