"""The first row: is all well, and if not, what is it?

Knows what is worse than what. Its tiles answer at a glance; the rows below say why.
"""

from deploy.grafana.panels import (
    BAD,
    BREAKER,
    CALM,
    CONSISTENT,
    FAIR,
    GOOD,
    LEADS,
    POOR,
    STATES,
    Codes,
    Panel,
    Query,
    Row,
    coded,
    differing,
    leaders_breaker,
)

_TARGET_AWAY = f'outboxd_breaker_state{{@,breaker="target",state!="closed"}} == 1 {LEADS}'

# The first that is true; nothing at all when nothing is scraped, for then nothing is known.
_VERDICT = " or ".join(
    (
        "(max(up{@}) == 0) + 12",
        '((max(outboxd_listener_connected{@}) == 0) and (max(outboxd_breaker_state{@,breaker="target",state="closed"}) == 0)) + 11',
        "(max(outboxd_listener_connected{@}) == 0) + 10",
        "(sum(outboxd_leader{@}) == 0) + 9",
        "(sum(outboxd_leader{@}) > 1) * 0 + 8",
        f"max({_TARGET_AWAY}) * 7",
        f'max(outboxd_mode{{@,mode="disabled"}} == 1 {LEADS}) * 6',
        f'max(outboxd_state{{@,state="paused"}} == 1 {LEADS}) * 5',
        f"(max({differing('table')}) > 0.05) * 0 + 4",
        "(max(outboxd_lag_seconds{@}) > 60) * 0 + 3",
        f"(max({differing('table')}) > 0.0001) * 0 + 2",
        f'((max(outboxd_held_keys{{@}} {LEADS}) > 0) or (max(outboxd_copy_tables{{@,state="out"}} {LEADS}) > 0)) * 0 + 1',
        "max(up{@}) * 0",
    )
)
_VERDICTS: Codes = (
    (0, "All well", GOOD),
    (1, "Rows held back", FAIR),
    (2, "Rows differ", POOR),
    (3, "Behind", POOR),
    (4, "Many rows differ", BAD),
    (5, "Paused: needs you", BAD),
    (6, "Disabled: needs you", BAD),
    (7, "Supabase away", BAD),
    (8, "Two leaders", BAD),
    (9, "No leader", BAD),
    (10, "Source away", BAD),
    (11, "Both stores away", BAD),
    (12, "Down", BAD),
)

