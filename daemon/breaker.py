"""The circuit breaker: may a call go out now, and when not, how soon?

Knows the verdicts of past attempts and the time that is handed in. Must not know what is called, how an
answer is classified, or who writes the metrics and the log. Nothing here awaits, so on one event loop every
step is atomic; it is not made for threads.
"""

import enum
import random as _random
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# Calls at most, however many the window saw: memory stays bounded. After a busy hour it is these, or the window's, that
# outweigh what begins to fail, for a thousand calls or five minutes. That is meant: an outage is three failures in a row,
# whatever came before. The ratio is for a target that answers every now and then: while it still answers half of the
# calls changes flow, and an open breaker would only slow them down.
_REMEMBERED = 1000


class State(enum.StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When to open and for how long. Seconds throughout."""

    consecutive_failures: int = 3
    failure_ratio: float = 0.5
    minimum_calls: int = 10  # below it neither ratio is believed
    window: float = 300.0
    slow_call: float = 10.0
    slow_ratio: float = 0.8
    open_first: float = 1.0
    open_cap: float = 60.0
    jitter: float = 0.2
    retry_after_cap: float = 300.0


@dataclass(frozen=True, slots=True)
class Transition:
    breaker: str
    old: State
    new: State
    reason: str
    retry_in: float


class BreakerOpen(Exception):
    """The call was not let out: the breaker is open, or half-open with its one probe under way."""

    def __init__(self, breaker: str, retry_in: float) -> None:
        super().__init__(f"the {breaker} breaker lets nothing through for another {retry_in:.1f} s")
        self.breaker = breaker
        self.retry_in = retry_in


class Attempt:
    """One admitted call. The block tells its verdict before it ends; a clean end without one is a success.

    An exception that leaves the block without a verdict, a cancellation above all, says nothing about the
    other side: the attempt is given back as if it had never been.
    """

    __slots__ = ("alive", "generation", "light", "reason", "retry_after", "started")

    def __init__(self, generation: int, started: float, light: bool) -> None:
        self.generation = generation
        self.light = light
        self.started = started
        self.alive: bool | None = None
        self.reason = ""
        self.retry_after = 0.0

    def failed(self, reason: str, retry_after: float | None = None) -> None:
        """The other side is unwell: connect errors, timeouts, 5xx. With Retry-After it says so itself."""
        self.alive = False
        self.reason = reason
        self.retry_after = retry_after or 0.0

    def answered(self) -> None:
        """It refused the content (data, contract, auth, throttle) and so is alive: as good as a success here.

        Call it before raising, so that a refusal never trips the breaker and a refused probe closes it.
        """
        self.alive = True


class Breaker:
    def __init__(
        self,
        name: str,
        thresholds: Thresholds | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
        on_transition: Callable[[Transition], None] | None = None,
    ) -> None:
        self.name = name
        self.thresholds = thresholds or Thresholds()
        self.opened_at: float | None = None  # on the injected clock; None once closed again
        self.last_error: str | None = None  # the newest failure since the last full success
        self._clock = clock
        self._random = random
        self._on_transition = on_transition
        self._state = State.CLOSED
        self._generation = 0  # of the state: a verdict from an earlier one is too late to matter
        self._probe: Attempt | None = None
        self._calls: deque[tuple[float, bool, bool]] = deque()  # ended at, failed, slow
        self._failures = self._slow = self._consecutive = 0
        self._rung = 0
        self._on_trial = False  # closed by a light probe: what opened it may still be wrong
        self._closed_at = clock()
        self._open_until = 0.0

    @property
    def state(self) -> State:
        """Stays `open` after its time is over: only an attempt turns it `half_open`."""
        return self._state

    @property
    def retry_in(self) -> float:
        """Seconds until an attempt may be let through; a guess while a probe is out, 0 when closed."""
        if self._state is State.OPEN:
            return max(0.0, self._open_until - self._clock())
        return self.thresholds.open_first if self._probe is not None else 0.0

    @property
    def failure_ratio(self) -> float:
        self._forget_old()
        return self._failures / len(self._calls) if self._calls else 0.0

    def relent(self) -> None:
        """The other side may be another one: the next attempt may probe at once."""
        self._open_until = min(self._open_until, self._clock())

    @contextmanager
    def attempt(self, *, light: bool = False) -> Iterator[Attempt]:
        """Let one call out, or raise BreakerOpen.

        `light`: its failure counts like any other, its success proves nothing about the real work. It resets no
        count, and as a probe it closes the breaker on trial: the next failure opens it again, one rung up.
        """
        attempt = self._admit(light)
        try:
            yield attempt
        except BaseException:
            self._settle(attempt, attempt.alive)
            raise
        self._settle(attempt, attempt.alive is not False)

    def _admit(self, light: bool) -> Attempt:
        if self._probe is not None or (self._state is State.OPEN and self.retry_in > 0):
            raise BreakerOpen(self.name, self.retry_in)
        if self._state is State.OPEN:
            self._move(State.HALF_OPEN, "time for a probe")
        attempt = Attempt(self._generation, self._clock(), light)
        if self._state is State.HALF_OPEN:
            self._probe = attempt
        return attempt

    def _settle(self, attempt: Attempt, alive: bool | None) -> None:
        probing = attempt is self._probe
        if probing:
            self._probe = None
        if alive is None or attempt.generation != self._generation:
            return
        slow = self._record(attempt, alive) if not (attempt.light and alive) else False
        if probing:
            if alive:
                self._close(on_trial=attempt.light)
            else:
                self._open(f"probe failed: {attempt.reason}", attempt.retry_after)
        elif reason := self._tripped(attempt, alive, slow):
            self._open(reason, attempt.retry_after)

    def _record(self, attempt: Attempt, alive: bool) -> bool:
        now = self._clock()
        slow = now - attempt.started > self.thresholds.slow_call
        self._calls.append((now, not alive, slow))
        self._failures += not alive
        self._slow += slow
        self._consecutive = 0 if alive else self._consecutive + 1
        self._on_trial = self._on_trial and not alive and now - self._closed_at < self.thresholds.open_cap
        self.last_error = None if alive else attempt.reason
        self._forget_old()
        return slow

    def _forget_old(self) -> None:
        edge = self._clock() - self.thresholds.window
        while self._calls and (self._calls[0][0] <= edge or len(self._calls) > _REMEMBERED):
            _, failed, slow = self._calls.popleft()
            self._failures -= failed
            self._slow -= slow

    def _tripped(self, attempt: Attempt, alive: bool, slow: bool) -> str:
        """Why this verdict opens a closed breaker; empty when it does not."""
        limits, calls = self.thresholds, len(self._calls)
        enough = calls >= limits.minimum_calls
        if not alive and attempt.retry_after > 0:
            return f"asked to stay away: {attempt.reason}"
        if not alive and self._on_trial:
            return f"failed again: {attempt.reason}"
        if not alive and self._consecutive >= limits.consecutive_failures:
            return f"{self._consecutive} failures in a row: {attempt.reason}"
        if not alive and enough and self._failures / calls >= limits.failure_ratio:
            return f"{self._failures} of {calls} calls failed: {attempt.reason}"
        if slow and enough and self._slow / calls >= limits.slow_ratio:
            return f"{self._slow} of {calls} calls took over {limits.slow_call:g} s"
        return ""

    def _open(self, reason: str, retry_after: float) -> None:
        limits, now = self.thresholds, self._clock()
        # The ladder is forgotten only after a quiet time as long as its top: a target that falls over again
        # right after each probe must not be met with the first, short wait each time.
        if self._state is State.CLOSED and now - self._closed_at >= limits.open_cap:
            self._rung = 0
        wait = min(limits.open_first * 2 ** min(self._rung, 32), limits.open_cap)
        wait = min(wait * (1 + limits.jitter * (2 * self._random() - 1)), limits.open_cap)
        self._rung += 1
        # Retry-After is a floor: a server that knows when it will be back is not asked before.
        self._open_until = now + max(wait, min(retry_after, limits.retry_after_cap))
        self.opened_at = now
        self._move(State.OPEN, reason)

    def _close(self, *, on_trial: bool) -> None:
        self._calls.clear()
        self._failures = self._slow = self._consecutive = 0
        self._closed_at = self._clock()
        self._on_trial = on_trial
        self.opened_at = None
        self._move(State.CLOSED, "probe answered")

    def _move(self, new: State, reason: str) -> None:
        old, self._state = self._state, new
        self._generation += 1
        if self._on_transition:
            self._on_transition(Transition(self.name, old, new, reason, self.retry_in))
