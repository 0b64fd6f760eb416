"""The SQL of each step.

Knows how things are spelled, and that each text may run again: what is there already stays. Knows nothing of why
something is wanted. What comes out of a catalogue (types, expressions) is SQL already; every name is quoted here.

The texts run as the target's owner, by `apply`, by psql and from an editor, and names in them are whoever's on the source:
nothing in them acts on a screen, ends a line or is psql's to fill in (it leaves what is quoted alone).
"""

import re
from collections.abc import Iterable
from itertools import count

from daemon.printable import printable
from daemon.structure import Column, Element, Index, Name, Policy, Reference, Table, UserType

_QUOTED = re.compile(r'"((?:[^"]|"")+)"')


def ident(*name: str) -> str:
    """Names as SQL has them. A character that cannot be seen is written as its number."""
    return ".".join(_ident(part) for part in name)


def _ident(name: str) -> str:
    quoted = name.replace('"', '""')
    if seen(name):
        return f'"{quoted}"'
    return 'U&"' + "".join(_numbered(c, "\\\\", "\\{:04X}", "\\+{:06X}") for c in quoted) + '"'


def literal(text: str) -> str:
    quoted = text.replace("'", "''")
    if seen(text) and "\\" not in text:
        return f"'{quoted}'"
    return "E'" + "".join(_numbered(c, "\\\\", "\\u{:04X}", "\\U{:08X}") for c in quoted) + "'"


def seen(text: str) -> bool:
    """Does it hold nothing but characters that can be seen?"""
    return all(printable(character) == character for character in text)


def _numbered(character: str, backslash: str, short: str, long: str) -> str:
    if character == "\\":
        return backslash
    if printable(character) == character:
        return character
    return (short if ord(character) < 0x10000 else long).format(ord(character))


def spelled(kind: str) -> str:
    """A type as a catalogue spells it, which is a name or has some in it."""
    return _QUOTED.sub(lambda found: _ident(found[1].replace('""', '"')) if not seen(found[1]) else found[0], kind)


def _named(*name: str) -> str:
    """A name inside a literal, as `regclass` and its like read it: they know no numbers of characters."""
    return literal(".".join('"' + part.replace('"', '""') + '"' for part in name))


def listed(columns: Iterable[str]) -> str:
    return ", ".join(ident(column) for column in columns)


def _block(title: str, body: str) -> str:
    """Between two tags that do not occur in it: whatever a name or a label says, it ends where it ends."""
    tag = next(tag for n in count() if (tag := f"${title}{n or ''}$") not in body)
    return f"do {tag} {body} {tag}"


def guarded(condition: str, *statements: str) -> str:
    """Only if it holds: for what has no IF NOT EXISTS."""
    body = " ".join(f"{statement};" for statement in statements)
    return _block("outboxd", f"begin if {condition} then {body} end if; end")


def create_schema(name: str) -> str:
    return f"create schema if not exists {ident(name)}"


def create_extension(name: str, schema: str) -> str:
    return f"create extension if not exists {ident(name)} with schema {ident(schema)}"


def create_type(wanted: UserType) -> str:
    name = ident(*wanted.name)
    if wanted.kind == "e":
        made = f"create type {name} as enum ({', '.join(map(literal, wanted.labels))})"
    elif wanted.kind == "d":
        made = f"create domain {name} as {spelled(wanted.body or '')}"
    else:
        made = f"create type {name} as ({spelled(wanted.body or '')})"
    return guarded(f"to_regtype({_named(*wanted.name)}) is null", made)


def add_label(name: Name, label: str, after: str | None, before: str | None) -> str:
    place = (
        f" after {literal(after)}" if after is not None else f" before {literal(before)}" if before is not None else ""
    )
    return f"alter type {ident(*name)} add value if not exists {literal(label)}{place}"


def definition(column: Column) -> str:
    parts = [ident(column.name), spelled(column.type.spelled)]
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
    added = f"add column if not exists {ident(column.name)} {spelled(column.type.spelled)}"
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
    column_name, kind = ident(column.name), spelled(column.type.spelled)
    default = f"alter column {column_name} drop default, " if rewrites else ""
    changed = f"alter column {column_name} type {kind} using {column_name}::{kind}"
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
    of = _named(*table)
    return f"not exists (select from pg_constraint where conrelid = to_regclass({of}) and conname = {literal(name)})"


def create_index(name: Name, index: Index) -> str:
    elements = ", ".join(_element(each) for each in index.elements)
    where = f" where {index.predicate}" if index.predicate else ""
    on = f"{ident(index.name)} on {ident(*name)} using {ident(index.method)} ({elements}){where}"
    if index.plain:
        return f"create index if not exists {on}"
    # What is computed stands in a block: psql would take the end of a slice, [1:"USER"], for a variable of its own.
    return guarded(f"to_regclass({_named(name[0], index.name)}) is null", f"create index {on}")


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
    return _block(
        "outboxd_copied",
        f"begin if to_regclass('outboxd.copy') is not null then if {condition} then\n{statement};\nend if; end if; end",
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
    return f"select outboxd.map({_named(*name)}::regclass, {literal(table)}, array[{keys}])"


def unmap_table(table: str) -> str:
    return f"select outboxd.unmap({literal(table)})"


def rename_label(name: Name, old: str, new: str) -> str:
    """May run again, also where one of that name has come since."""
    of, told = _named(*name), "select from pg_enum where enumtypid = to_regtype"
    there = f"exists ({told}({of}) and enumlabel = {literal(old)})"
    free = f"not exists ({told}({of}) and enumlabel = {literal(new)})"
    return guarded(f"{there} and {free}", f"alter type {ident(*name)} rename value {literal(old)} to {literal(new)}")


RELOAD = "notify pgrst, 'reload schema'"
