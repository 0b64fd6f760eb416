"""Verification, attacked: types and names that differ, tables that are locked, refused, emptied or altered meanwhile,
answers that are lost, leaders that change. Equal stores are never called different; what differs is always found."""

import asyncio
import contextlib
import itertools
import json
import random
import time

import psycopg
import pytest
from structlog.testing import capture_logs

from daemon.batch import Limits
from daemon.breaker import BreakerOpen, Thresholds
from daemon.errors import Kind, SourceUnavailable, TargetError
from daemon.target import PostgresDoor
from daemon.verification import Verification
from daemon.verifier import Verifier
from tests.canaries import assert_clean, planted
from tests.captured import watch
from tests.integration.test_copy import LIVE, Writers, _write_something, anything, filled
from tests.integration.test_dead_letters import AT_ONCE, held
from tests.integration.test_verify import ask, counts, drifted, verified
from tests.pairs import Pair, Parts
from tests.silent import Silent
from tests.waiting import wait_until_async


class Told(Silent):
    """What the relay calls a failure."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def turn_failed(self, reason: str) -> None:
        self.failures.append(reason)


async def ended(parts: Parts, pair: Pair, table: str = "story", *, repair: bool = False) -> Verification:
    """The record of a pass that is asked for now and comes to its end, or fails."""
    ask(pair, table, repair=repair)
    with pair.source.connect() as source:
        ((wish,),) = source.execute("select wish from outbox.verification where table_name = %s", (f"public.{table}",))

    async def over() -> Verification | None:
        parts.relay.verifier.ring()
        await parts.relay.drain()
        record = parts.relay.verifier.records.get(f"public.{table}")
        return record if record and record.wish >= wish and record.state != "running" else None

    record = await wait_until_async(over, 60)
    assert record is not None
    return record


# -- types ---------------------------------------------------------------------------------------------------------

# A column's type on the source and on the target, its values (as SQL of n), and one that differs.
OTHERWISE = {
    "json to jsonb": ("json", "jsonb", """('{"b": 1.0,  "a":' || n || ', "a": 2}')::json""", "'null'"),
    "jsonb to json": ("jsonb", "json", "case when n % 3 > 0 then 'null'::jsonb end", "'[]'"),
    "jsonb to text": ("jsonb", "text", "jsonb_build_object('n', n, 'b', null)", "'null'"),
    "varchar to text": ("varchar(9)", "text", "'a ' || n || ' '", "'a'"),
    "char to text": ("char(9)", "text", "'a ' || n", "'a'"),
    "text to char": ("text", "char(9)", "'a ' || n", "'a'"),
    "int to bigint": ("int", "bigint", "-n", "3000000000"),
    "int to text": ("int", "text", "n", "'-'"),
    "text to int": ("text", "int", "n", "-1"),
    "enum to text": ("mood", "text", "(array['ok', 'sad', null])[1 + n % 3]::mood", "'other'"),
    "text to enum": ("text", "mood", "(array['ok', 'sad', null])[1 + n % 3]", "case when t.v = 'ok' then 'sad' else 'ok' end::mood"),
    "cents": ("numeric", "numeric(10,2)", "n + 1.2345", "0"),
    "scale": ("numeric", "numeric(10,2)", "n", "0"),
    "numeric to float": ("numeric", "float8", "n * 0.1", "0"),
    "millis": ("timestamp", "timestamp(3)", "'2026-01-01'::timestamp + n * interval '1 s 123456 us'", "'infinity'"),
    "timestamptz to timestamp": ("timestamptz", "timestamp", "'2026-01-01 00:00+03'::timestamptz + n * interval '1 h'", "'infinity'"),
    "date to text": ("date", "text", "'2026-01-01'::date + n", "'never'"),
    "float to real": ("float8", "real", "case n % 4 when 0 then 'NaN' when 1 then '-0' else n / 3.0::float8 end", "1.5"),
    "real to float": ("real", "float8", "n / 3.0::real", "1.5"),
    "bool to text": ("bool", "text", "n % 2 = 0", "'t'"),
    "bytea to text": ("bytea", "text", "decode('00ff5c', 'hex')", "'x'"),
    "array to text": ("int[]", "text", "case n % 3 when 0 then '{}'::int[] when 1 then array[n, null] end", "'x'"),
    "array to jsonb": ("int[]", "int8[]", "case n % 3 when 0 then '{}'::int[] when 1 then '[0:1]={7,8}' end", "'{1}'"),
    "uuid to text": ("uuid", "text", "md5(n::text)::uuid", "'x'"),
    "domain": ("text", "email", "'a@' || n", "'b@'"),
    "out of domain": ("email", "text", "'a@' || n", "'b@'"),
    "interval to text": ("interval", "text", "n * interval '1 day 00:00:01'", "'x'"),
    "money to numeric": ("money", "text", "n::money", "'x'"),
}  # fmt: skip
TYPES = "create type mood as enum ('ok', 'sad'); create domain email as text check (value like '%@%');"


async def test_columns_of_another_type_are_equal_until_they_are_not(pair: Pair) -> None:
    """One table for each: digests differ in all rows, and no row does; then one does, and no other."""
    with pair.source.connect() as source, pair.target.connect() as target:
        for conn in (source, target):
            conn.execute(TYPES)
        for number, (here, there, made, _) in enumerate(OTHERWISE.values()):
            table = f"story_{number}"
            source.execute(f"create table {table} (id int primary key, v {here}, w int)".encode())
            target.execute(
                f"create table {table} (id int primary key, w int, beyond text default 'b', v {there})".encode()
            )
            source.execute(f"insert into {table} select n, {made}, n from generate_series(1, 120) n".encode())
            source.execute("select outbox.watch(%s)", (table,))
            target.execute("select outboxd.map(%s)", (table,))
    async with pair.relay() as parts:
        await parts.relay.drain()
        assert held(pair) == []
        for number in range(len(OTHERWISE)):
            ask(pair, f"story_{number}")
        assert await records(parts, len(OTHERWISE)) == dict.fromkeys(OTHERWISE, (120, 0, 0, 0))
        for number, (*_, other) in enumerate(OTHERWISE.values()):
            drifted(pair, f"update story_{number} t set v = {other}, beyond = 'c' where id = 77")
            ask(pair, f"story_{number}", repair=number % 2 == 0)
        found = await records(parts, len(OTHERWISE))
        for number, kind in enumerate(OTHERWISE):
            record = parts.relay.verifier.records[f"public.story_{number}"]
            assert found[kind] == (120, 0, number % 2, 0), kind
            assert record.repaired == (number + 1) % 2, kind
            if number % 2:
                assert [(one["key"], list(one["columns"])) for one in record.samples] == [('{"id":77}', ["v"])], kind
        assert "public.story_0" in parts.relay.verifier._by_rows


async def records(parts: Parts, tables: int) -> dict[str, tuple[int, int, int, int]]:
    """What the passes that were asked for have found."""
    parts.relay.verifier.ring()
    await parts.relay.drain()
    found = {}
    for number, kind in zip(range(tables), OTHERWISE, strict=True):
        record = parts.relay.verifier.records[f"public.story_{number}"]
        assert record.state == "done", (kind, record)
        found[kind] = counts(record)
    return found


async def test_what_only_the_target_knows_is_nobodys(pair: Pair) -> None:
    """Identity and generated columns there, a column more; of the columns that travel each one counts."""
    with pair.source.connect() as source, pair.target.connect() as target:
        source.execute(
            "create table story (id int primary key, n int, twice int generated always as (n * 2) stored, thrice int)"
        )
        target.execute(
            "create table story (id int primary key, more text default 'x', twice int, n int generated always as identity,"
            " thrice int generated always as (id * 3) stored)"
        )
        source.execute("insert into story (id, n, thrice) select n, n * 7, n from generate_series(1, 100) n")
        source.execute("select outbox.watch('story')")
        target.execute("select outboxd.map('story')")
    async with pair.relay() as parts:
        await parts.relay.drain()
        assert counts(await verified(parts, pair)) == (100, 0, 0, 0)
        drifted(pair, "update story set more = 'y' where id < 50")
        assert counts(await verified(parts, pair)) == (100, 0, 0, 0)
        drifted(pair, "update story set twice = 0 where id = 5", "delete from story where id = 6",
                "insert into story (id, n) overriding system value values (6, 1)")  # fmt: skip
        record = await verified(parts, pair)
        assert counts(record) == (100, 0, 2, 0)
        assert {tuple(one["columns"]) for one in record.samples} == {("twice",), ("n", "twice")}
        record = await verified(parts, pair, repair=True)
        assert (counts(record), record.repaired) == ((100, 0, 0, 0), 2)
    assert (
        pair.rows("select id, n, twice from story order by id")[0]
        == pair.rows("select id, n, twice from story order by id")[1]
    )


# -- keys and sizes --------------------------------------------------------------------------------------------------

# The key's column on the source and on the target, how one is made of n, and one that only the target has.
KEYED = {
    "numeric": ("id numeric", "id numeric", "n + 1.50", "999999.500"),
    "timestamptz": ("id timestamptz", "id timestamptz", "'2026-03-29 00:00+00'::timestamptz + n * interval '7 min 0.000001 s'", "'2030-01-01'"),
    "bigint as text": ("id bigint", "id text", "n", "'9999999'"),
    "int as bigint": ("id int", "id bigint", "n", "3000000000"),
    "uuid as text": ("id uuid", "id text", "md5(n::text)::uuid", "'not a uuid'"),
    "enum": ("id mood", "id mood", "(enum_range(null::mood))[n]", "'extra'"),
    "bytea": ("id bytea", "id bytea", "decode(md5(n::text), 'hex')", "'\\x00'"),
    "text and text": ("a text, b text", "a text, b text", "chr(64 + n % 26) || n, '\"' || n || chr(30) || E'\\\\'", "'', ''"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(KEYED))
async def test_keys_of_any_type(pair: Pair, kind: str) -> None:
    """Missing, different and extra rows under keys that both sides spell otherwise; one held, too: it is no difference."""
    here, there, made, other = KEYED[kind]
    key = "a, b" if "," in here else "id"
    with pair.source.connect() as source, pair.target.connect() as target:
        for conn, columns in ((source, here), (target, there)):
            labels = ", ".join(f"'m{n}'" for n in range(1, 101))
            conn.execute(f"create type mood as enum ({labels}, 'extra')".encode())
            conn.execute(f"create table story ({columns}, n int, primary key ({key}))".encode())
        source.execute(f"insert into story select {made}, n from generate_series(1, 100) n".encode())
        source.execute("select outbox.watch('story')")
        target.execute("select outboxd.map('story')")
    async with pair.relay(limits=Limits(changes=30), timing=AT_ONCE) as parts:
        await parts.relay.drain()
        drifted(
            pair,
            "create function refuse() returns trigger language plpgsql as 'begin raise check_violation; end'",
            "create trigger refuse before delete on story for each row when (old.n = 7) execute function refuse()",
        )
        pair.write("delete from story where n = 7")
        await parts.relay.drain()
        assert len(held(pair)) == 1
        record = await verified(parts, pair)
        assert (counts(record), record.held) == ((99, 0, 0, 0), 1)
        drifted(
            pair,
            "delete from story where n = 50",
            "update story set n = -1 where n = 60",
            f"insert into story values ({other}, 0)",
        )
        record = await verified(parts, pair)
        assert (counts(record), record.held) == ((99, 1, 1, 1), 1)
        record = await verified(parts, pair, repair=True)
        assert (counts(record), record.held, record.repaired) == ((99, 0, 0, 0), 1, 3)
        assert len(held(pair)) == 1
    assert pair.rows("select n from story order by n") == (
        [(n,) for n in range(1, 101) if n != 7],
        [(n,) for n in range(1, 101)],
    )


@pytest.mark.parametrize(
    ("here", "there"), [(0, 0), (1, 1), (0, 1), (1, 0), (100, 100), (101, 100), (99, 250), (200, 0), (0, 200)]
)
async def test_tables_of_any_size(pair: Pair, here: int, there: int) -> None:
    """None, one, exactly a range, one more."""
    filled(pair, many=here)
    async with pair.relay(limits=Limits(changes=100)) as parts:
        await parts.relay.drain()
        drifted(pair, "truncate story", f"insert into story select n, n from generate_series(1, {there}) n")
        record = await verified(parts, pair)
        assert counts(record) == (here, max(0, here - there), 0, max(0, there - here))
        record = await verified(parts, pair, repair=True)
        assert (counts(record), record.repaired) == ((here, 0, 0, 0), abs(here - there))
    pair.assert_equal("story")


@pytest.mark.parametrize("kind", [kind for kind in LIVE if "text" in kind or "target" in kind])
async def test_stores_that_sort_otherwise(pair: Pair, kind: str) -> None:
    """Each side's keys are walked in its own order."""
    here, there, _, value = LIVE[kind]
    with pair.source.connect() as source, pair.target.connect() as target:
        try:
            source.execute(f"create table story ({here})".encode())
            target.execute(f"create table story ({there})".encode())
        except psycopg.errors.UndefinedObject:
            pytest.skip("this PostgreSQL was built without ICU")
        source.execute(
            (
                "insert into story values "
                + ", ".join(f"({value(n)}, {n})" for n in range(300))
                + " on conflict do nothing"
            ).encode()
        )
        ((rows,),) = source.execute("select count(*) from story").fetchall()
        source.execute("select outbox.watch('story')")
        target.execute("select outboxd.map('story')")
    async with pair.relay(limits=Limits(changes=20)) as parts:
        await parts.relay.drain()
        assert counts(await verified(parts, pair)) == (rows, 0, 0, 0)
        drifted(pair, "delete from story where n % 10 = 3", "update story set n = -n where n % 10 = 4",
                *(f"insert into story values ({value(n).replace('k', 'q').replace('K', 'Q')}, 0) on conflict do nothing" for n in range(1000, 1030)))  # fmt: skip
        (source_rows, target_rows) = pair.rows("select id::text, n from story")
        here_, there_ = dict(source_rows), dict(target_rows)
        expected = (
            rows,
            len(here_.keys() - there_.keys()),
            sum(there_.get(k, n) != n for k, n in here_.items()),
            len(there_.keys() - here_.keys()),
        )
        assert expected[3] > 10
        assert counts(await verified(parts, pair)) == expected
        record = await verified(parts, pair, repair=True)
        assert (counts(record), record.repaired) == ((rows, 0, 0, 0), sum(expected[1:]))


