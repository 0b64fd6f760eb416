"""What the door answers is the same by every way to it."""

import asyncio
from collections.abc import Awaitable

import psycopg
import pytest

from daemon.demo.supabase import EmbeddedSupabase
from daemon.errors import Fenced, Kind, TargetError
from daemon.relay import Relay, Silent
from daemon.source import Source
from daemon.target import Answer, Target
from daemon.wakeup import Bell
from tests.contract.conftest import Deadlines, Stand, at, parts, upserts
from tests.databases import Database


async def claimed(stand: Stand) -> Target:
    target = stand.target()
    assert (await target.claim()).standing.epoch == 1
    return target


async def test_a_first_claim_begins_at_nothing(stand: Stand) -> None:
    """A relay that the target does not know has no cursor; each claim raises the epoch and keeps the place."""
    target = stand.target()
    first = await target.claim()
    assert (first.what, first.standing.epoch, first.standing.batch_no, first.standing.cursor) == ("claimed", 1, 0, None)
    await target.apply(upserts((1, "a")), at(10), 1, 1)
    again = await target.claim()
    assert (again.standing.epoch, again.standing.batch_no, again.standing.cursor) == (2, 1, at(10))
    assert (await target.cursor()).standing == again.standing


async def test_the_door_describes_tables_and_their_order(stand: Stand) -> None:
    """What the plan and `check` need: tables, keys, columns, foreign keys, and who writes."""
    described = (await stand.target().describe()).more
    tables = {table["table"]: table for table in described["tables"]}
    assert tables.keys() == {"public.item", "public.part"}
    item = tables["public.item"]
    assert (item["exists"], item["key"], item["key_is_unique"], item["missing_grants"]) == (True, ["id"], True, [])
    assert [(column["name"], column["type"]) for column in item["columns"]] == [("id", "integer"), ("v", "text")]
    assert item["triggers"] == ["note_effect"]
    (reference,) = described["references"]
    assert (reference["child"], reference["parent"], reference["deferrable"]) == ("public.part", "public.item", True)
    assert described["role"] == "supabase_owner"


async def test_a_batch_moves_rows_and_cursor_together(stand: Stand) -> None:
    """The answer has the cursor that the target stored, and asking again gives the same."""
    target = await claimed(stand)
    answer = await target.apply(upserts((1, "a"), (2, "b")), at(10), 1, 1)
    assert (answer.what, answer.standing.batch_no, answer.standing.cursor) == ("applied", 1, at(10))
    assert (answer.more["gear"], answer.more["written"]) == (1, 2)
    assert (await target.cursor()).standing == answer.standing
    assert stand.items() == {1: "a", 2: "b"}


async def test_a_batch_sent_twice_is_applied_once(stand: Stand) -> None:
    """Same epoch, number and digest: the second is told so, with the cursor of the first."""
    target = await claimed(stand)
    first = await target.apply(upserts((1, "a")), at(10), 1, 1)
    again = await target.apply(upserts((1, "a")), at(10), 1, 1)
    assert (again.what, again.standing) == ("duplicate", first.standing)
    assert stand.effects() == [(1, "a")]


async def test_the_same_number_with_other_changes_is_no_duplicate(stand: Stand) -> None:
    """A batch planned anew after a lost answer may hold more: taken for the first, its changes would be lost."""
    target = await claimed(stand)
    await target.apply(upserts((1, "a")), at(10), 1, 1)
    answer = await target.apply(upserts((1, "a"), (2, "b")), at(20), 1, 1)
    assert (answer.what, answer.standing.cursor) == ("mismatch", at(10))
    assert stand.items() == {1: "a"}


@pytest.mark.parametrize("batch_no", [0, 2, 4])
async def test_a_batch_out_of_turn_is_not_applied(stand: Stand, batch_no: int) -> None:
    """Two batches were applied: only the third fits, and the answer says where to go on."""
    target = await claimed(stand)
    await target.apply(upserts((1, "a")), at(10), 1, 1)
    await target.apply(upserts((1, "b")), at(20), 1, 2)
    answer = await target.apply(upserts((1, "z")), at(30), 1, batch_no)
    assert (answer.what, answer.standing.batch_no, answer.standing.cursor) == ("mismatch", 2, at(20))
    assert stand.items() == {1: "b"}


async def test_whoever_claims_later_fences_the_earlier_off(stand: Stand) -> None:
    """Promise I6: an old relay that wakes up writes nothing, not even a batch that would fit."""
    old, new = await claimed(stand), stand.target()
    assert (await new.claim()).standing.epoch == 2
    with pytest.raises(Fenced):
        await old.apply(upserts((1, "old")), at(10), 1, 1)
    assert stand.items() == {}
    assert (await new.apply(upserts((1, "new")), at(10), 2, 1)).what == "applied"
    with pytest.raises(Fenced):  # not even as a duplicate
        await old.apply(upserts((1, "new")), at(10), 1, 1)
    assert stand.effects() == [(1, "new")]


