"""What somebody wrote into the outbox by hand, and what is no JSON: never another value, and never the end of the relay."""

import contextlib

import pytest

from daemon.errors import CaptureLost, TargetError
from tests.pairs import Pair

_SHAPE = "(select min(id) from outbox.shape where table_name = 'public.t')"
FORGED = {
    "a key that holds the glue": "'delete', null, '{\"id\": \"' || chr(29) || '\"}', null",
    "a row that holds it": f'\'upsert\', {_SHAPE}, \'{{"id": "1"}}\', \'{{"id":"1","v":"\' || chr(29) || \'"}}\'',
    "two rows for one": f'\'upsert\', {_SHAPE}, \'{{"id": "1"}}\', \'{{"id":"1"}}\' || chr(29) || \'{{"id":"2"}}\'',
}


@pytest.mark.parametrize("looked", [False, True], ids=["first", "look"])
@pytest.mark.parametrize("forged", FORGED)
async def test_what_is_no_json_changes_no_value_and_ends_nothing(pair: Pair, forged: str, *, looked: bool) -> None:
    pair.create("create table t (id text primary key, v text); create table other (id int primary key)", "t", "other")
    async with pair.relay() as parts:
        if looked:
            await parts.relay.drain()
        pair.write(f"insert into outbox.change (table_name, op, shape, key, row) values ('public.t', {FORGED[forged]})")
        pair.write(
            "insert into t values ('0', 'zero')",
            "insert into t values ('0', 'nought') on conflict (id) do update set v = 'nought'",
        )
        for _ in range(20):
            with contextlib.suppress(TargetError, CaptureLost):  # what the relay's loop takes, and goes on
                if not await parts.relay.step():
                    break
    _, there = pair.rows("select id, v from t")
    assert there in ([], [("0", "nought")])
