"""What Prometheus is told: names and labels by the rules, true from the first scrape on, bounded, and per instance."""

import math
import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon import series as module
from daemon.metrics import Metrics
from daemon.verdict import KINDS
from outbox import __version__


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock) -> Metrics:
    return Metrics(clock=clock, wall=Clock(1_800_000_000.0))


def families(metrics: Metrics) -> dict[str, Any]:
    return {one.name: one for one in text_string_to_metric_families(metrics.render()[0].decode())}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """One sample, as Prometheus would read it; it must exist, and once."""
    (found,) = [
        sample.value
        for family in families(metrics).values()
        for sample in family.samples
        if sample.name == f"outboxd_{name}" and sample.labels == labels
    ]
    return float(found)


def labels_of(metrics: Metrics, name: str, label: str) -> set[str]:
    return {s.labels[label] for f in families(metrics).values() for s in f.samples if s.name == f"outboxd_{name}"}


def applied(metrics: Metrics, counts: dict[tuple[str, str], int], **more: Any) -> None:
    metrics.batch_applied(counts, **{"latencies": [], "seconds": 0.1, **more})


def test_names_follow_the_rules(metrics):
    """One prefix, base units, `_total` on counters and on nothing else, a sentence of help each."""
    applied(metrics, {("public.story", "upsert"): 1})
    ours = [one for name, one in families(metrics).items() if not name.startswith(("process_", "python_"))]
    assert len(ours) > 30
    for family in ours:
        assert re.fullmatch(r"outboxd_[a-z][a-z_]*[a-z]", family.name)
        assert re.fullmatch(r"[A-Z0-9].{8,}\.", family.documentation), family.name
        assert family.type != "unknown"
        assert not re.search(r"_(ms|millis|milliseconds|us|minutes|kb|mb|percent|events?|count)$", family.name)
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name
            assert "event" not in sample.name.replace("event_loop", "")


def test_labels_are_few_and_small(metrics):
    """No label but the agreed ones: no ids, no free text."""
    applied(metrics, {("public.story", "upsert"): 1})
    known = {"table", "op", "reason", "mode", "outcome", "query", "breaker", "state", "to", "stage", "level", "gear"}
    seen = {
        label
        for name, family in families(metrics).items()
        if name.startswith("outboxd_") and name != "outboxd_build_info"
        for sample in family.samples
        for label in sample.labels
    }
    assert seen == known | {"le"}


@pytest.mark.parametrize(
    ("name", "label", "values"),
    [
        ("state", "state", module.STATES),
        ("stage_duration_seconds_count", "stage", ("wait", "read", "plan", "apply")),
        ("changes_skipped_total", "reason", ("superseded", "duplicate", "out")),
        ("copy_tables", "state", ("wanted", "copying", "done", "out")),
        ("retries_total", "reason", module.RETRIES),
        (
            "target_request_duration_seconds_count",
            "mode",
            ("claim", "apply", "isolate", "cursor", "describe", "extra", "keys"),
        ),
        ("target_request_duration_seconds_count", "outcome", ("ok", "retryable", "refused")),
        ("source_query_duration_seconds_count", "query", ("read", "status")),
        ("breaker_transitions_total", "to", ("closed", "open", "half_open")),
        ("breaker_transitions_total", "breaker", ("target", "source")),
        ("breaker_rejected_total", "breaker", ("target", "source")),
        ("breaker_failure_ratio", "breaker", ("target", "source")),
        ("wakeups_total", "reason", ("notify", "poll", "backlog", "retry")),
        ("batches_total", "gear", ("1", "2", "3")),
        ("log_messages_total", "level", ("debug", "info", "warning", "error", "critical")),
    ],
)
def test_closed_label_sets_begin_at_zero(metrics, name, label, values):
    """The first fault after a start must show as a rate."""
    assert labels_of(metrics, name, label) == set(values)


def test_the_content_type_is_one_every_prometheus_reads(metrics):
    """Text format 0.0.4: nothing in ours needs a newer one."""
    body, kind = metrics.render()
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert body.endswith(b"\n")


def test_two_instances_do_not_meet(metrics):
    """Nothing is kept in the library's global registry."""
    other = Metrics("9.9.9")
    metrics.woken("notify")
    assert value(metrics, "wakeups_total", reason="notify") == 1
    assert value(other, "wakeups_total", reason="notify") == 0


