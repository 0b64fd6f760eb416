"""The commands as a person types them, with what they print to each stream."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from click.testing import CliRunner

from daemon.cli import main


@dataclass(frozen=True)
class Said:
    """`out` is data, `err` is talk."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The data of a command with --json."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Cli:
    """Runs in this process: a hundred commands would otherwise spend their time importing."""

    settings: Mapping[str, str]

    def __call__(self, *arguments: str, **settings: str) -> Said:
        chosen = {f"OUTBOXD_{name.upper()}": value for name, value in {**self.settings, **settings}.items()}
        try:
            result = CliRunner().invoke(main, arguments, env=chosen)
        finally:
            structlog.reset_defaults()  # a command sets logs up for its process, which here is every test's
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        assert "Traceback" not in result.output
        return Said(result.exit_code, result.stdout, result.stderr)

    def found(self) -> dict[str, dict[str, str]]:
        """What `check` objects to: the first objection by each name."""
        said = self("check", "--json")
        items = said.json()
        assert said.code == (3 if any(item["level"] == "FAIL" for item in items) else 0)
        return {item["name"]: item for item in reversed(items) if item["level"] != "OK"}
