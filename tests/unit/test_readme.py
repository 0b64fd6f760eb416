"""What the documents name exists: settings with their defaults, commands and options, paths, metrics, pages, links."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from daemon.admin import Views
from daemon.admin import pages as served
from daemon.cli import main
from daemon.metrics import Metrics
from daemon.series import STATES
from daemon.settings import ALIASES, SECRETS, BreakerSettings, Settings
from daemon.tables import SchemaSettings, TableSettings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text("utf-8")
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")),
    ROOT / "sql" / "README.md",
    ROOT / "docs" / "configuration.md",
    ROOT / "docs" / "tracing.md",
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
]
ROOMS = "daemon|outbox|sql|tests|docs|deploy|\\.ci|source|target|queries|demo"


GROUPS: dict[str, type[BaseModel]] = {"breaker": BreakerSettings, "schema_": SchemaSettings}


def settings() -> Iterator[tuple[str, str]]:
    """Every setting's name and default, as the table writes them."""
    for name, field in Settings.model_fields.items():
        if group := GROUPS.get(name):
            yield from ((f"{name.rstrip('_')}.{inner}", str(f.default)) for inner, f in group.model_fields.items())
        elif name == "tables":
            continue  # in a table of their own
        elif field.default is None:
            yield name, "–"
        else:
            yield name, str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def commands(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")
        else:
            yield above + name, command


def code(text: str) -> list[str]:
    """Everything that is set as code."""
    blocks = re.findall(r"```.*?```", text, re.DOTALL)
    return blocks + re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def named(pattern: str, text: str = README) -> set[str]:
    return {found for piece in code(text) for found in re.findall(pattern, piece)}


@pytest.mark.parametrize(("name", "default"), list(settings()))
def test_every_setting_stands_in_the_table_with_its_default(name, default):
    variable = "OUTBOXD_" + name.upper().replace(".", "__")
    shown = default if default == "–" else f"`{default}`"
    assert f"| `{name}` | `{variable}` | {shown} |" in CONFIGURATION


def test_the_table_names_no_setting_that_does_not_exist():
    assert set(re.findall(r"^\| `([\w.]+)` \| `OUTBOXD_", CONFIGURATION, re.MULTILINE)) == {
        name for name, _ in settings()
    }


def test_what_may_be_said_of_a_table_stands_in_the_readme():
    assert set(TableSettings.model_fields) <= named(r"\b[a-z]+\b")


def test_every_variable_is_one_that_is_read():
    known = {"OUTBOXD_" + name.upper().replace(".", "__") for name, _ in settings()} | {"OUTBOXD_CONFIG"}
    known |= {f"OUTBOXD_{secret.upper()}_FILE" for secret in SECRETS}
    for document in DOCUMENTS:
        assert named(r"OUTBOXD_[A-Z_]+", document.read_text("utf-8")) <= known, document.name
    assert set(ALIASES) <= named(r"[A-Z][A-Z_]+", CONFIGURATION)


def test_every_command_stands_in_the_readme():
    for name, _ in commands(main):
        assert re.search(rf"`outboxd {name}\b", README), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_and_option_that_is_named_exists(document):
    known = dict(commands(main))
    options = {option for command in [main, *known.values()] for each in command.params for option in each.opts}
    words = {name.split()[0] for name in known}
    for piece in code(document.read_text("utf-8")):
        for line in piece.splitlines():
            called = re.match(r"outboxd ([a-z-]+)", line)
            assert called is None or called[1] in words, line
            if called or line.startswith("--"):
                assert set(re.findall(r"(?<![\w-])--[a-z-]+", line.partition("#")[0])) <= options, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_that_is_named_exists(document):
    text = document.read_text("utf-8")
    below = document.parent if document.parent.name == "sql" else ROOT
    for path in named(rf"(?<![\w/.<-])(?:{ROOMS})/[\w./*-]*\w", text):
        assert list(below.glob(path)) or list(ROOT.glob(path)), path
    for link in re.findall(r"\]\(([^)#:]+)\)|^\[\w+\]: ([^#:\s]+)$", text, re.MULTILINE):
        assert (document.parent / (link[0] or link[1])).exists(), link


def test_every_metric_page_and_state_that_is_named_exists():
    metrics = Metrics()
    metrics.show_verifications(tuple)
    metrics.show_verdict((), dict)
    body, _ = metrics.render()
    said = named(r"outboxd_[a-z_]+")
    assert said
    assert {name for name in said if name not in body.decode()} == set()
    nothing = Views(lambda: True, lambda: (True, {}), dict, lambda: (b"", ""))
    pages = set(served(nothing))
    assert {page for page in pages if f"`{page}`" not in README} == set()
    assert set(re.findall(r"^\| `(\w+)` \| [^`]", README, re.MULTILINE)) <= set(STATES)


def test_the_documents_keep_their_size():
    assert len(README.splitlines()) <= 300
    for note in (ROOT / "docs" / "decisions").glob("*.md"):
        assert len(note.read_text("utf-8").splitlines()) <= 40, note.name


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert text.lstrip().startswith("Apache License\n                           Version 2.0, January 2004")
    assert all(f"\n   {number}. " in text for number in range(1, 10))
    assert text.rstrip().endswith("limitations under the License.")
