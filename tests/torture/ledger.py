"""What the writers know: which numbers were acknowledged, which were taken back, which nobody can say of.

Shared by threads. Knows nothing of databases.
"""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Drawn:
    """The numbers of one transaction: those it means to keep, and those it took back by itself."""

    kept: list[int] = field(default_factory=list)
    undone: list[int] = field(default_factory=list)


class Ledger:
    """`acknowledged` must be on the target at the end; `forbidden` must never be seen there. `crowded`: so much waits that
    writers pause."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0
        self.acknowledged: dict[int, float] = {}
        self.forbidden: set[int] = set()
        self.unknown: set[int] = set()
        self.transactions: Counter[str] = Counter()
        self.harm: list[str] = []
        self.crowded = False
        self._troubles = 0
        self._troubled = float("-inf")

    def number(self) -> int:
        with self._lock:
            self._last += 1
            return self._last

    def committed(self, shape: str, drawn: Drawn, *, durable: bool) -> None:
        """The source said so. A commit that is not durable may go again when the server crashes."""
        now = time.monotonic()
        with self._lock:
            self.transactions[shape] += 1
            if durable:
                self.acknowledged.update(dict.fromkeys(drawn.kept, now))
            else:
                self.unknown.update(drawn.kept)
            self.forbidden.update(drawn.undone)

    def rolled_back(self, drawn: Drawn) -> None:
        with self._lock:
            self.transactions["rolled back"] += 1
            self.forbidden.update(drawn.kept + drawn.undone)

    def broke(self, drawn: Drawn, error: str, *, in_doubt: bool, connection: bool) -> None:
        """The transaction failed, in doubt while it committed. Promise I7: only a source in trouble may cause that."""
        with self._lock:
            self.transactions["broken"] += 1
            (self.unknown if in_doubt else self.forbidden).update(drawn.kept)
            self.forbidden.update(drawn.undone)
            recently = self._troubles or time.monotonic() - self._troubled < 3.0
            if not (connection and recently):
                self.harm.append(error)

    def snapshot(self) -> dict[int, float]:
        """Numbers acknowledged so far, and when."""
        with self._lock:
            return dict(self.acknowledged)

    def trouble(self, begins: bool) -> None:
        """The source's server is in trouble of its own, or no longer."""
        with self._lock:
            self._troubles += 1 if begins else -1
            self._troubled = time.monotonic()
