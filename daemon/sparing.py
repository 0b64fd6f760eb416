"""What others may cause as often as they like, let through once a minute, and how often it was left out.

Knows kinds and a clock. Knows nothing of what is let through. Bounded: of kinds there are never many, or they count as one.
"""

import time
from collections.abc import Callable, Hashable

_EACH = 60.0  # seconds
_KINDS = 64
_REST = object()


class Sparing:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[
            Hashable, tuple[float, int]
        ] = {}  # when one was last let through, and how many were not since

    def lets(self, kind: Hashable) -> int | None:
        """How many of this kind were left out since the last; None: this one is to be left out, too."""
        if kind not in self._known and len(self._known) >= _KINDS:
            kind = _REST
        now = self._clock()
        last, left_out = self._known.get(kind, (now - _EACH, 0))
        if now - last < _EACH:
            self._known[kind] = last, left_out + 1
            return None
        self._known[kind] = now, 0
        return left_out
