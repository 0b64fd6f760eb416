"""What was emitted leads where it would lead change by change: rows that were deleted before, keys spelled in several ways."""

import psycopg
import pytest

from tests.integration.test_dead_letters import AT_ONCE, asked
from tests.integration.test_out_emitted import on_target, there
from tests.pairs import Pair

CARD = (
    "create table card (id {} primary key, a text, b text default 'new', c int generated always as (length(a)) stored)"
)


def mapped(pair: Pair, of_type: str = "int", ddl: str = CARD) -> None:
    pair.write("select outbox.map('public.card', array['id'])")
    on_target(pair, ddl.format(of_type), "select outboxd.map('card')")


def upsert(row: str) -> str:
    return f"select outbox.emit('public.card', 'upsert', '{row}')"


def delete(key: str) -> str:
    return f"select outbox.emit('public.card', 'delete', key => '{key}')"


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("ddl", [CARD, CARD.replace("b text default", "b text not null default")])
@pytest.mark.parametrize("between", [[], [upsert('{"id":1,"b":"between"}'), delete('{"id":1}')]])
async def test_a_part_of_a_row_that_was_deleted_before_keeps_nothing_of_it(
    pair: Pair, at_once: bool, ddl: str, between: list[str]
) -> None:
    """In one batch as in several."""
    mapped(pair, ddl=ddl)
    async with pair.relay() as parts:
        pair.write(upsert('{"id":1,"a":"old","b":"old"}'), upsert('{"id":2,"a":"old","b":"old"}'))
        await parts.relay.drain()
        for statement in [delete('{"id":1}'), *between, upsert('{"id":1,"a":"x"}'), upsert('{"id":2,"a":"x"}')]:
            pair.write(statement)
            if not at_once:
                await parts.relay.drain()
        await parts.relay.drain()
    assert there(pair, "select * from card order by id") == [(1, "x", "new", 1), (2, "x", "old", 1)]


async def test_a_part_of_a_row_after_its_delete_where_a_unique_value_moves(pair: Pair) -> None:
    """The second gear: rows are taken out and put back."""
    mapped(pair, ddl="create table card (id {} primary key, a int unique, b text default 'new')")
    async with pair.relay() as parts:
        pair.write(upsert('{"id":1,"a":1,"b":"old"}'), upsert('{"id":2,"a":2,"b":"old"}'))
        await parts.relay.drain()
        pair.write(delete('{"id":1}'), upsert('{"id":2,"a":1}'), upsert('{"id":1,"a":2}'))
        await parts.relay.drain()
    assert there(pair, "select * from card order by id") == [(1, 2, "new"), (2, 1, "old")]


SPELLED: dict[str, tuple[str, ...]] = {
    "int": ("1", '"1"', '" 01 "'),
    "numeric": ("1.0", '"1.00"', "1"),
    "uuid": (
        '"aaaaaaaa-1111-4111-8111-111111111111"',
        '"AAAAAAAA11114111-8111-111111111111"',
        '"{aaaaaaaa-1111-4111-8111-111111111111}"',
    ),
    "date": ('"2026-01-02"', '"20260102"', '"January 2, 2026"'),
    "text": ("1", '"1"', "1"),
    "boolean": ("true", '"yes"', '"t"'),
}


@pytest.mark.parametrize("of_type", list(SPELLED))
async def test_a_key_in_several_spellings_is_one_key(pair: Pair, of_type: str) -> None:
    """The last change counts, whichever kind it is."""
    mapped(pair, of_type)
    one, two, three = SPELLED[of_type]
    async with pair.relay() as parts:
        pair.write(
            upsert(f'{{"id":{one},"a":"1"}}'), upsert(f'{{"id":{two},"a":"22"}}'), upsert(f'{{"id":{one},"a":"333"}}')
        )
        await parts.relay.drain()
        assert there(pair, "select a from card") == [("333",)]
        pair.write(delete(f'{{"id":{two}}}'), upsert(f'{{"id":{three},"a":"4444"}}'))
        await parts.relay.drain()
        assert there(pair, "select a, b from card") == [("4444", "new")]
        pair.write(upsert(f'{{"id":{one},"a":"5"}}'), delete(f'{{"id":{three}}}'))
        await parts.relay.drain()
        assert there(pair, "select a from card") == []


async def test_a_held_key_holds_all_its_spellings(pair: Pair) -> None:
    mapped(pair, ddl="create table card (id {} primary key, a varchar(3))")
    async with pair.relay(timing=AT_ONCE) as parts:
        pair.write(upsert('{"id":"1","a":"too long"}'), upsert('{"id":2,"a":"b"}'))
        await parts.relay.drain()
        pair.write(upsert('{"id":1,"a":"c"}'))
        await parts.relay.drain()
        assert there(pair, "select * from card") == [(2, "b")]
        await asked(pair, parts, "retry")
    assert there(pair, "select * from card order by 1") == [(1, "c"), (2, "b")]


async def test_a_key_that_is_no_value_of_its_type_is_held_alone(pair: Pair) -> None:
    mapped(pair)
    async with pair.relay() as parts:
        pair.write(upsert('{"id":"x","a":"c"}'), upsert('{"id":"2","a":"b"}'), upsert('{"id":2,"a":"bb"}'))
        await parts.relay.drain()
    assert there(pair, "select id, a from card") == [(2, "bb")]
    with pair.source.connect() as conn:
        assert conn.execute("select key, sqlstate from outbox.held").fetchall() == [('{"id": "x"}', "22P02")]


async def test_what_fits_row_by_row_is_applied_row_by_row(pair: Pair) -> None:
    """Keys that are two for the source, and one for the target's type."""
    with psycopg.connect(pair.target.superuser_dsn, autocommit=True) as conn:
        if not conn.execute("select from pg_available_extensions where name = 'citext'").fetchall():
            pytest.skip("this PostgreSQL has no citext")
        conn.execute("create extension citext")
    mapped(pair, ddl="create table card (id citext primary key, a text)")
    async with pair.relay() as parts:
        pair.write(upsert('{"id":"a","a":"1"}'), upsert('{"id":"A","a":"2"}'), upsert('{"id":"b","a":"3"}'))
        await parts.relay.drain()
    assert there(pair, "select a from card order by 1") == [("2",), ("3",)]