# -- mappings --------------------------------------------------------------------------------------------------------


async def test_a_mapped_table_is_compared_as_it_travels(pair: Pair) -> None:
    """Renamed with its key, masked, with a constant, without a column, filtered, to a table of another name."""
    with pair.source.connect() as source, pair.target.connect() as target:
        source.execute(
            "create table account (id int primary key, mail text, phone text, note text, balance int, doc jsonb)"
        )
        watch(
            source, "account", target="app.account_view", rename=json.dumps({"id": "number", "mail": "who"}),
            constant=json.dumps({"origin": "main"}), mask=json.dumps({"mail": "hash", "phone": "redact", "doc": "null"}),
            filter="balance >= 0", exclude=["note"],
        )  # fmt: skip
        target.execute("create schema app")
        target.execute(
            "create table app.account_view (number int primary key, who text, phone text, balance int, doc jsonb, origin text, beyond int)"
        )
        target.execute("select outboxd.map('app.account_view', 'public.account')")
    pair.write("insert into account select n, 'm' || n, 'p', 'n', n % 3 - 1, '{}' from generate_series(1, 90) n")
    async with pair.relay(limits=Limits(changes=20)) as parts:
        await parts.relay.drain()
        assert counts(await verified(parts, pair, "account")) == (60, 0, 0, 0)
        pair.write(
            "update account set balance = -1 where id = 5",
            "update account set balance = 0 where id = 3",
            "update account set note = 'x'",
        )
        assert counts(await verified(parts, pair, "account")) == (60, 0, 0, 0)
        drifted(
            pair,
            "update app.account_view set who = 'm8' where number = 8",
            "update app.account_view set phone = null where number = 11",
            "update app.account_view set doc = '{}' where number = 14",
            "update app.account_view set origin = 'other' where number = 17",
            "update app.account_view set beyond = 1",
            "delete from app.account_view where number = 20",
            "insert into app.account_view (number, balance) select number, -1 from (values (9), (6), (5), (1000)) v (number)",
        )
        record = await verified(parts, pair, "account")
        assert counts(record) == (60, 1, 4, 4)
        assert sorted(json.loads(one["key"])["number"] for one in record.samples) == [5, 6, 8, 9, 11, 14, 17, 20, 1000]
        assert sorted(column for one in record.samples for column in one["columns"]) == [
            "doc",
            "origin",
            "phone",
            "who",
        ]
        record = await verified(parts, pair, "account", repair=True)
        assert (counts(record), record.repaired) == ((60, 0, 0, 0), 9)
        with pair.target.connect() as target:
            assert target.execute("select number from app.account_view where beyond is null").fetchall() == [(20,)]


