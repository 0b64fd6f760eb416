"""The target in miniature: rows, a cursor, and the door's function over them, one call a transaction.

Follows sql/target/0003_apply.sql and 0004_door.sql, and reads the document that the daemon really sends. Knows
nothing of the source.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from daemon.plan import SEPARATOR
from tests.model.database import TABLES, Key

Group = tuple[dict[str, Any], list[dict[str, Any]]]

DESCRIPTION = {
    "tables": [{"table": table} for table in TABLES],
    "references": [{"child": TABLES[1], "parent": TABLES[0]}],
}


@dataclass(slots=True)
class Applied:
    """What one transaction of the target changed. `document` is the request's header; `values` what it upserted."""

    header: dict[str, Any]
    epoch_before: int
    values: list[tuple[Key, int]] = field(default_factory=list)


class Mirror:
    """Commits are told to `on_commit`. What the class attributes switch off is planted (tests/model/planted.py)."""

    fences = True
    compares_digest = True

    def __init__(self) -> None:
        self.version = 0
        self.answers: Counter[str] = Counter()
        self.rows: dict[Key, int] = {}
        self.epoch = 0
        self.batch_no = 0
        self.digest: str | None = None
        self.cursor: dict[str, Any] | None = None
        self.strict = True  # poisoned values are refused
        self.on_commit: Callable[[Applied], None] = lambda _: None

    def call(self, document: str) -> Iterator[str]:
        """The function, one yield a transaction; the last one is the answer."""
        first, *records = document.split(SEPARATOR)
        header = json.loads(first)
        match header["mode"]:
            case "claim":
                self.epoch += 1
                self.version += 1
                yield self._answer("claimed", DESCRIPTION)
            case "cursor":
                yield self._answer("cursor")
            case "describe":
                yield json.dumps({"answer": "described", "more": DESCRIPTION})
            case "apply":
                yield from self._apply(header, records)

    def _apply(self, header: dict[str, Any], records: list[str]) -> Iterator[str]:
        if self.fences and header["epoch"] != self.epoch:
            yield self._answer("fenced")
        elif header["batch_no"] == self.batch_no and (header["digest"] == self.digest or not self.compares_digest):
            yield self._answer("duplicate")
        elif header["batch_no"] != self.batch_no + 1:
            yield self._answer("mismatch")
        else:
            groups = [(json.loads(records[i]), json.loads(records[i + 1])) for i in range(0, len(records), 2)]
            if self.strict and any(row.get("v", 1) < 0 for _, rows in groups for row in rows):
                yield self._answer("refused", {"sqlstate": "23514", "gear": 1, "table": groups[0][0]["table"]})
            else:
                yield from self._move(header, groups)

    def _move(self, header: dict[str, Any], groups: list[Group]) -> Iterator[str]:
        """Rows and cursor, in one transaction."""
        applied = Applied(header, self.epoch)
        self._write(groups, applied)
        self._advance(header)
        self.on_commit(applied)
        yield self._answer("applied", {"gear": 1, "written": len(applied.values)})

    def _write(self, groups: list[Group], applied: Applied) -> None:
        self.version += 1
        for head, rows in groups:
            table = head["table"]
            if head["op"] == "truncate":
                keep = {row["id"] for row in rows}
                self.rows = {key: v for key, v in self.rows.items() if key[0] != table or key[1] in keep}
            elif head["op"] == "delete":
                for row in rows:
                    self.rows.pop((table, row["id"]), None)
            else:
                for row in rows:
                    self.rows[table, row["id"]] = row["v"]
                    applied.values.append(((table, row["id"]), row["v"]))

    def _advance(self, header: dict[str, Any]) -> None:
        self.version += 1
        self.batch_no, self.digest, self.cursor = header["batch_no"], header["digest"], header["cursor"]

    def _answer(self, what: str, more: dict[str, Any] | None = None) -> str:
        self.answers[what] += 1
        return json.dumps({
            "answer": what, "epoch": self.epoch, "batch_no": self.batch_no, "digest": self.digest,
            "cursor": self.cursor, "more": more,
        })  # fmt: skip
