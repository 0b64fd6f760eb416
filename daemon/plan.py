"""From the changes of a batch to what the target has to write: gear 1, final state.

Knows changes, the order of tables and how a document is laid out. Knows nothing of connections and never
decodes a row: Postgres made the JSON, this splices it, Postgres reads it. Pure; standard library only.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from daemon.errors import CaptureLost
from daemon.sheaf import GLUE, Change, Pieces, Sheaf, glue, split, texts, unbind

# With a line's end, which no JSON string can have: a row that somebody wrote into the outbox by hand, with the glue within a
# string, is refused by the target as no JSON. A comma alone would put a comma there.
_BETWEEN = b",\n"
SEPARATOR = b"\x1e"  # cannot occur inside JSON text (RFC 7464 uses it the same way)


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one table for one statement: rows to upsert, keys to delete, keys a truncate must keep, keys that are
    held from here on (`hold`) or no longer (`release`).

    `rank` is the table's: parents have a lower one than their children. `anew`: rows that were deleted before, so that what
    these lack is as in a new row. `vacates`: columns that are set to null in them, as far as nobody else made them. `keyed`: by
    which columns its rows were told apart; more than one set where that changed meanwhile. `texts` are the rows in pieces, `named` their
    keys (see daemon.sheaf).
    """

    table: str
    op: str
    rank: int
    columns: tuple[str, ...]
    texts: Pieces
    named: bytes = b""
    span: tuple[str | None, str | None] | None = None
    anew: bool = False
    vacates: tuple[str, ...] = ()
    keyed: tuple[tuple[str, ...], ...] = ()

    @property
    def rows(self) -> tuple[str, ...]:
        """One by one; JSON is never empty."""
        return tuple(map(bytes.decode, texts(self.texts)))

    @property
    def keys(self) -> tuple[str, ...]:
        """The rows' keys, one by one."""
        return tuple(split(self.named)) if self.named else ()

    def pieces(self) -> Iterator[bytes]:
        """The group's two records of the document."""
        head: dict[str, Any] = {"table": self.table, "op": self.op, "rank": self.rank, "columns": self.columns}
        if self.span is not None:
            head["span"] = self.span
        if self.anew:
            head["anew"] = True
        if self.vacates:
            head["vacates"] = self.vacates
        if self.keyed:
            head["keyed"] = self.keyed
        yield json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
        yield SEPARATOR + b"["
        for at, piece in enumerate(self.texts):
            if at:
                yield b","
            yield piece.replace(GLUE, _BETWEEN)
        yield b"]"


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordered writes, as a value. `counts` are the changes by table and op; `superseded` those a later one replaced."""

    groups: tuple[Group, ...]
    counts: Mapping[tuple[str, str], int]
    superseded: int
    pieces: Pieces = field(repr=False)
    digest: str

    @property
    def body(self) -> bytes:
        """The records of all groups."""
        return b"".join(self.pieces)

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
    sheaves: Iterable[Sheaf],
    order: Mapping[str, int],
    shapes: Mapping[int, tuple[str, ...]],
    *,
    hold: Collection[tuple[str, str]] = (),
    release: Collection[tuple[str, str]] = (),
    notes: Iterable[Group] = (),
    vacates: Mapping[str, Sequence[str]] | None = None,
    called: Mapping[str, tuple[str, ...]] | None = None,
    places: Mapping[str, str] | None = None,
) -> Plan:
    """What is left of every key: upserts parents first, then truncates and deletes children first.

    `hold` and `release` are keys (table, key) that the target records as held, or strikes out, with the batch; `notes`
    further groups that say no rows; `vacates` columns that rows of a table set to null; `called`: what the key of a table is by
    now, whatever its changes were recorded by, for their rows have it; `places`: which table of the target each one goes to, for a
    table that was renamed comes by two names. Raises CaptureLost. Promise I4: per key, id order is commit order, so the last
    change is the row's newest state; a delete never touches a key upserted in the same plan, because of each key
    of a place only one thing is left.
    """
    of_table: dict[str, list[Sheaf]] = {}
    counts = Counter[tuple[str, str]]()
    for sheaf in sheaves:
        of_table.setdefault(sheaf.table, []).append(sheaf)
        counts[sheaf.table, sheaf.op] += len(sheaf)
    of_place: dict[str, list[str]] = {}
    ranks = {table: order.get(table, len(order)) for table in of_table}
    for table in sorted(of_table, key=lambda table: (ranks[table], table)):
        of_place.setdefault((places or {}).get(table, table), []).append(table)
    left = {
        place: _left([sheaf for table in tables for sheaf in of_table[table]], ranks[tables[0]], shapes)
        for place, tables in of_place.items()
    }
    keyed, vacated = {table: _keyed(of_table[table]) for table in of_table}, vacates or {}
    now = {table: (columns,) for table, columns in (called or {}).items()}
    writes = [
        replace(group, keyed=now.get(group.table, keyed[group.table]), vacates=tuple(vacated.get(group.table, ())))
        for rest in left.values()
        for group in rest.upserts
    ]
    removals = [replace(group, keyed=keyed[group.table]) for rest in reversed(left.values()) for group in rest.removals]

    groups = (*writes, *removals, *_marks("release", release), *_marks("hold", hold), *notes)
    pieces = tuple(
        piece for at, group in enumerate(groups) for piece in (*([SEPARATOR] if at else []), *group.pieces())
    )
    superseded = sum(counts.values()) - sum(rest.changes for rest in left.values())
    return Plan(groups, counts, superseded, pieces, digest(pieces))


def _keyed(sheaves: Iterable[Sheaf]) -> tuple[tuple[str, ...], ...]:
    """By which columns these changes name their rows. Of a sheaf the first and the last say it: whoever changes a key has
    the table for himself."""
    found: set[tuple[str, ...]] = set()
    for sheaf in sheaves:
        for key in {sheaf.keys.partition(GLUE)[0], sheaf.keys.rpartition(GLUE)[2]}:
            try:
                named = json.loads(key)
            except ValueError:  # somebody wrote it by hand: it is refused with its row
                continue
            if isinstance(named, dict) and sheaf.op in {"upsert", "delete"}:
                found.add(tuple(sorted(named)))
    return tuple(sorted(found))


def digest(pieces: Pieces) -> str:
    """Tells one body from every other. (SHA-256, which processors have: BLAKE2 takes two to three times as long.)"""
    made = hashlib.sha256()
    for piece in pieces:
        made.update(piece)
    return made.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class _Left:
    """What is left of the changes of a place, and of how many of them."""

    upserts: Sequence[Group]
    removals: Sequence[Group]
    changes: int


def _left(sheaves: Sequence[Sheaf], rank: int, shapes: Mapping[int, tuple[str, ...]]) -> _Left:
    """By the columns of the sheaves, where there is one of upserts and one of deletes at most, of one table: the usual case. Where
    the order of single changes of several kinds says what is left, one by one."""
    kinds = {sheaf.op: sheaf for sheaf in sheaves}
    upserts, deletes = kinds.pop("upsert", None), kinds.pop("delete", None)
    several = (
        len(sheaves) > (upserts is not None) + (deletes is not None) or len({sheaf.table for sheaf in sheaves}) > 1
    )
    if kinds or several or (upserts and upserts.rows is None):
        return _one_by_one(unbind(sheaves), rank, shapes)
    written, gone, anew = _last_ids(upserts), _last_ids(deletes), dict[bytes, int]()
    for key in written.keys() & gone.keys():
        if written[key] > gone[key]:
            anew[key] = written.pop(key)
            del gone[key]
        else:
            del written[key]
    made, removed = [], []
    if upserts and (written or anew):
        assert upserts.shape is not None
        columns = shapes[upserts.shape]
        made = [
            Group(upserts.table, "upsert", rank, columns, *_rows(upserts, keys), anew=keys is anew)
            for keys in (written, anew)
            if keys
        ]
    if deletes and gone:
        named = GLUE.join(gone)
        removed = [Group(deletes.table, "delete", rank, (), (named,), named)]
    return _Left(made, removed, len(written) + len(anew) + len(gone))


def _last_ids(sheaf: Sheaf | None) -> dict[bytes, int]:
    """The id of each key's last change; the keys in the order in which they come."""
    return dict(zip(sheaf.named(), sheaf.ids, strict=True)) if sheaf else {}


