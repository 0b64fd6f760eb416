"""`outboxd verify`: what has come of the passes through tables that were asked for, and what to do about it.

Knows the target's records of passes and copies. Knows nothing of printing. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from daemon.copies import Copy
from daemon.copies import known as copies_known
from daemon.errors import Kind, Refusal, TargetError
from daemon.printable import word
from daemon.verification import KINDS, NOT_THERE, Verification
from daemon.verification import known as passes_known

State = Literal["equal", "differs", "failed", "missing", "out", "copying"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one table. `through`: what had committed by then (Unix time) is equal but for what is counted here; None: it has
    never been compared as a whole. `samples`: some of the rows that differ, by key; no values."""

    table: str
    state: State
    rows: int = 0
    missing: int = 0
    different: int = 0
    extra: int = 0
    held: int = 0
    repaired: int = 0
    repair: bool = False
    through: float | None = None
    reason: str | None = None
    samples: Sequence[Mapping[str, Any]] = ()

    @property
    def drift(self) -> int:
        """Rows that differ."""
        return self.missing + self.different + self.extra


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is: what has ended, and the passes under way."""

    outcomes: Mapping[str, Outcome]
    running: Sequence[Verification]

    @property
    def rows(self) -> int:
        """Rows that have been compared."""
        return sum(one.rows for one in self.outcomes.values()) + sum(one.rows for one in self.running)

    @property
    def beyond(self) -> bool:
        """Are all rows of the source compared, and those looked for that the target has beyond them?"""
        return bool(self.running) and all(one.step == "extra" for one in self.running)


def progress(answer: Mapping[str, Any], wishes: Mapping[str, int]) -> Progress:
    """What the target says of the passes that were asked for. Nothing while it says nothing."""
    if answer and "verifications" not in answer:
        said = "schema outboxd on the target cannot compare tables: run `outboxd setup target` with this version"
        raise TargetError(Kind.CONTRACT, said, Refusal("OB008", message=said))
    passes = {table: one for table, (one, _) in passes_known(answer.get("verifications", ())).items()}
    copies = copies_known(answer.get("copies", ()))
    outcomes, running = {}, []
    for table, wish in wishes.items():
        record, copy = passes.get(table), copies.get(table)
        mine = record is not None and record.wish >= wish
        if record is not None and mine and record.state != "running":
            outcomes[table] = _ended(record)
        elif copy is not None and copy.state in {"out", "copying"}:
            outcomes[table] = _kept_from(copy, record)
        elif record is not None and mine:
            running.append(record)
    return Progress(outcomes, running)


def _ended(record: Verification) -> Outcome:
    state: State = "differs" if record.drift else "equal"
    if record.state == "failed":
        state = "missing" if record.reason == NOT_THERE else "failed"
    counts = {name: getattr(record, name) for name in ("rows", *KINDS, "held", "repaired", "repair")}
    return Outcome(
        record.table, state, **counts, through=_through(record), reason=record.reason, samples=record.samples
    )  # fmt: skip


def _kept_from(copy: Copy, record: Verification | None) -> Outcome:
    """What is out, or not yet copied as a whole, is not compared: most of it would differ."""
    state: State = "out" if copy.state == "out" else "copying"
    return Outcome(copy.table, state, through=_through(record), reason=copy.reason)


def _through(record: Verification | None) -> float | None:
    return float(record.last["began_at"]) if record is not None and record.last else None


def advice(one: Outcome) -> str | None:
    """One sentence of what to do; None: nothing."""
    name = word(one.table)
    if one.state == "out":
        return f"{one.table} is out: {one.reason}; once that is mended it is copied, and then compared, by itself"
    if one.state == "copying":
        return (
            f"{one.table} is being copied: once that is done it is compared by itself (`outboxd status`), or ask again"
        )
    if one.state == "missing":
        return f"{one.table} is not on the target: `outboxd schema apply`"
    if one.state == "failed":
        return f"{one.table} could not be compared: {one.reason}"
    said = []
    if one.state == "differs" and one.repair:
        said.append(f"{_differ(one)} after being written again: `outboxd check` names triggers there that change rows")
    elif one.state == "differs":
        said.append(
            f"{_differ(one)}: `outboxd verify {name} --repair` writes {'it' if one.drift == 1 else 'them'} again"
        )
    if one.held:
        said.append(
            f"{one.held} row{'s' * (one.held > 1)} of {one.table} wait{'s' * (one.held == 1)} as dead letters: "
            "`outboxd dead-letters list`"
        )
    return "; ".join(said) or None


def _differ(one: Outcome) -> str:
    return f"{one.drift} row{'s' * (one.drift > 1)} of {one.table} differ{'s' * (one.drift == 1)}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of all tables that were asked for. `through`: what had committed by then is equal in all of them, but for what is
    said; None: one of them was never compared as a whole."""

    said: str
    equal: bool
    through: float | None
    rows: int


def summed(found: Sequence[Outcome]) -> Verdict:
    """One verdict, and one time: the earliest."""
    times = [one.through for one in found]
    through = min((at for at in times if at is not None), default=None) if None not in times else None
    rows, repaired, drift = (sum(getattr(one, name) for one in found) for name in ("rows", "repaired", "drift"))
    held, unequal = sum(one.held for one in found), [one for one in found if one.state != "equal"]
    if unequal:
        not_compared = [one.table for one in unequal if one.state != "differs"]
        said = [f"{drift} row{'s' * (drift != 1)} differ{'s' * (drift == 1)}"] if drift else []
        said += [f"not compared: {', '.join(not_compared)}"] if not_compared else []
        return Verdict("; ".join(said), False, through, rows)
    if held:
        return Verdict(f"equal, but for {held} row{'s' * (held > 1)} held as dead letters", False, through, rows)
    again = f", {repaired} of them after being written again" if repaired else ""
    return Verdict(f"every row is equal{again}", True, through, rows)


def told(one: Outcome, through: str | None) -> dict[str, Any]:
    """For a program. `through` as it is written."""
    return {**asdict(one), "drift": one.drift, "through": through, "samples": list(one.samples)}
