"""Each watched table: are its changes recorded, does it fit on the target, is it copied?

Knows what the source says of its tables (sql/queries/check_watched.sql), and what the target says of its mirrors. Asks
nobody, and prints nothing: `check` and the verdict are made of the same findings. Pure.
"""

import enum
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from daemon.copies import Copy, Wish, begun_by, misfit, slowly
from daemon.printable import word

Level = Literal["OK", "WARN", "FAIL"]
Row = Mapping[str, Any]


class State(enum.StrEnum):
    """The worst first: what is lost now, what waits or is skipped, what is not there yet."""

    UNCAPTURED = "uncaptured"
    MISSING = "missing"
    UNFIT = "unfit"
    OUT = "out"
    RENAMED = "renamed"
    UNCOPIED = "uncopied"
    WELL = "well"


@dataclass(frozen=True, slots=True)
class Objection:
    """What `check` has to say of a table of the source, and what mends it."""

    level: Level
    what: str
    fix: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A table, and what is the matter with it. `command`: what leads on, as a person types it."""

    table: str
    state: State
    what: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True)
class Tables:
    """What was seen of all watched tables at one moment. `rows`: check_watched.sql; `fits`: why a table cannot be read as
    it is (None: it can), and the columns that travel. `labels`: of enum types, by table and column. `described`: the
    target's word, None while it says nothing."""

    rows: Sequence[Row]
    wishes: Mapping[str, Wish]
    fits: Mapping[str, tuple[str | None, Sequence[str]]] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    described: Mapping[str, Any] | None = None

    def entries(
        self, copies: Mapping[str, Copy] | None, wishes: Mapping[str, Wish] | None = None, slow: Mapping[str, int] | None = None,
    ) -> tuple[Entry, ...]:  # fmt: skip
        """Each of them, with its copy as it stands. `copies` None: the target has not said what it has; `slow`: tables of
        which so many rows at most are copied at once."""
        known = {**self.wishes, **(wishes or {})}
        found, shared = [], self._shared()
        for row in self.rows:
            name = row["table_name"]
            amiss = self._amiss(row, shared)
            if amiss is None and copies is not None:
                amiss = _copied(name, copies.get(name), known.get(name), slowly((slow or {}).get(name)))
            found.append(amiss or Entry(name, State.WELL))
        return tuple(found)

    def _amiss(self, row: Row, shared: Mapping[str, Sequence[str]]) -> Entry | None:
        """What keeps the table from being captured, or from being written there."""
        table = str(row["table_name"])
        named = word(table)
        if row["capture"]:
            for one in objections(row):
                if one.level == "FAIL":
                    return Entry(table, State.RENAMED if _follows(row) else State.UNCAPTURED, one.what, one.fix)
            unfit, columns = self.fits.get(table, (None, ()))
            if unfit:
                return Entry(table, State.UNCAPTURED, unfit, f"outboxd watch {named}")
        else:
            columns = ()
        if self.described is not None:
            mirror = mirror_of(table, self.described)
            if mirror is None or not mirror["exists"]:
                return Entry(table, State.MISSING, "it is not on the target", "outboxd schema apply")
            rivals = [
                f"{other} goes to {mirror['target']} as well"
                for other in shared.get(mirror["target"], ())
                if other != table
            ]
            reason = (
                elsewhere(row, mirror)
                or ", ".join(rivals)
                or misfit(table, self.described, columns, row.get("key") or ())
                or unfilled(mirror, columns)
            )
            if reason := reason or unspoken(self.labels.get(table, {}), mirror):
                return Entry(table, State.UNFIT, reason, f"outboxd schema plan {named}")
        return None

    def _shared(self) -> dict[str, list[str]]:
        """Tables of the target to which several watched ones go, and which: each deletes the others' rows."""
        watched, places = {row["table_name"] for row in self.rows}, defaultdict[str, list[str]](list)
        for one in (self.described or {}).get("tables", ()):
            if one["table"] in watched:
                places[one["target"]].append(one["table"])
        return {place: tables for place, tables in places.items() if len(tables) > 1}


