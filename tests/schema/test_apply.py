"""Applying as a whole: by the rights a hosted project gives, interrupted, twice at once, as one file; and any schema at all."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.errors import SchemaUnfit
from daemon.schema_apply import apply, look
from daemon.schema_script import script
from daemon.schema_steps import ORDER, Step
from tests.databases import Database
from tests.schemas import Schemas, fresh
from tests.waiting import wait_until

APPLICATION = """
create type mood as enum ('calm', 'wild');
create domain short as varchar(20);
create table parent (id uuid primary key, name short not null, mood mood not null default 'calm', user_id uuid, unique (name));
create table child (id bigint generated always as identity primary key, parent uuid not null references parent on delete cascade, place int,
                    doc jsonb, unique (parent, place));
create index on child using gin (doc);
comment on table child is 'of a parent';
"""


@pytest.fixture
def app(schemas: Schemas) -> Schemas:
    """Two tables with a bit of everything, nothing of it on the target."""
    schemas.on_source(APPLICATION)
    schemas.watch("parent", "child")
    schemas.say("public.parent", owner="user_id", realtime=True)
    return schemas


def test_whoever_applies_is_no_superuser(app: Schemas) -> None:
    """As hosted projects have it: the role owns the database, and neither `auth` nor Supabase's roles."""
    rights = app.ask("select array[rolsuper, rolcreaterole] from pg_roles where rolname = current_user")
    assert rights == [False, True]
    assert app.ask("select nspowner::regrole::text from pg_namespace where nspname = 'auth'") == "postgres"
    app.settle()


def test_an_apply_that_is_interrupted_goes_on(app: Schemas) -> None:
    """After every single step in turn: what was done stays, and the next one does the rest."""

    class Interrupted(Exception):
        pass

    def interrupt(_: Step) -> None:
        raise Interrupted

    whole = [step.sql for step in app.look().due]
    done = 0
    while app.look().due:
        with pytest.raises(Interrupted):
            app.apply(on_step=interrupt)
        done += 1
        left = [step.sql for step in app.look().due]
        assert left == whole[done:]
    assert done == len(whole)
    app.settle()


def test_a_step_that_fails_leaves_the_others(app: Schemas) -> None:
    """It is taken back as a whole and named; mended, the next apply has what is left."""
    app.on_target("create table child (id bigint primary key, parent uuid); insert into child values (1, null)")
    app.on_target("alter table child add constraint none check (parent is null)")
    app.apply()
    app.on_target("drop table child cascade; delete from outboxd.mirror where table_name = 'public.child'")
    app.on_target("create view child as select 1 as id")
    with pytest.raises(SchemaUnfit, match=r"public.child: .* was refused \(42809\)"):
        app.apply()
    app.on_target("drop view child")
    app.settle()


def test_two_at_once(app: Schemas) -> None:
    """The second plans when the first is through, and finds nothing to do."""
    done: list[int] = []
    reached, go_on = threading.Event(), threading.Event()

    def hold(_: Step) -> None:
        reached.set()
        assert go_on.wait(30)

    def run(**options: Any) -> None:
        done.append(len(apply(app.source.dsn, app.target.dsn, app.said, **options).steps))

    first = threading.Thread(target=run, kwargs={"on_step": hold})
    first.start()
    assert reached.wait(30)
    second = threading.Thread(target=run)
    second.start()
    with app.target.connect() as conn:
        wait_until(
            lambda: conn.execute(
                "select count(*) > 0 from pg_stat_activity where application_name like 'outboxd%' and query ~ 'advisory' and datname = current_database()"
            ).fetchone() == (True,) or None,
            30,
        )  # fmt: skip
    go_on.set()
    first.join(60)
    second.join(60)
    assert done[0] > 5
    assert done[1] == 0
    with closing(app.target.connect()) as other:
        other.execute("select pg_advisory_lock(1869968482, 4)")
        with pytest.raises(SchemaUnfit, match="another `schema apply` is at work"):
            app.apply(patience=0.1)


def test_a_table_that_is_locked_is_waited_for(app: Schemas) -> None:
    """Two seconds at a time; when patience ends it says so, and nothing is half done."""
    app.settle()
    app.on_source("alter table child add more int")
    with app.target.connect(autocommit=False) as other:
        other.execute("lock table child in access share mode")
        with pytest.raises(SchemaUnfit, match=r"public\.child: its tables are locked by long transactions"):
            app.apply(patience=0.1)
    assert [step.kind for step in app.settle()] == ["column"]


