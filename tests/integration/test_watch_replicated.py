"""A watched table whose rows arrive by logical replication: triggers that fire always fire for them, too."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from daemon.demo.cluster import Cluster
from outbox.migrations import migrate
from tests.captured import Connection, assert_replays, ops, value, watch
from tests.databases import SETTINGS
from tests.waiting import wait_until

TABLES = """
    create table t (id int primary key, n int not null default 0, body text);
    create table p (region text, id int, n int, primary key (region, id)) partition by list (region);
    create table p_eu partition of p for values in ('eu');
    create table p_us partition of p for values in ('us');
"""


@pytest.fixture
def publisher(new_folder: Callable[[str], Path], pytestconfig: pytest.Config) -> Iterator[Cluster]:
    """A server that others subscribe to."""
    settings = {**SETTINGS, "wal_level": "logical"}
    version = pytestconfig.getoption("postgres")
    with Cluster.create(new_folder("publisher"), version=version, settings=settings) as cluster:
        yield cluster


@pytest.fixture
def subscriber(app: Connection, source_cluster: Cluster, publisher: Cluster) -> Iterator[Connection]:
    """The source as superuser, with the publisher's tables, watched and subscribed to; rows were there before."""
    with psycopg.connect(publisher.dsn(), autocommit=True) as there:
        there.execute(TABLES)
        there.execute("create publication everything for all tables with (publish_via_partition_root = true)")
        there.execute(
            "insert into t select i, i, repeat('x', i) from generate_series(1, 5) i; insert into p values ('eu', 1, 1)"
        )
    with psycopg.connect(source_cluster.dsn(app.info.dbname), autocommit=True) as here:
        migrate(here, "source")
        here.execute(TABLES)
        watch(here, "t")
        watch(here, "p")
        here.execute(
            sql.SQL("create subscription mine connection {} publication everything").format(
                sql.Literal(publisher.dsn())
            )
        )
        yield here
        here.execute("drop subscription mine")


def test_rows_that_replication_applies_are_captured(subscriber: Connection, publisher: Cluster) -> None:
    """The rows that the subscription begins with, and every kind of statement after them."""
    wait_until(lambda: value(subscriber, "select bool_and(srsubstate = 'r') from pg_subscription_rel"))
    assert_replays(subscriber)
    assert sorted(ops(subscriber)) == ["upsert"] * 6
    with psycopg.connect(publisher.dsn(), autocommit=True) as there:
        there.execute(
            "begin; insert into t values (6, 6, 'six'); update t set n = n + 1; update t set id = 60 where id = 6; commit"
        )
        there.execute(
            "delete from t where id in (1, 2); insert into p values ('us', 2, 2); update p set region = 'us' where id = 1"
        )
        there.execute("insert into t values (7, 7, 'last')")
    wait_until(lambda: value(subscriber, "select exists (select from t where id = 7)"))
    assert_replays(subscriber)
    with psycopg.connect(publisher.dsn(), autocommit=True) as there:
        there.execute("truncate t; insert into t values (8, 8, 'new')")
    wait_until(lambda: value(subscriber, "select exists (select from t where id = 8)"))
    assert_replays(subscriber)
    assert value(subscriber, "select count(*) from t") == 1
