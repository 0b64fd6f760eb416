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
    "tables": [
        {"table": table, "target": table, "exists": False, "key": ["id"], "key_types": ["integer"]} for table in TABLES
    ],
    "references": [{"constraint": "c", "child": TABLES[1], "parent": TABLES[0], "deferrable": True, "on_delete": "a"}],
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
    compares_after = True

    def __init__(self) -> None:
        self.version = 0
        self.answers: Counter[str] = Counter()
        self.rows: dict[Key, int] = {}
        self.epoch = 0
        self.batch_no = 0
        self.digest: str | None = None
        self.cursor: dict[str, Any] | None = None
        self.held: set[tuple[str, str]] = set()  # table, and the key as JSON
        self.strict = True  # poisoned values are refused
        self.on_commit: Callable[[Applied], None] = lambda _: None

    def __str__(self) -> str:
        at = (self.cursor or {}).get("snapshot")
        held = f", holds {sorted(self.held)}" if self.held else ""
        return f"target {self.rows} at {at}, batch {self.batch_no}, epoch {self.epoch}{held}"

    def call(self, document: bytes) -> Iterator[str]:
        """The function, one yield a transaction; the last one is the answer."""
        first, *records = document.split(SEPARATOR)
        header = json.loads(first)
        match header["mode"]:
            case "claim":
                self.epoch = max(self.epoch, header.get("epoch_above", 0)) + 1
                self.version += 1
                yield self._answer("claimed", {**DESCRIPTION, **self._holds()})
            case "cursor":
                yield self._answer("cursor", self._holds())
            case "describe":
                yield json.dumps({"answer": "described", "more": DESCRIPTION})
            case "isolate":
                groups = _groups(records)
                yield self._turned_away(header) or self._answer("isolated", {"refused": self._refused(groups)})
            case "apply":
                yield from self._apply(header, records)

    def _apply(self, header: dict[str, Any], records: list[bytes]) -> Iterator[str]:
        if answer := self._turned_away(header):
            yield answer
            return
        groups = _groups(records)
        if self._refused(groups):
            yield self._answer("refused", {"sqlstate": "23514", "gear": 1, "table": groups[0][0]["table"]})
        else:
            yield from self._move(header, groups)

    def _turned_away(self, header: dict[str, Any]) -> str | None:
        if self.fences and header["epoch"] != self.epoch:
            return self._answer("fenced")
        if header["batch_no"] == self.batch_no and (header["digest"] == self.digest or not self.compares_digest):
            return self._answer("duplicate", self._holds())
        if header["batch_no"] != self.batch_no + 1 or (self.compares_after and header["after"] != (self.digest or "")):
            return self._answer("mismatch", self._holds())
        return None

    def _refused(self, groups: list[Group]) -> list[dict[str, Any]]:
        """Poisoned rows, as outboxd.isolate names them."""
        if not self.strict:
            return []
        return [
            {"part": 2 + 2 * at, "pos": pos, "why": {"sqlstate": "23514", "constraint": "healthy"}}
            for at, (head, rows) in enumerate(groups)
            for pos, row in enumerate(rows)
            if head["op"] == "upsert" and row["v"] < 0
        ]

    def _holds(self) -> dict[str, Any]:
        return {"held": sorted(self.held)}

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
            elif head["op"] == "hold":
                self.held |= {(table, _key(row)) for row in rows}
            elif head["op"] == "release":
                self.held -= {(table, _key(row)) for row in rows}
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


def _groups(records: list[bytes]) -> list[Group]:
    return [(json.loads(records[at]), json.loads(records[at + 1])) for at in range(0, len(records), 2)]


def _key(row: dict[str, Any]) -> str:
    """As tests.model.database writes it."""
    return json.dumps(row, separators=(",", ":"))
