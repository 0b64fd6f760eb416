"""Steps for a mirror's key, its unique constraints and its indexes.

Pure. The key is needed at once; whatever else is unique must be able to wait for the end of a batch (gear 2).
"""

from collections.abc import Iterator
from dataclasses import replace

from daemon import schema_ddl as ddl
from daemon.schema_steps import Mirror, Step
from daemon.structure import Index


def key_steps(mirror: Mirror) -> Iterator[Step]:
    wanted, name = mirror.one.key, mirror.name
    found = [
        index
        for index in mirror.there.indexes
        if index.unique and index.plain and set(index.columns) == set(wanted.columns)
    ]
    if any(not index.deferrable for index in found):
        return
    if found:
        key = replace(wanted, name=found[0].name, primary=found[0].primary)
        loses = f"nothing; the table is locked while its index is made anew ({mirror.rows}), and foreign keys to it stand in the way"
        yield mirror.step(
            "key",
            key.name,
            ddl.replace_constraint(name, found[0].name, key),
            "the key may not be deferrable: upserts need it at once",
            loses,
        )
        return
    primary = not any(index.primary for index in mirror.there.indexes)
    key = replace(wanted, name=mirror.free(wanted.name), primary=primary)
    yield mirror.step("key", key.name, ddl.add_constraint(name, key), "upserts find rows by this key")


def unique_steps(mirror: Mirror) -> Iterator[Step]:
    wanted = [index for index in mirror.one.table.indexes if index.unique]
    for index in wanted:
        found = [
            each
            for each in mirror.there.indexes
            if each.unique and each.plain and set(each.columns) == set(index.columns)
        ]
        if not found:
            made = replace(index, name=mirror.free(index.name))
            reason = (
                "unique on the source; it waits for the end of a batch"
                if index.deferrable
                else "unique on the source; a foreign key rests on it"
            )
            yield mirror.step("unique", made.name, ddl.add_constraint(mirror.name, made), reason)
        elif all(each.deferrable != index.deferrable for each in found):
            yield from _retime(mirror, found[0], deferrable=index.deferrable)
    known = [set(index.columns) for index in (*wanted, mirror.one.key)]
    for each in mirror.there.indexes:
        if each.unique and each.plain and not each.primary and not each.deferrable and set(each.columns) not in known:
            yield from _retime(mirror, each, deferrable=True)


def _retime(mirror: Mirror, old: Index, *, deferrable: bool) -> Iterator[Step]:
    if old.referenced:  # a foreign key of the target cannot rest on one that waits
        return
    new = replace(old, constraint=True, deferrable=deferrable)
    make = ddl.replace_constraint if old.constraint else ddl.replace_index
    reason = (
        "rows that change places within a batch would break it"
        if deferrable
        else "a foreign key cannot rest on one that waits"
    )
    loses = f"nothing; the table is locked while the index is made anew ({mirror.rows})"
    yield mirror.step("unique", new.name, make(mirror.name, old.name, new), reason, loses)


def index_steps(mirror: Mirror) -> Iterator[Step]:
    for index in mirror.one.table.indexes:
        if not index.unique and not any(_serves(each, index) for each in mirror.there.indexes):
            made = replace(index, name=mirror.free(index.name))
            yield mirror.step(
                "index",
                made.name,
                ddl.create_index(mirror.name, made),
                "as on the source" if index.elements[0].expression else "rows are looked up by it",
            )


def _serves(there: Index, wanted: Index) -> bool:
    """Is it the same index, or one that finds the same rows?"""
    if (there.method, there.predicate) != (wanted.method, wanted.predicate):
        return False
    if not wanted.plain:
        return [(e.column, e.expression, e.suffix) for e in there.elements] == [
            (e.column, e.expression, e.suffix) for e in wanted.elements
        ]
    mine = [(e.column, e.suffix) for e in wanted.elements]
    first = [(e.column, e.suffix) for e in there.elements[: len(mine)]]
    return first == mine and (wanted.method == "btree" or len(there.elements) == len(mine))
