"""What a mirror should look like: a watched table of the source, with what its mapping and its audience make of it.

Pure. Knows which parts of a table make sense on a mirror, and which may be taken over at all: what is written into a
table by whoever owns it on the source runs on the target with its owner's rights. Knows nothing of what the target has,
but where its extensions live.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from daemon.printable import printable
from daemon.structure import (
    Audience,
    Catalogue,
    Column,
    Element,
    Index,
    Name,
    Place,
    Reference,
    Table,
    Type,
    Watched,
)

TEXT = Type("text", ("pg_catalog", "text"), "b", None, "text")
_LENGTH = 63  # bytes of a name

# Where `redact` writes stars; anything else becomes null (outbox.masked_sql).
_STARS = re.compile(r"(?:text|name|character varying|character)(?:\(\d+\))?")

# 'x', 1, -1.5, true, each perhaps with its type: what needs nobody to compute it. Not a name of something else.
_CONSTANT = re.compile(
    r"(?:'(?:[^'\\]|'')*'|\(?-?\d+(?:\.\d+)?\)?|true|false|ARRAY\[\])(?:::(?!reg)[\w .\"]+(?:\([\d, ]+\))?[\w ]*(?:\[\])?)?"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One mirror as it should be. `key` identifies its rows; `notes`: what of the source it does not get, and why."""

    watched: Watched
    audience: Audience
    table: Table
    key: Index
    references: tuple[Reference, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> Name:
        return self.table.name


def constant(default: str | None) -> bool:
    """Is this default a value, rather than something to compute?"""
    return default is not None and printable(default) == default and _CONSTANT.fullmatch(default) is not None


def home(extension: str, place: Place) -> str:
    """The schema in which an extension of the target is, or would be made."""
    return place.extensions.get(extension, "extensions" if "extensions" in place.schemas else "public")


def project(
    source: Catalogue, watched: Iterable[Watched], audiences: Mapping[str, Audience], place: Place
) -> tuple[Wanted, ...]:
    """Every mirror. Foreign keys need them all, because a parent's names may be mapped as well."""
    there = [one for one in watched if one.there and one.source in source.tables and one.key]
    mirrors = {one.source: one for one in there}
    found = [
        _project(one, source.tables[one.source], mirrors, place, audiences.get(one.name, Audience())) for one in there
    ]
    found = [replace(one, notes=(*one.notes, *_of_leaves(one, source))) for one in found]
    return tuple(_holding(one, found) for one in found)


def _project(one: Watched, table: Table, mirrors: Mapping[Name, Watched], place: Place, audience: Audience) -> Wanted:
    columns = {column.name: _column(column, one, place) for column in table.columns if travels(one, column.name)}
    constants = tuple(Column(name, TEXT, not_null=True) for name in one.constant)
    key = Index(_fit(one.target[1], "pkey"), _elements(one, one.key), unique=True, primary=True, constraint=True)
    references, notes = _references(one, table, mirrors)
    indexes: list[Index] = []
    for index in table.indexes:
        kept, note = _index(index, one)
        if kept is not None and not (kept.unique and set(kept.columns) == set(key.columns)):
            indexes.append(kept)
        notes += [note] * bool(note)
    wanted = replace(
        table,
        name=one.target,
        columns=(*columns.values(), *constants),
        comment=_comment(table.comment),
        indexes=tuple(indexes),
        references=(),
        partitioned=False,
        policies=(),
        triggers=(),
    )
    return Wanted(one, audience, wanted, key, tuple(references), tuple(f"{one.name}: {note}" for note in notes))


def _of_leaves(one: Wanted, source: Catalogue) -> list[str]:
    """A mirror is one table: what only some of its rows have to keep cannot be asked of it."""
    return [
        f"{one.watched.name}: no foreign key like {name}: it is of partition {partition} alone"
        for table, partition, name in source.leaves
        if table == one.watched.source
    ]


def travels(one: Watched, column: str) -> bool:
    return column not in one.exclude and (one.include is None or column in one.include)


def _column(column: Column, one: Watched, place: Place) -> Column:
    """As it arrives: under its name on the target, whole values only, nothing computed there."""
    mask = one.mask.get(column.name)
    kind = column.type
    if kind.extension is not None:
        # The type is what it is called inside its extension, wherever that lives.
        schema = _plain(home(kind.extension, place))
        kind = replace(kind, spelled=re.sub(r'^(?:"(?:[^"]|"")+"|[^".]+)\.', lambda _: f"{schema}.", kind.spelled))
    default = column.default if constant(column.default) and kind.extension is None and mask is None else None
    emptied = mask == "null" or (mask == "redact" and not _STARS.fullmatch(kind.spelled))
    return replace(
        column,
        name=one.rename.get(column.name, column.name),
        type=TEXT if mask == "hash" else kind,
        not_null=column.not_null and not emptied,
        default=default,
        supplied=default is not None,
        generated=False,
        collation=column.collation if mask is None else None,
        comment=_comment(column.comment),
    )


def _comment(text: str | None) -> str | None:
    """To pg_graphql some comments are orders."""
    return None if text is not None and "@graphql" in text else text


def _plain(name: str) -> str:
    return name if re.fullmatch("[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'


def _elements(one: Watched, columns: Iterable[str]) -> tuple[Element, ...]:
    return tuple(Element(one.rename.get(column, column), "") for column in columns)


def _index(index: Index, one: Watched) -> tuple[Index | None, str]:
    """An index on the mirror, and what is to be said of it."""
    columns = [column for column in index.columns if column is not None]
    if not all(travels(one, column) for column in columns):
        return None, f"no index like {index.name}: it has a column that does not travel" * index.unique
    if not index.portable:
        return (
            None,
            f"no index like {index.name}: it needs a function, an operator or a type that the target may not have",
        )
    if not index.plain and (one.rename or one.mask or one.exclude or one.include):
        return None, f"no index like {index.name}: it has an expression or a condition, and the columns are mapped"
    written = [index.predicate or "", *(each.expression for each in index.elements)]
    if not index.plain and any(printable(text) != text for text in written):
        return None, f"no index like {index.name}: its expression or condition has characters that cannot be seen"
    elements = tuple(
        replace(each, column=each.column and one.rename.get(each.column, each.column)) for each in index.elements
    )
    masks = {one.mask.get(column) for column in columns}
    kept = replace(index, elements=elements, primary=False, constraint=False, referenced=False)
    if not index.unique:
        return kept, ""
    if not index.plain:
        # Nothing unique may stand in the way of rows that change places; only a constraint can wait for the end.
        return replace(
            kept, unique=False
        ), f"{index.name} is unique on the source alone: one with a condition or an expression cannot be deferrable"
    if "redact" in masks or ("null" in masks and index.nulls_equal):
        return replace(kept, unique=False), f"{index.name} is unique on the source alone: its values are masked"
    bare = tuple(replace(each, suffix="") for each in elements)
    return replace(kept, elements=bare, constraint=True, deferrable=True), ""


def _references(one: Watched, table: Table, mirrors: Mapping[Name, Watched]) -> tuple[list[Reference], list[str]]:
    """Foreign keys between mirrors: they never act, and can wait for the end of a batch."""
    kept, notes = [], []
    for each in table.references:
        parent = mirrors.get(each.parent)
        if each.child != table.name:
            continue
        if parent is None:
            notes.append(f"no foreign key like {each.name}: {'.'.join(each.parent)} is not watched")
        elif not each.enforced:
            notes.append(f"no foreign key like {each.name}: the source itself does not enforce it")
        elif parent.filtered:
            notes.append(f"no foreign key like {each.name}: of {parent.name} only some rows travel")
        elif not _whole(one, each.columns) or not _whole(parent, each.parent_columns):
            notes.append(f"no foreign key like {each.name}: a column of it is masked, or does not travel")
        else:
            kept.append(
                replace(
                    each,
                    child=one.target,
                    columns=tuple(one.rename.get(column, column) for column in each.columns),
                    parent=parent.target,
                    parent_columns=tuple(parent.rename.get(column, column) for column in each.parent_columns),
                    on_delete="a",
                    deferrable=True,
                )
            )
    return kept, notes


def _whole(one: Watched, columns: Iterable[str]) -> bool:
    return all(travels(one, column) and column not in one.mask for column in columns)


def _holding(one: Wanted, all_of_them: Iterable[Wanted]) -> Wanted:
    """With the indexes that foreign keys and policies rest on.

    A foreign key cannot refer to a unique constraint that waits: such a one checks at once.
    """
    referred = {
        frozenset(each.parent_columns) for other in all_of_them for each in other.references if each.parent == one.name
    }
    indexes = [
        replace(index, deferrable=False) if index.unique and frozenset(index.columns) in referred else index
        for index in one.table.indexes
    ]
    looked_up = [each.columns for each in one.references]
    looked_up += [(one.audience.owner,)] if one.audience.owner is not None else []
    for columns in looked_up:
        if not any(starts_with(index, columns) for index in (one.key, *indexes)):
            elements = tuple(Element(column, "") for column in columns)
            indexes.append(Index(_fit(one.name[1], *columns, "idx"), elements))
    return replace(one, table=replace(one.table, indexes=tuple(indexes)))


def starts_with(index: Index, columns: tuple[str, ...]) -> bool:
    """Can rows be found by these columns with it?"""
    return index.method == "btree" and index.predicate is None and set(index.columns[: len(columns)]) == set(columns)


def _fit(*words: str) -> str:
    """A name that Postgres does not cut."""
    *rest, last = words
    return "_".join(rest).encode()[: _LENGTH - len(last) - 1].decode(errors="ignore") + f"_{last}"