def test_no_created_series_and_no_global_switch(metrics):
    """`_created` doubles the series; it is left out here without changing the library for everybody else."""
    from prometheus_client import CollectorRegistry, Counter, generate_latest

    assert b"_created" not in metrics.render()[0]
    foreign = CollectorRegistry()
    Counter("foreign", "Somebody else's.", registry=foreign)
    assert b"foreign_created" in generate_latest(foreign)


def test_the_build_is_named(metrics):
    """Which version runs is the first question of every incident."""
    (info,) = families(metrics)["outboxd_build_info"].samples
    assert info.labels["version"] == __version__
    assert info.labels["python"].startswith("3.")


def test_the_process_is_measured(metrics):
    """Memory, descriptors and start time come with it."""
    names = families(metrics)
    assert "process_resident_memory_bytes" in names
    assert "process_start_time_seconds" in names
    assert "python_gc_collections" in names
    assert "python_info" in names


@pytest.mark.parametrize("state", [None, *module.STATES])
def test_exactly_one_state_is_one(metrics, state):
    """From the start, and after each change."""
    for one in ("streaming", "paused", state):
        if state:
            metrics.set_state(one)
    samples = families(metrics)["outboxd_state"].samples
    assert {s.labels["state"]: s.value for s in samples if s.value} == {state or "starting": 1.0}
    assert len(samples) == 6


def test_an_unknown_state_is_a_bug(metrics):
    """Silently, no state at all would be 1; the one before stays."""
    metrics.set_state("streaming")
    with pytest.raises(ValueError, match="'asleep' is none of starting"):
        metrics.set_state("asleep")
    assert value(metrics, "state", state="streaming") == 1


@pytest.mark.parametrize("breaker", ["target", "source"])
def test_exactly_one_breaker_state_is_one(metrics, breaker):
    """Closed at first; a move shows in the state and in the counter, and leaves the other breaker alone."""
    for to in ("open", "half_open", "open"):
        metrics.breaker_changed(breaker, to)
    samples = families(metrics)["outboxd_breaker_state"].samples
    other = {"target": "source", "source": "target"}[breaker]
    assert {(s.labels["breaker"], s.labels["state"]) for s in samples if s.value} == {
        (breaker, "open"),
        (other, "closed"),
    }
    assert value(metrics, "breaker_transitions_total", breaker=breaker, to="open") == 2
    assert value(metrics, "breaker_transitions_total", breaker=breaker, to="closed") == 0


def test_breaker_numbers(metrics):
    """The ratio as it stands, and the calls that were not let out."""
    metrics.breaker_ratio("target", 0.25)
    metrics.breaker_rejected("target")
    metrics.breaker_rejected("target")
    assert value(metrics, "breaker_failure_ratio", breaker="target") == 0.25
    assert value(metrics, "breaker_rejected_total", breaker="target") == 2
    assert value(metrics, "breaker_rejected_total", breaker="source") == 0


def test_lag_is_unknown_before_the_first_look(metrics):
    """Neither 0, which says that all is well, nor a number that would alarm."""
    assert math.isnan(value(metrics, "lag_seconds"))
    assert math.isnan(value(metrics, "backlog_changes"))
    assert value(metrics, "lag_observed_timestamp_seconds") == 0
    assert metrics.lag.now() == (0.0, 0)


def test_lag_grows_while_nobody_looks(metrics, clock):
    """A hanging loop must not freeze the number that would show it."""
    metrics.lag.observe(2.5, 10)
    assert value(metrics, "lag_seconds") == 2.5
    clock.now += 60
    assert value(metrics, "lag_seconds") == 62.5
    assert value(metrics, "backlog_changes") == 10
    assert metrics.lag.now() == (62.5, 10)
    metrics.lag.observe(1.0, 3)
    assert value(metrics, "lag_seconds") == 1.0


def test_lag_does_not_grow_out_of_nothing(metrics, clock):
    """With no backlog there is no oldest change; the time of the last look tells how fresh that is."""
    metrics.lag.observe(0.0, 0)
    clock.now += 60
    assert value(metrics, "lag_seconds") == 0.0
    assert value(metrics, "lag_observed_timestamp_seconds") == 1_800_000_000.0


def test_lag_is_never_negative(metrics, clock):
    """A source clock that steps back does not make the target newer than the source."""
    metrics.lag.observe(-3.0, 1)
    clock.now += 1
    assert value(metrics, "lag_seconds") == 1.0


