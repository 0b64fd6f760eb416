"""Who knows some values reads others off the hashes: a hash is of the column as well, and says nothing of another one."""

import json

from tests.captured import Connection, changes, hashed, value, watch
from tests.replay import decoded

PEOPLE = "create table {0} (id int primary key, mail text, other text)"


def masks(*columns: str) -> str:
    return json.dumps(dict.fromkeys(columns, "hash"))


def test_one_value_has_another_hash_in_another_column_and_table(watcher: Connection) -> None:
    """So a dictionary is of one column; and in one column equal values have equal hashes, by copy and by capture."""
    watcher.execute('create schema "o=d.d"')
    tables = ("public.a", "public.b", '"o=d.d".a')
    for table in tables:
        watcher.execute(PEOPLE.format(table).encode())
        watch(watcher, table, mask=masks("mail", "other"))
        watcher.execute(f"insert into {table} values (1, 'a@b', 'a@b'), (2, 'a@b', null)".encode())
    key = value(watcher, "select key from outbox.mask_key")
    found = set()
    for table in tables:
        one, two = (decoded(change.row or "") for change in changes(watcher, table))
        assert one["mail"] == two["mail"] == hashed(key, f"{table}.mail", "a@b")
        assert one["other"] == hashed(key, f"{table}.other", "a@b")
        found |= {one["mail"], one["other"]}
    assert len(found) == 2 * len(tables)


def test_a_hash_stays_what_it_was_when_the_table_is_altered_or_renamed(watcher: Connection) -> None:
    """By the way of an altered table, too; and by the name that it is watched as."""
    watcher.execute(PEOPLE.format("public.a").encode())
    watch(watcher, "a", mask=masks("mail"))
    watcher.execute("insert into a values (1, 'a@b'); alter table a add late int; update a set late = 1")
    first, second = (decoded(change.row or "")["mail"] for change in changes(watcher))
    assert first == second
    watcher.execute("alter table a rename to c; update c set late = 2")
    assert {decoded(change.row or "")["mail"] for change in changes(watcher) if change.op == "upsert"} == {first}


def test_the_key_is_stretched_as_the_rule_says(watcher: Connection) -> None:
    """HMAC-SHA256 of RFC 2104, with keys shorter and longer than a block."""
    for key in (b"k" * 16, b"k" * 64, bytes(range(200))):
        watcher.execute("delete from outbox.mask_key")
        watcher.execute("insert into outbox.mask_key (key) values (%s)", (key,))
        assert value(watcher, "select outbox.hashed('public.a.mail=ä')") == hashed(key, "public.a.mail", "ä")
