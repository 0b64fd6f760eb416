"""Both sides, on the oldest and on the usual version of Postgres."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.demo.binaries import MissingPostgres, binaries
from tests.databases import Database
from tests.schemas import Schemas, fresh, templates


@pytest.fixture(scope="session", params=[15, 17], ids=lambda version: f"postgres {version}")
def sides(request: pytest.FixtureRequest, new_folder: Callable[[str], Path]) -> Iterator[tuple[Database, Database]]:
    try:
        binaries(request.param)
    except MissingPostgres as missing:
        pytest.skip(str(missing))
    with templates(new_folder(f"schema-{request.param}"), request.param) as pair:
        yield pair


@pytest.fixture
def schemas(sides: tuple[Database, Database]) -> Iterator[Schemas]:
    """An application and a project, with outboxd's sides and no tables."""
    with fresh(sides) as pair:
        yield pair
