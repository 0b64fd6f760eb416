"""Disabled, degraded, full: one value on every page; settings that are mended while the daemon runs."""

import json
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from daemon.demo.child import Outboxd
from daemon.demo.keys import ApiKeys
from daemon.demo.stage import TABLES
from daemon.demo.supabase import EmbeddedSupabase
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import STORIES, Pair, Start, ended, measured, streaming, wait_until
from tests.canaries import assert_clean
from tests.databases import Database, clone

PAGES = ("/livez", "/readyz", "/metrics", "/api/status")


def mode(outboxd: Outboxd) -> str:
    """The mode, which status, metrics and readiness must all say."""
    (exported,) = re.findall(r'^outboxd_mode{mode="(\w+)"} 1.0$', outboxd.get("/metrics")[1], re.MULTILINE) or [""]
    said = json.loads(outboxd.get("/readyz")[1] or "{}").get("mode")
    told = (outboxd.status() or {}).get("mode")
    return str(told) if said == exported == told else ""


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


def modes(outboxd: Outboxd) -> list[tuple[str | None, str]]:
    """What the log says of changes of the mode since the last look."""
    return [(line["before"], line["mode"]) for line in outboxd.said() if line["event"] == "mode_changed"]


def hang_up(outboxd: Outboxd) -> dict[str, Any]:
    """SIGHUP; the line that answers it."""
    outboxd.said()
    outboxd.send(signal.SIGHUP)
    answers = ("settings_reloaded", "settings_refused")
    return wait_until(lambda: next((line for line in outboxd.said() if line["event"] in answers), {}))


@pytest.fixture
def elsewhere(_target_template: Database, run_folder: Path) -> Iterator[EmbeddedSupabase]:
    """Another project, with the application's tables mapped and nothing in them."""
    with clone(_target_template) as database:
        database.install("example_mirror.sql")
        with database.connect() as conn:
            for table in TABLES:
                conn.execute("select outboxd.map(%s::regclass)", (table,))
        with EmbeddedSupabase(database.cluster, database.name, run_folder) as project:
            yield project


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
    assert measured(outboxd, "outboxd_leader") == 0
    assert measured(outboxd, 'outboxd_retries_total{reason="auth"}') == 0
    assert outboxd.get("/livez")[0] == 200
    (changed,) = [line for line in outboxd.said() if line["event"] == "mode_changed"]
    assert (changed["level"], changed["mode"]) == ("warning", "disabled")
    assert "supabase_key is missing" in changed["because"]
    code, body = outboxd.get("/readyz")
    assert code == 503
    why = json.loads(body)["problem"]
    assert "https://<project-ref>.supabase.co" in why
    assert "supabase_key is missing" in why
    said = Cli(without(rest, "supabase_url", "supabase_key"))("status", "--json", admin_port=str(outboxd.port))
    assert (said.code, said.json()["mode"], said.json()["backlog_changes"]) == (3, "disabled", 5)
    assert outboxd.stop() == 0


def test_a_key_that_is_written_makes_it_full(
    rest: Pair, supabase: EmbeddedSupabase, start: Start, folder: Path
) -> None:
    """The address in outboxd.toml, the key in a file; SIGHUP, and everything that waited arrives. No secret is told."""
    key = folder / "key"
    settings = {**without(rest, "supabase_url", "supabase_key"), "supabase_key_file": str(key), "log_level": "debug"}
    outboxd = start(settings)
    rest.write(STORIES, 5)
    becomes(outboxd, "disabled")
    put(folder / "outboxd.toml", f'supabase_url = "{supabase.url}"\n')
    reloaded = hang_up(outboxd)
    assert (reloaded["applied"], reloaded["lacking"]) == ([], ["supabase_key"])
    assert mode(outboxd) == "disabled"
    put(key, supabase.secret_key)
    reloaded = hang_up(outboxd)
    assert (reloaded["applied"], reloaded["lacking"]) == (["supabase_url", "supabase_key"], [])
    rest.arrives()
    becomes(outboxd, "full")
    wait_until(lambda: (outboxd.status() or {})["verdict"] == "in sync: nothing needs you")
    assert outboxd.get("/readyz")[0] == 200
    said = {page: outboxd.get(page)[1] for page in PAGES} | {"log": outboxd.log.read_text()}
    assert_clean(said, supabase.secret_key)
    assert outboxd.stop() == 0


