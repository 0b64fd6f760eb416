"""Heartbeats of the real process, by both transports: on every page that speaks of them, and on no other count."""

import json
import re
from pathlib import Path

import pytest

from daemon.demo.child import Outboxd
from daemon.demo.faults import Fault
from daemon.demo.supabase import EmbeddedSupabase
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import STORIES, Pair, Start, measured, streaming, wait_until
from tests.acceptance.test_modes import hang_up, put

BEATING = {"heartbeat_interval": "0.2"}
_BEATS = "select count(*) from outbox.change where table_name = 'outboxd.heartbeat'"


def arrived(outboxd: Outboxd) -> float:
    return measured(outboxd, "outboxd_heartbeat_applied_timestamp_seconds")


def series(outboxd: Outboxd, begins: str) -> float:
    """The sum of all series of a name."""
    lines = [line for line in outboxd.get("/metrics")[1].splitlines() if line.startswith(begins)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.mark.parametrize("way", ["rest", "direct"])
def test_they_are_told_of_and_counted_apart(request: pytest.FixtureRequest, start: Start, way: str) -> None:
    pair: Pair = request.getfixturevalue(way)
    settings = {**pair.settings, **BEATING}
    outboxd = streaming(start(settings))
    pair.write(STORIES, 3)
    pair.arrives()
    first = wait_until(lambda: arrived(outboxd))
    wait_until(lambda: arrived(outboxd) > first)
    assert measured(outboxd, "outboxd_heartbeat_interval_seconds") == 0.2
    assert measured(outboxd, "outboxd_heartbeat_written_timestamp_seconds") > 0
    assert 0 < measured(outboxd, "outboxd_heartbeat_latency_seconds") < 60
    assert series(outboxd, "outboxd_changes_applied_total") == 3
    assert series(outboxd, "outboxd_changes_read_total") == 3
    assert series(outboxd, "outboxd_change_latency_seconds_count") == 3
    assert series(outboxd, "outboxd_batch_changes_sum") == 3
    assert "heartbeat" not in {line.partition("table=")[2] for line in outboxd.get("/metrics")[1].splitlines()}
    told = (outboxd.status() or {})["heartbeat"]
    assert told["written"]  # of one that may be on its way by now
    assert told["arrived"]
    assert told["seconds"] < 60
    assert [line for line in outboxd.said() if line["event"] == "batch_applied" and not line["changes"]] == []
    assert outboxd.stop() == 0
    cli = Cli(settings)
    seen = cli("status", "--json").json()["heartbeat"]
    assert seen["written"] <= seen["arrived"]
    assert re.search(r"^heartbeat +written 20.+Z, arrived 20.+Z, seconds \d", cli("status").out, re.MULTILINE)
    assert "heartbeat" not in cli.found()
    with pair.target.connect() as conn:
        conn.execute("update outboxd.heartbeat set arrived_at = arrived_at - interval '1 hour'")
    assert cli.found()["heartbeat"]["what"].startswith("the last one arrived 36")
    assert "is outboxd running" in cli.found()["heartbeat"]["fix"]
    assert "heartbeat" not in Cli(pair.settings).found()  # none are written: an old one is no fault


def test_an_outage_shows_though_nobody_writes(rest: Pair, supabase: EmbeddedSupabase, start: Start) -> None:
    """Supabase is away: one heartbeat waits and grows old, on the daemon's pages and in `status`; then it arrives."""
    outboxd = streaming(start({**rest.settings, **BEATING}))
    wait_until(lambda: arrived(outboxd))
    supabase.gateway.fault = Fault.status(503)
    wait_until(lambda: measured(outboxd, "outboxd_lag_seconds") > 1.0, 60)
    assert measured(outboxd, "outboxd_backlog_changes") == 1
    before = rest.ask(rest.source, _BEATS)
    last = arrived(outboxd)
    wait_until(lambda: measured(outboxd, "outboxd_lag_seconds") > 3.0, 60)
    assert rest.ask(rest.source, _BEATS) == before
    assert arrived(outboxd) == last
    supabase.gateway.fault = None
    wait_until(lambda: arrived(outboxd) > last, 60)
    wait_until(lambda: measured(outboxd, "outboxd_lag_seconds") < 1.0)
    assert rest.ask(rest.source, "select count(*) from outbox.held") == [(0,)]


def test_another_interval_at_sighup(direct: Pair, start: Start, folder: Path) -> None:
    settings = {name: value for name, value in direct.settings.items() if name != "heartbeat_interval"}
    put(folder / "outboxd.toml", "heartbeat_interval = 0\n")
    outboxd = streaming(start(settings))
    assert measured(outboxd, "outboxd_heartbeat_interval_seconds") == 0
    put(folder / "outboxd.toml", "heartbeat_interval = 0.1\n")
    assert hang_up(outboxd)["applied"] == ["heartbeat_interval"]
    first = wait_until(lambda: arrived(outboxd))
    wait_until(lambda: arrived(outboxd) > first)
    assert measured(outboxd, "outboxd_heartbeat_interval_seconds") == 0.1
    put(folder / "outboxd.toml", "heartbeat_interval = 0\n")
    assert hang_up(outboxd)["applied"] == ["heartbeat_interval"]
    assert json.loads(outboxd.get("/api/status")[1])["heartbeat"]["arrived"]
    assert measured(outboxd, "outboxd_heartbeat_interval_seconds") == 0
