"""Fresh databases for tests: one cluster a side for the whole run, a template in each, a clone a test."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from daemon.demo.cluster import Cluster
from daemon.demo.stage import TABLES
from daemon.demo.supabase import demo_sql, prepare
from outbox.migrations import migrate

# Quick, and no test loses by it: a killed postmaster leaves the kernel's page cache alone.
SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "100", "shared_buffers": "32MB"}

_numbers = count(1)

_MEMORY = "/dev/shm"  # noqa: S108
_ROOM = 12 << 30  # bytes: twice what all workers' clusters take


def in_memory() -> list[str]:
    """Where a database is made several times as quickly as on a disk, if there is room: each test makes two."""
    with suppress(OSError):
        place = os.statvfs(_MEMORY)
        available = next(
            line for line in Path("/proc/meminfo").read_text("ascii").splitlines() if line.startswith("MemAvailable")
        )
        if min(place.f_bavail * place.f_frsize, int(available.split()[1]) << 10) >= _ROOM:
            return [_MEMORY]
    return []


@dataclass(frozen=True)
class Database:
    """One database, and the user most tests are."""

    cluster: Cluster
    name: str
    owner: str

    @property
    def dsn(self) -> str:
        return self.cluster.dsn(self.name, self.owner)

    @property
    def superuser_dsn(self) -> str:
        return self.cluster.dsn(self.name)

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn, autocommit=autocommit)

    def install(self, example: str) -> None:
        """Run a file of sql/demo."""
        with self.connect() as connection:
            connection.execute(demo_sql(example))


def source_template(cluster: Cluster) -> Database:
    """An application's database: outboxd's source side and nothing else."""
    template = Database(cluster, "source_template", "postgres")
    cluster.create_database(template.name)
    with template.connect(autocommit=False) as connection:
        migrate(connection, "source")
    return template


def target_template(cluster: Cluster) -> Database:
    """A Supabase project: its roles, and outboxd's target side, put there by a role that is no superuser."""
    template = Database(cluster, "target_template", "supabase_owner")
    cluster.create_database(template.name)
    prepare(cluster, template.name)
    with template.connect(autocommit=False) as connection:
        migrate(connection, "target")
    return template


def example_template(empty: Database, name: str, example: str, each: str) -> Database:
    """A template with the demo's example tables as well, of which a statement makes each known to outboxd."""
    template = replace(empty, name=name)
    template.cluster.clone(empty.name, name, empty.owner)
    template.install(example)
    with template.connect() as connection:
        for table in TABLES:
            connection.execute(each.encode(), (table,))
    return template


@contextmanager
def clone(template: Database) -> Iterator[Database]:
    """A copy of a template for one test."""
    database = Database(template.cluster, f"{template.name}_{next(_numbers)}", template.owner)
    template.cluster.clone(template.name, database.name, template.owner)
    try:
        yield database
    finally:
        if template.cluster.running:
            template.cluster.drop_database(database.name)


@contextmanager
def running_cluster(folder: Path, version: int | None) -> Iterator[Cluster]:
    with Cluster.create(folder, version=version, settings=SETTINGS) as cluster:
        yield cluster
