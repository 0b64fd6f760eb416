"""A table that has rows when it is watched is copied, as of a snapshot, while it goes on changing."""

import asyncio
import json
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import psycopg
import pytest
from psycopg import sql

from daemon.batch import Limits
from daemon.target import PostgresDoor
from tests.integration.test_dead_letters import AT_ONCE, asked, held
from tests.model.wire import seen as seen_by
from tests.pairs import Pair, Parts
from tests.relaying import until, within

KEYS = {
    "bigint": ("id bigint primary key", "id", "n"),
    "uuid": ("id uuid primary key", "id", "md5(n::text)::uuid"),
    "text": ("id text primary key", "id", "'k' || (n * 7919 % 100003)"),
    "composite": ("a text, b int, primary key (a, b)", "a, b", "'g' || n % 7, n"),
    "index in another order": ("a text not null, b int not null, unique (b, a)", "a, b", "'g' || n % 7, n"),
}


def filled(
    pair: Pair, columns: str = "id int primary key, n int", rows: str = "n, n", many: int = 2500, keys: str = ""
) -> None:
    """The table on both sides, with rows on the source, then watched and mapped."""
    with pair.source.connect() as source, pair.target.connect() as target:
        source.execute(f"create table story ({columns})".encode())
        target.execute(f"create table story ({columns})".encode())
        source.execute(f"insert into story select {rows} from generate_series(1, {many}) n".encode())
        key = keys.split(", ") if keys else None
        source.execute("select outbox.watch('story', key_columns => %s)", (key,))
        target.execute("select outboxd.map('story', key_columns => %s)", (key,))


@pytest.mark.parametrize("kind", list(KEYS))
async def test_rows_that_were_there_before_are_copied(pair: Pair, kind: str) -> None:
    columns, key, made = KEYS[kind]
    filled(pair, f"{columns}, note text", f"{made}, 'note ' || n", keys=key if "unique" in columns else "")
    async with pair.relay(limits=Limits(changes=300)) as parts:
        await parts.relay.drain()
        assert parts.relay.copier.copies["public.story"].state == "done"
        assert parts.relay.copier.copies["public.story"].rows == 2500
    pair.assert_equal("story")


class Looking:
    """The direct door. After every batch: the target's cursor, how far the copy has come and the rows, as one snapshot."""

    def __init__(self, pair: Pair, columns: str) -> None:
        self._door = PostgresDoor(pair.target.dsn)
        self._pair = pair
        self._columns = columns
        self.seen: list[tuple[str, str | None, dict[str, str]]] = []

    async def send(self, document: bytes) -> str:
        answer = await self._door.send(document)
        if b'"mode":"apply"' in document:
            self.look()
        return answer

    def look(self) -> None:
        with self._pair.target.connect(autocommit=False) as conn:
            conn.execute("set transaction isolation level repeatable read")
            ((cursor, after),) = conn.execute(
                "select cursor, (select case when step = 'rows' and state = 'copying' then after end from outboxd.copy)"
                " from outboxd.cursor"
            ).fetchall()
            rows = conn.execute(
                f"select row_to_json(t)::text, ({self._columns})::text from story t".encode()
            ).fetchall()
        self.seen.append((cursor, after, {key: row for row, key in ((r[0], r[1]) for r in rows)}))

    async def close(self) -> None:
        await self._door.close()


