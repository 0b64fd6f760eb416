"""When the demo is to end early: Ctrl-C, SIGTERM, a closed terminal.

Knows signals. Must not know what ends: signals are only noted here, and the story asks between its steps, so
nothing is left half started or half cleared up. A second Ctrl-C finds the clearing up under way already.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """A signal was caught; `exit_code` is what a shell expects then."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Curtain:
    def __init__(self) -> None:
        self._signal = 0
        self._fell = threading.Event()

    def wait(self, seconds: float = 0.0) -> None:
        """Raises Stopped as soon as a signal was caught."""
        if self._fell.wait(seconds):
            raise Stopped(self._signal)

    def fall(self, number: int, _: FrameType | None) -> None:
        self._signal = self._signal or number
        self._fell.set()


@contextmanager
def curtain() -> Iterator[Curtain]:
    one = Curtain()
    before = {each: signal.signal(each, one.fall) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield one
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
