"""The process between real parts, as the acceptance tests have it; and a source with an owner who means no good."""

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from daemon.demo.supabase import EmbeddedSupabase
from tests.acceptance.conftest import QUICK, Start, app, direct, folder, mirror, rest, source, start, target
from tests.captured import Connection
from tests.databases import Database
from tests.security.tenants import Tenants

__all__ = ["app", "direct", "folder", "mirror", "rest", "source", "start", "target"]


WATCHES = """
grant usage, create on schema public, outbox to {0};
grant all on all tables in schema outbox to {0}; grant all on all sequences in schema outbox to {0};
grant execute on all functions in schema outbox to {0}; revoke all on outbox.mask_key from {0}
"""


@pytest.fixture
def watcher(source: Database) -> Iterator[Connection]:
    """Who watches: here a superuser, so that whatever runs with these rights could do anything."""
    with source.connect() as conn:
        yield conn


@pytest.fixture
def owner(source: Database, watcher: Connection) -> Iterator[Connection]:
    """A role that owns tables, types and functions in schema public, and nothing more."""
    role = f"owner_{source.name}"
    watcher.execute(f"create role {role} login; grant usage, create on schema public to {role}")
    with psycopg.connect(source.cluster.dsn(source.name, role), autocommit=True) as conn:
        yield conn
    watcher.execute(f"drop owned by {role} cascade; drop role {role}")


@pytest.fixture
def second(source: Database, watcher: Connection) -> Iterator[Connection]:
    """Another role that watches tables of its own."""
    role = f"second_{source.name}"
    watcher.execute(f"create role {role} login; {WATCHES.format(role)}")
    with psycopg.connect(source.cluster.dsn(source.name, role), autocommit=True) as conn:
        yield conn
    watcher.execute(f"drop owned by {role} cascade; drop role {role}")


@pytest.fixture
def tenants(source: Database, target: Database, supabase: EmbeddedSupabase, start: Start) -> Iterator[Tenants]:
    """Two tables of two owners, carried by one process through the Data API."""
    way = {"source_dsn": source.dsn, "supabase_url": supabase.url, "supabase_key": supabase.secret_key}
    with closing(Tenants(source, target, {**way, **QUICK}, start)) as both:
        yield both
