"""The SQL of each step.

Knows how things are spelled, and that each text may run again: what is there already stays. Knows nothing of why
something is wanted. What comes out of a catalogue (types, expressions) is SQL already; every name is quoted here.
"""

from collections.abc import Iterable

from psycopg import sql

from daemon.structure import Column, Element, Index, Name, Policy, Reference, Table, UserType


def ident(*name: str) -> str:
    return sql.Identifier(*name).as_string(None)


def literal(text: str) -> str:
    return sql.Literal(text).as_string(None).strip()


def listed(columns: Iterable[str]) -> str:
    return ", ".join(ident(column) for column in columns)


def guarded(condition: str, *statements: str) -> str:
    """Only if it holds: for what has no IF NOT EXISTS."""
    body = " ".join(f"{statement};" for statement in statements)
    return f"do $outboxd$ begin if {condition} then {body} end if; end $outboxd$"


def create_schema(name: str) -> str:
    return f"create schema if not exists {ident(name)}"


def create_extension(name: str, schema: str) -> str:
    return f"create extension if not exists {ident(name)} with schema {ident(schema)}"


def create_type(wanted: UserType) -> str:
    name = ident(*wanted.name)
    if wanted.kind == "e":
        made = f"create type {name} as enum ({', '.join(map(literal, wanted.labels))})"
    elif wanted.kind == "d":
        made = f"create domain {name} as {wanted.body}"
    else:
        made = f"create type {name} as ({wanted.body})"
    return guarded(f"to_regtype({literal(name)}) is null", made)


def add_label(name: Name, label: str, after: str | None, before: str | None) -> str:
    place = (
        f" after {literal(after)}" if after is not None else f" before {literal(before)}" if before is not None else ""
    )
    return f"alter type {ident(*name)} add value if not exists {literal(label)}{place}"


def definition(column: Column) -> str:
    parts = [ident(column.name), column.type.spelled]
    parts += [f'collate pg_catalog."{column.collation}"'] if column.collation else []
    parts += [f"default {column.default}"] if column.default is not None else []
    parts += ["not null"] if column.not_null else []
    return " ".join(parts)


def create_table(table: Table, key: Index) -> str:
    """In one piece with its row level security: a project may grant new tables to everybody."""
    lines = [definition(column) for column in table.columns]
    lines.append(f"constraint {ident(key.name)} primary key ({listed(column for column in key.columns if column)})")
    body = ",\n  ".join(lines)
    return f"create table if not exists {ident(*table.name)} (\n  {body}\n);\n{enable_security(table.name)}"


def enable_security(name: Name) -> str:
    return f"alter table {ident(*name)} enable row level security"


def add_column(name: Name, column: Column) -> str:
    """Without a value for the rows that are there, which a default would give them: theirs are the source's to say."""
    added = f"add column if not exists {ident(column.name)} {column.type.spelled}"
    added += f' collate pg_catalog."{column.collation}"' if column.collation else ""
    if column.default is not None:
        added += f", alter column {ident(column.name)} set default {column.default}"
    return f"alter table {ident(*name)} {added}"


def drop_column(name: Name, column: str) -> str:
    return f"alter table {ident(*name)} drop column if exists {ident(column)}"


def drop_not_null(name: Name, column: str) -> str:
    return f"alter table {ident(*name)} alter column {ident(column)} drop not null"


def change_type(
    name: Name, column: Column, ours: Iterable[str], made_again: Iterable[Policy], *, rewrites: bool
) -> str:
    """Our own policies would be in its way, and so may a default be; what comes has every value."""
    column_name, spelled = ident(column.name), column.type.spelled
    default = f"alter column {column_name} drop default, " if rewrites else ""
    changed = f"alter column {column_name} type {spelled} using {column_name}::{spelled}"
    statements = [drop_policy(name, policy) for policy in ours]
    statements.append(f"alter table {ident(*name)} {default}{changed}")
    statements += [create_policy(name, policy) for policy in made_again]
    return ";\n".join(statements)


def _constraint(index: Index) -> str:
    equal = " nulls not distinct" if index.nulls_equal else ""
    wait = " deferrable initially immediate" if index.deferrable else ""
    kind = "primary key" if index.primary else f"unique{equal}"
    return f"constraint {ident(index.name)} {kind} ({listed(column for column in index.columns if column)}){wait}"


def add_constraint(name: Name, index: Index) -> str:
    return guarded(_no_constraint(name, index.name), f"alter table {ident(*name)} add {_constraint(index)}")


def replace_constraint(name: Name, old: str, index: Index) -> str:
    return f"alter table {ident(*name)} drop constraint if exists {ident(old)}, add {_constraint(index)}"


def replace_index(name: Name, old: str, index: Index) -> str:
    """An index that no constraint owns."""
    return f"drop index if exists {ident(name[0], old)};\n{add_constraint(name, index)}"


