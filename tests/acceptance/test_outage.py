"""Supabase goes away and comes back: the breaker opens, tries and closes, and nothing is lost on the way."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from daemon.demo.child import Outboxd
from daemon.demo.faults import Fault
from daemon.demo.supabase import EmbeddedSupabase
from daemon.demo.writer import Writer
from tests.acceptance.conftest import STORIES, Pair, Start, measured, streaming, wait_until

_OPENED = 'outboxd_breaker_transitions_total{breaker="target",to="open"}'
_STATE = 'outboxd_breaker_state{{breaker="target",state="{}"}}'


@contextmanager
def writing(pair: Pair) -> Iterator[Writer]:
    """The example application writes meanwhile."""
    writer = Writer(pair.source.dsn, per_second=100, seed=7)
    writer.start()
    try:
        yield writer
    finally:
        writer.stop()
    assert writer.failure is None


def told(outboxd: Outboxd, what: Callable[[dict[str, Any]], object], deadline: float = 30.0) -> dict[str, Any]:
    """The status as soon as it says so."""
    last: dict[str, Any] = {}

    def says() -> bool:
        last.update(outboxd.status() or {})
        return bool(last and what(last))

    try:
        wait_until(says, deadline)
    except AssertionError:
        pytest.fail(f"the status still says {last}; the log: {outboxd.last_words()}")
    return last


@pytest.mark.parametrize("how", ["postgrest stops", "gateway stops", "answers 502", "answers are lost"])
def test_nothing_is_lost_while_supabase_is_away(rest: Pair, supabase: EmbeddedSupabase, start: Start, how: str) -> None:
    """However Supabase fails, the breaker opens, the backlog grows, and all of it arrives afterwards."""
    leave, come_back = {
        "postgrest stops": (supabase.stop_postgrest, supabase.start_postgrest),
        "gateway stops": (supabase.gateway.stop, supabase.gateway.start),
        "answers 502": (lambda: plot(supabase, Fault.status(502, b"<html>bad gateway</html>")), lambda: plot(supabase)),
        "answers are lost": (lambda: plot(supabase, Fault.drop_response()), lambda: plot(supabase)),
    }[how]
    outboxd = streaming(start(rest.settings))
    with writing(rest) as writer:
        wait_until(lambda: rest.mirrored() > 0)
        leave()
        away = told(outboxd, lambda status: status["breaker"]["state"] == "open" and status["backlog_changes"])
        before = writer.committed
        wait_until(lambda: measured(outboxd, _OPENED) >= 3)
        wait_until(lambda: writer.committed > before + 20)
        come_back()
        told(outboxd, lambda status: status["breaker"]["state"] == "closed")
        wait_until(lambda: writer.committed > before + 40)
    rest.arrives()
    assert "wait safely in Postgres" in away["verdict"]
    states = [line["event"] for line in outboxd.said() if line["event"].startswith("breaker_")]
    assert states[:2] == ["breaker_opened", "breaker_half_opened"]
    assert states[-2:] == ["breaker_half_opened", "breaker_closed"]


def plot(supabase: EmbeddedSupabase, fault: Fault | None = None) -> None:
    supabase.gateway.fault = fault


def test_an_outage_is_seen_on_every_page_and_gone_afterwards(
    rest: Pair, supabase: EmbeddedSupabase, start: Start
) -> None:
    """Within seconds metrics, readiness and status speak of the outage and of what waits; then they clear."""
    outboxd = streaming(start(rest.settings))
    supabase.stop_postgrest()
    rest.write(STORIES, 5)
    wait_until(lambda: measured(outboxd, _STATE.format("open")) == 1)
    wait_until(lambda: measured(outboxd, "outboxd_backlog_changes") == 5)
    lag = measured(outboxd, "outboxd_lag_seconds")
    wait_until(lambda: measured(outboxd, "outboxd_lag_seconds") > lag > 0)
    status = told(outboxd, lambda status: status["backlog_changes"] == 5)
    assert "the target answered 503" in status["problem"]
    assert status["verdict"].startswith("interrupted: ")
    assert "5 changes wait safely in Postgres" in status["verdict"]
    assert status["breaker"]["last_error"] == "the target answered 503"
    assert outboxd.get("/livez")[0] == 200
    ready, body = outboxd.get("/readyz")
    assert ready == 200  # this process does what it can: another one could do no better
    assert json.loads(body)["breaker"] != "closed"
    supabase.start_postgrest()
    wait_until(lambda: measured(outboxd, _STATE.format("closed")) == 1)
    wait_until(lambda: measured(outboxd, "outboxd_backlog_changes") == 0)
    assert measured(outboxd, "outboxd_lag_seconds") == 0
    told(outboxd, lambda status: status["verdict"] == "in sync: nothing needs you")
    rest.arrives(0)


def test_a_target_database_that_restarts_is_found_again(direct: Pair, start: Start) -> None:
    """Over a direct connection, too: the target's Postgres restarts under load and nothing is lost."""
    outboxd = streaming(start(direct.settings))
    with writing(direct) as writer:
        wait_until(lambda: direct.mirrored() > 0)
        direct.target.cluster.stop()
        told(outboxd, lambda status: status["breaker"]["state"] == "open")
        direct.target.cluster.start()
        before = writer.committed
        wait_until(lambda: writer.committed > before + 20)
    direct.arrives()
    assert measured(outboxd, _OPENED) >= 1


def test_a_source_that_restarts_is_found_again(direct: Pair, start: Start) -> None:
    """The source's Postgres goes away and is back: the daemon says so meanwhile, leads again, and carries on."""
    outboxd = streaming(start(direct.settings))
    direct.write(STORIES, 5)
    direct.arrives()
    direct.source.cluster.stop()
    gone = told(outboxd, lambda status: status["problem"])
    assert "source" in gone["problem"]
    wait_until(lambda: outboxd.get("/readyz")[0] == 503)
    assert outboxd.get("/livez")[0] == 200
    direct.source.cluster.start()
    direct.write(STORIES, 5)
    direct.arrives()
    told(outboxd, lambda status: status["problem"] is None and status["leads"])
    assert outboxd.get("/readyz")[0] == 200


def test_a_refused_change_waits_and_says_why_until_it_is_mended(rest: Pair, start: Start) -> None:
    """What the target refuses is neither skipped nor lost: its table is out, which is said with the statement that mends it, and
    comes back by itself."""
    outboxd = streaming(start(rest.settings))
    with rest.target.connect() as conn:
        conn.execute('revoke insert on "Story" from supabase_owner, service_role')
    rest.write(STORIES, 3)
    status = told(outboxd, lambda status: any(copy["state"] == "out" for copy in status["copies"]))
    assert 'public."Story" is out, the others flow' in status["verdict"]
    assert 'grant insert on public."Story" to supabase_owner' in status["verdict"]
    assert outboxd.get("/readyz")[0] == 200
    assert rest.mirrored() == 0
    with rest.target.connect() as conn:
        conn.execute('grant insert on "Story" to supabase_owner, service_role')
    told(outboxd, lambda status: [copy["state"] for copy in status["copies"]] == ["done"])
    rest.arrives()
    told(outboxd, lambda status: status["state"] == "streaming")
