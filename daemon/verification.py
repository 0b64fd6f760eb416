"""Passes through tables that compare the two stores: how far each has come, and what it has found. As values.

Knows the target's record of a pass, the source's wishes, and what a comparison answers. Knows nothing of connections. Pure.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from daemon.aim import same_outbox, same_rows
from daemon.plan import Group
from daemon.sheaf import GLUE, Pieces, Sheaf

KINDS = ("missing", "different", "extra")
_NEXT = {"rows": "extra", "extra": "done"}
NOT_THERE = "it is not on the target"  # that of a pass which somebody asked for, and there is nothing to compare with
_SAMPLES = 20  # rows that differ of which the keys are kept

Op = Literal["digest", "compare", "present"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody wants of a watched table. `number`: of the newest wish, 0: nobody has asked; `repair`: of the newest to
    repair. `aim`: what a comparison is of now; None: that cannot be said."""

    table: str
    number: int
    repair: int
    aim: str | None = None


@dataclass(frozen=True, slots=True)
class Drift:
    """A row that is not the same in both stores. `kind`: see KINDS; `columns` are those that differ, where known."""

    key: str
    kind: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verification:
    """The target's record of the pass through a table.

    `step`: `rows` of the source are looked for on the target, then rows that the target has beyond them (`extra`);
    `after` is how far that step has come (`seen`: further, but no row was there that travels; the target is not told). The counts are of rows that differ and were not repaired. `began_at` is the
    source's clock, as Unix time: what had committed by then is equal, but for what was found. `last` is the last pass
    that came to its end: `began_at`, and its counts. `aim`, `here`: as of a copy.
    """

    table: str
    state: str = "done"
    wish: int = 0
    asked: bool = False
    repair: bool = False
    step: str = "rows"
    after: str | None = None
    rows: int = 0
    missing: int = 0
    different: int = 0
    extra: int = 0
    held: int = 0
    repaired: int = 0
    samples: tuple[Mapping[str, Any], ...] = ()
    reason: str | None = None
    began_at: float = 0.0
    last: Mapping[str, Any] | None = None
    seen: str | None = None
    aim: str | None = None
    here: bool = True

    def fits(self, wanted: Wanted) -> bool:
        """Is it of what is there now? Else it neither goes on nor says anything."""
        same = self.aim == wanted.aim if self.state == "running" else same_rows(self.aim, wanted.aim)
        return self.here and (wanted.aim is None or same)

    @property
    def drift(self) -> int:
        """Rows that differ, as far as this pass has come."""
        return self.missing + self.different + self.extra

    def begun(self, wanted: Wanted, *, asked: bool) -> "Verification":
        """From the beginning: because somebody asked, or because it is time. What an unfinished pass was to do, this one
        does."""
        fits, unfinished = self.fits(wanted), self.state == "running"
        repair = (unfinished and self.repair) or wanted.repair > (self.wish if same_outbox(self.aim, wanted.aim) else 0)
        return Verification(
            self.table, "running", wanted.number if asked else self.wish, asked=asked, repair=asked and repair,
            last=self.last if fits else None, aim=wanted.aim,
        )  # fmt: skip

    def found(self, drifts: Sequence[Drift], *, held: int = 0, repaired: int = 0) -> "Verification":
        """With what a comparison has shown."""
        kinds = {kind: getattr(self, kind) + sum(one.kind == kind for one in drifts) for kind in KINDS}
        samples = (*self.samples, *(asdict(one) for one in drifts))[:_SAMPLES]
        return replace(self, **kinds, held=self.held + held, repaired=self.repaired + repaired, samples=samples)

    def further(self, after: str | None, rows: int = 0, *, ends: bool, seen: str | None = None) -> "Verification":
        """After a range of rows, or of the target's keys."""
        on = replace(self, rows=self.rows + rows, after=None if ends else after, seen=None if ends else seen)
        return replace(on, step=_NEXT[self.step]) if ends else on

    def onto(self, known: "Verification") -> "Verification":
        """As far as this has come, with what `known` had found by then."""
        counts = {name: getattr(known, name) for name in (*KINDS, "held", "repaired", "samples")}
        return replace(self, **counts)

    def done(self) -> "Verification":
        """At its end: this is the last pass now."""
        counts = {name: getattr(self, name) for name in ("rows", *KINDS, "held", "repaired")}
        last = {"began_at": self.began_at, **counts, "samples": self.samples}
        return replace(self, state="done", step="extra", after=None, last=last)

    def failed(self, reason: str) -> "Verification":
        """It cannot go on; the last pass stays what it was."""
        return replace(self, state="failed", after=None, seen=None, step="rows", reason=reason)


