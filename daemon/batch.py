"""What the source is asked for, and what it answers: limits, batches, questions about a table. As values.

Knows what a batch holds and where it leads. Knows nothing of windows, queries or connections. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from daemon.copies import Progress
from daemon.sheaf import Change, Sheaves, count, unbind
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
    """What is to be read of a table as of a window's end: see outbox.copy_work."""

    table: str
    what: str
    keys: tuple[str, ...] | None
    rows: int = 0
    bytes: int = 0


_SEEN = -2  # the size of what is no row
Found = list[tuple[tuple[str, ...] | None, str | None, str | None, int]]  # columns, key, row, its bytes


@dataclass(frozen=True, slots=True)
class Stretch:
    """The rows of a stretch of a table: key, text and bytes of each. `seen`: the key up to which was looked, where the
    last ones do not travel; it must not leave this process. `whole`: the table ends here."""

    columns: tuple[str, ...]
    rows: list[tuple[str, str | None, int]]
    seen: str | None
    whole: bool


def stretch(asked: Question, found: Found) -> Stretch:
    """What outbox.copy_work answers to `rows` or `digests`."""
    rows = [(key, text, size) for _, key, text, size in found if key is not None]
    seen = rows.pop()[0] if rows and rows[-1][2] == _SEEN else None
    fetched = sum(size for _, text, size in rows if text is not None or asked.what == "digests")
    whole = seen is None and len(rows) < asked.rows and fetched < asked.bytes
    return Stretch(tuple(found[0][0] or ()), rows, seen, whole)


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
        """Bytes of their rows."""
        return sum(sum(sheaf.sizes) for sheaf in self.sheaves)

    @property
    def tells(self) -> bool:
        """Is there something for the target in it?"""
        return bool(self.sheaves or self.beats) or self.copied is not None or self.checked is not None


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one pruning did: the slot it emptied, the highest id removed so far, whether a slot that was due could
    not be locked, whether new changes go to another slot now.
    """

    emptied: int | None
    up_to_id: int
    locked: bool
    rotated: bool
