"""What the target refuses: nothing is applied, names lead to the cause, and mending it lets the same relay go on."""

import traceback
from collections.abc import AsyncIterator

import psycopg
import pytest
from structlog.testing import capture_logs

from daemon.errors import Kind, TargetError, advice
from tests.databases import Database
from tests.mirrored import Mirrored, rows

CANARY = "canary-4711"


@pytest.fixture
async def mirrored(source: Database, target: Database) -> AsyncIterator[Mirrored]:
    both = Mirrored(source, target)
    yield both
    await both.close()


def told(error: TargetError) -> str:
    """All that anybody may get to see of an error."""
    return "".join(
        [*traceback.format_exception(error), repr(error), repr(error.refusal), advice(error.kind, error.refusal)]
    )


# Data


NOTES = "create table note (id int primary key, place int unique {}, body text, tags text[])"


@pytest.mark.parametrize(
    ("narrower", "sqlstate", "named"),
    [
        ("alter table note add constraint note_body_check check (body not like 'canary%')", "23514", "note_body_check"),
        ("alter table note alter body set not null", "23502", "body"),
        ("create unique index note_body_key on note (left(body, 3))", "23505", "note_body_key"),
        ("alter table note alter body type varchar(5)", "22001", None),
        ("alter table note alter body type char(5)", "22001", None),
        ("create domain short as varchar(5); alter table note alter body type short", "22001", None),
        ("create domain tame as text constraint is_tame check (value not like 'canary%'); alter table note alter body type tame", "23514", "is_tame"),
        ("alter table note alter tags type varchar(5)[]", "22001", None),
        ("alter table note alter tags type char(5)[]", "22001", None),
        ("create domain shorts as varchar(5)[]; alter table note alter tags type shorts", "22001", None),
        ("create domain short as varchar(5); alter table note alter tags type short[]", "22001", None),
        ("alter table note alter body type int using null", "22P02", None),
        ("alter table note alter body type bit(3) using null", "22026", None),
    ],
    ids=[
        "check", "not null", "unique", "varchar", "char", "domain of varchar", "domain check", "varchar[]", "char[]",
        "domain of varchar[]", "domain[]", "int", "bit",
    ],
)  # fmt: skip
async def test_a_row_that_does_not_fit_is_an_error_and_never_cut(
    mirrored: Mirrored, narrower: str, sqlstate: str, named: str | None
) -> None:
    """The whole batch waits, in gear 2 as in gear 1, and what is said of it has names and no values."""
    mirrored.both(NOTES.format("deferrable"), NOTES.format(""), watch=["public.note"])
    await mirrored.carry("insert into note values (1, 1, 'a', '{x}'), (2, 2, 'b', null)")
    mirrored.on_target(narrower)
    body = "null" if sqlstate == "23502" else f"'{CANARY}<'"
    error = await mirrored.refused(
        "update note set place = 3 - place",
        f"insert into note values (3, 3, {body}, '{{{CANARY}}}'), (4, 4, 'can', null)",
    )
    assert error.refusal.sqlstate == sqlstate
    assert error.kind is Kind.DATA
    assert error.refusal.table == "public.note"
    assert named in (error.refusal.constraint, error.refusal.column)
    assert CANARY not in told(error)
    assert rows(mirrored.target, "select id, place from note order by id") == [(1, 1), (2, 2)]


async def test_the_row_mended_the_same_relay_goes_on(mirrored: Mirrored) -> None:
    """No restart: the next turn asks the target where it stands and sends the batch with the newer row."""
    mirrored.both(NOTES.format(""), watch=["public.note"])
    mirrored.on_target("alter table note add constraint tame check (body not like 'canary%')")
    error = await mirrored.refused(
        f"insert into note values (1, 1, '{CANARY}', null)", "insert into note values (2, 2, 'b', null)"
    )
    assert "tame" in advice(error.kind, error.refusal)
    assert await mirrored.carry("update note set body = 'mended' where id = 1") == 1
    assert mirrored.equal("note")


async def test_the_logs_of_a_running_relay_carry_no_value(mirrored: Mirrored) -> None:
    """The loop pauses, says which row's table and constraint, and the value is in none of its lines."""
    mirrored.both(NOTES.format(""), watch=["public.note"])
    mirrored.on_target("alter table note add constraint tame check (body not like 'canary%')")
    mirrored.on_source(f"insert into note values (1, 1, '{CANARY}', null)")
    with capture_logs() as lines:
        status = await mirrored.run_until_paused()
    assert status.problem is not None
    assert "tame" in status.problem
    failed = [line for line in lines if line["event"] == "turn_failed"]
    assert [(line["kind"], line["log_level"]) for line in failed[:1]] == [("data", "error")]
    assert CANARY not in repr(lines) + repr(status)


