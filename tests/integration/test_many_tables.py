"""What hundreds of watched tables cost: to watch one more is as much work as the first, and a look at all of them is one statement."""

import json

from daemon.session import query
from tests.captured import Connection
from tests.pairs import Pair


def pages(conn: Connection, statement: str) -> int:
    """How many pages of the server's memory it touches: the same whatever else the machine does."""
    ((told,),) = conn.execute(f"explain (analyze, buffers, format json) {statement}".encode()).fetchall()
    (plan,) = told if isinstance(told, list) else json.loads(told)
    return int(plan["Plan"]["Shared Hit Blocks"])


def test_watching_one_more_table_costs_no_more_where_many_are(pair: Pair) -> None:
    with pair.source.connect() as source:
        seen = []
        for n in range(90):
            source.execute(f"create table t_{n} (id int primary key, a text, b timestamptz)".encode())
            seen.append(pages(source, f"select outbox.watch('t_{n}')"))
        assert max(seen[-5:]) < 2 * min(seen[1:10])


def test_a_look_at_what_is_wanted_asks_little_of_each_table(pair: Pair) -> None:
    with pair.source.connect() as source:
        for n in range(60):
            source.execute(f"create table t_{n} (id int primary key); select outbox.watch('t_{n}')".encode())
        for name in ("copy_wanted", "verify_wanted"):
            source.execute(query(name))
            assert pages(source, query(name).decode()) < 60 * 40
