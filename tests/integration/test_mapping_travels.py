"""Mapped tables on their whole way: to a table of another name, by real sessions at once, and what never leaves."""

import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from threading import Barrier
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel, errors

from outbox.migrations import step
from tests.canaries import assert_clean, planted
from tests.captured import Connection, assert_replays, rows, waits_for, watch
from tests.databases import Database
from tests.mirrored import Mirrored
from tests.waiting import wait_until, wait_until_async

ACCOUNT = "create table account (id int primary key, mail text, phone text, note text, balance int not null default 0, doc jsonb)"
MAPPING: dict[str, Any] = {
    "target": "app.account_view", "rename": json.dumps({"id": "number", "mail": "who"}),
    "constant": json.dumps({"origin": "main"}), "mask": json.dumps({"mail": "hash", "phone": "redact", "doc": "null"}),
    "filter": "balance >= 0", "exclude": ["note"],
}  # fmt: skip
VIEW = "create schema app; create table app.account_view (number int primary key, who text, phone text, balance int, doc jsonb, origin text)"


@pytest.fixture
async def mirrored(source: Database, target: Database) -> AsyncIterator[Mirrored]:
    """The account mapped to its view, and a relay."""
    made = Mirrored(source, target)
    made.on_source(ACCOUNT)
    with source.connect() as conn:
        watch(conn, "account", **MAPPING)
    made.on_target(VIEW, "select outboxd.map('app.account_view', 'public.account')")
    yield made
    await made.close()


def there(mirrored: Mirrored) -> list[tuple[Any, ...]]:
    with mirrored.target.connect() as conn:
        return rows(conn, "select number, length(who), phone, balance, doc, origin from app.account_view order by 1")


async def test_rows_arrive_under_their_names_and_leave_with_the_filter(mirrored: Mirrored) -> None:
    """A key that has another name there is found again: updated, moved and deleted."""
    await mirrored.carry("insert into account select i, 'm' || i, '555', 'n', i - 2, '{}' from generate_series(1, 4) i")
    assert there(mirrored) == [(i, 64, "***", i - 2, None, "main") for i in (2, 3, 4)]
    await mirrored.carry("update account set balance = balance - 1", "update account set id = 9 where id = 4")
    assert there(mirrored) == [(3, 64, "***", 0, None, "main"), (9, 64, "***", 1, None, "main")]
    await mirrored.carry("update account set balance = 1 where id = 1", "delete from account where id = 9")
    assert there(mirrored) == [(1, 64, "***", 1, None, "main"), (3, 64, "***", 0, None, "main")]
    assert await mirrored.check() == []
    await mirrored.carry("truncate account")
    assert there(mirrored) == []


async def test_the_doctor_names_what_the_mapping_needs_on_the_target(mirrored: Mirrored) -> None:
    """By the names of the target, with the type of what arrives."""
    mirrored.on_target("alter table app.account_view drop who, drop origin")
    (missing,) = await mirrored.check()
    assert 'add column "who" text' in missing.fix
    assert 'add column "origin" text' in missing.fix
    mirrored.on_target(
        "alter table app.account_view add who text, add origin text", "create table public.account (id int primary key)"
    )
    mirrored.on_target("select outboxd.map('public.account')")
    (elsewhere,) = [item for item in await mirrored.check() if "goes to" in item.what]
    assert elsewhere.fix == "outboxd schema apply"
    mirrored.on_target("select outboxd.map('app.account_view', 'public.account')")
    assert await mirrored.check() == []


async def test_a_masked_column_that_is_renamed_puts_the_table_out_before_its_values_leave(mirrored: Mirrored) -> None:
    """Other tables flow; the doctor says why, and watching again copies the table under its new mapping."""
    mirrored.both("create table other (id int primary key)", watch=["other"])
    mirrored.on_source("alter table account rename mail to email")
    mirrored.on_source(
        f"insert into account (id, email) values (1, '{planted('mail')}')", "insert into other values (1)"
    )
    await mirrored.relay.drain()
    assert there(mirrored) == []
    assert mirrored.equal("other")
    (found,) = [item for item in await mirrored.check() if "nothing travels unmasked" in item.what]
    assert "outboxd watch" in found.fix
    with mirrored.source.connect() as conn:
        watch(conn, "account", **{**MAPPING, "rename": json.dumps({"id": "number", "email": "who"}), "mask": json.dumps({"email": "hash", "phone": "redact", "doc": "null"})})  # fmt: skip

    async def copied() -> bool:
        mirrored.relay.copier.ring()
        await mirrored.relay.drain()
        return there(mirrored) == [(1, 64, None, 0, None, "main")]

    await wait_until_async(copied, 20)
    assert_clean({**everything(mirrored.source, "outbox"), **everything(mirrored.target, "app")})


def everything(database: Database, schema: str) -> dict[str, str]:
    """All that a schema's tables and functions hold, as text."""
    with database.connect() as conn:
        tables = rows(conn, "select format('%%I.%%I', relnamespace::regnamespace, relname) from pg_class where relnamespace = %s::regnamespace and relkind in ('r', 'p')", schema)  # fmt: skip
        texts = {name: str(conn.execute(f"select t::text from {name} t".encode()).fetchall()) for (name,) in tables}
        return texts | {
            "functions": str(rows(conn, "select prosrc from pg_proc where pronamespace = %s::regnamespace", schema))
        }


