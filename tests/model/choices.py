"""Where a schedule's decisions come from: a seed, or a list written down before.

Every decision of a schedule is one number of one list, so a schedule can be run again, and be made shorter by
striking numbers out. Pure.
"""

import random
from collections.abc import Sequence


class Exhausted(Exception):
    """The list is at its end: no further step of the schedule."""


class Choices:
    """Draws decisions and writes them down; given a list, repeats it."""

    __slots__ = ("_given", "_next", "_random", "drawn")

    def __init__(self, seed: int, given: Sequence[int] | None = None) -> None:
        self._random = random.Random(seed).random
        self._given = given
        self._next = 0
        self.drawn: list[int] = []

    def below(self, count: int) -> int:
        """One of 0 … count - 1."""
        choice = int(self._random() * count) if self._given is None else self._repeated() % count
        self.drawn.append(choice)
        return choice

    def chance(self, percent: int) -> bool:
        """True in this many of a hundred cases. A list that repeats 0 says no."""
        return self.below(100) >= 100 - percent

    def weighted(self, weights: Sequence[int]) -> int:
        """The index of one of these, as likely as its weight."""
        if self._given is None:
            left = self._random() * sum(weights)
            for choice, weight in enumerate(weights):  # noqa: B007  the last one, whatever rounding does
                left -= weight
                if left < 0:
                    break
        else:
            choice = self._repeated() % len(weights)
        self.drawn.append(choice)
        return choice

    def step(self) -> None:
        """Begin another step. Raises Exhausted when a list has no more."""
        if self._given is not None and self._next >= len(self._given):
            raise Exhausted

    def _repeated(self) -> int:
        """The next number of the list; 0, the tamest choice, where it is too short."""
        assert self._given is not None
        self._next += 1
        return self._given[self._next - 1] if self._next <= len(self._given) else 0
