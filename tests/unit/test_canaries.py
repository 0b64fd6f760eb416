"""The scan finds what it is there for: a torture run that finds nothing must mean something."""

import base64
import json

import pytest

from tests.canaries import NUMBER, assert_clean, planted


@pytest.mark.parametrize(
    "leaked",
    [
        planted("row"),
        planted("row").upper(),
        planted("row")[:-2],
        f"Key (body)=({planted('key')}) already exists",
        json.dumps({"a": [planted("row")]}),
        planted("row").encode().hex(),
        base64.b64encode(f"{planted('row')}".encode()).decode(),
        base64.b64encode(f"x{planted('row')}yz".encode()).decode(),
        base64.b64encode(f"xy{planted('row')}".encode()).decode(),
        "".join(f"%{ord(c):02X}" for c in planted("row")),
        f"n={NUMBER}",
        f"{NUMBER}.50",
    ],
)
def test_a_canary_is_found_in_any_form(leaked: str) -> None:
    """Whole, cut, quoted, encoded."""
    with pytest.raises(AssertionError, match="the log"):
        assert_clean({"the log": f"before {leaked} after"})


def test_a_secret_is_found() -> None:
    """Named by the caller."""
    with pytest.raises(AssertionError, match="plain"):
        assert_clean({"page": "password=hunter2"}, "hunter2")


def test_what_is_clean_passes() -> None:
    """Nothing found, nothing said."""
    assert_clean({"page": "batch_applied changes=3", "empty": ""}, "hunter2", "")
