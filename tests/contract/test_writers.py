"""A session that has written a table many times, and an ALTER in between: the very next batch is right.

What the door has composed and planned for a group is kept for the session: here that is made to go stale in every way.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from daemon.demo.supabase import EmbeddedSupabase
from daemon.plan import SEPARATOR
from daemon.rest import RestDoor
from daemon.target import Door, PostgresDoor
from outbox.migrations import script
from tests.databases import Database

ITEM = "create table item (id int primary key, v text, w varchar(3), n int); select outboxd.map('item')"
WARM = 8  # Postgres settles on a plan for good with the sixth time


@dataclass
class Relay:
    """One relay on one door that stays open."""

    door: Door
    database: Database
    name: str = "main"
    _standing: dict[str, Any] = field(default_factory=dict)

    async def ask(self, header: dict[str, Any], *records: Any) -> Any:
        document = SEPARATOR.join(json.dumps(one).encode() for one in (header, *records))
        return json.loads(await self.door.send(document))

    async def apply(self, *groups: tuple[str, list[str], list[dict[str, Any]]], table: str = "public.item") -> Any:
        """A batch of (op, columns, rows)."""
        if not self._standing:
            self._standing = await self.ask({"mode": "claim", "relay": self.name})
        header = {
            "mode": "apply", "relay": self.name, "epoch": self._standing["epoch"], "batch_no": self._standing["batch_no"] + 1,
            "digest": f"of {self._standing['batch_no'] + 1}", "after": self._standing.get("digest", ""), "cursor": {"snapshot": "9:9:"},
        }  # fmt: skip
        records = [
            record for op, columns, rows in groups for record in ({"table": table, "op": op, "rank": 0, "columns": columns}, rows)
        ]  # fmt: skip
        answer = await self.ask(header, *records)
        if answer["answer"] == "applied":
            self._standing = answer
        return answer

    async def upsert(self, *rows: dict[str, Any]) -> Any:
        return await self.apply(("upsert", list(rows[0]), list(rows)))

    async def warm(self) -> None:
        """Write and delete so often that all is composed and planned."""
        for turn in range(WARM):
            row = {"id": turn, "v": "warm", "w": "abc", "n": turn}
            assert (await self.upsert(row))["answer"] == "applied"
            assert (await self.apply(("delete", [], [{"id": turn}])))["more"]["written"] == 1
        assert len(self.writers()) == 2

    def writers(self) -> list[tuple[Any, ...]]:
        """The functions made so far; another xmin is one made anew."""
        return self.owner(
            "select proname, xmin::text, proacl::text from pg_proc where proname ~ '^write_[0-9a-f]{32}$' order by 1"
        )

    def owner(self, statement: str) -> list[tuple[Any, ...]]:
        with self.database.connect() as conn:
            done = conn.execute(statement.encode())
            return done.fetchall() if done.description else []

    def items(self) -> list[tuple[Any, ...]]:
        return self.owner("select * from item order by id")


@pytest.fixture
async def direct(target: Database) -> AsyncIterator[Relay]:
    with target.connect() as conn:
        conn.execute(ITEM.encode())
    relay = Relay(PostgresDoor(target.dsn), target)
    yield relay
    await relay.door.close()


@pytest.fixture(params=["postgres", "secret key"])
def kind(request: pytest.FixtureRequest, target: Database) -> tuple[Database, EmbeddedSupabase | None]:
    """The database, and the project in front of it where the door is the Data API's."""
    with target.connect() as conn:
        conn.execute(ITEM.encode())
    return target, None if request.param == "postgres" else request.getfixturevalue("supabase")


@pytest.fixture
async def relay(kind: tuple[Database, EmbeddedSupabase | None]) -> AsyncIterator[Relay]:
    """Either door, opened before anything is altered."""
    database, project = kind
    relay = Relay(RestDoor(project.url, project.secret_key) if project else PostgresDoor(database.dsn), database)
    await relay.warm()
    yield relay
    await relay.door.close()


