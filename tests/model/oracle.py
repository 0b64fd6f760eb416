"""What must be true after every step, of any schedule: the promises I1 to I6, computed from the source's history.

Reads both simulated stores and nothing of the daemon. The strongest sentence is I5: the rows of the target are
exactly what the transactions made that the target's own cursor sees.
"""

import json
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any

from daemon.sheaf import Change
from tests.model.database import Database, Key
from tests.model.mirror import Applied, Mirror
from tests.model.wire import seen

State = dict[Key, int]


class Broken(AssertionError):
    """A promise is broken. The first word names it."""


class Oracle:
    """Looks again only when one of the two has changed."""

    def __init__(self, database: Database, mirror: Mirror) -> None:
        self._database = database
        self._mirror = mirror
        self._looked = (-1, -1)
        self._arrived = False
        self.may_tear: set[int] = set()  # transactions that filled a batch by themselves when they were read
        self.torn = 0  # how often a transaction was seen to be on the target in part
        self._written: set[tuple[Key, int]] = set()
        self._newest: State = {}
        self._cursor: dict[str, Any] | None = None
        mirror.on_commit = self._committed

    def check(self) -> None:
        """After a step."""
        looked = self._database.version, self._mirror.version
        if looked != self._looked:
            self._looked = looked
            self._arrived = self._compare() == len(self._database.changes)

    def arrived(self) -> bool:
        """Is everything on the target that has committed?"""
        self.check()
        return self._arrived

    def check_told(self, changes: Iterable[Change]) -> None:
        """A relay has just counted these changes as applied."""
        cursor = self._mirror.cursor
        sees, torn = (seen(cursor["snapshot"]), dict(cursor["torn"])) if cursor else ((lambda _: False), {})
        for change in changes:
            if not sees(change.xid) and change.id > torn.get(change.xid, 0):
                raise Broken(
                    f"I1: the relay says change {change.id} is applied; the target's cursor {cursor} does not see it"
                )

    def _compare(self) -> int:
        """How many changes the cursor sees; raises Broken when the rows are not what they made."""
        cursor = self._mirror.cursor
        if cursor is None:
            if self._mirror.rows:
                raise Broken("I5: rows without a cursor")
            return 0
        sees, torn, floor = seen(cursor["snapshot"]), dict(cursor["torn"]), cursor["floor_id"]
        expected: State = {}
        passed: list[Change] = []
        for change in self._database.changes:
            if sees(change.xid) or change.id <= torn.get(change.xid, 0):
                passed.append(change)
                _apply(expected, change)
            elif change.id <= floor:
                raise Broken(f"I1: change {change.id} of {change.xid} is neither seen nor above the floor of {cursor}")
        held = {(table, _read(key)[0]) for table, key in self._mirror.held}
        for table, key in self._mirror.held:
            self._check_held(table, key, passed)
        if _without(expected, held) != _without(self._mirror.rows, held):
            raise Broken(
                f"I5: the target has {_text(self._mirror.rows)}; at its cursor {cursor} the source had {_text(expected)}"
            )
        self._check_torn(torn)
        return len(passed)

    def _check_torn(self, torn: Iterable[int]) -> None:
        for xid in torn:
            self.torn += 1
            if xid not in self._database.committed:
                raise Broken(f"I2: the cursor has begun transaction {xid}, which has not committed")
            if xid not in self.may_tear:
                raise Broken(f"atomicity: transaction {xid} is torn, and smaller than a batch")

    def read_torn(self, xid: int, changes: int, size: int) -> None:
        """A relay has read a part of a transaction, with these limits of a batch."""
        transaction = self._database.committed.get(xid)
        if transaction is not None and (
            len(transaction.changes) >= changes or sum(change.size for change in transaction.changes) >= size
        ):
            self.may_tear.add(xid)

    def _check_held(self, table: str, key: str, passed: Iterable[Change]) -> None:
        """The target has the row as it once was; every change since then that the cursor has passed is a letter."""
        of_key = table, _read(key)[0]
        there = self._mirror.rows.get(of_key)
        state: State = {}
        explained = there is None
        for change in passed:
            if change.table != table or (change.key != key and change.op != "truncate"):
                continue
            _apply(state, change)
            explained = state.get(of_key) == there or (explained and change.id in self._database.letters)
        if not explained:
            raise Broken(f"I1: held key {key} of {table} has {there}, and changes since then are no letters")

    def _committed(self, applied: Applied) -> None:
        """A transaction of the target that changed rows or cursor."""
        if applied.header["epoch"] != applied.epoch_before:
            raise Broken(
                f"I6: epoch {applied.header['epoch']} wrote while {applied.epoch_before} had claimed the target"
            )
        for key, value in applied.values:
            if (key, value) in self._written:
                raise Broken(f"I3: {key} = {value} took effect twice")
            self._written.add((key, value))
            if abs(value) < self._newest.get(key, 0):
                raise Broken(f"I4: {key} went back to {value} from {self._newest[key]}")
            self._newest[key] = abs(value)
        self._check_durable(applied)

    def _check_durable(self, applied: Applied) -> None:
        cursor, before = applied.header["cursor"], self._cursor
        self._cursor = cursor
        sees = seen(cursor["snapshot"])
        saw = seen(before["snapshot"]) if before else lambda _: False
        for xid, transaction in self._database.committed.items():
            begun = sees(xid) or any(xid == torn for torn, _ in cursor["torn"])
            if saw(xid) and not sees(xid):
                raise Broken(f"I4: the cursor saw transaction {xid} and does not any more")
            if begun and transaction.changes and transaction.lsn > self._database.flushed:
                raise Broken(f"I2: transaction {xid} was applied before it was durable")


def _without(rows: State, keys: Collection[Key]) -> State:
    return {key: value for key, value in rows.items() if key not in keys} if keys else rows


def _apply(state: State, change: Change) -> None:
    if change.op == "truncate":
        for key in [key for key in state if key[0] == change.table]:
            del state[key]
    elif change.op == "delete":
        state.pop((change.table, _read(change.key)[0]), None)
    else:
        assert change.row is not None
        of_key, value = _read(change.row)
        state[change.table, of_key] = value


@lru_cache(4096)
def _read(text: str) -> tuple[int, int]:
    """Key and value of a row's or key's JSON."""
    row = json.loads(text)
    return row["id"], row.get("v", 0)


def _text(rows: State) -> str:
    return (
        "{"
        + ", ".join(f"{table.removeprefix('public.')} {key}: {value}" for (table, key), value in sorted(rows.items()))
        + "}"
    )
