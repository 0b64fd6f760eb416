"""What the dashboard shows: its rows, the panels in them, their queries, and what a bad value means.

Knows the metrics, the alerts and their places in the runbook. Must not know Grafana's JSON: `dashboard.py` does.
In queries `{@` stands for the selection of job and instance, and `$i` for the interval Grafana finds right for rates.
"""

from deploy.grafana.consistency import CONSISTENCY
from deploy.grafana.panels import (
    BAD,
    BREAKER,
    CALM,
    FAIR,
    GOOD,
    LEADS,
    LISTENER,
    POOR,
    Annotation,
    Panel,
    Query,
    Row,
    coded,
    per_second,
    quantiles,
)
from deploy.grafana.verdict import VERDICT

LATENCY = Row(
    "Lag and latency",
    (
        Panel(
            "Lag", "graph",
            (
                Query("max(outboxd_lag_seconds{@})", "lag"),
                Query("time() - max(outboxd_heartbeat_applied_timestamp_seconds{@} > 0)", "age of the last heartbeat"),
            ),
            "Rises one second per second: nothing goes through. Saw teeth: it goes through in bursts.",
            ("OutboxdLag", "OutboxdLagCritical", "OutboxdHeartbeatMissing"), unit="s", width=12, height=8,
            steps=((None, GOOD), (60, POOR), (600, BAD)),
        ),
        Panel(
            "Latency, end to end", "graph",
            (*quantiles("outboxd_change_latency_seconds_bucket{@}"), Query("max(outboxd_heartbeat_latency_seconds{@})", "heartbeat")),
            "From the change's row in the outbox to Supabase's answer. After an outage the waiting changes count with their wait.",
            ("OutboxdFreshnessBurning",), unit="s", width=12, height=8,
        ),
        Panel(
            "Latency by stage, p95", "graph", quantiles('outboxd_stage_duration_seconds_bucket{@,stage!="wait"}', "stage", "{{stage}} ", (0.95,)),
            "apply is Supabase, read is the source, plan is outboxd itself.",
            ("OutboxdTargetSlow",), unit="s",
        ),
        Panel(
            "Where a turn spends its time", "area", (Query(per_second("outboxd_stage_duration_seconds_sum{@}", "stage"), "{{stage}}"),),
            "Seconds per second; reading overlaps with applying. Almost no wait: always busy, and whichever stage fills it is the bottleneck.",
            ("OutboxdLag", "OutboxdTargetSlow"), unit="percentunit",
        ),
        Panel(
            "Fresh within 5 s", "graph",
            (
                Query(
                    'sum(rate(outboxd_change_latency_seconds_bucket{@,le="5.0"}[$i]))'
                    " / sum(rate(outboxd_change_latency_seconds_count{@}[$i]))", "share of changes",
                ),
            ),
            "The freshness objective. Below it, the error budget burns.",
            ("OutboxdFreshnessBurning",), unit="percentunit", top=1, steps=((None, BAD), (0.99, GOOD)),
        ),
    ),
)  # fmt: skip

THROUGHPUT = Row(
    "Throughput",
    (
        Panel(
            "Changes", "graph",
            (
                Query("sum(rate(outboxd_changes_read_total{@}[$i]))", "read"),
                Query("sum(rate(outboxd_changes_applied_total{@}[$i]))", "applied"),
                Query("sum(rate(outboxd_copy_rows_total{@}[$i]))", "copied"),
            ),
            "read is applied and copied together. More read: Supabase takes nothing. Nothing at all, with a backlog: stalled.",
            ("OutboxdStalled",), unit="cps", width=12,
        ),
        Panel(
            "Applied, by table", "area", (Query(per_second("outboxd_changes_applied_total{@}", "table"), "{{table}}"),),
            "Which table makes the load. A table that is missing here is not watched, not captured, or out.",
            ("OutboxdTableOut", "OutboxdUncaptured"), unit="cps", width=12,
        ),
        Panel(
            "Changes per batch", "graph", quantiles("outboxd_batch_changes_bucket{@}"),
            "Small and many: Supabase is quick. It falls to 1 after timeouts and refusals, and grows again by itself.",
            ("OutboxdTargetSlow", "OutboxdFailures"),
        ),
        Panel(
            "Settled without a write", "bars", (Query(per_second("outboxd_changes_skipped_total{@}", "reason"), "{{reason}}"),),
            "superseded: a later change of the same row was written instead. duplicate: an answer was lost, not a change. out: its table is out.",
            ("OutboxdTableOut",), unit="cps",
        ),
        Panel(
            "What began a turn", "bars", (Query(per_second("outboxd_wakeups_total{@}", "reason"), "{{reason}}"),),
            "notify gone and poll alone: the listener does not hear, as behind a transaction pooler.",
            ("OutboxdListenerDown",), unit="ops",
        ),
    ),
)  # fmt: skip

