"""The alert rules: promtool accepts them, each fires, stays quiet and clears; they ask for metrics that there are; and a
real Prometheus over a real daemon says so when the target goes away."""

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml

from daemon.demo.child import Outboxd
from daemon.demo.stage import TABLES
from daemon.demo.supabase import EmbeddedSupabase
from tests.acceptance.conftest import QUICK, STORIES
from tests.databases import Database
from tests.deploy import prometheus, promql
from tests.waiting import wait_until

# The names that the runbook has an anchor for, and the dashboard a panel.
CRITICAL = {
    "OutboxdDown", "OutboxdBreakerOpen", "OutboxdBothStoresUnreachable", "OutboxdLagCritical", "OutboxdNoLeader",
    "OutboxdTwoLeaders", "OutboxdHeartbeatMissing", "OutboxdStalled", "OutboxdFreshnessBurning",
    "OutboxdRowsDifferCritical",
}  # fmt: skip
WARNING = {
    "OutboxdLag", "OutboxdTargetSlow", "OutboxdFailures", "OutboxdTableOut", "OutboxdDeadLetters", "OutboxdListenerDown",
    "OutboxdLongTransaction", "OutboxdOutboxGrowing", "OutboxdRestarting", "OutboxdFreshnessBurning", "OutboxdDisabled",
    "OutboxdDown", "OutboxdRowsDiffer", "OutboxdUncaptured", "OutboxdVerificationStale",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _has_prometheus(request: pytest.FixtureRequest) -> None:
    if "promtool" in request.node.name or "real" in request.node.name:
        try:
            prometheus.program("prometheus")
        except prometheus.MissingPrometheus as missing:
            pytest.skip(str(missing))


# -- as promtool reads them ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yaml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yaml"),
        ("test", "rules", "alerts_days_test.yaml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    code, said = prometheus.promtool(*arguments)
    assert code == 0, said
    assert "FAILED" not in said


def test_promtool_reads_the_rules_in_a_hurry(tmp_path: Path) -> None:
    """What is rehearsed with is accepted as well, and differs by numbers alone."""
    short = tmp_path / "alerts.yaml"
    short.write_text(yaml.safe_dump(prometheus.shortened()))
    code, said = prometheus.promtool("check", "rules", short)
    assert code == 0, said
    for rule, hurried in zip(
        prometheus.rules(), (r for g in prometheus.shortened()["groups"] for r in g["rules"]), strict=True
    ):
        assert _without_numbers(rule["expr"]) == _without_numbers(hurried["expr"])


@pytest.mark.parametrize(
    ("about", "right", "wrong", "misses"),
    [
        (  # as a first draft has it: it never fires
            "breaker: ",
            "avg_over_time(job:outboxd_breaker_closed:leader[5m]) < 0.5",
            'max by (job) (outboxd_breaker_state{breaker="target",state="open"}) == 1',
            "OutboxdBreakerOpen",
        ),
        ("rows differ: a takeover", "expr: job_table:outboxd_drift_known:ratio", "expr: job_table:outboxd_drift:ratio", "OutboxdRowsDiffer"),
        ("rows differ: a table is", "verification_tables:count > 0", "verification_tables:count > 9", "OutboxdRowsDiffer"),
        ("rows differ: extra rows", 'sum by (job, instance, table) (outboxd_drift_rows{kind="extra"})', "0", "OutboxdRowsDiffer"),
        ("uncaptured: a takeover", ' and on (job, instance) outboxd_leader == 1) > 0\n        for: 3m', ") > 0\n        for: 3m", "OutboxdUncaptured"),
        ("verification stale: each", ":bool[30m]) > 0.6", ":bool[30m]) > 0.99", "OutboxdVerificationStale"),
    ],
)  # fmt: skip
def test_a_wrong_rule_is_caught_by_promtool(about: str, right: str, wrong: str, misses: str, tmp_path: Path) -> None:
    """The tests of the rules can fail: half open mistaken for recovery, what was known forgotten at a takeover, …"""
    rules = prometheus.ALERTS.read_text()
    assert right in rules
    assert misses in _tested(tmp_path, rules.replace(right, wrong), about)


def test_every_alert_is_expected_by_a_test_and_seen_quiet(tmp_path: Path) -> None:
    """No alert without a test that sees it fire; that it clears is what every test ends with."""
    files = [yaml.safe_load(file.read_text()) for file in sorted(prometheus.DEPLOY.glob("alerts*_test.yaml"))]
    tests = [one for file in files for one in file["tests"]]
    seen: set[tuple[str, str]] = set()
    for one in tests:
        for expected in one["promql_expr_test"]:
            for sample in expected["exp_samples"]:
                name, severity = re.findall(r'"([^"]*)"', sample["labels"])
                seen.add((name, severity))
    assert seen == {(rule["alert"], rule["labels"]["severity"]) for rule in prometheus.alerts()}
    cleared = [one["name"] for one in tests if not one["promql_expr_test"][-1]["exp_samples"]]
    for name in CRITICAL | WARNING:
        fires = [t for t in tests if any(name in str(e["exp_samples"]) for e in t["promql_expr_test"])]
        assert any(one["name"] in cleared for one in fires), f"no test sees {name} clear"


def _tested(folder: Path, rules: str, about: str) -> str:
    """What promtool says of other rules: of the tests whose names begin so."""
    (folder / "alerts.yaml").write_text(rules)
    tests = folder / "alerts_test.yaml"
    written = yaml.safe_load((prometheus.DEPLOY / "alerts_test.yaml").read_text())
    chosen = [one for one in written["tests"] if one["name"].startswith(about)]
    tests.write_text(yaml.safe_dump({**written, "tests": chosen}))
    code, said = prometheus.promtool("test", "rules", tests)
    assert code != 0, "no test noticed"
    return said


def _without_numbers(expression: str) -> str:
    return re.sub(r"[\d.]+(?:ms|[smh])?(?:\s\*\s\d+)*(?:\s\^\s\d)?", "#", expression)


# -- what they say ---------------------------------------------------------------------------------------------


def test_every_alert_has_a_severity_a_summary_and_a_section_in_the_runbook() -> None:
    """And their names are those that the runbook and the dashboard know."""
    named: dict[str, set[str]] = {"critical": set(), "warning": set()}
    for rule in prometheus.alerts():
        named[rule["labels"]["severity"]].add(rule["alert"])
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"https://outboxd.example/RUNBOOK.md#{rule['alert'].lower()}"
        assert not re.search(r"\s{2}|\n", rule["annotations"]["description"]), rule["alert"]
    assert named == {"critical": CRITICAL, "warning": WARNING}


def test_every_metric_of_the_rules_is_one_of_the_daemons() -> None:
    """Names and label values: a rule on a series that never comes never fires."""
    known, recorded = promql.series(), {rule["record"] for rule in prometheus.rules() if "record" in rule}
    wrong = [said for rule in prometheus.rules() for said in promql.unknown(rule["expr"], known, recorded)]
    assert wrong == []


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ('outboxd_lag_secs{job="x"} > 60', ["outboxd_lag_secs is no metric of outboxd"]),
        ('max by (job) (outboxd_mode{mode="off"}) == 1', ['outboxd_mode has no series with mode="off"']),
        ('rate(outboxd_batch_changes_bucket{le="2"}[5m])', ['outboxd_batch_changes_bucket has no series with le="2"']),
        ('sum(outboxd_retries_total{reason=~"auth|contract"}) by (reason)', []),
        ('outboxd_held_keys{held="1"}', ['outboxd_held_keys has no series with held="1"']),
        (
            "rate(outboxd_changes_read_total[$__rate_interval]) * 1e3 and on (job) outbox_lag",
            ["outbox_lag is no metric of outboxd"],
        ),
        ('label_replace(up, "a", "$1", "b", "(.*)") unless job:recorded:x', []),
        ('outboxd_changes_applied_total{table="public.other", op!="upsert"}', []),
    ],
)
def test_what_no_daemon_has_is_named(expression: str, said: list[str]) -> None:
    """The reader of expressions itself."""
    assert promql.unknown(expression, promql.series(), {"job:recorded:x"}) == said


