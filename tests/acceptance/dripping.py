"""An application that writes without end, each row once, while daemons come and go."""

import threading
import time
from typing import Any, Self

import psycopg

from tests.acceptance.conftest import STORIES
from tests.databases import Database

# A row that the target refuses, and one more change of such a row.
_POISON = """insert into "Story" ("id", "title", "updatedAt") values (gen_random_uuid(), 'poison', clock_timestamp())"""
_TOUCH = """
update "Story" set "isPublic" = true
 where "id" = (select "id" from "Story" where "title" = 'poison' order by "updatedAt" desc limit 1)
"""


class Drip:
    """An application that commits small transactions, some of them in a row, and notes how long each commit took.

    `pause` follows each twentieth: the relay goes to sleep only when it was quiet for a second at most.
    """

    def __init__(self, database: Database, pause: float = 0.02, *, poison: bool = False) -> None:
        """`poison`: each twentieth transaction writes a row that the target refuses, and again the one before it."""
        self.seconds: list[float] = []
        self.failure: Exception | None = None
        self._database = database
        self._pause = pause
        self._poison = poison
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drip", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        assert self.failure is None, self.failure  # promise I7

    def _run(self) -> None:
        try:
            with self._database.connect() as conn:
                while not self._stopped.wait(0.02 if len(self.seconds) % 20 else self._pause):
                    self._commit(conn)
        except Exception as error:  # noqa: BLE001  (a thread has nobody above it: __exit__ asks)
            self.failure = error

    def _commit(self, conn: psycopg.Connection[Any]) -> None:
        began = time.monotonic()
        conn.execute(STORIES.encode(), (2,))
        if self._poison and len(self.seconds) % 20 == 0:
            with conn.transaction():
                conn.execute(_TOUCH)
                conn.execute(_POISON)
        self.seconds.append(time.monotonic() - began)
