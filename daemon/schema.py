"""The plan: which steps bring the target to what is wanted, in which order, and why.

Pure: catalogues in, steps out. It compares, and knows what may be done without asking: what only adds. What would
lose or rewrite something says what, and waits for a person.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from daemon import column_types
from daemon import schema_ddl as ddl
from daemon.audience import grants
from daemon.errors import SchemaUnfit
from daemon.schema_access import access_steps, audience_notes
from daemon.schema_columns import column_steps
from daemon.schema_indexes import index_steps, key_steps, unique_steps
from daemon.schema_orphans import orphan_steps
from daemon.schema_references import reference_steps
from daemon.schema_steps import ORDER, Mirror, Plan, Step
from daemon.schema_types import type_notes, type_steps
from daemon.structure import Audience, Catalogue, Column, Name, Table, Watched
from daemon.wanted import Wanted, project


def plan(
    source: Catalogue,
    target: Catalogue,
    watched: Sequence[Watched],
    audiences: Mapping[str, Audience],
    only: Collection[str] | None = None,
    *,
    others: Collection[str] = (),
) -> Plan:
    """What the target lacks for the watched tables, or for `only` some of them. A table that cannot be planned is named,
    and keeps none of the others from it. `others`: are watched too, and nothing is known of them now."""
    everything = project(source, watched, audiences, target.place)
    chosen = [one for one in everything if only is None or one.watched.name in only]
    here = tuple(one for one in everything if one in chosen or one.name in target.tables)
    taken = {**target.place.relations, **{one.name: one.name[1] for one in chosen}}
    steps: list[Step] = []
    notes = [note for one in chosen for note in one.notes]
    problems = []
    for one in chosen:
        try:
            found = list(_steps(one, source, target, here, taken))
        except SchemaUnfit as exc:
            problems.append(str(exc))
        else:
            steps += found
            notes += _notes(_mirror(one, source, target, here, taken))
            notes += type_notes(one, source, target)
            notes += audience_notes(one, target.tables.get(one.name))
    steps += _publication(chosen, target)
    if only is None:
        steps += [step for step in orphan_steps(target, watched) if step.table not in others]
    once: dict[tuple[str, str], Step] = {}
    for step in steps:  # two tables may need the same type or schema
        once.setdefault((step.sql, step.phase), step)
    ordered = sorted(once.values(), key=lambda step: ORDER.index(step.kind))  # stable: tables keep their order
    return Plan(tuple(ordered), tuple(notes), tuple(chosen), tuple(problems))


def _mirror(
    one: Wanted, source: Catalogue, target: Catalogue, here: tuple[Wanted, ...], taken: dict[Name, str]
) -> Mirror:
    return Mirror(one, target.tables.get(one.name) or _made(one), source, target, here, taken)


def _steps(
    one: Wanted, source: Catalogue, target: Catalogue, here: tuple[Wanted, ...], taken: dict[Name, str]
) -> Iterator[Step]:
    """What is to be done for one table."""
    yield from _schemas(one, target)
    types = list(type_steps(one, source, target))
    yield from types
    one = _usable(one, {step.what for step in types if step.kind in {"label", "rename_label"}})
    mirror = _mirror(one, source, target, here, taken)
    if one.name in target.tables:
        yield from column_steps(mirror)
        yield from key_steps(mirror)
    else:
        made = ddl.create_table(one.table, replace(one.key, name=mirror.free(one.key.name)))
        yield Step(one.watched.name, "table", ".".join(one.name), made, "the target has no such table")
    yield from _the_rest(mirror)


def _usable(one: Wanted, new: Collection[str]) -> Wanted:
    """Without defaults that name a value just added to an enum type: not before that is committed, and a file of steps
    is one transaction. Every row that comes has its value anyway.
    """

    def without(column: Column) -> Column:
        names = any(ddl.literal(label)[1:-1] in (column.default or "") for label in new)
        return replace(column, default=None, supplied=False) if names and not column.type.builtin else column

    return replace(one, table=replace(one.table, columns=tuple(without(column) for column in one.table.columns)))


def _made(one: Wanted) -> Table:
    """What a missing table is right after its step."""
    return Table(one.name, one.table.columns, (one.key,))


def _schemas(one: Wanted, target: Catalogue) -> Iterator[Step]:
    place, schema = target.place, one.name[0]
    if schema not in place.schemas:
        yield Step(one.watched.name, "schema", schema, ddl.create_schema(schema), "the target has no such schema")
    for role in sorted(grants(one.audience, place)):
        if (role, schema) not in place.usable:
            granted = ddl.grant_schema(schema, role)
            yield Step(one.watched.name, "grant", role, granted, f"{role} may not use schema {schema}")


def _publication(chosen: Iterable[Wanted], target: Catalogue) -> Iterator[Step]:
    realtime, made = target.place.realtime, False
    for one in chosen:
        if not one.audience.realtime or target.place.realtime_all or one.name in (realtime or ()):
            continue
        if realtime is None and not made:
            made = True
            yield Step(
                one.watched.name,
                "realtime",
                "supabase_realtime",
                ddl.create_publication(),
                "the target has no publication for Realtime",
            )
        yield Step(one.watched.name, "realtime", one.name[1], ddl.publish(one.name), "Realtime tells of this table")


def _notes(mirror: Mirror) -> Iterator[str]:
    name, table = mirror.one.watched.name, mirror.name
    if not mirror.there.mine:
        yield f"{name}: {ddl.ident(*table)} belongs to another role on the target: run this as its owner"
    for index in mirror.there.indexes:
        if index.unique and not index.plain:
            yield f"{name}: {index.name} on the target is unique with a condition or an expression: rows that change places may be refused for a moment, or held"
    for column in mirror.one.table.columns:
        there = mirror.there.column(column.name)
        if there is not None and column_types.differs_and_fits(column.type.spelled, there.type.spelled):
            yield f"{name}: {column.name} is {column.type.spelled} on the source and {there.type.spelled} on the target"
    mirrors = {each.name for each in mirror.everything}
    for each in mirror.there.references:
        if each.child == table and each.parent not in mirrors:
            yield f"{name}: foreign key {each.name} refers to {ddl.ident(*each.parent)}, which is no mirror: rows without their parent there are refused and held"


def _the_rest(mirror: Mirror) -> Iterator[Step]:
    yield from unique_steps(mirror)
    yield from index_steps(mirror)
    yield from access_steps(mirror)
    yield from _comment_steps(mirror)
    for trigger in mirror.there.triggers:
        loses = f"what {trigger} does to rows that outboxd writes"
        yield mirror.step(
            "trigger",
            trigger,
            ddl.disable_trigger(mirror.name, trigger),
            "it may change rows before they are written",
            loses,
        )
    mapped = mirror.target.place.mirrors.get(mirror.one.watched.name)
    key = tuple(column for column in mirror.one.key.columns if column)
    if mapped is None or mapped[0] != mirror.name or set(mapped[1]) != set(key):
        yield mirror.step(
            "map",
            mirror.name[1],
            ddl.map_table(mirror.one.watched.name, mirror.name, key),
            "outboxd writes mapped tables only",
        )
    yield from reference_steps(mirror)


def _comment_steps(mirror: Mirror) -> Iterator[Step]:
    if mirror.one.table.comment and not mirror.there.comment:
        yield mirror.step(
            "comment", mirror.name[1], ddl.comment_on_table(mirror.name, mirror.one.table.comment), "as on the source"
        )
    for column in mirror.one.table.columns:
        there = mirror.there.column(column.name)
        unsaid = there is None or there is column or not there.comment
        if column.comment and unsaid:
            yield mirror.step(
                "comment",
                column.name,
                ddl.comment_on_column(mirror.name, column.name, column.comment),
                "as on the source",
            )