def _rows(sheaf: Sheaf, keys: Mapping[bytes, int]) -> tuple[Pieces, bytes]:
    """The last row of each of these keys, and the keys: of a key that comes twice the dict has the second row."""
    if len(keys) == len(sheaf):
        return sheaf.rows or (), sheaf.keys
    last = dict(zip(sheaf.named(), sheaf.lines(), strict=True))
    return (GLUE.join(map(last.__getitem__, keys)),), GLUE.join(keys)


def _one_by_one(changes: Sequence[Change], rank: int, shapes: Mapping[int, tuple[str, ...]]) -> _Left:
    """What is left of the changes of a place, in id order. What is left of a key goes by the name that its last change has."""
    shapes = dict(shapes)
    left: dict[str, Change] = {}
    anew: set[str] = set()  # keys of rows that went before they were written
    truncated: str | None = None  # by which name
    for change in changes:
        if change.op == "upsert":
            before = left.get(change.key)
            if before.op == "delete" if before else truncated:
                anew.add(change.key)
            left[change.key] = (
                change if before is None or before.shape == change.shape else _over(before, change, shapes)
            )
        elif change.op == "delete":
            left[change.key] = change
        elif change.op == "truncate":
            left.clear()
            truncated = change.table
        else:
            raise CaptureLost(change.table)
    removed = [*_removals(left.values(), truncated, rank)]
    return _Left([*_upserts(left.values(), anew, rank, shapes)], removed, len(left) + (truncated is not None))


def _removals(changes: Collection[Change], truncated: str | None, rank: int) -> Iterator[Group]:
    if truncated is not None:
        kept = glue(change.key for change in changes if change.op == "upsert")
        yield Group(truncated, "truncate", rank, (), (kept,) if kept else (), kept)
        return
    gone: dict[str, list[str]] = {}
    for change in changes:
        if change.op == "delete":
            gone.setdefault(change.table, []).append(change.key)
    for table, keys in gone.items():
        named = glue(keys)
        yield Group(table, "delete", rank, (), (named,), named)


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


def _upserts(
    changes: Iterable[Change], anew: Collection[str], rank: int, shapes: Mapping[int, tuple[str, ...]]
) -> Iterator[Group]:
    # After an ALTER TABLE there may be rows of two shapes, and of two names.
    kinds: dict[tuple[str, tuple[str, ...], bool], list[Change]] = {}
    for change in changes:
        if change.row is not None and change.shape is not None:  # an upsert
            kinds.setdefault((change.table, shapes[change.shape], change.key in anew), []).append(change)
    for (table, columns, new), alike in kinds.items():
        rows, named = glue(change.row or "" for change in alike), glue(change.key for change in alike)
        yield Group(table, "upsert", rank, columns, (rows,), named, anew=new)


def _marks(op: str, marked: Collection[tuple[str, str]]) -> Iterator[Group]:
    for table in sorted({table for table, _ in marked}):
        keys = glue(sorted(key for of_table, key in marked if of_table == table))
        yield Group(table, op, 0, (), (keys,), keys)