def test_lag_is_forgotten_on_standby(metrics, clock):
    """Who no longer leads no longer knows."""
    metrics.lag.observe(2.5, 10)
    metrics.lag.forget()
    clock.now += 60
    assert math.isnan(value(metrics, "lag_seconds"))
    assert metrics.lag.now() == (0.0, 0)


def test_a_batch_in_numbers(metrics):
    """Changes by table and op, the superseded apart, gear, size, time."""
    counts = {("public.story", "upsert"): 5, ("public.story", "delete"): 2, ("public.tag", "truncate"): 1}
    metrics.batch_read(8, 0.02)
    metrics.batch_applied(counts, latencies=[0.1] * 8, superseded=3, gear=2, torn=1, seconds=0.3)
    assert value(metrics, "changes_read_total") == 8
    assert value(metrics, "changes_applied_total", table="public.story", op="upsert") == 5
    assert value(metrics, "changes_applied_total", table="public.story", op="delete") == 2
    assert value(metrics, "changes_applied_total", table="public.tag", op="truncate") == 1
    assert value(metrics, "changes_skipped_total", reason="superseded") == 3
    assert value(metrics, "changes_skipped_total", reason="duplicate") == 0
    assert value(metrics, "batches_total", gear="2") == 1
    assert value(metrics, "batches_total", gear="1") == 0
    assert value(metrics, "transactions_torn_total") == 1
    assert value(metrics, "batch_changes_sum") == 8
    assert value(metrics, "stage_duration_seconds_sum", stage="read") == 0.02
    assert value(metrics, "source_query_duration_seconds_count", query="read") == 1
    assert value(metrics, "stage_duration_seconds_sum", stage="apply") == 0.3
    assert value(metrics, "last_applied_timestamp_seconds") == 1_800_000_000.0


def test_a_plain_batch(metrics):
    """Nothing superseded, whole transactions, first gear: what a caller need not say."""
    applied(metrics, {("public.story", "upsert"): 2})
    assert value(metrics, "batches_total", gear="1") == 1
    assert value(metrics, "changes_skipped_total", reason="superseded") == 0
    assert value(metrics, "changes_skipped_total", reason="duplicate") == 0
    assert value(metrics, "transactions_torn_total") == 0


def test_a_duplicate_counts_what_its_lost_answer_did_not(metrics):
    """The target has the changes: they count as applied, and as settled without a write of this request."""
    applied(metrics, {("public.story", "upsert"): 5}, superseded=3, duplicate=True)
    assert value(metrics, "changes_applied_total", table="public.story", op="upsert") == 5
    assert value(metrics, "changes_skipped_total", reason="duplicate") == 5
    assert value(metrics, "changes_skipped_total", reason="superseded") == 0


def test_latency_is_a_histogram_of_changes(metrics):
    """Each change is an observation, on the bound or beyond the last one, and none takes the sum back."""
    applied(metrics, {}, latencies=[0.005, 0.0051, 7200.0, -4.0])
    applied(metrics, {}, latencies=iter([0.005]))
    assert value(metrics, "change_latency_seconds_bucket", le="0.005") == 3
    assert value(metrics, "change_latency_seconds_bucket", le="0.01") == 4
    assert value(metrics, "change_latency_seconds_bucket", le="3600.0") == 4
    assert value(metrics, "change_latency_seconds_bucket", le="+Inf") == 5
    assert value(metrics, "change_latency_seconds_count") == 5
    assert value(metrics, "change_latency_seconds_sum") == pytest.approx(7200.0151)


def test_latency_looks_like_the_library_s_own(metrics):
    """Same spelling of the bounds: `le="5.0"`, which the alert rules match on."""
    own = labels_of(metrics, "stage_duration_seconds_bucket", "le")
    assert {"+Inf", "0.005", "1.0", "5.0", "30.0"} <= own
    assert {"+Inf", "0.005", "1.0", "5.0", "30.0"} <= labels_of(metrics, "change_latency_seconds_bucket", "le")


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("change_latency_seconds", 0.005, 3600.0),
        ("stage_duration_seconds", 0.002, 30.0),
        ("target_request_duration_seconds", 0.002, 30.0),
        ("batch_changes", 1.0, 10_000.0),
        ("request_size_bytes", 1e3, 1e7),
    ],
)
def test_buckets_span_what_can_happen(metrics, name, least, most):
    """From a quick answer to the deadline, from one change to the largest batch that can be set."""
    bounds = sorted({float(le) for le in labels_of(metrics, f"{name}_bucket", "le")})
    assert (bounds[0], bounds[-2], bounds[-1]) == (least, most, math.inf)


