"""From the changes of a batch to what the target has to write: gear 1, final state.

Knows changes, the order of tables and how a document is laid out. Knows nothing of connections and never
decodes a row: Postgres made the JSON, this splices it, Postgres reads it. Pure; standard library only.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from daemon.errors import CaptureLost

SEPARATOR = "\x1e"  # cannot occur inside JSON text (RFC 7464 uses it the same way)


class Change(NamedTuple):
    """One row of outbox.change. `key` and `row` are JSON text, `size` is the row's in bytes, `created_us` Unix time in microseconds."""

    xid: int
    id: int
    table: str
    op: str
    shape: int | None
    key: str
    row: str | None
    size: int
    unflushed: bool
    created_us: int


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one table for one statement: rows to upsert, keys to delete, or keys a truncate must keep."""

    table: str
    op: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]

    def records(self) -> tuple[str, str]:
        """The group's two records of the document."""
        head = {"table": self.table, "op": self.op, "columns": self.columns}
        return json.dumps(head, ensure_ascii=False, separators=(",", ":")), "[" + ",".join(self.rows) + "]"


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordered writes, as a value. `counts` are the changes by table and op; `superseded` those a later one replaced."""

    groups: tuple[Group, ...]
    counts: Mapping[tuple[str, str], int]
    superseded: int
    body: str = field(repr=False)
    digest: str

    @property
    def changes(self) -> int:
        """All changes of the batch, superseded ones included."""
        return sum(self.counts.values())


def table_order(tables: Iterable[str], references: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Rank of each table so that every parent stands before its children; tables of a cycle share a rank.

    `references` are (child, parent) pairs, the foreign keys of the target.
    """
    parents: dict[str, set[str]] = {table: set() for table in tables}
    for child, parent in references:
        if child != parent and child in parents and parent in parents:
            parents[child].add(parent)
    rank: dict[str, int] = {}
    while len(rank) < len(parents):
        waiting = [table for table in parents if table not in rank]
        ready = [table for table in waiting if parents[table] <= rank.keys()]
        level = max(rank.values(), default=-1) + 1
        rank.update(dict.fromkeys(ready or waiting, level))
    return rank


def plan(changes: Sequence[Change], order: Mapping[str, int], shapes: Mapping[int, tuple[str, ...]]) -> Plan:
    """The last change of every key, upserts parents first, then truncates and deletes children first.

    `changes` are in id order. Raises CaptureLost. Promise I4: per key, id order is commit order, so the last
    change is the row's newest state; a delete never touches a key upserted in the same plan, because each key
    has one last change.
    """
    last: dict[str, dict[str, Change]] = {}
    truncated: set[str] = set()
    for change in changes:
        if change.op == "truncate":
            last[change.table] = {}
            truncated.add(change.table)
        elif change.op == "resync":
            raise CaptureLost(change.table)
        else:
            last.setdefault(change.table, {})[change.key] = change

    ranked = sorted(last, key=lambda table: (order.get(table, len(order)), table))
    groups: list[Group] = []
    for table in ranked:
        groups.extend(_upserts(table, last[table], shapes))
    for table in reversed(ranked):
        if table in truncated:
            keep = tuple(change.key for change in last[table].values() if change.op == "upsert")
            groups.append(Group(table, "truncate", (), keep))
            continue
        keys = tuple(change.key for change in last[table].values() if change.op == "delete")
        if keys:
            groups.append(Group(table, "delete", (), keys))

    kept = sum(len(by_key) for by_key in last.values()) + len(truncated)
    body = SEPARATOR.join(record for group in groups for record in group.records())
    return Plan(
        tuple(groups),
        Counter((change.table, change.op) for change in changes),
        len(changes) - kept,
        body,
        hashlib.blake2b(body.encode(), digest_size=16).hexdigest(),
    )


def _upserts(table: str, by_key: Mapping[str, Change], shapes: Mapping[int, tuple[str, ...]]) -> list[Group]:
    """One group a set of columns: after an ALTER TABLE a batch may hold rows of both."""
    rows: dict[int, list[str]] = {}
    for change in by_key.values():
        if change.op == "upsert" and change.shape is not None and change.row is not None:
            rows.setdefault(change.shape, []).append(change.row)
    return [Group(table, "upsert", shapes[shape], tuple(given)) for shape, given in rows.items()]