# -- what is held, and what is refused -------------------------------------------------------------------------------


async def test_what_is_held_is_no_difference_and_stays_held(pair: Pair) -> None:
    """A row refused, a row too large to travel: counted apart, by every pass, and not written by a repair."""
    filled(pair, "id int primary key, n int, note text", "n, n, 'note'", many=60)
    with pair.target.connect() as target:
        target.execute("alter table story add constraint small check (n < 1000)")
    async with pair.relay(limits=Limits(changes=20, row_bytes=100_000), timing=AT_ONCE) as parts:
        await parts.relay.drain()
        pair.write("update story set n = 2000 where id = 7", "update story set note = repeat('x', 200000) where id = 8",
                   "insert into story values (61, 2000, '')")  # fmt: skip
        await parts.relay.drain()
        assert len(held(pair)) == 3
        for repair in (False, True, False):
            record = await verified(parts, pair, repair=repair)
            assert (counts(record), record.held, record.repaired) == ((61, 0, 0, 0), 3, 0)
        assert len(held(pair)) == 3


@pytest.mark.parametrize("many", [1, 30])
@pytest.mark.parametrize("on_error", ["hold", "halt"])
async def test_a_repair_that_is_refused_ends_and_disturbs_nobody(pair: Pair, many: int, on_error: str) -> None:
    """However many rows: the table stays in, the relay goes on, and what is refused is counted, or held as a change."""
    filled(pair, many=60)
    with pair.source.connect() as source:
        source.execute("select outbox.on_error('story', %s)", (on_error,))
    seen = Told()
    async with pair.relay(limits=Limits(changes=50), timing=AT_ONCE, observer=seen) as parts:
        await parts.relay.drain()
        drifted(
            pair, f"delete from story where id <= {many}", f"alter table story add constraint late check (id > {many}) not valid",
            "delete from story where id = 55", "insert into story values (1000, 0)",
        )  # fmt: skip
        record = await ended(parts, pair, repair=True)
        assert parts.relay.copier.out == set()
        pair.write("insert into story values (61, 61)")
        if on_error == "halt" and record.state == "done":
            with pytest.raises(TargetError):
                await parts.relay.drain()
            return
        await parts.relay.drain()
        assert pair.rows("select n from story where id = 61") == ([(61,)], [(61,)])
        if on_error == "hold":
            assert record.state == "done"
            assert record.missing + record.held + len(held(pair)) >= many
            record = await verified(parts, pair, repair=True)
            assert (counts(record), record.held) == ((61, 0, 0, 0), many)
            assert len(held(pair)) == many
        else:
            assert "23514" in str(record.reason)
            assert held(pair) == []
        assert seen.failures == []


