"""One pair of stores a transport, kept for a whole file: a hundred tables take a while to make."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.demo.binaries import MissingPostgrest, postgrest_binary
from daemon.demo.supabase import EmbeddedSupabase
from daemon.rest import RestDoor
from daemon.target import PostgresDoor
from tests.databases import Database, clone
from tests.fidelity.stores import Stores, stores


@pytest.fixture(scope="module")
def rest(_source_template: Database, _target_template: Database, run_folder: Path) -> Iterator[Stores]:
    """Through real PostgREST."""
    try:
        postgrest_binary()
    except MissingPostgrest as missing:
        pytest.skip(str(missing))
    with (
        clone(_source_template) as source,
        clone(_target_template) as target,
        EmbeddedSupabase(target.cluster, target.name, run_folder) as project,
        stores(source, target, lambda: RestDoor(project.url, project.secret_key)) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def direct(_source_template: Database, _target_template: Database) -> Iterator[Stores]:
    """Through a connection to the target's Postgres."""
    with (
        clone(_source_template) as source,
        clone(_target_template) as target,
        stores(source, target, lambda: PostgresDoor(target.dsn)) as made,
    ):
        yield made