_RECORD = {one.name for one in fields(Verification)} - {"seen"}


@dataclass(frozen=True, slots=True)
class Checked:
    """What a batch asks the target to compare (`group`), or repairs, or only has it note. `before` and `then`: how far
    the pass has come once those that were sent before it are known to be equal, and once this one is. `keys`: how many
    were looked at; `unread`: rows too large to be read; `again`: they had been found to differ; `reading`: how long it
    took to read them (seconds).

    `known`: the records to be noted with it. What is under way is not known yet: who begins anew reads it again.
    """

    before: Verification
    then: Verification
    known: tuple[Verification, ...] = ()
    group: Group | None = None
    keys: int = 0
    unread: tuple[str, ...] = ()
    mends: bool = False
    again: bool = False
    reading: float = 0.0

    @property
    def notes(self) -> tuple[Group, ...]:
        """What goes with the batch."""
        known = tuple(note(one) for one in self.known)
        return known if self.group is None else (self.group, *known)


def known(given: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Verification, float]]:
    """The records in an answer of the target, by table, and how long ago each was written (seconds)."""
    found = {}
    for one in given:
        record = {name: value for name, value in one.items() if name in _RECORD}
        found[one["table"]] = Verification(**{**record, "samples": tuple(one.get("samples", ()))}), float(one["ago"])
    return found


def fresh(record: Verification | None, wanted: Wanted) -> bool:
    """Has somebody asked for what no pass has had in hand, of what is there now?"""
    return wanted.number > 0 and (record is None or not record.fits(wanted) or wanted.number != record.wish)


def begun_by(record: Verification | None, wanted: Wanted, *, due: bool) -> bool:
    """Does a pass begin? Because of a wish that no pass has had in hand, or because it is time."""
    return fresh(record, wanted) or (due and (record is None or record.state != "running" or not record.fits(wanted)))


def note(record: Verification) -> Group:
    """The group of a batch that has the target record this."""
    told = {name: value for name, value in asdict(record).items() if name not in {"table", "seen", "here"}}
    return Group(
        record.table, "verification", 0, (), (json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode(),)
    )


def question(table: str, op: Op, columns: Sequence[str], sheaf: Sheaf | None) -> Group:
    """The group that has the target compare: rows by their keys, with their text or its digest."""
    if sheaf is None:
        return Group(table, op, 0, tuple(columns), ())
    asked = _with_digests(sheaf) if op == "digest" else (sheaf.keys,) if op == "present" else sheaf.rows or ()
    return Group(table, op, 0, tuple(columns), asked, sheaf.keys)


def _with_digests(sheaf: Sheaf) -> Pieces:
    """Keys, each with the digest of its row as one member more: what outbox.key_sql makes ends with its brace."""
    opened = sheaf.keys[:-1].replace(b"}" + GLUE, GLUE).split(GLUE)
    return (GLUE.join(map(b'%b,"outboxd digest":"%b"}'.__mod__, zip(opened, sheaf.lines(), strict=True))),)


def answered(group: Group, compared: Mapping[str, Any], held: Collection[tuple[str, str]]) -> tuple[list[Drift], int]:
    """What differs by the target's answer, and how many of these keys are held: these wait as dead letters."""
    keys = group.keys
    drifts = [Drift(keys[at], kind, tuple(columns or ())) for at, kind, columns in compared["found"]]
    apart = [one for one in drifts if (group.table, one.key) not in held]
    return apart, len(drifts) - len(apart)


def shown(table: str, record: Verification | None) -> dict[str, Any]:
    """A table's verification, for a person and for metrics. `drift` and `rows` are of the last pass that came to its
    end, or of the one under way when that has found more already; `rows` then are those that there
    were, lest what differs seem a larger share than it is. `through`: whatever had committed by then (Unix time) is equal
    in both stores, but for these rows."""
    record = record or Verification(table, "never")
    last, running = record.last, record.state == "running"
    ahead = last is None or record.drift > sum(last[kind] for kind in KINDS)
    counts = {name: getattr(record, name) for name in ("rows", *KINDS, "held", "repaired")}
    seen = counts if running and ahead and record.drift else last
    return {
        "table": table, "state": record.state, "reason": record.reason,
        "drift": {kind: seen[kind] for kind in KINDS} if seen else None,
        "rows": max(seen["rows"], last["rows"] if last else 0) if seen else None,
        "held": seen["held"] if seen else None,
        "repaired": seen["repaired"] if seen else None,
        "through": last["began_at"] if last else None,
        "began": record.began_at or None if running else None, "so_far": counts if running else None,
        "samples": list(record.samples if running and seen is counts else (last or {}).get("samples", ())),
    }  # fmt: skip