@pytest.mark.parametrize("how", ["message", "names"])
async def test_a_trigger_that_quotes_the_row_is_not_quoted(mirrored: Mirrored, how: str) -> None:
    """Whatever a trigger of the project raises, its words stay there."""
    raised = {
        "message": "raise exception 'no %', new.body using detail = new.body, hint = new.body",
        "names": "raise exception 'no' using column = new.body, constraint = new.body, table = new.body, schema = new.body",
    }[how]
    mirrored.both(NOTES.format(""), watch=["public.note"])
    mirrored.on_target(
        f"create function refuse() returns trigger language plpgsql as $$ begin {raised}; end $$",
        "create trigger refuse before insert on note for each row execute function refuse()",
    )
    error = await mirrored.refused(f"insert into note values (1, 1, '{CANARY}', null)")
    assert error.refusal.table == "public.note"
    assert CANARY not in told(error)


@pytest.mark.parametrize("errcode", ["42501", "42P01", "OB003", "OB009"])
async def test_a_trigger_that_quotes_the_row_in_words_of_ours_is_not_quoted(mirrored: Mirrored, errcode: str) -> None:
    """It may raise what only the door does: then its table alone is out."""
    mirrored.both(NOTES.format(""), watch=["public.note"])
    mirrored.on_target(
        f"create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no %', new.body using errcode = '{errcode}'; end $$",
        "create trigger refuse before insert on note for each row execute function refuse()",
    )
    with capture_logs() as lines:
        assert CANARY not in await mirrored.put_out(f"insert into note values (1, 1, '{CANARY}', null)")
    assert CANARY not in repr(lines) + repr(mirrored.relay.status)


async def test_a_missing_parent_names_the_child_and_the_constraint(mirrored: Mirrored) -> None:
    """Deferred constraints fail at the end, when the last group is long done: the table named is still theirs."""
    family = "create table owner (id int primary key); create table pet (id int primary key, owner_id int {}); create table zoo (id int primary key)"
    mirrored.both(
        family.format(""),
        family.format("constraint pet_owner_fkey references owner deferrable initially deferred"),
        watch=["public.owner", "public.pet", "public.zoo"],
    )
    error = await mirrored.refused(
        "insert into zoo values (1)", "insert into pet values (1, 48151623)", "insert into owner values (1)"
    )
    assert (error.kind, error.refusal.sqlstate) == (Kind.DATA, "23503")
    assert (error.refusal.table, error.refusal.constraint) == ("public.pet", "pet_owner_fkey")
    assert "48151623" not in told(error)
    await mirrored.carry("insert into owner values (48151623)")
    assert mirrored.equal("owner", "pet", "zoo")


async def test_a_trigger_that_looks_in_the_wrong_schema(mirrored: Mirrored) -> None:
    """The door's search_path is pinned, which a trigger of the project may not expect: the advice is what mends it."""
    mirrored.both(NOTES.format(""), watch=["public.note"])
    mirrored.on_target(
        "create table seen (id int)",
        "create function see() returns trigger language plpgsql as $$ begin insert into seen values (new.id); return new; end $$",
        "create trigger see before insert on note for each row execute function see()",
    )
    said = await mirrored.put_out(f"insert into note values (1, 1, '{CANARY}', null)")
    assert CANARY not in said
    statement, _, _ = said.rpartition("; `outboxd schema plan")
    assert "write the schema before each name in public.see()" in statement
    assert statement.endswith(": alter table public.note disable trigger see")
    await mirrored.mend_out(statement.rpartition(": ")[2])
    assert rows(mirrored.target, "select id from note") == [(1,)]
    assert rows(mirrored.target, "select id from seen") == []


async def test_a_value_that_names_what_the_target_does_not_have(mirrored: Mirrored) -> None:
    """42P01 for a row's own value: its table alone is out, and the value stands nowhere."""
    mirrored.both("create table note (id int primary key, body text)", watch=["public.note"])
    mirrored.on_target("alter table note alter body type regclass using null")
    assert CANARY not in await mirrored.put_out(f"insert into note values (1, '{CANARY}')")
    await mirrored.mend_out("alter table note alter body type text")
    assert mirrored.equal("note")


# Foreign keys that act by themselves


FAMILY = """
create table parent (id int primary key, name text not null {unique});
create table child (id int primary key, parent_id int {null} constraint child_parent_fkey references parent {action});
"""