async def test_parents_and_children_are_repaired_in_one_pass(pair: Pair) -> None:
    """Missing on both sides of a reference, and extra on both."""
    with pair.source.connect() as source, pair.target.connect() as target:
        for conn in (source, target):
            conn.execute("create table parent (id int primary key, n int)")
            conn.execute("create table aunt (id int primary key, parent int references parent)")
        source.execute("insert into parent select n, n from generate_series(1, 50) n")
        source.execute("insert into aunt select n, n from generate_series(1, 50) n")
        for table in ("aunt", "parent"):
            source.execute("select outbox.watch(%s)", (table,))
            target.execute("select outboxd.map(%s)", (table,))
    async with pair.relay(limits=Limits(changes=20), timing=AT_ONCE) as parts:
        await parts.relay.drain()
        drifted(
            pair, "delete from aunt where id in (7, 8)", "delete from parent where id in (7, 8)",
            "insert into parent values (100, 0), (101, 0)", "insert into aunt values (100, 100), (101, 101)",
            "update aunt set parent = 100 where id = 9",
        )  # fmt: skip
        for table in ("aunt", "parent"):
            ask(pair, table, repair=True)
        parts.relay.verifier.ring()
        await parts.relay.drain()
        found = {table: parts.relay.verifier.records[f"public.{table}"] for table in ("aunt", "parent")}
        assert {table: (one.drift, one.repaired) for table, one in found.items()} == {"aunt": (0, 5), "parent": (0, 4)}
    pair.assert_equal("parent", "aunt")
    assert held(pair) == []


async def test_a_trigger_that_changes_rows_leaves_them_different(pair: Pair) -> None:
    """The repair ends, and says that they still differ."""
    filled(pair, many=60)
    async with pair.relay(limits=Limits(changes=20), timing=AT_ONCE) as parts:
        await parts.relay.drain()
        drifted(
            pair,
            "create function spoil() returns trigger language plpgsql as 'begin if new.id < 4 then new.n := -1; end if; return new; end'",
            "create trigger spoil before insert or update on story for each row execute function spoil()",
            "update story set n = 0 where id < 6",
        )
        record = await verified(parts, pair, repair=True)
        assert (counts(record), record.repaired) == ((60, 0, 3, 0), 2)
        record = await verified(parts, pair, repair=True)
        assert (counts(record), record.repaired) == ((60, 0, 3, 0), 0)


# -- what is locked, altered, slow or gone meanwhile ------------------------------------------------------------------

