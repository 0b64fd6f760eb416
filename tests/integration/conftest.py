"""Connections as an application has them."""

from collections.abc import Iterator

import pytest

from tests.captured import Connection
from tests.databases import Database, clone
from tests.relaying import install


@pytest.fixture
def app(source: Database) -> Iterator[Connection]:
    """The application, in autocommit, as owner of its own database."""
    with source.connect() as conn:
        yield conn


@pytest.fixture
def mirror(target: Database) -> Iterator[Connection]:
    """The target, in autocommit, as owner of its own database."""
    with target.connect() as conn:
        yield conn


@pytest.fixture
def tables(source: Database, target: Database) -> None:
    """What `same` compares: `item`, which is captured, and `memo`, which is emitted."""
    install(source, target)


@pytest.fixture(scope="module")
def shared_app(_source_template: Database) -> Iterator[Connection]:
    """One application for the tests of a module, which keep out of each other's way."""
    with clone(_source_template) as database, database.connect() as conn:
        yield conn


@pytest.fixture
def scratch(shared_app: Connection) -> Iterator[Connection]:
    """The application in a transaction that is rolled back: for many small cases."""
    with shared_app.transaction(force_rollback=True):
        yield shared_app
