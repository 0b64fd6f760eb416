"""Documents that no relay of ours would send, from the one role that may knock: nothing runs, nothing is applied by halves."""

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.captured import Connection
from tests.databases import Database, clone
from tests.mirrored import Mirrored, rows

SEPARATOR = "\x1e"
TABLES = """
create table item (id int primary key, v text, t text, r real, u int unique);
create table pwned (id int);
select outboxd.map('item');
"""
EVIL = [
    "item; drop table item", "item'; drop table item; --", 'public."item"', "pwned", "outboxd.cursor", "outboxd.mirror", "pg_catalog.pg_authid",
    "public.pwned", "%1$I", "$body$", "", "\\", "public.item ", "PUBLIC.ITEM", "public.itеm", "x" * 5000, None, 1, ["public.item"], {"a": 1},
]  # fmt: skip


@pytest.fixture(scope="module")
def project(_target_template: Database) -> Iterator[Database]:
    """Kept for the whole file: nothing here changes it."""
    with clone(_target_template) as database:
        with database.connect() as owner:
            owner.execute(TABLES)
            owner.execute("insert into item values (1, 'one', 't', 0.1, 1), (2, 'two', 't', 0.1, 2)")
        yield database


@pytest.fixture(scope="module")
def door(project: Database) -> Iterator[Connection]:
    """service_role, on a connection of its own: as PostgREST would ask."""
    with psycopg.connect(project.superuser_dsn, autocommit=True) as conn:
        conn.execute("set role service_role")
        ask(conn, {"mode": "claim", "relay": "main"})
        yield conn


def ask(conn: Connection, header: Any, *records: Any) -> Any:
    document = SEPARATOR.join(one if isinstance(one, str) else json.dumps(one) for one in (header, *records))
    found = conn.execute("select public.outboxd(%s)", (document,)).fetchone()
    return found[0] if found else None


def apply(conn: Connection, *records: Any) -> Any:
    header = {
        "mode": "apply",
        "relay": "main",
        "epoch": 1,
        "batch_no": 1,
        "digest": "d",
        "cursor": {"snapshot": "9:9:"},
    }
    return ask(conn, header, *records)


def untouched(project: Database) -> bool:
    return (
        rows(project, "select id, v, t, r::text, u from item order by id") == [(1, "one", "t", "0.1", 1), (2, "two", "t", "0.1", 2)]
        and rows(project, "select * from pwned") == []
        and rows(project, "select batch_no, epoch from outboxd.cursor") == [(0, 1)]
    )  # fmt: skip


@pytest.mark.parametrize("table", EVIL, ids=lambda t: repr(t)[:30])
@pytest.mark.parametrize("op", ["upsert", "delete", "truncate"])
def test_a_table_that_is_not_mapped_is_not_written(project: Database, door: Connection, op: str, table: Any) -> None:
    """A name is looked up in the map, as it stands."""
    given = apply(door, {"table": table, "op": op, "rank": 0, "columns": ["id"]}, [{"id": 7}])
    assert given["answer"] == "refused"
    assert untouched(project)


@pytest.mark.parametrize(
    "columns",
    [["id", "v = pwned"], ['id", "v'], ["id", "v) values (1); drop table item; --"], ["id", "ctid"], ["id", "xmin"], ["id", "tableoid"],
     ["id", "id"], ["id", None], ["id", ["v"]], [], ["ID"], ["id", "v" * 70], ["id", ""], "id", {"id": 1}, None],
    ids=repr,
)  # fmt: skip
def test_columns_come_from_the_catalogue(project: Database, door: Connection, columns: Any) -> None:
    """What is no column of the mirror is refused, however it is spelled."""
    given = apply(door, {"table": "public.item", "op": "upsert", "rank": 0, "columns": columns}, [{"id": 7, "v": "x"}])
    assert given["answer"] == "refused"
    assert untouched(project)


@pytest.mark.parametrize(
    "op", ["drop", "", None, "TRUNCATE", "truncate; drop table item", 1, ["upsert"], "replace"], ids=repr
)
def test_an_operation_that_is_not_known_does_nothing(project: Database, door: Connection, op: Any) -> None:
    """Least of all does it empty the table."""
    given = apply(door, {"table": "public.item", "op": op, "rank": 0, "columns": ["id"]}, [])
    assert given["answer"] == "refused"
    assert untouched(project)


