"""What the source is asked for, and what it answers: limits, batches, questions about a table. As values.

Knows what a batch holds and where it leads. Knows nothing of windows, queries or connections. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from daemon.copies import Progress, gone, rows
from daemon.hold import is_long
from daemon.sheaf import Change, Sheaf, Sheaves, count, merge, unbind, unpack
from daemon.verification import Checked
from outbox import Cursor


@dataclass(frozen=True, slots=True)
class Limits:
    """What one batch may hold, and how long the source may keep silent (seconds).

    A row of more than `row_bytes` is not fetched: its change has a size and no row.
    """

    changes: int = 5000
    bytes: int = 4 * 1024 * 1024
    row_bytes: int = 16 * 1024 * 1024
    deadline: float = 15.0


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be read of a table as of a window's end: see outbox.copy_work. `aim`: what it is read for. As of that end the
    table may be of something else, or its ranges be in another order: then it counts for nothing."""

    table: str
    what: str
    keys: tuple[str, ...] | None
    rows: int = 0
    bytes: int = 0
    aim: str | None = None


# As outbox.copy_work answers: columns, keys and rows of a piece side by side, eight bytes of each row's size.
Piece = tuple[Sequence[str] | None, str | None, str | None, bytes | None]
Found = list[Piece]

_SEEN = (-2).to_bytes(8, signed=True)  # the size of what is no row


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a question found of a table: rows (or their digests) in sheaves, without their text those that are too large;
    keys of which there is no row as deletes. `last` is the last key of a range (`seen`: the one up to which was looked,
    where the last rows do not travel, or have long keys; it must not leave this process). `whole`: the table ends here."""

    columns: tuple[str, ...]
    sheaves: Sheaves
    last: str | None
    seen: str | None
    whole: bool

    @property
    def count(self) -> int:
        """How many rows, or keys."""
        return count(self.sheaves)


def stretch(asked: Question, found: Found, now_us: int) -> Stretch:
    """What outbox.copy_work answers, by the source's clock `now_us`."""
    columns = tuple(found[0][0] or ()) if found else ()
    pieces = [(keys, texts, sizes) for _, keys, texts, sizes in found if keys is not None]
    seen = pieces.pop()[0] if pieces and pieces[-1][2] == _SEEN else None
    last = pieces[-1][0].rsplit("\x1d", 1)[-1] if pieces else None
    behind = seen
    if last is not None and is_long(last):
        behind = seen or last
        last = next(
            (key for keys, *_ in reversed(pieces) for key in reversed(keys.split("\x1d")) if not is_long(key)), None
        )
    sheaves = merge(_sheaf(asked.table, keys, texts, sizes, now_us) for keys, texts, sizes in pieces)
    read = sum(size for sheaf in sheaves for size in sheaf.sizes if size > 0)  # also those too large to be fetched
    whole = seen is None and count(sheaves) < asked.rows and read < asked.bytes
    return Stretch(columns, sheaves, last, behind, whole)


def _sheaf(table: str, keys: str, texts: str | None, sizes: bytes | None, now_us: int) -> Sheaf:
    there = () if sizes is None else unpack(sizes)
    if not there or there[0] < 0:  # a piece is of one kind
        return gone(table, keys.encode(), now_us)
    return rows(table, keys.encode(), None if texts is None else texts.encode(), there, now_us)


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes of whole transactions, and the cursor they lead to.

    `torn` counts transactions that are only begun here because each alone is larger than the limit. `more`: the
    window goes on. `read_us` is the source's clock when the batch was read.
    """

    sheaves: Sheaves
    cursor: Cursor
    shapes: Mapping[int, tuple[str, ...]]
    torn: int
    more: bool
    read_us: int
    copied: Progress | None = None  # no changes then, but rows as of `cursor`, in the clothes of changes
    checked: Checked | None = None  # no changes, or such rows, but what the target is to compare
    headers: tuple[str, ...] = ()  # of the changes, each once: only when the source is asked for them
    headers_left_out: int = 0  # because there are too many
    beats: tuple[Change, ...] = ()  # heartbeats, once they are set apart: see daemon.heartbeat

    @property
    def changes(self) -> tuple[Change, ...]:
        """One by one, in id order: for those that look at few."""
        return tuple(unbind(self.sheaves))

    @property
    def count(self) -> int:
        """How many changes. (No length: a batch without any may well tell something.)"""
        return count(self.sheaves)

    @property
    def size(self) -> int:
        """Bytes of their rows and keys."""
        return sum(sum(sheaf.sizes) + len(sheaf.keys) for sheaf in self.sheaves)

    @property
    def tells(self) -> bool:
        """Is there something for the target in it?"""
        return bool(self.sheaves or self.beats) or self.copied is not None or self.checked is not None


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one pruning did: the slot it emptied, the highest id removed so far, whether a slot that was due could
    not be locked, whether new changes go to another slot now, and who holds the lock that was not to be had.
    """

    emptied: int | None
    up_to_id: int
    locked: bool
    rotated: bool
    holder: str | None = None
