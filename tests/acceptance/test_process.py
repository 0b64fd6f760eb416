"""The process as its supervisor knows it: signals, exit codes, sd_notify, its pages, its log."""

import json
import re
import signal
from pathlib import Path

import pytest

from daemon.demo.child import Outboxd
from daemon.demo.faults import Fault
from daemon.demo.process import free_port
from daemon.demo.supabase import EmbeddedSupabase
from tests.acceptance.conftest import STORIES, Pair, Start, ended, measured, streaming, wait_until


def test_sigterm_carries_what_was_committed_before_and_exits_0(direct: Pair, start: Start) -> None:
    """Changes committed before SIGTERM are on the target when the process has ended, though they fill many batches."""
    outboxd = streaming(start({**direct.settings, "batch_changes": "200"}))
    outboxd.send(signal.SIGSTOP)
    direct.write(STORIES, 1000)
    outboxd.send(signal.SIGTERM)
    outboxd.send(signal.SIGCONT)
    assert ended(outboxd) == 0
    assert direct.mirrored() == 1000
    assert [line["event"] for line in outboxd.said()][-1] == "daemon_stopped"


def test_ctrl_c_is_a_clean_end_too(direct: Pair, start: Start) -> None:
    """SIGINT ends the process as SIGTERM does."""
    outboxd = streaming(start(direct.settings))
    outboxd.send(signal.SIGINT)
    assert ended(outboxd) == 0


def test_a_second_signal_kills(rest: Pair, supabase: EmbeddedSupabase, start: Start) -> None:
    """While the first SIGTERM waits for an answer from the target, a second one ends the process at once."""
    outboxd = streaming(start(rest.settings))
    supabase.gateway.fault = Fault.delay(25, path="rpc/outboxd")
    rest.write(STORIES, 1)
    wait_until(lambda: rest.mirrored() == 1)
    outboxd.send(signal.SIGTERM)
    wait_until(lambda: any(line["event"] == "stop_requested" for line in outboxd.said()))
    assert outboxd.returncode is None
    outboxd.send(signal.SIGTERM)
    assert ended(outboxd, 5) == -signal.SIGTERM


def test_until_idle_applies_what_there_is_and_exits_0(direct: Pair, start: Start) -> None:
    """`run --until-idle` ends by itself once everything committed has arrived."""
    direct.write(STORIES, 300)
    outboxd = start({**direct.settings, "batch_changes": "100"}, "run", "--until-idle")
    assert ended(outboxd) == 0
    direct.arrives(0)
    assert {"event": "drained", "changes": 300}.items() <= outboxd.said()[-1].items()


@pytest.mark.parametrize("away", ["source", "target"])
def test_until_idle_exits_75_when_a_store_is_away(rest: Pair, start: Start, away: str) -> None:
    """`run --until-idle` says which store does not answer, and that trying again later may help."""
    nobody = free_port()
    gone = {"source_dsn": f"postgresql://postgres@127.0.0.1:{nobody}/app", "supabase_url": f"http://127.0.0.1:{nobody}"}
    setting = {"source": "source_dsn", "target": "supabase_url"}[away]
    outboxd = start({**rest.settings, setting: gone[setting]}, "run", "--until-idle")
    assert ended(outboxd) == 75
    (failed,) = [line for line in outboxd.said() if line["event"] == "daemon_failed"]
    assert away in f"{failed['error']} {failed['advice']}"


def test_bad_settings_are_named_all_at_once_and_exit_78(start: Start) -> None:
    """One message names every bad setting with an example, shows no traceback and repeats no secret."""
    outboxd = start(
        {"source_dsn": "mysql://app:hunter2@db/app", "supabase_key": "sb_publishable_hunter2", "relay": "Main!"}
    )
    assert ended(outboxd) == 78
    said = outboxd.last_words()
    for setting in ("source_dsn", "supabase_key", "supabase_url", "relay"):
        assert re.search(rf"^  {setting} (must|is|should)", said, re.MULTILINE), (setting, said)
    assert said.count("the configuration has 4 problems") == 1
    assert said.count("example:") == 4
    assert "Traceback" not in said
    assert "hunter2" not in said


def test_its_pages_tell_the_truth_while_all_is_well(direct: Pair, start: Start) -> None:
    """/livez, /readyz, /metrics and /api/status agree with what was written, and only this machine may ask."""
    outboxd = streaming(start(direct.settings))
    direct.write(STORIES, 7)
    direct.arrives()
    ((installation,),) = direct.ask(direct.source, "select id::text from outbox.installation")
    whose = f'"relay":"main","installation":"{installation}"'
    assert outboxd.get("/livez") == (200, f'{{"alive":true,{whose}}}')
    code, body = outboxd.get("/readyz")
    assert (code, json.loads(body)["ready"]) == (200, True)
    applied = 'outboxd_changes_applied_total{op="upsert",table="public.\\"Story\\""}'
    wait_until(lambda: measured(outboxd, applied) == 7)
    wait_until(lambda: measured(outboxd, "outboxd_backlog_changes") == 0)
    wait_until(lambda: (outboxd.status() or {})["verdict"] == "in sync: nothing needs you")
    status = outboxd.status() or {}
    assert (status["leads"], status["applied_changes"], status["breaker"]["state"]) == (True, 7, "closed")
    assert outboxd.get("/nowhere")[0] == 404
    listening = Path("/proc/net/tcp").read_text().splitlines()
    (where,) = [line.split()[1] for line in listening if f":{outboxd.port:04X} " in line and line.split()[3] == "0A"]
    assert where == f"0100007F:{outboxd.port:04X}"


