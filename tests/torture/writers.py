"""The bank's tellers: threads that write to the source in transactions of many shapes.

Know the bank's tables. Must not know the outbox, nor the target. Whoever locks rows does so in one order (checking,
savings, lists; by key), so no two of them deadlock.
"""

import random
import threading
from collections.abc import Callable, Mapping
from typing import Any

import psycopg

from tests.torture.ledger import Drawn, Ledger

ACCOUNTS = 16  # in each of both tables
BALANCE = 1_000
TOTAL = 2 * ACCOUNTS * BALANCE
SLOTS = 8
GENERATION = 2_000  # numbers, after which new lists begin

_MOVE = "update {} set balance = balance + %s, version = version + 1 where id = %s"
_APPEND = (
    "insert into list (key, numbers) values (%s, array[%s::bigint])"
    " on conflict (key) do update set numbers = list.numbers || excluded.numbers, version = list.version + 1"
)
_RECEIPT = "insert into receipt (id, owner, account, amount, memo, version) values (%s, %s, %s, %s, %s, %s)"
_MINE = "select id from receipt where owner = %s order by random() limit %s"
_AMEND = "update receipt set amount = amount + 1, version = version + 1 where id = any (%s)"
_RENUMBER = "update receipt set id = %s, version = version + 1 where id = %s"
_REMOVE = "delete from receipt where id = any (%s) returning id, account, version"
_LOCK_ALL = (
    "select from checking order by id for no key update",
    "select from savings order by id for no key update",
)
_INTEREST = (
    "update checking set balance = balance - 1, version = version + 1",
    "update savings set balance = balance + 1, version = version + 1",
)

Connection = psycopg.Connection[Any]


def populate(conn: Connection) -> None:
    """Every account, in one transaction."""
    for table in ("checking", "savings"):
        conn.execute(
            f"insert into {table} (id, balance) select i, %s from generate_series(1, %s) i", (BALANCE, ACCOUNTS)
        )


