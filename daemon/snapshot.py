"""The small arithmetic of snapshots: read, print, see, cut, and which transactions lie between two.

Knows how Postgres writes a snapshot and what it means. Knows nothing of connections, changes or cursors' other
parts. Pure; standard library only.

A snapshot names the transactions that had committed at an instant: those below `xmax` that are not `running`.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

Run = tuple[int, int]  # first and last of consecutive transaction ids


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``xmin:xmax:running``: xmin is the lowest running transaction, xmax the first not yet begun."""

    xmin: int
    xmax: int
    running: frozenset[int] = frozenset()

    @classmethod
    def parse(cls, text: str) -> "Snapshot":
        """Read Postgres' text of a pg_snapshot. Raises ValueError when it is none."""
        try:
            xmin, xmax, running = text.split(":")
            parsed = cls(int(xmin), int(xmax), frozenset(map(int, running.split(","))) if running else frozenset())
        except ValueError:
            raise ValueError(f"not a snapshot: {text!r}") from None
        if not 0 < parsed.xmin <= parsed.xmax or not all(parsed.xmin <= xid < parsed.xmax for xid in parsed.running):
            raise ValueError(f"not a snapshot: {text!r}")
        return parsed

    @classmethod
    def of(cls, xmax: int, running: Collection[int]) -> "Snapshot":
        """The snapshot with this xmax in which these transactions, as far as they lie below it, still run."""
        below = frozenset(xid for xid in running if xid < xmax)
        return cls(min(below, default=xmax), xmax, below)

    def __str__(self) -> str:
        """As Postgres prints and reads it."""
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, sorted(self.running)))}"

    def sees(self, xid: int) -> bool:
        """Had transaction `xid` committed?"""
        return xid < self.xmax and xid not in self.running


def cut(reached: Snapshot, goal: Snapshot, taken: Collection[int], untaken: Collection[int]) -> Snapshot:
    """The snapshot that sees what `reached` sees and the transactions `taken`, and nothing else.

    `taken` and `untaken` are transactions of the window (reached, goal]; `untaken` must name every transaction of
    that window below max(reached.xmax, 1 + max(taken)) that is not taken.

    Promise I4: applying `taken` alone is safe when they are the transactions that lie wholly before some id.
    Whoever wrote a key before one of them had committed by then, so lies before that id as well.
    """
    xmax = max(reached.xmax, 1 + max(taken, default=0))
    return Snapshot.of(xmax, (goal.running | frozenset(untaken)) - frozenset(taken))


def between(reached: Snapshot, goal: Snapshot, without: Collection[int] = (), below: int | None = None) -> list[Run]:
    """The transactions of the window (reached, goal], but those in `without`, as runs of consecutive numbers.

    With `below`, of those that began after `reached` only the ones below it.
    """
    out = goal.running.union(without)
    runs = [(xid, xid) for xid in sorted(reached.running - out) if goal.sees(xid)]
    first, end = reached.xmax, goal.xmax if below is None else min(goal.xmax, below)
    for xid in sorted(xid for xid in out if first <= xid < end):
        if first < xid:
            runs.append((first, xid - 1))
        first = xid + 1
    if first < end:
        runs.append((first, end - 1))
    return runs


def stretches(numbers: Iterable[int]) -> list[Run]:
    """Ascending numbers as runs."""
    found: list[Run] = []
    for one in numbers:
        if found and found[-1][1] == one - 1:
            found[-1] = (found[-1][0], one)
        else:
            found.append((one, one))
    return found
