"""Rows that the target refuses, through PostgREST: found by one more request whatever their number, and brought over
once they are mended."""

import contextlib
import time
from typing import Any

import psycopg
import pytest

from daemon.demo.supabase import EmbeddedSupabase
from daemon.errors import TargetError
from daemon.rest import RestDoor
from tests.databases import Database
from tests.integration.test_dead_letters import ASKED, asked, held
from tests.pairs import Pair, Parts

SOURCE = """
create table maker (id int primary key);
create table item (id int primary key, stars bigint, mood text, doc json, title text, maker_id int, code text)
"""
TARGET = """
create type mood as enum ('glad', 'sad');
create table maker (id int primary key);
create table item (id int primary key, stars int constraint few check (stars < 100000), mood mood, doc jsonb, title text not null,
                   maker_id int constraint made references maker deferrable, code varchar(5))
"""
# What is poison about the row: column, value, SQLSTATE; and the value that is not.
POISON = {
    "a check": ("stars", "100001", "23514", "1"),
    "a number out of range": ("stars", "3000000000", "22003", "2"),
    "an enum's unknown label": ("mood", "'angry'", "22P02", "'sad'"),
    "NUL in a document": ("doc", r"""'{"a": "x\u0000y"}'""", "22P05", "'{}'"),
    "half a surrogate pair": ("doc", r"""'{"a": "\ud800"}'""", "22P02", """'{"a": "\\ud83d\\ude00"}'"""),
    "null where there must be none": ("title", "null", "23502", "'t'"),
    "a parent that is not there": ("maker_id", "77", "23503", "1"),
    "too long": ("code", "'123456'", "22001", "'12345'"),
}


@pytest.fixture
def door(supabase: EmbeddedSupabase) -> RestDoor:
    return RestDoor(supabase.url, supabase.secret_key)


def listening(parts: Parts) -> list[str]:
    """The modes of the requests from here on, without looks at the target's tables."""
    modes: list[str] = []
    ask = parts.target._ask

    async def noted(header: Any, body: tuple[bytes, ...] = (), **more: Any) -> Any:
        if header["mode"] != "describe":
            modes.append(header["mode"])
        return await ask(header, body, **more)

    parts.target._ask = noted  # type: ignore[method-assign]
    return modes


async def test_each_kind_of_poison_is_held_alone_and_comes_over_when_mended(pair: Pair, door: RestDoor) -> None:
    """One request finds it among its neighbours, which arrive with the next; nothing else is held."""
    pair.create(SOURCE, "maker", "item", on_target=TARGET)
    pair.write("insert into maker values (1)")
    async with pair.relay(door=door, timing=ASKED) as parts:
        await parts.relay.drain()
        modes = listening(parts)
        for n, (kind, (column, value, _, _)) in enumerate(POISON.items()):
            first = n * 100
            modes.clear()
            pair.write(
                "insert into item select n, 1, 'glad', '{}', 'n', 1, 'abc' "
                f"from generate_series({first}, {first + 19}) n where n <> {first + 7}",
                f"insert into item select {first + 7}, x.* from (select 1, 'glad', '{{}}'::json, 'n', 1, 'abc') x(stars, mood, doc, title, maker_id, code)",
                f"update item set {column} = {value} where id = {first + 7}",
            )
            await parts.relay.drain()
            assert modes == ["apply", "isolate", "apply"], kind
            assert len(held(pair)) == n + 1, kind
            assert ("public.item", f'{{"id":{first + 7}}}') in held(pair), kind
            assert pair.rows(f"select count(*) from item where id between {first} and {first + 19}")[1] == [(19,)], kind
        with pair.source.connect() as conn:
            states = conn.execute("select sqlstate from outbox.held where sqlstate is not null order by id").fetchall()
        assert states == [(state,) for _, _, state, _ in POISON.values()]
        for n, (column, _, _, mended) in enumerate(POISON.values()):
            pair.write(f"update item set {column} = {mended} where id = {n * 100 + 7}")
        await parts.relay.drain()
        assert (await asked(pair, parts, "retry")).refused == ()
        assert held(pair) == []
    source, target = pair.rows("select id, stars, mood::text, doc::jsonb, title, maker_id, code from item order by 1")
    assert target == source