def _no_constraint(table: Name, name: str) -> str:
    of = literal(ident(*table))
    return f"not exists (select from pg_constraint where conrelid = to_regclass({of}) and conname = {literal(name)})"


def create_index(name: Name, index: Index) -> str:
    elements = ", ".join(_element(each) for each in index.elements)
    where = f" where {index.predicate}" if index.predicate else ""
    return f"create index if not exists {ident(index.name)} on {ident(*name)} using {ident(index.method)} ({elements}){where}"


def _element(element: Element) -> str:
    return f"{element.expression if element.column is None else ident(element.column)}{element.suffix}"


def add_reference(each: Reference) -> str:
    """Not looked at yet: that needs a lock that holds up nobody's writes, where adding it needs one that does."""
    return guarded(
        _no_constraint(each.child, each.name), f"alter table {ident(*each.child)} add {_reference(each)} not valid"
    )


def add_reference_at_once(each: Reference) -> str:
    """To or from a partitioned table, where it cannot be left for later."""
    return guarded(_no_constraint(each.child, each.name), f"alter table {ident(*each.child)} add {_reference(each)}")


def replace_reference(each: Reference, old: str, *, at_once: bool) -> str:
    later = "" if at_once else " not valid"
    return f"alter table {ident(*each.child)} drop constraint if exists {ident(old)}, add {_reference(each)}{later}"


def _reference(each: Reference) -> str:
    full = " match full" if each.full else ""
    return (
        f"constraint {ident(each.name)} foreign key ({listed(each.columns)}) references {ident(*each.parent)} "
        f"({listed(each.parent_columns)}){full} on delete no action on update no action deferrable initially immediate"
    )


def drop_reference(each: Reference) -> str:
    return f"alter table {ident(*each.child)} drop constraint if exists {ident(each.name)}"


def validate(each: Reference) -> str:
    return f"alter table {ident(*each.child)} validate constraint {ident(each.name)}"


def copied(tables: Iterable[str], statement: str) -> str:
    """Run it only where the target's own record says that these tables were copied."""
    wanted = [literal(table) for table in tables]
    done = f"count(distinct table_name) = {len(wanted)} and bool_and(state = 'done')"
    condition = f"(select {done} from outboxd.copy where table_name in ({', '.join(wanted)}))"  # noqa: S608
    return (
        "do $outboxd_copied$ begin if to_regclass('outboxd.copy') is not null then "
        f"if {condition} then\n{statement};\nend if; end if; end $outboxd_copied$"
    )


def disable_trigger(name: Name, trigger: str) -> str:
    return f"alter table {ident(*name)} disable trigger {ident(trigger)}"


def grant(name: Name, privileges: Iterable[str], role: str) -> str:
    return f"grant {', '.join(privileges)} on {ident(*name)} to {ident(role)}"


def grant_schema(schema: str, role: str) -> str:
    return f"grant usage on schema {ident(schema)} to {ident(role)}"


def create_policy(name: Name, policy: Policy) -> str:
    using = f" using ({policy.using})" if policy.using is not None else ""
    check = f" with check ({policy.check})" if policy.check is not None else ""
    made = f"create policy {ident(policy.name)} on {ident(*name)} for {policy.command} to {listed(policy.roles)}{using}{check}"
    return f"{drop_policy(name, policy.name)};\n{made}"


def drop_policy(name: Name, policy: str) -> str:
    return f"drop policy if exists {ident(policy)} on {ident(*name)}"


def comment_on_table(name: Name, text: str) -> str:
    return f"comment on table {ident(*name)} is {literal(text)}"


def comment_on_column(name: Name, column: str, text: str) -> str:
    return f"comment on column {ident(*name, column)} is {literal(text)}"


def create_publication() -> str:
    return guarded(
        "not exists (select from pg_publication where pubname = 'supabase_realtime')",
        "create publication supabase_realtime",
    )


def publish(name: Name) -> str:
    schema, table = map(literal, name)
    return guarded(
        "not exists (select from pg_publication_tables where pubname = 'supabase_realtime' "
        f"and schemaname = {schema} and tablename = {table})",
        f"alter publication supabase_realtime add table {ident(*name)}",
    )


def map_table(table: str, name: Name, key: Iterable[str]) -> str:
    keys = ", ".join(literal(column) for column in key)
    return f"select outboxd.map({literal(ident(*name))}::regclass, {literal(table)}, array[{keys}])"


def unmap_table(table: str) -> str:
    return f"select outboxd.unmap({literal(table)})"


def rename_label(name: Name, old: str, new: str) -> str:
    """May run again, also where one of that name has come since."""
    of, told = literal(ident(*name)), "select from pg_enum where enumtypid = to_regtype"
    there = f"exists ({told}({of}) and enumlabel = {literal(old)})"
    free = f"not exists ({told}({of}) and enumlabel = {literal(new)})"
    return guarded(f"{there} and {free}", f"alter type {ident(*name)} rename value {literal(old)} to {literal(new)}")


RELOAD = "notify pgrst, 'reload schema'"
