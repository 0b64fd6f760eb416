"""The oracle of the capture tests: what a table must hold, by its outbox alone.

Pure. It is much simpler than the relay on purpose: the last change of each key in id order, and a truncate
empties. A change may carry some of a row's columns; those it leaves out keep their value.
"""

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

State = dict[str, dict[str, Any]]


class Recorded(NamedTuple):
    """One row of outbox.change; `key` and `row` are its JSON texts."""

    id: int
    table: str
    op: str
    key: str
    row: str | None = None


class ResyncNeeded(AssertionError):
    """The outbox says that it does not know: somebody has to bring the table over again."""


def replay(changes: Iterable[Recorded], start: Mapping[str, Mapping[str, Any]] | None = None) -> State:
    """The rows by key after these changes of one table, given in any order."""
    rows = {key: dict(row) for key, row in (start or {}).items()}
    for change in sorted(changes):
        match change.op:
            case "upsert":
                assert change.row is not None, change
                rows[change.key] = {**rows.get(change.key, {}), **decoded(change.row)}
            case "delete":
                rows.pop(change.key, None)
            case "truncate":
                rows.clear()
            case _:
                raise ResyncNeeded(change)
    return rows


def decoded(row: str) -> dict[str, Any]:
    """A JSON object whose numbers keep every digit."""
    given = json.loads(row, parse_float=Decimal, parse_int=Decimal)
    assert isinstance(given, dict)
    return given
