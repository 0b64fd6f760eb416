"""A change, as an application states it.

Knows what a valid change is. Knows nothing of connections: `emit` sends it.
"""

import enum
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from outbox.errors import InvalidChange

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # as JSON writes it; an escaped backslash before "u0000" is none


class Op(enum.StrEnum):
    """What happens to the row on the target."""

    UPSERT = "upsert"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Change:
    """One row's upsert or delete.

    `table` is the watched or mapped name (``public."Story"``; without a schema, ``public`` is meant). `values`
    is the row of an upsert (it must have the key; columns left out keep their value on the target) or the key
    of a delete. `headers` travels along, for tracing.
    """

    table: str
    op: Op
    values: Mapping[str, Any]
    headers: Mapping[str, str] | None = None

    @classmethod
    def upsert(cls, table: str, row: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> "Change":
        """The row as it now is."""
        return cls(table, Op.UPSERT, row, headers)

    @classmethod
    def delete(cls, table: str, key: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> "Change":
        """The row with this key is gone."""
        return cls(table, Op.DELETE, key, headers)

    def values_json(self) -> str:
        """`values` as JSON. Raises InvalidChange naming the column (never the value) that is no JSON."""
        given: object = self.values  # whatever the caller's types say
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise InvalidChange(f"the values of a change of {self.table} must map column names to values")
        return (
            "{"
            + ", ".join(f"{json.dumps(name)}: {_value(self.table, name, value)}" for name, value in self.values.items())
            + "}"
        )

    def headers_json(self) -> str | None:
        """`headers` as JSON, None when there are none. Raises InvalidChange."""
        try:
            return None if self.headers is None else json.dumps(dict(self.headers), allow_nan=False)
        except (TypeError, ValueError):
            raise InvalidChange(f"the headers of a change of {self.table} must map names to texts") from None


def _value(table: str, name: str, value: Any) -> str:
    if isinstance(value, Decimal):
        # A JSON number keeps every digit; only NaN and infinity need quotes.
        return str(value) if value.is_finite() else json.dumps(str(value))
    if isinstance(value, float) and value - value != 0.0:
        return json.dumps(str(value))
    try:
        text = json.dumps(value, default=_text, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        kind = type(value).__name__
        raise InvalidChange(f"column {name} of {table}: a {kind} that cannot be written as JSON") from None
    if _NUL.search(text):
        raise InvalidChange(f"column {name} of {table}: U+0000, which Postgres cannot store")
    return text


def _text(value: object) -> str:
    match value:
        case Decimal():
            return str(value)
        case datetime() | date() | time():
            return value.isoformat()
        case UUID():
            return str(value)
        case bytes() | bytearray() | memoryview():
            return "\\x" + bytes(value).hex()
    raise TypeError(type(value).__name__)
