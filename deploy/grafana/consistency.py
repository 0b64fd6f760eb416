"""The row that says whether both stores hold the same rows, and since when that is known.

Knows what a verification counts. Must not know how it compares.
"""

from deploy.grafana.panels import CONSISTENT, LEADS, Panel, Query, Row, differing, per_second

CONSISTENCY = Row(
    "Consistency",
    (
        Panel(
            "Rows that differ", "area",
            (Query(f"sum by (table, kind) (outboxd_drift_rows{{@}} {LEADS})", "{{table}} {{kind}}"),),
            "missing on Supabase, different there, or extra. As the last pass found them, or the one under way once it has found more.",
            ("OutboxdRowsDiffer", "OutboxdRowsDifferCritical"), width=12,
        ),
        Panel(
            "Consistency, by table", "timeline", (Query(f"1 - {differing('table')}", "{{table}}"),),
            "Of its rows those that are equal in both stores. A table is not here before it was compared for the first time.",
            ("OutboxdRowsDiffer", "OutboxdRowsDifferCritical"), unit="percentunit", width=12, steps=CONSISTENT, decimals=3,
        ),
        Panel(
            "Verified through, by table", "graph",
            (
                Query(f"time() - max by (table) (outboxd_verified_through_timestamp_seconds{{@}} {LEADS})", "{{table}}"),
                Query("max(outboxd_verification_interval_seconds{@} > 0)", "interval"),
            ),
            "How long ago. Saw teeth as high as the interval and two passes are right; a line that only rises: its passes fail, or never end.",
            ("OutboxdVerificationStale",), unit="s", width=12,
        ),
        Panel(
            "Rows compared", "area", (Query(per_second("outboxd_verification_rows_total{@}", "table"), "{{table}}"),),
            "Passes that begin by the clock keep to verify_rows_per_second; those that somebody asked for go as fast as changes let them.",
            ("OutboxdVerificationStale",), unit="cps", width=12,
        ),
        Panel(
            "Rows repaired", "bars", (Query("sum by (table) (increase(outboxd_repaired_rows_total{@}[$i]))", "{{table}}"),),
            "Written again and found equal after it; only a pass asked to repair does that. Again and again: who writes on the target?",
            ("OutboxdRowsDiffer", "OutboxdRowsDifferCritical"), width=12,
        ),
        Panel(
            "Tables by state of their verification", "area",
            (Query(f"max by (state) (outboxd_verification_tables{{@}} {LEADS})", "{{state}}"),),
            "failed: the log's verification_failed says why; tried again within 15 minutes. never for long: the table is out, or being copied.",
            ("OutboxdVerificationStale",), width=12,
        ),
    ),
)  # fmt: skip
