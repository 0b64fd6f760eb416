"""The script that people write instead: `python -m tests.bench.script batch|rows`, run as a process of its own.

It polls its table, sends by supabase-py, marks what was sent. No retry, no breaker, no order across tables, no
transaction on the target. In its favour: the target returns no rows, and only the last change of a key is sent.
"""

import os
import sys
import time
from typing import Any

import psycopg
from postgrest.types import ReturnMethod
from supabase import Client, create_client

_POLL = "select id, table_name, op, row from to_send where processed_at is null order by id limit 500"
_MARK = "update to_send set processed_at = now() where id = any(%s)"
_EMPTY = 0.1  # seconds of sleep when nothing waits
_PARENTS_FIRST = ("Story", "Scenario", "Wide", "Item", "Sized")

Waiting = list[tuple[int, str, str, dict[str, Any]]]


def main() -> None:
    send = {"batch": in_batches, "rows": row_by_row}[sys.argv[1]]
    client = create_client(os.environ["BENCH_URL"], os.environ["BENCH_KEY"])
    with psycopg.connect(os.environ["BENCH_SOURCE"], autocommit=True) as conn:
        print(f"began {time.time()}", flush=True)
        while True:
            waiting = conn.execute(_POLL).fetchall()
            if waiting:
                send(client, conn, waiting)
            else:
                time.sleep(_EMPTY)


def in_batches(client: Client, conn: psycopg.Connection[Any], waiting: Waiting) -> None:
    """One request a table, with the last change of each key."""
    last = {(table, row["id"]): (op, row) for _, table, op, row in waiting}
    for name in _PARENTS_FIRST:
        rows = [row for (table, _), (op, row) in last.items() if table == name and op != "DELETE"]
        gone = [key for (table, key), (op, _) in last.items() if table == name and op == "DELETE"]
        if rows:
            client.table(name).upsert(rows, returning=ReturnMethod.minimal).execute()
        if gone:
            client.table(name).delete(returning=ReturnMethod.minimal).in_("id", gone).execute()
    conn.execute(_MARK, ([one for one, *_ in waiting],))


def row_by_row(client: Client, conn: psycopg.Connection[Any], waiting: Waiting) -> None:
    """One request and one mark a change."""
    for id_, table, op, row in waiting:
        if op == "DELETE":
            client.table(table).delete(returning=ReturnMethod.minimal).eq("id", row["id"]).execute()
        else:
            client.table(table).upsert(row, returning=ReturnMethod.minimal).execute()
        conn.execute(_MARK, ([id_],))


if __name__ == "__main__":
    main()