@pytest.mark.parametrize("action", ["on delete cascade", "on delete set null", "on delete set default"])
async def test_gear_2_is_refused_where_it_would_destroy_other_rows(mirrored: Mirrored, action: str) -> None:
    """Replacing a parent would take along children that are not in the batch: they survive, and the advice cures it."""
    mirrored.both(
        FAMILY.format(unique="unique deferrable", null="", action=""),
        FAMILY.format(unique="unique", null="", action=action),
        watch=["public.parent", "public.child"],
    )
    await mirrored.carry("insert into parent values (1, 'a'), (2, 'b')", "insert into child values (1, 1), (2, 2)")
    error = await mirrored.refused("update parent set name = chr(195 - ascii(name))")
    assert (error.kind, error.refusal.sqlstate) == (Kind.CONTRACT, "OB005")
    assert "child_parent_fkey" in advice(error.kind, error.refusal)
    assert "ON DELETE NO ACTION DEFERRABLE" in advice(error.kind, error.refusal)
    assert rows(mirrored.target, "select id, parent_id from child order by id") == [(1, 1), (2, 2)]
    mirrored.on_target(
        "alter table child drop constraint child_parent_fkey",
        "alter table child add constraint child_parent_fkey foreign key (parent_id) references parent on delete no action deferrable",
    )
    await mirrored.relay.drain()
    assert mirrored.gears.used[-1] == 2
    assert mirrored.equal("parent", "child")


async def test_a_row_that_no_order_can_cure_is_not_blamed_on_a_cascade(mirrored: Mirrored) -> None:
    """NOT NULL fails in any gear: the answer names the column, though a foreign key would forbid gear 2."""
    mirrored.both(
        FAMILY.format(unique="", null="", action="").replace("name text not null", "name text"),
        FAMILY.format(unique="", null="", action="on delete cascade"),
        watch=["public.parent", "public.child"],
    )
    error = await mirrored.refused("insert into parent values (1, null)")
    assert (error.kind, error.refusal.sqlstate, error.refusal.column) == (Kind.DATA, "23502", "name")


# Contract: what is missing on the target


TABLE = 'create table "Order" (id int primary key, "Total" numeric(10, 2))'


async def test_a_table_that_is_not_mapped(mirrored: Mirrored) -> None:
    """The advice is the statement; the check's is the command that knows all that the table lacks."""
    mirrored.both(TABLE, watch=['public."Order"'], map_too=False)
    statement = """select outboxd.map('public."Order"')"""
    assert statement in await mirrored.put_out('insert into "Order" values (1, 2.50)')
    item, _ = [item for item in await mirrored.check() if "Order" in item.name]
    assert item.fix == "outboxd schema apply"
    await mirrored.mend_out(statement)
    assert mirrored.equal('"Order"')


async def test_a_table_that_is_gone(mirrored: Mirrored) -> None:
    """Dropped on the target after it was mapped: named, and its return is enough."""
    mirrored.both(TABLE, watch=['public."Order"'])
    mirrored.on_target('drop table "Order"')
    assert 'public."Order"' in await mirrored.put_out('insert into "Order" values (1, 2.50)')
    assert any('public."Order"' in item.what for item in await mirrored.check())
    await mirrored.mend_out(TABLE)
    assert mirrored.equal('"Order"')


async def test_a_column_that_is_missing(mirrored: Mirrored) -> None:
    """A column added to the source first: check says what is missing, and adding it is enough."""
    mirrored.both(TABLE, watch=['public."Order"'])
    why = await mirrored.put_out(
        'alter table "Order" add "paidBy" varchar(20)', """insert into "Order" values (1, 2.50, 'ada')"""
    )
    assert why.startswith('the target table public."Order" has no column "paidBy"')
    assert why.endswith("""`outboxd schema plan 'public."Order"'` names the step""")
    (item,) = [item for item in await mirrored.check() if "missing" in item.what]
    assert "paidBy" in item.what
    assert item.fix == 'alter table public."Order" add column "paidBy" character varying(20);'
    await mirrored.mend_out(item.fix)
    assert mirrored.equal('"Order"')


async def test_a_grant_that_is_missing(mirrored: Mirrored) -> None:
    """A table of another owner: the statement in the advice and in check, run by that owner, is enough."""
    mirrored.both(TABLE, watch=['public."Order"'])
    with psycopg.connect(mirrored.target.superuser_dsn, autocommit=True) as conn:
        conn.execute('alter table "Order" owner to postgres')
        conn.execute('grant select, insert on "Order" to supabase_owner')
        reason = await mirrored.put_out('insert into "Order" values (1, 2.50)')
        assert reason.endswith('grant update, delete on public."Order" to supabase_owner')
        (item,) = [item for item in await mirrored.check() if "may not" in item.what]
        assert item.fix.startswith("grant ")
        conn.execute(item.fix.encode())
    await mirrored.mend_out()
    assert mirrored.equal('"Order"')