ERRORS = Row(
    "Breakers and errors",
    (
        Panel(
            "Breakers", "timeline", (Query(coded('outboxd_breaker_state{@,state="%"}', "instance, breaker", BREAKER[:3]), "{{instance}} {{breaker}}"),),
            "Open leaves a side alone; half open lets one probe out. A breaker that leads no longer stays as it was.",
            ("OutboxdBreakerOpen", "OutboxdBothStoresUnreachable"), width=12, codes=BREAKER,
        ),
        Panel(
            "Failed calls", "graph", (Query("max by (breaker) (outboxd_breaker_failure_ratio{@})", "{{breaker}}"),),
            "Share of the calls in the breaker's window that failed.",
            ("OutboxdFailures",), unit="percentunit", width=12, steps=((None, GOOD), (0.1, POOR)),
        ),
        Panel(
            "Attempts that are repeated, by class", "bars",
            (Query(per_second("outboxd_retries_total{@}", "reason"), "{{reason}}"),),
            "transient, throttle and size pass by themselves; data, contract and auth need a person; source is your own Postgres.",
            ("OutboxdFailures", "OutboxdDisabled"), unit="ops",
        ),
        Panel(
            "Requests to Supabase, by outcome", "bars",
            (Query(per_second("outboxd_target_request_duration_seconds_count{@}", "outcome"), "{{outcome}}"),),
            "retryable is sent again; refused is not, until somebody mends what is wrong.",
            ("OutboxdFailures",), unit="ops",
        ),
        Panel(
            "Duration of a request", "graph", quantiles('outboxd_target_request_duration_seconds_bucket{@,mode="apply"}'),
            "Over half a second for long: Supabase is overloaded, or far away.",
            ("OutboxdTargetSlow",), unit="s", steps=((None, GOOD), (0.5, POOR)),
        ),
        Panel(
            "Breaker transitions", "bars",
            (
                Query("sum by (breaker, to) (increase(outboxd_breaker_transitions_total{@}[$i]))", "{{breaker}} {{to}}"),
                Query("sum by (breaker) (increase(outboxd_breaker_rejected_total{@}[$i]))", "{{breaker}} kept in"),
            ),
            "Each probe that fails is one half_open and one open. Calls that were kept in are no errors: they were spared.",
            ("OutboxdBreakerOpen",),
        ),
        Panel(
            "Dead letters", "graph",
            (
                Query(f"max(outboxd_held_keys{{@}} {LEADS})", "rows held now"),
                Query("sum by (table) (increase(outboxd_dead_letters_total{@}[$i]))", "new, {{table}}"),
            ),
            "Rising: a constraint or a type on the target refuses what the source allows.",
            ("OutboxdDeadLetters",),
        ),
        Panel(
            "Log lines", "bars", (Query(per_second('outboxd_log_messages_total{@,level!~"debug|info"}', "level"), "{{level}}"),),
            "Every failure writes one; the log names the cause and the fix.",
            ("OutboxdFailures",), unit="ops",
        ),
    ),
)  # fmt: skip

OUTBOX = Row(
    "Backlog and outbox",
    (
        Panel(
            "Backlog", "area", (Query("max(outboxd_backlog_changes{@})", "changes that wait"),),
            "Grows while Supabase is away and falls quickly after. Grows with a closed breaker: stalled, or too slow.",
            ("OutboxdStalled", "OutboxdLag"),
        ),
        Panel(
            "Outbox size", "area", (Query("max(outboxd_outbox_size_bytes{@})", "with indexes"),),
            "Applied changes stay for the retention time. Without bound: nothing is pruned, or Supabase is away.",
            ("OutboxdOutboxGrowing",), unit="bytes",
        ),
        Panel(
            "Rows in the outbox", "graph", (Query("max(outboxd_outbox_rows_estimate{@})", "estimate"),),
            "As the planner estimates; follows the size, some minutes late.",
            ("OutboxdOutboxGrowing",),
        ),
        Panel(
            "Between newest, cursor and pruned", "graph",
            (
                Query("max(outboxd_source_change_id{@}) - max(outboxd_cursor_change_id{@})", "newest to cursor"),
                Query("max(outboxd_cursor_change_id{@}) - max(outboxd_outbox_pruned_id{@})", "cursor to pruned"),
            ),
            "In change ids, which have gaps. The first is the way to go; the second is how far a lost target can be rewound.",
            ("OutboxdLag", "OutboxdOutboxGrowing"),
        ),
        Panel(
            "First copy", "area", (Query(per_second("outboxd_copy_rows_total{@}", "table"), "{{table}}"),),
            "Rows copied as of a snapshot, beside the changes: of tables newly watched, copied again, or asked for.",
            ("OutboxdTableOut",), unit="cps",
        ),
        Panel(
            "Tables by state of their copy", "area", (Query(f"max by (state) (outboxd_copy_tables{{@}} {LEADS})", "{{state}}"),),
            "out: the table does not fit, and is copied again once it does. wanted for long: the copy does not come on.",
            ("OutboxdTableOut",),
        ),
    ),
)  # fmt: skip