# -- a real one ------------------------------------------------------------------------------------------------


@pytest.fixture
def outboxd(source: Database, target: Database, supabase: EmbeddedSupabase, tmp_path: Path) -> Iterator[Outboxd]:
    """The daemon between the example application's database and a project, streaming."""
    source.install("example_app.sql")
    target.install("example_mirror.sql")
    with source.connect() as app, target.connect() as mirror:
        for table in TABLES:
            app.execute("select outbox.watch(%s::regclass)", (table,))
            mirror.execute("select outboxd.map(%s::regclass)", (table,))
    way = {"source_dsn": source.dsn, "supabase_url": supabase.url, "supabase_key": supabase.secret_key}
    one = Outboxd(tmp_path, {**QUICK, **way, "breaker__open_cap": "1.0", "heartbeat_interval": "1"})
    one.start()
    try:
        wait_until(lambda: (one.status() or {}).get("state") == "streaming", 40)
        yield one
    finally:
        one.stop()


def test_a_real_prometheus_tells_an_outage_and_its_end(
    outboxd: Outboxd, source: Database, supabase: EmbeddedSupabase, tmp_path: Path
) -> None:
    """The target goes away: Lag and BreakerOpen fire. It comes back: both clear, and nothing else is left."""
    with prometheus.running(tmp_path, [f"127.0.0.1:{outboxd.port}"]) as watching, psycopg.connect(source.dsn) as app:
        wait_until(lambda: [t["health"] for t in watching.targets()] == ["up"], 30)
        wait_until(lambda: watching.value("job:outboxd_lag:seconds") is not None, 30)
        supabase.stop_postgrest()
        app.execute(STORIES, (5,))
        app.commit()
        wait_until(
            lambda: {("OutboxdBreakerOpen", "critical"), ("OutboxdLag", "warning")} <= watching.firing().keys(), 60
        )
        fired = watching.firing()["OutboxdBreakerOpen", "critical"]
        assert fired["labels"] == {"alertname": "OutboxdBreakerOpen", "job": "outboxd", "severity": "critical"}
        assert fired["annotations"]["runbook_url"].endswith("#outboxdbreakeropen")
        supabase.start_postgrest()
        wait_until(lambda: not watching.firing(), 60)
        assert watching.unhealthy() == []
        assert (watching.value("outboxd_backlog_changes"), watching.value("outboxd_leader")) == (0, 1)
