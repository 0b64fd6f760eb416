"""Changes, one by one and in sheaves: those of one table, operation and shape side by side.

Knows how changes lie in a sheaf, and back. A sheaf holds all that its changes are, so that either can be made of the
other; what is done for each of thousands of changes is done on a sheaf's columns, what is done for some of them on
changes. Knows nothing of windows, plans or connections. Pure; standard library only.
"""

import sys
from array import array
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from typing import NamedTuple

from daemon.errors import CaptureLost

# Between the texts of a sheaf. They are JSON, in which no control character stands unescaped but tabs and line ends.
GLUE = b"\x1d"

Pieces = tuple[bytes, ...]  # each is texts side by side

# As the source answers: table, operation, shape, is one unflushed, four numbers of each change (eight bytes each, in network order), keys, rows.
Piece = tuple[str, str, int | None, bool, bytes, bytes, bytes | None]


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


as_change = partial(tuple.__new__, Change)  # what Change._make does, without its checks


@dataclass(frozen=True, slots=True)
class Sheaf:
    """Changes of one kind in id order. `rows` is None when they have none, or such as were not fetched; `unflushed`: one
    of them is. Rows lie in pieces, as they came: to join them would copy them once more. At least one change."""

    table: str
    op: str
    shape: int | None
    ids: Sequence[int]
    xids: Sequence[int]
    times: Sequence[int]
    sizes: Sequence[int]
    unflushed: bool
    keys: bytes
    rows: Pieces | None

    @classmethod
    def of(cls, piece: Piece) -> "Sheaf":
        """As sql/queries/window_by_id.sql answers."""
        table, op, shape, unflushed, numbers, keys, rows = piece
        unpacked = unpack(numbers)
        ids, xids, times, sizes = (unpacked[at::4] for at in range(4))
        return cls(table, op, shape, ids, xids, times, sizes, unflushed, keys, None if rows is None else (rows,))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def kind(self) -> tuple[str, str, int, bool]:
        """What the changes of a sheaf have in common."""
        return self.table, self.op, -1 if self.shape is None else self.shape, self.rows is not None

    @property
    def fetched(self) -> int:
        """Bytes of the rows; one that is too large is not fetched."""
        return 0 if self.rows is None else sum(self.sizes)

    def named(self) -> list[bytes]:
        """The keys, one by one. Raises CaptureLost when there are more of them than changes: somebody wrote into the outbox
        by hand what is no JSON. Nobody can say then whose rows these are."""
        return self._as_many(self.keys.split(GLUE))

    def lines(self) -> list[bytes]:
        """The rows, one by one, where there are any. Raises as `named` does."""
        return [] if self.rows is None else self._as_many(texts(self.rows))

    def _as_many(self, found: list[bytes]) -> list[bytes]:
        if len(found) != len(self):
            raise CaptureLost(self.table)
        return found

    def changes(self) -> list[Change]:
        """One by one. Raises CaptureLost."""
        keys = list(map(bytes.decode, self.named()))
        rows: Sequence[str | None] = [None] * len(keys) if self.rows is None else list(map(bytes.decode, self.lines()))
        columns = zip(self.xids, self.ids, keys, rows, self.sizes, self.times, strict=True)
        return [
            Change(xid, id_, self.table, self.op, self.shape, key, row, size, self.unflushed, at)
            for xid, id_, key, row, size, at in columns
        ]

    def only(self, chosen: Sequence[object]) -> "Sheaf | None":
        """Those of its changes for which `chosen`, which is as long, says something true."""
        count = sum(map(bool, chosen))
        if count == len(self):
            return self
        if not count:
            return None
        ids, xids, times, sizes = (
            array("q", compress(column, chosen)) for column in (self.ids, self.xids, self.times, self.sizes)
        )
        keys = GLUE.join(compress(self.named(), chosen))
        rows = None if self.rows is None else (GLUE.join(compress(self.lines(), chosen)),)
        return replace(self, ids=ids, xids=xids, times=times, sizes=sizes, keys=keys, rows=rows)


Sheaves = tuple[Sheaf, ...]


def unpack(numbers: bytes) -> "array[int]":
    """Numbers of eight bytes each, in network order."""
    unpacked = array("q", numbers)
    if sys.byteorder == "little":
        unpacked.byteswap()
    return unpacked


def glue(texts: Iterable[str]) -> bytes:
    """Texts side by side."""
    return GLUE.join(map(str.encode, texts))


def split(texts: bytes) -> list[str]:
    """Texts that lie side by side, one by one: at least one."""
    return texts.decode().split("\x1d")


def texts(pieces: Pieces) -> list[bytes]:
    """The texts of pieces, one by one."""
    return [text for piece in pieces for text in piece.split(GLUE)]


def bind(changes: Iterable[Change]) -> Sheaves:
    """Changes, in sheaves."""
    kinds: dict[tuple[object, ...], list[Change]] = {}
    for change in changes:
        kinds.setdefault((change.table, change.op, change.shape, change.row is None), []).append(change)
    return tuple(_bound(alike) for alike in kinds.values())


def _bound(alike: Sequence[Change]) -> Sheaf:
    first = alike[0]
    ids, xids, times, sizes = (
        array("q", numbers) for numbers in zip(*((c.id, c.xid, c.created_us, c.size) for c in alike), strict=True)
    )
    rows = None if first.row is None else (glue(change.row or "" for change in alike),)
    unflushed = any(change.unflushed for change in alike)
    keys = glue(change.key for change in alike)
    return Sheaf(first.table, first.op, first.shape, ids, xids, times, sizes, unflushed, keys, rows)


def unbind(sheaves: Iterable[Sheaf]) -> list[Change]:
    """The changes of sheaves, in id order."""
    found = [change for sheaf in sheaves for change in sheaf.changes()]
    found.sort(key=_id)
    return found


def _id(change: Change) -> int:
    return change.id


def merge(pieces: Iterable[Sheaf]) -> Sheaves:
    """One sheaf of each kind. Pieces of one kind stand in id order."""
    kinds: dict[tuple[str, str, int, bool], list[Sheaf]] = {}
    for piece in pieces:
        kinds.setdefault(piece.kind, []).append(piece)
    return tuple(alike[0] if len(alike) == 1 else _merged(alike) for alike in kinds.values())


def _merged(alike: Sequence[Sheaf]) -> Sheaf:
    ids, xids, times, sizes = array("q"), array("q"), array("q"), array("q")
    for piece in alike:
        ids.extend(piece.ids)
        xids.extend(piece.xids)
        times.extend(piece.times)
        sizes.extend(piece.sizes)
    rows = None if alike[0].rows is None else tuple(piece for sheaf in alike for piece in sheaf.rows or ())
    return replace(
        alike[0], ids=ids, xids=xids, times=times, sizes=sizes, unflushed=any(piece.unflushed for piece in alike),
        keys=GLUE.join(piece.keys for piece in alike), rows=rows,
    )  # fmt: skip


def count(sheaves: Iterable[Sheaf]) -> int:
    """How many changes."""
    return sum(map(len, sheaves))


def select(sheaves: Iterable[Sheaf], wanted: Callable[[Sheaf], Sequence[object]]) -> Sheaves:
    """Of each sheaf the changes that `wanted` chooses."""
    found = (sheaf.only(wanted(sheaf)) for sheaf in sheaves)
    return tuple(sheaf for sheaf in found if sheaf is not None)


def of_others(sheaves: Iterable[Sheaf], xids: Container[int]) -> Sheaves:
    """Without the changes of these transactions."""
    return select(sheaves, lambda sheaf: [xid not in xids for xid in sheaf.xids])
