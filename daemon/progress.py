"""What a relay tells of itself, to whom, and how long it waits.

Knows the names of things. Knows nothing of how a relay turns.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from daemon.batch import Batch
from daemon.plan import Plan
from daemon.target import Answer
from outbox import Cursor


class Observer(Protocol):
    """Who is told what the relay does: metrics, and tests."""

    def batch_read(self, batch: Batch, seconds: float) -> None: ...
    def batch_applied(self, batch: Batch, plan: Plan, answer: Answer, seconds: float) -> None: ...
    def stage(self, name: str, seconds: float) -> None: ...
    def tables_known(self, tables: Iterable[str]) -> None: ...
    def letters_held(self, tables: Mapping[str, int]) -> None: ...
    def keys_held(self, keys: int) -> None: ...
    def rejected(self, breaker: str) -> None: ...
    def turn_failed(self, reason: str) -> None: ...
    def woken(self, reason: str) -> None: ...
    def state_changed(self, state: str) -> None: ...
    def left_out(self, changes: int) -> None: ...
    def rows_copied(self, table: str, rows: int) -> None: ...
    def heartbeat_arrived(self, batch: Batch, latency: float, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Timing:
    """Waits, in seconds. `recheck`: how often a relay that needs a person looks whether it still does. `wind_up`:
    how long, once told to stop, it goes on with what is there. `letters`: how often it looks whether somebody wants a
    dead letter sent again. `request`: from one request to the next, and from one look to the next, when it is up to date.

    `wake`: may writers be made to NOTIFY? `auto` does not where transactions may be PREPAREd, because one that
    has notified cannot be.
    """

    poll: float = 1.0
    recheck: float = 15.0
    retry_first: float = 0.2
    retry_cap: float = 30.0
    wind_up: float = 5.0
    letters: float = 1.0
    request: float = 0.0
    wake: Literal["auto", "notify", "poll"] = "auto"


@dataclass(slots=True)
class Pulse:
    """The last heartbeats: when one was written and when one arrived (Unix time), and how long that one took (seconds).

    `taken`: does the target take them? None: it has not been asked. `refused`: it could not keep the last one.
    """

    taken: bool | None = None
    refused: bool = False
    written: float | None = None
    arrived: float | None = None
    seconds: float | None = None


@dataclass(slots=True)
class Status:
    """What the relay would tell a person. `problem` is one sentence; None when nothing needs anybody."""

    state: str = "starting"
    problem: str | None = None
    problem_kind: str | None = None
    since: float = field(default_factory=time.time)
    cursor: Cursor | None = None
    epoch: int = 0
    batch_no: int = 0
    applied: int = 0
    last_applied: float | None = None
    behind_seconds: float = 0.0
    held_keys: int = 0
    pulse: Pulse = field(default_factory=Pulse)
