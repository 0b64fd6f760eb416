"""The plan: which steps bring the target to what is wanted, in which order, and why.

Pure: catalogues in, steps out. It compares, and knows what may be done without asking: what only adds. What would
lose or rewrite something says what, and waits for a person.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from daemon import column_types
from daemon import schema_ddl as ddl
from daemon.audience import grants, names_a_user, policies, same
from daemon.errors import SchemaUnfit
from daemon.structure import (
    Audience,
    Catalogue,
    Column,
    Index,
    Name,
    Policy,
    Reference,
    Table,
    UserType,
    Watched,
)
from daemon.wanted import Wanted, home, project

OURS = "outboxd_"  # what our policies' names begin with; no other is touched
# In which order kinds are done: what others rest on first.
ORDER = (
    "schema", "extension", "type", "label", "table", "column", "not_null", "change_type", "drop_column", "key", "unique",
    "index", "security", "grant", "policy", "comment", "trigger", "realtime", "map", "foreign_key", "validate",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """`table`: as the source calls it. `loses`: what a destructive step costs. `after_copy`: not before its rows are there."""

    table: str
    kind: str
    sql: str
    reason: str
    destructive: bool = False
    loses: str = ""
    phase: Literal["now", "after_copy"] = "now"
    waits_for: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """`notes`: what is no step, and should be known."""

    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()
    wanted: tuple[Wanted, ...] = ()

    @property
    def due(self) -> tuple[Step, ...]:
        """What could be done now."""
        return tuple(step for step in self.steps if step.phase == "now")

    @property
    def waiting(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.phase == "after_copy")


def plan(
    source: Catalogue,
    target: Catalogue,
    watched: Iterable[Watched],
    audiences: Mapping[str, Audience],
    only: Collection[str] | None = None,
) -> Plan:
    """What the target lacks for the watched tables, or for `only` some of them."""
    everything = project(source, watched, audiences, target.place)
    chosen = [one for one in everything if only is None or one.watched.name in only]
    here = tuple(one for one in everything if one in chosen or one.name in target.tables)
    taken = dict(target.place.relations)
    steps: list[Step] = []
    notes = [note for one in chosen for note in one.notes]
    steps += _schemas(chosen, target)
    steps += _types(chosen, source, target)
    for one in chosen:
        there = target.tables.get(one.name)
        table = _Comparison(one, there or _made(one), source, target, here, taken)
        if there is None:
            taken[one.name[0], one.key.name] = one.name[1]
            steps.append(
                Step(one.watched.name, "table", ddl.create_table(one.table, one.key), "the target has no such table")
            )
        else:
            steps += table.columns()
            steps += table.key()
        steps += table.all_the_rest()
        notes += table.notes()
    steps += _publication(chosen, target)
    once: dict[tuple[str, str], Step] = {}
    for step in steps:  # two tables may need the same type or schema
        once.setdefault((step.sql, step.phase), step)
    ordered = sorted(once.values(), key=lambda step: ORDER.index(step.kind))  # stable: tables keep their order
    return Plan(tuple(ordered), tuple(notes), tuple(chosen))


def _made(one: Wanted) -> Table:
    """What a missing table is right after its step."""
    return Table(one.name, one.table.columns, (one.key,))


def _schemas(chosen: Iterable[Wanted], target: Catalogue) -> Iterator[Step]:
    place = target.place
    for one in chosen:
        schema = one.name[0]
        if schema not in place.schemas:
            yield Step(one.watched.name, "schema", ddl.create_schema(schema), "the target has no such schema")
        for role in sorted(grants(one.audience, place)):
            if (role, schema) not in place.usable:
                yield Step(
                    one.watched.name, "grant", ddl.grant_schema(schema, role), f"{role} may not use schema {schema}"
                )


def _types(chosen: Iterable[Wanted], source: Catalogue, target: Catalogue) -> Iterator[Step]:
    used: dict[Name, str] = {}
    for one in chosen:
        for column in one.table.columns:
            used.setdefault(column.type.element, one.watched.name)
    there = {each.name: each for each in target.types}
    for each in _needed(used, source):
        table = used.get(each.name) or next(iter(used.values()))
        if each.extension is not None:
            if each.extension not in target.place.extensions:
                made = ddl.create_extension(each.extension, home(each.extension, target.place))
                yield Step(table, "extension", made, f"types of {each.extension} are used")
        elif each.name not in there:
            yield from _missing_type(table, each, target)
        elif each.kind == "e":
            yield from _labels(table, each, there[each.name])


def _needed(used: Collection[Name], source: Catalogue) -> tuple[UserType, ...]:
    """In the order they are made. What a domain or a composite type is made of comes before it."""
    last = max((n for n, each in enumerate(source.types) if each.name in used and each.kind in "dc"), default=-1)
    return tuple(each for n, each in enumerate(source.types) if each.name in used or n < last)


def _missing_type(table: str, wanted: UserType, target: Catalogue) -> Iterator[Step]:
    schema, name = wanted.name
    if wanted.kind not in "edc":
        raise SchemaUnfit(
            f"{table}: type {ddl.ident(*wanted.name)} is neither an enum type, a domain nor a composite type: "
            "create it on the target yourself, then plan again"
        )
    if schema not in target.place.schemas:
        yield Step(table, "schema", ddl.create_schema(schema), f"type {name} lives there")
    yield Step(table, "type", ddl.create_type(wanted), "the target has no such type")


def _labels(table: str, wanted: UserType, there: UserType) -> Iterator[Step]:
    for n, label in enumerate(wanted.labels):
        if label not in there.labels:
            after = wanted.labels[n - 1] if n else None
            before = there.labels[0] if n == 0 and there.labels else None
            yield Step(
                table, "label", ddl.add_label(wanted.name, label, after, before), f"{wanted.name[1]} has no such value"
            )


def _publication(chosen: Iterable[Wanted], target: Catalogue) -> Iterator[Step]:
    realtime, made = target.place.realtime, False
    for one in chosen:
        if not one.audience.realtime or target.place.realtime_all or one.name in (realtime or ()):
            continue
        if realtime is None and not made:
            made = True
            yield Step(
                one.watched.name, "realtime", ddl.create_publication(), "the target has no publication for Realtime"
            )
        yield Step(one.watched.name, "realtime", ddl.publish(one.name), "Realtime tells of this table")


@dataclass(frozen=True, slots=True)
class _Comparison:
    """One mirror as it is wanted, and as it is there."""

    one: Wanted
    there: Table
    source: Catalogue
    target: Catalogue
    everything: tuple[Wanted, ...]  # mirrors that are there, or will be
    taken: dict[Name, str]  # names of relations in the target's schemas, and of those that are planned

    def _step(self, kind: str, sql: str, reason: str, loses: str = "") -> Step:
        return Step(self.one.watched.name, kind, sql, reason, destructive=bool(loses), loses=loses)

    @property
    def _rows(self) -> str:
        return f"about {self.there.rows} rows" if self.there.rows else "few or no rows"

    def notes(self) -> Iterator[str]:
        name, table = self.one.watched.name, self.one.name
        if not self.there.mine:
            yield f"{name}: {ddl.ident(*table)} belongs to another role on the target: run this as its owner"
        for index in self.there.indexes:
            if index.unique and not index.plain:
                yield f"{name}: {index.name} on the target is unique with a condition or an expression: rows that change places may be refused for a moment, or held"
        for column in self.one.table.columns:
            there = self.there.column(column.name)
            if there is not None and not column_types.same_family(column.type.spelled, there.type.spelled):
                yield f"{name}: {column.name} is {column.type.spelled} on the source and {there.type.spelled} on the target"
        mirrors = {each.name for each in self.everything}
        for each in self.there.references:
            if each.child == table and each.parent not in mirrors:
                yield f"{name}: foreign key {each.name} refers to {ddl.ident(*each.parent)}, which is no mirror: rows without their parent there are refused and held"

    def all_the_rest(self) -> Iterator[Step]:
        yield from self._uniques()
        yield from self._indexes()
        yield from self._access()
        yield from self._comments()
        for trigger in self.there.triggers:
            loses = f"what {trigger} does to rows that outboxd writes"
            yield self._step(
                "trigger",
                ddl.disable_trigger(self.one.name, trigger),
                "it may change rows before they are written",
                loses,
            )
        mirror = self.target.place.mirrors.get(self.one.watched.name)
        key = tuple(column for column in self.one.key.columns if column)
        if mirror is None or mirror[0] != self.one.name or set(mirror[1]) != set(key):
            yield self._step(
                "map", ddl.map_table(self.one.watched.name, self.one.name, key), "outboxd writes mapped tables only"
            )
        yield from self._references()

    # -- columns ---------------------------------------------------------------------------------------------

    def columns(self) -> Iterator[Step]:
        for column in self.one.table.columns:
            there = self.there.column(column.name)
            if there is None:
                yield self._step(
                    "column", ddl.add_column(self.one.name, column), "the source has it, the target has not"
                )
                continue
            if column.name not in self.one.watched.constant:
                yield from self._type(column, there)
            if there.not_null and not column.not_null and not self._in_primary_key(column.name):
                yield self._step(
                    "not_null", ddl.drop_not_null(self.one.name, column.name), "on the source it may be null"
                )
        for there in self.there.columns:
            if self.one.table.column(there.name) is None:
                yield from self._extra(there)

    def _type(self, column: Column, there: Column) -> Iterator[Step]:
        ours, theirs = column.type, there.type
        verdict = column_types.compare(ours.spelled, theirs.spelled)
        if verdict != "fits" and "d" in {ours.kind, theirs.kind}:  # what lies below a domain may fit
            verdict = "fits" if column_types.compare(ours.base, theirs.base) == "fits" else "rewrite"
        if verdict == "fits":
            return
        ours_there = [policy.name for policy in self.there.policies if policy.name.startswith(OURS)]
        again = policies(self.one, self.one.table.columns, self.target.place) if ours_there else ()
        sql = ddl.change_type(self.one.name, column, ours_there, again, rewrites=verdict == "rewrite")
        reason = f"{ours.spelled} on the source, {theirs.spelled} on the target"
        if verdict == "widen":
            yield self._step("change_type", sql, reason)
            return
        loses = f"the table is written anew under a lock that nobody reads through ({self._rows})"
        yield self._step("change_type", sql, reason, f"{loses}{self._dependents(column.name)}")

    def _extra(self, there: Column) -> Iterator[Step]:
        name = self.one.name
        if there.required and not self._in_primary_key(there.name):
            yield self._step(
                "not_null", ddl.drop_not_null(name, there.name), "it has no default, and the source does not send it"
            )
        if there.name in self.one.watched.sent:
            loses = f"the values of {there.name} ({self._rows}){self._dependents(there.name)}"
            yield self._step(
                "drop_column",
                ddl.drop_column(name, there.name),
                "it came from the source, which has it no longer",
                loses,
            )

    def _dependents(self, column: str) -> str:
        found = self.there.dependents.get(column, ())
        return f"; it rests on this column: {', '.join(found)}" if found else ""

    def _in_primary_key(self, column: str) -> bool:
        return any(index.primary and column in index.columns for index in self.there.indexes)

    # -- keys and indexes ------------------------------------------------------------------------------------

    def key(self) -> Iterator[Step]:
        wanted, name = self.one.key, self.one.name
        found = [
            index
            for index in self.there.indexes
            if index.unique and index.plain and set(index.columns) == set(wanted.columns)
        ]
        if any(not index.deferrable for index in found):
            return
        if found:
            key = replace(wanted, name=found[0].name, primary=found[0].primary)
            loses = f"nothing; the table is locked while its index is made anew ({self._rows}), and foreign keys to it stand in the way"
            yield self._step(
                "key",
                ddl.replace_constraint(name, found[0].name, key),
                "the key may not be deferrable: upserts need it at once",
                loses,
            )
            return
        primary = not any(index.primary for index in self.there.indexes)
        key = replace(wanted, name=self._free(wanted.name), primary=primary)
        yield self._step("key", ddl.add_constraint(name, key), "upserts find rows by this key")

    def _uniques(self) -> Iterator[Step]:
        wanted = [index for index in self.one.table.indexes if index.unique]
        for index in wanted:
            found = [
                each
                for each in self.there.indexes
                if each.unique and each.plain and set(each.columns) == set(index.columns)
            ]
            if not found:
                made = replace(index, name=self._free(index.name))
                reason = (
                    "unique on the source; it waits for the end of a batch"
                    if index.deferrable
                    else "unique on the source; a foreign key rests on it"
                )
                yield self._step("unique", ddl.add_constraint(self.one.name, made), reason)
            elif all(each.deferrable != index.deferrable for each in found):
                yield from self._retime(found[0], deferrable=index.deferrable)
        known = [set(index.columns) for index in (*wanted, self.one.key)]
        for each in self.there.indexes:
            if (
                each.unique
                and each.plain
                and not each.primary
                and not each.deferrable
                and set(each.columns) not in known
            ):
                yield from self._retime(each, deferrable=True)

    def _retime(self, old: Index, *, deferrable: bool) -> Iterator[Step]:
        if old.referenced:  # a foreign key of the target cannot rest on one that waits
            return
        new = replace(old, constraint=True, deferrable=deferrable)
        make = ddl.replace_constraint if old.constraint else ddl.replace_index
        reason = (
            "rows that change places within a batch would break it"
            if deferrable
            else "a foreign key cannot rest on one that waits"
        )
        loses = f"nothing; the table is locked while the index is made anew ({self._rows})"
        yield self._step("unique", make(self.one.name, old.name, new), reason, loses)

    def _indexes(self) -> Iterator[Step]:
        for index in self.one.table.indexes:
            if not index.unique and not any(_serves(each, index) for each in self.there.indexes):
                made = replace(index, name=self._free(index.name))
                yield self._step(
                    "index",
                    ddl.create_index(self.one.name, made),
                    "as on the source" if index.elements[0].expression else "rows are looked up by it",
                )

    def _free(self, name: str) -> str:
        """A name that no other relation of this schema has: IF NOT EXISTS would take that one for ours."""
        schema, table = self.one.name
        for attempt in (name, f"{table[:30]}_{name}"[:60], *(f"{name[:58]}_{n}" for n in range(2, 1000))):
            if (schema, attempt) not in self.taken:
                self.taken[schema, attempt] = table
                return attempt
        raise AssertionError("a thousand names are taken")

    # -- who may see it --------------------------------------------------------------------------------------

    def _policies(self) -> tuple[Policy, ...]:
        """For the columns as they are now; none while the owner's column has yet to change its type."""
        there = {column.name: column for column in self.there.columns}
        now = tuple(there.get(column.name, column) for column in self.one.table.columns)
        own = (*now, *(column for column in self.there.columns if self.one.table.column(column.name) is None))
        owner = there.get(self.one.audience.owner or "")
        if owner is not None and not names_a_user(owner) and self.one.table.column(owner.name) is not None:
            policies(self.one, self.one.table.columns, self.target.place)  # it will be one, or this raises
            return ()
        return policies(self.one, own, self.target.place)

    def _access(self) -> Iterator[Step]:
        name, place = self.one.name, self.target.place
        if not self.there.secured:
            yield self._step(
                "security", ddl.enable_security(name), "without row level security whoever holds a grant sees every row"
            )
        for role, wanted in sorted(grants(self.one.audience, place).items()):
            missing = [privilege for privilege in wanted if (role, privilege) not in self.there.grants]
            if missing:
                yield self._step(
                    "grant",
                    ddl.grant(name, missing, role),
                    f"projects grant nothing by themselves, {role} has to be told",
                )
        there = {policy.name: policy for policy in self.there.policies}
        wanted_policies = self._policies()
        for policy in wanted_policies:
            if not same(policy, there.get(policy.name)):
                yield self._step("policy", ddl.create_policy(name, policy), f"access = {self.one.audience.access!r}")
        for policy_name in sorted(there.keys() - {policy.name for policy in wanted_policies}):
            if policy_name.startswith(OURS):
                yield self._step(
                    "policy",
                    ddl.drop_policy(name, policy_name),
                    f"access = {self.one.audience.access!r}: no longer wanted",
                )

    def _comments(self) -> Iterator[Step]:
        if self.one.table.comment and not self.there.comment:
            yield self._step("comment", ddl.comment_on_table(self.one.name, self.one.table.comment), "as on the source")
        for column in self.one.table.columns:
            there = self.there.column(column.name)
            unsaid = there is None or there is column or not there.comment
            if column.comment and unsaid:
                yield self._step(
                    "comment", ddl.comment_on_column(self.one.name, column.name, column.comment), "as on the source"
                )

    # -- foreign keys ----------------------------------------------------------------------------------------

    def _references(self) -> Iterator[Step]:
        mirrors = {each.name: each for each in self.everything}
        names = {each.name for each in self.there.references if each.child == self.one.name}
        known = set()
        for wanted in self.one.references:
            known.add(wanted.ends)
            parent = mirrors.get(wanted.parent)
            if parent is None:  # it is watched, but left out of this plan
                continue
            at_once = self.there.partitioned or self._is_partitioned(parent)
            found = next((each for each in self.there.references if each.ends == wanted.ends), None)
            if found is None:
                made = replace(wanted, name=wanted.name if wanted.name not in names else f"{wanted.name[:58]}_2")
                add = ddl.add_reference_at_once if at_once else ddl.add_reference
                yield self._after_copy(
                    parent,
                    self._step(
                        "foreign_key", add(made), "as on the source; it waits for the end of a batch, and never acts"
                    ),
                )
                if not at_once:
                    yield self._after_copy(
                        parent, self._step("validate", ddl.validate(made), "the rows that are there are looked at once")
                    )
            elif found.acts or not found.deferrable:
                yield from self._tamed(found, at_once=at_once)
            elif not found.validated:
                yield self._after_copy(
                    parent, self._step("validate", ddl.validate(found), "the rows that are there are looked at once")
                )
        for each in self.there.references:
            among_mirrors = each.child == self.one.name and each.parent in mirrors
            from_others = each.parent == self.one.name and each.child not in mirrors and each.acts
            if each.ends not in known and ((among_mirrors and (each.acts or not each.deferrable)) or from_others):
                yield from self._tamed(each, at_once=False)

    def _tamed(self, found: Reference, *, at_once: bool) -> Iterator[Step]:
        acts = {"c": "delete cascade", "n": "delete set null", "d": "delete set default"}.get(found.on_delete)
        loses = (
            f"its ON {acts.upper()}: what should go still goes when the source says so"
            if acts
            else "nothing; it is checked at the end of a batch from then on"
        )
        reason = (
            "it deletes or empties rows by itself: a batch that replaces rows is refused"
            if acts
            else "it cannot wait: a parent that moves is refused"
        )
        tamed = replace(found, on_delete="a", deferrable=True)
        yield self._step("foreign_key", ddl.replace_reference(tamed, found.name, at_once=at_once), reason, loses)
        if not at_once:
            yield replace(
                self._step("validate", ddl.validate(tamed), "the rows that are there are looked at once", "nothing")
            )

    def _is_partitioned(self, parent: Wanted) -> bool:
        there = self.target.tables.get(parent.name)
        return there is not None and there.partitioned

    def _after_copy(self, parent: Wanted, step: Step) -> Step:
        """A foreign key wants its rows to be there, parents and children."""
        waits = tuple(sorted({one.watched.name for one in (self.one, parent) if not self._is_copied(one)}))
        names = tuple(sorted({self.one.watched.name, parent.watched.name}))
        return replace(step, phase="after_copy", waits_for=names) if waits else step

    def _is_copied(self, one: Wanted) -> bool:
        states = {state for table, state in self.target.place.copies if table == one.watched.name}
        return states == {"done"} or (not states and one.watched.source in self.source.empty)


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
