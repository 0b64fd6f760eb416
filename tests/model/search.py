"""Running schedules by the thousand; when one breaks a promise, the shortest that still does, and its story."""

import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from tests.model import process
from tests.model.choices import Choices, Step
from tests.model.clockwork import Clock
from tests.model.mirror import Mirror
from tests.model.oracle import Broken
from tests.model.schedule import Schedule
from tests.model.world import World


class _Mute:
    """A logger that costs nothing."""

    def info(self, *_: Any, **__: Any) -> None: ...

    warning = error = log = debug = info


class _Time:
    """The module `time`, as the daemon's modules see it: the clock of the world that runs."""

    clock = Clock()

    def monotonic(self) -> float:
        return self.clock.now

    def time(self) -> float:
        return self.clock.now


class _Even:
    """The module `random`, without chance."""

    def random(self) -> float:
        return 0.5


@contextmanager
def simulated() -> Iterator[_Time]:
    """The daemon's modules connect to the simulated source, ask the simulated clock and are silent.

    Coverage is not measured meanwhile: it would double the time, and other tests come by all of these lines.
    """
    clock = _Time()
    with ExitStack() as stack:
        stack.callback(sys.settrace, sys.gettrace())
        sys.settrace(None)
        for module in (
            "daemon.relay",
            "daemon.flight",
            "daemon.copier",
            "daemon.delivery",
            "daemon.opening",
            "daemon.pages",
            "daemon.target",
        ):
            stack.enter_context(patch(f"{module}.time", clock))
        for module in ("daemon.relay", "daemon.delivery"):
            stack.enter_context(patch(f"{module}.log", _Mute()))
        stack.enter_context(patch("daemon.relay.random", _Even(), create=True))  # its jitter: always the same
        stack.enter_context(patch("daemon.session.connect", process.connect))
        # Small numbers, so that short schedules come by them.
        stack.enter_context(
            patch("daemon.flight._NEAR", 0.0)
        )  # far enough for two on their way, which is the harder case
        stack.enter_context(patch("daemon.opening._FLOOR_EVERY", 3))
        stack.enter_context(patch("daemon.opening._FLOORS", 4))
        stack.enter_context(patch("daemon.pages._LONGEST_SPAN", 4))
        yield clock


@dataclass(frozen=True, slots=True)
class Failure:
    """A promise broken: by which seed, after how many schedules, and the shortest story found."""

    seed: int
    schedules: int
    broken: str
    history: tuple[str, ...]

    @property
    def promise(self) -> str:
        """I1 … I6, or atomicity."""
        return self.broken.partition(":")[0]

    def __str__(self) -> str:
        again = f"python -m tests.model.search {self.seed}"
        return "\n".join(
            (f"Seed {self.seed} breaks a promise ({again}). The shortest history found:", *self.history, self.broken)
        )


def search(
    seeds: Sequence[int],
    mirror: Callable[[], Mirror] = Mirror,
    *,
    met: Counter[str] | None = None,
    shrink_seconds: float = 10.0,
) -> Failure | None:
    """Run one schedule a seed; None when every promise held in all of them. `met` counts what happened in them."""
    with simulated() as clock:
        for count, seed in enumerate(seeds, 1):
            choices = Choices(seed)
            if broken := _outcome(clock, choices, mirror, met=met):
                until = time.monotonic() + shrink_seconds
                steps = _shortest(clock, choices, broken, mirror, until)
                history: list[str] = []
                told = _outcome(clock, Choices(seed, steps), mirror, history)
                return Failure(seed, count, told or broken, tuple(history))
    return None


def _outcome(
    clock: _Time,
    choices: Choices,
    mirror: Callable[[], Mirror],
    history: list[str] | None = None,
    met: Counter[str] | None = None,
) -> str | None:
    """What a schedule breaks; None when nothing."""
    scene = World(choices, mirror, history)
    clock.clock = scene.clock
    try:
        Schedule(scene, choices).run()
    except Broken as broken:
        return str(broken)
    except Exception as error:  # noqa: BLE001  a schedule that makes the daemon fall over is a finding, too
        if history is not None:
            history.extend(traceback.format_exc().splitlines())
        return f"{type(error).__name__}: {error}"
    finally:
        scene.end()
        if met is not None:
            met.update(scene.met)
    return None


def _shortest(clock: _Time, choices: Choices, broken: str, mirror: Callable[[], Mirror], until: float) -> list[Step]:
    """Strike steps out and soften what they drew, as long as the same promise breaks."""
    promise = broken.partition(":")[0]
    best = choices.taken

    def still(candidate: list[Step]) -> list[Step] | None:
        """The steps that were taken, when they break it."""
        again = Choices(choices.seed, candidate)
        if time.monotonic() >= until:
            return None
        outcome = _outcome(clock, again, mirror)
        return again.taken if outcome is not None and outcome.partition(":")[0] == promise else None

    size = len(best) // 2
    while size:
        at, before = 0, len(best)
        while at < len(best):
            shorter = still(best[:at] + best[at + size :])
            if shorter is None:
                at += size
            else:
                best = shorter
        if size > 1 or len(best) == before:
            size //= 2
    for at, step in enumerate(best):
        if any(step.drawn) and (softer := still([*best[:at], Step(step.label, []), *best[at + 1 :]])):
            best = softer if len(softer) == len(best) else best
    return best


if __name__ == "__main__":
    first = int(sys.argv[1])
    seeds = range(first, int(sys.argv[2]) if len(sys.argv) > 2 else first + 1)
    began, met = time.monotonic(), Counter[str]()
    print(search(seeds, met=met) or f"Every promise held in {len(seeds)} schedules.")
    print(f"{time.monotonic() - began:.1f} s:", ", ".join(f"{what} {count}" for what, count in met.most_common()))
