"""A row for which something on the target fails as if the target were away, or as no `when others` sees: it waits alone, or its table does."""

import pytest

from tests.integration.test_dead_letters import STORY
from tests.integration.test_out_emitted import on_target
from tests.pairs import Pair
from tests.security.relayed import turned_until
from tests.security.test_poison_letters import items, states
from tests.security.test_poison_slow import SOON


@pytest.mark.parametrize("state", ["XX000", "08006", "58030", "53400", "P0004"])
async def test_a_row_for_which_a_trigger_fails_as_if_the_target_were_away(pair: Pair, state: str) -> None:
    pair.create(STORY, "story")
    pair.create("create table item (id int primary key)", "item")
    on_target(
        pair,
        f"""create function picky() returns trigger language plpgsql as $$
        begin if new.title = 'bad' then raise 'no' using errcode = '{state}'; end if; return new; end $$""",
        "create trigger picky before insert on story for each row execute function picky()",
    )
    async with pair.relay(timing=SOON) as parts:
        pair.write("insert into story values (1, 'bad', 1), (2, 'good', 1)", "insert into item values (1)")
        await turned_until(parts, lambda: items(pair) == 1)
        await turned_until(parts, lambda: states(pair) == [state])
        assert pair.rows("select id from story")[1] == [(2,)]
        on_target(pair, "drop trigger picky on story")
        await turned_until(parts, lambda: not states(pair))
    pair.assert_equal("story", "item")
