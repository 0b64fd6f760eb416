"""Where a schedule's decisions come from: a seed, or steps written down before.

A step is told by its label and by the numbers drawn within it, so a schedule can be run again and be made shorter by
striking steps out: those that are left still mean the same. Pure.
"""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """What was done, and the numbers drawn for it."""

    label: str
    drawn: list[int]


class Choices:
    """Draws decisions and writes them down; given steps, repeats them."""

    __slots__ = ("_calm", "_random", "_repeated", "given", "seed", "taken")

    def __init__(self, seed: int, given: Sequence[Step] | None = None) -> None:
        self._random = random.Random(seed).random
        self._repeated: Iterator[int] | None = None
        self._calm = False
        self.seed = seed
        self.given = given
        self.taken: list[Step] = []

    def below(self, count: int) -> int:
        """One of 0 … count - 1, where 0 is the tamest. What is drawn before the first step is the seed's alone."""
        if self._calm:
            return 0
        choice = int(self._random() * count) if self._repeated is None else next(self._repeated, 0) % count
        if self.taken:
            self.taken[-1].drawn.append(choice)
        return choice

    def chance(self, percent: int) -> bool:
        """True in this many of a hundred cases."""
        return self.below(100) >= 100 - percent

    def pick(self, weights: Sequence[int]) -> int:
        """The index of one of these, as likely as its weight."""
        left = self._random() * sum(weights)
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return index
        return len(weights) - 1

    def begin(self, label: str, repeated: Sequence[int] | None = None) -> None:
        """Another step: what is drawn from here on belongs to it."""
        self.taken.append(Step(label, []))
        self._repeated = None if repeated is None else iter(repeated)

    def calm(self) -> None:
        """No more steps: from here on every decision is the tamest."""
        self._calm = True
