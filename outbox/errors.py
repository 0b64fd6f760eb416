"""Errors an application may meet.

OutboxError
├── NotInTransaction   emit outside a transaction, or before the business row was written
├── InvalidChange      a change that cannot be recorded; nothing was written
│   └── UnknownTable   its table is neither watched nor mapped
└── SchemaError        the database's outbox schema does not fit this version
    ├── SchemaMissing
    ├── SchemaTooNew
    └── MigrationChanged
"""


class OutboxError(Exception):
    """Whatever this package raises by itself."""


class NotInTransaction(OutboxError):
    """`emit` belongs into the transaction that wrote the row, after the write."""


class InvalidChange(OutboxError):
    """The change cannot be recorded. Nothing was written."""


class UnknownTable(InvalidChange):
    """The table is neither watched nor mapped."""


class SchemaError(OutboxError):
    """The schema in the database does not fit this version."""


class SchemaMissing(SchemaError):
    """The schema is not installed."""


class SchemaTooNew(SchemaError):
    """The database was migrated by a newer version."""


class MigrationChanged(SchemaError):
    """A migration's text is not the one that was applied."""
