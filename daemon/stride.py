"""How much of a table is compared at once, and how long a pass rests in between: quick when asked for, gentle by the clock.

Changes wait behind a comparison, so while they flow one takes a moment only. Knows rows, seconds and a clock that is
handed in. Knows nothing of what is compared. Pure, but for what it remembers.
"""

from collections.abc import Callable

_FIRST, _LEAST = 1000, 50  # rows
_QUIET, _FLOWING = 0.25, 0.02  # seconds that reading and comparing take together
_LINGERS = 1.0  # seconds after a change they still flow
_IDLE = 9.0  # times as long as it worked a pass by the clock rests while changes flow
_REGAINS = 1.1
_TURNS = 2.0  # ranges a second of a pass by the clock


class Stride:
    """`rate`: rows a second of a pass by the clock at most, 0: as many as there are."""

    def __init__(self, clock: Callable[[], float], rate: float = 0.0) -> None:
        self._clock = clock
        self.rate = rate
        self._speed: dict[str, float] = {}  # rows a second, by table
        self._ceiling: dict[str, float] = {}  # rows, where more were too many
        self._flowed = float("-inf")

    def flowed(self) -> None:
        """A change went by."""
        self._flowed = self._clock()

    @property
    def flows(self) -> bool:
        """Do changes flow?"""
        return self._clock() < self._flowed + _LINGERS

    def rows(self, table: str, most: int, *, asked: bool) -> int:
        """How many are compared next."""
        seconds = _FLOWING if self.flows else _QUIET
        fit = max(_LEAST, int(self._speed.get(table, _FIRST / _QUIET) * seconds))
        if self.rate and not asked:
            fit = min(fit, max(1, int(self.rate / _TURNS)))
        return max(1, min(most, fit, int(self._ceiling.get(table, most))))

    def took(self, table: str, rows: int, seconds: float) -> None:
        """So many were read and compared in this time."""
        if table in self._ceiling and rows >= int(self._ceiling[table]):
            self._ceiling[table] *= _REGAINS
        if rows >= _LEAST:  # fewer say more of a request than of rows
            seen, before = rows / max(seconds, 1e-4), self._speed.get(table, _FIRST / _QUIET)
            self._speed[table] = min(max(seen, before / 2), before * 2)

    def halve(self, table: str, most: int, least: int = 0) -> bool:
        """It was too much at once. False: it had been the least already."""
        before = self.rows(table, most, asked=True)
        self._ceiling[table] = max(min(least or _LEAST, before), before // 2)
        return self._ceiling[table] < before

    def rest(self, rows: int, seconds: float, *, asked: bool) -> float:
        """Seconds until the next range may begin."""
        if asked or not self.rate:
            return 0.0
        return max(rows / self.rate, _IDLE * seconds if self.flows else 0.0)
