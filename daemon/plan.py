"""From the changes of a batch to what the target has to write: gear 1, final state.

Knows changes, the order of tables and how a document is laid out. Knows nothing of connections and never
decodes a row: Postgres made the JSON, this splices it, Postgres reads it. Pure; standard library only.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from daemon.errors import CaptureLost

SEPARATOR = "\x1e"  # cannot occur inside JSON text (RFC 7464 uses it the same way)


class Change(NamedTuple):
    """One row of outbox.change.

    `key` and `row` are JSON text, `size` is the row's in bytes, `created_us` the source's clock, in microseconds since
    2000-01-01.
    """

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
    """Rows of one table for one statement: rows to upsert, keys to delete, keys a truncate must keep, keys that are
    held from here on (`hold`) or no longer (`release`).

    `rank` is the table's: parents have a lower one than their children. `keys` are the rows' keys, one by one.
    """

    table: str
    op: str
    rank: int
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    keys: tuple[str, ...]
    span: tuple[str | None, str | None] | None = None

    def records(self) -> tuple[str, str]:
        """The group's two records of the document."""
        head: dict[str, Any] = {"table": self.table, "op": self.op, "rank": self.rank, "columns": self.columns}
        if self.span is not None:
            head["span"] = self.span
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
    """Rank of each table so that every parent stands before its children; tables of one cycle share a rank.

    `references` are (child, parent) pairs, the foreign keys of the target.
    """
    above: dict[str, set[str]] = {table: set() for table in tables}
    for child, parent in references:
        if child in above and parent in above:
            above[child].add(parent)
    for middle, further in above.items():  # parents of parents: Warshall's closure
        for parents in above.values():
            if middle in parents:
                parents.update(further)
    rank: dict[str, int] = {}
    while len(rank) < len(above):
        level = max(rank.values(), default=-1) + 1
        waiting = [table for table in above if table not in rank]
        ready = [t for t in waiting if all(parent in rank or t in above[parent] for parent in above[t])]
        rank.update(dict.fromkeys(ready, level))
    return rank


def plan(
    changes: Sequence[Change],
    order: Mapping[str, int],
    shapes: Mapping[int, tuple[str, ...]],
    *,
    hold: Collection[tuple[str, str]] = (),
    release: Collection[tuple[str, str]] = (),
    notes: Iterable[Group] = (),
) -> Plan:
    """What is left of every key: upserts parents first, then truncates and deletes children first.

    `changes` are in id order; `hold` and `release` are keys (table, key) that the target records as held, or strikes
    out, with the batch; `notes` further groups that say no rows. Raises CaptureLost. Promise I4: per key, id order is commit order, so the last
    change is the row's newest state; a delete never touches a key upserted in the same plan, because of each key
    only one thing is left.
    """
    left: dict[str, dict[str, Change]] = {}
    truncated: set[str] = set()
    shapes = dict(shapes)
    table, by_key = "", dict[str, Change]()
    for change in changes:
        if change.table != table:
            table = change.table
            by_key = left.setdefault(table, {})
        if change.op == "upsert":
            before = by_key.get(change.key)
            by_key[change.key] = (
                change if before is None or before.shape == change.shape else _over(before, change, shapes)
            )
        elif change.op == "delete":
            by_key[change.key] = change
        elif change.op == "truncate":
            by_key.clear()
            truncated.add(table)
        else:
            raise CaptureLost(table)

    groups = (*_groups(left, truncated, order, shapes), *_marks("release", release), *_marks("hold", hold), *notes)
    body = SEPARATOR.join(record for group in groups for record in group.records())
    return Plan(
        groups,
        Counter((change.table, change.op) for change in changes),
        len(changes) - sum(map(len, left.values())) - len(truncated),
        body,
        hashlib.blake2b(body.encode(), digest_size=16).hexdigest(),
    )


def _over(before: Change, change: Change, shapes: dict[int, tuple[str, ...]]) -> Change:
    """The row as it now is; columns that only an earlier row of the batch had keep that row's values.

    Such a row is of a shape of its own, which `shapes` is told of under a number below zero.
    """
    if before.shape is None or before.row is None or change.shape is None or change.row is None:
        return change  # one of them is no upsert
    columns = shapes[change.shape]
    more = [name for name in shapes[before.shape] if name not in columns]
    if not more:
        return change
    shape = -1 - len(shapes)
    shapes[shape] = (*columns, *more)
    # Spliced, not decoded: of a name that occurs twice json_to_recordset takes the second.
    return change._replace(shape=shape, row=before.row.rstrip()[:-1] + "," + change.row.lstrip()[1:])


def _groups(
    left: Mapping[str, Mapping[str, Change]],
    truncated: Collection[str],
    order: Mapping[str, int],
    shapes: Mapping[int, tuple[str, ...]],
) -> Iterator[Group]:
    ranked = sorted((order.get(table, len(order)), table) for table in left)
    for rank, table in ranked:
        rows: dict[tuple[str, ...], tuple[list[str], list[str]]] = {}  # after an ALTER TABLE there may be both kinds
        shape, texts, keys = None, list[str](), list[str]()
        for change in left[table].values():
            if change.row is not None and change.shape is not None:  # an upsert
                if change.shape != shape:
                    shape = change.shape
                    texts, keys = rows.setdefault(shapes[shape], ([], []))
                texts.append(change.row)
                keys.append(change.key)
        for columns, (texts, keys) in rows.items():
            yield Group(table, "upsert", rank, columns, tuple(texts), tuple(keys))
    for rank, table in reversed(ranked):
        if table in truncated:
            keep = tuple(change.key for change in left[table].values() if change.op == "upsert")
            yield Group(table, "truncate", rank, (), keep, keep)
        elif gone := tuple(change.key for change in left[table].values() if change.op == "delete"):
            yield Group(table, "delete", rank, (), gone, gone)


def _marks(op: str, marked: Collection[tuple[str, str]]) -> Iterator[Group]:
    for table in sorted({table for table, _ in marked}):
        keys = tuple(sorted(key for of_table, key in marked if of_table == table))
        yield Group(table, op, 0, (), keys, keys)
