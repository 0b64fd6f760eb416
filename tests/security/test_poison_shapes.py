"""Ever other sets of columns: the target composes a statement for each, while all others wait."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest

from tests.captured import Connection, value
from tests.databases import Database
from tests.pairs import Pair
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


def test_the_hundred_sets_of_columns_are_counted_for_all_sessions(source: Database, watcher: Connection) -> None:
    """Who: a role that may only call emit, of a mapped table. Steps: twelve transactions at once (as many as it may have connections), each with
    a hundred sets of its own, then twelve commits: 1200 are known, for good. Gain: 2000 rows of 2000 known sets took the target 28 s
    while the neighbour's row waited; it may send them again and again, for known sets are not counted.
    Right: the count is made under a lock of the table's row in outbox.watched (only where a set is new), and an emitted table has
    the 128 of decision 34 in a batch as well."""
    names = [f"c{n}" for n in range(11)]
    watcher.execute("select outbox.map('public.wide', '{id}')")
    number = 0
    with ExitStack() as stack:
        emitters = [stack.enter_context(source.connect(autocommit=False)) for _ in range(12)]
        try:
            for emitter in emitters:
                emitter.execute("set lock_timeout = '200ms'")
                for _ in range(100):
                    number += 1
                    row = {"id": number, **{name: 1 for at, name in enumerate(names) if number & 1 << at}}
                    emitter.execute("select outbox.emit('public.wide', 'upsert', %s)", (json.dumps(row),))
                emitter.execute("select 1")
        except psycopg.errors.LockNotAvailable:
            pass
        for emitter in emitters:
            emitter.commit()
    assert value(watcher, "select count(*) from outbox.shape where table_name = 'public.wide'") <= 100