@pytest.mark.parametrize(
    "records",
    [
        ({"table": "public.item", "op": "delete", "rank": 0, "columns": []},),
        ({"table": "public.item", "op": "truncate", "rank": 0, "columns": []},),
        ("[]", "[]"), ("null", "null"), ("{}", "[]"), ("", ""), ("no json", "[]"),
        ({"table": "public.item", "op": "delete", "rank": 0, "columns": []}, "no json"),
        ({"table": "public.item", "op": "delete", "rank": 0, "columns": []}, '[{"id": "1; drop table item"}]'),
        ({"table": "public.item", "op": "delete", "rank": 0, "columns": []}, '[{"id": 1} , '),
        ({"table": "public.item", "op": "delete", "rank": 0, "columns": []}, '[{"ID": 1}]'),
        ({"table": "public.item", "op": "upsert", "rank": 0, "columns": ["id", "v"]}, '[[1, "x"]]'),
        ({"table": "public.item", "op": "upsert", "rank": 0, "columns": ["id", "v"]}, '[{"id": null, "v": "x"}]'),
        ({"table": "public.item", "op": "upsert", "rank": 0, "columns": ["id", "v"]}, '[{"id": 7, "v": "\\u0000"}]'),
        ({"table": "public.item", "op": "upsert", "rank": 0, "columns": ["id", "v"]}, '[{"id": 7, "v": "\\ud800"}]'),
        ({"table": "public.item", "op": "upsert", "rank": 0, "columns": ["id", "v"]}, '[{"id": 1e99, "v": "x"}]'),
    ],
    ids=lambda records: repr(records)[-60:],
)  # fmt: skip
def test_a_broken_document_is_refused_whole(project: Database, door: Connection, records: tuple[Any, ...]) -> None:
    """Groups without rows, rows that are none, text that is no JSON: the groups before them are not applied either."""
    first = ({"table": "public.item", "op": "upsert", "rank": 0, "columns": ["id", "v"]}, [{"id": 9, "v": "nine"}])
    assert apply(door, *first, *records)["answer"] == "refused"
    assert untouched(project)


@pytest.mark.parametrize("header", ["", "null", "[]", "{}", "no json", {"mode": "drop"}, {"mode": ["apply"]}, {"mode": "apply"},
                                    {"mode": "apply", "relay": "'; drop table item; --", "epoch": 1}], ids=repr)  # fmt: skip
def test_a_header_that_is_none_does_nothing(project: Database, door: Connection, header: Any) -> None:
    """It raises, or answers nothing that a relay would take for an answer."""
    try:
        given = ask(door, header)
    except psycopg.Error:
        given = None
    assert given is None or given["answer"] == "fenced"
    assert untouched(project)


def test_a_column_named_like_an_alias_survives_gear_2(project: Database, door: Connection) -> None:
    """Rows taken out and put back keep the columns that the document does not have: `t` is one of them here."""
    group = {"table": "public.item", "op": "upsert", "rank": 0, "columns": ["id", "u"]}
    with door.transaction(force_rollback=True):
        given = apply(door, group, [{"id": 1, "u": 2}, {"id": 2, "u": 1}])
        assert (given["answer"], given["more"]["gear"]) == ("applied", 2)
        door.execute("set local role supabase_owner")
        found = door.execute("select id, v, t, r::text, u from item order by id").fetchall()
        assert found == [(1, "one", "t", "0.1", 2), (2, "two", "t", "0.1", 1)]
    assert untouched(project)


def test_the_worker_and_its_parts_are_closed_even_to_the_role_that_knocks(project: Database, door: Connection) -> None:
    """service_role calls the door and nothing behind it."""
    for statement in (
        "select * from outboxd.cursor", "update outboxd.cursor set epoch = 9", "delete from outboxd.mirror",
        "insert into outboxd.mirror values ('a', 'public', 'pwned', '{id}')", "select outboxd.map('pwned')", "select outboxd.unmap('item')",
        "select outboxd.apply('{}', '{}')", "select outboxd.claim('main')", "create table outboxd.mine (id int)", "select * from item",
    ):  # fmt: skip
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            door.execute(statement.encode())


RAISES = {
    "our own code": "raise exception 'no %', new.v using errcode = 'OB002'",
    "our own function": "perform outboxd.mirror_of(new.v)",
    "our own function, in SQL": "execute format('select outboxd.mirror_of(%L)', new.v)",
    "names": "raise exception 'no' using errcode = 'OB004', column = new.v, constraint = new.v, table = new.v, schema = new.v",
}


@pytest.mark.parametrize("how", RAISES)
async def test_a_trigger_cannot_borrow_our_words(source: Database, target: Database, how: str) -> None:
    """Only sentences that the door itself made travel; an SQLSTATE of ours proves nothing."""
    both = Mirrored(source, target)
    try:
        both.both("create table note (id int primary key, v text)", watch=["public.note"])
        both.on_target(
            f"create function refuse() returns trigger language plpgsql as $$ begin {RAISES[how]}; return new; end $$",
            "create trigger refuse before insert on note for each row execute function refuse()",
        )
        assert "canary" not in await both.put_out("insert into note values (1, 'canary-4711')")
    finally:
        await both.close()
