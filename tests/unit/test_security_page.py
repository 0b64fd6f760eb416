"""SECURITY.md: each threat names tests that exist, and every file of tests/security stands there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_threats_and_their_tests_name_one_another() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    named = set(re.findall(r"`((?:tests/deploy/)?test_\w+\.py)`", page))
    missing = {name for name in named if not (ROOT / ("" if "/" in name else "tests/security") / name).exists()}
    assert not missing
    assert {one.name for one in (ROOT / "tests/security").glob("test_*.py")} <= named
