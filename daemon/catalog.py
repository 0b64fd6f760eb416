"""Reading the catalogues of both sides.

Knows sql/queries/catalog_*.sql and the rows they give. Knows nothing of what is wanted, and changes nothing.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from daemon.schema_types import lost_labels
from daemon.session import query
from daemon.structure import (
    ROLES,
    Audience,
    Catalogue,
    Column,
    Element,
    Index,
    Name,
    Place,
    Policy,
    Reference,
    Table,
    Type,
    UserType,
    Watched,
)
from daemon.tables import parts

Connection = psycopg.Connection[Any]


@contextmanager
def reading(conn: Connection) -> Iterator[None]:
    """One snapshot, in which every name is spelled whole."""
    with conn.transaction():
        conn.execute("set transaction isolation level repeatable read read only")
        conn.execute("set local search_path = ''")
        conn.execute("set local quote_all_identifiers = off")
        yield


def read_watched(conn: Connection) -> list[Watched]:
    """What is watched on the source."""
    with reading(conn):
        return [_watched(row) for (row,) in conn.execute(query("catalog_watched"))]


def read_locked(conn: Connection, side: str) -> dict[str, str]:
    """Watched tables, or mapped ones, that somebody has locked, and what is to be said of that. To read more of them would wait."""
    with reading(conn):
        if side == "source":
            return dict(conn.execute(query("locked")).fetchall())
        return dict(conn.execute("select table_name, said from outboxd.locked()").fetchall())


def read_audiences(conn: Connection) -> dict[str, Audience]:
    """Who may see tables' rows on the target, as the source has it on record."""
    with reading(conn):
        return {row[0]: Audience(*row[1:]) for row in _rows(conn, "catalog_audiences")}


def read_source(conn: Connection, watched: Collection[Watched]) -> Catalogue:
    """The watched tables, their types, and which of them have no rows."""
    with reading(conn):
        tables, oids = _tables(conn, [one.source for one in watched if one.there])
        needed = {
            column.type.element for table in tables.values() for column in table.columns if not column.type.builtin
        }
        empty = [name for name in tables if not _has_rows(conn, name)]
        leaves = [((row[0], row[1]), row[2], row[3]) for row in _rows(conn, "catalog_leaves", oids=list(oids))]
        return Catalogue(tables, _types(conn, needed), empty=frozenset(empty), leaves=leaves)


def read_target(
    conn: Connection, names: Collection[Name], types: Collection[UserType], without: Collection[str] = ()
) -> Catalogue:
    """The tables of these names and those that are mapped (`without`: but these), the types of these names, and the project
    around them."""
    with reading(conn):
        place = _place(conn, {name[0] for name in names})
        mapped = {name for table, (name, _) in place.mirrors.items() if table not in without}
        tables, oids = _tables(conn, {*names, *mapped})
        for oid, column, what in list(_rows(conn, "catalog_dependents", oids=list(oids))):
            mine = tables[oids[oid]].dependents
            assert isinstance(mine, dict)
            mine[column] = (*mine.get(column, ()), what)
        there = _types(conn, [each.name for each in types])
        return Catalogue(tables, there, place, spoken=_spoken(conn, tables, there, types))


def _spoken(
    conn: Connection, tables: Mapping[Name, Table], there: Collection[UserType], types: Collection[UserType]
) -> dict[Name, frozenset[str]]:
    """Labels that the source's enum types have no longer, and rows of the target do."""
    source = {each.name: each for each in types}
    found = {}
    for each in there:
        old = lost_labels(source[each.name], each) if each.kind == "e" and each.name in source else []
        found[each.name] = frozenset(label for label in old if _has_label(conn, tables, each.name, label))
    return found


def _has_label(conn: Connection, tables: Mapping[Name, Table], of: Name, label: str) -> bool:
    for table in tables.values():
        for column in table.columns:
            if column.type.element == of and table.mine:
                test = "{2} = any ({1}::text[])" if column.type.spelled.endswith("[]") else "{1}::text = {2}"
                asked = sql.SQL(f"select exists (select from {{0}} where {test})")  # noqa: S608
                # By no parameter: a percent sign in a name would be one.
                names = (sql.Identifier(*table.name), sql.Identifier(column.name), sql.Literal(label))
                row = conn.execute(asked.format(*names))
                if row.fetchone() == (True,):
                    return True
    return False


def _watched(row: dict[str, Any]) -> Watched:
    source = parts(row["table_name"])
    assert source is not None  # it was written by format('%I.%I')
    return Watched(
        name=row["table_name"],
        source=source,
        key=tuple(row["key"] or ()),
        target=parts(row.get("target") or "") or source,
        there=row["there"],
        capture=row["capture"],
        include=None if row["include"] is None else tuple(row["include"]),
        exclude=tuple(row["exclude"] or ()),
        rename=row.get("rename") or {},
        constant=row.get("constant") or {},
        mask=row.get("mask") or {},
        filtered=bool(row.get("filter")),
        sent=frozenset(row["sent"] or ()),
    )


