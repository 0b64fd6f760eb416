"""A plan as one file of SQL: for the Supabase CLI, another migration tool, or the SQL editor.

Pure. Every statement may run again; what must wait looks for itself whether it may.
"""

from daemon import schema_ddl as ddl
from daemon.schema_steps import Plan, Step


def script(plan: Plan, version: str) -> str:
    lines = [
        f"-- outboxd {version}: the target's tables. Running this again is harmless.",
        "-- It needs outboxd's own side: outboxd setup target, or the output of outboxd setup target --print, comes first.",
        "",
        # As `apply` has it; it lasts as long as the transaction that this file runs in.
        "select set_config('search_path', '', true);",
        "",
    ]
    for step in plan.steps:
        lines += [f"-- {step.table}: {step.reason}", *_statement(step), ""]
    lines += [f"{ddl.RELOAD};", ""]
    return "\n".join(lines)


def _statement(step: Step) -> list[str]:
    if step.destructive:
        return [
            f"-- not done by itself, it loses: {step.loses}",
            *(f"-- {line}" for line in f"{step.sql};".splitlines()),
        ]
    if step.waits_for:
        return ["-- once their rows are there; run this file again then", f"{ddl.copied(step.waits_for, step.sql)};"]
    return [f"{step.sql};"]
