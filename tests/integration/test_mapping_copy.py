"""Rows that are there when a table is watched are copied through the same mapping as changes, and again when it changes."""

import json

from daemon.batch import Limits
from tests.canaries import assert_clean, planted
from tests.captured import watch
from tests.integration.test_mapping_travels import ACCOUNT, MAPPING, VIEW, everything
from tests.pairs import Pair, Parts
from tests.waiting import wait_until_async

THERE = "select number, who, phone, balance, doc, origin from app.account_view order by number"
HERE = (
    "select id, outbox.hashed('public.account.mail=' || mail), '***', balance, null, 'main'"
    " from account where balance >= 0 order by id"
)
ROWS = f"insert into account select n, '{planted('mail')}' || n, '{planted('phone')}', 'n', n % 3 - 1, '1' from generate_series(1, 2000) n"


def prepared(pair: Pair) -> None:
    with pair.source.connect() as conn:
        conn.execute(ACCOUNT)
        conn.execute(ROWS.encode())
        watch(conn, "account", **MAPPING)
    with pair.target.connect() as conn:
        conn.execute(f"{VIEW}; select outboxd.map('app.account_view', 'public.account')".encode())


async def until(parts: Parts, state: str) -> None:
    """Everything is brought over, and the account's copy has come to this."""

    async def reached() -> bool:
        parts.relay.copier.ring()
        await parts.relay.drain()
        return parts.relay.copier.copies["public.account"].state == state

    await wait_until_async(reached, 20)


def assert_mirrors(pair: Pair) -> None:
    with pair.source.connect() as here, pair.target.connect() as there:
        assert there.execute(THERE).fetchall() == here.execute(HERE).fetchall()


async def test_existing_rows_are_copied_through_the_mapping(pair: Pair) -> None:
    """In many ranges by a key of another name; changes go on meanwhile, over the border in both directions."""
    prepared(pair)
    async with pair.relay(limits=Limits(changes=300)) as parts:
        await parts.relay.step()
        pair.write(
            "update account set balance = -balance",
            "delete from account where id % 7 = 0",
            "update account set id = id + 5000 where id % 5 = 0",
        )
        await until(parts, "done")
        assert_mirrors(pair)
        assert_clean(
            {
                **everything(pair.source, "outbox"),
                **everything(pair.target, "app"),
                **everything(pair.target, "outboxd"),
            }
        )

        # Another mapping: what is there is copied anew, and what does not travel any more goes.
        with pair.source.connect() as conn:
            watch(conn, "account", filter="balance > 0", constant=json.dumps({"origin": "again"}), exclude=["note"])
        await until(parts, "done")
        with pair.target.connect() as conn:
            assert conn.execute("select distinct origin from app.account_view where balance > 0").fetchall() == [
                ("again",)
            ]
            assert conn.execute("select count(*) from app.account_view where balance = 0").fetchone() == (0,)


async def test_a_filter_that_fails_for_a_row_puts_its_table_out_and_no_other(pair: Pair) -> None:
    """Neither sent nor left out in silence: the table waits, with the reason, and comes back with another filter."""
    prepared(pair)
    pair.create("create table other (id int primary key)", "other")
    with pair.source.connect() as conn:
        watch(conn, "account", filter="10 / balance > 0", exclude=["note"])
    pair.write("update account set balance = 0 where id = 3", "insert into other values (1)")
    async with pair.relay(limits=Limits(changes=300)) as parts:
        await until(parts, "out")
        pair.assert_equal("other")
        with pair.source.connect() as conn:
            watch(conn, "account", filter="balance >= 0", exclude=["note"])
        await until(parts, "done")
        assert_mirrors(pair)
