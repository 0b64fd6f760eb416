"""Opening a Postgres connection for a process that must notice a dead peer.

Knows connection options, and how a failure to connect is told. Knows nothing of what is asked over it.
"""

import re
from typing import Any

import psycopg

# Idle, a dead link is found by keepalives; with a query in flight only by tcp_user_timeout. A frozen server
# process still acknowledges: only the caller's own deadline finds that.
_OPTIONS: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}


async def connect(dsn: str, application_name: str) -> psycopg.AsyncConnection[Any]:
    """An autocommit connection.

    Nothing is prepared: a generic plan does not know a window's bounds and would scan the outbox, and behind a
    transaction pooler a prepared statement belongs to somebody else.
    """
    return await psycopg.AsyncConnection.connect(
        dsn, autocommit=True, prepare_threshold=None, application_name=application_name, **_OPTIONS
    )


def cause(exc: psycopg.Error) -> str:
    """Why, in a few words: the SQLSTATE, or what was said of the connection, which names no password."""
    said = re.findall(r"failed: +(?:FATAL: +)?(.+)", str(exc))
    return exc.sqlstate or (said[-1] if said else type(exc).__name__)


def turned_away(exc: psycopg.Error) -> bool:
    """Did the server refuse who connects (it gives no SQLSTATE for that), so that waiting will not help?"""
    return bool(re.search("authentication failed|does not exist|not permitted|pg_hba.conf", cause(exc)))
