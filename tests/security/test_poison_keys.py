"""Keys as long as an index can be made to take, by somebody who may write one table: theirs wait, the neighbour's flow."""

import psycopg
import pytest

from daemon.hold import KEY_BYTES, name_of
from tests.databases import Database
from tests.security.tenants import Tenants, resident
from tests.waiting import wait_until

NOTE = "create table note (id text primary key, n int)"
FEW = "create table note (id text primary key, n int constraint few check (n < 5))"
LONG = "repeat(chr(97 + i % 26), 200000) || i"  # an index takes it, compressed


def settled(tenants: Tenants, keys: int) -> None:
    wait_until(
        lambda: (
            len(tenants.held()) == keys and tenants.here("select count(distinct key) from outbox.held") == [(keys,)]
        ),
        30,
    )


def test_a_hundred_keys_of_200_kb_are_held_by_their_digests(tenants: Tenants) -> None:
    """Nothing waits for them but their own rows; the next process takes over at once; shortened or deleted they are free."""
    tenants.both(NOTE, "note")
    one = tenants.run()
    before = resident(one)
    tenants.tenant.execute(f"insert into note select {LONG}, 9 from generate_series(1, 100) i".encode())
    tenants.tenant.execute("insert into note values ('short', 1)")
    tenants.flows()
    settled(tenants, 100)
    assert sum(size for _, size in tenants.held()) < 10_000
    assert tenants.there("select id from note") == [("short",)]
    assert tenants.here("select distinct sqlstate, op from outbox.held") == [("54000", "too_large")]
    ((reason,),) = tenants.here("select distinct reason from outbox.held")
    assert reason.startswith(f"the key of the row has more than {KEY_BYTES} bytes")
    assert tenants.here("select max(octet_length(key)), sum(octet_length(row)) < 10000 from outbox.change") == [
        (74, True)
    ]
    assert resident(one) < before + 60
    one.stop()
    tenants.run()
    tenants.tenant.execute("update note set n = 3 where length(id) > 10")  # joins what waits
    tenants.tenant.execute("update note set id = right(id, 5) || length(id) where id like 'a%'")
    ((left,),) = tenants.here("select count(*) from note where length(id) > 1000")
    settled(tenants, left)
    tenants.tenant.execute("delete from note where length(id) > 1000")
    settled(tenants, 0)
    wait_until(
        lambda: tenants.there("select id, n from note order by 1") == tenants.here("select id, n from note order by 1"),
        30,
    )