def _copied(table: str, copy: Copy | None, wish: Wish | None, slow: str | None) -> Entry:
    if copy is not None and copy.state == "out":
        return Entry(table, State.OUT, copy.reason or "", f"outboxd schema plan {word(table)}")
    if wish is not None and (begun_by(copy, wish) or (copy is not None and copy.state == "copying")):
        rows = copy.rows if copy is not None and copy.state == "copying" else 0
        return Entry(table, State.UNCOPIED, ", ".join([f"{rows} rows", *([slow] if slow else [])]))
    return Entry(table, State.WELL)


def mirror_of(table: str, described: Mapping[str, Any]) -> Row | None:
    """What the target writes this table's changes to."""
    return next((one for one in described["tables"] if one["table"] == table), None)


def elsewhere(row: Row, mirror: Row) -> str | None:
    """Is it mapped to another table than it is watched to go to?"""
    if row["target"] in {None, mirror["target"]}:
        return None
    return f"goes to {mirror['target']}, and is watched to go to {row['target']}"


def unfilled(mirror: Row, columns: Sequence[str]) -> str | None:
    """Columns of the mirror that must have a value, and are sent none: new rows are refused. A trigger may give them one."""
    lacks = [one["name"] for one in mirror["columns"] or () if one["required"] and one["name"] not in columns]
    if not columns or not lacks or mirror["triggers"]:
        return None
    return f"{', '.join(lacks)} must have a value there, and none is sent"


def by_table(rows: Iterable[Row]) -> dict[str, dict[str, Sequence[str]]]:
    """The answer of check_labels.sql."""
    found: dict[str, dict[str, Sequence[str]]] = {}
    for row in rows:
        found.setdefault(row["table_name"], {})[row["column"]] = row["labels"]
    return found


def unspoken(labels: Mapping[str, Sequence[str]], mirror: Row) -> str | None:
    """Values of enum types that the mirror's columns do not know."""
    there = {column["name"]: column.get("labels") for column in mirror["columns"] or ()}
    said = []
    for column, wanted in labels.items():
        known = there.get(column)
        if known is not None and (lacks := [label for label in wanted if label not in known]):
            said.append(f"{column} has no value {', '.join(lacks)}")
    return "; ".join(sorted(said)) or None


def _moved(row: Row) -> str:
    """Another table took the name of the one that is watched."""
    called = row["called"]
    return f" (they are on {called}, which had this name: for both, watch {called} first)" if called else ""


def _nameless(row: Row) -> Objection:
    """No table has the name any more. To unwatch one that lives on by another would lose its changes."""
    if row["called"] is None:
        return Objection("FAIL", "watched, but the table is gone", f"outboxd unwatch {word(row['table_name'])}")
    lost = "something that is no table has its name, and changes are not recorded"
    what = lost if row["shadowed"] else "it can neither be copied nor compared until it is watched by that name"
    return Objection("FAIL", f"called {row['called']} now: {what}", f"outboxd watch {word(row['called'])}")


def _follows(row: Row) -> bool:
    """Has the table another name, and are its changes recorded under the old one all the same?"""
    return not row["is_there"] and row["called"] is not None and not row["shadowed"]


def objections(row: Row) -> Iterator[Objection]:
    """What keeps its changes from being recorded, or recorded well."""
    table = word(str(row["table_name"]))
    again = f"outboxd watch {table}"
    if not row["is_there"]:
        if row["capture"]:
            yield _nameless(row)
        return
    bare, untruncated = ", ".join(row["bare"]), ", ".join(row["untruncated"])
    asleep, detached = ", ".join(row["asleep"]), ", ".join(row["detached"])
    if row["unfit"]:
        yield Objection("FAIL", str(row["unfit"]), again)
    if bare:
        yield Objection(
            "FAIL", f"no capture triggers on {bare}: changes made there are not recorded{_moved(row)}", again
        )
    if untruncated and not bare:
        yield Objection("FAIL", f"no triggers for TRUNCATE on {untruncated}: emptying it is not recorded", again)
    if asleep:
        yield Objection("FAIL", f"disabled or not ALWAYS: {asleep}", again)
    if detached:
        left = f"{detached} was detached: its rows left the table without a trigger"
        yield Objection("WARN", left, f"{again}, then bring the table over again")
    if not row["as_watched"]:
        yield Objection("WARN", "its columns changed since it was watched: captured, by a slower way", again)