TO_OTHER = "select outboxd.map('other', 'public.item')"
ROW = {"id": 1, "v": "one", "w": "abc", "n": 7}
# What is done to the target; the row that comes next; what the table holds then.
ALTERED: dict[str, tuple[str, dict[str, Any], list[tuple[Any, ...]]]] = {
    "nothing": ("select 1", ROW, [(1, "one", "abc", 7)]),
    "column added": ("alter table item add extra int default 5", ROW, [(1, "one", "abc", 7, 5)]),
    "column added, and sent": ("alter table item add extra int default 5", {**ROW, "extra": 6}, [(1, "one", "abc", 7, 6)]),
    "required column added": (
        "insert into item values (1, 'old', 'x', 0); alter table item add extra int; update item set extra = 9; alter table item alter extra set not null",
        ROW, [(1, "one", "abc", 7, 9)],
    ),
    "column dropped and made again": ("alter table item drop v; alter table item add v text", ROW, [(1, "abc", 7, "one")]),
    "number wider": ("alter table item alter n type bigint", {**ROW, "n": 2**40}, [(1, "one", "abc", 2**40)]),
    "text wider": ("alter table item alter w type varchar(9)", {**ROW, "w": "abcdefghi"}, [(1, "one", "abcdefghi", 7)]),
    "text to jsonb": ("alter table item alter v type jsonb using null", {**ROW, "v": '{"a": null}'}, [(1, {"a": None}, "abc", 7)]),
    "text to array": ("alter table item alter v type int[] using null", {**ROW, "v": "[0:1]={1,2}"}, [(1, [1, 2], "abc", 7)]),
    "key of another type": ("alter table item alter id type text", {**ROW, "id": "a"}, [("a", "one", "abc", 7)]),
    "column generated": (
        "alter table item drop n; alter table item add n int generated always as (2 * id) stored", ROW, [(1, "one", "abc", 2)],
    ),
    "column numbered by itself": (
        "insert into item values (1, 'old', 'x', 0); alter table item alter n set not null, alter n add generated always as identity", ROW,
        [(1, "one", "abc", 7)],
    ),
    "key made again": ("alter table item drop constraint item_pkey; alter table item add constraint again primary key (id)", ROW, [(1, "one", "abc", 7)]),
    "dropped and made again": (
        "drop table item; create table item (n bigint, v jsonb, id bigint primary key, w text)", {**ROW, "id": 2**40, "v": "[]", "w": "longer"},
        [(7, [], 2**40, "longer")],
    ),
    "another in its place": (
        "create table other (id int primary key, v text not null, w char(5), n numeric); alter table item rename to was; alter table other rename to item",
        {**ROW, "n": 1.5}, [(1, "one", "abc  ", 1.5)],
    ),
    "mapped to another table": (
        "create table other (like item including all); alter table other alter w type text; insert into item values (5, 'stays', 'abc', 5);" + TO_OTHER, {**ROW, "w": "longer"}, [(5, "stays", "abc", 5)],
    ),
    "mapped with another key": (
        "insert into item values (2, 'one', 'x', 0); alter table item add unique (v); select outboxd.map('item', key_columns => array['v'])",
        ROW, [(1, "one", "abc", 7)],
    ),
    "type renamed": (
        "create domain word as text[]; alter table item alter v type word using null; alter domain word rename to words", {**ROW, "v": "{a}"},
        [(1, ["a"], "abc", 7)],
    ),
    "writers dropped": (
        "do $$ declare f regprocedure; begin for f in select oid from pg_proc where proname ~ '^write_[0-9a-f]{32}$' loop execute 'drop function ' || f; end loop; end $$",
        ROW, [(1, "one", "abc", 7)],
    ),
    "set up again": (script("target"), ROW, [(1, "one", "abc", 7)]),
}  # fmt: skip


@pytest.mark.parametrize("how", ALTERED)
async def test_the_next_batch_on_an_open_connection_is_right(relay: Relay, how: str) -> None:
    """Insert, update and delete, each as the table now is; and what was made anew is kept."""
    ddl, row, expected = ALTERED[how]
    relay.owner(ddl)
    written = await relay.upsert(row)
    assert written["answer"] == "applied", written
    assert relay.items() == expected
    assert (await relay.upsert(row))["answer"] == "applied"
    assert relay.items() == expected
    made = relay.writers()
    key = {"v": row["v"]} if "another key" in how else {"id": row["id"]}
    gone = await relay.apply(("upsert", list(row), [row]), ("delete", [], [key, dict.fromkeys(key)]))
    assert gone["answer"] == "applied", gone
    assert [mine for mine in relay.items() if mine[0] == row["id"]] == []
    assert set(made) & set(relay.writers())


async def test_a_column_that_is_gone_is_named_and_may_come_back(relay: Relay) -> None:
    """A refusal says which; the batch is applied as soon as the table fits again."""
    relay.owner("alter table item drop column n")
    refused = await relay.upsert(ROW)
    assert (refused["answer"], refused["more"]["sqlstate"]) == ("refused", "OB004")
    assert refused["more"]["message"] == "the target table public.item has no column n"
    relay.owner("alter table item add column n bigint")
    assert (await relay.upsert({**ROW, "n": 2**40}))["answer"] == "applied"
    assert relay.items() == [(1, "one", "abc", 2**40)]


@pytest.mark.parametrize(
    ("ddl", "code"), [("drop table item", "OB003"), ("select outboxd.unmap('public.item')", "OB002")]
)
async def test_a_table_that_is_gone_is_named(relay: Relay, ddl: str, code: str) -> None:
    """Whatever was planned for it before."""
    relay.owner(ddl)
    for refused in (await relay.upsert(ROW), await relay.apply(("delete", [], [{"id": 1}]))):
        assert (refused["answer"], refused["more"]["sqlstate"]) == ("refused", code)
        assert "public.item" in refused["more"]["message"]


