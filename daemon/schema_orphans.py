"""Steps for what is left on the target of tables that are watched no longer: outboxd's foreign keys, policies and map.

Pure. Each waits for a person. The table and its rows are nobody's but the user's, and stay.
"""

from collections.abc import Collection, Iterable, Iterator

from daemon import schema_ddl as ddl
from daemon.schema_steps import OURS, Step
from daemon.structure import Catalogue, Name, Reference, Table, Watched


def orphans(target: Catalogue, watched: Iterable[Watched]) -> dict[str, Name]:
    """Mirrors that are mapped, and whose tables the source watches no longer, by the tables' names."""
    known = {one.name for one in watched}
    return {table: name for table, (name, _) in sorted(target.place.mirrors.items()) if table not in known}


def orphan_steps(target: Catalogue, watched: Collection[Watched]) -> Iterator[Step]:
    left = orphans(target, watched)
    mirrors = {one.target for one in watched} | set(left.values())
    for table, name in left.items():
        there = target.tables.get(name)
        if there is not None:
            yield from _references(table, there, mirrors)
            yield from _policies(table, there)
        loses = "changes of it that wait in the outbox are skipped; its rows on the target stay as they are"
        unmapped = ddl.unmap_table(table)
        yield Step(
            table, "unmap", ".".join(name), unmapped, "the source watches it no longer", destructive=True, loses=loses
        )


def _references(table: str, there: Table, mirrors: Collection[Name]) -> Iterator[Step]:
    for each in there.references:
        if {each.child, each.parent} <= set(mirrors) and _ours(each):
            reason = "it is of a table that is watched no longer, whose rows stand still"
            loses = "the check that rows have their parent; while it stays, rows that go or come are refused and held"
            yield Step(
                table, "drop_reference", each.name, ddl.drop_reference(each), reason, destructive=True, loses=loses
            )


def _ours(each: Reference) -> bool:
    """As outboxd makes them: one that acts, or cannot wait, is somebody's own."""
    return each.on_delete == "a" and each.deferrable


def _policies(table: str, there: Table) -> Iterator[Step]:
    for policy in there.policies:
        if policy.name.startswith(OURS):
            loses = f"what {', '.join(policy.roles)} may {policy.command} there"
            dropped = ddl.drop_policy(there.name, policy.name)
            reason = "the source watches the table no longer"
            yield Step(table, "policy", policy.name, dropped, reason, destructive=True, loses=loses)
