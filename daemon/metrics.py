"""Every number the daemon tells Prometheus, behind methods that speak of changes, batches and breakers.

Knows prometheus_client and the words of the design. Must not know who calls, nor decide anything. One registry per
instance, so that two daemons in a process, or two tests, do not meet. Closed label sets exist from the start with 0:
a series that appears with its first fault cannot show that fault's rate.
"""

import math
import platform
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from itertools import accumulate, product
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from outbox import __version__

STATES = ("starting", "catching_up", "streaming", "paused", "standby", "stopping")
TARGET_MODES = ("disabled", "degraded", "full")
STAGES = ("wait", "read", "plan", "apply")
OPS = ("upsert", "delete", "truncate")
# The kinds of `errors`, and a source that cannot be reached.
RETRIES = ("transient", "ambiguous", "throttle", "size", "data", "contract", "auth", "fencing", "source", "other")
WAKEUPS = ("notify", "poll", "backlog", "retry")
MODES = ("claim", "apply", "isolate", "cursor", "describe", "extra", "keys")
SKIPPED = ("superseded", "duplicate", "out")
COPIES = ("wanted", "copying", "done", "out")
VERIFICATIONS = ("never", "running", "done", "failed")
DRIFTS = ("missing", "different", "extra")
OUTCOMES = ("ok", "retryable", "refused")
QUERIES = ("read", "status")
BREAKERS = ("target", "source")
BREAKER_STATES = ("closed", "open", "half_open")
LEVELS = ("debug", "info", "warning", "error", "critical")

_TABLES = 50  # distinct values of the label `table`, the rest is "other"
_CALL = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
_CHANGES = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000)
_BYTES = (1e3, 1e4, 1e5, 5e5, 1e6, 2.5e6, 5e6, 1e7)
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_M = TypeVar("_M", Counter, Gauge, Histogram)


class Lag:
    """How far the target is behind. Asked at scrape time, so that it grows while the loop hangs."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._clock, self._wall = clock, wall
        self._seconds = self._backlog = math.nan  # nothing is known before the first look
        self._at = self.observed_at = 0.0

    def observe(self, seconds_behind: float, backlog: int) -> None:
        """The age of the oldest committed change not applied, by the source's clock, and how many there are."""
        self._seconds, self._backlog = max(seconds_behind, 0.0), backlog
        self._at, self.observed_at = self._clock(), self._wall()

    def forget(self) -> None:
        """No longer looking, as on standby: an old number would be a wrong one."""
        self._seconds = self._backlog = math.nan

    def seconds(self) -> float:
        # With nothing waiting there is nothing that grows older.
        return self._seconds + (self._clock() - self._at if self._backlog > 0 else 0.0)

    def backlog(self) -> float:
        return self._backlog

    def now(self) -> tuple[float, int]:
        """Seconds and changes for a status page: 0 and 0 while unknown, for JSON has no NaN."""
        return (0.0, 0) if math.isnan(self._backlog) else (self.seconds(), int(self._backlog))


class _Latency:
    """A histogram of which every change is an observation: the library's own takes seven times as long for each."""

    _NAME = "outboxd_change_latency_seconds"
    _HELP = "From the change's row in the outbox to the target's answer."

    def __init__(self) -> None:
        self._counts = [0] * (len(_LATENCY) + 1)
        self._sum = 0.0

    def observe(self, latencies: Iterable[float]) -> None:
        ordered = sorted(latencies)
        # A source clock that steps back must not bring the sum down: rate() would take it for a restart.
        self._sum += sum(ordered[bisect_left(ordered, 0.0) :])
        below = 0
        for at, bound in enumerate(_LATENCY):
            upto = bisect_right(ordered, bound)
            self._counts[at] += upto - below
            below = upto
        self._counts[-1] += len(ordered) - below

    def collect(self) -> Iterable[Metric]:
        bounds = [*(str(float(bound)) for bound in _LATENCY), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._NAME, self._HELP, buckets=buckets, sum_value=self._sum)

    def describe(self) -> Iterable[Metric]:
        yield HistogramMetricFamily(self._NAME, self._HELP)