async def test_a_key_that_is_spelled_otherwise_is_refused_in_both_gears(relay: Relay) -> None:
    """Read as null it would delete nothing, in silence."""
    relay.owner("alter table item add unique (v)")
    await relay.upsert({**ROW, "id": 1, "v": "a"}, {**ROW, "id": 2, "v": "b"})
    rotated = ("upsert", ["id", "v"], [{"id": 1, "v": "b"}, {"id": 2, "v": "a"}])
    before = relay.items()
    for groups in ([], [rotated]):
        refused = await relay.apply(*groups, ("delete", [], [{"id": 7}, {"ID": 1}]))
        assert (refused["answer"], refused["more"]["sqlstate"]) == ("refused", "OB004"), refused
        assert "do not have the key of the target table" in refused["more"]["message"]
        assert relay.items() == before
    assert (await relay.apply(rotated))["more"]["gear"] == 2


async def test_writers_belong_to_the_owner_alone(target: Database, direct: Relay) -> None:
    """Whatever the project grants by default on functions."""
    direct.owner("alter default privileges grant execute on functions to public, service_role, authenticated")
    await direct.warm()
    assert {rights for _, _, rights in direct.writers()} == {"{supabase_owner=X/supabase_owner}"}
    (writer, *_), *_ = direct.writers()
    with psycopg.connect(target.superuser_dsn, autocommit=True) as conn:
        conn.execute("set role service_role")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute(f"select outboxd.{writer}('[]')".encode())


NONE_MADE = {
    "may not create": "revoke create on schema outboxd from supabase_owner",
    "too many": "do $$ begin for i in 1 .. 1000 loop execute format('create function outboxd.write_%s() returns int return 1', i); end loop; end $$",
}


@pytest.mark.parametrize("why", NONE_MADE)
async def test_without_writers_everything_is_written_all_the_same(direct: Relay, why: str) -> None:
    """Composed with every batch, then."""
    direct.owner(NONE_MADE[why])
    for turn in range(3):
        assert (await direct.upsert({**ROW, "n": turn}, {**ROW, "id": 2}))["more"] == {"gear": 1, "written": 2}
        assert (await direct.apply(("delete", [], [{"id": 2}, {"id": 3}])))["more"] == {"gear": 1, "written": 1}
    assert direct.items() == [(1, "one", "abc", 2)]
    assert direct.writers() == []
    refused = await direct.apply(("delete", [], [{"ID": 1}]))
    assert refused["more"]["sqlstate"] == "OB004"


async def test_nobody_waits_for_another_who_makes_the_same(target: Database, direct: Relay) -> None:
    """A transaction that has made a writer and is not over holds up no other relay."""
    header = {
        "mode": "apply",
        "relay": "slow",
        "epoch": 1,
        "batch_no": 1,
        "digest": "d",
        "cursor": {"snapshot": "9:9:"},
    }
    group = {"table": "public.item", "op": "upsert", "rank": 0, "columns": list(ROW)}
    document = SEPARATOR.join(json.dumps(one).encode() for one in (header, group, [{**ROW, "id": 99}]))
    with target.connect() as slow:
        slow.execute("""select public.outboxd('{"mode": "claim", "relay": "slow"}')""")
        with slow.transaction():
            answer = slow.execute("select public.outboxd(%s)", (document.decode(),)).fetchone()
            assert answer is not None
            assert answer[0]["answer"] == "applied"
            slow.execute("set local idle_in_transaction_session_timeout = '60s'")
            assert (await direct.upsert(ROW))["answer"] == "applied"
            assert direct.writers() == []
    assert (await direct.upsert(ROW))["answer"] == "applied"
    assert len(direct.writers()) == 1
    assert [row[0] for row in direct.items()] == [1, 99]


async def test_several_sessions_make_the_same_writers_at_once(target: Database, direct: Relay) -> None:
    """All of them applied, none of them refused; while the table is altered again and again, too."""
    relays = [Relay(PostgresDoor(target.dsn), target, f"relay {n}") for n in range(4)]

    async def write(number: int, relay: Relay) -> None:
        for turn in range(30):
            columns = ["id", *(["v"] if turn % 2 else []), *(["n"] if turn % 3 else [])]
            row = {name: ROW[name] for name in columns}
            answer = await relay.apply(("upsert", columns, [{**row, "id": 100 * number + turn}]))
            assert answer["answer"] == "applied", answer

    async def alter() -> None:
        for turn in range(15):
            await asyncio.to_thread(direct.owner, f"alter table item alter n type {('bigint', 'int')[turn % 2]}")

    try:
        await asyncio.gather(alter(), *(write(n, relay) for n, relay in enumerate(relays)))
    finally:
        for relay in relays:
            await relay.door.close()
    assert direct.owner("select count(*) from item") == [(120,)]


async def test_a_row_that_others_refer_to_is_written_without_waiting(target: Database, direct: Relay) -> None:
    """A foreign key check in flight locks its parent's key: an upsert that leaves the key alone has no business with it."""
    await direct.upsert(ROW)
    with target.connect() as referring, referring.transaction():
        assert referring.execute("select from item where id = 1 for key share").rowcount == 1
        assert (await direct.upsert({**ROW, "v": "new"}))["answer"] == "applied"
    assert direct.items() == [(1, "new", "abc", 7)]
