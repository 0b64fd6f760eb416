"""Mapping on the source: what a row becomes before it reaches the outbox, which rows do, and what watch refuses."""

import hashlib
import json
from typing import Any

import psycopg
import pytest

from tests.captured import Connection, changes, ops, rows, value, watch

PEOPLE = """
    create table person (id int primary key, "authorId" int, email text, phone varchar(20), note text, age int,
                         deleted_at timestamptz, kind text not null default 'public')
"""


def mapped(conn: Connection, **mapping: Any) -> str:
    """Watch the table with a mapping; dicts are given as JSON."""
    return watch(
        conn, "person", **{name: json.dumps(one) if isinstance(one, dict) else one for name, one in mapping.items()}
    )


def written(conn: Connection) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Each change: op, key, row."""
    return [(c.op, c.key, json.loads(c.row) if c.row else None) for c in changes(conn)]


def test_a_row_reaches_the_outbox_renamed_masked_and_with_its_constants(scratch: Connection) -> None:
    """Every kind of mapping at once; NULL stays NULL; the shape has the names of the target."""
    scratch.execute(PEOPLE)
    mapped(
        scratch, exclude=["age", "deleted_at", "kind"], rename={"authorId": "user_id", "email": "mail"},
        constant={"origin": "ma'in\\"}, mask={"email": "hash", "phone": "redact", "note": "null"},
    )  # fmt: skip
    scratch.execute("insert into person values (1, 7, 'a@b', '555', 'psst'), (2, null, null, null, null)")
    key = value(scratch, "select key from outbox.mask_key")
    digest = hashlib.sha256(key + b"a@b").hexdigest()
    assert written(scratch) == [
        ("upsert", '{"id":1}', {"id": 1, "user_id": 7, "mail": digest, "phone": "***", "note": None, "origin": "ma'in\\"}),
        ("upsert", '{"id":2}', {"id": 2, "user_id": None, "mail": None, "phone": None, "note": None, "origin": "ma'in\\"}),
    ]  # fmt: skip
    assert rows(scratch, "select columns from outbox.shape") == [
        (["id", "user_id", "mail", "phone", "note", "origin"],)
    ]


def test_a_renamed_key_travels_under_its_new_name(scratch: Connection) -> None:
    """In key and row, of upserts and of deletes, copied or re-read."""
    scratch.execute("create table item (a int, b text, v int, primary key (a, b))")
    watch(scratch, "item", rename=json.dumps({"b": "code"}))
    scratch.execute("insert into item values (1, 'x', 0); update item set b = 'y'; delete from item")
    assert written(scratch) == [
        ("upsert", '{"a":1,"code":"x"}', {"a": 1, "code": "x", "v": 0}),
        ("delete", '{"a":1,"code":"x"}', None),
        ("upsert", '{"a":1,"code":"y"}', {"a": 1, "code": "y", "v": 0}),
        ("delete", '{"a":1,"code":"y"}', None),
    ]


def test_rows_enter_and_leave_the_filter(scratch: Connection) -> None:
    """Leaving is a delete, entering an upsert; a row that never was inside is not spoken of."""
    scratch.execute(PEOPLE)
    mapped(scratch, include=["id", "note"], filter="deleted_at is null -- and not gone")
    scratch.execute("insert into person (id, note, deleted_at) values (1, 'a', null), (2, 'b', now())")
    assert written(scratch) == [("upsert", '{"id":1}', {"id": 1, "note": "a"})]
    scratch.execute("delete from outbox.change; update person set note = note || '!'")
    assert written(scratch) == [("upsert", '{"id":1}', {"id": 1, "note": "a!"})]
    scratch.execute("delete from outbox.change; update person set deleted_at = case id when 1 then now() end")
    assert written(scratch) == [("delete", '{"id":1}', None), ("upsert", '{"id":2}', {"id": 2, "note": "b!"})]
    scratch.execute("delete from outbox.change; delete from person")
    assert written(scratch) == [("delete", '{"id":2}', None)]


def test_a_key_that_moves_is_re_read_with_the_filter(scratch: Connection) -> None:
    """The old key goes, the new one comes only if its row passes."""
    scratch.execute(PEOPLE)
    mapped(scratch, include=["id", "note"], filter="kind = 'public'")
    scratch.execute("insert into person (id, kind) values (1, 'public'), (2, 'private')")
    scratch.execute("delete from outbox.change; update person set id = id + 10")
    assert {(op, key) for op, key, _ in written(scratch)} == {
        ("delete", '{"id":1}'), ("upsert", '{"id":11}'), ("delete", '{"id":2}'), ("delete", '{"id":12}'),
    }  # fmt: skip


def test_a_filter_that_fails_for_a_row_marks_the_table_and_not_the_statement(scratch: Connection) -> None:
    """Promise I7: division by zero in the filter is ours, not the application's. The other rows travel."""
    scratch.execute(PEOPLE)
    mapped(scratch, include=["id"], filter="10 / age > 1")
    scratch.execute("insert into person (id, age) values (1, 2), (2, 0), (3, 100)")
    assert written(scratch) == [("upsert", '{"id":1}', {"id": 1}), ("resync", "{}", None)]
    scratch.execute("delete from outbox.change; update person set age = 0 where id = 1")
    assert ops(scratch) == ["resync"]
    scratch.execute("delete from outbox.change; update person set id = 5 where id = 1")
    assert sorted(ops(scratch)) == ["delete", "resync"]
    scratch.execute("delete from outbox.change; delete from person")
    assert sorted(ops(scratch)) == ["delete", "delete"]