def _rows(conn: Connection, name: str, **parameters: Any) -> Sequence[tuple[Any, ...]]:
    return conn.execute(query(name), parameters).fetchall()


def _tables(conn: Connection, names: Collection[Name]) -> tuple[dict[Name, Table], dict[int, Name]]:
    asked = [sql.Identifier(*name).as_string(conn) for name in names]
    found = _rows(conn, "catalog_tables", tables=asked, roles=list(ROLES))
    oids = {row[0]: (row[1], row[2]) for row in found}
    of: dict[str, dict[int, list[Any]]] = {kind: defaultdict(list) for kind in ("columns", "indexes", "policies")}
    for row in _rows(conn, "catalog_columns", oids=list(oids)):
        of["columns"][row[0]].append(_column(row[1:]))
    for row in _rows(conn, "catalog_indexes", oids=list(oids)):
        of["indexes"][row[0]].append(_index(row[1:]))
    for oid, name, command, roles, using, check in _rows(conn, "catalog_policies", oids=list(oids)):
        of["policies"][oid].append(Policy(name, command, tuple(roles), using, check))
    references = [_reference(row) for row in _rows(conn, "catalog_references", oids=list(oids))]
    tables = {
        name: Table(
            name,
            tuple(of["columns"][oid]),
            tuple(of["indexes"][oid]),
            tuple(one for one in references if name in {one.child, one.parent}),
            policies=tuple(of["policies"][oid]),
            **_rest(row),
        )
        for row in found
        for oid, name in [(row[0], (row[1], row[2]))]
    }
    return tables, oids


def _rest(row: tuple[Any, ...]) -> dict[str, Any]:
    *_, partitioned, secured, comment, rows, mine, grants, triggers = row
    return {
        "partitioned": partitioned,
        "secured": secured,
        "comment": comment,
        "rows": rows,
        "mine": mine,
        "grants": frozenset(tuple(grant.rsplit(" ", 1)) for grant in grants),
        "triggers": tuple(triggers),
        "dependents": {},
    }


def _column(row: tuple[Any, ...]) -> Column:
    (
        name,
        spelled,
        schema,
        element,
        kind,
        extension,
        base,
        not_null,
        default,
        by_itself,
        generated,
        collation,
        comment,
    ) = row
    return Column(
        name,
        Type(spelled, (schema, element), kind, extension, base),
        not_null,
        default=None if by_itself else default,
        supplied=by_itself or default is not None,
        generated=generated,
        collation=collation,
        comment=comment,
    )


def _index(row: tuple[Any, ...]) -> Index:
    name, method, unique, primary, constraint, deferrable, columns, expressions, suffixes, predicate, *rest = row
    nulls_equal, portable, referenced = rest
    elements = tuple(Element(*each) for each in zip(columns, expressions, suffixes, strict=True))
    return Index(
        name, elements, method, unique, primary, constraint, deferrable, predicate, nulls_equal, portable, referenced
    )


def _reference(row: tuple[Any, ...]) -> Reference:
    name, child_schema, child, parent_schema, parent, columns, parent_columns, *rest = row
    return Reference(name, (child_schema, child), tuple(columns), (parent_schema, parent), tuple(parent_columns), *rest)


def _types(conn: Connection, names: Collection[Name]) -> tuple[UserType, ...]:
    asked = [sql.Identifier(*name).as_string(conn) for name in names]
    return tuple(
        UserType((schema, name), kind, extension, tuple(labels), base or columns, tuple(map(tuple, needs)))
        for schema, name, kind, extension, labels, base, columns, needs in _rows(conn, "catalog_types", types=asked)
    )


def _place(conn: Connection, schemas: Collection[str]) -> Place:
    ((found,),) = _rows(conn, "catalog_place", roles=list(ROLES), schemas=list(schemas))
    copies = _rows(conn, "catalog_copies") if found["copy"] else []
    realtime = found["realtime"]
    return Place(
        roles=frozenset(found["roles"]),
        schemas=frozenset(found["schemas"]),
        usable=frozenset(tuple(one.split(" ", 1)) for one in found["usable"]),
        extensions=found["extensions"],
        relations={(schema, name): owner for schema, name, owner in found["relations"]},
        realtime=None if realtime is None else frozenset(tuple(one) for one in realtime["tables"]),
        realtime_all=bool(realtime and realtime["all"]),
        has_uid=found["uid"],
        mirrors={table: ((schema, name), tuple(key)) for table, schema, name, key in found["mirrors"]},
        copies=frozenset((table, state) for table, state in copies),
    )


def _has_rows(conn: Connection, name: Name) -> bool:
    """Who may not look takes it that there are some."""
    try:
        with conn.transaction():
            row = conn.execute(sql.SQL("select exists (select from {})").format(sql.Identifier(*name))).fetchone()
            return bool(row and row[0])
    except psycopg.errors.InsufficientPrivilege:
        return True