def test_a_disabled_daemon_looks_again_by_itself(
    rest: Pair, supabase: EmbeddedSupabase, start: Start, folder: Path
) -> None:
    """Nobody sends a signal: the files are looked at every 15 s."""
    key = folder / "key"
    outboxd = start({**without(rest, "supabase_key"), "supabase_key_file": str(key)})
    rest.write(STORIES, 2)
    becomes(outboxd, "disabled")
    put(key, supabase.secret_key)
    becomes(outboxd, "full")
    rest.arrives()
    assert modes(outboxd) == [(None, "disabled"), ("disabled", "full")]


def test_a_disabled_daemon_leaves_the_lead_to_one_that_can(rest: Pair, start: Start, folder: Path) -> None:
    """Its host was given no key: it waits beside the other, keeps it from nothing, and says that it is not ready. Whoever
    counts standbys does not count it, until it has one."""
    disabled = start({**without(rest, "supabase_key"), "supabase_key_file": str(folder / "key")})
    becomes(disabled, "disabled")
    leader = streaming(start(rest.settings))
    rest.write(STORIES, 3)
    rest.arrives()
    assert mode(disabled) == "disabled"
    assert disabled.get("/readyz")[0] == 503
    assert (measured(leader, "outboxd_leader"), measured(disabled, "outboxd_leader")) == (1, 0)
    told = Cli(rest.settings)("status", "--json").json()
    assert (told["standbys"], waiting(told["disabled"])) == ([], [disabled.pid])
    wait_until(lambda: waiting((leader.status() or {})["disabled"]) == [disabled.pid])
    put(folder / "key", rest.settings["supabase_key"])
    disabled.send(signal.SIGHUP)
    wait_until(lambda: waiting((leader.status() or {})["standbys"]) == [disabled.pid], 60)
    assert Cli(rest.settings)("status", "--json").json()["disabled"] == []


def waiting(told: list[dict[str, Any]]) -> list[int]:
    return [int(one["who"].rpartition(":")[2]) for one in told]


def test_a_key_that_is_exchanged_is_found_after_a_401(
    rest: Pair, supabase: EmbeddedSupabase, start: Start, folder: Path
) -> None:
    """The file has the new key when the old one is revoked: the refusal is enough, nobody has to do anything."""
    key = put(folder / "key", supabase.secret_key)
    outboxd = streaming(start({**without(rest, "supabase_key"), "supabase_key_file": str(key)}))
    rest.write(STORIES, 2)
    rest.arrives()
    new = ApiKeys(supabase.keys.jwt_secret)
    put(key, new.secret)
    supabase.gateway.keys = new
    rest.write(STORIES, 2)
    rest.arrives()
    assert becomes(outboxd, "full")["state"] == "streaming"
    lines = outboxd.said()
    (reloaded,) = [line for line in lines if line["event"] == "settings_reloaded"]
    assert reloaded["applied"] == ["supabase_key"]
    assert len([line for line in lines if line["event"] == "turn_failed"]) <= 2
    assert_clean({"log": outboxd.log.read_text()}, new.secret, supabase.secret_key)