async def test_who_has_not_claimed_is_fenced_off(stand: Stand) -> None:
    """A relay that the target does not know writes nothing."""
    with pytest.raises(Fenced):
        await stand.target().apply(upserts((1, "a")), at(10), 1, 1)
    assert stand.items() == {}


async def test_a_relay_has_a_cursor_of_its_own(stand: Stand) -> None:
    """Two relays share the tables and neither fences nor moves the other."""
    mine = await claimed(stand)
    stand.name += "_other"
    theirs = await claimed(stand)
    await mine.apply(upserts((1, "a")), at(10), 1, 1)
    assert (await theirs.cursor()).standing.cursor is None
    assert (await theirs.apply(upserts((2, "b")), at(90), 1, 1)).what == "applied"
    assert (await mine.cursor()).standing.cursor == at(10)


async def test_a_deferred_constraint_is_an_answer(stand: Stand) -> None:
    """It fails inside the function, not at the commit behind it: the relay learns its name and nothing moves."""
    target = await claimed(stand)
    with pytest.raises(TargetError) as caught:
        await target.apply(parts((1, 77)), at(10), 1, 1)
    refusal = caught.value.refusal
    assert (caught.value.kind, refusal.sqlstate, refusal.status) == (Kind.DATA, "23503", None)
    assert (refusal.table, refusal.constraint) == ("public.part", "part_item_fkey")
    assert (await target.cursor()).standing.cursor is None
    assert stand.rows("select * from part") == []


async def test_no_cursor_no_rows(stand: Stand) -> None:
    """Promise I5: when the cursor cannot be stored, the rows that were written before it are not there either."""
    target = await claimed(stand)
    stand.owner.execute(
        "create function outboxd.fail() returns trigger language plpgsql as $$ begin raise exception 'no' using errcode = '53100'; end $$;"
        "create trigger fail before update on outboxd.cursor for each row execute function outboxd.fail()"
    )
    try:
        with pytest.raises(TargetError) as caught:
            await target.apply(upserts((1, "a")), at(10), 1, 1)
    finally:
        stand.owner.execute("drop function outboxd.fail() cascade")
    assert caught.value.kind is Kind.TRANSIENT
    assert stand.items() == {}
    assert (await target.apply(upserts((1, "a")), at(10), 1, 1)).what == "applied"


async def test_a_document_of_8_mb(stand: Stand) -> None:
    """The largest batch arrives whole, its last byte included."""
    target = await claimed(stand)
    body = "é" * 4_000_000 + "!"
    answer = await target.apply(upserts((1, body)), at(10), 1, 1)
    assert answer.what == "applied"
    assert stand.rows("select octet_length(v), right(v, 1) from item") == [(8_000_001, "!")]


# Requests that take their time


async def test_a_slow_request_and_its_successor_take_effect_once(stand: Stand, deadlines: Deadlines) -> None:
    """The first waits in the database, its client gives up and a batch planned anew follows: one of them wins."""
    target = await claimed(stand)
    first, successor = upserts((1, "a"), (2, "b")), upserts((1, "a"), (2, "b"), (3, "c"))
    async with asyncio.TaskGroup() as group:
        with stand.cursor_locked():
            slow = group.create_task(outcome(stand.target().apply(first, at(10), 1, 1)))
            await stand.waiting(1)
            if stand.rest:  # Postgres' own client cancels what it gives up; PostgREST goes on without its client
                deadlines.pass_()
                assert await slow is Kind.AMBIGUOUS
            sent_again = group.create_task(target.apply(successor, at(20), 1, 1))
            await stand.waiting(2)
    answer, standing = await sent_again, (await target.cursor()).standing
    assert answer.standing == standing
    assert (answer.what, standing.cursor) in [("applied", at(20)), ("mismatch", at(10))]
    if answer.what == "mismatch":
        assert (await target.apply(upserts((3, "c")), at(20), 1, 2)).what == "applied"
    assert stand.effects() == [(1, "a"), (2, "b"), (3, "c")]


async def outcome(request: Awaitable[Answer]) -> str:
    """What came of a request, in a word."""
    try:
        return (await request).what
    except TargetError as error:
        return error.kind
    except Fenced:
        return "fenced"


