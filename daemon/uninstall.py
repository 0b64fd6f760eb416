"""Leaving: what `uninstall` takes away on either side, and what would be lost with it.

Knows which statements, in which order, and that nobody may queue behind them. Knows nothing of settings or of
printing. Nothing of the user's goes: no CASCADE, no statement on a table of his but the one that drops our triggers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from daemon.errors import SchemaUnfit
from daemon.install import connect, patiently
from daemon.session import query
from outbox.migrations import FILES, Side, installed, migrations

ROLE = "outboxd"


@dataclass(frozen=True, slots=True)
class Loss:
    """What goes. `waiting`: changes that the target may not have; `leads`: a daemon is at work; `cursors`: on the target."""

    tables: tuple[str, ...]
    waiting: int = 0
    letters: int = 0
    leads: bool = False
    cursors: int = 0


def script(side: Side) -> str:
    """All of it in one transaction, for an SQL editor. May run again."""
    names = ("uninstall_triggers", "uninstall") if side == "source" else ("uninstall",)
    return "\n".join(
        ["begin;", "set local lock_timeout = '2s';\n", *(_text(side, name) for name in names), "commit;\n"]
    )


def look(dsn: str, side: Side) -> Loss | None:
    """What would be lost; None: nothing of outboxd is there."""
    with connect(dsn) as conn:
        try:
            row = conn.execute(query(f"uninstall_{side}")).fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return _remnant(conn, side)
    assert row is not None
    if side == "source":
        return Loss(tuple(row[0]), waiting=row[1], letters=row[2], leads=row[3])
    return Loss(tuple(row[0]), cursors=row[1], letters=row[2])


def _remnant(conn: "psycopg.Connection[tuple[object, ...]]", side: Side) -> Loss | None:
    """Half of it, left by a `drop` by hand, goes as well."""
    schema = "outbox" if side == "source" else "outboxd"
    row = conn.execute(query("uninstall_remnant"), {"schema": schema}).fetchone()
    return Loss(()) if row and row[0] else None


def uninstall(dsn: str, side: Side, said: Callable[[str], None]) -> None:
    """Take outboxd off one side. `said` is told of each table that is captured no more. Stopped anywhere, run it again.

    Raises SchemaUnfit when something that is not outboxd's is in the way, SourceUnavailable when a lock cannot be had.
    """
    with connect(dsn) as conn:
        _known(conn, side)
        if side == "source":
            for oid, name in conn.execute(query("uninstall_roots")).fetchall():
                conn.execute("select set_config('outboxd.only_table', %s, false)", (str(oid),))
                patiently(conn, _text(side, "uninstall_triggers"), about=str(name))
                said(str(name))
            conn.execute("reset outboxd.only_table")
        try:
            patiently(conn, _text(side, "uninstall"), about=f"a table of outboxd's on the {side}")
        except psycopg.errors.DependentObjectsStillExist as exc:
            # Names of the catalogue, no values. What lies in public is named as psql does.
            detail = (exc.diag.message_detail or "").replace(" public.", " ")
            more = f" ({'; '.join(detail.splitlines())})" if detail else ""
            raise SchemaUnfit(
                f"what is not outboxd's is in the way, and stays: {exc.diag.message_primary}{more}. Move or drop it, then run this again"
            ) from None


def _known(conn: "psycopg.Connection[tuple[object, ...]]", side: Side) -> None:
    """What a newer version added is not known here, and would be taken for somebody else's."""
    version, newest = installed(conn, side), migrations(side)[-1].version
    if version > newest:
        raise SchemaUnfit(
            f"the {side} is at migration {version}, this outboxd knows {newest}: uninstall with the newer outboxd"
        )


def keeps_role(dsn: str) -> str | None:
    """Why the daemon's role cannot be dropped by this user, which is to be known before anything else goes; None: it can, or
    there is none."""
    with connect(dsn) as conn:
        row = conn.execute(query("role_droppable")).fetchone()
        if row is None or not row[0] or row[1]:
            return None
        return (
            f"{conn.info.user} may not drop role {ROLE}: run this without --role, and  drop role {ROLE}  as the role that "
            "made it, or as a superuser"
        )


def drop_role(dsn: str) -> bool:
    """The daemon's role, if there is one; whether there was."""
    with connect(dsn) as conn:
        if not conn.execute("select true from pg_roles where rolname = %s", (ROLE,)).fetchone():
            return False
        try:
            conn.execute("drop role outboxd")
        except psycopg.errors.DependentObjectsStillExist as exc:
            more = f" ({'; '.join(exc.diag.message_detail.splitlines())})" if exc.diag.message_detail else ""
            raise SchemaUnfit(
                f"role {ROLE} still has rights or objects elsewhere{more}: revoke them in that database, then run this again"
            ) from None
    return True


def _text(side: Side, name: str) -> str:
    return (FILES / side / f"{name}.sql").read_text(encoding="utf-8")
