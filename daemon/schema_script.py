"""A plan as one file of SQL: for the Supabase CLI, another migration tool, or the SQL editor.

Pure. Every statement may run again; what must wait looks for itself whether it may. It runs as the target's owner: names
come from the source, and nothing of them may end a comment.
"""

from daemon import schema_ddl as ddl
from daemon.printable import printable
from daemon.schema_steps import Plan, Step


def script(plan: Plan, version: str) -> str:
    lines = [
        f"-- outboxd {version}: the target's tables. Running this again is harmless.",
        "-- It needs outboxd's own side: outboxd setup target, or the output of outboxd setup target --print, comes first.",
        "",
        # As `apply` has it, for the session: a tool may run each statement in a transaction of its own.
        "set search_path = '';",
        "set lock_timeout = '10s'; -- rather than keep everybody waiting: run this again then",
        "set statement_timeout = 0;",
        "",
    ]
    for step in plan.steps:
        lines += [f"-- {printable(step.table)}: {printable(step.reason)}", *_statement(step), ""]
    lines += [f"{ddl.RELOAD};", "reset statement_timeout;", "reset lock_timeout;", "reset search_path;", ""]
    return "\n".join(lines)


def _statement(step: Step) -> list[str]:
    if step.destructive:
        return [
            f"-- not done by itself, it loses: {printable(step.loses)}",
            *(f"-- {_seen(line)}" for line in f"{step.sql};".splitlines()),
        ]
    if step.waits_for:
        return ["-- once their rows are there; run this file again then", f"{ddl.copied(step.waits_for, step.sql)};"]
    return [f"{step.sql};"]


def _seen(line: str) -> str:
    """A character at a time: what is an escape in SQL stays one."""
    return "".join(map(printable, line))
