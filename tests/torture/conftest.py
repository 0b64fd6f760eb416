"""The longest tests begin first, beside all others: at the end of a run they would have the machine to themselves."""

import pytest

_FIRST = ("test_torture.py", "test_planted_bugs.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _FIRST.index(item.path.name) if item.path.name in _FIRST else len(_FIRST))
