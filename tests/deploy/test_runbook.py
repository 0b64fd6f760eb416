"""What deploy/RUNBOOK.md tells somebody to paste at night exists: commands and options, SQL, metrics, pages, alerts."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import psycopg
import pytest
from click.testing import CliRunner

from daemon.admin import Views
from daemon.admin import pages as served
from daemon.cli import main
from daemon.demo.stage import TABLES
from tests.databases import Database
from tests.deploy import promql

DEPLOY = Path(__file__).parents[2] / "deploy"
RUNBOOK = (DEPLOY / "RUNBOOK.md").read_text("utf-8")
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
PARTS = ("Means", "Impact", "Look", "Fix", "Escalate")
# What stands for something that only the reader knows.
FILLED = {
    "<table>": 'public."Story"',
    "<letter>": "1",
    "<pid>": "0",
    "<unit>": "outboxd",
    "<file>": "file",
    "<project-ref>": "x",
}
# Other programs that a step may name. What is not here is a typo, or belongs in the table of prerequisites.
PROGRAMS = {"cd", "export", "curl", "install", "ln", "systemctl", "journalctl", "kill", "chmod", "psql", "python3", "/opt/outboxd/bin/pip", "/opt/outboxd-next/bin/pip",
            "/opt/outboxd-next/bin/outboxd", "mv", "test", "timedatectl"}  # fmt: skip
# Of the heartbeat: agreed on, and not in this registry before its part is.
HEARTBEAT = {
    "outboxd_heartbeat_written_timestamp_seconds", "outboxd_heartbeat_applied_timestamp_seconds",
    "outboxd_heartbeat_latency_seconds", "outboxd_heartbeat_interval_seconds",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block, and the line it begins in."""

    line: int
    language: str
    text: str


def blocks() -> Iterator[Block]:
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", RUNBOOK, re.DOTALL | re.MULTILINE):
        yield Block(RUNBOOK[: found.start()].count("\n") + 2, found[1], found[2])


def of(language: str) -> list[Block]:
    return [block for block in blocks() if block.language == language]


def name(block: object) -> str:
    return f"line {block.line}" if isinstance(block, Block) else str(block)


def filled(text: str) -> str:
    for placeholder, value in FILLED.items():
        text = text.replace(placeholder, value)
    return text


def lines(block: Block) -> list[str]:
    """Commands of a block: without comments and empty lines, continued ones in one."""
    whole = block.text.replace("\\\n", " ").splitlines()
    return [line for line in whole if line.strip() and not line.startswith("#")]


def words(line: str) -> list[str]:
    """A command and its arguments: what is piped on, and variables before it, are left out."""
    said = shlex.split(filled(line), comments=True)
    said = said[: next((at for at, word in enumerate(said) if word in {"|", ">", "&&"}), len(said))]
    while said and re.fullmatch(r"[A-Z_]+=.*", said[0]):
        del said[0]
    return said


def called() -> list[str]:
    """Every call of outboxd: in blocks, and in the text."""
    in_blocks = [line for block in of("sh") for line in lines(block) if "outboxd" in words(line)[0]]
    prose = re.sub(r"```.*?```", "", RUNBOOK, flags=re.DOTALL)
    return [line for line in in_blocks if words(line)[0].endswith("outboxd")] + re.findall(
        r"`(outboxd [^`\n]+)`", prose
    )


def metrics() -> set[str]:
    """All names that the live registry exposes."""
    live = {name for name, _ in promql.series()}
    return live if live & HEARTBEAT else live | HEARTBEAT


@pytest.mark.parametrize("line", sorted(set(called())))
def test_every_command_is_one_of_outboxds(line: str) -> None:
    """click itself parses it, down to the last option and argument; each option stands in --help."""
    arguments = words(line)[1:]
    said = list(arguments)
    command: click.Command = main
    context: click.Context | None = None
    path: list[str] = []
    while isinstance(command, click.Group):
        context = command.make_context("outboxd", [*arguments], parent=context)
        left = [*context._protected_args, *context.args]
        assert left, f"{line}: a command is missing"
        found = command.get_command(context, left[0])
        assert found is not None, f"{line}: there is no command {left[0]}"
        command, path, arguments = found, [*path, left[0]], left[1:]
    command.make_context(path[-1], arguments, parent=context)  # raises a UsageError that names what is wrong
    shown = CliRunner().invoke(main, [*path, "--help"]).output
    assert [word for word in said if word.startswith("--") and word.partition("=")[0] not in shown] == []


@pytest.mark.parametrize("block", of("sh"), ids=name)
def test_every_other_program_is_known_and_every_page_is_there(block: Block) -> None:
    """A page of the daemon's is one that it serves."""
    nothing = Views(lambda: True, lambda: (True, {}), dict, lambda: (b"", ""))
    pages = set(served(nothing))
    for line in lines(block):
        program = words(line)[0]
        assert program == "outboxd" or program in PROGRAMS, line
        assert set(re.findall(r"127\.0\.0\.1:9631(/[\w/]+)", line)) <= pages, line


