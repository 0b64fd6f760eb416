"""tests/README.md says which test meets which fault: every name on that page must exist, and none may be missing."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS / "README.md").read_text()
_ROW = re.compile(r"^\| (I?\d+) \| (.+?) \| (.+) \|$", re.MULTILINE)
_NAME = re.compile(r"`([a-z_]+/test_\w+\.py)(?:::(\w+))?`")
ROWS = {number: where for number, _, where in _ROW.findall(PAGE)}
NAMED = sorted({match.group(0).strip("`") for where in ROWS.values() for match in _NAME.finditer(where)})


@cache
def named_in(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_fault_and_every_promise_has_its_row() -> None:
    """43 faults, ten promises, in order, each with a test or with why it cannot run here."""
    assert list(ROWS) == [*map(str, range(1, 44)), *(f"I{n}" for n in range(1, 11))]
    empty = [number for number, where in ROWS.items() if not _NAME.search(where) and "cannot run here" not in where]
    assert empty == []


@pytest.mark.parametrize("named", NAMED)
def test_what_the_page_names_exists(named: str) -> None:
    """The file, and in it the test."""
    file, _, test = named.partition("::")
    path = TESTS / file
    assert path.is_file(), f"{named} is named in tests/README.md and is not there"
    assert not test or test in named_in(path), f"{file} has no {test}"
