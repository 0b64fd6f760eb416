"""A database that publishes all of its tables: what outboxd writes there is published, too, and must not be refused for that."""

import psycopg
import pytest

from daemon.demo.cluster import Cluster
from daemon.session import query
from tests.pairs import Pair

# Postgres refuses to update or delete rows of a published table where nothing identifies them.
_UNIDENTIFIED = """
select c.oid::regclass::text from pg_class c
 where c.relnamespace in (select oid from pg_namespace where nspname in ('outbox', 'outboxd')) and c.relkind = 'r'
   and c.relreplident <> 'f' and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)
 order by 1
"""


@pytest.fixture
def published(pair: Pair, source_cluster: Cluster, target_cluster: Cluster) -> Pair:
    for cluster, database in ((source_cluster, pair.source), (target_cluster, pair.target)):
        with database.connect() as conn, psycopg.connect(cluster.dsn(conn.info.dbname), autocommit=True) as superuser:
            superuser.execute("create publication everything for all tables")
    return pair


def test_every_table_says_what_identifies_a_row(published: Pair) -> None:
    for database in (published.source, published.target):
        with database.connect() as conn:
            assert conn.execute(_UNIDENTIFIED.encode()).fetchall() == []


async def test_changes_that_came_with_a_dump_are_made_this_sources_own(published: Pair) -> None:
    """As `outboxd rebase` does it: the one place where changes are updated."""
    published.create("create table story (id int primary key, n int)", "story")
    published.write("insert into story values (1, 1), (2, 2)", "delete from story where id = 1")
    with published.source.connect() as source:
        source.execute(query("restamp"))
    await published.drain()
    published.assert_equal("story")
