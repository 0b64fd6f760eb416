"""Ever other sets of columns: the target composes a statement for each, while all others wait."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import psycopg
import pytest

from daemon.target import PostgresDoor
from tests.captured import Connection, value, waits_for
from tests.databases import Database
from tests.pairs import Pair
from tests.security.relayed import turned_until
from tests.security.tenants import Tenants
from tests.waiting import wait_until

COLUMNS = [f"c{n}" for n in range(9)]
WIDE = f"create table wide (id int primary key, {', '.join(f'{name} int' for name in COLUMNS)})"


def sets() -> Iterator[str]:
    """A row for each set of columns."""
    for n in range(2 ** len(COLUMNS)):
        yield json.dumps({"id": n, **{name: n for at, name in enumerate(COLUMNS) if n & 1 << at}})


def test_emit_takes_a_hundred_sets_of_columns_and_says_how_more_are_meant(tenants: Tenants) -> None:
    """The hundred and first is an error of the statement that brings it; sets that are known go on, and so does the neighbour."""
    for there in (tenants.mirror, tenants.tenant):
        there.execute(WIDE.encode())
    tenants.mirror.execute("select outboxd.map('wide')")
    rows = list(sets())
    for name, began in (
        ("public.gone", "select outbox.map('public.gone', '{id}')"),
        ("public.wide", "select outbox.watch('wide', capture => false)"),
    ):
        tenants.tenant.execute(began.encode())
        for row in rows[:100]:
            tenants.tenant.execute("select outbox.emit(%s, 'upsert', %s)", (name, row))
        with pytest.raises(
            psycopg.errors.ProgramLimitExceeded,
            match=f"emit for {name}: its rows have come with 100 different sets of columns",
        ) as caught:
            tenants.tenant.execute("select outbox.emit(%s, 'upsert', %s)", (name, rows[100]))
        tenants.tenant.execute(
            "select outbox.emit(%s, 'upsert', %s), outbox.emit(%s, 'delete', %s)", (name, rows[7], name, rows[200])
        )
        hint = caught.value.diag.message_hint or ""
        tenants.tenant.execute(hint.partition("meant: ")[2].removesuffix(" counts anew").encode())
        tenants.tenant.execute("select outbox.emit(%s, 'upsert', %s)", (name, rows[100]))
    tenants.tenant.execute("delete from outbox.change where table_name = 'public.gone'")
    tenants.run()
    wait_until(lambda: tenants.there("select count(*), sum(c0) from wide") == [(101, sum(range(1, 100, 2)))], 30)


def test_a_new_set_of_columns_does_not_fail_an_older_snapshot(source: Database) -> None:
    """What others have brought since is no failure of a statement, nor that somebody has counted anew, once or twice. Whose snapshot
    has all of the hundred brings no more."""
    with source.connect() as conn, source.connect(autocommit=False) as old:
        conn.execute("select outbox.map('public.wide', '{id}')")

        def older() -> None:
            old.rollback()
            old.execute("set transaction isolation level repeatable read; select 1")

        rows = list(sets())
        older()
        conn.execute("select outbox.emit('public.wide', 'upsert', %s)", (rows[0],))
        old.execute("select outbox.emit('public.wide', 'upsert', %s)", (rows[100],))
        older()
        for row in rows[1:100]:
            conn.execute("select outbox.emit('public.wide', 'upsert', %s)", (row,))
        old.execute("select outbox.emit('public.wide', 'upsert', %s)", (rows[101],))
        conn.execute("select outbox.map('public.wide', '{id}')")
        older()
        for row in rows[100:102]:
            conn.execute("select outbox.emit('public.wide', 'upsert', %s)", (row,))
            conn.execute("select outbox.map('public.wide', '{id}')")
        old.execute("select outbox.emit('public.wide', 'upsert', %s)", (rows[200],))
        for row in rows[102:202]:
            conn.execute("select outbox.emit('public.wide', 'upsert', %s)", (row,))
        older()
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            old.execute("select outbox.emit('public.wide', 'upsert', %s)", (rows[300],))


@pytest.mark.parametrize("ended", [True, False], ids=["maps", "is mapping"])
def test_whoever_counts_anew_fails_nobody_who_brings_a_set(source: Database, *, ended: bool) -> None:
    """Also while another waits for his turn, and where the transaction that counts anew has not ended."""
    with (
        source.connect() as conn,
        source.connect(autocommit=False) as holder,
        source.connect() as other,
        source.connect(autocommit=False) as mapper,
    ):
        conn.execute("select outbox.map('public.wide', '{id}')")
        conn.execute("""select outbox.emit('public.wide', 'upsert', '{"id": 1, "a": 1}')""")
        holder.execute("""select outbox.emit('public.wide', 'upsert', '{"id": 1, "b": 1}')""")
        with ThreadPoolExecutor(1) as pool:
            emits = pool.submit(other.execute, """select outbox.emit('public.wide', 'upsert', '{"id": 1, "c": 1}')""")
            wait_until(lambda: waits_for(conn, other, holder))
            mapper.execute("select outbox.map('public.wide', '{id}')")
            if ended:
                mapper.commit()
            emits.result()
        other.execute("""select outbox.emit('public.wide', 'upsert', '{"id": 1, "d": 1}')""")
        mapper.commit()
        other.execute("""select outbox.emit('public.wide', 'upsert', '{"id": 1, "e": 1}')""")


@pytest.mark.parametrize("row", [{"x" * 64: 1}, {f"c{n}": 1 for n in range(1600)}], ids=["a name", "names"])
def test_emit_takes_no_columns_that_no_table_can_have(tenants: Tenants, row: dict[str, int]) -> None:
    """The daemon keeps the names of each set in memory."""
    tenants.tenant.execute("select outbox.map('public.gone', '{id}')")
    with pytest.raises(
        psycopg.errors.ProgramLimitExceeded,
        match="no table has more than 1600 columns, nor one whose name has more than 63 bytes",
    ):
        tenants.tenant.execute("select outbox.emit('public.gone', 'upsert', %s)", (json.dumps({"id": 1, **row}),))
    assert tenants.here("select count(*) from outbox.shape where table_name = 'public.gone'") == [(0,)]


async def test_a_table_that_is_altered_between_its_rows_is_copied_anew(pair: Pair) -> None:
    """Its statements succeed, all of them; it is out, nothing else waits, and it comes back by itself."""
    pair.create("create table item (id int primary key)", "item")
    pair.create(
        "create table loose (id int primary key)",
        "loose",
        on_target=f"create table loose (id int primary key, {', '.join(f'c{n} int' for n in range(140))})",
    )
    pair.write(
        *(f"alter table loose add c{n} int; insert into loose values ({n})" for n in range(140)),
        "insert into item values (1)",
    )
    async with pair.relay() as parts:
        assert await parts.relay.step()
        assert "more than 128 sets of columns at once" in (parts.relay.copier.copies["public.loose"].reason or "")
        await parts.relay.step()
        assert pair.rows("select (select count(*) from item), (select count(*) from loose)")[1] == [(1, 0)]
        while parts.relay.copier.out or parts.relay.copier.asked:
            await parts.relay.step()
    pair.assert_equal("item", "loose")


def test_one_table_does_not_take_all_writers(tenants: Tenants) -> None:
    """Statements that the target keeps: the tenant's hundred and fifty, and the neighbour's."""
    tenants.mirror.execute(WIDE.encode())
    tenants.mirror.execute("select outboxd.map('wide')")
    make = "select count(*) filter (where outboxd.make_writer('write_' || m.target_table || n, m, 'upsert', array['id', 'c' || mod(n, 9)])) from outboxd.mirror m, generate_series(1, %s) n where m.target_table = %s"
    assert tenants.there(make, 151, "wide") == [(150,)]
    assert tenants.there(make.replace(", 'c' || mod(n, 9)", ""), 3, "item") == [(3,)]


def emits(conn: Connection, numbers: range) -> int:
    """Rows of as many sets of columns in the transaction; how many are taken."""
    conn.execute("select 1")  # so that what follows is savepoints, where a transaction is open
    for taken, number in enumerate(numbers):
        row = {"id": number, **{f"c{at}": 1 for at in range(11) if number & 1 << at}}
        try:
            with conn.transaction():
                conn.execute("select outbox.emit('public.wide', 'upsert', %s)", (json.dumps(row),))
        except psycopg.errors.ProgramLimitExceeded:
            return taken
    return len(numbers)


def test_the_hundred_sets_of_columns_are_counted_for_all_sessions(source: Database, watcher: Connection) -> None:
    """Who: a role that may only call emit, of a mapped table. Steps: twelve transactions at once (as many as it may have connections), each with
    a hundred sets of its own, then twelve commits: 1200 are known, for good. Gain: 2000 rows of 2000 known sets took the target 28 s
    while the neighbour's row waited; it may send them again and again, for known sets are not counted.
    Right: those count that are not committed yet, and an emitted table has the 128 of decision 34 in a batch as well."""
    watcher.execute("select outbox.map('public.wide', '{id}')")
    with ExitStack() as stack:
        emitters = [stack.enter_context(source.connect(autocommit=False)) for _ in range(4)]
        assert [emits(one, range(100 * n + 1, 100 * n + 101)) for n, one in enumerate(emitters)] == [100, 0, 0, 0]
        emitters[0].rollback()
        assert [emits(one, range(100 * n + 1001, 100 * n + 1096)) for n, one in enumerate(emitters[:2])] == [95, 5]
        for emitter in emitters:
            emitter.commit()
    assert value(watcher, "select count(*) from outbox.shape where table_name = 'public.wide'") == 100


def test_whoever_brings_a_new_set_of_columns_and_does_not_end_stops_nobody(
    source: Database, watcher: Connection
) -> None:
    """Neither known sets, nor other new ones, nor whoever maps or gives up the table."""
    watcher.execute("select outbox.map('public.wide', '{id}')")
    assert emits(watcher, range(1, 2)) == 1
    with source.connect(autocommit=False) as holder:
        assert emits(holder, range(2, 4)) == 2
        watcher.execute("set statement_timeout = '10s'")
        assert emits(watcher, range(1, 2)) == 1
        assert emits(watcher, range(4, 6)) == 2
        watcher.execute("select outbox.map('public.wide', '{id}')")
        assert emits(watcher, range(200, 201)) == 1
        watcher.execute("delete from outbox.watched")


def test_the_same_new_set_of_many_sessions_counts_once(source: Database, watcher: Connection) -> None:
    """As an application begins: each of its workers with the same row."""
    watcher.execute("select outbox.map('public.wide', '{id}')")

    def work() -> None:
        with source.connect() as conn:
            emits(conn, range(7, 8))

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert value(watcher, "select count(*) from outbox.shape where table_name = 'public.wide'") == 1


@pytest.mark.parametrize("halt", [False, True], ids=["held", "halt"])
async def test_rows_of_two_thousand_sets_of_columns_go_some_at_a_time(pair: Pair, halt: bool) -> None:
    """Also where they are known, and all are in one batch: the neighbour waits for some, not for all. An owner who wants the relay to
    halt rather than to hold has them in smaller batches."""
    pair.create("create table item (id int primary key)", "item")
    columns = ", ".join(f"c{n} int" for n in range(11))
    with pair.target.connect() as conn:
        conn.execute(f"create table wide (id int primary key, {columns}); select outboxd.map('wide')".encode())
    many, sent = 300 if halt else 2000, list[int]()
    with pair.source.connect() as conn:
        conn.execute("select outbox.map('public.wide', '{id}')")
        if halt:
            conn.execute("update outbox.watched set on_error = 'halt' where table_name = 'public.wide'")
        conn.execute(
            "with sets as (select n, array(select 'c' || k from generate_series(0, 10) k where n & (1 << k) <> 0) as columns from generate_series(1, %(many)s) n)"
            " insert into outbox.shape (table_name, columns) select 'public.wide', array(select c from unnest(s.columns || 'id'::text) c order by c) from sets s",
            {"many": many},
        )
        conn.execute(
            "select count(outbox.emit('public.wide', 'upsert', (select json_object_agg('c' || k, n)::jsonb || jsonb_build_object('id', n) from generate_series(0, 10) k where n & (1 << k) <> 0)::json))"
            " from generate_series(1, %s) n",
            (many,),
        )
    pair.write("insert into item values (1)")
    door = PostgresDoor(pair.target.dsn)
    async with pair.relay(door=Counted(door, sent)) as parts:
        await turned_until(parts, lambda: there(pair, "item") == [(1,)], 60)
        if not halt:
            assert there(pair, "wide") <= [(256,)], "the neighbour's row waits for few of them"
        await turned_until(parts, lambda: there(pair, "wide") == [(many,)], 120)
        await turned_until(parts, lambda: not parts.relay.copier.out)
    assert max(sent) <= 128


@dataclass
class Counted:
    """A door that counts sets of columns of what comes through."""

    door: PostgresDoor
    sent: list[int]

    async def send(self, document: bytes) -> str:
        self.sent.append(document.count(b'"op":"upsert"'))
        return await self.door.send(document)

    async def close(self) -> None:
        await self.door.close()


def there(pair: Pair, table: str) -> list[tuple[int]]:
    with pair.target.connect() as conn:
        return conn.execute(f"select count(*) from {table}".encode()).fetchall()