def test_the_label_table_is_capped(metrics):
    """Fifty tables have a name, the rest is one: no schema can flood Prometheus."""
    for number in range(60):
        applied(metrics, {(f"public.t{number}", "upsert"): 1})
    applied(metrics, {("public.t0", "upsert"): 1, ("public.t59", "upsert"): 1})
    tables = labels_of(metrics, "changes_applied_total", "table")
    assert tables == {f"public.t{number}" for number in range(50)} | {"other"}
    assert value(metrics, "changes_applied_total", table="other", op="upsert") == 11
    assert value(metrics, "changes_applied_total", table="public.t0", op="upsert") == 2


def test_watched_tables_begin_at_zero(metrics):
    """A table that never changed is there with 0, for each op."""
    metrics.tables_watched(["public.story"])
    for op in ("upsert", "delete", "truncate"):
        assert value(metrics, "changes_applied_total", table="public.story", op=op) == 0
    assert value(metrics, "copy_rows_total", table="public.story") == 0


def test_a_table_name_cannot_break_the_page(metrics):
    """Quotes, backslashes and newlines in an identifier are escaped."""
    name = 'public."a\\b\nc"'
    metrics.tables_watched([name])
    assert value(metrics, "changes_applied_total", table=name, op="upsert") == 0


@pytest.mark.parametrize(("reason", "counted"), [("ambiguous", "ambiguous"), ("source", "source"), ("new", "other")])
def test_retries_have_a_closed_set_of_reasons(metrics, reason, counted):
    """A kind of error nobody has thought of is counted, as other."""
    metrics.retried(reason)
    assert value(metrics, "retries_total", reason=counted) == 1
    assert labels_of(metrics, "retries_total", "reason") == set(module.RETRIES)


def test_every_kind_of_error_is_a_reason():
    """The kinds of `errors` and the reasons here are the same words."""
    from daemon.errors import Kind

    assert {str(kind) for kind in Kind} <= set(module.RETRIES)


def test_leadership_and_listener(metrics):
    """Both are gauges; a connection that comes back is counted, the first one is not."""
    steps = [(False, True), (True, True), (False, False), (False, False), (False, True), (True, True)]
    for leads, listening in steps:
        metrics.leadership(leads=leads, listening=listening)
    assert value(metrics, "leader") == 1
    assert value(metrics, "listener_connected") == 1
    assert value(metrics, "source_reconnects_total") == 1
    metrics.leadership(leads=False, listening=False)
    assert (value(metrics, "leader"), value(metrics, "listener_connected")) == (0, 0)


def test_the_source_in_numbers(metrics):
    """Positions, the transaction that holds things up, and the outbox's size; never analysed is no -1 rows."""
    metrics.source_health(oldest_transaction=12.5, rows=-1, size=8192.0, newest_id=77)
    metrics.cursor_moved(70)
    metrics.source_query("status", 0.01)
    assert value(metrics, "source_oldest_transaction_age_seconds") == 12.5
    assert value(metrics, "outbox_rows_estimate") == 0
    metrics.source_health(oldest_transaction=12.5, rows=40, size=8192.0, newest_id=77)
    assert value(metrics, "outbox_rows_estimate") == 40
    assert value(metrics, "outbox_size_bytes") == 8192
    assert (value(metrics, "source_change_id"), value(metrics, "cursor_change_id")) == (77, 70)
    assert value(metrics, "source_query_duration_seconds_count", query="status") == 1


def test_requests_to_the_target(metrics):
    """Each attempt has its outcome; only batches tell a size."""
    metrics.target_request("apply", "ok", 0.2, 5000)
    metrics.target_request("apply", "retryable", 30.0, 5000)
    metrics.target_request("cursor", "ok", 0.01, 40)
    assert value(metrics, "target_request_duration_seconds_count", mode="apply", outcome="ok") == 1
    assert value(metrics, "target_request_duration_seconds_sum", mode="apply", outcome="retryable") == 30.0
    assert value(metrics, "target_request_duration_seconds_count", mode="claim", outcome="ok") == 0
    assert value(metrics, "request_size_bytes_count") == 2
    assert value(metrics, "request_size_bytes_sum") == 10_000


