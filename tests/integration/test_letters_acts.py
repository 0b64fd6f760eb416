"""Dead letters where a foreign key of the target deletes or empties rows by itself: what no gear would take is held, and is not
blamed on that key; what only gear 2 would take still stops the relay, which names the key."""

import pytest

from daemon import dead_letters
from daemon.errors import Kind, TargetError
from tests.integration.test_dead_letters import AT_ONCE, asked, held, ids, letters
from tests.integration.test_out_emitted import on_target
from tests.pairs import Pair

DDL = """
create table parent (id int primary key, name text {check}, place int unique {waits});
create table child (id int primary key, parent_id int references parent {action}, name text)
"""
FIRST = "insert into parent values (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)"
ACTIONS = ["on delete cascade", "on delete set null", "on delete set default"]


@pytest.fixture(params=ACTIONS)
async def family(pair: Pair, request: pytest.FixtureRequest) -> Pair:
    pair.create(
        DDL.format(action="", check="", waits="deferrable"), "parent", "child",
        on_target=DDL.format(action=request.param, check="check (name <> 'bad')", waits=""),
    )  # fmt: skip
    pair.write(FIRST)
    await pair.drain()
    return pair


async def test_a_child_of_a_parent_that_is_nowhere_is_held_and_the_parent_comes(family: Pair) -> None:
    """Somebody has deleted the parent there; its repair comes behind the batch that speaks of it."""
    on_target(family, "delete from parent where id = 1")
    family.write("insert into child values (10, 1, 'a'), (20, 2, 'b')", "update parent set name = 'B' where id = 2")
    family.write("select outbox.ask_verification('parent', true)")
    async with family.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        assert ids(family, "parent") == [1, 2, 3]
        assert 20 in ids(family, "child")
        await asked(family, parts, "retry")
        assert letters(family) == held(family) == []
    family.assert_equal("parent", "child")


async def test_a_child_of_a_held_parent_is_held_with_it(family: Pair) -> None:
    family.write("insert into parent values (4, 'bad', 4)")
    async with family.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        family.write("insert into child values (40, 4, 'a'), (20, 2, 'b')", "update parent set name = 'B' where id = 2")
        await parts.relay.drain()
        assert ids(family, "child") == [20]
        parent, child = dead_letters.listed(family.source.dsn)
        assert child.parent == parent.letter
        await asked(family, parts, "retry")  # in vain, and nobody waits for it
        family.write("update parent set name = 'good' where id = 4")
        await parts.relay.drain()
        await asked(family, parts, "retry")
        assert letters(family) == held(family) == []
    family.assert_equal("parent", "child")


async def test_a_row_that_a_clients_table_needs_is_held_and_the_others_flow(family: Pair) -> None:
    on_target(family, "create table likes (parent_id int references parent)", "insert into likes values (1)")
    family.write("delete from parent where id = 1", "update parent set name = 'B' where id = 2")
    async with family.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        assert [(key, op, state) for key, op, state, *_ in letters(family)] == [('{"id":1}', "delete", "23503")]
        on_target(family, "delete from likes")
        await asked(family, parts, "retry")
    family.assert_equal("parent", "child")


@pytest.mark.parametrize("beside", ["", "insert into child values (10, 1, 'a')"], ids=["alone", "beside such a child"])
async def test_what_gear_2_alone_would_write_still_names_the_key(family: Pair, beside: str) -> None:
    """And what it would take along is there still."""
    family.write("insert into child values (20, 2, 'b')")
    await family.drain()
    family.write("update parent set place = 5 - place where id > 1")
    if beside:
        on_target(family, "delete from parent where id = 1")
        family.write(beside)
    with pytest.raises(TargetError) as caught:
        await family.drain()
    assert (caught.value.kind, caught.value.refusal.sqlstate) == (Kind.CONTRACT, "OB005")
    assert 20 in ids(family, "child")
