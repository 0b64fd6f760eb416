"""Keys that an application emitted, as the target's types spell them.

Knows which spellings of JSON are a type's own, so that the target need be asked about others only. Knows nothing of
connections. Pure. One key that comes as 1 and as "1" would be two: of two changes of a row the older could win.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Types = Mapping[str, str]  # by column, in the key's order

_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _whole(value: object) -> bool:
    return type(value) is int


def _text(value: object) -> bool:
    return isinstance(value, str)


_OWN: Mapping[str, Callable[[Any], bool]] = {
    "smallint": _whole,
    "integer": _whole,
    "bigint": _whole,
    "text": _text,
    "character varying": _text,
    "boolean": lambda value: isinstance(value, bool),
    "uuid": lambda value: _text(value) and _UUID.fullmatch(value) is not None,
}


def spelled(key: str, types: Types) -> str | None:
    """The key as the source spells those that it captures; None: only the target can say."""
    try:
        given = json.loads(key)
        values = {name: given[name] for name in types}
    except (ValueError, KeyError, TypeError):
        return key  # no key of this table: it is refused with its row
    if len(given) != len(values):
        return key  # it has more than the key there: two such rows would be one
    if not all(type_ in _OWN and _OWN[type_](values[name]) for name, type_ in types.items()):
        return None
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def types_of(described: Mapping[str, Any]) -> dict[str, Types]:
    """The types of each mirror's key."""
    return {
        table["table"]: dict(zip(table["key"], table["key_types"], strict=True))
        for table in described["tables"]
        if len(table.get("key_types") or ()) == len(table["key"])
    }


def asked(keys: Sequence[str]) -> tuple[bytes, ...]:
    """Keys as the door takes them."""
    return (("[" + ",".join(keys) + "]").encode(),)