SOURCE = Row(
    "Source",
    (
        Panel(
            "Oldest open transaction", "graph", (Query("max(outboxd_source_oldest_transaction_age_seconds{@})", "age"),),
            "A writer that stays open delays its own rows and holds back vacuum. Find it in pg_stat_activity.",
            ("OutboxdLongTransaction",), unit="s", width=6, steps=((None, GOOD), (300, FAIR)),
        ),
        Panel(
            "Listener", "timeline", (Query("max by (instance) (outboxd_listener_connected{@})", "{{instance}}"),),
            "The connection that hears NOTIFY and holds the leader's lock. Gone: nobody leads from that process.",
            ("OutboxdListenerDown", "OutboxdNoLeader"), width=6, codes=LISTENER,
        ),
        Panel(
            "Connections opened anew", "bars", (Query("sum by (instance) (increase(outboxd_source_reconnects_total{@}[$i]))", "{{instance}}"),),
            "Again and again: something between outboxd and the source ends idle connections, or the source restarts.",
            ("OutboxdListenerDown",), width=6,
        ),
        Panel(
            "Queries on the source, p95", "graph", quantiles("outboxd_source_query_duration_seconds_bucket{@}", "query", "{{query}} ", (0.95,)),
            "read is on the way of every change; slow reads make lag.",
            ("OutboxdLag",), unit="s", width=6,
        ),
    ),
)  # fmt: skip

PROCESS = Row(
    "Process",
    (
        Panel(
            "CPU", "graph", (Query("rate(process_cpu_seconds_total{@}[$i])", "{{instance}}"),),
            "Cores. One full core: outboxd itself is the bottleneck.", ("OutboxdLag",), unit="percentunit", width=6,
        ),
        Panel(
            "Memory", "graph", (Query("process_resident_memory_bytes{@}", "{{instance}}"),),
            "Resident. It is bounded by the batch's bytes; growing for days is a bug.", ("OutboxdRestarting",), unit="bytes", width=6,
        ),
        Panel(
            "Event loop is late by", "graph", (Query("outboxd_event_loop_lag_seconds{@}", "{{instance}}"),),
            "How late a timer fires. Over a second: the machine is starved, or the process was frozen.",
            ("OutboxdStalled", "OutboxdLag"), unit="s", width=6, steps=((None, GOOD), (1, POOR)),
        ),
        Panel(
            "Up for", "graph", (Query("time() - process_start_time_seconds{@}", "{{instance}}"),),
            "Falls to 0 at every restart. Several in an hour: look at why it ends.", ("OutboxdRestarting",), unit="s", width=6,
        ),
        Panel(
            "Open files", "graph", (Query("process_open_fds{@}", "{{instance}}"),),
            "Connections are files. Towards the limit: nothing more can be opened.", ("OutboxdRestarting",), width=12,
        ),
        Panel(
            "Version", "stat", (Query('max by (instance, version) (outboxd_build_info{@})', "{{instance}}: {{version}}"),),
            "Different versions side by side are fine during an upgrade only.", ("OutboxdRestarting",), width=12, steps=((None, CALM),),
        ),
    ),
)  # fmt: skip

ROWS = (VERDICT, LATENCY, THROUGHPUT, ERRORS, OUTBOX, CONSISTENCY, SOURCE, PROCESS)

ANNOTATIONS = (
    # A breaker that opens and closes between two scrapes shows in the counter alone.
    Annotation(
        "Breaker not closed",
        'max by (instance, breaker) (outboxd_breaker_state{@,state!="closed"}) > 0'
        ""
        ' or sum by (instance, breaker) (outboxd_breaker_transitions_total{@,to="open"})'
        ' - sum by (instance, breaker) (outboxd_breaker_transitions_total{@,to="open"} offset 15s) > 0',
        "{{breaker}} breaker of {{instance}}: opens where this begins, closes where it ends",
        BAD,
    ),
    Annotation("Restart", "process_start_time_seconds{@} * 1000", "{{instance}} started", CALM, at_value=True),
)