KINDS = {
    "text": ("text", "repeat('x', 100000)", "repeat('x', 4000)"),
    "escaped": ("text", "repeat(chr(1), 700)", "repeat(chr(1), 600)"),
    "numeric": ("numeric", "repeat('9', 5000)::numeric", "repeat('9', 900)::numeric"),
    "bytea": ("bytea", "decode(repeat('00', 100000), 'hex')", "decode(repeat('00', 1000), 'hex')"),
    "varbit": ("varbit", "repeat('0', 5000)::varbit", "repeat('0', 4000)::varbit"),
    "varchar": ("varchar(5000)", "repeat('ä', 2500)", "repeat('ä', 600)"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_of_every_type_a_long_key_has_one_name(source: Database, kind: str) -> None:
    """Inserted, updated, moved, deleted, re-read after a nested statement, by partition, touched: the same, and it is the
    daemon's, too. One that is just short enough is recorded as it is."""
    of_type, long, short = KINDS[kind]
    with source.connect() as app:
        app.execute(f"create table note (id {of_type}, n int, primary key (id, n))".encode())
        app.execute(f"create table parted (id {of_type}, n int, primary key (id, n)) partition by list (n)".encode())
        app.execute(
            "create table one partition of parted for values in (1); create table two partition of parted default"
        )
        for table in ("note", "parted"):
            app.execute("delete from outbox.change")
            app.execute("select outbox.watch(%s)", (table,))
            app.execute(f"insert into {table} values ({long}, 1), ({short}, 1)".encode())
            app.execute(f"update {table} set id = id where pg_column_size(id) > 0".encode())
            app.execute(f"update {table} set n = 2".encode())
            app.execute(f"begin; update {table} set n = 3; update {table} set n = 4; commit".encode())
            app.execute(f"delete from {table}".encode())
            found = app.execute(
                "select key, array_agg(op order by id), (array_agg(row))[1] from outbox.change group by 1 order by 1"
            ).fetchall()
            names = {key for key, _, _ in found}
            assert len(names) == 8, table  # of each row one for each n
            for key, ops, _ in found:
                wanted = {"too_large", "delete"} if key.startswith("{ ") else {"upsert", "delete"}
                assert set(ops) <= wanted, table
            app.execute(f"insert into {table} values ({long}, 1)".encode())
            ((whole,),) = app.execute(
                f"select (select row_to_json(k)::text from (select t.id, n) k) from {table} t".encode()
            ).fetchall()
            assert name_of(whole) in names
            assert len(name_of(whole)) < 200


def test_a_copy_and_a_comparison_take_long_keys_for_held(tenants: Tenants) -> None:
    """Rows that were there before the table was watched, many of them side by side: the others are copied and compared."""
    tenants.tenant.execute(NOTE)
    tenants.tenant.execute(
        f"insert into note select case when i % 10 = 5 or i > 380 then {LONG} else 's' || i end, 1 from generate_series(1, 400) i".encode()
    )
    tenants.mirror.execute(NOTE)
    tenants.mirror.execute("select outboxd.map('note')")
    tenants.tenant.execute("select outbox.watch('note')")
    tenants.tenant.execute("select outbox.ask_copy('public.note', true)")
    ((long,),) = tenants.here("select count(*) from note where length(id) > 1000")
    tenants.run(batch_changes="50")
    settled(tenants, long)
    wait_until(lambda: tenants.there("select count(*) from note") == [(400 - long,)], 30)
    wait_until(
        lambda: (
            tenants.there("select state, after from outboxd.copy where table_name = 'public.note'") == [("done", None)]
        ),
        30,
    )
    tenants.tenant.execute("select outbox.ask_verification('public.note')")

    done = "select (last ->> 'rows')::int, (last ->> 'held')::int, (last ->> 'missing')::int + (last ->> 'different')::int from outboxd.verification where table_name = 'public.note'"
    wait_until(lambda: tenants.there(done) == [(400, long, 0)], 30)


def test_a_key_of_60_mb_is_refused_where_it_is_emitted(tenants: Tenants) -> None:
    """By the statement that brings it, with the way out; what is short enough is carried."""
    for name, statement in (
        ("gone", "select outbox.map('public.gone', '{id}')"),
        ("kept", "select outbox.watch('kept', capture => false)"),
    ):
        for there in (tenants.mirror, *([tenants.tenant] if name == "kept" else [])):
            there.execute(f"create table {name} (id text primary key, n int)".encode())
        tenants.mirror.execute("select outboxd.map(%s::regclass)", (name,))
        tenants.tenant.execute(statement)
    one = tenants.run()
    before = resident(one)
    for name in ("gone", "kept"):
        for op in ("delete", "upsert"):
            size = 60_000_000 if (name, op) == ("gone", "delete") else 100_000
            with pytest.raises(
                psycopg.errors.ProgramLimitExceeded, match=f"the key has {size} bytes, and 4096 is the most"
            ):
                tenants.tenant.execute(
                    "select outbox.emit(%s, %s, json_build_object('id', repeat('x', %s)))", (f"public.{name}", op, size)
                )
        tenants.tenant.execute(
            "select outbox.emit(%s, 'upsert', json_build_object('id', repeat('x', 2000)))", (f"public.{name}",)
        )
    tenants.flows()
    assert resident(one) < before + 60
    wait_until(lambda: tenants.there("select (select count(*) from gone), (select count(*) from kept)") == [(1, 1)])


def test_more_held_keys_than_an_answer_may_have_put_their_table_out(tenants: Tenants) -> None:
    """Counted in bytes: the neighbour flows, the reason is said, nothing is emptied into letters; mended, the table comes back."""
    tenants.both(NOTE, "note", there=FEW)
    one = tenants.run()
    tenants.tenant.execute("insert into note select repeat(md5(i::text), 60) || i, 9 from generate_series(1, 700) i")
    tenants.flows()

    def out() -> str | None:
        tables = (one.status() or {}).get("copies", ())
        return next(
            (each["reason"] for each in tables if each["table"] == "public.note" and each["state"] == "out"), None
        )

    reason = wait_until(out, 30)
    assert "1048576 bytes of keys of public.note would be held" in str(reason)
    assert tenants.held() == []
    tenants.flows()
