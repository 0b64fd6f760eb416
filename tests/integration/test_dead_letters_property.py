"""Random transactions, a picky target: whatever is held, the rest is right, and mended nothing is missing.

Proves of gear 3: no batch is stuck, rows of keys that are not held equal the source's, every held row has its letters,
and once the target takes them a retry ends with both stores equal, foreign keys and unique values included.
"""

import contextlib
import random
from typing import Any

import psycopg
import pytest

from daemon.batch import Limits
from daemon.progress import Timing
from tests.pairs import Pair, Parts

AT_ONCE = Timing(poll=0.05, recheck=0.02, retry_first=0.01, retry_cap=0.05, letters=0.0)

SOURCE = """
create table parent (id int primary key, mark int not null);
create table child (id int primary key, parent_id int references parent on delete cascade, mark int not null);
create table seat (id int primary key, place int unique deferrable initially deferred, mark int not null)
"""
TARGET = """
create table parent (id int primary key, mark int not null constraint tame_parent check (mark < 90));
create table child (id int primary key, parent_id int references parent deferrable, mark int not null constraint tame_child check (mark < 90));
create table seat (id int primary key, place int unique, mark int not null constraint tame_seat check (mark < 90))
"""
TABLES = ("parent", "child", "seat")


def transaction(choose: random.Random) -> list[str]:
    """Some statements, each valid on the source; about one row in ten is one the target refuses."""
    statements = []
    for _ in range(choose.randint(1, 5)):
        key, mark = choose.randint(1, 12), choose.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 95])
        match choose.randint(0, 6):
            case 0 | 1:
                statements.append(
                    f"insert into parent values ({key}, {mark}) on conflict (id) do update set mark = excluded.mark"
                )
            case 2 | 3:
                statements.append(
                    f"insert into child select {key}, (select id from parent order by (id * {mark}) % 7, id limit 1), {mark}"
                    " on conflict (id) do update set parent_id = excluded.parent_id, mark = excluded.mark"
                )
            case 4:
                statements.append(f"delete from {choose.choice(TABLES)} where id = {key}")
            case 5:
                statements.append("set constraints all deferred")
                statements.append(
                    f"insert into seat values ({key}, {key + 100}, {mark}) on conflict (id) do update set mark = excluded.mark"
                )
            case 6:  # a rotation: nobody's new place is free before the others have moved
                statements.append("set constraints all deferred")
                statements.append(
                    "update seat s set place = n.place from (select id, lead(place, 1, first) over (order by id) as place"
                    " from (select id, place, first_value(place) over (order by id) as first from seat) f) n where n.id = s.id"
                )
    return [*statements, "set constraints all immediate"]


async def _turns(parts: Parts) -> None:
    while await parts.relay.step():
        pass


def _held(pair: Pair) -> set[tuple[str, str]]:
    with pair.target.connect() as target, pair.source.connect() as source:
        held = set(target.execute("select table_name, key from outboxd.held").fetchall())
        assert held == set(source.execute("select distinct table_name, key from outbox.held").fetchall())
    return held


def _rows(pair: Pair, table: str, held: set[tuple[str, str]]) -> tuple[list[Any], list[Any]]:
    out = {key for of_table, key in held if of_table == f"public.{table}"}
    source, target = pair.rows(f"select * from {table} order by 1")
    free = [[row for row in rows if f'{{"id":{row[0]}}}' not in out] for rows in (source, target)]
    return free[0], free[1]


@pytest.mark.parametrize("seed", range(10))
async def test_held_keys_apart_both_stores_are_equal_and_after_a_retry_wholly(pair: Pair, seed: int) -> None:
    choose = random.Random(seed)
    pair.create(SOURCE, *TABLES, on_target=TARGET)
    limits = Limits(changes=choose.choice([3, 8, 2000]))
    async with pair.relay(limits=limits, timing=AT_ONCE) as parts:
        for _ in range(8):
            for _ in range(choose.randint(1, 6)):
                with contextlib.suppress(psycopg.errors.UniqueViolation):  # a place that a rotation gave to another
                    pair.write(*transaction(choose))
            await _turns(parts)
            held = _held(pair)
            for table in TABLES:
                source, target = _rows(pair, table, held)
                assert target == source, table
            if choose.random() < 0.3 and held:
                with pair.source.connect() as conn:
                    conn.execute("update outbox.held set wanted = 'retry' where random() < 0.5")
                await _turns(parts)
        with pair.target.connect() as conn:
            for table in TABLES:
                conn.execute(f"alter table {table} drop constraint tame_{table}".encode())
        for _ in range(3):
            with pair.source.connect() as conn:
                conn.execute("update outbox.held set wanted = 'retry'")
            await _turns(parts)
        assert _held(pair) == set()
    pair.assert_equal(*TABLES)
