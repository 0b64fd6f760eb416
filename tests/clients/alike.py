"""When a daemon that runs beside writers has brought everything, and whether both sides are equal then.

Knows the cursor and the records of copies. What is compared is asked in plain SQL, of both sides alike.
"""

from collections.abc import Callable, Iterable
from typing import Any

from daemon.demo.child import Outboxd
from tests.acceptance.conftest import REACHED, WAITING, wait_until
from tests.clients.invented import ident
from tests.fidelity.stores import SPELLING, Connection, dump, first_difference

PATIENCE = 120.0


def unsettled(app: Connection, mirror: Connection, tables: int) -> list[Any]:
    """Of so many tables that are copied: those that are not yet; what is held; whether anything waits."""
    copies = mirror.execute(
        "select table_name, state, reason from outboxd.copy where wish > 0 or state <> 'done' order by 1"
    ).fetchall()
    found: list[Any] = [copy for copy in copies if copy[1] != "done"] + [tables - len(copies)] * (len(copies) != tables)
    found += app.execute("select table_name, key, sqlstate, reason from outbox.held limit 9").fetchall()
    reached = mirror.execute(REACHED).fetchone()
    assert reached is not None
    return found + ["changes wait"] * (app.execute(WAITING, reached).fetchone() == (True,))


def arrives(running: Outboxd, left: Callable[[], list[Any]]) -> None:
    """Wait until nothing is left; or say what is."""
    try:
        wait_until(lambda: running.returncode is not None or not left(), PATIENCE)
    finally:
        assert (running.returncode, left()) == (None, []), running.last_words()


def differs(app: Connection, mirror: Connection, table: str, columns: Iterable[str], key: Iterable[str]) -> str:
    """The first row that does, to the last byte; empty when none does."""
    listed, ordered = (", ".join(map(ident, names)) for names in (columns, key))
    query = f"copy (select {listed} from {table} order by {ordered}) to stdout"
    found = []
    for conn in (app, mirror):
        with conn.transaction(force_rollback=True):
            conn.execute(SPELLING)
            found.append(dump(conn, query))
    return "" if found[0] == found[1] else f"{table}: {first_difference(*found)}"