def test_the_script_does_the_same_and_may_run_again(app: Schemas) -> None:
    """As one file, in one transaction, as a migration tool runs it: afterwards there is nothing left to do."""
    app.on_target("create table child (id bigint primary key, own int not null)")
    found = app.look()
    assert {"table", "column", "not_null", "type", "policy"} <= {step.kind for step in found.due}
    text = script(found, "0")
    for _ in range(2):
        with app.target.connect(autocommit=False) as conn:
            conn.execute(text.encode())
    assert app.look().due == ()


def test_the_script_without_a_target(app: Schemas) -> None:
    """For a project that has nothing yet; foreign keys look for themselves whether the rows are there."""
    app.on_source("insert into parent (id, name) values (gen_random_uuid(), 'a')")
    text = script(look(app.source.dsn, None, app.said), "0")
    with app.target.connect() as conn:
        conn.execute("create publication supabase_realtime")
        conn.execute(
            "create table if not exists outboxd.copy (relay text, table_name text, state text, primary key (relay, table_name))"
        )
        conn.execute(text.encode())
        keys = (
            "select count(*) from pg_constraint where contype = 'f' and convalidated and conrelid = 'child'::regclass"
        )
        assert conn.execute(keys.encode()).fetchone() == (0,)
        assert app.look().due == ()
        conn.execute(
            "insert into outboxd.copy (relay, table_name, state) values ('main', 'public.parent', 'done'), ('main', 'public.child', 'done')"
        )
        conn.execute(text.encode())
        assert conn.execute(keys.encode()).fetchone() == (1,)
    assert app.look().steps == ()


def test_the_script_uses_no_value_that_it_has_just_added(app: Schemas) -> None:
    """Postgres allows that only after the transaction in which an enum type got it."""
    app.settle()
    app.on_source(
        "alter type mood add value 'new'",
        "alter table parent add later mood default 'new', add soon mood default 'wild'",
    )
    text = script(app.look(), "0")
    with app.target.connect(autocommit=False) as conn:
        conn.execute(text.encode())
    assert app.look().due == ()
    defaults = "select json_agg(a.attname) from pg_attrdef d join pg_attribute a on attrelid = adrelid and attnum = adnum where adrelid = 'parent'::regclass"
    assert app.ask(defaults) == ["mood", "soon"]


def test_what_is_destructive_is_a_comment_in_the_script(app: Schemas) -> None:
    app.on_target("create table child (id text[] primary key)")
    text = script(app.look(), "0")
    assert "-- not done by itself, it loses: the table is written anew" in text
    assert not [line for line in text.splitlines() if "type bigint" in line and not line.startswith("--")]


def test_nothing_is_done_unless_it_is_agreed_to(app: Schemas) -> None:
    before = app.look().steps
    done = app.apply(agreed=lambda _: False)
    assert done.steps == ()
    assert app.look().steps == before


def test_tables_that_cannot_be_planned_are_named(app: Schemas) -> None:
    """One that is gone, one that is only emitted, and settings for one that nobody watches; and what realtime tells."""
    app.say("public.nobody", access="none")
    app.on_source("create table gone (id int primary key); select outbox.watch('gone'); drop table gone")
    app.on_source("select outbox.map('public.card', array['id'])")
    assert [note.partition(":")[0] for note in app.look().notes] == [
        '[tables."public.nobody"] is said of a table that is not watched', "public.card", "public.gone", "public.parent",
    ]  # fmt: skip
    app.settle()


# any schema

TYPES = [
    "int", "bigint", "smallint", "text", "varchar(30)", "uuid", "boolean", "numeric(12, 3)", "numeric", "double precision", "date",
    "timestamptz", "timestamp(3)", "jsonb", "json", "text[]", "int[]", "bytea", "mood", "mood[]", "short", "inet", "interval", "point_of",
]  # fmt: skip
VALUES = {
    "text": "'t' || i", "varchar(30)": "'v' || i", "int": "i", "bigint": "i", "smallint": "i", "uuid": "md5(i::text)::uuid", "short": "'s' || i",
    "mood": "case when i % 2 = 0 then 'calm'::mood else 'wild' end", "jsonb": "jsonb_build_object('i', i)", "text[]": "array['a', i::text]",
    "point_of": "row(i, 'p')::point_of", "date": "'2026-01-01'::date + i::int", "timestamptz": "'2026-01-01'::timestamptz + i * interval '1 s'",
}  # fmt: skip
KEYS = ["int", "bigint", "text", "uuid", "date"]