def test_a_key_that_is_refused_disables_until_another_is_there(
    rest: Pair, supabase: EmbeddedSupabase, start: Start, folder: Path
) -> None:
    """Paused and disabled with one sentence; one that is refused as well changes nothing; the right one is found."""
    key = put(folder / "key", supabase.secret_key)
    settings = {**without(rest, "supabase_key"), "supabase_key_file": str(key)}
    outboxd = streaming(start(settings))
    new = ApiKeys(supabase.keys.jwt_secret)
    supabase.gateway.keys = new
    rest.write(STORIES, 3)
    status = becomes(outboxd, "disabled")
    wait_until(lambda: measured(outboxd, "outboxd_backlog_changes") == 3)
    assert status["state"] == "paused"
    assert "the target answered 401: the target does not accept the key" in status["mode_because"]
    assert outboxd.get("/readyz")[0] == 503
    assert Cli(settings)("status", admin_port=str(outboxd.port)).code == 3
    assert measured(outboxd, 'outboxd_breaker_state{breaker="target",state="closed"}') == 1
    put(key, ApiKeys().secret)
    assert hang_up(outboxd)["applied"] == ["supabase_key"]
    becomes(outboxd, "disabled")
    put(key, new.secret)
    rest.arrives(40)
    becomes(outboxd, "full")


def test_a_direct_address_is_exchanged_as_well(direct: Pair, start: Start, folder: Path) -> None:
    """Over a direct connection: a role that is refused disables, the address in the file is found to be another."""
    wrong = direct.settings["target_dsn"].replace("://supabase_owner@", "://nobody_there@")
    assert wrong != direct.settings["target_dsn"]
    dsn = put(folder / "dsn", wrong)
    outboxd = start({**without(direct, "target_dsn"), "target_dsn_file": str(dsn)})
    direct.write(STORIES, 2)
    assert becomes(outboxd, "disabled")["state"] == "paused"
    put(dsn, direct.settings["target_dsn"])
    direct.arrives(40)
    becomes(outboxd, "full")


def test_supabase_unreachable_is_degraded(rest: Pair, supabase: EmbeddedSupabase, start: Start) -> None:
    """Since when, and what waits; ready all the same; also when it starts that way. Then full again."""
    outboxd = streaming(start(rest.settings))
    rest.write(STORIES, 3)
    rest.arrives()
    assert outboxd.stop() == 0
    supabase.stop_postgrest()
    rest.write(STORIES, 5)
    outboxd = start(rest.settings)
    status = becomes(outboxd, "degraded")
    wait_until(lambda: measured(outboxd, "outboxd_backlog_changes") == 5)
    wait_until(lambda: measured(outboxd, "outboxd_lag_seconds") > 1)
    assert "503" in status["mode_because"]
    since = measured(outboxd, "outboxd_mode_since_timestamp_seconds")
    assert outboxd.get("/readyz")[0] == 200
    said = Cli(rest.settings)("status", "--json", admin_port=str(outboxd.port))
    assert (said.code, said.json()["mode"], said.json()["backlog_changes"]) == (75, "degraded", 5)
    assert measured(outboxd, "outboxd_mode_since_timestamp_seconds") == since
    supabase.start_postgrest()
    becomes(outboxd, "full")
    rest.arrives()
    assert modes(outboxd)[-1] == ("degraded", "full")


def test_another_project_begins_anew(
    rest: Pair, supabase: EmbeddedSupabase, elsewhere: EmbeddedSupabase, start: Start, folder: Path
) -> None:
    """Another address and key at SIGHUP: the empty project is claimed and gets all the outbox has; the log says so."""
    put(folder / "outboxd.toml", f'supabase_url = "{supabase.url}"\nsupabase_key = "{supabase.secret_key}"\n')
    settings = {**without(rest, "supabase_url", "supabase_key"), "verify_interval": "0"}  # batches are counted below
    outboxd = streaming(start(settings))
    rest.write(STORIES, 4)
    rest.arrives()
    put(folder / "outboxd.toml", f'supabase_url = "{elsewhere.url}"\nsupabase_key = "{elsewhere.secret_key}"\n')
    assert hang_up(outboxd)["applied"] == ["supabase_url", "supabase_key"]
    rest.write(STORIES, 3)
    other = Database(elsewhere.cluster, elsewhere.database, "supabase_owner")
    with closing(Pair(rest.source, other, settings)) as moved:
        moved.arrives()
        assert moved.mirrored() == 7
    assert rest.mirrored() == 4
    becomes(outboxd, "full")
    (restored,) = [line for line in outboxd.said() if line["event"] == "target_restored"]
    assert (restored["batch_no"], restored["batches"]) == (0, 1)
    assert outboxd.stop() == 0


