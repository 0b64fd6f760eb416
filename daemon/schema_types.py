"""Steps for the types of a mirror's columns: extensions, enum types with their labels, domains and composite types.

Pure. Knows which types a table needs, in which order they are made, and which are a person's to make: who owns a table on
the source names its types and chooses their extensions.
"""

from collections.abc import Collection, Iterator, Mapping
from itertools import groupby

from daemon import schema_ddl as ddl
from daemon.errors import SchemaUnfit
from daemon.schema_steps import Step
from daemon.structure import Catalogue, Name, UserType
from daemon.wanted import Wanted, home

# Extensions of nothing but types and what goes with them. Of any other (a language is one as well) a person decides.
_HARMLESS = {"citext", "cube", "hstore", "intarray", "isn", "ltree", "postgis", "seg", "vector"}
# Schemas of the project's own and of outboxd's, where nobody expects the source's.
_RESERVED = {
    "auth", "cron", "extensions", "graphql", "graphql_public", "information_schema", "net", "outboxd", "pgbouncer", "pgmq",
    "pgsodium", "pgsodium_masks", "realtime", "storage", "supabase_functions", "supabase_migrations", "vault",
}  # fmt: skip


def type_steps(one: Wanted, source: Catalogue, target: Catalogue) -> Iterator[Step]:
    """What the target lacks of the types that this table's rows have."""
    table = one.watched.name
    there = {each.name: each for each in target.types}
    used = {column.type.element for column in one.table.columns}
    for each in _needed(used, source):
        if each.extension is not None:
            if each.extension not in target.place.extensions:
                if each.extension not in _HARMLESS:
                    made = ddl.create_extension(each.extension, home(each.extension, target.place))
                    raise SchemaUnfit(
                        f"{table}: types of extension {each.extension} are used, which outboxd does not add by itself: "
                        f"if you trust it, run this on the target, then plan again: {made};"
                    )
                made = ddl.create_extension(each.extension, home(each.extension, target.place))
                yield Step(table, "extension", each.extension, made, f"types of {each.extension} are used")
        elif each.name not in there:
            yield from _missing(table, each, target)
        elif each.kind == "e":
            yield from _labels(table, each, there[each.name], target.spoken)


def _needed(used: Collection[Name], source: Catalogue) -> tuple[UserType, ...]:
    """In the order they are made: what a type is made of comes before it."""
    known = {each.name: each for each in source.types}
    found: set[Name] = set()
    left = [name for name in used if name in known]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            inside = known[name].needs if known[name].extension is None else ()
            left += [each for each in inside if each in known]
    return tuple(each for each in source.types if each.name in found)


def _missing(table: str, wanted: UserType, target: Catalogue) -> Iterator[Step]:
    schema, name = wanted.name
    _check_place(table, wanted)
    if wanted.kind not in "edc":
        raise SchemaUnfit(
            f"{table}: type {ddl.ident(*wanted.name)} is neither an enum type, a domain nor a composite type: "
            "create it on the target yourself, then plan again"
        )
    if schema not in target.place.schemas:
        yield Step(table, "schema", schema, ddl.create_schema(schema), f"type {name} lives there")
    yield Step(table, "type", name, ddl.create_type(wanted), "the target has no such type")


def _check_place(table: str, wanted: UserType) -> None:
    if wanted.name[0] in _RESERVED:
        raise SchemaUnfit(
            f"{table}: type {ddl.ident(*wanted.name)} would be made or changed in a schema that is the target's own: "
            "do that on the target yourself, or leave the column out with exclude, then plan again"
        )


def _labels(table: str, wanted: UserType, there: UserType, spoken: Mapping[Name, frozenset[str]]) -> Iterator[Step]:
    renamed = {new: old for old, new in renames(wanted, there) if old in spoken.get(wanted.name, ())}
    if renamed or set(wanted.labels) - set(there.labels):
        _check_place(table, wanted)
    for n, label in enumerate(wanted.labels):
        if label in renamed:
            old, reason = renamed[label], "the source calls it so now, and rows here have the old name"
            yield Step(table, "rename_label", label, ddl.rename_label(wanted.name, old, label), f"{old}: {reason}")
        elif label not in there.labels:
            after = wanted.labels[n - 1] if n else None
            before = there.labels[0] if n == 0 and there.labels else None
            sql = ddl.add_label(wanted.name, label, after, before)
            yield Step(table, "label", label, sql, f"{wanted.name[1]} has no such value")


def type_notes(one: Wanted, source: Catalogue, target: Catalogue) -> Iterator[str]:
    """Rows with a label that the source has no longer, and nobody can tell which of its labels that is now."""
    there = {each.name: each for each in target.types}
    for each in _needed({column.type.element for column in one.table.columns}, source):
        if each.name in there and each.kind == "e":
            told = {old for old, _ in renames(each, there[each.name])}
            for label in sorted(target.spoken.get(each.name, frozenset()) - told):
                name = ddl.ident(*each.name)
                renamed = f"alter type {name} rename value {ddl.literal(label)} to '…'"
                yield f"{one.watched.name}: rows on the target have {label}, which is no value of {name} on the source: was it renamed there? {renamed}"


def lost_labels(wanted: UserType, there: UserType) -> list[str]:
    """Labels that the source has no longer, while it has others that the target lacks."""
    lacks = set(wanted.labels) - set(there.labels)
    return [label for label in there.labels if label not in wanted.labels] if lacks else []


def renames(wanted: UserType, there: UserType) -> list[tuple[str, str]]:
    """Labels of the target that may be the source's under their old names: as many in a row that only one side has, at
    the same place among those that both have. Whether they are is told by the rows: what came from the source alone and
    has a label that the source has no longer was renamed."""
    mine, theirs = _gaps(wanted, there), _gaps(there, wanted)
    pairs = []
    for place, labels in mine.items():
        if len(theirs.get(place, ())) == len(labels):
            pairs += list(zip(theirs[place], labels, strict=True))
    return pairs


def _gaps(of: UserType, other: UserType) -> dict[str | None, list[str]]:
    """Labels that only this one has, by the label before them that both have."""
    known = [label for label in of.labels if label in other.labels]
    place: dict[str, str | None] = {}
    last: str | None = None
    for label in of.labels:
        last = label if label in known else last
        place[label] = last
    alone = [label for label in of.labels if label not in known]
    return {before: list(labels) for before, labels in groupby(alone, key=place.__getitem__)}