class Writer:
    """One thread, one connection at a time. `durable`: does it wait for its commits to be on disk?"""

    def __init__(self, number: int, dsn: str, ledger: Ledger, seed: str, canary: str, *, durable: bool = True) -> None:
        self.number = number
        self._dsn = dsn
        self._ledger = ledger
        self._random = random.Random(f"{seed}/writer {number}")
        self._canary = canary
        self._durable = durable
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"writer-{number}", daemon=True)
        self._shapes: Mapping[Callable[[Connection, Drawn], None], int] = {
            self._transfer: 40, self._many_appends: 10, self._savepoints: 14, self._amend: 12, self._renumber: 6,
            self._replace: 6, self._slow: 3, self._bulk: 2, self._interest: 2, self._rollback: 8,
        }  # fmt: skip

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the transaction in hand."""
        self._stopped.set()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            if self._ledger.crowded:  # without a connection: it might die meanwhile, and that would be found too late
                self._stopped.wait(0.1)
                continue
            try:
                with psycopg.connect(self._dsn, connect_timeout=10, application_name=f"teller {self.number}") as conn:
                    if not self._durable:
                        conn.execute("set synchronous_commit = off")
                        conn.commit()
                    while not (self._stopped.wait(self._random.expovariate(40.0)) or self._ledger.crowded):
                        self._turn(conn)
            except _Broken:
                self._stopped.wait(0.1)
            except psycopg.Error as error:  # no connection to begin with
                self._ledger.broke(Drawn(), _said(error), in_doubt=False, connection=_is_connection(error))
                self._stopped.wait(0.2)

    def _turn(self, conn: Connection) -> None:
        """One transaction, and what became of it."""
        (shape,) = self._random.choices(list(self._shapes), list(self._shapes.values()))
        drawn, committing = Drawn(), False
        try:
            shape(conn, drawn)
            if shape == self._rollback:
                conn.rollback()
                self._ledger.rolled_back(drawn)
                return
            committing = True
            conn.commit()
        except psycopg.Error as error:
            self._ledger.broke(drawn, _said(error), in_doubt=committing, connection=_is_connection(error))
            raise _Broken from None
        self._ledger.committed(shape.__name__.strip("_").replace("_", " "), drawn, durable=self._durable)

    # -- shapes --------------------------------------------------------------------------------------------

    def _transfer(self, conn: Connection, drawn: Drawn) -> None:
        self._move(conn)
        self._note(conn, 1)
        self._append(conn, drawn)

    def _many_appends(self, conn: Connection, drawn: Drawn) -> None:
        self._append(conn, drawn, self._random.randint(2, 5))

    def _savepoints(self, conn: Connection, drawn: Drawn) -> None:
        """A part is taken back, another is kept."""
        regretted = Drawn()
        conn.execute("select")  # begins: what follows are savepoints
        with conn.transaction(force_rollback=True):
            self._transfer(conn, regretted)
        drawn.undone += regretted.kept
        with conn.transaction():
            self._transfer(conn, drawn)
            with conn.transaction():
                self._note(conn, 2)

    def _amend(self, conn: Connection, drawn: Drawn) -> None:
        """The same rows twice in one transaction."""
        mine = self._mine(conn, 4)
        conn.execute(_AMEND, (mine,))
        conn.execute(_AMEND, (mine[:2],))
        self._append(conn, drawn)

    def _renumber(self, conn: Connection, drawn: Drawn) -> None:
        """A key changes."""
        for receipt in self._mine(conn, 2):
            conn.execute(_RENUMBER, (self._ledger.number(), receipt))
        self._append(conn, drawn)

    def _replace(self, conn: Connection, drawn: Drawn) -> None:
        """Rows go, and some of them come again under the same key."""
        gone = conn.execute(_REMOVE, (self._mine(conn, 6),)).fetchall()
        for key, account, version in gone[::2]:
            conn.execute(_RECEIPT, (key, self.number, account, 0, self._canary, version + 1))
        self._append(conn, drawn)

    def _slow(self, conn: Connection, drawn: Drawn) -> None:
        """Writes early and commits late: others, begun later, are visible before it."""
        self._note(conn, 3)
        self._stopped.wait(self._random.uniform(0.2, 2.0))
        self._transfer(conn, drawn)

    def _bulk(self, conn: Connection, drawn: Drawn) -> None:
        """Many rows at once, below the limit of a batch."""
        self._note(conn, 80)
        conn.execute(_REMOVE, (self._mine(conn, 70),))
        self._append(conn, drawn)

    def _interest(self, conn: Connection, drawn: Drawn) -> None:
        """Every account in two statements."""
        for statement in _LOCK_ALL + _INTEREST:
            conn.execute(statement.encode())
        self._append(conn, drawn)

    def _rollback(self, conn: Connection, drawn: Drawn) -> None:
        self._transfer(conn, drawn)
        self._note(conn, 5)

    # -- what they are made of -----------------------------------------------------------------------------

    def _move(self, conn: Connection) -> None:
        """From one account to another, over both tables or within one."""
        amount = self._random.randint(1, 50)
        places = [(self._random.choice(("checking", "savings")), account) for account in self._two(ACCOUNTS)]
        signs = {places[0]: -amount, places[1]: amount}
        for table, account in sorted(signs):
            conn.execute(_MOVE.format(table).encode(), (signs[table, account], account))

    def _append(self, conn: Connection, drawn: Drawn, times: int = 1) -> None:
        numbers = [self._ledger.number() for _ in range(times)]
        drawn.kept += numbers
        generation = numbers[0] // GENERATION * SLOTS
        for slot, number in sorted((self._random.randrange(SLOTS), number) for number in numbers):
            conn.execute(_APPEND, (generation + slot, number))

    def _note(self, conn: Connection, times: int) -> None:
        for _ in range(times):
            account, amount = self._random.randint(1, ACCOUNTS), self._random.randint(1, 50)
            conn.execute(_RECEIPT, (self._ledger.number(), self.number, account, amount, self._canary, 1))

    def _mine(self, conn: Connection, most: int) -> list[int]:
        return [key for (key,) in conn.execute(_MINE, (self.number, most)).fetchall()]

    def _two(self, among: int) -> list[int]:
        return self._random.sample(range(1, among + 1), 2)


class _Broken(Exception):
    """The connection is of no more use, and the ledger knows."""


def _is_connection(error: psycopg.Error) -> bool:
    """Is the server gone, going or coming, rather than unwilling?"""
    return error.sqlstate is None or error.sqlstate.startswith(("57P", "08"))


def _said(error: psycopg.Error) -> str:
    return f"{type(error).__name__} {error.sqlstate or ''} {str(error).splitlines()[0] if str(error) else ''}".strip()