class Metrics:
    def __init__(
        self,
        version: str = __version__,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._registry = CollectorRegistry()
        self._wall = wall
        self._tables: set[str] = set()
        self._listener_up = self._listened = False
        self.lag = Lag(clock, wall)
        Info("outboxd_build", "What is running.", registry=self._registry).info(
            {"version": version, "python": platform.python_version()}
        )
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._define_relay()
        self._define_changes()
        self._define_source_and_target()
        self._define_breakers()
        self.set_state("starting")

    def _make(
        self, kind: type[_M], name: str, text: str, /, labels: Mapping[str, Collection[str]] | None = None, **more: Any
    ) -> _M:
        labels = labels or {}
        made = kind(f"outboxd_{name}", text, tuple(labels), registry=self._registry, **more)
        if labels:
            for values in product(*labels.values()):
                made.labels(*values)
        return made

    def _define_relay(self) -> None:
        make = self._make
        self._state = make(Gauge, "state", "What the relay is doing: exactly one is 1.", {"state": STATES})
        self._target_mode = make(
            Gauge, "mode", "What the target's side is worth: exactly one is 1.", {"mode": TARGET_MODES}
        )
        self._mode_since = make(Gauge, "mode_since_timestamp_seconds", "Since when the mode is what it is.")
        self._leader = make(Gauge, "leader", "1 while this process leads its relay.")
        lag = make(Gauge, "lag_seconds", "Age of the oldest committed change not applied; NaN while unknown.")
        lag.set_function(self.lag.seconds)
        backlog = make(Gauge, "backlog_changes", "Committed changes not applied; NaN while unknown.")
        backlog.set_function(self.lag.backlog)
        looked = make(Gauge, "lag_observed_timestamp_seconds", "When lag and backlog were last looked up; 0 for never.")
        looked.set_function(lambda: self.lag.observed_at)
        self._stage = make(
            Histogram,
            "stage_duration_seconds",
            "Where a turn of the relay spends its time.",
            {"stage": STAGES},
            buckets=_CALL,
        )
        self._wakeups = make(Counter, "wakeups_total", "What began a turn.", {"reason": WAKEUPS})
        self._loop_lag = make(Gauge, "event_loop_lag_seconds", "How late the event loop came to a timer.")
        self._messages = make(Counter, "log_messages_total", "Log lines written.", {"level": LEVELS})
        self._dropped = make(
            Counter, "log_messages_dropped_total", "Log lines that nobody took: a full disk, a reader that stopped."
        )

    def _define_changes(self) -> None:
        make = self._make
        self._read = make(Counter, "changes_read_total", "Changes read from the outbox.")
        self._applied = make(Counter, "changes_applied_total", "Changes that the target has.", {"table": (), "op": ()})
        self._skipped = make(
            Counter,
            "changes_skipped_total",
            "Changes settled without a write of their own: all but those of a table that is out count as applied, too.",
            {"reason": SKIPPED},
        )
        self._last_applied = make(
            Gauge, "last_applied_timestamp_seconds", "When a batch was last applied; 0 for never."
        )
        self._latency = _Latency()
        self._registry.register(self._latency)
        self._batch = make(Histogram, "batch_changes", "Changes in one batch.", buckets=_CHANGES)
        self._size = make(Histogram, "request_size_bytes", "Size of one request to the target.", buckets=_BYTES)
        self._batches = make(Counter, "batches_total", "Batches applied, by gear.", {"gear": ("1", "2", "3")})
        self._torn = make(Counter, "transactions_torn_total", "Transactions larger than a batch, applied in parts.")
        self._letters = make(Counter, "dead_letters_total", "Changes that the target refused.", {"table": ()})
        self._held = make(Gauge, "held_keys", "Keys whose changes wait as dead letters.")
        self._copied = make(Counter, "copy_rows_total", "Rows copied as of a snapshot.", {"table": ()})
        self._copies = make(Gauge, "copy_tables", "Tables by the state of their copy.", {"state": COPIES})
        self._verified = make(Counter, "verification_rows_total", "Rows compared with the target's.", {"table": ()})
        self._repaired = make(Counter, "repaired_rows_total", "Rows that differed and were repaired.", {"table": ()})
        self._verify_every = make(
            Gauge, "verification_interval_seconds", "Seconds between two passes through a table; 0 for only when asked."
        )
        self._verifications = make(
            Gauge, "verification_tables", "Tables by the state of their verification.", {"state": VERIFICATIONS}
        )
        self._retries = make(Counter, "retries_total", "Attempts that will be repeated.", {"reason": RETRIES})
        self._define_heartbeats()

    def _define_heartbeats(self) -> None:
        make = self._make
        self._beat_every = make(Gauge, "heartbeat_interval_seconds", "Seconds between two heartbeats; 0 for none.")
        self._beat_written = make(
            Gauge, "heartbeat_written_timestamp_seconds", "When the last heartbeat was written; 0 for never."
        )
        self._beat_applied = make(
            Gauge, "heartbeat_applied_timestamp_seconds", "When a heartbeat last arrived on the target; 0 for never."
        )
        self._beat_latency = make(
            Gauge, "heartbeat_latency_seconds", "How long the last heartbeat that arrived took; NaN before."
        )
        self._beat_latency.set(math.nan)

    def _define_source_and_target(self) -> None:
        make = self._make
        self._source_id = make(Gauge, "source_change_id", "Highest committed change seen in the outbox.")
        self._cursor_id = make(Gauge, "cursor_change_id", "Highest change the target's cursor has passed.")
        self._oldest = make(
            Gauge, "source_oldest_transaction_age_seconds", "Age of the oldest open writing transaction of the source."
        )
        self._rows = make(Gauge, "outbox_rows_estimate", "Rows kept in the outbox, as the planner estimates.")
        self._bytes = make(Gauge, "outbox_size_bytes", "Size of the outbox with its indexes.")
        self._pruned = make(Counter, "pruned_total", "Slots of the outbox emptied of applied changes.")
        self._pruned_id = make(Gauge, "outbox_pruned_id", "Highest change that has been removed from the outbox.")
        self._listener = make(Gauge, "listener_connected", "1 while the LISTEN connection is up.")
        self._reconnects = make(Counter, "source_reconnects_total", "Connections to the source opened anew.")
        self._query = make(
            Histogram,
            "source_query_duration_seconds",
            "Queries on the source.",
            {"query": QUERIES},
            buckets=_CALL,
        )
        self._request = make(
            Histogram,
            "target_request_duration_seconds",
            "Requests to the target; their count is the number of attempts.",
            {"mode": MODES, "outcome": OUTCOMES},
            buckets=_CALL,
        )

    def _define_breakers(self) -> None:
        make, each = self._make, {"breaker": BREAKERS}
        states = {**each, "state": BREAKER_STATES}
        self._breaker = make(Gauge, "breaker_state", "State of a breaker: exactly one is 1.", states)
        for breaker in BREAKERS:
            _one_hot(self._breaker, BREAKER_STATES, "closed", breaker)
        moves = {**each, "to": BREAKER_STATES}
        self._moves = make(Counter, "breaker_transitions_total", "Changes of a breaker's state.", moves)
        self._rejected = make(Counter, "breaker_rejected_total", "Calls a breaker did not let out.", each)
        self._ratio = make(Gauge, "breaker_failure_ratio", "Share of failed calls in a breaker's window.", each)

    # -- the relay -------------------------------------------------------------------------------------------

    def set_state(self, state: str) -> None:
        _one_hot(self._state, STATES, state)

    def set_mode(self, mode: str, since: float) -> None:
        _one_hot(self._target_mode, TARGET_MODES, mode)
        self._mode_since.set(since)

    def leadership(self, *, leads: bool, listening: bool) -> None:
        """How the connection stands that listens and holds the leader's lock."""
        self._leader.set(leads)
        if listening and not self._listener_up and self._listened:
            self._reconnects.inc()
        self._listener_up, self._listened = listening, self._listened or listening
        self._listener.set(listening)

    def stage_took(self, stage: str, seconds: float) -> None:
        self._stage.labels(stage).observe(seconds)

    def woken(self, reason: str) -> None:
        self._wakeups.labels(reason).inc()

    def retried(self, reason: str) -> None:
        self._retries.labels(reason if reason in RETRIES else "other").inc()

    def loop_lag(self, seconds: float) -> None:
        self._loop_lag.set(seconds)

    def logged(self, level: str) -> None:
        self._messages.labels(level if level in LEVELS else "error").inc()

    def log_dropped(self) -> None:
        self._dropped.inc()

    # -- changes ---------------------------------------------------------------------------------------------

    def tables_watched(self, tables: Iterable[str]) -> None:
        """Begin the series of these tables at 0."""
        for table in tables:
            self._letters.labels(self._label(table))
            self._copied.labels(self._label(table))
            self._verified.labels(self._label(table))
            self._repaired.labels(self._label(table))
            for op in OPS:
                self._applied.labels(self._label(table), op)

    def batch_read(self, changes: int, seconds: float) -> None:
        self._read.inc(changes)
        self._stage.labels("read").observe(seconds)
        self._query.labels("read").observe(seconds)

    def batch_applied(
        self,
        counts: Mapping[tuple[str, str], int],
        *,
        latencies: Iterable[float],
        superseded: int = 0,
        duplicate: bool = False,
        gear: int = 1,
        torn: int = 0,
        seconds: float,
    ) -> None:
        """A batch the target has, by its own word: `counts` are its changes by table and op.

        A duplicate was applied by a request whose answer was lost: it is counted now, as it was not then.
        """
        for (table, op), count in counts.items():
            self._applied.labels(self._label(table), op).inc(count)
        changes = sum(counts.values())
        self._skipped.labels("superseded").inc(0 if duplicate else superseded)
        self._skipped.labels("duplicate").inc(changes if duplicate else 0)
        self._latency.observe(latencies)
        self._batch.observe(changes)
        self._batches.labels(str(gear)).inc()
        self._torn.inc(torn)
        self._stage.labels("apply").observe(seconds)
        self._last_applied.set(self._wall())

    def letters_held(self, tables: Mapping[str, int]) -> None:
        """Changes that became dead letters, by table."""
        for table, letters in tables.items():
            self._letters.labels(self._label(table)).inc(letters)

    def left_out(self, changes: int) -> None:
        """Changes that were not sent, for their table is out: it is copied anew when it fits."""
        self._skipped.labels("out").inc(changes)

    def rows_copied(self, table: str, rows: int) -> None:
        """Rows of a table came over."""
        self._copied.labels(self._label(table)).inc(rows)

    def show_copies(self, report: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Where each table's copy stands, asked at scrape time."""
        for state in COPIES:
            self._copies.labels(state).set_function(partial(_count, report, state))

    def verify_every(self, seconds: float) -> None:
        self._verify_every.set(seconds)

    def rows_verified(self, table: str, rows: int, repaired: int) -> None:
        """Rows of a table were compared, or found equal after they were repaired."""
        self._verified.labels(self._label(table)).inc(rows)
        self._repaired.labels(self._label(table)).inc(repaired)

    def show_verifications(self, report: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """What the tables' verifications have found, asked at scrape time."""
        for state in VERIFICATIONS:
            self._verifications.labels(state).set_function(partial(_count, report, state))
        self._registry.register(_Verified(report))

    def keys_held(self, keys: int) -> None:
        self._held.set(keys)

    def cursor_moved(self, change_id: int) -> None:
        self._cursor_id.set(change_id)

    def heartbeat_every(self, seconds: float) -> None:
        self._beat_every.set(seconds)

    def heartbeat_written(self, at: float) -> None:
        """By the source's clock."""
        self._beat_written.set(at)

    def heartbeat_arrived(self, latency: float) -> None:
        self._beat_latency.set(latency)
        self._beat_applied.set(self._wall())

    def _label(self, table: str) -> str:
        if table not in self._tables:
            if len(self._tables) >= _TABLES:
                return "other"
            self._tables.add(table)
        return table

    # -- source, target, breakers ----------------------------------------------------------------------------

    def source_health(self, *, oldest_transaction: float, rows: float, size: float, newest_id: int) -> None:
        self._oldest.set(oldest_transaction)
        self._rows.set(max(rows, 0))  # -1 says that the table was never analysed
        self._bytes.set(size)
        self._source_id.set(newest_id)

    def pruned(self, *, emptied: bool, up_to_id: int) -> None:
        self._pruned.inc(emptied)
        self._pruned_id.set(up_to_id)

    def source_query(self, query: str, seconds: float) -> None:
        self._query.labels(query).observe(seconds)

    def target_request(self, mode: str, outcome: str, seconds: float, size_bytes: int) -> None:
        self._request.labels(mode, outcome).observe(seconds)
        if mode == "apply":  # the others are a few bytes, and would hide the sizes that matter
            self._size.observe(size_bytes)

    def breaker_changed(self, breaker: str, to: str) -> None:
        _one_hot(self._breaker, BREAKER_STATES, to, breaker)
        self._moves.labels(breaker, to).inc()

    def breaker_rejected(self, breaker: str) -> None:
        self._rejected.labels(breaker).inc()

    def breaker_ratio(self, breaker: str, ratio: float) -> None:
        self._ratio.labels(breaker).set(ratio)

    def render(self) -> tuple[bytes, str]:
        """The body and the content type of /metrics."""
        return generate_latest(_WithoutCreated(self._registry)), _CONTENT_TYPE


class _Verified:
    """By table: rows that differ, rows compared, and up to when both stores are known to be equal but for these. A table
    has them once a pass has come to its end; while one that has found more is under way, what it has found."""

    def __init__(self, report: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self._report = report

    def collect(self) -> Iterable[Metric]:
        drift = GaugeMetricFamily(
            "outboxd_drift_rows", "Rows that differ between the stores.", labels=["table", "kind"]
        )
        rows = GaugeMetricFamily("outboxd_verified_rows", "Rows of the source that were compared.", labels=["table"])
        through = GaugeMetricFamily(
            "outboxd_verified_through_timestamp_seconds",
            "Whatever had committed by then is equal in both stores, but for the rows that differ.",
            labels=["table"],
        )
        for one in self._report():
            if one["drift"] is not None:
                for kind in DRIFTS:
                    drift.add_metric([one["table"], kind], one["drift"][kind])
                rows.add_metric([one["table"]], one["rows"])
            if one["through"] is not None:
                through.add_metric([one["table"]], one["through"])
        return [drift, rows, through]


def _count(report: Callable[[], Iterable[Mapping[str, Any]]], state: str) -> float:
    return float(sum(one["state"] == state for one in report()))


def _one_hot(gauge: Gauge, options: Collection[str], value: str, *labels: str) -> None:
    if value not in options:
        raise ValueError(f"{value!r} is none of {', '.join(options)}")
    for option in options:
        gauge.labels(*labels, option).set(option == value)


class _WithoutCreated:
    """A registry without `_created` samples. The library's own switch is the process's, not a registry's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [one for one in metric.samples if one.name != f"{metric.name}_created"]
            yield metric