def test_emit_refuses_what_no_text_can_hold(pair: Pair) -> None:
    """NUL and half a surrogate pair are the caller's mistake, told to the caller: nothing of it is recorded."""
    with pair.source.connect() as source:
        source.execute("create table card (id int primary key, title text)")
        source.execute("select outbox.watch('card', capture => false)")
        for title in (r"x\u0000y", r"x\ud800y"):
            row = f'{{"id": 2, "title": "{title}"}}'
            with pytest.raises(psycopg.DataError):
                source.execute("select outbox.emit('public.card', 'upsert', %s)", (row,))
        assert source.execute("select count(*) from outbox.change").fetchall() == [(0,)]


# SQLSTATE, and what makes every so-and-so-manieth row of the batch refused.
_FEW = "create table item (id int primary key, stars int, maker_id int)"
_BY = {
    "23514": "create table item (id int primary key, stars int check (stars < 6), maker_id int)",
    "23503": "create table maker (id int primary key); insert into maker values (1);"
    "create table item (id int primary key, stars int, maker_id int constraint made references maker deferrable)",
}


@pytest.mark.parametrize("sqlstate", list(_BY))
@pytest.mark.parametrize("refused", [20, 2000])
async def test_isolate_takes_one_request_however_many_are_refused(
    pair: Pair, door: RestDoor, refused: int, sqlstate: str
) -> None:
    """Also when all of a full batch is: well within the door's timeout of 12 s, so that no batch has to shrink."""
    pair.create(_FEW, "item", on_target=_BY[sqlstate])
    pair.write(
        f"insert into item select n, case when n % {2000 // refused} = 0 then 9 else 1 end, "
        f"case when n % {2000 // refused} = 0 then 9 else 1 end from generate_series(1, 2000) n"
    )
    async with pair.relay(door=door, timing=ASKED) as parts:
        modes = listening(parts)
        took: list[float] = []
        isolate = parts.target.isolate

        async def timed(*arguments: Any, **named: Any) -> Any:
            started = time.monotonic()
            try:
                return await isolate(*arguments, **named)
            finally:
                took.append(time.monotonic() - started)

        parts.target.isolate = timed  # type: ignore[method-assign]
        await parts.relay.drain()
    print(f"{refused} of 2000 refused by {sqlstate}: isolate took {took} s")
    assert modes == ["cursor", "claim", "apply", "isolate", "apply"]
    assert took[0] < 20
    with pair.source.connect() as conn:
        assert conn.execute("select sqlstate, count(*) from outbox.held group by 1").fetchall() == [(sqlstate, refused)]
    assert pair.rows("select count(*) from item")[1] == [(2000 - refused,)]


@pytest.fixture
def hasty(target: Database) -> Database:
    """A project whose door is in a hurry, before PostgREST reads it."""
    with target.connect() as owner:
        owner.execute("alter function public.outboxd(text) set statement_timeout = '1s'")
    return target


async def test_a_batch_whose_isolation_takes_too_long_shrinks(hasty: Database, pair: Pair, door: RestDoor) -> None:
    """The door's own timeout ends it; half as many rows are tried next, until it is quick enough."""
    slow = """
    create function slowly() returns trigger language plpgsql as $$ begin perform pg_sleep(0.002); return new; end $$;
    create table item (id int primary key, stars int check (stars < 6), maker_id int);
    create trigger slowly before insert on item for each row execute function slowly();
    """
    pair.create(_FEW, "item", on_target=slow)
    pair.write("insert into item select n, case when n = 7 then 9 else 1 end, 1 from generate_series(1, 400) n")
    pair.write("insert into item values (1001, 1, 1)")
    async with pair.relay(door=door) as parts:
        tries = 0
        while parts.relay.status.applied < 400:
            tries += 1
            assert tries < 10
            with contextlib.suppress(TargetError):
                await parts.relay.drain()
        sizes = parts.relay._sizing
    assert tries > 1
    assert sizes.changes < 400
    assert held(pair) == [("public.item", '{"id":7}')]
    assert pair.rows("select count(*) from item")[1] == [(400,)]
