"""The SQL that both sides need: as migrations to apply, or as a script for another tool.

Knows the files in sql/ and the tables that record them. Everything runs in one transaction under a lock, so
concurrent installers take turns and a failure leaves nothing behind.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from outbox.errors import MigrationChanged, SchemaMissing, SchemaTooNew

Side = Literal["source", "target"]

FILES = Path(__file__).resolve().parent.parent / "sql"
_SCHEMA: dict[Side, str] = {"source": "outbox", "target": "outboxd"}
_LOCK = (1869968482, 0)
# Whoever may create in a schema of the search_path could put a function in the way of one of the system's, and setup would run it.
_PINNED = "select pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', {local})"
_ROLE_GRANTED = (FILES / "queries" / "role_granted.sql").read_bytes()


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file. `checksum` is the SHA-256 of its text, in hex."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Tells an edited file from the one that was applied."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations(side: Side) -> tuple[Migration, ...]:
    """All migrations of one side, in their order."""
    found = []
    for path in sorted((FILES / side).glob("[0-9]*.sql")):
        number, _, name = path.stem.partition("_")
        found.append(Migration(int(number), name, path.read_text(encoding="utf-8")))
    return tuple(found)


def step(side: Side, name: str, **replace: str) -> str:
    """An unnumbered file of one side (`role`, `exposed`), with words replaced as a whole."""
    text = (FILES / side / f"{name}.sql").read_text(encoding="utf-8")
    for old, new in replace.items():
        text = text.replace(f"{old}.outboxd(", f"{new}.outboxd(")
    return text


def installed(conn: psycopg.Connection[Any], side: Side) -> int:
    """Highest migration applied, 0 when the schema is not there."""
    return max((version for version, _ in _recorded(conn, side)), default=0)


def require(conn: psycopg.Connection[Any], side: Side) -> None:
    """Raise unless the database is at this version's schema."""
    version, newest = installed(conn, side), migrations(side)[-1].version
    if version > newest:
        raise SchemaTooNew(_too_new(side, version, newest))
    if version < newest:
        state = "not installed" if not version else f"at migration {version} of {newest}"
        raise SchemaMissing(f"schema {_SCHEMA[side]} is {state}: run `outboxd setup {side}`")


def migrate(conn: psycopg.Connection[Any], side: Side, *, exposed_schema: str = "public") -> list[Migration]:
    """Apply what is pending, in one transaction; returns what was applied. On the source, whatever of it others were given and were
    not meant to have is taken back, and the daemon's role, if it is there, has what it needs.

    Raises SchemaTooNew when the database knows a migration this version does not, MigrationChanged when an
    applied one had another text.
    """
    known = migrations(side)
    outermost = conn.info.transaction_status == TransactionStatus.IDLE
    with conn.transaction():
        if outermost:
            # A snapshot taken before the lock would hide what the installer before us did.
            conn.execute("set transaction isolation level read committed")
        [path] = conn.execute("select pg_catalog.current_setting('search_path')").fetchone() or [""]
        if side == "source":
            conn.execute(_PINNED.format(local="true"))
        _take_turns(conn, side)
        recorded = dict(_recorded(conn, side))
        if recorded and max(recorded) > known[-1].version:
            raise SchemaTooNew(_too_new(side, max(recorded), known[-1].version))
        for migration in known:
            if recorded.get(migration.version, migration.checksum) != migration.checksum:
                raise MigrationChanged(
                    f"migration {migration.version:04}_{migration.name} of the {side} is not the one that was applied: "
                    "install the version of outboxd that applied it, or restore the file"
                )
        pending = [m for m in known if m.version not in recorded]
        for migration in pending:
            conn.execute(migration.sql.encode())
            conn.execute(_record(side, migration))
        if side == "target":
            conn.execute(step(side, "exposed", public=quote(exposed_schema)).encode())
        else:
            conn.execute(step(side, "close").encode())
            if conn.execute(_ROLE_GRANTED).fetchone():
                conn.execute(step(side, "role").encode())
            conn.execute("select set_config('search_path', %s, true)", (path,))
    return pending


def script(side: Side, *, exposed_schema: str = "public") -> str:
    """All of one side as SQL for a migration tool or an SQL editor. Running it again is harmless."""
    parts = [f"-- outboxd: the {side}'s side. Running this again is harmless.\n"]
    if side == "source":
        parts.append(
            "select pg_catalog.set_config('outboxd.search_path', pg_catalog.current_setting('search_path'), false);\n"
            f"{_PINNED.format(local='false')};\n"
        )
    for migration in migrations(side):
        parts.append(f"-- {migration.version:04}_{migration.name}\n{migration.sql}")
        parts.append(_record(side, migration).as_string(None) + ";\n")
    if side == "target":
        parts.append(step(side, "exposed", public=quote(exposed_schema)))
    else:
        parts.append(step(side, "close"))
        parts.append(
            "select pg_catalog.set_config('search_path', pg_catalog.current_setting('outboxd.search_path'), false);\n"
        )
    return "\n".join(parts)


def quote(name: str) -> str:
    """An SQL identifier, quoted."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string, quoted: for statements that a person is to run, on a server of any settings. What no terminal shows, or
    what would act there, is written in octal."""
    quoted = "'" + text.replace("'", "''") + "'"
    if "\\" not in quoted and quoted.isprintable():
        return quoted
    return " E" + "".join(
        one if one.isprintable() else "".join(f"\\{byte:03o}" for byte in one.encode())
        for one in quoted.replace("\\", "\\\\")
    )


def _take_turns(conn: psycopg.Connection[Any], side: Side) -> None:
    """Until the transaction ends. An advisory lock, which anybody may hold, only while there is no table to lock, or no right
    to."""
    # Over a table: only who locks one is told what others have made meanwhile, and a name that was not there is remembered.
    lockable = "select coalesce((select has_table_privilege(c.oid, 'update') from pg_catalog.pg_class c where c.oid = to_regclass(%s)), false)"
    table = sql.Identifier(_SCHEMA[side], "migration")
    for _ in range(2):  # it may have been made while this one waited
        row = conn.execute(lockable, (f"{_SCHEMA[side]}.migration",)).fetchone()
        if row and row[0]:
            conn.execute(sql.SQL("lock table {} in share row exclusive mode").format(table))
            return
        conn.execute("select pg_advisory_xact_lock(%s, %s)", _LOCK)


def _recorded(conn: psycopg.Connection[Any], side: Side) -> list[tuple[int, str]]:
    table = f"{_SCHEMA[side]}.migration"
    row = conn.execute("select to_regclass(%s) is not null", (table,)).fetchone()
    if not row or not row[0]:
        return []
    name = sql.Identifier(_SCHEMA[side], "migration")
    return conn.execute(sql.SQL("select version, checksum from {} order by version").format(name)).fetchall()


def _record(side: Side, migration: Migration) -> sql.Composed:
    return sql.SQL(
        "insert into {} (version, name, checksum) values ({}, {}, {}) on conflict (version) do nothing"
    ).format(sql.Identifier(_SCHEMA[side], "migration"), migration.version, migration.name, migration.checksum)


def _too_new(side: Side, version: int, newest: int) -> str:
    return (
        f"schema {_SCHEMA[side]} of the {side} is at migration {version}, this outboxd knows {newest}: "
        "install the newer outboxd"
    )