def test_each_stage_is_timed_apart(metrics):
    """Where a turn's time went, by stage."""
    metrics.stage_took("plan", 0.25)
    assert value(metrics, "stage_duration_seconds_count", stage="plan") == 1
    assert value(metrics, "stage_duration_seconds_sum", stage="plan") == 0.25
    assert value(metrics, "stage_duration_seconds_count", stage="wait") == 0


def test_small_numbers(metrics):
    """Wake-ups, the event loop's delay, log lines by level; an odd level is not lost."""
    metrics.woken("poll")
    metrics.loop_lag(0.5)
    metrics.logged("warning")
    metrics.logged("notset")
    assert value(metrics, "wakeups_total", reason="poll") == 1
    assert value(metrics, "event_loop_lag_seconds") == 0.5
    assert value(metrics, "log_messages_total", level="warning") == 1
    assert value(metrics, "log_messages_total", level="error") == 1


def test_scraping_changes_nothing(metrics):
    """Two scrapes in a row tell the same."""
    applied(metrics, {("public.story", "upsert"): 1}, latencies=[0.1])

    def ours() -> list[str]:
        return [line for line in metrics.render()[0].decode().splitlines() if line.startswith("outboxd_")]

    assert ours() == ours()


def test_heartbeats_are_counted_apart(metrics):
    """0 and NaN before the first one; then each gauge by itself."""
    assert value(metrics, "heartbeat_interval_seconds") == 0
    assert value(metrics, "heartbeat_written_timestamp_seconds") == 0
    assert value(metrics, "heartbeat_applied_timestamp_seconds") == 0
    assert math.isnan(value(metrics, "heartbeat_latency_seconds"))
    metrics.heartbeat_every(10.0)
    metrics.heartbeat_written(1_799_999_990.0)
    metrics.heartbeat_arrived(0.25)
    assert value(metrics, "heartbeat_interval_seconds") == 10
    assert value(metrics, "heartbeat_written_timestamp_seconds") == 1_799_999_990
    assert value(metrics, "heartbeat_applied_timestamp_seconds") == 1_800_000_000
    assert value(metrics, "heartbeat_latency_seconds") == 0.25
    assert value(metrics, "changes_read_total") == 0


def verified(table: str, rows: int, through: float | None, missing: int = 0) -> dict[str, Any]:
    drift = None if through is None else {"missing": missing, "different": 0, "extra": 0}
    return {"table": table, "state": "done", "drift": drift, "rows": rows, "through": through}


def test_verifications_name_as_many_tables_as_the_others_do() -> None:
    """Fifty: what lies beyond is one, with its rows in sum and the earliest of its times; how many there are is told apart."""
    metrics = Metrics()
    tables = [verified(f"public.t{n:02}", n, 100.0 + n, n == 55) for n in range(60)] + [verified("public.new", 0, None)]
    metrics.show_verifications(lambda: tables)
    body = metrics.render()[0].decode()
    named = re.findall(r'^outboxd_verified_rows\{table="([^"]+)"\}', body, re.MULTILINE)
    assert len(named) == 51
    assert "other" in named
    assert f'outboxd_verified_rows{{table="other"}} {float(sum(range(50, 60)))}' in body
    assert 'outboxd_verified_through_timestamp_seconds{table="other"} 150.0' in body
    assert 'outboxd_drift_rows{kind="missing",table="other"} 1.0' in body
    assert "outboxd_verified_tables 60.0" in body


def test_the_verdict_in_numbers() -> None:
    """Each kind from the start; in sync only when there is none; a standby is not asked."""
    found: dict[str, int] | None = {}
    metrics = Metrics()
    metrics.show_verdict(KINDS, lambda: found)

    def shown(series: str) -> str:
        [line] = [line for line in metrics.render()[0].decode().splitlines() if line.startswith(f"{series} ")]
        return line.rpartition(" ")[2]

    assert (shown("outboxd_in_sync"), shown('outboxd_findings{kind="held"}')) == ("1.0", "0.0")
    found = {"held": 3}
    assert (shown("outboxd_in_sync"), shown('outboxd_findings{kind="held"}')) == ("0.0", "3.0")
    found = None
    assert (shown("outboxd_in_sync"), shown('outboxd_findings{kind="held"}')) == ("NaN", "0.0")
