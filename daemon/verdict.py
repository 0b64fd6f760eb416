"""One verdict by one rule, whoever asks: `outboxd status`, /api/status, the metrics.

"In sync" is said only when somebody leads, every watched table is captured, fits and is copied, nothing is held or
differs, the source is the cursor's own, and the lag is small. Otherwise the worst comes first, with the command that
leads on. Pure: knows the facts it is given, nothing of where they are from.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.printable import word
from daemon.watchlist import Entry, State

IN_SYNC = "in sync: nothing needs you"
STANDING_BY = "standing by: another outboxd leads"
SMALL = 5.0  # seconds of lag that are none: what is on its way
# What keeps it from being said, the worst first; a closed set, for it is a label of the metrics.
KINDS = (
    "away", "setup", "source", "uncaptured", "disabled", "problem", "unled", "missing", "unfit", "out", "renamed", "held",
    "drift", "uncompared", "uncopied", "lag", "unknown",
)  # fmt: skip
_NAMED = 3  # tables of a kind that are named in one sentence


@dataclass(frozen=True, slots=True)
class Finding:
    """`many`: tables, rows or changes that it speaks of."""

    kind: str
    text: str
    many: int = 1


@dataclass(frozen=True, slots=True)
class Facts:
    """`setup`: what outboxd's own side lacks, each with its command; `foreign`: why this source is not the cursor's.
    `leads`: does anybody? None: that cannot be known; `barred`: who is in the way, where nobody does; `instead`: another relay does. `tables`: None while nobody has looked, or (`unseen`: why) can. `lag` and `small`: seconds."""

    away: Sequence[str] = ()
    setup: Sequence[str] = ()
    foreign: str | None = None
    disabled: str | None = None
    problem: str | None = None
    paused: bool = False
    leads: bool | None = True
    barred: str | None = None
    instead: str | None = None
    tables: Sequence[Entry] | None = ()
    unseen: str | None = None
    verifications: Sequence[Mapping[str, Any]] = ()
    held: int = 0
    backlog: int = 0
    lag: float = 0.0
    small: float = SMALL


def findings(facts: Facts) -> tuple[Finding, ...]:
    """All that keeps the stores from being called in sync, the worst first."""
    found = [*_stores(facts), *_moves(facts), *_tables(facts.tables or ()), *_rows(facts)]
    if facts.tables is None and (facts.unseen or not found):
        unseen = (
            f"the tables cannot be looked at: {facts.unseen}"
            if facts.unseen
            else "the tables have not been looked at yet"
        )
        found.append(Finding("unknown", unseen))
    return tuple(sorted(found, key=lambda one: KINDS.index(one.kind)))


def sentence(found: Sequence[Finding]) -> str:
    """What a person can act on."""
    return "; ".join(one.text for one in found) or IN_SYNC


def _stores(facts: Facts) -> Iterator[Finding]:
    if facts.away:
        yield Finding("away", f"{' and '.join(facts.away)} cannot be asked", len(facts.away))
    for text in facts.setup:
        yield Finding("setup", text)
    if facts.foreign:
        yield Finding("source", facts.foreign)


def _moves(facts: Facts) -> Iterator[Finding]:
    """Why nothing moves: the first reason, for the others follow from it."""
    waiting = f"{_many(facts.backlog, 'change')} wait{'s' * (facts.backlog == 1)} safely in Postgres"
    waiting = waiting if facts.backlog else "nothing waits"
    if facts.disabled:
        yield Finding("disabled", f"disabled: {facts.disabled}; captures go on, {waiting}")
    elif facts.problem:
        yield Finding("problem", f"{'paused' if facts.paused else 'interrupted'}: {facts.problem}; {waiting}")
    elif facts.away or facts.setup or facts.foreign:
        return
    elif facts.instead:
        other = f"relay {facts.instead} leads this source, and this one does not, so nothing moves"
        yield Finding("unled", f"{other}: give this one that name, or stop the other and `outboxd run`; {waiting}")
    elif facts.leads is None:
        unknown = "nobody is known to lead: behind a transaction pooler that cannot be seen, and no heartbeat arrives"
        yield Finding("unled", f"{unknown}; {waiting}: `outboxd run`, and a direct address for the source")
    elif not facts.leads and facts.barred:
        yield Finding("unled", f"nobody leads, so nothing moves: {facts.barred}; {waiting}")
    elif not facts.leads:
        since = f" (the oldest for {facts.lag:.0f} s)" if facts.backlog else ""
        yield Finding("unled", f"nobody leads, so nothing moves: `outboxd run`; {waiting}{since}")


_SAID = {
    State.UNCAPTURED: "{table} is not captured, {what}: `{command}`",
    State.MISSING: "{table} is not on the target: `{command}`",
    State.UNFIT: "{table} does not fit on the target, {what}: `{command}`",
    State.OUT: "{table} is out, the others flow: {what}",
    State.RENAMED: "{table} is {what}: `{command}`",
    State.UNCOPIED: "copying {table}: {what}",
}


def _tables(entries: Sequence[Entry]) -> Iterator[Finding]:
    for state, words in _SAID.items():
        of_it = [one for one in entries if one.state is state]
        if not of_it:
            continue
        said = [words.format(table=one.table, what=one.what, command=one.command) for one in of_it[:_NAMED]]
        said += [f"{len(of_it) - _NAMED} more tables are {state}: `outboxd check`"] if len(of_it) > _NAMED else []
        yield Finding(state, "; ".join(said), len(of_it))


def _rows(facts: Facts) -> Iterator[Finding]:
    if facts.held:
        yield Finding(
            "held", f"{_many(facts.held, 'row')} held as dead letters: `outboxd dead-letters list`", facts.held
        )
    drift, failed = unequal(facts.verifications)
    if drift:
        rows = sum(sum((one["drift"] or {}).values()) for one in facts.verifications)
        yield Finding("drift", "; ".join(drift), rows)
    if failed:
        yield Finding("uncompared", "; ".join(failed), len(failed))
    stands = facts.disabled or facts.problem or facts.leads is not True or facts.instead or facts.away or facts.foreign
    if facts.backlog and facts.lag > facts.small and not stands:
        behind = f"catching up: {_many(facts.backlog, 'change')}, {facts.lag:.1f} s behind"
        yield Finding("lag", behind, facts.backlog)


def unequal(verifications: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """What verification has found: tables that differ, those that differ most first; tables that could not be compared."""
    drift, failed = [], []
    for one in verifications:
        if rows := sum((one["drift"] or {}).values()):
            said = f"{_many(rows, 'row')} of {one['table']} differ{'s' * (rows == 1)}"
            drift.append((-rows, f"{said}: `outboxd verify {word(one['table'])} --repair`"))
        if one["state"] == "failed":
            failed.append(f"{one['table']} could not be compared: {one['reason']}")
    return _first([text for _, text in sorted(drift)]), _first(sorted(failed))


def _first(said: list[str]) -> list[str]:
    left = len(said) - _NAMED
    return said[:_NAMED] + ([f"{left} more: `outboxd verify`"] if left > 0 else [])


def equal(verifications: Sequence[Mapping[str, Any]], held: int) -> dict[str, Any] | None:
    """Up to when everything that had committed is known to be equal in both stores: one time for all tables, the earliest.
    None: some table was never compared as a whole, or something differs or is held."""
    if not verifications or held:
        return None
    if any(one["through"] is None or sum((one["drift"] or {}).values()) for one in verifications):
        return None
    through = min(one["through"] for one in verifications)
    return {"through": through, "tables": len(verifications), "rows": sum(one["rows"] or 0 for one in verifications)}


def _many(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"