@pytest.fixture(scope="module")
def stores(_source_template: Database, _target_template: Database) -> Iterator[dict[str, Database]]:
    """The example application, watched and mapped."""
    from tests.databases import clone

    with clone(_source_template) as source, clone(_target_template) as target:
        source.install("example_app.sql")
        target.install("example_mirror.sql")
        with source.connect() as here, target.connect() as there:
            for table in TABLES:
                here.execute("select outbox.watch(%s::regclass)", (table,))
                there.execute("select outboxd.map(%s::regclass)", (table,))
        yield {"source": source, "target": target}


@pytest.mark.parametrize("block", of("sql"), ids=name)
def test_every_statement_runs(block: Block, stores: dict[str, Database]) -> None:
    """On the side that its first line names; whatever it does is taken back."""
    side = re.match(r"-- (source|target)\b", block.text)
    assert side, f"line {block.line}: say on which side: -- source, or -- target"
    with psycopg.connect(stores[side[1]].superuser_dsn) as conn:
        for statement in filled(block.text).split(";\n"):
            if re.sub(r"--.*", "", statement).strip():
                conn.execute(statement.encode())
        conn.rollback()


@pytest.mark.parametrize("block", of("promql"), ids=name)
def test_every_metric_is_one_that_is_exposed(block: Block) -> None:
    named = set(re.findall(r"\b(?:outboxd|process)_\w+", block.text))
    assert named or "up{" in block.text, block.text
    assert named <= metrics(), named - metrics()
    assert [block.text.count(opening) - block.text.count(closing) for opening, closing in ("()", "{}", "[]")] == [
        0,
        0,
        0,
    ]


def sections() -> dict[str, str]:
    """What stands under each heading that is an alert's name."""
    found = re.split(r"^### (Outboxd\w+)$", RUNBOOK, flags=re.MULTILINE)
    return {title: text.split("\n## ")[0] for title, text in zip(found[1::2], found[2::2], strict=True)}


def test_every_alert_says_what_whoever_is_woken_must_know() -> None:
    """Meaning, impact, how to look, the fix, and when to wake somebody else; with something to paste."""
    assert len(sections()) >= 19
    for title, text in sections().items():
        assert [part for part in PARTS if f"**{part}.**" not in text] == [], title
        assert "```" in text, f"{title}: nothing to paste"
        assert "```promql" in text, f"{title}: no query"


def test_every_alert_has_its_anchor_and_every_anchor_its_alert() -> None:
    """The rules' runbook_url leads to the heading: an anchor is the heading in lower case."""
    if not ALERTS.exists():
        pytest.skip("deploy/prometheus/alerts.yaml is not there yet: it comes with the rules")
    rules = ALERTS.read_text("utf-8")
    assert set(re.findall(r"^\s*-? *alert: (\w+)", rules, re.MULTILINE)) == set(sections())
    anchors = set(re.findall(r"RUNBOOK\.md#([\w-]+)", rules))
    assert anchors == {title.lower() for title in sections()}


def test_every_link_into_the_runbook_leads_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", RUNBOOK, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", RUNBOOK)) <= anchors
    for path in re.findall(r"\]\(([^)#:]+)\)", RUNBOOK):
        assert (DEPLOY / path).exists(), path


@pytest.mark.parametrize("before", ["a folder", "a link", "nothing"])
def test_the_upgrade_puts_the_new_version_in_place(before: str, tmp_path: Path) -> None:
    """Also where the first version was installed into a real folder, into which `ln -sfn` would put the link."""
    [block] = [each.text for each in of("sh") if "outboxd-next /opt/outboxd" in each.text]
    moved = [line.replace("/opt/", f"{tmp_path}/") for line in block.splitlines() if re.match(r"test|ln", line)]
    for version in ("old", "next"):
        (tmp_path / f"outboxd-{version}").mkdir()
        (tmp_path / f"outboxd-{version}" / "version").write_text(version)
    if before == "a folder":
        (tmp_path / "outboxd-old").rename(tmp_path / "outboxd")
    elif before == "a link":
        (tmp_path / "outboxd").symlink_to(tmp_path / "outboxd-old")
    for line in moved:
        subprocess.run(["sh", "-c", line], check=True)
    assert (tmp_path / "outboxd" / "version").read_text() == "next"
    if before == "a folder":
        assert (tmp_path / "outboxd-first" / "version").read_text() == "old"


def test_it_stays_readable_and_names_no_machine() -> None:
    """Short enough to be read at night; what was printed somewhere carries no path, host or key of that place."""
    assert len(RUNBOOK.splitlines()) <= 450
    for pattern in (
        r"/(?:tmp|home|root|work|var/tmp)/",
        r"\b(?!127\.0\.0\.1\b)\d{1,3}(?:\.\d{1,3}){3}\b",
        r"sb_secret_[A-Za-z0-9]",
        r"eyJ[\w-]{10}",
    ):
        assert re.findall(pattern, RUNBOOK) == []
