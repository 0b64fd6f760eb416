"""What the source itself does not keep is not asked of the target; what one table is refused keeps nothing from the
others; what takes something away waits for a person, whoever asks and from wherever."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from daemon.demo.binaries import MissingPostgres, binaries
from daemon.schema_apply import apply, look
from daemon.schema_steps import Plan
from daemon.tables import TableSettings
from tests.schemas import Schemas, fresh, templates


@pytest.fixture(scope="session")
def newest(new_folder: Callable[[str], Path]) -> Iterator[tuple[object, object]]:
    """Of a version that knows NOT ENFORCED."""
    try:
        binaries(18)
    except MissingPostgres as missing:
        pytest.skip(str(missing))
    with templates(new_folder("schema-18"), 18) as pair:
        yield pair


FAMILY = (
    "create table parent (id int primary key, name text)",
    "create table child (id int primary key, parent int)",
)


async def test_a_foreign_key_that_the_source_has_not_validated(schemas: Schemas) -> None:
    """An orphan lives there, and may live here; new rows are looked at, on both sides."""
    schemas.on_source(*FAMILY, "insert into child values (1, 99)")
    schemas.on_source("alter table child add constraint kin foreign key (parent) references parent not valid")
    schemas.watch("parent", "child")
    schemas.apply()
    await schemas.pair.drain()
    assert [step.kind for step in schemas.settle()] == ["foreign_key"]
    assert schemas.ask("select convalidated from pg_constraint where conname = 'kin'") is False
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        schemas.on_target("insert into child values (2, 98)")
    schemas.on_source("delete from child", "alter table child validate constraint kin")
    await schemas.pair.drain()
    assert [step.kind for step in schemas.settle()] == ["validate"]


async def test_a_foreign_key_that_the_source_does_not_enforce(newest: tuple[object, object]) -> None:
    """Rows without their parent are legal there, so they arrive."""
    with fresh(newest) as schemas:  # type: ignore[arg-type]
        schemas.on_source(*FAMILY)
        schemas.on_source("alter table child add constraint kin foreign key (parent) references parent not enforced")
        schemas.watch("parent", "child")
        assert schemas.look().notes == ("public.child: no foreign key like kin: the source itself does not enforce it",)
        schemas.settle()
        schemas.on_source("insert into child values (1, 99)")
        await schemas.pair.drain()
        assert schemas.ask("select parent from child") == 99


def test_a_step_that_is_refused_keeps_nothing_from_the_others(schemas: Schemas) -> None:
    """Nor from being seen: the Data API is told to look again. It is named, and what rests on it is not tried."""
    schemas.on_source("create table a (id int primary key)", "create table b (id int primary key)")
    schemas.on_target("create view a as select 1 as id")
    schemas.watch("a", "b")
    with schemas.target.connect() as conn:
        conn.execute("listen pgrst")
        done = apply(schemas.source.dsn, schemas.target.dsn, {})
        assert "reload schema" in [one.payload for one in conn.notifies(timeout=10, stop_after=1)]
    assert {step.table for step in done.steps} == {"public.b"}
    [sentence] = done.refused
    assert "public.a" in sentence
    assert schemas.ask("select count(*) from outboxd.mirror") == 1
    schemas.on_target("drop view a")
    schemas.settle()


def test_a_table_that_cannot_be_planned_keeps_nothing_from_the_others(schemas: Schemas) -> None:
    schemas.on_source(
        "create type span as range (subtype = float8)",
        "create table a (id int primary key, s span)",
        "create table b (id int primary key)",
    )
    schemas.watch("a", "b")
    done = apply(schemas.source.dsn, schemas.target.dsn, {})
    assert {step.table for step in done.steps} == {"public.b"}
    [problem] = done.plan.problems
    assert 'type "public"."span" is neither an enum type' in problem


def test_a_column_that_does_not_travel_needs_no_type(schemas: Schemas) -> None:
    """An extension that the target cannot have is of no interest then; nor is an excluded domain over an excluded type."""
    schemas.on_source(
        "create extension hstore",
        "create type span as range (subtype = float8)",
        "create domain spans as span",
        "create domain short as varchar(5)",
        "create table thing (id int primary key, embedding hstore, far spans, name short)",
        "select outbox.watch('thing', exclude => array['embedding', 'far'])",
    )
    assert "extension" not in schemas.kinds()
    schemas.settle()
    assert schemas.columns("thing") == {"id": "integer not null", "name": "short"}


def test_what_is_left_of_a_table_that_is_watched_no_longer(schemas: Schemas) -> None:
    """Our foreign key would refuse deletes of parents for good: the plan says so, and takes ours away when that is allowed.
    The rows and the table are not ours."""
    schemas.on_source(*FAMILY, "alter table child add foreign key (parent) references parent")
    schemas.say("public.child", access="public_read")
    schemas.watch("parent", "child")
    schemas.settle()
    schemas.on_target("create policy own on child using (true)")
    schemas.on_source("select outbox.unwatch('child')")
    schemas.on_target("insert into parent values (1); insert into child values (1, 1)")
    steps = schemas.look().steps
    assert [step.kind for step in steps] == ["policy", "drop_reference", "unmap"]
    assert all(step.destructive and step.loses for step in steps)
    assert schemas.apply().steps == ()
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        schemas.on_target("delete from parent")
    schemas.settle(allow_destructive=True)
    schemas.on_target("delete from parent")
    assert schemas.ask("select count(*) from child") == 1
    assert schemas.ask("select json_agg(policyname) from pg_policies where tablename = 'child'") == ["own"]
    assert schemas.ask("select json_agg(table_name) from outboxd.mirror") == ["public.parent"]


def test_a_parent_that_is_watched_no_longer(schemas: Schemas) -> None:
    schemas.on_source(*FAMILY, "alter table child add foreign key (parent) references parent")
    schemas.watch("parent", "child")
    schemas.settle()
    schemas.on_source("select outbox.unwatch('parent')")
    assert [step.kind for step in schemas.look().steps] == ["drop_reference", "unmap"]
    schemas.settle(allow_destructive=True)
    schemas.on_target("insert into child values (1, 99)")


POLICIES = "select coalesce(json_agg(policyname order by policyname), '[]') from pg_policies where tablename = 'thing'"


def elsewhere(schemas: Schemas, **said: object) -> Plan:
    """The plan as another folder has it."""
    tables = {"public.thing": TableSettings.model_validate(said)} if said else {}
    return look(schemas.source.dsn, schemas.target.dsn, tables)


def test_another_folder_changes_nothing_of_who_may_see_a_table(schemas: Schemas) -> None:
    """The source remembers what was agreed to. A folder without a configuration plans nothing; one that says something else
    is shown what it would take away or give, and has to ask for it."""
    schemas.on_source("create table thing (id int primary key, user_id uuid)")
    schemas.watch("thing")
    schemas.say("public.thing", owner="user_id", write=True)
    schemas.settle(record=True)
    assert elsewhere(schemas).steps == ()
    for said in ({"access": "none"}, {"access": "public_read"}, {"owner": "user_id", "write": False}):
        steps = elsewhere(schemas, **said).steps
        assert steps
        assert all(step.destructive and step.loses for step in steps), [step.sql for step in steps]
    tables = {"public.thing": TableSettings(access="none")}
    assert apply(schemas.source.dsn, schemas.target.dsn, tables, record=True).steps == ()
    assert elsewhere(schemas).steps == (), "what was not done is not on record either"
    done = apply(schemas.source.dsn, schemas.target.dsn, tables, record=True, allow_destructive=True)
    assert {step.kind for step in done.steps} == {"policy"}
    assert schemas.ask(POLICIES) == []
    assert elsewhere(schemas).steps == ()


def test_without_a_record_taking_away_is_asked_for_all_the_same(schemas: Schemas) -> None:
    schemas.on_source("create table thing (id int primary key, user_id uuid)")
    schemas.watch("thing")
    schemas.say("public.thing", owner="user_id", write=True)
    schemas.settle()
    steps = elsewhere(schemas).steps
    assert len(steps) == 4
    assert all(step.destructive for step in steps)
    assert "authenticated may select rows where" in " ".join(step.loses for step in steps)
    schemas.on_source("alter table thing alter user_id type text")
    done = apply(schemas.source.dsn, schemas.target.dsn, {}, allow_destructive=False)
    assert done.steps == ()
    assert len(schemas.ask(POLICIES)) == 4


async def test_a_label_that_was_renamed(schemas: Schemas) -> None:
    """The rows that have it are told at once; a value that the target alone has, and no row, stays what it is."""
    schemas.on_source(
        "create type mood as enum ('calm', 'wild', 'odd')",
        "create table thing (id int primary key, mood mood, moods mood[])",
        "insert into thing values (1, 'wild', '{odd}'), (2, 'calm', null)",
    )
    schemas.watch("thing")
    schemas.settle()
    await schemas.pair.drain()
    schemas.on_target("alter type mood add value 'own'")
    schemas.on_source(
        "alter type mood rename value 'wild' to 'fierce'",
        "alter type mood rename value 'odd' to 'strange'",
        "alter type mood add value 'last'",
    )
    assert schemas.kinds() == ["rename_label", "rename_label", "label"]
    schemas.settle()
    assert schemas.ask("select json_agg(mood order by id) from thing") == ["fierce", "calm"]
    assert schemas.ask("select moods::text from thing where id = 1") == "{strange}"
    assert {"own", "last"} <= set(schemas.ask("select to_json(enum_range(null::mood))"))


async def test_a_label_of_which_nobody_can_tell_what_it_is_now(schemas: Schemas) -> None:
    """Another one came beside it: what is written gets what it needs, and the person is asked for the rest."""
    schemas.on_source(
        "create type mood as enum ('calm', 'wild')",
        "create table thing (id int primary key, mood mood)",
        "insert into thing values (1, 'wild')",
    )
    schemas.watch("thing")
    schemas.settle()
    await schemas.pair.drain()
    schemas.on_source(
        "alter type mood rename value 'wild' to 'fierce'", "alter type mood add value 'new' before 'fierce'"
    )
    found = schemas.look()
    assert [step.kind for step in found.steps] == ["label", "label"]
    [note] = found.notes
    assert "rows on the target have wild, which is no value of" in note
    assert "rename value 'wild' to" in note


def test_a_foreign_key_of_a_partition_alone_is_named(schemas: Schemas) -> None:
    schemas.on_source(
        "create table kind (id int primary key)",
        "create table part (id int, kind int, primary key (id)) partition by range (id)",
        "create table part_low partition of part for values from (0) to (100)",
        "alter table part_low add constraint lowly foreign key (kind) references kind",
    )
    schemas.watch("part", "kind")
    assert schemas.look().notes == ("public.part: no foreign key like lowly: it is of partition public.part_low alone",)