class Writers:
    """Transactions of the application, from several connections, until told to stop."""

    def __init__(self, pair: Pair, statements: Callable[[random.Random], list[str]], many: int = 3) -> None:
        self._pair = pair
        self._statements = statements
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(seed,)) for seed in range(many)]
        self.written = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _write(self, seed: int) -> None:
        choices = random.Random(seed)
        with self._pair.source.connect(autocommit=False) as conn:
            while not self._ended.wait(0.01):
                try:
                    for statement in self._statements(choices):
                        conn.execute(statement.encode())
                    conn.commit()
                    self.written += 1
                except (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
                    conn.rollback()


def anything(key: Callable[[int], str], columns: str = "id") -> Callable[[random.Random], list[str]]:
    """Inserts, updates, key changes and deletes of a few hundred keys, one to three a transaction."""

    def statement(choices: random.Random) -> str:
        one, other, n = key(choices.randrange(600)), key(choices.randrange(600)), choices.randrange(10**6)
        return choices.choice([
            f"insert into story values ({one}, {n}) on conflict do nothing",
            f"update story set n = {n} where ({columns}) = ({one})",
            f"update story set ({columns}, n) = ({one}, {n}) where ({columns}) = ({other})",
            f"delete from story where ({columns}) = ({one})",
        ])  # fmt: skip

    return lambda choices: [statement(choices) for _ in range(choices.randrange(1, 4))]


# Columns on the source, on the target, what is the key, and how a test makes one of it.
LIVE: dict[str, tuple[str, str, str, Callable[[int], str]]] = {
    "bigint": ("id bigint primary key, n int", "id bigint primary key, n int", "id", lambda n: f"{n}::bigint"),
    "uuid": ("id uuid primary key, n int", "id uuid primary key, n int", "id", lambda n: f"md5('{n}')::uuid"),
    "text": ("id text primary key, n int", "id text primary key, n int", "id", lambda n: f"'{'Kk'[n % 2]}{n * 7 % 1000}{'-é'[n % 2]}'"),
    "sorted otherwise on the target": ("id bigint primary key, n int", "id text primary key, n int", "id", lambda n: f"{n}::bigint"),
    "text, another collation": (
        'id text collate "C" primary key, n int', 'id text collate "en-x-icu" primary key, n int', "id",
        lambda n: f"'{'Kk'[n % 2]}{n * 7 % 1000}{'-é'[n % 2]}'",
    ),
    "text, the other way round": (
        'id text collate "en-x-icu" primary key, n int', 'id text collate "C" primary key, n int', "id",
        lambda n: f"'{'Kk'[n % 2]}{n * 7 % 1000}{'-é'[n % 2]}'",
    ),
    "composite": ("a text, b int, n int, primary key (a, b)", "a text, b int, n int, primary key (a, b)", "a, b", lambda n: f"'g{n % 5}', {n}"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(LIVE))
async def test_at_every_cursor_the_target_has_what_the_source_had(pair: Pair, kind: str) -> None:
    """While writers insert, update, move and delete rows: whatever row the target has is the source's as of its cursor,
    of the keys that are copied none is missing, and in the end both are equal."""
    ours, theirs, columns, key = LIVE[kind]
    with pair.source.connect() as source, pair.target.connect() as target:
        try:
            source.execute(f"create table story ({ours})".encode())
            target.execute(f"create table story ({theirs})".encode())
        except psycopg.errors.UndefinedObject:
            pytest.skip("this PostgreSQL was built without ICU")
        for n in range(0, 600, 2):
            source.execute(f"insert into story values ({key(n)}, {n})".encode())
        source.execute("select outbox.watch('story')")
        target.execute("select outboxd.map('story')")
        start = {
            key: row
            for row, key in source.execute(f"select row_to_json(t)::text, ({columns})::text from story t".encode())
        }
    door = Looking(pair, columns)
    async with pair.relay(limits=Limits(changes=15), door=door) as parts:
        with Writers(pair, anything(key, columns)) as writers:
            while (copy := parts.relay.copier.copies.get("public.story")) is None or copy.state != "done":
                await parts.relay.step(4)
                await asyncio.sleep(0)
        await parts.relay.drain()
    assert writers.written > 20
    assert sum(after is not None for _, after, _ in door.seen) > 10, "the copy took several ranges"
    pair.assert_equal("story")
    _explain(pair, columns, start, door.seen)


def _texts(row: str) -> dict[str, str]:
    return {name: str(value) for name, value in json.loads(row).items()}


def _explain(
    pair: Pair, columns: str, start: dict[str, str], seen: list[tuple[str, str | None, dict[str, str]]]
) -> None:
    """Every look at the target against the outbox: rows as of the watch, and the changes that the cursor sees."""
    record = f"(select ({columns})::text from json_populate_record(null::story, (c.key)::json))"
    with pair.source.connect() as source:
        changes = source.execute(
            f"select c.id, c.xid::text, c.op, {record}, c.row from outbox.change c order by c.id".encode()
        ).fetchall()
        ranks = dict(source.execute(
            f"select ({columns})::text, row_number() over (order by {columns}) from"
            " (select distinct (json_populate_record(null::story, k::json)).* from unnest(%s::text[]) k) s".encode(),
            ([*{row for look in seen for row in look[2].values()}, *start.values(), *(row for *_, row in changes if row)],),
        ).fetchall())  # fmt: skip
        for cursor, after, rows in seen:
            sees, torn = seen_by(json.loads(cursor)["snapshot"]), dict(json.loads(cursor)["torn"])
            state = dict(start)
            for id_, xid, op, key, row in changes:
                if sees(int(xid)) or id_ <= torn.get(int(xid), 0):
                    if op == "truncate":
                        state = {}
                    elif op == "delete":
                        state.pop(key, None)
                    else:
                        state[key] = row
            for key, row in rows.items():
                assert key in state, (cursor, key)
                assert _texts(state[key]) == _texts(row), (cursor, key)
            if after is not None:
                ((last,),) = source.execute(
                    f"select ({columns})::text from json_populate_record(null::story, %s::json)".encode(), (after,)
                ).fetchall()
                missing = [
                    key
                    for key in state
                    if key in ranks and last in ranks and ranks[key] <= ranks[last] and key not in rows
                ]
                assert not missing, (cursor, last)


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_is_written_between_ranges_of_whatever_size(pair: Pair, seed: int) -> None:
    """Two sessions that write, wait, commit and roll back at random, truncates, wishes at any time, tables that are out
    for a while, ranges of one row and of many: what holds at every cursor holds."""
    choices = random.Random(seed)
    with pair.source.connect() as source, pair.target.connect() as target:
        for conn in (source, target):
            conn.execute("create table story (id int primary key, n int)")
        source.execute("insert into story select n, n from generate_series(0, 60, 2) n")
        source.execute("select outbox.watch('story')")
        target.execute("select outboxd.map('story')")
        start = dict(source.execute("select (id)::text, row_to_json(t)::text from story t").fetchall())
    door = Looking(pair, "id")
    sessions = [psycopg.connect(pair.source.dsn) for _ in range(2)]
    try:
        async with pair.relay(limits=Limits(changes=choices.choice([1, 3, 10])), door=door, timing=AT_ONCE) as parts:
            for _ in range(60):
                _write_something(choices, choices.choice(sessions))
                if choices.randrange(8) == 0:
                    _wish_something(choices, pair)
                    parts.relay.copier.ring()
                if choices.randrange(2):
                    await parts.relay.step(choices.randrange(1, 4))
            for session in sessions:
                session.rollback()
            with pair.source.connect() as source:
                source.execute("select outbox.ask_copy('story', true)")
            await until_copied(parts)
    finally:
        for session in sessions:
            session.close()
    pair.assert_equal("story")
    _explain(pair, "id", start, door.seen)


async def until_copied(parts: Parts) -> None:
    """Turn until every wish is fulfilled."""
    while True:
        parts.relay.copier.ring()
        parts.relay.copier._busy = {}
        await parts.relay.drain()
        wish, copy = parts.relay.copier.wishes["public.story"], parts.relay.copier.copies["public.story"]
        if copy.state == "done" and copy.wish == wish.number:
            return


def _write_something(choices: random.Random, session: psycopg.Connection[Any]) -> None:
    one, other, n = choices.randrange(70), choices.randrange(70), choices.randrange(10**6)
    statement = choices.choice([
        f"insert into story values ({one}, {n}) on conflict (id) do update set n = {n}",
        f"update story set n = {n} where id between {one} and {one + 5}",
        f"update story set id = {one} where id = {other}",
        f"delete from story where id = {one}",
        f"insert into story select i, {n} from generate_series({one}, {one + 9}) i on conflict do nothing",
        "truncate story" if choices.randrange(4) == 0 else "commit",
        "commit", "commit", "rollback",
    ])  # fmt: skip
    try:
        session.execute("set local lock_timeout = '20ms'")
        session.execute(statement.encode())
    except (psycopg.errors.UniqueViolation, psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
        session.rollback()


def _wish_something(choices: random.Random, pair: Pair) -> None:
    with pair.source.connect() as source:
        source.execute("select outbox.ask_copy('story', %s, %s)", (choices.random() < 0.5, choices.random() < 0.5))


# -- what the index does, what is refused, what is too much ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "composite", "index in another order", "uuid"])
def test_the_keys_own_index_gives_each_range(pair: Pair, kind: str) -> None:
    """Without statistics, and with: an index scan from the last key on, which gives no more rows than are wanted."""
    columns, key, made = KEYS[kind]
    filled(pair, f"{columns}, note text", f"{made}, 'note ' || n", many=20_000, keys=key if "unique" in columns else "")
    with pair.source.connect() as conn:
        for analysed in (False, True):
            if analysed:
                conn.execute("analyze story")
            ((after,),) = conn.execute(
                "select split_part(named, e'\\x1d', -1) from outbox.copy_of('story', 'rows', null, 5000, 1e9::bigint, 1e9::bigint) offset 19"
            ).fetchall()
            ((statement,),) = conn.execute(
                "select outbox.range_sql(w, outbox.keyed(w), outbox.projection(w.id), false) from outbox.watched w"
            ).fetchall()
            for setting in ("seqscan", "bitmapscan", "sort"):  # as the function has it: outbox.compose_copy
                conn.execute(f"set enable_{setting} = off".encode())
            conn.execute(f"prepare range(text, int) as {statement}".encode())
            ((text,),) = conn.execute(
                sql.SQL("explain (analyze, format json) execute range({}, 100)").format(sql.Literal(after))
            ).fetchall()
            conn.execute("deallocate range")
            nodes = list(_nodes(text[0]["Plan"]))
            assert {node["Node Type"] for node in nodes} & {"Seq Scan", "Bitmap Heap Scan"} == set()
            (scan,) = [node for node in nodes if node.get("Relation Name") == "story"]
            assert "ROW(" in scan["Index Cond"] or ">" in scan["Index Cond"]
            assert scan["Actual Rows"] == 100


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from _nodes(inner)


async def test_a_copied_row_that_is_refused_is_held_as_a_change_of_its_own(pair: Pair) -> None:
    """Its neighbours are copied; what it becomes later waits with it, in order, and a retry brings the newest over."""
    filled(pair, many=100)
    with pair.target.connect() as conn:
        conn.execute("alter table story add constraint small check (n <> 50)")
    async with pair.relay(limits=Limits(changes=30), timing=AT_ONCE) as parts:
        await parts.relay.drain()
        await parts.relay.drain()
        assert held(pair) == [("public.story", '{"id":50}')]
        assert pair.rows("select count(*) from story") == ([(100,)], [(99,)])
        pair.write("update story set n = 500 where id = 50")
        await parts.relay.drain()
        with pair.source.connect() as conn:
            assert conn.execute("select count(*), bool_and(id > 0) from outbox.held").fetchall() == [(2, True)]
        assert (await asked(pair, parts, "retry")).refused == ()
    assert held(pair) == []
    pair.assert_equal("story")


async def test_a_held_row_that_is_copied_is_released(pair: Pair) -> None:
    """It carries the newest row: the letters that wait for it are of no use any more."""
    pair.create("create table story (id int primary key, n int)", "story")
    with pair.target.connect() as conn:
        conn.execute("alter table story add constraint small check (n < 50)")
    pair.write("insert into story values (1, 1)")
    async with pair.relay(timing=AT_ONCE) as parts:
        pair.write("update story set n = 51")
        await parts.relay.drain()
        assert held(pair) == [("public.story", '{"id":1}')]
        pair.write("update story set n = 49")
        with pair.source.connect() as conn:
            conn.execute("select outbox.ask_copy('story')")
        parts.relay.copier.ring()
        await parts.relay.drain()
        assert held(pair) == []
        with pair.source.connect() as conn:
            assert conn.execute("select count(*) from outbox.held").fetchall() == [(0,)]
    pair.assert_equal("story")


async def test_rows_too_large_to_travel_are_held_and_the_others_copied(pair: Pair) -> None:
    filled(pair, "id int primary key, n text", "n, repeat('x', case when n = 7 then 200000 else 10 end)", many=20)
    async with pair.relay(limits=Limits(changes=5, row_bytes=100_000), timing=AT_ONCE) as parts:
        await parts.relay.drain()
        await parts.relay.drain()
    assert held(pair) == [("public.story", '{"id":7}')]
    assert pair.rows("select count(*) from story") == ([(20,)], [(19,)])


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("only_a_key", [False, True])
async def test_rows_that_the_source_does_not_have_are_counted_and_pruned_on_request(
    pair: Pair, prune: bool, only_a_key: bool
) -> None:
    """Also where a row is nothing but its key, so that a copy of one that is there writes nothing."""
    more = "" if only_a_key else ", n int"
    filled(pair, f"id int primary key{more}", "n" if only_a_key else "n, n", many=3000)
    with pair.target.connect() as target, pair.source.connect() as source:
        target.execute(
            f"insert into story select n{'' if only_a_key else ', 0'} from generate_series(2000, 7999) n".encode()
        )
        source.execute("select outbox.ask_copy('story', %s)", (prune,))
    async with pair.relay(limits=Limits(changes=500)) as parts:
        await parts.relay.drain()
        copy = parts.relay.copier.copies["public.story"]
    assert (copy.state, copy.rows, copy.extra, copy.pruned) == ("done", 3000, 4999, 4999 if prune else 0)
    assert pair.rows("select count(*) from story") == ([(3000,)], [(3000 if prune else 7999,)])


async def test_children_are_copied_after_their_parents_and_of_one_table_in_any_order(pair: Pair) -> None:
    """A row that refers to one of its own table which comes later is held, and flows once the table has been copied."""
    with pair.source.connect() as source, pair.target.connect() as target:
        for conn in (source, target):
            conn.execute("create table parent (id int primary key, next int references parent deferrable)")
            conn.execute("create table aunt (id int primary key, parent int references parent deferrable)")
        source.execute("set constraints all deferred")
        source.execute("insert into parent select n, case when n < 50 then n + 1 end from generate_series(1, 50) n")
        source.execute("insert into aunt select n, n from generate_series(1, 50) n")
        for table in ("aunt", "parent"):
            source.execute("select outbox.watch(%s)", (table,))
            target.execute("select outboxd.map(%s)", (table,))
    async with pair.relay(limits=Limits(changes=10), timing=AT_ONCE) as parts:
        for _ in range(20):
            await parts.relay.drain()
            if not held(pair):
                break
    assert held(pair) == []
    pair.assert_equal("parent", "aunt")


async def test_a_table_truncated_or_rewritten_while_a_range_is_read_is_read_again(pair: Pair) -> None:
    """An older snapshot sees such a table empty: taken for the truth, the copy would end without its rows."""
    filled(pair, many=100)
    with pair.source.connect(autocommit=False) as reader, pair.source.connect() as app:
        reader.execute("set transaction isolation level repeatable read")
        reader.execute("select 1 from outbox.watched")
        app.execute("alter table story alter n type bigint")
        with pytest.raises(psycopg.errors.SerializationFailure, match="is being altered"):
            reader.execute("select * from outbox.copy_of('story', 'rows', null, 10, 1000, 1000)").fetchall()
    assert await pair.drain() > -1
    pair.assert_equal("story")


async def test_a_table_that_somebody_has_locked_keeps_nobody_waiting(pair: Pair) -> None:
    """Changes of the others go on, their copies too; once the lock is gone it is copied."""
    filled(pair, many=50)
    with pair.source.connect() as source, pair.target.connect() as target:
        for conn in (source, target):
            conn.execute("create table tale (id int primary key)")
        source.execute("insert into tale values (1)")
        source.execute("select outbox.watch('tale')")
        target.execute("select outboxd.map('tale')")
    with psycopg.connect(pair.source.dsn) as locking:
        locking.execute("lock table story in access exclusive mode")
        async with pair.relay(limits=Limits(changes=10)) as parts:
            await parts.relay.drain()
            pair.write("insert into tale values (2)")
            await parts.relay.drain()
            assert pair.rows("select count(*) from tale")[1] == [(2,)]
            assert {copy["table"]: copy["state"] for copy in parts.relay.copier.report()} == {
                "public.story": "wanted",
                "public.tale": "done",
            }
            locking.rollback()
            await until_copied(parts)
    pair.assert_equal("story", "tale")


def test_watch_asks_for_a_copy_of_rows_that_are_there_and_of_none_when_told(pair: Pair) -> None:
    wished = "select table_name from outbox.copy"
    with pair.source.connect() as conn:
        conn.execute(
            "create table empty (id int primary key); create table full_ (id int primary key); insert into full_ values (1)"
        )
        conn.execute("select outbox.watch('empty'), outbox.watch('full_')")
        assert conn.execute(wished).fetchall() == [("public.full_",)]
        conn.execute("select outbox.unwatch('full_')")
        assert conn.execute(wished).fetchall() == [("public.full_",)]  # for when it is watched again
        conn.execute("select outbox.watch('full_') where set_config('outbox.copy', 'off', false) is not null")
        assert conn.execute(wished).fetchall() == []


async def test_what_is_to_be_finished_waits_for_a_table_that_somebody_has_locked(pair: Pair) -> None:
    """Idle is not done: neither the copy nor a verification that was asked for is given up."""
    filled(pair)
    with pair.source.connect() as asking:
        asking.execute("select outbox.ask_verification('public.story')")
    async with pair.relay() as parts:
        with pair.source.connect(autocommit=False) as locking:
            locking.execute("lock table story in access exclusive mode")
            finishing = asyncio.create_task(parts.relay.finish())
            await until(lambda: finishing.done() or "public.story" in parts.relay.copier._busy)
            turns = parts.relay.turns
            await until(lambda: finishing.done() or parts.relay.turns > turns + 3)
            assert not finishing.done()
        await within(30, finishing)
        assert parts.relay.copier.copies["public.story"].state == "done"
        assert parts.relay.verifier.records["public.story"].state == "done"
    pair.assert_equal("story")
