"""What an application imports to record its changes. Imports psycopg and the standard library only."""

from outbox.change import Change, Op
from outbox.cursor import Cursor, Mark, Span
from outbox.emit import aemit, emit, emit_many
from outbox.errors import (
    InvalidChange,
    MigrationChanged,
    NotInTransaction,
    OutboxError,
    SchemaError,
    SchemaMissing,
    SchemaTooNew,
    UnknownTable,
)

__version__ = "0.1.0"

__all__ = [
    "Change",
    "Cursor",
    "InvalidChange",
    "Mark",
    "MigrationChanged",
    "NotInTransaction",
    "Op",
    "OutboxError",
    "SchemaError",
    "SchemaMissing",
    "SchemaTooNew",
    "Span",
    "UnknownTable",
    "aemit",
    "emit",
    "emit_many",
]
