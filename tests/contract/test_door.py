"""What the door answers is the same by every way to it."""

import asyncio

import psycopg
import pytest

from daemon.demo.supabase import EmbeddedSupabase
from daemon.errors import Fenced, Kind, TargetError
from daemon.target import digest_of
from outbox import Cursor
from tests.contract.conftest import Stand, at, parts, upserts


async def test_a_first_claim_begins_at_nothing(stand: Stand) -> None:
    """A relay that the target does not know has no cursor; each claim raises the epoch and keeps the place."""
    target = stand.target()
    first = await target.claim()
    assert (first.what, first.standing.epoch, first.standing.batch_no, first.standing.cursor) == ("claimed", 1, 0, None)
    await target.apply(upserts((1, "a")), at(10), 1, 1)
    again = await target.claim()
    assert (again.standing.epoch, again.standing.batch_no, again.standing.cursor) == (2, 1, at(10))
    assert (await target.cursor()).standing == again.standing


async def test_a_claim_goes_above_the_epoch_it_is_told(stand: Stand) -> None:
    """A target restored from a backup has forgotten epochs; an old relay of one of those must not share the new one."""
    target = stand.target()
    assert (await target.claim(above=7)).standing.epoch == 8
    assert (await target.claim(above=3)).standing.epoch == 9


async def test_a_rebase_fences_and_sets_the_cursor(stand: Stand) -> None:
    """One more epoch and batch, no digest, the cursor as told; rows stay, and the relay before is sent away."""
    target = await stand.claimed()
    await target.apply(upserts((1, "a")), at(10), 1, 1)
    answer = await target.rebase(Cursor.beginning("another", 5), [], above=4)
    assert (answer.what, answer.standing.epoch, answer.standing.batch_no) == ("rebased", 5, 2)
    assert answer.standing.cursor == Cursor("3:3:", 5, (), "another")
    for batch_no in (1, 2, 3):
        with pytest.raises(Fenced):
            await target.apply(upserts((1, "b")), at(20), 1, batch_no)
    assert stand.items() == {1: "a"}
    await target.claim()
    assert (await target.apply(upserts((1, "a")), at(10), 6, 2)).what == "mismatch", "the digest of before is forgotten"
    assert (await target.apply(upserts((1, "b")), at(20), 6, 3)).what == "applied"


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
    target = await stand.claimed()
    answer = await target.apply(upserts((1, "a"), (2, "b")), at(10), 1, 1)
    assert (answer.what, answer.standing.batch_no, answer.standing.cursor) == ("applied", 1, at(10))
    assert (answer.more["gear"], answer.more["written"]) == (1, 2)
    assert (await target.cursor()).standing == answer.standing
    assert stand.items() == {1: "a", 2: "b"}


async def test_a_batch_sent_twice_is_applied_once(stand: Stand) -> None:
    """Same epoch, number and digest: the second is told so, with the cursor of the first."""
    target = await stand.claimed()
    first = await target.apply(upserts((1, "a")), at(10), 1, 1)
    again = await target.apply(upserts((1, "a")), at(10), 1, 1)
    assert (again.what, again.standing) == ("duplicate", first.standing)
    assert stand.effects() == [(1, "a")]


async def test_the_same_number_with_other_changes_is_no_duplicate(stand: Stand) -> None:
    """A batch planned anew after a lost answer may hold more: taken for the first, its changes would be lost."""
    target = await stand.claimed()
    await target.apply(upserts((1, "a")), at(10), 1, 1)
    answer = await target.apply(upserts((1, "a"), (2, "b")), at(20), 1, 1)
    assert (answer.what, answer.standing.cursor) == ("mismatch", at(10))
    assert stand.items() == {1: "a"}


@pytest.mark.parametrize("batch_no", [0, 2, 4])
async def test_a_batch_out_of_turn_is_not_applied(stand: Stand, batch_no: int) -> None:
    """Two batches were applied: only the third fits, and the answer says where to go on."""
    target = await stand.claimed()
    await target.apply(upserts((1, "a")), at(10), 1, 1)
    await target.apply(upserts((1, "b")), at(20), 1, 2)
    answer = await target.apply(upserts((1, "z")), at(30), 1, batch_no)
    assert (answer.what, answer.standing.batch_no, answer.standing.cursor) == ("mismatch", 2, at(20))
    assert stand.items() == {1: "b"}


async def test_a_batch_is_applied_only_behind_the_one_it_was_read_behind(stand: Stand) -> None:
    """Promise I3 with two on their way: the number fits behind another first batch as well, and would skip changes."""
    target = await stand.claimed()
    first = await target.apply(upserts((1, "a")), at(10), 1, 1, after="")
    refused = await target.apply(upserts((1, "b")), at(20), 1, 2, after="the digest of another first batch")
    assert (refused.what, refused.standing) == ("mismatch", first.standing)
    assert stand.items() == {1: "a"}
    fits = await target.apply(upserts((1, "b")), at(20), 1, 2, after=first.standing.digest)
    assert (fits.what, stand.items()) == ("applied", {1: "b"})


async def test_the_second_of_two_waits_for_the_first(stand: Stand) -> None:
    """On the way they may change places. The second holds no lock meanwhile, or the first could not come by."""
    target = await stand.claimed()
    first = upserts((1, "a"))
    second = asyncio.create_task(target.apply(upserts((1, "b")), at(20), 1, 2, after=digest_of(first, at(10))))
    await stand.waiting(what="Timeout")
    assert (await target.apply(first, at(10), 1, 1, after="")).what == "applied"
    assert (await second).what == "applied"
    assert stand.effects() == [(1, "a"), (1, "b")]


async def test_whoever_claims_later_fences_the_earlier_off(stand: Stand) -> None:
    """Promise I6: an old relay that wakes up writes nothing, not even a batch that would fit."""
    old, new = await stand.claimed(), stand.target()
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
    mine = await stand.claimed()
    stand.name += "_other"
    theirs = await stand.claimed()
    await mine.apply(upserts((1, "a")), at(10), 1, 1)
    assert (await theirs.cursor()).standing.cursor is None
    assert (await theirs.apply(upserts((2, "b")), at(90), 1, 1)).what == "applied"
    assert (await mine.cursor()).standing.cursor == at(10)


async def test_a_deferred_constraint_is_an_answer(stand: Stand) -> None:
    """It fails inside the function, not at the commit behind it: the relay learns its name and nothing moves."""
    target = await stand.claimed()
    with pytest.raises(TargetError) as caught:
        await target.apply(parts((1, 77)), at(10), 1, 1)
    refusal = caught.value.refusal
    assert (caught.value.kind, refusal.sqlstate, refusal.status) == (Kind.DATA, "23503", None)
    assert (refusal.table, refusal.constraint) == ("public.part", "part_item_fkey")
    assert (await target.cursor()).standing.cursor is None
    assert stand.rows("select * from part") == []


async def test_no_cursor_no_rows(stand: Stand) -> None:
    """Promise I5: when the cursor cannot be stored, the rows that were written before it are not there either."""
    target = await stand.claimed()
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
    target = await stand.claimed()
    body = "é" * 4_000_000 + "!"
    answer = await target.apply(upserts((1, body)), at(10), 1, 1)
    assert answer.what == "applied"
    assert stand.rows("select octet_length(v), right(v, 1) from item") == [(8_000_001, "!")]


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
