"""An owner renames again and again while rows are read: what has the name of a type or a table for a moment is not run as whoever reads."""

import threading
from contextlib import suppress

import psycopg
import pytest

from tests.captured import Connection, rows, watch
from tests.databases import Database

# Whoever runs this function is noted; with a superuser's rights it would do more.
NOTE = """
create table public.ran (who text); grant insert on public.ran to public;
create function public.note(text) returns bool language plpgsql as $$ begin insert into public.ran values (current_user); return true; end $$;
"""
CHANGES = {
    "a key's type": (
        "create domain trap as text check (note(value))",
        "alter type mood rename to was; alter domain trap rename to mood",
        "alter domain mood rename to trap; alter type was rename to mood",
    ),
    "the table": (
        "create view trap as select 'b'::mood as id, 1 as v, '(0,1)'::tid as ctid, 't'::regclass::oid as tableoid where note('')",
        "alter table t rename to was; alter view trap rename to t",
        "alter view t rename to trap; alter table was rename to t",
    ),
}
READS = [
    ("rows", None),
    ("rows", ['{"id":"a"}']),
    ("these", ['{"id":"a"}']),
    ("missing", ['{"id":"b"}']),
    ("touch", ['{"id":"a"}']),
]


@pytest.mark.parametrize("what", CHANGES)
def test_a_name_that_changes_hands_while_rows_are_read(
    source: Database, owner: Connection, watcher: Connection, what: str
) -> None:
    """As the daemon reads for a copy, a comparison and a repair, a hundred times each."""
    trap, there, back = CHANGES[what]
    owner.execute(NOTE + "create type mood as enum ('a', 'b'); create table t (id mood primary key, v int)")
    watch(watcher, "t")
    owner.execute("insert into t values ('a', 1)")
    owner.execute(trap.encode())
    stop = threading.Event()

    def rename() -> None:
        with psycopg.connect(source.cluster.dsn(source.name, owner.info.user), autocommit=True) as conn:
            while not stop.wait(0.001):  # the name is the table's own for a while, too: some reads succeed
                with suppress(psycopg.errors.DeadlockDetected):
                    conn.execute(there.encode())  # one transaction, as the next one
                    while True:
                        with suppress(psycopg.errors.DeadlockDetected):
                            conn.execute(back.encode())
                            break

    thread = threading.Thread(target=rename)
    thread.start()
    read = 0
    try:
        for _ in range(100):
            for asked, keys in READS:
                with suppress(psycopg.Error), watcher.transaction():
                    rows(watcher, "select * from outbox.copy_of('public.t', %s, %s, 10, 1000, 1000)", asked, keys)
                    read += 1
    finally:
        stop.set()
        thread.join()
    assert rows(watcher, "select distinct who from ran") == []
    assert read > 0
