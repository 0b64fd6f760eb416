"""A library on both sides, each behind a PostgREST of its own: the application's, and the mirror that outboxd made."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daemon.demo.binaries import MissingPostgrest, postgrest_binary
from daemon.demo.cluster import Cluster
from daemon.demo.supabase import EmbeddedSupabase, prepare
from outbox.migrations import migrate
from tests.acceptance.conftest import Start, folder, start
from tests.clients.questions import COLUMNS
from tests.databases import Database, clone
from tests.schemas import Schemas

__all__ = ["Start", "folder", "start"]

_HERE = Path(__file__).parent
_SOURCE = "library_source"

# Whose rows whoever asks may see, on both sides.
_AUDIENCE: Mapping[str, Mapping[str, Any]] = {
    "person": {"owner": "id"},
    '"Story"': {"owner": "authorId", "access": "public_read"},
    "chapter": {"access": "public_read"},
    "scene": {"owner": "authorId", "write": False},
    '"étiquette"': {"access": "public_read"},
    '"Story_étiquette"': {"access": "public_read"},
    "profile": {"owner": "person"},
    "reading": {"owner": "person", "write": False},
    "ledger": {},
    "contact": {"owner": "person", "exclude": ("phone",)},
    "badge": {"owner": "person"},
}
_ACCESS = {"grant", "policy"}


@dataclass(frozen=True)
class Library:
    """`users`: the persons behind two of those who ask. `rows`: what the source holds, by table."""

    schemas: Schemas
    source: EmbeddedSupabase
    mirror: EmbeddedSupabase
    users: Mapping[str, str]
    rows: Mapping[str, list[Mapping[str, Any]]]


@pytest.fixture(scope="module")
def library(target_cluster: Cluster, _target_template: Database, run_folder: Path) -> Iterator[Library]:
    try:
        postgrest_binary()
    except MissingPostgrest as missing:
        pytest.skip(str(missing))
    # A project's roles belong to a cluster: both sides are in the one that has them.
    target_cluster.create_database(_SOURCE)
    try:
        prepare(target_cluster, _SOURCE)
        source = Database(target_cluster, _SOURCE, "postgres")
        with source.connect(autocommit=False) as conn:
            migrate(conn, "source")
        with clone(_target_template) as target:
            schemas = Schemas(source, target)
            _mirror(schemas)
            with (
                EmbeddedSupabase(target_cluster, source.name, run_folder) as here,
                EmbeddedSupabase(target_cluster, target.name, run_folder) as there,
            ):
                yield Library(schemas, here, there, *_known(source))
    finally:
        target_cluster.drop_database(_SOURCE)


def _mirror(schemas: Schemas) -> None:
    """Rows that are copied, changes that travel; and the source lets in whom the mirror lets in."""
    schemas.on_source((_HERE / "library.sql").read_text(), (_HERE / "rows.sql").read_text())
    for table, said in _AUDIENCE.items():
        excluded = list(said.get("exclude", ())) or None
        with schemas.source.connect() as conn:
            conn.execute("select outbox.watch(%s, exclude => %s)", (table, excluded))
        schemas.say(f"public.{table}", **said)
    made = schemas.settle()
    schemas.on_source(*(f"alter table {table} enable row level security" for table in _AUDIENCE))
    schemas.on_source(*(step.sql for step in made if step.kind in _ACCESS))
    asyncio.run(schemas.pair.drain())
    schemas.settle()
    schemas.on_source((_HERE / "changes.sql").read_text())
    asyncio.run(schemas.pair.drain())


def _known(source: Database) -> tuple[dict[str, str], dict[str, list[Mapping[str, Any]]]]:
    with source.connect() as conn:
        ids = conn.execute(
            'select "authorId"::text from "Story" group by 1 order by count(*) desc, 1 limit 2'
        ).fetchall()
        rows = {
            table: [row for (row,) in conn.execute(f'select to_jsonb(t) from "{table}" t'.encode())]
            for table in COLUMNS
        }
    return dict(zip(("a", "b"), (user for (user,) in ids), strict=True)), rows