def test_a_port_that_is_taken_is_said_in_one_sentence(direct: Pair, start: Start) -> None:
    """A second daemon on the same admin port ends with 78 and names the setting."""
    first = streaming(start(direct.settings))
    second = start({**direct.settings, "admin_port": str(first.port)})
    assert ended(second) == 78
    assert "OUTBOXD_ADMIN_PORT" in second.last_words()
    assert "Traceback" not in second.last_words()


def test_when_the_leader_is_killed_another_takes_over(direct: Pair, start: Start) -> None:
    """Of two daemons one leads and one stands by; kill -9 of the leader makes the other lead within seconds."""
    leader = streaming(start(direct.settings))
    other = start(direct.settings)
    wait_until(lambda: (other.status() or {}).get("state") == "standby")
    assert (other.status() or {})["verdict"] == "standing by: another outboxd leads"
    assert other.get("/readyz")[0] == 200
    assert measured(other, "outboxd_leader") == 0
    direct.write(STORIES, 10)
    direct.arrives()
    leader.kill()
    direct.write(STORIES, 10)
    direct.arrives()
    assert measured(other, "outboxd_leader") == 1
    assert (other.status() or {})["epoch"] == 2


def test_a_second_daemon_waits_while_until_idle_refuses(direct: Pair, start: Start) -> None:
    """`run --until-idle` beside a leader ends with 75 and says that the work is being done already."""
    streaming(start(direct.settings))
    second = start(direct.settings, "run", "--until-idle")
    assert ended(second) == 75
    assert "another outboxd leads" in second.last_words()


CANARY = "canary-3f9c1e"


def test_no_value_and_no_secret_leaves_through_log_metrics_or_status(
    rest: Pair, supabase: EmbeddedSupabase, start: Start
) -> None:
    """Rows and keys full of canaries, a refused row and an outage: none of it appears in any output."""
    outboxd = streaming(start({**rest.settings, "log_level": "debug", "source_dsn": _with_password(rest.source.dsn)}))
    with rest.target.connect() as conn:
        conn.execute('alter table "Story" add constraint "no_canary" check (title not like \'%refused%\')')
    story = 'insert into "Story" ("id", "title", "authorEmail", "updatedAt") values (gen_random_uuid(), %s, %s, now())'
    rest.write(story, CANARY, CANARY)
    rest.arrives()
    supabase.stop_postgrest()
    scenario = 'insert into "Scenario" ("id", "storyId", "position", "summary", "updatedAt") select %s, "id", 1, %s, now() from "Story"'
    rest.write(scenario, f"key-{CANARY}", CANARY)
    wait_until(lambda: (outboxd.status() or {})["problem"])
    supabase.start_postgrest()
    rest.arrives()
    rest.write(story, f"refused {CANARY}", CANARY)
    wait_until(lambda: (outboxd.status() or {})["held_keys"] == 1)
    rest.write("""select outbox.on_error('public."Story"', 'halt')""")
    rest.write(story, f"refused again {CANARY}", CANARY)
    wait_until(lambda: (outboxd.status() or {})["state"] == "paused")
    problem = (outboxd.status() or {})["problem"]
    assert "no_canary" in problem
    pages = [outboxd.get(page)[1] for page in ("/livez", "/readyz", "/metrics", "/api/status")]
    assert outboxd.stop() == 0
    everything = "\n".join([outboxd.log.read_text(), *pages])
    for secret in (CANARY, supabase.secret_key, supabase.service_jwt, supabase.keys.jwt_secret, "hunter2"):
        assert secret not in everything


def _with_password(dsn: str) -> str:
    return dsn.replace("://postgres@", "://postgres:hunter2@")


def test_the_log_is_json_with_one_line_a_batch(direct: Pair, start: Start) -> None:
    """Every line is JSON with timestamp, level and event; every batch has one line that says what it did."""
    outboxd = streaming(start({**direct.settings, "batch_changes": "100", "verify_interval": "0"}))
    outboxd.send(signal.SIGSTOP)
    for _ in range(3):
        direct.write(STORIES, 100)
    outboxd.send(signal.SIGCONT)
    direct.arrives()
    assert outboxd.stop() == 0
    lines = [json.loads(line) for line in outboxd.log.read_text().splitlines()]
    assert all({"timestamp", "level", "event"} <= line.keys() for line in lines)
    batches = [line for line in lines if line["event"] == "batch_applied"]
    assert [(line["batch_no"], line["changes"], line["gear"], line["torn"]) for line in batches] == [
        (1, 100, 1, 0), (2, 100, 1, 0), (3, 100, 1, 0)
    ]  # fmt: skip
    assert all(line["lag_s"] > 0 and line["duration_s"] > 0 for line in batches)


def test_python_m_daemon_is_outboxd(start: Start) -> None:
    """The package runs as a module too, where no command is on PATH."""
    outboxd: Outboxd = start({}, "version", "--json")
    assert ended(outboxd) == 0
    assert json.loads(outboxd.last_words())["outboxd"]


@pytest.mark.parametrize("setting", ["retention", "request_timeout"])
@pytest.mark.parametrize("value", ["inf", "1e300"])
def test_a_number_without_an_end(direct: Pair, start: Start, setting: str, value: str) -> None:
    """Either refused as bad configuration, or it runs."""
    daemon = start({**direct.settings, setting: value})
    wait_until(lambda: daemon.returncode is not None or (daemon.status() or {}).get("state") == "streaming")
    if daemon.returncode is not None:
        assert daemon.returncode == 78, daemon.last_words()
        return
    direct.write(STORIES, 3)
    direct.arrives()
    assert "Traceback" not in daemon.last_words()
    assert daemon.returncode is None
