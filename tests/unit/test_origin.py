"""Whose word a status is: what the one who asks and the one who tells have to agree in."""

from dataclasses import replace
from typing import Any

import pytest

from daemon.origin import Origin, stranger

HERE = Origin("7001", "app", "6b7c")


def told(**source: Any) -> dict[str, Any]:
    return {"relay": "main", "source": {**HERE.told(), **source}}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({}, None),
        ({"system": "7002"}, "the daemon of another source answers here"),
        ({"database": "app_2"}, "the daemon of another source answers here"),
        ({"installation": "0000"}, "the daemon of another installation of schema outbox answers here"),
        ({"database": "app_2", "installation": "0000"}, "the daemon of another source answers here"),
        ({"installation": None}, None),
    ],
)
def test_another_source_is_named(source: dict[str, Any], says: str | None) -> None:
    assert stranger(told(**source), "main", HERE) == says
    assert stranger(told(**source), "other", HERE) == "another relay's daemon answers here"


def test_what_cannot_be_known_is_no_difference() -> None:
    """The source is away for one of the two, its schema is gone, or the daemon is of before."""
    assert stranger(told(), "main", None) is None
    assert stranger({"relay": "main", "source": None}, "main", HERE) is None
    assert stranger(told(), "main", replace(HERE, installation=None)) is None
    assert stranger({"relay": "main", "source": {"system": "7001", "database": "app"}}, "main", HERE) is None
