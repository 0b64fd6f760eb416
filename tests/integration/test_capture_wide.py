"""Tables as wide as Postgres lets them be: captured, watched again and asked about in a time that grows with their columns alone."""

import psycopg
import pytest

from tests.captured import Connection, assert_replays, value, watch
from tests.databases import Database


@pytest.mark.parametrize("kind", ["jsonb", "int[]", "text", "numeric", "xml", "bytea", "tsvector"])
@pytest.mark.parametrize("many", [101, 700])
def test_a_table_of_many_columns(app: Connection, kind: str, many: int) -> None:
    columns = ", ".join(f"c{n} {kind}" for n in range(many))
    app.execute(f"create table t (id int primary key, {columns})")
    watch(app, "t")
    app.execute("insert into t values (1), (2)")
    app.execute("update t set id = 3 where id = 1; delete from t where id = 2")
    app.execute("begin; select from t for update; update t set c1 = c1; commit")
    app.execute("alter table t add z int; update t set z = 1; update t set id = 5")
    assert_replays(app, "public.t")


def test_the_widest_table(app: Connection) -> None:
    app.execute(f"create table t (id int primary key, {', '.join(f'c{n} varchar(10)' for n in range(1500))})")
    watch(app, "t")
    app.execute("insert into t values (1, 'a'), (2, 'b'); update t set id = 3 where id = 1; delete from t where id = 2")
    app.execute("begin; select from t for update; update t set c1 = c1; commit; update t set c8 = '1'")
    assert_replays(app, "public.t")


def test_watching_a_wide_table_again_makes_nobody_queue(source: Database, app: Connection) -> None:
    """README: watching takes a short lock."""
    app.execute(f"create table t (id int primary key, {', '.join(f'c{n} text' for n in range(600))})")
    watch(app, "t")
    with source.connect() as again, source.connect() as writer:
        writer.execute("set statement_timeout = '4s'")
        with again.transaction():
            again.execute("set local statement_timeout = '6s'")
            watch(again, "t")
        writer.execute("insert into t values (1)")


def test_a_filter_of_many_columns(app: Connection) -> None:
    """Refused with a sentence, or it works."""
    app.execute(f"create table t (id int primary key, {', '.join(f'c{n} int' for n in range(150))})")
    where = " and ".join(f"c{n} is null" for n in range(150))
    try:
        watch(app, "t", filter=where)
    except psycopg.Error:  # 100 arguments are the most that a function has: refused, and nothing is changed
        return
    app.execute("insert into t values (1, null), (2, 5); update t set c0 = 1 where id = 1; delete from t where id = 2")
    assert_replays(app, "public.t")


def test_what_left_home_is_asked_quickly_of_a_wide_table(app: Connection) -> None:
    """It is asked for each copy, on the connection that reads the changes of all tables."""
    app.execute(f"create table wide (id int primary key, {', '.join(f'c{n} text' for n in range(600))})")
    watch(app, "wide")
    app.execute("set statement_timeout = '3s'")
    app.execute("select outbox.left_home(w) from outbox.watched w where w.table_name = 'public.wide'")


def test_what_left_home_is_noted_quickly_of_a_wide_mirror(mirror: Connection) -> None:
    """With the first batch of a copy, in the transaction that writes rows of other tables as well; also of one made anew."""
    names = [f"c{n}" for n in range(1200)]
    made = f"create table wide (id int primary key, {' text, '.join(names)} text)"
    mirror.execute(f"{made}; select outboxd.map('wide')")
    mirror.execute("select outboxd.note_filled('relay', m, %s) from outboxd.mirror m", (names,))
    mirror.execute("set statement_timeout = '3s'")
    left = {name: n + 2 for n, name in enumerate(names) if n > 4}
    assert value(mirror, "select outboxd.numbered('public.wide', %s)", list(left)) == left
    group = '{"op": "upsert", "columns": ["id", "c9"], "vacates": ["c9", "c7", "c6", "gone"]}'
    vacated = "select outboxd.vacating(m, %s::json) -> 'columns' from outboxd.mirror m"
    assert value(mirror, vacated, group) == ["id", "c9", "c6", "c7"]
    mirror.execute(f"drop table wide; {made}".encode())
    assert value(mirror, "select outboxd.numbered('public.wide', %s)", list(left)) == left
