"""Where a target stands, as a value.

Knows how a cursor is written and read. Knows nothing of databases: the daemon's `snapshot` does the arithmetic.
"""

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cursor:
    """A snapshot of the source: the target holds exactly what the transactions it sees have changed.

    `snapshot` is as Postgres prints it (``xmin:xmax:running``). Every change not yet applied has an id above
    `floor_id`. `torn` names transactions too large for one batch, with the id up to which they are applied.
    `system` is the source's system identifier: transaction ids mean nothing in another cluster.
    """

    snapshot: str
    floor_id: int = 0
    torn: tuple[tuple[int, int], ...] = ()
    system: str = ""

    @classmethod
    def beginning(cls, system: str = "") -> "Cursor":
        """Before the first transaction of any database."""
        return cls("3:3:", 0, (), system)

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
            )
        except (KeyError, TypeError) as exc:
            raise ValueError(f"not a cursor: {exc!r} is missing or malformed") from exc

    def to_json(self) -> str:
        """Compact JSON, the same text for the same cursor."""
        return json.dumps(
            {"snapshot": self.snapshot, "floor_id": self.floor_id, "torn": self.torn, "system": self.system},
            separators=(",", ":"),
        )
