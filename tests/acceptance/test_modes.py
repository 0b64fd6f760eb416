"""Disabled, degraded, full: one value on every page; settings that are mended while the daemon runs."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.demo.child import Outboxd
from daemon.demo.keys import ApiKeys
from daemon.demo.process import free_port
from daemon.demo.supabase import EmbeddedSupabase
from daemon.metrics import TARGET_MODES
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import STORIES, Pair, Start, ended, measured, streaming, wait_until
from tests.canaries import assert_clean

PAGES = ("/livez", "/readyz", "/metrics", "/api/status")


def mode(outboxd: Outboxd) -> str:
    """The mode, which status, metrics and readiness must all say."""
    (measured_mode,) = [one for one in TARGET_MODES if measured(outboxd, f'outboxd_mode{{mode="{one}"}}') == 1] or [""]
    said = json.loads(outboxd.get("/readyz")[1] or "{}").get("mode")
    told = (outboxd.status() or {}).get("mode")
    return str(told) if said == measured_mode == told else ""


def becomes(outboxd: Outboxd, wanted: str, deadline: float = 40.0) -> dict[str, Any]:
    """Wait until every page says so; the status then."""

    def is_it() -> bool:
        assert outboxd.returncode is None, outboxd.last_words()
        return mode(outboxd) == wanted

    wait_until(is_it, deadline)
    return outboxd.status() or {}


def put(file: Path, content: str) -> Path:
    """A secret as it should be kept; in place at once, as a runtime does it."""
    new = file.with_suffix(".new")
    new.touch(0o600)
    new.write_text(content)
    return new.replace(file)


def without(pair: Pair, *names: str) -> dict[str, str]:
    return {name: value for name, value in pair.settings.items() if name not in names}


def modes(outboxd: Outboxd) -> list[tuple[str, str]]:
    """What the log says of changes of the mode since the last look."""
    return [(line["before"], line["mode"]) for line in outboxd.said() if line["event"] == "mode_changed"]


def hang_up(outboxd: Outboxd) -> dict[str, Any]:
    """SIGHUP; the line that answers it."""
    outboxd.said()
    outboxd.send(signal.SIGHUP)
    answers = ("settings_reloaded", "settings_refused")
    return wait_until(lambda: next((line for line in outboxd.said() if line["event"] in answers), {}))


def test_without_supabases_settings_it_starts_disabled(rest: Pair, start: Start, tmp_path: Path) -> None:
    """Captures go on, what waits is counted, and every page says which settings are missing, with an example."""
    outboxd = start(without(rest, "supabase_url", "supabase_key"))
    rest.write(STORIES, 5)
    status = becomes(outboxd, "disabled")
    wait_until(lambda: measured(outboxd, "outboxd_backlog_changes") == 5)
    wait_until(lambda: (outboxd.status() or {}).get("state") == "paused")
    status = outboxd.status() or {}
    assert status["verdict"].startswith("disabled: supabase_url is missing: set OUTBOXD_SUPABASE_URL or SUPABASE_URL")
    assert status["verdict"].endswith("captures go on, 5 changes wait safely in Postgres")
    assert status["mode_since"]
    assert measured(outboxd, "outboxd_leader") == 1
    assert outboxd.get("/livez")[0] == 200
    code, body = outboxd.get("/readyz")
    assert code == 503
    why = json.loads(body)["problem"]
    assert "https://<project-ref>.supabase.co" in why
    assert "supabase_key is missing" in why
    said = Cli(without(rest, "supabase_url", "supabase_key"))("status", "--json", admin_port=str(outboxd.port))
    assert (said.code, said.json()["mode"], said.json()["backlog_changes"]) == (3, "disabled", 5)
    assert outboxd.stop() == 0
