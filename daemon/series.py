"""Every series that Prometheus sees: its name, its labels' words, its buckets.

Knows prometheus_client and the words of the design. Must not know what moves a series, nor when: daemon/metrics.py.
Closed label sets exist from the start with 0: a series that appears with its first fault cannot show that fault's rate.
"""

import math
import platform
from collections.abc import Collection, Mapping
from itertools import product
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from daemon.collectors import Lag, Latency

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
OUTCOMES = ("ok", "retryable", "refused")
QUERIES = ("read", "status")
BREAKERS = ("target", "source")
BREAKER_STATES = ("closed", "open", "half_open")
LEVELS = ("debug", "info", "warning", "error", "critical")

_CALL = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_CHANGES = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000)
_BYTES = (1e3, 1e4, 1e5, 5e5, 1e6, 2.5e6, 5e6, 1e7)
_M = TypeVar("_M", Counter, Gauge, Histogram)


class Series:
    def __init__(self, registry: CollectorRegistry, version: str, lag: Lag) -> None:
        self._registry = registry
        Info("outboxd_build", "What is running.", registry=registry).info(
            {"version": version, "python": platform.python_version()}
        )
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._define_relay(lag)
        self._define_changes()
        self._define_source_and_target()
        self._define_breakers()

    def _make(
        self, kind: type[_M], name: str, text: str, /, labels: Mapping[str, Collection[str]] | None = None, **more: Any
    ) -> _M:
        labels = labels or {}
        made = kind(f"outboxd_{name}", text, tuple(labels), registry=self._registry, **more)
        if labels:
            for values in product(*labels.values()):
                made.labels(*values)
        return made

    def _define_relay(self, of: Lag) -> None:
        make = self._make
        self.state = make(Gauge, "state", "What the relay is doing: exactly one is 1.", {"state": STATES})
        self.target_mode = make(
            Gauge, "mode", "What the target's side is worth: exactly one is 1.", {"mode": TARGET_MODES}
        )
        self.mode_since = make(Gauge, "mode_since_timestamp_seconds", "Since when the mode is what it is.")
        self.leader = make(Gauge, "leader", "1 while this process leads its relay.")
        lag = make(Gauge, "lag_seconds", "Age of the oldest committed change not applied; NaN while unknown.")
        lag.set_function(of.seconds)
        backlog = make(Gauge, "backlog_changes", "Committed changes not applied; NaN while unknown.")
        backlog.set_function(of.backlog)
        looked = make(Gauge, "lag_observed_timestamp_seconds", "When lag and backlog were last looked up; 0 for never.")
        looked.set_function(lambda: of.observed_at)
        self.stage = make(
            Histogram,
            "stage_duration_seconds",
            "Where a turn of the relay spends its time.",
            {"stage": STAGES},
            buckets=_CALL,
        )
        self.wakeups = make(Counter, "wakeups_total", "What began a turn.", {"reason": WAKEUPS})
        self.loop_lag = make(Gauge, "event_loop_lag_seconds", "How late the event loop came to a timer.")
        self.messages = make(Counter, "log_messages_total", "Log lines written.", {"level": LEVELS})
        self.dropped = make(
            Counter, "log_messages_dropped_total", "Log lines that nobody took: a full disk, a reader that stopped."
        )

    def _define_changes(self) -> None:
        make = self._make
        self.read = make(Counter, "changes_read_total", "Changes read from the outbox.")
        self.applied = make(Counter, "changes_applied_total", "Changes that the target has.", {"table": (), "op": ()})
        self.skipped = make(
            Counter,
            "changes_skipped_total",
            "Changes settled without a write of their own: all but those of a table that is out count as applied, too.",
            {"reason": SKIPPED},
        )
        self.last_applied = make(Gauge, "last_applied_timestamp_seconds", "When a batch was last applied; 0 for never.")
        self.latency = Latency()
        self._registry.register(self.latency)
        self.batch = make(Histogram, "batch_changes", "Changes in one batch.", buckets=_CHANGES)
        self.size = make(Histogram, "request_size_bytes", "Size of one request to the target.", buckets=_BYTES)
        self.batches = make(Counter, "batches_total", "Batches applied, by gear.", {"gear": ("1", "2", "3")})
        self.torn = make(Counter, "transactions_torn_total", "Transactions larger than a batch, applied in parts.")
        self.letters = make(Counter, "dead_letters_total", "Changes that the target refused.", {"table": ()})
        self.held = make(Gauge, "held_keys", "Keys whose changes wait as dead letters.")
        self.copied = make(Counter, "copy_rows_total", "Rows copied as of a snapshot.", {"table": ()})
        self.copies = make(Gauge, "copy_tables", "Tables by the state of their copy.", {"state": COPIES})
        self.verified = make(Counter, "verification_rows_total", "Rows compared with the target's.", {"table": ()})
        self.repaired = make(Counter, "repaired_rows_total", "Rows that differed and were repaired.", {"table": ()})
        self.verify_every = make(
            Gauge, "verification_interval_seconds", "Seconds between two passes through a table; 0 for only when asked."
        )
        self.verifications = make(
            Gauge, "verification_tables", "Tables by the state of their verification.", {"state": VERIFICATIONS}
        )
        self.retries = make(Counter, "retries_total", "Attempts that will be repeated.", {"reason": RETRIES})
        self._define_heartbeats()

    def _define_heartbeats(self) -> None:
        make = self._make
        self.beat_every = make(Gauge, "heartbeat_interval_seconds", "Seconds between two heartbeats; 0 for none.")
        self.beat_written = make(
            Gauge, "heartbeat_written_timestamp_seconds", "When the last heartbeat was written; 0 for never."
        )
        self.beat_applied = make(
            Gauge, "heartbeat_applied_timestamp_seconds", "When a heartbeat last arrived on the target; 0 for never."
        )
        self.beat_latency = make(
            Gauge, "heartbeat_latency_seconds", "How long the last heartbeat that arrived took; NaN before."
        )
        self.beat_latency.set(math.nan)

    def _define_source_and_target(self) -> None:
        make = self._make
        self.source_id = make(Gauge, "source_change_id", "Highest committed change seen in the outbox.")
        self.cursor_id = make(Gauge, "cursor_change_id", "Highest change the target's cursor has passed.")
        self.oldest = make(
            Gauge, "source_oldest_transaction_age_seconds", "Age of the oldest open writing transaction of the source."
        )
        self.rows = make(Gauge, "outbox_rows_estimate", "Rows kept in the outbox, as the planner estimates.")
        self.bytes = make(Gauge, "outbox_size_bytes", "Size of the outbox with its indexes.")
        self.pruned = make(Counter, "pruned_total", "Slots of the outbox emptied of applied changes.")
        self.pruned_id = make(Gauge, "outbox_pruned_id", "Highest change that has been removed from the outbox.")
        self.listener = make(Gauge, "listener_connected", "1 while the LISTEN connection is up.")
        self.reconnects = make(Counter, "source_reconnects_total", "Connections to the source opened anew.")
        self.query = make(
            Histogram,
            "source_query_duration_seconds",
            "Queries on the source.",
            {"query": QUERIES},
            buckets=_CALL,
        )
        self.request = make(
            Histogram,
            "target_request_duration_seconds",
            "Requests to the target; their count is the number of attempts.",
            {"mode": MODES, "outcome": OUTCOMES},
            buckets=_CALL,
        )

    def _define_breakers(self) -> None:
        make, each = self._make, {"breaker": BREAKERS}
        states = {**each, "state": BREAKER_STATES}
        self.breaker = make(Gauge, "breaker_state", "State of a breaker: exactly one is 1.", states)
        for breaker in BREAKERS:
            one_hot(self.breaker, BREAKER_STATES, "closed", breaker)
        moves = {**each, "to": BREAKER_STATES}
        self.moves = make(Counter, "breaker_transitions_total", "Changes of a breaker's state.", moves)
        self.rejected = make(Counter, "breaker_rejected_total", "Calls a breaker did not let out.", each)
        self.ratio = make(Gauge, "breaker_failure_ratio", "Share of failed calls in a breaker's window.", each)


def one_hot(gauge: Gauge, options: Collection[str], value: str, *labels: str) -> None:
    """One of `options` is 1, the others are 0."""
    if value not in options:
        raise ValueError(f"{value!r} is none of {', '.join(options)}")
    for option in options:
        gauge.labels(*labels, option).set(option == value)
