"""Recording changes by a call, in the caller's own transaction.

Never commits. Write the business row first, then emit: the other order cannot be repaired by any reader.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus

from outbox.change import Change
from outbox.errors import InvalidChange, NotInTransaction, OutboxError, SchemaMissing, UnknownTable
from outbox.migrations import FILES

_EMIT = (FILES / "queries" / "emit.sql").read_bytes()


def emit(conn: psycopg.Connection[Any], change: Change) -> int:
    """Record one change; returns its id.

    Raises NotInTransaction when no transaction is open (nothing was written in it yet, so this would be the
    wrong order), UnknownTable and InvalidChange before anything is written. A refusal by the database aborts
    the transaction, as any failed statement does.
    """
    return emit_many(conn, [change])[0]


def emit_many(conn: psycopg.Connection[Any], changes: Iterable[Change]) -> list[int]:
    """Record several changes in one statement, in their order; returns their ids."""
    _require_transaction(conn.info.transaction_status)
    parameters = _parameters(list(changes))
    try:
        return [row[0] for row in conn.execute(_EMIT, parameters).fetchall()]
    except psycopg.Error as exc:
        if ours := _translated(exc):
            raise ours from exc
        raise


async def aemit(conn: psycopg.AsyncConnection[Any], *changes: Change) -> list[int]:
    """Record changes on an async connection, as `emit_many`; returns their ids."""
    _require_transaction(conn.info.transaction_status)
    parameters = _parameters(changes)
    try:
        cursor = await conn.execute(_EMIT, parameters)
        return [row[0] for row in await cursor.fetchall()]
    except psycopg.Error as exc:
        if ours := _translated(exc):
            raise ours from exc
        raise


def _require_transaction(status: TransactionStatus) -> None:
    if status == TransactionStatus.IDLE:
        raise NotInTransaction(
            "emit needs the open transaction that wrote the row: with conn.transaction(): <write the row>; emit(conn, change)"
        )


def _parameters(changes: Sequence[Change]) -> tuple[list[str], list[str], list[str], list[str | None]]:
    return (
        [change.table for change in changes],
        [str(change.op) for change in changes],
        [change.values_json() for change in changes],
        [change.headers_json() for change in changes],
    )


def _translated(exc: psycopg.Error) -> OutboxError | None:
    """Ours where the cause is ours to explain; a lost connection stays the driver's error."""
    message = exc.diag.message_primary or type(exc).__name__
    match exc:
        case errors.UndefinedFunction() | errors.InvalidSchemaName():
            return SchemaMissing("schema outbox is not installed: run `outboxd setup source`")
        case errors.UndefinedTable():
            return UnknownTable(f"{message}. {exc.diag.message_hint or ''}".strip())
        case errors.InsufficientPrivilege():
            return InvalidChange(
                f"{message}: grant usage on schema outbox, and execute on function outbox.emit, to this role"
            )
        case errors.InvalidParameterValue() | errors.UndefinedColumn():
            return InvalidChange(message)
        case errors.DataError() | errors.IntegrityError():
            return InvalidChange(f"a value does not fit its column ({exc.sqlstate})")
    return None