STEPS = ["rows", "confirm", "mend", "extra"]


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_table_that_somebody_has_locked_is_compared_later(pair: Pair, side: str, step: str) -> None:
    """At whatever step: changes of other tables go on and are not kept waiting, the pass ends once the lock is gone."""
    pair.create("create table tale (id int primary key)", "tale")
    filled(pair, many=60)
    door = Stops(pair.target.dsn)
    async with pair.relay(limits=Limits(changes=20), timing=AT_ONCE, door=door) as parts:
        await parts.relay.drain()
        drifted(
            pair,
            "update story set n = 0 where id = 5",
            "delete from story where id = 50",
            "insert into story values (100, 1)",
        )
        ask(pair, repair=step == "mend")
        parts.relay.verifier.ring()
        await until_at(parts, step)
        database = pair.source if side == "source" else pair.target
        with psycopg.connect(database.dsn) as locking:
            locking.execute("lock table story in access exclusive mode")
            door.modes.clear()
            for n in range(5):
                pair.write(f"insert into tale values ({n})")
                await parts.relay.drain()
            assert pair.rows("select count(*) from tale") == ([(5,)], [(5,)])
            assert len(door.modes) < 25
            assert door.longest < 4  # the door itself would wait for six seconds
            assert parts.relay.verifier.due_in() is not None
            locking.rollback()
        record = await until_ended(parts)
        assert record.state == "done"
        assert (counts(record), record.repaired) == (((60, 0, 0, 0), 3) if step == "mend" else ((60, 1, 1, 1), 0))


async def until_at(parts: Parts, step: str) -> None:
    """Turn until the pass has come so far: `rows` is where it begins."""

    async def there() -> bool:
        verifier = parts.relay.verifier
        suspects, record = verifier._suspects, verifier.records.get("public.story")
        if step == "rows" or (suspects is not None and suspects.stage == step):
            return True
        if (
            step == "extra"
            and suspects is None
            and record is not None
            and (record.state, record.step) == ("running", step)
        ):
            return True
        await parts.relay.step()
        return False

    await wait_until_async(there, 30)


async def until_ended(parts: Parts, table: str = "public.story") -> Verification:
    """The pass that is under way, when it has ended."""

    async def over() -> Verification | None:
        parts.relay.verifier.ring()
        await parts.relay.drain()
        record = parts.relay.verifier.records.get(table)
        return record if record and record.state != "running" else None

    record = await wait_until_async(over, 60)
    assert record is not None
    return record


# Done to one side in the middle of a pass; how it is mended, where the pass cannot go on; and by what the relay may stumble.
MEANWHILE: dict[str, tuple[str, str, str, set[str]]] = {
    "truncated": ("source", "truncate story", "", set()),
    "emptied and filled": ("source", "begin; truncate story; insert into story select n, 1 from generate_series(30, 90) n; commit", "", set()),
    "rewritten": ("source", "alter table story alter n type bigint", "", set()),
    "a column more": ("source", "alter table story add more int", "", set()),
    "a column more that the target lacks": ("source", "alter table story add more int default 7", "", {"contract"}),
    "a column renamed": ("source", "alter table story rename n to m", "alter table story rename n to m", {"contract"}),
    "unwatched": ("source", "select outbox.unwatch('story')", "", set()),
    "watched anew": ("source", "select outbox.unwatch('story'), outbox.watch('story')", "", set()),
    "dropped": ("source", "drop table story", "", {"source"}),
    "emptied there": ("target", "truncate story", "", set()),
    "renamed there": ("target", "alter table story rename to tale", "alter table tale rename to story", {"contract"}),
    "another type there": ("target", "alter table story alter n type text", "", set()),
    "a column less there": ("target", "alter table story drop n", "alter table story add n int", {"contract"}),
    "not mapped any more": ("target", "select outboxd.unmap('public.story')", "select outboxd.map('story')", {"contract"}),
    "its key gone": ("target", "alter table story drop constraint story_pkey", "alter table story add primary key (id)", {"contract"}),
}  # fmt: skip


@pytest.mark.parametrize(("what", "step"), list(zip(MEANWHILE, itertools.cycle(STEPS), strict=False)))
async def test_what_happens_to_a_table_in_the_middle_of_a_pass(pair: Pair, what: str, step: str) -> None:
    """The pass goes on or fails with a reason; other tables flow, and once the table fits again a pass is exact."""
    side, statement, mend, stumbles = MEANWHILE[what]
    pair.create("create table tale_2 (id int primary key)", "tale_2")
    filled(pair, many=60)
    seen = Told()
    async with pair.relay(limits=Limits(changes=20), timing=AT_ONCE, observer=seen) as parts:
        await parts.relay.drain()
        drifted(
            pair,
            "update story set n = 0 where id = 5",
            "delete from story where id = 50",
            "insert into story values (100, 1)",
        )
        ask(pair, repair=step == "mend")
        parts.relay.verifier.ring()
        await until_at(parts, step)
        with (pair.source if side == "source" else pair.target).connect() as conn:
            for one in statement.split("; "):
                conn.execute(one.encode())
        for n in range(5):
            pair.write(f"insert into tale_2 values ({n})")
            parts.relay.verifier.ring()
            await parts.relay.drain()
        assert pair.rows("select count(*) from tale_2") == ([(5,)], [(5,)])
        assert set(seen.failures) <= stumbles
        if what in {"unwatched", "dropped"}:
            return
        record = parts.relay.verifier.records.get("public.story")
        wanted = (parts.relay.verifier.wanted or {})["public.story"]
        # what is of another table begins anew at its time; and a table may be out before a pass has begun
        lasting = record is None or (record.state == "running" and record.fits(wanted))
        assert not lasting or parts.relay.copier.away("public.story"), record
        assert record is None or (record.state == "failed") == (record.reason is not None)
        drifted(pair, *filter(None, [mend, "alter table story add more int" if "column more" in what else ""]))
        if what.endswith("renamed"):
            pair.write("select outbox.watch('story')")
        parts.relay.copier.recheck()
        parts.relay.copier.noticing._looked = float("-inf")
        record = await until_fits(parts, pair)
        assert record.drift == 0
        pair.write("update story set n = 1" if "renamed" not in what or side == "target" else "update story set m = 1")
        record = await until_fits(parts, pair)
        assert (record.state, record.drift) == ("done", 0)
    pair.assert_equal("story")


