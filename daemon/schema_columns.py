"""Steps for a mirror's columns: missing ones, changed ones, and those that the source does not send.

Pure. Knows what may be changed without asking, and what a person has to allow.
"""

from collections.abc import Iterator

from daemon import column_types
from daemon import schema_ddl as ddl
from daemon.audience import policies
from daemon.schema_steps import OURS, Mirror, Step
from daemon.structure import Column, Policy


def column_steps(mirror: Mirror) -> Iterator[Step]:
    for column in mirror.one.table.columns:
        there = mirror.there.column(column.name)
        if there is None:
            yield mirror.step(
                "column", column.name, ddl.add_column(mirror.name, column), "the source has it, the target has not"
            )
            continue
        if column.name not in mirror.one.watched.constant:
            yield from _type(mirror, column, there)
        if there.not_null and not column.not_null and not _in_primary_key(mirror, column.name):
            yield mirror.step(
                "not_null", column.name, ddl.drop_not_null(mirror.name, column.name), "on the source it may be null"
            )
    for there in mirror.there.columns:
        if mirror.one.table.column(there.name) is None:
            yield from _extra(mirror, there)


def _type(mirror: Mirror, column: Column, there: Column) -> Iterator[Step]:
    ours, theirs = column.type, there.type
    verdict = column_types.compare(ours.spelled, theirs.spelled)
    if verdict != "fits" and "d" in {ours.kind, theirs.kind}:  # what lies below a domain may fit
        verdict = "fits" if column_types.compare(ours.base, theirs.base) == "fits" else "rewrite"
    if verdict == "fits":
        return
    kept = [policy for policy in mirror.there.policies if policy.name.startswith(OURS)]
    # Those that are there come back, in the words that fit the new type: what they allow is not this step's to change.
    fitting = {} if mirror.one.audience.instead or not kept else _wanted(mirror)
    again = [fitting.get(policy.name, policy) for policy in kept]
    sql = ddl.change_type(mirror.name, column, [each.name for each in kept], again, rewrites=verdict == "rewrite")
    reason = f"{ours.spelled} on the source, {theirs.spelled} on the target"
    if verdict == "widen":
        yield mirror.step("change_type", column.name, sql, reason)
        return
    loses = f"the table is written anew under a lock that nobody reads through ({mirror.rows})"
    yield mirror.step("change_type", column.name, sql, reason, f"{loses}{_dependents(mirror, column.name)}")


def _wanted(mirror: Mirror) -> dict[str, Policy]:
    return {each.name: each for each in policies(mirror.one, mirror.one.table.columns, mirror.target.place)}


def _extra(mirror: Mirror, there: Column) -> Iterator[Step]:
    name = mirror.name
    default = there.default is not None and not there.generated
    if not _in_primary_key(mirror, there.name):
        sql, why = ddl.drop_not_null(name, there.name), None
        if there.required:
            why = "it has no default, and the source does not send it"
        elif there.not_null and default and _left_at_home(mirror, there.name):
            why = "it does not travel any more: once it may be null, what is there is emptied"
        if why:
            yield mirror.step("not_null", there.name, sql, why)
    if there.name in mirror.one.watched.sent:
        loses = f"the values of {there.name} ({mirror.rows}){_dependents(mirror, there.name)}"
        yield mirror.step(
            "drop_column",
            there.name,
            ddl.drop_column(name, there.name),
            "it came from the source, and does not travel any more",
            loses,
        )


def _left_at_home(mirror: Mirror, column: str) -> bool:
    """Has it travelled, and does the source still have it?"""
    watched = mirror.one.watched
    names = (watched.rename.get(each.name, each.name) for each in mirror.source.tables[watched.source].columns)
    return column in watched.sent and column in names


def _dependents(mirror: Mirror, column: str) -> str:
    found = mirror.there.dependents.get(column, ())
    return f"; it rests on this column: {', '.join(found)}" if found else ""


def _in_primary_key(mirror: Mirror, column: str) -> bool:
    return any(index.primary and column in index.columns for index in mirror.there.indexes)