async def test_a_request_given_up_is_asked_about(stand: Stand, deadlines: Deadlines) -> None:
    """The deadline passes while the target works: ambiguous, and the target knows whether it was applied."""
    target = await claimed(stand)
    async with asyncio.TaskGroup() as group:
        with stand.cursor_locked():
            slow = group.create_task(outcome(target.apply(upserts((1, "a")), at(10), 1, 1)))
            await stand.waiting(1)
            deadlines.pass_()
            assert await slow is Kind.AMBIGUOUS
    standing = (await target.cursor()).standing
    assert (standing.cursor == at(10)) is (stand.items() == {1: "a"})


async def test_asking_waits_for_the_request_in_flight(stand: Stand) -> None:
    """The cursor that is told after a lost answer is the one after it, not the one before."""
    target = await claimed(stand)
    async with asyncio.TaskGroup() as group:
        with stand.cursor_locked():
            slow = group.create_task(stand.target().apply(upserts((1, "a")), at(10), 1, 1))
            await stand.waiting(1)
            asked = group.create_task(target.cursor())
            await stand.waiting(2)
    assert (await asked).standing == (await slow).standing
    assert (await slow).what == "applied"


async def test_a_claim_does_not_overtake_a_request_in_flight(stand: Stand) -> None:
    """Either the old relay's batch is in the cursor that the new one is told, or it is fenced off."""
    old = await claimed(stand)
    async with asyncio.TaskGroup() as group:
        with stand.cursor_locked():
            slow = group.create_task(outcome(old.apply(upserts((1, "a")), at(10), 1, 1)))
            await stand.waiting(1)
            claiming = group.create_task(stand.target().claim())
            await stand.waiting(2)
    told = (await claiming).standing.cursor
    assert (await slow, told, stand.items()) in [("applied", at(10), {1: "a"}), ("fenced", None, {})]


async def test_a_relay_goes_on_after_lost_and_late_answers(
    stand: Stand, source: Database, deadlines: Deadlines
) -> None:
    """Give up, lose an answer, cut one: whatever happened, each change takes effect once and nothing is missing."""
    with source.connect() as app:
        app.execute("create table item (id int primary key, v text)")
        app.execute("select outbox.watch('public.item')")
        reader, target = Source(source.dsn), stand.target()
        relay = Relay(reader, target, Bell(source.dsn), Silent())
        app.execute("insert into item values (1, 'a')")
        assert await relay.drain() == 1

        app.execute("insert into item values (2, 'b')")
        async with asyncio.TaskGroup() as group:
            with stand.cursor_locked():
                turn = group.create_task(ambiguous(relay))
                await stand.waiting(1)
                deadlines.pass_()
                await turn
                app.execute("insert into item values (3, 'c')")
                group.create_task(relay.drain())
                await stand.waiting(2 if stand.rest else 1)

        for lose in (stand.lose_answer, stand.cut_answer):
            app.execute("insert into item select max(id) + 1, 'd' from item")
            lose()
            await ambiguous(relay)
            app.execute("insert into item select max(id) + 1, 'e' from item")
            await relay.drain()
        written = app.execute("select id, v from item order by id").fetchall()
    await reader.close()
    assert stand.effects() == written
    assert len(written) == 7
    assert stand.items() == dict(written)


async def ambiguous(relay: Relay) -> None:
    with pytest.raises(TargetError) as caught:
        await relay.step()
    assert caught.value.kind is Kind.AMBIGUOUS


# Who may


def test_the_public_may_do_nothing(project: EmbeddedSupabase) -> None:
    """No function, table or sequence of ours is open to PUBLIC, anon or authenticated."""
    with psycopg.connect(project.dsn()) as owner:
        open_to = owner.execute(
            """
            select r.name, p.oid::regprocedure::text
              from (values ('public'), ('anon'), ('authenticated')) r(name), pg_proc p
             where (p.pronamespace = 'outboxd'::regnamespace or p.oid = 'public.outboxd(text)'::regprocedure)
               and has_function_privilege(r.name, p.oid, 'execute')
            union all
            select r.name, c.oid::regclass::text
              from (values ('public'), ('anon'), ('authenticated'), ('service_role')) r(name), pg_class c
             where c.relnamespace = 'outboxd'::regnamespace and c.relkind in ('r', 'v')
               and has_table_privilege(r.name, c.oid, 'select, insert, update, delete')
            union all
            select r.name, 'schema outboxd' from (values ('public'), ('anon'), ('authenticated')) r(name)
             where has_schema_privilege(r.name, 'outboxd', 'usage')
            """
        ).fetchall()
        service = owner.execute(
            "select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'outboxd'::regnamespace"
            " and has_function_privilege('service_role', p.oid, 'execute')"
        ).fetchall()
    assert open_to == []
    assert service == [("outboxd.door(text)",)]
