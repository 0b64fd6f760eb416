"""Are both stores equal? Every row of a table, every column, by its text.

Knows SQL's catalogue. Must not know how the rows came to be there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

# The text of a value must not depend on whose session it is.
_SPELLING = "set timezone = 'UTC'; set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres'; set extra_float_digits = 1; set bytea_output = 'hex'"
_COLUMNS = (
    "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped order by attnum"
)
_ROWS = "select row({key})::text, md5(row({columns})::text) from {table}"


@dataclass(frozen=True)
class Comparison:
    """One table. The lists hold keys, as text."""

    table: str
    source_rows: int
    target_rows: int
    missing: Sequence[str]
    extra: Sequence[str]
    different: Sequence[str]

    @property
    def equal(self) -> bool:
        return not (self.missing or self.extra or self.different)


def compare(
    source: psycopg.Connection[Any], target: psycopg.Connection[Any], table: str, key: Sequence[str] = ("id",)
) -> Comparison:
    """Compare one table, by the source's columns. Nobody may be writing meanwhile."""
    columns = [name for (name,) in source.execute(_COLUMNS, (table,)).fetchall()]
    here, there = (_rows(conn, table, columns, key) for conn in (source, target))
    return Comparison(
        table,
        len(here),
        len(there),
        missing=[key for key in here if key not in there],
        extra=[key for key in there if key not in here],
        different=[key for key in here if key in there and here[key] != there[key]],
    )


def _rows(conn: psycopg.Connection[Any], table: str, columns: Sequence[str], key: Sequence[str]) -> dict[str, str]:
    conn.execute(_SPELLING)
    listed = {
        name: sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(each)) for each in names)
        for name, names in (("columns", columns), ("key", key))
    }
    return dict(conn.execute(sql.SQL(_ROWS).format(**listed, table=sql.Identifier(*_parts(table)))).fetchall())


def _parts(table: str) -> list[str]:
    return [part.strip('"') for part in table.split(".")]
