"""What the target's side is worth: disabled, degraded or full. One value, and whoever shows it asks here.

Pure: knows the facts it is given, nothing of where they are from. `state` says what the relay does (streaming, paused,
standby …), `mode` what it has to do it with. They are told apart because one does not follow from the other: a relay is
paused and the mode full when the source is away, and it stands by in any of the three.
"""

import enum
from dataclasses import dataclass

from daemon.errors import Kind

_TARGETS = frozenset(Kind)  # what a turn fails of when it is not the source


class Mode(enum.StrEnum):
    """`disabled`: no way there until a setting is another. `degraded`: there is one, and the target does not take what
    it should. `full`: nothing speaks against it, as far as anybody has asked."""

    DISABLED = "disabled"
    DEGRADED = "degraded"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Facts:
    """`lacking`: which settings are missing or wrong. `refused`: the target's last word, when it was that the key is
    not accepted. `breaker`: the target's. `problem`, `problem_kind`: the relay's."""

    lacking: str | None = None
    refused: str | None = None
    breaker: str = "closed"
    breaker_error: str | None = None
    problem: str | None = None
    problem_kind: str | None = None


@dataclass(frozen=True, slots=True)
class Worth:
    """The mode, and why it is not full."""

    mode: Mode
    because: str | None = None


def judge(facts: Facts) -> Worth:
    """The mode that follows from the facts."""
    if facts.lacking:
        return Worth(Mode.DISABLED, facts.lacking)
    if facts.refused:
        return Worth(Mode.DISABLED, facts.problem if facts.problem_kind == Kind.AUTH else facts.refused)
    if facts.problem_kind in _TARGETS:
        return Worth(Mode.DEGRADED, facts.problem)
    if facts.breaker != "closed":
        return Worth(Mode.DEGRADED, facts.breaker_error or f"the target's breaker is {facts.breaker}")
    return Worth(Mode.FULL)
