"""Sequences that nobody has named: at rest the target holds what the source's own rows say. `--seeds N` plays more."""

import pytest

from tests.databases import Database
from tests.edges.play import play


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("seed", range(metafunc.config.getoption("seeds")))


async def test_whatever_happens_in_whatever_order(source: Database, target: Database, seed: int) -> None:
    wrong = await play(source, target, seed)
    assert not wrong, "\n".join(wrong)
