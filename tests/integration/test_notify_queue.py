"""The server's one queue of notifications: when others fill it, the application's commits go on."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from daemon.demo.cluster import Cluster
from daemon.progress import Timing
from tests.databases import SETTINGS, Database, clone, source_template
from tests.relaying import Connection, assembled, install, running, same, until

SMALL = SETTINGS | {"max_notify_queue_pages": "64"}  # the least there is
_FILL = "select pg_notify('others', repeat('x', 7990) || i) from generate_series(1, 8) i"
_USAGE = "select pg_notification_queue_usage()"


@pytest.fixture(scope="module")
def small(new_folder: Callable[[str], Path], pytestconfig: pytest.Config) -> Iterator[Database]:
    """A source whose queue holds half a megabyte."""
    if (pytestconfig.getoption("postgres") or 17) < 17:
        pytest.skip("before PostgreSQL 17 the queue holds 8 GB: filling it takes too long")
    version = pytestconfig.getoption("postgres")
    with Cluster.create(new_folder("notifies"), version=version, settings=SMALL) as cluster:
        yield source_template(cluster)


@pytest.fixture
def source(small: Database) -> Iterator[Database]:
    with clone(small) as database:
        yield database


@pytest.fixture
def stuck(small: Database) -> Iterator[Connection]:
    """A stranger that listens, and sits in a transaction: nothing leaves the queue."""
    with closing(psycopg.connect(small.cluster.dsn(), autocommit=True)) as stranger:
        stranger.execute("listen others")
        stranger.execute("begin")
        stranger.execute("select 1")
        yield stranger


def fill(cluster: Cluster) -> None:
    """Notify until the server refuses."""
    with psycopg.connect(cluster.dsn(), autocommit=True) as conn:

        def refused() -> bool:
            try:
                conn.execute(_FILL)
            except psycopg.errors.ProgramLimitExceeded:
                return True
            return False

        assert any(refused() for _ in range(100))
        assert (conn.execute(_USAGE).fetchone() or (0,))[0] > 0.5


async def test_a_full_queue_fails_no_commit_of_the_application(
    source: Database, target: Database, app: Connection, stuck: Connection
) -> None:
    """Awake or asleep: capture and emit ring only where there is room, and what did not ring is found by the timer."""
    install(source, target)
    with target.connect() as mirror:
        async with assembled(source.dsn, target.dsn, timing=Timing(poll=0.1)) as relay, running(relay):
            await relay.asleep()
            fill(source.cluster)
            for number in range(5):
                await relay.asleep()
                app.execute("insert into item values (%s, 0)", (number,))
                await relay.asleep()
                app.execute(
                    "with new as (insert into memo values (%s, 1) returning id, n)"
                    " select outbox.emit('public.memo', 'upsert', row_to_json(new)) from new",
                    (number,),
                )
            await until(lambda: same(app, mirror))
            assert relay.bell.rings == 0
            stuck.execute("commit")
            await relay.asleep()
            app.execute("insert into item values (99, 0)")
            await until(lambda: relay.bell.rings > 0)
            await until(lambda: same(app, mirror))
