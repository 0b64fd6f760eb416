"""How large the next batch may be: additive growth, halving, and a ceiling that is remembered for a while.

Knows the sizes and times of past batches. Knows nothing of what is in them. Pure; the clock is handed in.
"""

from dataclasses import dataclass, field

_REMEMBERED = 600.0  # seconds a size that was refused is not tried again
_SMALL, _SMALL_BYTES = 100, 64 * 1024  # a batch of these is not slow because of its size
_STEPS = 20  # from one row to the whole limit, as long as nothing is refused


@dataclass(slots=True)
class Sizing:
    """Limits of a batch in changes and bytes, between one change and what the settings allow.

    `slow` is the time (s) from which an answer counts as slow: larger batches would meet the target's timeout.
    """

    most_changes: int
    most_bytes: int
    least_bytes: int = 4096
    slow: float = 4.0
    changes: int = field(init=False)
    bytes: int = field(init=False)
    _ceiling: tuple[int, int] = field(init=False)
    _ceiling_until: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        self.changes, self.bytes = self.most_changes, self.most_bytes
        self._ceiling = (self.most_changes, self.most_bytes)

    def applied(self, changes: int, size: int, seconds: float, now: float) -> None:
        """A batch went through: grow, or shrink when it took long.

        A small one is slow for other reasons: smaller ones would only add to the lag, and tear transactions.
        """
        if seconds >= self.slow:
            self.changes = min(self.changes, max(_SMALL, changes // 2))
            self.bytes = min(self.bytes, max(_SMALL_BYTES, size // 2))
            return
        if now >= self._ceiling_until:
            self._ceiling = (self.most_changes, self.most_bytes)
        self.changes = min(self.changes + max(1, self.most_changes // _STEPS), self._ceiling[0])
        self.bytes = min(self.bytes + max(self.least_bytes, self.most_bytes // _STEPS), self._ceiling[1])

    def refused(self, changes: int, size: int, now: float) -> None:
        """A batch was too large or took too long: half of it next, and for a while not as much again."""
        self.suspected(changes, size)
        self._ceiling = (
            max(1, min(self.most_changes, (3 * changes) // 4)),
            max(self.least_bytes, min(self.most_bytes, (3 * size) // 4)),
        )
        self._ceiling_until = now + _REMEMBERED

    def forgive(self) -> None:
        """What was refused was one row's or one table's matter: that size may be tried again."""
        self._ceiling_until = float("-inf")

    def suspected(self, changes: int, size: int) -> None:
        """A batch may have been too large: half of it next."""
        self.changes = max(1, min(self.changes, changes) // 2)
        self.bytes = max(self.least_bytes, min(self.bytes, size) // 2)


@dataclass(slots=True)
class Portion:
    """How many of what is waiting go at once, where the first try of all was too much: one, then twice as many after each
    success, up to three quarters of what has failed, which is remembered for a while."""

    most: int
    now: int = field(init=False)
    _ceiling: int = field(init=False)
    _ceiling_until: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        self.now = self._ceiling = self.most

    def arrived(self, now: float) -> None:
        """So many went through."""
        if now >= self._ceiling_until:
            self._ceiling = self.most
        self.now = min(2 * self.now, self._ceiling)

    def refused(self, many: int, now: float) -> None:
        """So many were too much. The first time that says little: one of them may be, so that it is looked for from the beginning."""
        first = now >= self._ceiling_until
        self._ceiling = max(1, (many * 3) // 4)
        self._ceiling_until = now + _REMEMBERED
        self.now = 1 if first else max(1, many // 2)
