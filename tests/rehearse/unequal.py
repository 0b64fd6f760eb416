"""What may go wrong with the equality of both stores: the mirror is written to, or can be compared no longer.

Knows the example application's tables, and what outboxd reads rows with. Must not know how long anything takes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.rehearse.stage import Stage, connect, until

_TABLE = 'public."VideoAsset"'  # the application writes each of its rows once
_ENOUGH = 40  # rows, so that one is less than 5 %
_READER = (
    "select p.oid::regprocedure::text from pg_proc p join outbox.watched w on p.proname = 'copy_' || w.id"
    " where p.pronamespace = 'outbox'::regnamespace and w.table_name = %s"
)


@contextmanager
def rows_deleted(stage: Stage) -> Iterator[None]:
    """More than 5 %."""
    _write(stage, 'delete from "VideoAsset" where random() < 0.33')
    yield from _verified(stage)


@contextmanager
def row_added(stage: Stage) -> Iterator[None]:
    """More than 0.01 %. Nothing that the application does takes it away again."""
    _write(
        stage,
        """insert into "Story" ("id", "title", "createdAt", "updatedAt") values (gen_random_uuid(), 'by hand', now(), now())""",
        "Story",
    )
    yield from _verified(stage, 'public."Story"')


@contextmanager
def rows_unreadable(stage: Stage) -> Iterator[None]:
    """Somebody tidies up on the source. The alert fires because passes fail, and then because they are late."""
    with connect(stage.app) as conn:
        found = conn.execute(_READER, (_TABLE,)).fetchone()
        assert found is not None
        conn.execute(f"drop function {found[0]}".encode())
    try:
        yield
        if not until(lambda: {"failed", "late"} <= _stale(stage), 90):
            raise RuntimeError(f"{_TABLE} cannot be verified: the alert fires because of {_stale(stage) or 'nothing'}")
    finally:
        stage.outboxd("watch", _TABLE)


def _write(stage: Stage, statement: str, table: str = "VideoAsset") -> None:
    """To the mirror, as somebody who takes it for a table of theirs."""
    count = f'select count(*) from "{table}"'
    with connect(stage.project) as conn:
        until(lambda: (conn.execute(count.encode()).fetchone() or (0,))[0] >= _ENOUGH, 60)
        conn.execute(statement.encode())


def _verified(stage: Stage, table: str = _TABLE) -> Iterator[None]:
    try:
        yield
    finally:
        stage.outboxd("verify", table, "--repair")


def _stale(stage: Stage) -> set[str]:
    """Why verification is stale."""
    firing = stage.prometheus.ask('ALERTS{alertname="OutboxdVerificationStale",alertstate="firing"}')
    return {one["metric"]["because"] for one in firing}
