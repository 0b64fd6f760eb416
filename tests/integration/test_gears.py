"""From the same changes to the same state: what gear 1 writes, and what takes gear 2."""

import pytest

from daemon.batch import Limits
from tests.integration.test_aim import on_source, on_target
from tests.integration.test_dead_letters import held
from tests.integration.test_letters_aim import EAGER, none_is_left, rest, retried
from tests.integration.test_out_emitted import there
from tests.pairs import Pair
from tests.silent import Silent


class Gears(Silent):
    """Remembers which gear each batch took."""

    def __init__(self) -> None:
        self.used: list[int] = []

    def batch_applied(self, batch, plan, answer, seconds) -> None:
        self.used.append(int(answer.more["gear"]))


async def gears(pair: Pair) -> list[int]:
    """Bring everything over; returns the gears it took."""
    observer = Gears()
    await pair.drain(observer=observer)
    return observer.used


FAMILY = """
create table parent (id int primary key, name text);
create table child (id int primary key, parent_id int references parent on update cascade on delete cascade)
"""
MIRRORED_FAMILY = """
create table parent (id int primary key, name text);
create table child (id int primary key, parent_id int references parent {})
"""


@pytest.fixture(params=["", "deferrable"])
def family(pair: Pair, request: pytest.FixtureRequest) -> Pair:
    """Parent and children; on the target the foreign key has no action."""
    pair.create(FAMILY, "parent", "child", on_target=MIRRORED_FAMILY.format(request.param))
    pair.write("insert into parent values (1, 'a'), (2, 'b')", "insert into child values (10, 1), (11, 1), (20, 2)")
    return pair


async def test_a_parent_whose_key_moves_takes_its_children_along(family):
    """The old key's delete comes after the children's new references, the new key's upsert before them."""
    await family.drain()
    family.write("update parent set id = 7 where id = 1")
    assert await gears(family) == [1]
    family.assert_equal("parent", "child")


async def test_a_cascade_on_the_source_deletes_children_first(family):
    """Children are deleted before their parents, whatever the order of ids."""
    await family.drain()
    family.write("delete from parent where id = 1")
    assert await gears(family) == [1]
    family.assert_equal("parent", "child")


async def test_a_family_that_comes_and_goes_in_one_batch(family):
    """Inserts, moves and deletes over several transactions end where the source ended."""
    family.write("insert into parent values (3, 'c')", "insert into child values (30, 3)")
    family.write("update child set parent_id = 3 where id = 10", "delete from parent where id = 1")
    family.write(
        "delete from child where id = 20", "insert into child values (20, 3)", "delete from parent where id = 2"
    )
    assert await gears(family) == [1]
    family.assert_equal("parent", "child")


@pytest.mark.parametrize("action", ["cascade", "set null", "set default"])
@pytest.mark.parametrize("removed", ["delete from parent where id = 1", "truncate parent cascade"])
@pytest.mark.parametrize("again", ["the same", "swap"])
async def test_a_parent_that_came_again_without_a_trigger_takes_no_child_along(pair, removed, action, again):
    """Its removal is in one batch with children of the row that is there by now: a copy brings it, and nothing is lost until
    then. `swap`: what takes gear 2."""
    ddl = """
    create table parent (id int primary key, name text, other int unique);
    create table child (id int primary key, parent_id int references parent {}, at int unique)
    """
    pair.create(ddl.format("on delete cascade"), "parent", "child", on_target=ddl.format(f"on delete {action}"))
    pair.write(
        "insert into parent values (1, 'a', 1), (2, 'b', 2)", "insert into child values (10, 1, 10), (20, 2, 20)"
    )
    await pair.drain()
    pair.write(removed)
    pair.write(
        "alter table parent disable trigger user",
        "insert into parent values (1, 'again', 3)",
        "alter table parent enable always trigger outbox_row_1",
        "alter table parent enable always trigger outbox_truncate",
    )
    pair.write("insert into child values (11, 1, 11), (12, 1, 12)")
    if again == "swap":
        pair.write("update child set at = 13 where id = 11", "update child set at = 11 where id = 12")
    await pair.drain()
    pair.assert_equal("child")
    assert pair.rows("select id from parent where id = 1") == ([(1,)], [(1,)])
    pair.write("select outbox.watch('parent')")
    await pair.drain()
    pair.assert_equal("parent", "child")