async def until_fits(parts: Parts, pair: Pair) -> Verification:
    """A whole pass that repairs, once the table is in."""

    async def fits() -> bool:
        parts.relay.copier.ring()
        parts.relay.copier.recheck()
        parts.relay.copier.noticing._looked = float("-inf")
        await parts.relay.drain()
        return not parts.relay.copier.away("public.story")

    await wait_until_async(fits, 30)
    return await ended(parts, pair, repair=True)


class Stops:
    """The direct door; every so often, at random, it fails before the target has the request, or after."""

    def __init__(self, dsn: str, choices: random.Random | None = None, often: float = 0.0) -> None:
        self._door = PostgresDoor(dsn)
        self._choices = choices or random.Random(0)
        self.often = often
        self.modes: list[str] = []
        self.longest = 0.0

    async def send(self, document: bytes) -> str:
        began = time.monotonic()
        try:
            return await self._sent(document)
        finally:
            self.longest = max(self.longest, time.monotonic() - began)

    async def _sent(self, document: bytes) -> str:
        self.modes.append(json.loads(document.split(b"\x1e", 1)[0])["mode"])
        fails = self._choices.random() < self.often
        if fails and self._choices.random() < 0.3:
            raise TargetError(Kind.TRANSIENT, "no connection (test)")
        answer = await self._door.send(document)
        if fails:
            raise TargetError(Kind.AMBIGUOUS, "the connection failed before the answer (test)")
        return answer

    async def close(self) -> None:
        await self._door.close()


SLOW = """
create table pace (rows int);
insert into pace values (%s);
create function slowly(n int) returns boolean language plpgsql as $$
begin
  perform set_config('slowly.n', (coalesce(nullif(current_setting('slowly.n', true), ''), '0')::int + 1)::text, true);
  if current_setting('slowly.n')::int > (select rows from public.pace) then raise exception using errcode = '57014'; end if;
  return true;
end $$;
create domain slow as int check (slowly(value));
"""


@pytest.mark.parametrize(("rows", "state"), [(300, "done"), (20, "failed")])
async def test_what_takes_too_long_is_compared_in_smaller_ranges_or_not_at_all(
    pair: Pair, rows: int, state: str
) -> None:
    """A statement timeout of the target's: changes go on, nobody is dead-lettered, and what cannot be done is said."""
    filled(pair, many=1200)
    seen = Told()
    async with pair.relay(limits=Limits(changes=1000), timing=AT_ONCE, observer=seen) as parts:
        await parts.relay.drain()
        drifted(
            pair,
            SLOW % 100000,
            "alter table story alter id type slow",
            f"update pace set rows = {rows}",
            "update story set n = 0 where id = 1100",
        )
        record = await ended(parts, pair)
        assert record.state == state
        assert counts(record)[2] == (1 if state == "done" else 0)
        assert ("57014" in str(record.reason)) == (state == "failed")
        pair.write("insert into story values (2000, 1)")
        await parts.relay.drain()
        assert pair.rows("select n from story where id = 2000") == ([(1,)], [(1,)])
        assert (seen.failures, held(pair)) == ([], [])
        with pair.target.connect() as target:
            assert target.execute("select state from outboxd.verification").fetchall() == [(state,)]


async def test_a_table_that_waits_for_its_copy_is_not_compared(pair: Pair) -> None:
    """Watched with its rows, while the copier is busy with others: they are not missing yet."""
    pair.create("create table tale (id int primary key)", "tale")
    filled(pair, many=60)
    async with pair.relay(limits=Limits(changes=20), timing=AT_ONCE) as parts:
        parts.relay.copier._due = float("inf")  # as a rate of copying would
        ask(pair, repair=True)
        ask(pair, "tale")
        parts.relay.verifier.ring()
        await parts.relay.drain()
        assert parts.relay.verifier.records.keys() == {"public.tale"}
        parts.relay.copier._due = 0.0
        parts.relay.copier.ring()
        record = (
            await until_ended(parts) if parts.relay.verifier.records.get("public.story") else await ended(parts, pair)
        )
        assert (counts(record), record.repaired) == ((60, 0, 0, 0), 0)


# -- whatever happens ------------------------------------------------------------------------------------------------

TIRELESS = Thresholds(consecutive_failures=10**6, failure_ratio=2.0, open_first=0.01, open_cap=0.01)


def differences(pair: Pair) -> tuple[int, int, int]:
    """Missing, different and extra rows, by SQL's own EXCEPT of both stores."""
    here, there = (dict(side) for side in pair.rows("select id, n from story"))
    return (
        len(here.keys() - there.keys()), sum(there[id_] != here[id_] for id_ in here.keys() & there.keys()),
        len(there.keys() - here.keys()),
    )  # fmt: skip


def _tamper(choices: random.Random, pair: Pair) -> None:
    """Somebody writes to the mirror."""
    one, n = choices.randrange(90), choices.randrange(10**6)
    drifted(pair, choices.choice([
        f"insert into story values ({one}, {n}) on conflict (id) do update set n = {n}",
        f"update story set n = {n} where id between {one} and {one + 3}",
        f"delete from story where id between {one} and {one + 3}",
        f"update story set id = {one + 100} where id = {one} and not exists (select from story where id = {one + 100})",
        "truncate story" if choices.randrange(5) == 0 else f"delete from story where id = {one}",
    ]))  # fmt: skip


