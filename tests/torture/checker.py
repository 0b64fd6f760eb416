"""Who looks on: reads the target again and again, then the source, and notes whatever must never be.

One statement is one snapshot. The target is read first: whatever it shows, the source must already have.
"""

import threading
import time
from dataclasses import dataclass
from typing import Any

import psycopg

from tests.databases import Database
from tests.torture.world import World
from tests.torture.writers import ACCOUNTS, SLOTS, TOTAL

_TARGET = """
with accounts as (select balance from checking union all select balance from savings),
     lists as (select key, numbers from list where key >= %s)
select (select count(*) from accounts), (select sum(balance) from accounts), (select json_agg(l) from lists l)
"""
# Seconds that the oldest number waits. Daemons that are killed every few seconds bring over less than writers write who never
# pause: a long run on a busy machine would say something of the machine.
_CROWDED, _CLEAR = 20.0, 5.0
_LISTS = "select key, numbers from list where key >= %s"

Lists = dict[int, list[int]]


@dataclass(frozen=True)
class Look:
    """What one look at the target and, after it, one at the source showed."""

    accounts: int
    total: int
    target: Lists
    source: Lists


class Checker:
    """Runs in a thread. `wrong` holds a line for every promise broken."""

    def __init__(self, world: World) -> None:
        self.looks = 0
        self.worst_lag = 0.0
        self.wrong: list[str] = []
        self._world = world
        self._last: Lists = {}
        self._floor = 0
        self._arrived: set[int] = set()
        self._weighed = float("-inf")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with self._connect(self._world.mirror) as target, self._connect(self._world.bank) as source:
                    while not self._stopped.wait(0.02):
                        self.judge(look(source, target, self._floor))
            except psycopg.Error:  # one of them is being hurt
                self._stopped.wait(0.05)

    def _connect(self, database: Database) -> psycopg.Connection[Any]:
        return self._world.connect(database)

    def judge(self, seen: Look) -> None:
        """Balanced, a prefix of the source's, never shorter than before."""
        self.looks += 1
        if seen.accounts and (seen.accounts, seen.total) != (2 * ACCOUNTS, TOTAL):
            self.wrong.append(f"unbalanced: {seen.accounts} accounts hold {seen.total}")
        for key, numbers in seen.target.items():
            if seen.source.get(key, [])[: len(numbers)] != numbers:
                self.wrong.append(
                    f"no prefix: list {key} is {numbers[-5:]}, the source's {seen.source.get(key, [])[-5:]}"
                )
            if numbers[: len(self._last.get(key, []))] != self._last.get(key, []):
                self.wrong.append(f"shrunk: list {key} was {self._last[key][-5:]}, is {numbers[-5:]}")
        for key in self._last.keys() - seen.target.keys():
            if key >= self._floor:
                self.wrong.append(f"shrunk: list {key} is gone")
        self._note_lag(seen.target)
        self._weigh()
        self._last = seen.target
        # Lists that were full two generations ago are left to the verdict.
        newest = max(seen.target, default=0) // SLOTS
        self._floor = max(0, newest - 2) * SLOTS

    @property
    def lag(self) -> float:
        """How long the oldest acknowledged number has been waiting now."""
        acknowledged = self._world.ledger.snapshot()
        waiting = acknowledged.keys() - self._arrived
        return time.monotonic() - min(map(acknowledged.__getitem__, waiting)) if waiting else 0.0

    def _weigh(self) -> None:
        """Once a second: do writers pause?"""
        ledger = self._world.ledger
        if (now := time.monotonic()) >= self._weighed + 1.0:
            self._weighed, ledger.crowded = now, self.lag > (_CLEAR if ledger.crowded else _CROWDED)

    def _note_lag(self, lists: Lists) -> None:
        """From the acknowledgement to the first look that shows the number."""
        now = time.monotonic()
        acknowledged = self._world.ledger.acknowledged
        for key, numbers in lists.items():
            for number in numbers[len(self._last.get(key, [])) :]:
                self._arrived.add(number)
                self.worst_lag = max(self.worst_lag, now - acknowledged.get(number, now))


def look(source: psycopg.Connection[Any], target: psycopg.Connection[Any], floor: int) -> Look:
    """The target in one snapshot, then the source."""
    accounts, total, lists = target.execute(_TARGET.encode(), (floor,)).fetchone() or (0, 0, None)
    there = {one["key"]: one["numbers"] for one in lists or ()}
    return Look(accounts, int(total or 0), there, dict(source.execute(_LISTS.encode(), (floor,)).fetchall()))
