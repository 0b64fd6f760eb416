"""A change as JSON: what it can say, and what it refuses before anything is written."""

import dataclasses
import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outbox import Change, InvalidChange, Op

VALUES: list[tuple[object, str]] = [
    (None, "null"),
    (True, "true"),
    (2**70, "1180591620717411303424"),
    (0.1, "0.1"),
    (float("nan"), '"nan"'),
    (float("-inf"), '"-inf"'),
    (Decimal("1234567890.12345678901234567890"), "1234567890.12345678901234567890"),
    (Decimal("1.00"), "1.00"),
    (Decimal("1E+3"), "1E+3"),
    (Decimal("NaN"), '"NaN"'),
    (Decimal("-Infinity"), '"-Infinity"'),
    ('ünï " \\ \n\t', '"\\u00fcn\\u00ef \\" \\\\ \\n\\t"'),
    ("\x1e", '"\\u001e"'),
    ("not a nul: \\u0000", '"not a nul: \\\\u0000"'),
    (datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), '"2026-01-02T03:04:05.000006+00:00"'),
    (date(2026, 1, 2), '"2026-01-02"'),
    (time(3, 4), '"03:04:00"'),
    (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
    (b"\x00\xff", '"\\\\x00ff"'),
    (bytearray(b"a"), '"\\\\x61"'),
    (memoryview(b"a"), '"\\\\x61"'),
    ({"a": [1, {"b": UUID(int=1)}]}, '{"a": [1, {"b": "00000000-0000-0000-0000-000000000001"}]}'),
    ([], "[]"),
    (Op.UPSERT, '"upsert"'),
]


@pytest.mark.parametrize(("given_value", "text"), VALUES)
def test_values_are_spelled_for_postgres(given_value: object, text: str) -> None:
    """Every digit of a number is kept; what JSON has no number for is quoted."""
    assert Change.upsert("t", {"a": given_value}).values_json() == '{"a": ' + text + "}"


NO_JSON: list[Any] = [
    object(),
    timedelta(1),
    {1, 2},
    {"nested": float("nan")},
    [Decimal("NaN"), float("inf")],
    {("a", "b"): 1},
    10**5000,
    "nul \x00",
    {"deep": ["\x00"]},
    {"\x00": 1},
    "backslashes \\\\\x00",
]
circle: list[Any] = []
circle.append(circle)
NO_JSON.append(circle)


@pytest.mark.parametrize("value", NO_JSON, ids=lambda value: type(value).__name__)
def test_what_is_no_json_is_refused(value: object) -> None:
    """The sentence names column and table, and never shows the value."""
    with pytest.raises(InvalidChange, match=r"^column secret of public\.story: ") as refused:
        Change.upsert("public.story", {"id": 1, "secret": value}).values_json()
    if isinstance(value, str):
        assert value not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("values", [None, [("id", 1)], "id", {1: 2}, {"id": 1, None: 2}])
def test_values_must_map_columns(values: Any) -> None:
    """A list of pairs or a key that is no text is refused."""
    with pytest.raises(InvalidChange, match="values of a change of t must map column names"):
        Change.upsert("t", values).values_json()


@pytest.mark.parametrize("headers", [{"a": object()}, {"a": float("nan")}, 5, [1, 2], {("a",): "b"}])
def test_headers_must_be_json(headers: Any) -> None:
    """Refused like any value, and in the same words."""
    with pytest.raises(InvalidChange, match="headers of a change of t must map names to texts"):
        Change("t", Op.DELETE, {"id": 1}, headers).headers_json()


def test_headers_are_optional() -> None:
    """None stays none; a mapping becomes an object."""
    assert Change.delete("t", {"id": 1}).headers_json() is None
    assert Change.delete("t", {"id": 1}, {"traceparent": "00-a"}).headers_json() == '{"traceparent": "00-a"}'


def test_the_two_kinds_of_change() -> None:
    """An upsert has a row, a delete a key; both are plain values."""
    assert Change.upsert("t", {"id": 1}) == Change("t", Op.UPSERT, {"id": 1})
    assert Change.delete("t", {"id": 1}) == Change("t", Op.DELETE, {"id": 1})
    with pytest.raises(dataclasses.FrozenInstanceError):
        Change.delete("t", {"id": 1}).table = "u"  # type: ignore[misc]


class Lazy(Mapping[str, Any]):
    """A row as an ORM may hand it out."""

    def __getitem__(self, key: str) -> Any:
        return {"id": 1, "a": None}[key]

    def __iter__(self) -> Any:
        return iter(["id", "a"])

    def __len__(self) -> int:
        return 2


def test_any_mapping_is_a_row() -> None:
    """Not only a dict."""
    assert Change.upsert("t", Lazy()).values_json() == '{"id": 1, "a": null}'


texts = st.text('aé✓\U0001f600"\\/u0 \n\t\x1e\x7f', max_size=8)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(texts, documents, max_size=5))
@settings(derandomize=True, database=None, deadline=None)
def test_what_json_can_say_is_said_unchanged(row: dict[str, Any]) -> None:
    """Reading the text back gives the row."""
    assert json.loads(Change.upsert("t", row).values_json()) == row
