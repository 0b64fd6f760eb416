"""Others' judges of a database, and of SQL, and what they say in one form.

Supabase's advisors (splinter's lints, as Postgres Language Server carries them) come with tests/clients' packages, squawk with the
lock. pgrls stands on a parser under the GPL, so it is in no lock of ours: `make advisors` fetches it.
"""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.databases import Database

_ROOT = Path(__file__).resolve().parents[2]
_SPLINTER = _ROOT / "tests/clients/node_modules/@postgres-language-server/cli-x86_64-linux-gnu/postgres-language-server"
_PGRLS = _ROOT / ".cache/advisors/bin/pgrls"


class NoAdvisor(RuntimeError):
    """It is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Finding:
    judge: str
    rule: str
    of: str


def splinter(database: Database, folder: Path) -> set[Finding]:
    if not _SPLINTER.exists():
        raise NoAdvisor("Supabase's advisors are not on this machine: `make setup` fetches them for Linux on x86-64")
    argv = [str(_SPLINTER), "dblint", "--colors=off", "--verbose", f"--connection-string={_url(database)}"]
    done = _done(argv, folder)  # the summary goes to one stream, what was found to the other
    said = f"{done.stdout}\n{done.stderr}"
    assert "Command completed" in said, said
    found = re.findall(r"^splinter/\w+/(\w+) .*\n\s*\n\s+\S+ (.+)$", said, re.MULTILINE)
    return {Finding("splinter", rule, " ".join(re.findall(r"`([^`\\]+)\\?`", what)) or what) for rule, what in found}


def pgrls(database: Database, folder: Path, schemas: str) -> set[Finding]:
    if not _PGRLS.exists():
        raise NoAdvisor("pgrls is not on this machine: `make advisors` fetches it")
    argv = [str(_PGRLS), "lint", "--database-url", _url(database), "--schemas", schemas, "--format", "json"]
    said = json.loads(_run(argv, folder))
    return {Finding("pgrls", one["rule_id"], str(one["location"])) for one in said["violations"]}


def squawk(text: str, folder: Path) -> set[Finding]:
    program = shutil.which("squawk", path=str(_ROOT / ".venv/bin"))
    assert program is not None
    (folder / "judged.sql").write_text(text, "utf-8")
    said = json.loads(_run([program, "--reporter", "json", "--pg-version", "15", "judged.sql"], folder))
    lines = text.split("\n")
    return {Finding("squawk", one["rule_name"], lines[one["line"]].strip()) for one in said}


def _run(argv: list[str], folder: Path) -> str:
    return _done(argv, folder).stdout


def _done(argv: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Whatever it ends with: findings are no failure of the judge's."""
    environment = {"PATH": os.defpath, "HOME": str(folder)}
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def _url(database: Database) -> str:
    return f"postgres://postgres@127.0.0.1:{database.cluster.port}/{database.name}"
