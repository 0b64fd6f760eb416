"""A role with TRUNCATE alone, or one that writes, hides what it does by a setting: no setting of a client decides what is recorded."""

from collections.abc import Iterator

import psycopg
import pytest

from tests.captured import Connection, assert_replays, ops, rows, watch
from tests.databases import Database

TREE = """
create table p (region text, id int, primary key (region, id)) partition by list (region);
create table p_eu partition of p for values in ('eu');
create table p_us partition of p for values in ('us') partition by range (id);
create table p_us_low partition of p_us for values from (0) to (100);
create table p_us_high partition of p_us for values from (100) to (200);
"""


@pytest.fixture
def truncator(source: Database, watcher: Connection) -> Iterator[Connection]:
    """A watched tree with a row in each leaf, and somebody who may truncate, insert and delete."""
    role = f"truncator_{source.name}"
    watcher.execute(TREE)
    watch(watcher, "p")
    watcher.execute("insert into p values ('eu', 1), ('us', 1), ('us', 150)")
    watcher.execute(
        f"create role {role} login; grant truncate, select, insert, delete on all tables in schema public to {role}"
    )
    with psycopg.connect(source.cluster.dsn(source.name, role), autocommit=True) as conn:
        yield conn
    watcher.execute(f"drop owned by {role}; drop role {role}")


@pytest.mark.parametrize("truncated", ["p", "p_eu", "p_us", "p_us_low", "p_us, p_eu"])
@pytest.mark.parametrize("before", ["nothing", "a delete", "a truncate of the root, and a row"])
def test_no_setting_hides_a_truncation(truncator: Connection, watcher: Connection, truncated: str, before: str) -> None:
    """By the number of each table of the tree, whatever came before it in the transaction."""
    for number in [one for (one,) in rows(watcher, "select relid::oid::text from pg_partition_tree('p')")]:
        with truncator.transaction():
            if before == "a delete":
                truncator.execute("delete from p where id = 1")
            elif before != "nothing":
                truncator.execute("truncate p; insert into p values ('eu', 1), ('us', 1)")
            truncator.execute("select set_config('outbox.truncating', %s, true)", (number,))
            truncator.execute(f"truncate {truncated}".encode())
        assert_replays(watcher)
        watcher.execute("insert into p values ('eu', 1), ('us', 1), ('us', 150) on conflict do nothing")


def test_a_branch_is_told_once(truncator: Connection, watcher: Connection) -> None:
    """By its leaves, as far as they have a trigger of their own; by itself for one that was made later."""
    watcher.execute(
        "create table p_us_late partition of p_us for values from (200) to (300); insert into p values ('us', 250)"
    )
    before = len(ops(watcher))
    truncator.execute("truncate p_us_low, p_us_high")
    watcher.execute("insert into p values ('us', 1), ('us', 150)")
    watcher.execute("truncate p_us")
    assert ops(watcher)[before:] == ["delete", "delete", "upsert", "upsert", "delete", "delete", "delete"]
    assert_replays(watcher)
    watcher.execute("insert into p values ('us', 1); truncate p")
    assert ops(watcher)[-2:] == ["upsert", "truncate"]


def test_no_setting_hides_a_mark(truncator: Connection, watcher: Connection) -> None:
    """A table whose rows cannot be told is marked for each statement, whatever the writer says it was."""
    watcher.execute("create table t (id int primary key, v int)")
    watch(watcher, "t")
    watcher.execute(f"grant all on t to {truncator.info.user}; alter table t drop constraint t_pkey")
    marks = []
    for guess in range(40):
        with truncator.transaction():
            (xid,) = truncator.execute("select pg_current_xact_id()::text").fetchone() or ("",)
            truncator.execute("select set_config('outbox.resync', %s, true)", (f"public.t {xid} INSERT{guess % 8}",))
            truncator.execute("insert into t values (%s, 1), (%s, 1)", (guess, guess))
        marks.append(ops(watcher, "public.t").count("resync"))
    assert marks == list(range(1, 41))