STORIES = """create table story (id int primary key, gone timestamptz);
create table line (id int primary key, story bigint {here}, n int)"""
REMOVED = {
    "left its filter": ["update story set gone = now() where id = 1"],
    "no foreign key on the source": ["delete from story where id = 1"],
    "one that is not enforced": ["set local session_replication_role = replica", "delete from story where id = 1"],
    "emptied": ["truncate story"],
}


@pytest.mark.parametrize("action", ["cascade", "set null"])
@pytest.mark.parametrize("written", [["update line set n = 5 where id = 1"], []], ids=["is written", "is there"])
@pytest.mark.parametrize("way", list(REMOVED))
async def test_a_parent_that_goes_while_its_child(pair: Pair, way: str, written: list[str], action: str) -> None:
    """The child is there on the source. So the parent stays, as a dead letter that says why, whatever is tried, until the child
    has gone: to remove it would take the child along, or empty it."""
    refers = f"references story (id) on delete {action}"
    enforced = way in {"left its filter", "one that is not enforced"}
    ddl = STORIES.format(here=refers if enforced else "")
    pair.create(ddl, "line", on_target=STORIES.format(here=refers))
    on_source(pair, f"select outbox.watch('story'{', filter => $$gone is null$$' if way == 'left its filter' else ''})")
    on_target(pair, "select outboxd.map('story')")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1), (2)", "insert into line values (1, 1, 1), (3, 1, 3)")
        await rest(parts)
        pair.write(*REMOVED[way], *written)
        await rest(parts)
        pair.assert_equal("line")
        await retried(pair, parts)
        pair.assert_equal("line")
        assert held(pair) == [("public.story", '{"id":1}')]
        with pair.source.connect() as source:
            [(reason,)] = source.execute("select reason from outbox.held").fetchall()
        assert "a row of public.line on the target still refers to it" in reason
        pair.write("delete from line")
        await rest(parts)
    assert there(pair, "select id from story") == ([] if way == "emptied" else [(2,)])
    assert there(pair, "select id from line") == []
    none_is_left(pair)


async def test_a_parent_and_its_child_go_while_a_row_below_them_is_there(pair: Pair) -> None:
    """At any depth, and by keys of several columns."""
    ddl = """create table story (id int primary key, n int);
    create table line (story int {story}, id text, n int, primary key (story, id));
    create table word (id int primary key, story int, line text, n int{line})"""
    refers = {"story": "references story on delete cascade", "line": ", foreign key (story, line) references line on delete cascade"}  # fmt: skip
    pair.create(ddl.format(story="", line=""), "story", "line", "word", on_target=ddl.format(**refers))
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1), (2)", "insert into line values (1, 'a'), (2, 'a')", "insert into word values (1, 1, 'a'), (2, 2, 'a')")  # fmt: skip
        await rest(parts)
        pair.write("delete from story", "delete from line", "delete from word where id = 2")
        await retried(pair, parts)
        pair.assert_equal("word")
        assert there(pair, "select id from story") == [(1,)]
        assert held(pair) == [("public.line", '{"story":1,"id":"a"}'), ("public.story", '{"id":1}')]
        pair.write("delete from word")
        await rest(parts)
    pair.assert_equal("story", "line", "word")
    none_is_left(pair)


CIRCLES = {
    "itself": """create table node (id int primary key, up int{up});
    create table leaf (id int primary key, node int{leaf})""",
    "each other": """create table node (id int primary key, up int);
    create table leaf (id int primary key, node int{leaf});
    {circle}""",
}


@pytest.mark.parametrize("way", list(CIRCLES))
async def test_rows_that_refer_to_each_other_go_together(pair: Pair, way: str) -> None:
    """What goes by the same batch does not keep each other here; what is to stay does."""
    refers = {
        "up": " references node on delete cascade", "leaf": " references node on delete cascade deferrable",
        "circle": "alter table node add foreign key (up) references leaf on delete cascade deferrable",
    }  # fmt: skip
    ddl = CIRCLES[way]
    pair.create(ddl.format(up="", leaf="", circle=""), "node", "leaf", on_target=ddl.format(**refers))
    async with pair.relay(timing=EAGER) as parts:
        pair.write(
            "insert into leaf values (1, 1), (2, 2), (3, 3)", "insert into node values (1, null), (2, 1), (3, 2)"
        )
        await rest(parts)
        pair.assert_equal("node", "leaf")
        assert held(pair) == []
        pair.write("delete from node where id > 1", "delete from leaf where id > 1")
        await rest(parts)
        pair.assert_equal("node", "leaf")
        pair.write("delete from node")
        await rest(parts)
        pair.assert_equal("leaf")
        assert held(pair) == [("public.node", '{"id":1}')]