def test_a_bad_configuration_at_sighup_changes_nothing(
    rest: Pair, supabase: EmbeddedSupabase, start: Start, folder: Path
) -> None:
    """What works is not given up for a typo; the log names the setting and repeats no value."""
    key = put(folder / "key", supabase.secret_key)
    outboxd = streaming(start({**without(rest, "supabase_key"), "supabase_key_file": str(key)}))
    for file, content, setting in (
        (folder / "outboxd.toml", 'relay = "Main!hunter2"', "relay"),
        (folder / "outboxd.toml", "batch_chnages = 5", "batch_chnages"),
        (key, "sb_publishable_hunter2", "supabase_key"),
    ):
        put(file, content)
        refused = hang_up(outboxd)
        assert refused["event"] == "settings_refused"
        assert setting in refused["error"]
        assert refused["advice"] == "what was in force stays in force"
        (folder / "outboxd.toml").unlink(missing_ok=True)
    rest.write(STORIES, 2)
    rest.arrives()
    assert mode(outboxd) == "full"
    assert "hunter2" not in outboxd.log.read_text()


def test_sighup_applies_what_may_change_and_names_the_rest(direct: Pair, start: Start, folder: Path) -> None:
    """Batches get smaller, debug lines appear; what needs a restart is said; systemd hears RELOADING, then READY."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(folder / "notify"))
        notify.settimeout(30)
        outboxd = streaming(start(direct.settings, environment={"NOTIFY_SOCKET": str(folder / "notify")}))
        put(folder / "outboxd.toml", 'batch_changes = 10\nlog_level = "debug"\nrow_bytes = 100000\nretention = 7200\n'
            "[breaker]\nconsecutive_failures = 5\n")  # fmt: skip
        reloaded = hang_up(outboxd)
        assert reloaded["applied"] == ["batch_changes", "retention", "breaker", "log_level"]
        assert reloaded["restart_needed"] == ["row_bytes"]
        told: list[str] = []

        def reloads() -> bool:
            """RELOADING, and READY after it. STATUS comes in between, now and then."""
            told.extend(notify.recv(4096).decode().split("\n"))
            return "RELOADING=1" in told and "READY=1" in told[told.index("RELOADING=1") :]

        wait_until(reloads)
        assert told[told.index("RELOADING=1") + 1].startswith("MONOTONIC_USEC=")
    direct.write(STORIES, 35)
    direct.arrives()
    batches = [line for line in outboxd.said() if line["event"] == "batch_applied"]
    assert [line["changes"] for line in batches] == [10, 10, 10, 5]


@pytest.mark.parametrize("option", ["--strict", "--until-idle"])
def test_strict_exits_78(rest: Pair, start: Start, option: str) -> None:
    """As before there were modes; also when there is nothing to wait for."""
    outboxd = start(without(rest, "supabase_key"), "run", option)
    assert ended(outboxd) == 78
    assert "supabase_key is missing: set OUTBOXD_SUPABASE_KEY" in outboxd.last_words()


def test_a_key_that_everybody_may_read_is_refused(
    rest: Pair, supabase: EmbeddedSupabase, start: Start, folder: Path
) -> None:
    """Disabled, with the command that mends it; what the command does is enough."""
    key = put(folder / "key", supabase.secret_key)
    key.chmod(0o644)
    settings = {**without(rest, "supabase_key"), "supabase_key_file": str(key)}
    outboxd = start(settings)
    status = becomes(outboxd, "disabled")
    assert f"every user of this machine may read: chmod o-r {key}" in status["mode_because"]
    assert ended(start(settings, "run", "--strict")) == 78
    key.chmod(0o640)
    assert hang_up(outboxd)["applied"]
    becomes(outboxd, "full")
    assert_clean({"log": outboxd.log.read_text()}, supabase.secret_key)