names = st.sampled_from(["a", "B", "c d", "order", 'q"t', "é"])


@st.composite
def tables(draw: st.DrawFn) -> list[str]:
    """DDL of one to three tables, each perhaps with a reference to one before."""
    made: list[str] = []
    keys: list[str] = []
    for n in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(KEYS))
        columns = [f"id {kind} primary key"]
        for name in draw(st.lists(names, max_size=5, unique=True)):
            quoted = '"' + name.replace('"', '""') + '"'
            typed = draw(st.sampled_from(TYPES))
            unique = " unique" if typed in KEYS and draw(st.booleans()) else ""
            default = " default 7" if typed in {"int", "bigint", "smallint"} and draw(st.booleans()) else ""
            columns.append(f"{quoted} {typed}{unique}{default}")
        if len(keys) > 0 and draw(st.booleans()):
            to = draw(st.integers(0, len(keys) - 1))
            action = draw(st.sampled_from(["", " on delete cascade", " on delete set null", " deferrable"]))
            columns.append(f"up {keys[to]} references t{to}{action}")
        made.append(f"create table t{n} ({', '.join(columns)})")
        keys.append(kind)
    return made


CHANGES = [
    "alter table t0 add added int", "alter table t0 add added_too text not null default 'x'", "create index on t0 (id desc)",
    "alter table t0 add constraint once unique (id)", "alter type mood add value 'new' before 'wild'", "comment on table t0 is 'said'",
    "alter table t0 add own mood[] default '{calm}'", "alter table t0 add self text; alter table t0 add unique (self, id)",
]  # fmt: skip


def rows_of(source: psycopg.Connection[Any]) -> Iterator[str]:
    """Statements that write ten rows into each table."""
    found = source.execute(
        "select c.relname, json_agg(json_build_array(quote_ident(a.attname), format_type(a.atttypid, a.atttypmod)) order by attnum) from pg_class c"
        " join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped where c.relname ~ '^t\\d$' and c.relkind = 'r' group by 1 order by 1"
    ).fetchall()
    spelled = {"integer": "int", "character varying(30)": "varchar(30)", "timestamp with time zone": "timestamptz"}
    for table, columns in found:
        known = [(name, VALUES[spelled.get(kind, kind)]) for name, kind in columns if spelled.get(kind, kind) in VALUES]
        values = ", ".join(value for _, value in known)
        yield f"insert into {table} ({', '.join(name for name, _ in known)}) select {values} from generate_series(1, 10) i"


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ddl=tables(),
    changes=st.lists(st.sampled_from(CHANGES), max_size=3, unique=True),
    share=st.sampled_from(["none", "public_read"]),
)
def test_any_schema(sides: tuple[Database, Database], ddl: list[str], changes: list[str], share: str) -> None:
    """Made from nothing, and after changes of the source: the plan is empty then, and rows flow."""
    with fresh(sides) as schemas:
        schemas.on_source(
            "create type mood as enum ('calm', 'wild'); create domain short as text",
            "create type point_of as (x int, y text)",
            *ddl,
        )
        schemas.watch(*(f"t{n}" for n in range(len(ddl))))
        for n in range(len(ddl)):
            schemas.say(f"public.t{n}", access=share)
        for each in ([], changes):
            schemas.on_source(*each)
            steps = schemas.settle()
            assert not any(step.destructive for step in steps)
            assert [ORDER.index(step.kind) for step in steps] == sorted(ORDER.index(step.kind) for step in steps)
            with schemas.source.connect() as conn:
                statements = list(rows_of(conn)) if each is changes else []
            schemas.pair.write(*statements)
            asyncio.run(schemas.pair.drain())
        for n in range(len(ddl)):
            with schemas.source.connect() as here, schemas.target.connect() as there:
                asked = f'select to_jsonb(t) from t{n} t order by id::text collate "C"'.encode()
                assert there.execute(asked).fetchall() == here.execute(asked).fetchall()