async def test_a_row_that_goes_takes_along_what_is_the_targets_own(pair: Pair) -> None:
    """Rows of a table that nobody mirrors go as its owner has said."""
    pair.create("create table story (id int primary key)", "story")
    on_target(pair, "create table likes (story int references story on delete cascade)")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1), (2)")
        await rest(parts)
        on_target(pair, "insert into likes values (1), (2)")
        pair.write("delete from story where id = 1")
        await rest(parts)
    assert there(pair, "select story from likes") == [(2,)]
    none_is_left(pair)


@pytest.mark.parametrize("action", ["cascade", "set null"])
async def test_both_stores_take_children_along_and_a_transaction_is_torn(pair: Pair, action: str) -> None:
    """The source's own deletes of the children, or their nulls, come before their parent's."""
    ddl = f"""create table parent (id int primary key);
    create table child (id int primary key, parent_id int references parent on delete {action})"""
    pair.create(ddl, "parent", "child")
    async with pair.relay(timing=EAGER, limits=Limits(changes=3)) as parts:
        pair.write(
            "insert into parent select generate_series(1, 4)",
            "insert into child select n, 1 + n % 4 from generate_series(1, 20) n",
        )
        await rest(parts)
        pair.write("delete from parent where id < 4")
        await parts.relay.drain()
        assert held(pair) == []
    pair.assert_equal("parent", "child")


async def test_truncate_then_refill_with_children(family):
    """TRUNCATE … CASCADE empties both; what is written afterwards stays."""
    await family.drain()
    family.write(
        "truncate parent cascade", "insert into parent values (2, 'new')", "insert into child values (20, 2), (21, 2)"
    )
    await gears(family)
    family.assert_equal("parent", "child")


POSITIONS = """
create table item (id int primary key, position int not null, note text, unique (position) {});
create table part (id int primary key, item_id int references item {})
"""


@pytest.mark.parametrize(("on_target", "gear"), [("deferrable", 1), ("", 2)])
async def test_unique_positions_that_rotate(pair, on_target, gear):
    """Each row takes its neighbour's place in one statement: with an immediate constraint only gear 2 can."""
    source = POSITIONS.format("deferrable", "")
    pair.create(source, "item", "part", on_target=POSITIONS.format(on_target, "deferrable"))
    pair.write(
        "insert into item select n, n from generate_series(1, 5) n",
        "insert into part select n, n from generate_series(1, 5) n",
    )
    await pair.drain()
    pair.write("update item set position = position % 5 + 1")
    assert await gears(pair) == [gear]
    pair.assert_equal("item", "part")


async def test_gear_two_removes_children_before_their_parents(pair):
    """Also where the target's foreign key is checked at once: ranks of upserts and deletes are of one order."""
    pair.create(POSITIONS.format("deferrable", ""), "item", "part", on_target=POSITIONS.format("", ""))
    pair.write(
        "insert into item select n, n from generate_series(1, 4) n",
        "insert into part select n, n from generate_series(1, 4) n",
    )
    await pair.drain()
    pair.write(
        "delete from part where id in (1, 2)", "update part set item_id = 4 where id = 3", "delete from item where id = 1",
        "delete from part where id = 4", "insert into part values (5, 2)", "delete from part where id in (3, 5)",
        "update item set position = position % 3 + 2",
    )  # fmt: skip
    assert await gears(pair) == [2]
    pair.assert_equal("item", "part")


async def test_gear_two_keeps_columns_that_only_the_target_has(pair):
    """Rows taken out and put back have what the document does not speak of; new ones get the defaults."""
    pair.create(
        POSITIONS.format("deferrable", ""), "item", "part",
        on_target=POSITIONS.format("", "deferrable") + "; alter table item add likes int not null default 7, add tags text[]",
    )  # fmt: skip
    pair.write("insert into item select n, n from generate_series(1, 3) n")
    await pair.drain()
    with pair.target.connect() as target:
        target.execute("update item set likes = 100 + id, tags = array['x', null, id::text] where id < 3")
    pair.write("update item set position = position % 3 + 1", "insert into item values (4, 4)")
    assert await gears(pair) == [2]
    with pair.target.connect() as target:
        found = target.execute("select id, position, likes, tags from item order by id").fetchall()
    assert found == [(1, 2, 101, ["x", None, "1"]), (2, 3, 102, ["x", None, "2"]), (3, 1, 7, None), (4, 4, 7, None)]