async def test_masked_values_are_nowhere_but_in_the_table(mirrored: Mirrored) -> None:
    """In no table of schema outbox, no function, nowhere on the target: by every way of capture, filtered rows as well."""
    secret = planted("secret")
    mirrored.on_source(
        f"insert into account select i, '{secret}', '{secret}', '{secret}', 1, '\"{secret}\"' from generate_series(1, 9) i",
        "update account set balance = -1 where id = 1",
        "update account set id = 20 where id = 2",
        "update account set balance = 2",
        # Large rows, and a table that has changed since it was watched.
        "update account set phone = repeat(phone, 20000) where id = 3",
        "alter table account add late int; update account set late = 1",
        "delete from account where id = 4",
        "truncate account",
    )
    mirrored.on_target("alter table app.account_view add late int")
    await mirrored.relay.drain()
    with mirrored.source.connect() as conn:
        watch(conn, "account", **MAPPING)
        conn.execute(
            f"insert into account select i, '{secret}', '{secret}', '{secret}', i - 4, '1' from generate_series(1, 9) i".encode()
        )
    await mirrored.relay.drain()
    assert len(there(mirrored)) == 6
    assert_clean(
        {
            **everything(mirrored.source, "outbox"),
            **everything(mirrored.target, "outboxd"),
            **everything(mirrored.target, "app"),
        }
    )
    mirrored.on_source(
        "select outbox.watch('account', mask => '{}', exclude => array['doc'])", "update account set balance = 7"
    )
    with pytest.raises(AssertionError, match="got out"):
        assert_clean(everything(mirrored.source, "outbox"))


def test_only_the_owner_of_the_schema_reads_the_key_of_hashes(source: Database) -> None:
    """Not the daemon's role, not a writer, and no function says it."""
    with source.connect() as conn:
        conn.execute(ACCOUNT)
        watch(conn, "account", **MAPPING)
        conn.execute(step("source", "role"))
        try:
            conn.execute("insert into account (id, mail) values (1, 'a@b')")
            ((key,),) = rows(conn, "select encode(key, 'hex') from outbox.mask_key")
            assert len(key) == 64
            assert key not in str(everything(source, "outbox")["functions"])
            with psycopg.connect(source.cluster.dsn(source.name, "outboxd"), autocommit=True) as least:
                for statement in (
                    "select * from outbox.mask_key",
                    "select outbox.hashed('x')",
                    "select outbox.make_mask_key()",
                    "delete from outbox.mask_key",
                ):
                    with pytest.raises(errors.InsufficientPrivilege):
                        least.execute(statement.encode())
        finally:
            conn.execute("drop owned by outboxd; drop role outboxd")


@pytest.fixture
def account(app: Connection) -> Connection:
    app.execute(ACCOUNT)
    watch(app, "account", **MAPPING)
    app.execute("insert into account select i, 'm', '5', 'n', i % 2 - 1 from generate_series(1, 6) i")
    return app


CROSSING = {
    "both leave": ("update account set balance = -1", "update account set balance = -2"),
    "one leaves, one enters": ("update account set balance = -1", "update account set balance = 1"),
    "one enters, one leaves": ("update account set balance = 1", "update account set balance = -1"),
    "both enter": ("update account set balance = 1", "update account set balance = 2"),
    "moved out of the way": ("update account set id = id + 10, balance = -1", "insert into account (id, balance) values (1, 0) on conflict do nothing"),
    "deleted, and made anew outside": ("delete from account", "insert into account (id, balance) values (1, -1) on conflict (id) do update set balance = -1"),
}  # fmt: skip


@pytest.mark.parametrize("outcome", ["commit", "rollback"])
@pytest.mark.parametrize("case", CROSSING)
def test_who_waits_crosses_the_border_later(account: Connection, case: str, outcome: str) -> None:
    """Two sessions on the same rows: the outbox replays to what is inside in the end."""
    holding, waiting = CROSSING[case]
    with (
        ThreadPoolExecutor() as pool,
        psycopg.connect(account.info.dsn) as second,
        psycopg.connect(account.info.dsn) as first,
    ):
        second.execute("select pg_current_xact_id()")
        first.execute(holding.encode())
        done = pool.submit(second.execute, waiting.encode())
        wait_until(lambda: done.done() or waits_for(account, second, first))
        first.execute(outcome.encode())
        done.result(10)
        second.commit()
    assert_replays(account)


@pytest.mark.parametrize("level", [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ])
def test_many_sessions_at_the_border(account: Connection, level: IsolationLevel) -> None:
    """Random statements of four sessions over a few rows, many of them in one transaction."""
    start = Barrier(4)

    def write(seed: int) -> None:
        random = Random(seed)
        with psycopg.connect(account.info.dsn, autocommit=True) as conn:
            conn.isolation_level = level
            conn.execute("set deadlock_timeout = '20ms'")
            start.wait(20)
            for _ in range(60):
                try:
                    with conn.transaction(force_rollback=random.random() < 0.2):
                        for _ in range(random.randint(1, 3)):
                            key, balance = random.randint(1, 6), random.randint(-2, 2)
                            conn.execute(random.choice([
                                f"update account set balance = {balance} where id = {key}",
                                f"update account set balance = balance - {balance}",
                                f"delete from account where id = {key}",
                                f"insert into account (id, balance) values ({key}, {balance}) on conflict (id) do update set balance = -account.balance",
                                f"update account set id = id + 3 where id = {key}",
                            ]).encode())  # fmt: skip
                except (errors.SerializationFailure, errors.DeadlockDetected, errors.UniqueViolation):
                    pass

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(4)))
    assert_replays(account)