async def _turn(parts: Parts, batches: int) -> None:
    """Whatever goes wrong, the next turn goes on from where the target stands."""
    with contextlib.suppress(TargetError, BreakerOpen, SourceUnavailable):
        await parts.relay.step(batches)


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_fails_and_whoever_leads(pair: Pair, seed: int) -> None:
    """Requests and answers that are lost, leaders that change in the middle, copies, truncates, wishes at any time, and on
    every other run somebody who writes to the mirror: what a pass finds in the end is what SQL finds; without that
    somebody, no pass ever finds anything."""
    choices = random.Random(seed)
    pair.create("create table story (id int primary key, n int)", "story")
    pair.write("insert into story select n, n from generate_series(0, 80, 2) n")
    door = Stops(pair.target.dsn, choices, often=choices.choice([0.0, 0.05, 0.3]))
    size, tampers = choices.choice([1, 3, 10, 1000]), seed % 2 == 0
    sessions = [psycopg.connect(pair.source.dsn) for _ in range(2)]
    seen: list[Verification] = []
    try:
        for _ in range(3):
            async with pair.relay(limits=Limits(changes=size), door=door, timing=AT_ONCE, thresholds=TIRELESS) as parts:
                for _ in range(25):
                    _write_something(choices, choices.choice(sessions))
                    if tampers and choices.randrange(4) == 0:
                        _tamper(choices, pair)
                    if choices.randrange(6) == 0:
                        ask(pair, repair=choices.random() < 0.5)
                    if choices.randrange(20) == 0:
                        pair.write("select outbox.ask_copy('story', true)")
                    parts.relay.copier.ring()
                    parts.relay.verifier.ring()
                    await _turn(parts, choices.randrange(1, 6))
                    seen += parts.relay.verifier.records.values()
        for session in sessions:
            session.rollback()
        door.often = 0.0
        async with pair.relay(limits=Limits(changes=size), timing=AT_ONCE) as parts:
            await parts.relay.drain()
            if tampers:
                _tamper(choices, pair)
            expected = differences(pair)
            record = await ended(parts, pair)
            assert (record.missing, record.different, record.extra) == expected
            record = await ended(parts, pair, repair=True)
            assert (record.drift, record.repaired) == (0, sum(expected))
            pair.assert_equal("story")
            assert (await ended(parts, pair)).drift == 0
    finally:
        for session in sessions:
            session.close()
    assert tampers or [one for one in seen if one.drift or one.repaired or one.state == "failed"] == []


async def test_passes_beside_writers_and_somebody_who_writes_to_the_mirror(pair: Pair) -> None:
    """Also while a copy runs. Once all is quiet, one pass finds exactly what is there, and one repairs it."""
    filled(pair, "id int primary key, n int", "n, n", many=600)
    async with pair.relay(limits=Limits(changes=100), timing=AT_ONCE) as parts:
        with Writers(pair, anything(str)) as writers:
            choices = random.Random(1)
            async with asyncio.timeout(60):
                for turn in range(120):
                    await parts.relay.step(4)
                    if turn % 10 == 0:
                        _tamper(choices, pair)
                        ask(pair, repair=turn % 20 == 0)
                        parts.relay.verifier.ring()
                while writers.written < 100:
                    await parts.relay.step(4)
        await parts.relay.drain()
        drifted(pair, "update story set n = -1 where id % 10 = 3", "delete from story where id % 10 = 4",
                "insert into story select n, 0 from generate_series(2000, 2040) n")  # fmt: skip
        expected = differences(pair)
        assert min(expected) > 10
        record = await ended(parts, pair)
        assert (record.missing, record.different, record.extra) == expected
        record = await ended(parts, pair, repair=True)
        assert (record.drift, record.repaired) == (0, sum(expected))
    pair.assert_equal("story")


# -- what goes wrong again and again ---------------------------------------------------------------------------------


class Deaf(Stops):
    """Answers of comparisons are lost, or those of more than so many rows are refused as too large."""

    def __init__(self, dsn: str, most: int | None) -> None:
        super().__init__(dsn)
        self.most = most

    async def send(self, document: bytes) -> str:
        answer = await super().send(document)
        if b'"op":"digest"' in document and self.most is None:
            raise TargetError(Kind.AMBIGUOUS, "no answer in time (test)")
        if b'"op":"digest"' in document and document.count(b"outboxd digest") > (self.most or 0):
            raise TargetError(Kind.SIZE, "too large (test)")
        return answer


@pytest.mark.parametrize(("most", "state"), [(None, "failed"), (7, "done"), (0, "failed")])
async def test_a_target_that_never_answers_comparisons_still_gets_its_changes(
    pair: Pair, most: int | None, state: str
) -> None:
    filled(pair, many=60)
    door = Deaf(pair.target.dsn, most)
    async with pair.relay(limits=Limits(changes=50), door=door, timing=AT_ONCE, thresholds=TIRELESS) as parts:
        await parts.relay.drain()
        record = await after_accidents(pair, parts)
        assert (record.state, len(door.modes) < 120) == (state, True)
        assert state == "done" or "target" in str(record.reason)
        pair.assert_equal("story")


async def test_a_source_that_never_reads_a_range_in_time_still_gives_its_changes(pair: Pair) -> None:
    """A statement timeout there: after some attempts the pass has failed; the next one goes through when it can."""
    filled(pair, many=60)
    slow = (
        "create or replace function outbox.rewritten(tbl regclass) returns boolean language plpgsql as 'begin %s end'"
    )
    async with pair.relay(limits=Limits(changes=50), timing=AT_ONCE, thresholds=TIRELESS) as parts:
        await parts.relay.drain()
        pair.write(slow % "raise query_canceled;")
        record = await after_accidents(pair, parts)
        assert (record.state, "source" in str(record.reason)) == ("failed", True)
        pair.assert_equal("story")
        pair.write(slow % "return false;")
        assert counts(await verified(parts, pair)) == (61, 0, 0, 0)