async def test_rows_that_refer_to_their_own_table(pair):
    """A tree written leaves first, turned upside down and cut, in one batch each."""
    ddl = "create table node (id int primary key, up int references node {})"
    pair.create(ddl.format("deferrable initially deferred"), "node", on_target=ddl.format(""))
    pair.write("insert into node values (3, 2), (2, 1), (1, null)")
    await pair.drain()
    pair.assert_equal("node")
    pair.write("update node set up = null", "update node set up = id + 1 where id < 3")
    pair.write("delete from node where id = 1", "insert into node values (4, 3)", "update node set up = 4 where id = 2")
    await pair.drain()
    pair.assert_equal("node")


async def test_tables_that_refer_to_each_other(pair):
    """A cycle of foreign keys, and a third table that hangs below it, all written in one transaction."""
    ddl = """
    create table egg (id int primary key, hen int);
    create table hen (id int primary key, egg int references egg deferrable initially deferred);
    alter table egg add foreign key (hen) references hen deferrable initially deferred;
    create table chick (id int primary key, egg int references egg)
    """
    pair.create(ddl, "egg", "hen", "chick")
    pair.write("insert into hen values (1, 1)", "insert into egg values (1, 1)", "insert into chick values (1, 1)")
    assert await gears(pair) == [1]
    pair.write("delete from chick", "delete from egg", "update hen set egg = null")
    assert await gears(pair) == [1]
    pair.assert_equal("egg", "hen", "chick")


async def test_two_spellings_of_one_numeric_key(pair):
    """1.0, 1.00 and 1 are one row: in one batch, over two batches, and when it is deleted."""
    pair.create("create table n (k numeric primary key, v text)", "n")
    pair.write("insert into n values (1.0, 'a'), (2, 'b')")
    pair.write("update n set k = 1.00, v = 'c' where k = 1")
    await pair.drain()
    pair.assert_equal("n")
    pair.write("delete from n where k = 1", "insert into n values (1.000, 'd')", "delete from n where k = 2.0")
    await pair.drain()
    pair.assert_equal("n")


async def test_a_key_deleted_and_inserted_again(pair):
    """The last state counts, whichever it is."""
    pair.create("create table t (id int primary key, v text)", "t")
    pair.write("insert into t values (1, 'a'), (2, 'a')")
    await pair.drain()
    pair.write("delete from t where id = 1", "insert into t values (1, 'b')")
    pair.write("delete from t where id = 2", "insert into t values (2, 'b')", "delete from t where id = 2")
    await pair.drain()
    pair.assert_equal("t")


async def test_a_row_emitted_in_parts(pair):
    """Columns an emit leaves out keep their value on the target: from before, and from the same batch."""
    pair.create("create table s (id int primary key, title text not null, a int, b int)", on_target="select 1")
    with pair.target.connect() as target:
        target.execute("create table s (id int primary key, title text not null, a int default 5, b int)")
        target.execute("select outboxd.map('s')")
    pair.write(
        "select outbox.map('public.s', array['id'])",
        """select outbox.emit('s', 'upsert', '{"id": 1, "title": "first", "a": 1}')""",
        """select outbox.emit('s', 'upsert', '{"id": 1, "b": 2}')""",
        """select outbox.emit('s', 'upsert', '{"id": 2, "title": "second"}')""",
    )
    await pair.drain()
    pair.write(
        """select outbox.emit('s', 'upsert', '{"id": 1, "b": 3}')""",
        """select outbox.emit('s', 'upsert', '{"id": 2, "b": 9}')""",
    )
    await pair.drain()
    with pair.target.connect() as target:
        assert target.execute("select * from s order by id").fetchall() == [(1, "first", 1, 3), (2, "second", 5, 9)]


async def test_generated_and_identity_columns(pair):
    """Values of an identity are taken as they come, generated ones are left to the target; also in gear 2."""
    ddl = """
    create table g (id int generated always as identity primary key, at int not null, twice int generated always as (2 * at) stored,
                    n int generated by default as identity, unique (at) {})
    """
    pair.create(ddl.format("deferrable"), "g", on_target=ddl.format(""))
    pair.write("insert into g (at) values (1), (2), (3)")
    assert await gears(pair) == [1]
    pair.write(
        "update g set at = at % 3 + 1", "insert into g (at, n) values (10, 77)", "update g set at = 11 where at = 10"
    )
    assert await gears(pair) == [2]
    pair.assert_equal("g")
