"""Where a target stands, as a value.

Knows how a cursor is written and read. Knows nothing of databases: the daemon's `snapshot` does the arithmetic.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """What was sent of the changes that snapshot `since` does not see, up to the next span's: the lowest of their
    ids, how many, and the sum of their times (microseconds, modulo 10^15)."""

    since: str
    first_id: int
    count: int
    sum: int


@dataclass(frozen=True, slots=True)
class Mark:
    """By what the source is known again, after it has been away: what it must hold when nothing was lost.

    `timeline` and `lsn` (a position the log had reached on disk) are the source's when the cursor's window was
    opened. `spans` add up everything sent in the last two windows. `last` is some of it by name, as (xid, id, time
    in microseconds): the change with the highest id, and the last changes of the transactions with the highest xids.
    """

    timeline: int
    lsn: str
    spans: tuple[Span, ...] = ()
    last: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Cursor:
    """A snapshot of the source: the target holds exactly what the transactions it sees have changed.

    `snapshot` is as Postgres prints it (``xmin:xmax:running``). Every change not yet applied has an id above
    `floor_id`. `torn` names transactions too large for one batch, with the id up to which they are applied.
    `system` is the source's system identifier: transaction ids mean nothing in another cluster. `database` (its oid
    there) and `installation` (of schema outbox) say whose ids of changes and numbers of wishes these are. `mark` tells
    a source that has gone back in time. Older cursors have none of the last three.
    """

    snapshot: str
    floor_id: int = 0
    torn: tuple[tuple[int, int], ...] = ()
    system: str = ""
    mark: Mark | None = None
    database: int = 0
    installation: str = ""

    @classmethod
    def beginning(cls, system: str = "", floor_id: int = 0) -> "Cursor":
        """Before the first transaction of any database."""
        return cls("3:3:", floor_id, (), system)

    @property
    def start(self) -> "Cursor":
        """The beginning of the same source."""
        return Cursor("3:3:", 0, (), self.system, None, self.database, self.installation)

    @classmethod
    def from_json(cls, text: str) -> "Cursor":
        """Read what `to_json` wrote. Raises ValueError when it is something else."""
        try:
            given = json.loads(text)
            return cls(
                str(given["snapshot"]),
                int(given["floor_id"]),
                tuple((int(xid), int(upto)) for xid, upto in given.get("torn", ())),
                str(given.get("system", "")),
                _mark(given["mark"]) if given.get("mark") is not None else None,
                int(given.get("database", 0)),
                str(given.get("installation", "")),
            )
        except (KeyError, TypeError) as exc:
            raise ValueError(f"not a cursor: {exc!r} is missing or malformed") from exc

    def to_json(self) -> str:
        """Compact JSON, the same text for the same cursor."""
        parts: dict[str, Any] = {
            "snapshot": self.snapshot, "floor_id": self.floor_id, "torn": self.torn, "system": self.system,
        }  # fmt: skip
        if self.installation:
            parts |= {"database": self.database, "installation": self.installation}
        if self.mark is not None:
            spans = [(span.since, span.first_id, span.count, span.sum) for span in self.mark.spans]
            parts |= {
                "mark": {"timeline": self.mark.timeline, "lsn": self.mark.lsn, "spans": spans, "last": self.mark.last}
            }
        return json.dumps(parts, separators=(",", ":"))


def _mark(given: Mapping[str, Any]) -> Mark:
    spans = tuple(Span(str(since), int(first), int(count), int(sum_)) for since, first, count, sum_ in given["spans"])
    last = tuple((int(xid), int(id_), int(at)) for xid, id_, at in given["last"])
    return Mark(int(given["timeline"]), str(given["lsn"]), spans, last)