VERDICT = Row(
    "Verdict",
    (
        Panel(
            "Verdict", "stat", (Query(_VERDICT),),
            "The worst thing that is true now. No value: Prometheus scrapes no outboxd, so nothing is known.",
            ("OutboxdDown", "OutboxdBothStoresUnreachable", "OutboxdNoLeader", "OutboxdTwoLeaders", "OutboxdBreakerOpen", "OutboxdDisabled", "OutboxdRowsDifferCritical"),
            width=6, height=4, codes=_VERDICTS, without="Not scraped",
        ),
        Panel(
            "Lag", "stat", (Query("max(outboxd_lag_seconds{@})"),),
            "Age of the oldest committed change that Supabase does not have. High: clients read old rows. No value: nobody leads.",
            ("OutboxdLag", "OutboxdLagCritical"), unit="s", width=3, height=4,
            steps=((None, GOOD), (60, POOR), (600, BAD)), without="unknown",
        ),
        Panel(
            "Backlog", "stat", (Query("max(outboxd_backlog_changes{@})"),),
            "Committed changes that wait. Growing while the breaker is closed: the relay is stalled, or writers are faster.",
            ("OutboxdStalled", "OutboxdLag"), width=3, height=4,
            steps=((None, GOOD), (10_000, FAIR), (1_000_000, POOR)), without="unknown",
        ),
        Panel(
            "Applied per second", "stat", (Query("sum(rate(outboxd_changes_applied_total{@}[$i]))"),),
            "Changes that Supabase took. 0 with a backlog: nothing goes through.",
            ("OutboxdStalled",), unit="cps", width=3, height=4, steps=((None, CALM),),
        ),
        Panel(
            "Latency p99", "stat",
            (Query("histogram_quantile(0.99, sum by (le) (rate(outboxd_change_latency_seconds_bucket{@}[5m])))"),),
            "From commit to Supabase, of the slowest hundredth of the last five minutes. High without lag: single slow batches.",
            ("OutboxdFreshnessBurning", "OutboxdTargetSlow"), unit="s", width=3, height=4,
            steps=((None, GOOD), (5, FAIR), (60, POOR)), without="idle",
        ),
        Panel(
            "Last heartbeat", "stat", (Query("time() - max(outboxd_heartbeat_applied_timestamp_seconds{@} > 0)"),),
            "Age of the last row that outboxd wrote itself and saw arrive. Old: the way is broken even if nobody writes.",
            ("OutboxdHeartbeatMissing",), unit="s", width=3, height=4,
            steps=((None, GOOD), (30, FAIR), (90, BAD)), without="off",
        ),
        Panel(
            "Leaders", "stat", (Query("sum(outboxd_leader{@})"),),
            "Exactly one process leads. None: nothing moves. Two: one of them is about to be fenced.",
            ("OutboxdNoLeader", "OutboxdTwoLeaders"), width=3, height=4,
            steps=((None, BAD), (1, GOOD), (2, BAD)), without="none",
        ),
        Panel(
            "Consistency", "stat", (Query(f"1 - {differing()}"),),
            "Of the rows of all tables those that are equal in both stores, as the last pass through each found them. Rows differ: "
            "somebody else than outboxd writes to Supabase. `outboxd verify --repair` writes them again.",
            ("OutboxdRowsDiffer", "OutboxdRowsDifferCritical"), unit="percentunit", width=3, height=4, steps=CONSISTENT, decimals=3, without="not verified yet",
        ),
        Panel(
            "Verified through", "stat", (Query(f"time() - min(outboxd_verified_through_timestamp_seconds{{@}} {LEADS})"),),
            "So long ago, of the tables that were ever verified, the one that waits longest was. What was done on the target since, nobody knows.",
            ("OutboxdVerificationStale",), unit="s", width=3, height=4, steps=((None, GOOD), (2 * 86_400, FAIR)), without="not verified yet",
        ),
        Panel(
            "Supabase breaker", "stat", (Query(leaders_breaker("target")),),
            "Open: Supabase failed several times, and is left alone for a while. Changes wait in the outbox, none is lost.",
            ("OutboxdBreakerOpen",), width=3, height=4, codes=BREAKER, without="no leader",
        ),
        Panel(
            "Source breaker", "stat", (Query(leaders_breaker("source")),),
            "Open: your own Postgres cannot be read.",
            ("OutboxdBothStoresUnreachable", "OutboxdNoLeader"), width=3, height=4, codes=BREAKER, without="no leader",
        ),
        Panel(
            "Rows held", "stat", (Query(f"max(outboxd_held_keys{{@}} {LEADS})"),),
            "Rows that Supabase refused; they wait as dead letters, their neighbours flow.",
            ("OutboxdDeadLetters",), width=3, height=4, steps=((None, GOOD), (1, FAIR)), without="no leader",
        ),
        Panel(
            "Tables out", "stat", (Query(f'max(outboxd_copy_tables{{@,state="out"}} {LEADS})'),),
            "Tables that do not fit on the target: their changes are skipped until they do, then they are copied again.",
            ("OutboxdTableOut",), width=3, height=4, steps=((None, GOOD), (1, POOR)), without="no leader",
        ),
        Panel(
            "Oldest transaction", "stat", (Query("max(outboxd_source_oldest_transaction_age_seconds{@})"),),
            "The oldest writing transaction open on the source. Its own rows arrive after it; no others wait.",
            ("OutboxdLongTransaction",), unit="s", width=3, height=4, steps=((None, GOOD), (300, FAIR), (3600, POOR)),
        ),
        Panel(
            "Outbox size", "stat", (Query("max(outboxd_outbox_size_bytes{@})"),),
            "The outbox with its indexes, on the source's disk. It grows while Supabase is away, by what your application writes.",
            ("OutboxdOutboxGrowing",), unit="bytes", width=3, height=4,
            steps=((None, GOOD), (10 * 2**30, FAIR), (20 * 2**30, POOR)),
        ),
        Panel(
            "Verdict, over time", "timeline", (Query(_VERDICT, "verdict"),),
            "The same, as it was. A gap: nothing was scraped.",
            ("OutboxdDown", "OutboxdBreakerOpen"), width=24, height=3, codes=_VERDICTS,
        ),
        Panel(
            "Relay", "timeline", (Query(coded('outboxd_state{@,state="%"}', "instance", STATES), "{{instance}}"),),
            "What each process does. `paused` waits for a person; its log and `outboxd status` say why.",
            ("OutboxdStalled", "OutboxdNoLeader"), width=24, height=4, codes=STATES,
        ),
    ),
)  # fmt: skip