async def after_accidents(pair: Pair, parts: Parts) -> Verification:
    """A pass through everything that goes wrong; meanwhile a change."""
    ask(pair)
    pair.write("insert into story values (1000, 1)")

    async def over() -> Verification | None:
        parts.relay.verifier.ring()
        await _turn(parts, 4)
        record = parts.relay.verifier.records.get("public.story")
        return record if record and record.wish and record.state != "running" else None

    record = await wait_until_async(over, 60)
    assert record is not None
    await parts.relay.drain()
    return record


# -- by the clock ----------------------------------------------------------------------------------------------------


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def passed(parts: Parts, *, seconds: float, clock: Clock) -> int:
    """How many batches were sent by then, with a look every quarter of a second."""
    before = parts.relay.status.batch_no
    for _ in range(int(seconds * 4)):
        clock.now += 0.25
        await parts.relay.drain()
    return parts.relay.status.batch_no - before


async def test_passes_by_the_clock(pair: Pair) -> None:
    """Begun once an interval, not in a loop, not again because of a restart nor of a clock that was set back; at their pace."""
    filled(pair, many=300)
    clock = Clock()

    def timed(parts: Parts, every: float) -> Verifier:
        verifier = parts.relay.verifier
        verifier.every, verifier.rate, verifier._clock = every, 100.0, clock
        return verifier

    async with pair.relay(timing=AT_ONCE) as parts:
        timed(parts, 0.0)
        await parts.relay.drain()
        assert await passed(parts, seconds=2, clock=clock) == 0
        verifier = timed(parts, 3600.0)
        assert await passed(parts, seconds=2, clock=clock) > 0
        record = verifier.records["public.story"]
        assert (record.state, record.asked) == ("running", False)
        assert 0 < record.rows < 300  # a hundred rows a second
        await passed(parts, seconds=10, clock=clock)
        assert counts(verifier.records["public.story"]) == (300, 0, 0, 0)
        assert verifier.records["public.story"].state == "done"
        assert await passed(parts, seconds=3, clock=clock) == 0
    with pair.target.connect() as target:
        target.execute("update outboxd.verification set updated_at = updated_at + interval '10 years'")
    async with pair.relay(timing=AT_ONCE) as parts:
        verifier = timed(parts, 3600.0)
        await parts.relay.drain()
        assert await passed(parts, seconds=3, clock=clock) == 0
        clock.now += 3600
        assert await passed(parts, seconds=2, clock=clock) > 0
        assert verifier.records["public.story"].state == "running"


async def test_who_asks_does_not_wait_for_the_clock(pair: Pair) -> None:
    """A table that somebody asks for comes before a large one whose pass is slow."""
    pair.create("create table tale (id int primary key)", "tale")
    filled(pair, many=600)
    async with pair.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        verifier = parts.relay.verifier
        verifier.order = {"public.story": 0, "public.tale": 1}
        verifier.every, verifier.rate, verifier._clock = 3600.0, 10.0, (clock := Clock())
        assert verifier.wanted is not None
        verifier.records["public.tale"] = Verification("public.tale", aim=verifier.wanted["public.tale"].aim)
        verifier._due["public.tale"] = float("inf")
        verifier.ring()
        assert await passed(parts, seconds=2, clock=clock) > 0
        assert verifier.records["public.story"].state == "running"
        ask(pair, "tale")
        await passed(parts, seconds=3, clock=clock)
        assert (verifier.records["public.tale"].asked, verifier.records["public.tale"].state) == (True, "done")
        assert verifier.records["public.story"].state == "running"


# -- what is said ----------------------------------------------------------------------------------------------------


async def test_no_value_and_no_key_is_said(pair: Pair) -> None:
    """Rows of each kind of difference, repaired, refused, unreadable: logs, errors and reasons have none of their values."""
    with pair.source.connect() as source, pair.target.connect() as target:
        source.execute("create table story (id text primary key, n text)")
        target.execute("create table story (id text primary key, n text)")
        source.execute(
            "insert into story select %s || n, %s from generate_series(1, 30) n", (planted("key"), planted("value"))
        )
        source.execute("select outbox.watch('story')")
        target.execute("select outboxd.map('story')")
    reasons: list[object] = []
    with capture_logs() as log:
        async with pair.relay(limits=Limits(changes=10), timing=AT_ONCE) as parts:
            await parts.relay.drain()
            drifted(pair, "delete from story where id like '%7'", f"update story set n = '{planted('other')}' where id like '%8'",
                    f"insert into story values ('{planted('extra')}', '')", "alter table story add check (n is null) not valid")  # fmt: skip
            for repair in (False, True):
                record = await ended(parts, pair, repair=repair)
                assert record.drift + record.held > 5
            for statement in (
                "alter table story alter n type int using 1",
                "alter table story alter id type int using length(id || n)",
            ):
                drifted(pair, "alter table story drop constraint if exists story_pkey", statement)
                reasons.append((await ended(parts, pair, repair=True)).reason)
    assert all(reasons)
    assert_clean(
        {
            "log": json.dumps(log, default=str),
            "reasons": json.dumps(reasons),
            "errors": str([one for one in log if "error" in one]),
        }
    )


async def test_rows_are_compared_behind_the_whole_window_that_they_were_read_with(pair: Pair) -> None:
    """More changes wait than go into a batch, whenever a range is read: none of them is taken for a difference."""
    filled(pair, many=30)
    async with pair.relay(limits=Limits(changes=3), timing=AT_ONCE) as parts:
        await parts.relay.drain()
        for turn in range(3):
            ask(pair)
            parts.relay.verifier.ring()
            for n in range(1, 31, 2):
                pair.write(
                    f"update story set n = {turn} - n where id = {n}",
                    f"update story set id = id + 100 where id = {n + 1}",
                )
                if n % 5 == 0:
                    await parts.relay.step()
            record = await until_ended(parts)
            assert counts(record)[1:] == (0, 0, 0), record
