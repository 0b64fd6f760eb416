"""The breaker's promises: when it opens, for how long, who may probe, and what cannot change its mind."""

import asyncio
import contextlib
from contextlib import AbstractContextManager

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daemon.breaker import Attempt, Breaker, BreakerOpen, State, Thresholds, Transition


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(clock: Clock, moves: list[Transition] | None = None, random=lambda: 0.5, **thresholds) -> Breaker:
    """Random 0.5 is the middle of the jitter: the waits are exactly 1, 2, 4 … 60."""
    hook = moves.append if moves is not None else None
    return Breaker("target", Thresholds(**thresholds), clock=clock, random=random, on_transition=hook)


def state(breaker: Breaker) -> State:
    """Asked through a function, the type checker does not take the last answer for the next."""
    return breaker.state


def fail(breaker: Breaker, reason: str = "timeout", retry_after: float | None = None) -> None:
    with breaker.attempt() as attempt:
        attempt.failed(reason, retry_after)


def succeed(breaker: Breaker, clock: Clock | None = None, takes: float = 0.0) -> None:
    with breaker.attempt():
        if clock:
            clock.pass_(takes)


def trip(breaker: Breaker) -> None:
    for _ in range(breaker.thresholds.consecutive_failures):
        fail(breaker)


def fail_probes_until(breaker: Breaker, clock: Clock, wait: float) -> None:
    while breaker.retry_in < wait:
        clock.pass_(breaker.retry_in)
        fail(breaker)


def test_the_defaults():
    """Three failures, five minutes of window, a minute at most: what the settings and the docs name."""
    assert Thresholds() == Thresholds(3, 0.5, 10, 300.0, 10.0, 0.8, 1.0, 60.0, 0.2, 300.0)


def test_closed_lets_many_calls_out_at_once(clock):
    """A closed breaker limits nothing."""
    breaker = make(clock)
    with breaker.attempt(), breaker.attempt(), breaker.attempt():
        pass
    assert (state(breaker), breaker.retry_in, breaker.opened_at) == (State.CLOSED, 0.0, None)


def test_opens_at_the_third_failure_in_a_row(clock):
    """Two failures are patience, the third opens, and the transition says why and for how long."""
    moves: list[Transition] = []
    breaker = make(clock, moves)
    fail(breaker)
    fail(breaker)
    assert state(breaker) is State.CLOSED
    fail(breaker, "connect refused")
    assert moves == [Transition("target", State.CLOSED, State.OPEN, "3 failures in a row: connect refused", 1.0)]
    assert (breaker.opened_at, breaker.last_error) == (clock.now, "connect refused")


def test_a_success_breaks_the_row(clock):
    """Failures must be consecutive to count as a row."""
    breaker = make(clock)
    for _ in range(4):
        for _ in range(3):
            succeed(breaker)
        fail(breaker)
        fail(breaker)
    assert state(breaker) is State.CLOSED
    assert breaker.last_error == "timeout"
    succeed(breaker)
    assert breaker.last_error is None


def test_an_answer_is_a_sign_of_life(clock):
    """Refused data never trips the breaker, and it breaks a row of failures."""
    breaker = make(clock)
    fail(breaker)
    fail(breaker)
    for _ in range(20):
        with contextlib.suppress(ValueError), breaker.attempt() as attempt:
            attempt.answered()
            raise ValueError("bad row")
    assert breaker.failure_ratio == pytest.approx(2 / 22)
    fail(breaker)
    assert state(breaker) is State.CLOSED


def test_an_exception_after_a_verdict_keeps_the_verdict(clock):
    """Raising out of the block is the usual way to report a failure upwards."""
    breaker = make(clock, consecutive_failures=1)
    with contextlib.suppress(OSError), breaker.attempt() as attempt:
        attempt.failed("connection reset")
        raise OSError("reset")
    assert state(breaker) is State.OPEN


@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt, RuntimeError, GeneratorExit])
def test_an_exception_without_a_verdict_says_nothing(clock, error):
    """A cancelled call is neither a failure nor a success."""
    breaker = make(clock)
    fail(breaker)
    fail(breaker)
    with pytest.raises(error), breaker.attempt():
        raise error
    assert state(breaker) is State.CLOSED
    assert breaker.failure_ratio == 1.0, "it was counted as a call"
    fail(breaker)
    assert state(breaker) is State.OPEN, "it broke the row"


def test_half_the_calls_failing_opens_without_any_row(clock):
    """A target that answers every second call is broken too."""
    breaker = make(clock)
    for _ in range(5):
        succeed(breaker)
        assert state(breaker) is State.CLOSED
        fail(breaker, "502")
    assert state(breaker) is State.OPEN


@pytest.mark.parametrize("rate", [100, 1])
def test_a_busy_hour_hides_no_outage(clock, rate):
    """Three failures in a row open it, whatever came before; the ratio says so once the window has passed."""
    breaker = make(clock)
    for _ in range(3600):
        succeed(breaker)
        clock.pass_(1 / rate)
    trip(breaker)
    assert state(breaker) is State.OPEN
    assert breaker.failure_ratio < 0.02
    clock.pass_(300)
    fail(breaker)
    assert breaker.failure_ratio == 1.0


@pytest.mark.parametrize(("rate", "calls"), [(100, 1000), (1, 300)])
def test_a_target_that_limps_after_a_busy_hour_is_found_within_a_thousand_calls_or_five_minutes(clock, rate, calls):
    """Of which every second fails: until then changes flow, and an open breaker would only slow them down."""
    breaker, limping = make(clock), 0
    for _ in range(3600):
        succeed(breaker)
        clock.pass_(1 / rate)
    while state(breaker) is State.CLOSED:
        for call in (succeed, fail):
            call(breaker)
            clock.pass_(1 / rate)
        limping += 2
    assert limping == pytest.approx(calls, abs=4)


def test_the_ratio_waits_for_enough_calls(clock):
    """One failure in two calls is no evidence."""
    moves: list[Transition] = []
    breaker = make(clock, moves, minimum_calls=10, consecutive_failures=99)
    for _ in range(9):
        fail(breaker)
    assert state(breaker) is State.CLOSED
    fail(breaker, "502")
    assert moves[0].reason == "10 of 10 calls failed: 502"


def test_a_success_never_opens(clock):
    """The tenth call makes the ratio believable, but a success is no moment to open."""
    breaker = make(clock, consecutive_failures=99)
    for _ in range(9):
        fail(breaker)
    succeed(breaker)
    assert breaker.failure_ratio == 0.9
    assert state(breaker) is State.CLOSED


def test_the_window_forgets(clock):
    """Failures older than the window are history."""
    breaker = make(clock, consecutive_failures=99, window=300.0)
    for _ in range(9):
        fail(breaker)
    clock.pass_(299.9)
    assert breaker.failure_ratio == 1.0
    clock.pass_(0.1)
    assert breaker.failure_ratio == 0.0
    fail(breaker)
    assert state(breaker) is State.CLOSED


def test_the_window_forgets_without_being_looked_at(clock):
    """Nobody has to read the ratio for old failures and old slow calls to drop out of it."""
    breaker = make(clock, consecutive_failures=99)
    for _ in range(9):
        fail(breaker)
    clock.pass_(301.0)
    for _ in range(8):
        succeed(breaker, clock, takes=11.0)
    clock.pass_(301.0)
    for _ in range(9):
        succeed(breaker)
    succeed(breaker, clock, takes=11.0)
    fail(breaker)
    assert state(breaker) is State.CLOSED
    assert breaker.failure_ratio == pytest.approx(1 / 11)


def test_the_window_is_bounded(clock):
    """However busy the window, only the last thousand calls are kept."""
    breaker = make(clock, consecutive_failures=99, failure_ratio=2.0)
    fail(breaker)
    for _ in range(1000):
        succeed(breaker)
    assert breaker.failure_ratio == 0.0
    assert len(breaker._calls) == 1000


def test_slow_calls_open(clock):
    """A target that takes ages for nearly every call is not up, though every call succeeds."""
    moves: list[Transition] = []
    breaker = make(clock, moves)
    succeed(breaker, clock, takes=10.0)
    succeed(breaker, clock, takes=10.0)
    for _ in range(7):
        succeed(breaker, clock, takes=10.1)
    assert state(breaker) is State.CLOSED
    succeed(breaker, clock, takes=10.1)
    assert state(breaker) is State.OPEN
    assert moves[0].reason == "8 of 10 calls took over 10 s"


def test_open_refuses_until_the_time_is_over(clock):
    """A refusal costs nothing and says how long to wait."""
    breaker = make(clock)
    trip(breaker)
    clock.pass_(0.75)
    with pytest.raises(BreakerOpen) as refused, breaker.attempt():
        pytest.fail("an open breaker let a call out")
    assert refused.value.retry_in == pytest.approx(0.25)
    assert refused.value.breaker == "target"
    assert str(refused.value) == "the target breaker lets nothing through for another 0.2 s"
    assert state(breaker) is State.OPEN
    clock.pass_(0.25)
    assert breaker.retry_in == 0.0
    succeed(breaker)
    assert state(breaker) is State.CLOSED


def test_one_probe_at_a_time(clock):
    """Everybody else waits for the probe, and is told to wait a real while."""
    breaker = make(clock)
    trip(breaker)
    clock.pass_(1.0)
    with breaker.attempt():
        assert state(breaker) is State.HALF_OPEN
        with pytest.raises(BreakerOpen) as refused, breaker.attempt():
            pytest.fail("a second probe")
        assert refused.value.retry_in == 1.0


async def test_one_probe_among_many_tasks(clock):
    """Of fifty tasks that come at once, one goes out; cancelled, it hands the lease to the next."""
    breaker = make(clock)
    trip(breaker)
    clock.pass_(1.0)
    forever, out, refused = asyncio.Event(), [], []

    async def call(number: int) -> None:
        try:
            with breaker.attempt():
                out.append(number)
                await forever.wait()
        except BreakerOpen:
            refused.append(number)

    tasks = [asyncio.create_task(call(number)) for number in range(50)]
    await asyncio.wait(tasks[1:])  # all but the one that is out
    assert (out, len(refused)) == ([0], 49)
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert state(breaker) is State.HALF_OPEN
    assert breaker.retry_in == 0.0
    succeed(breaker)
    assert state(breaker) is State.CLOSED


def test_an_answered_probe_closes(clock):
    """A probe that is refused for its data has shown that the target lives."""
    breaker = make(clock)
    trip(breaker)
    clock.pass_(1.0)
    with breaker.attempt() as attempt:
        attempt.answered()
    assert (state(breaker), breaker.opened_at, breaker.last_error) == (State.CLOSED, None, None)


def ask(breaker: Breaker, reason: str = "") -> None:
    """A light call, which fails if there is a reason."""
    with breaker.attempt(light=True) as attempt:
        if reason:
            attempt.failed(reason)


def test_a_light_success_does_not_break_the_row(clock):
    """Apply fails, the cursor is told, apply fails, the cursor is told: that is a row of failures."""
    breaker = make(clock)
    for _ in range(2):
        fail(breaker, "apply timed out")
        ask(breaker)
    assert (state(breaker), breaker.last_error) == (State.CLOSED, "apply timed out")
    fail(breaker)
    assert state(breaker) is State.OPEN


def test_light_successes_do_not_water_the_ratio_down(clock):
    """Ten calls of the real work, half of them failed, however many questions were answered in between."""
    breaker = make(clock)
    for n in range(9):
        for _ in range(5):
            ask(breaker)
        if n % 2:
            fail(breaker)
        else:
            succeed(breaker)
    assert breaker.failure_ratio == 4 / 9
    fail(breaker)
    assert state(breaker) is State.OPEN


def test_a_light_failure_is_a_failure(clock):
    """Whoever cannot even be asked is away."""
    breaker = make(clock)
    for _ in range(3):
        ask(breaker, "connection refused")
    assert state(breaker) is State.OPEN


def test_a_light_probe_closes_on_trial(clock):
    """The next failure opens it again, and the waits grow; it does not take three anew."""
    moves: list[Transition] = []
    breaker = make(clock, moves)
    trip(breaker)
    for wait in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        assert breaker.retry_in == wait
        clock.pass_(wait)
        ask(breaker)
        assert state(breaker) is State.CLOSED
        fail(breaker, "apply timed out")
        assert state(breaker) is State.OPEN
    assert moves[-1].reason == "failed again: apply timed out"


@pytest.mark.parametrize("how", ["success", "time"])
def test_a_trial_ends(clock, how):
    """With the first real success, or after a quiet time as long as the ladder's top."""
    breaker = make(clock)
    trip(breaker)
    clock.pass_(1.0)
    ask(breaker)
    if how == "success":
        succeed(breaker)
    else:
        clock.pass_(60.0)
    fail(breaker)
    assert state(breaker) is State.CLOSED


def test_closing_forgets_the_outage(clock):
    """After a recovery the breaker needs fresh evidence, not the rest of the old."""
    breaker = make(clock, minimum_calls=4)
    trip(breaker)
    clock.pass_(1.0)
    succeed(breaker)
    assert breaker.failure_ratio == 0.0
    fail(breaker)
    fail(breaker)
    assert state(breaker) is State.CLOSED


def test_a_failed_probe_doubles_the_wait_up_to_the_cap(clock):
    """1, 2, 4 … 60 and never more; each re-opening is a transition."""
    moves: list[Transition] = []
    breaker = make(clock, moves)
    trip(breaker)
    waits = []
    for _ in range(9):
        waits.append(breaker.retry_in)
        clock.pass_(breaker.retry_in)
        fail(breaker, "503")
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert moves[-1] == Transition("target", State.HALF_OPEN, State.OPEN, "probe failed: 503", 60.0)


@pytest.mark.parametrize(("random", "first", "top"), [(0.0, 0.8, 48.0), (1.0, 1.2, 60.0)])
def test_the_wait_is_jittered_below_the_cap(clock, random, first, top):
    """A fifth up or down, so that many relays do not come back in step; the cap holds all the same."""
    breaker = make(clock, random=lambda: random)
    trip(breaker)
    assert breaker.retry_in == pytest.approx(first)
    for _ in range(10):
        clock.pass_(breaker.retry_in)
        fail(breaker)
    assert breaker.retry_in == pytest.approx(top)


def test_a_relapse_goes_on_where_the_ladder_was(clock):
    """Closing does not reset the wait: 59 quiet seconds are not enough."""
    breaker = make(clock)
    trip(breaker)
    fail_probes_until(breaker, clock, 8.0)
    clock.pass_(8.0)
    succeed(breaker)
    clock.pass_(59.9)
    trip(breaker)
    assert breaker.retry_in == 16.0


def test_a_quiet_minute_resets_the_ladder(clock):
    """Closed for as long as the cap, the next outage begins with the first wait again."""
    breaker = make(clock)
    trip(breaker)
    fail_probes_until(breaker, clock, 8.0)
    clock.pass_(8.0)
    succeed(breaker)
    clock.pass_(60.0)
    trip(breaker)
    assert breaker.retry_in == 1.0


def test_retry_after_opens_at_once_and_is_obeyed(clock):
    """A server that names the time of its return is taken at its word, without further evidence."""
    breaker = make(clock)
    fail(breaker, "503", retry_after=30.0)
    assert state(breaker) is State.OPEN
    clock.pass_(29.9)
    with pytest.raises(BreakerOpen), breaker.attempt():
        pytest.fail("asked before the server wanted to be asked")
    clock.pass_(0.2)
    succeed(breaker)
    assert state(breaker) is State.CLOSED


def test_a_short_retry_after_opens_too(clock):
    """Half a second is a wish like any other; the first wait of the ladder is longer and holds."""
    breaker = make(clock)
    fail(breaker, "503", retry_after=0.5)
    assert state(breaker) is State.OPEN
    assert breaker.retry_in == 1.0


def test_retry_after_is_capped(clock):
    """A day's Retry-After must not stop the relay for a day."""
    breaker = make(clock)
    fail(breaker, "503", retry_after=86_400.0)
    assert breaker.retry_in == 300.0


@pytest.mark.parametrize("retry_after", [None, 0.0, -5.0, 2.0])
def test_retry_after_never_shortens_the_ladder(clock, retry_after):
    """A small Retry-After from a target that stays down does not make the probes denser."""
    breaker = make(clock)
    trip(breaker)
    fail_probes_until(breaker, clock, 8.0)
    clock.pass_(8.0)
    fail(breaker, "503", retry_after=retry_after)
    assert breaker.retry_in == 16.0


@pytest.mark.parametrize("late", ["success", "answered", "failed"])
@pytest.mark.parametrize("then", [State.OPEN, State.HALF_OPEN, State.CLOSED])
def test_a_late_verdict_is_ignored(clock, late, then):
    """A call let out before the breaker opened knows nothing of the state after it."""
    breaker = make(clock)
    before = breaker.attempt()
    attempt = before.__enter__()
    trip(breaker)
    if then is not State.OPEN:
        clock.pass_(1.0)
        probe = breaker.attempt()
        probe.__enter__()
        if then is State.CLOSED:
            probe.__exit__(None, None, None)
    if late == "answered":
        attempt.answered()
    elif late == "failed":
        attempt.failed("late", retry_after=100.0)
    ratio, error = breaker.failure_ratio, breaker.last_error
    before.__exit__(None, None, None)
    assert (state(breaker), breaker.failure_ratio, breaker.last_error) == (then, ratio, error)
    if then is State.HALF_OPEN:
        with pytest.raises(BreakerOpen), breaker.attempt():
            pytest.fail("the late verdict gave the probe's lease away")


def test_the_wall_clock_is_not_asked(clock, monkeypatch):
    """Only the injected clock counts: a stepped wall clock must not open or close anything."""
    monkeypatch.setattr("time.time", lambda: pytest.fail("wall clock"))
    monkeypatch.setattr("time.monotonic", lambda: pytest.fail("not injected"))
    breaker = make(clock)
    trip(breaker)
    clock.pass_(1.0)
    succeed(breaker)
    assert state(breaker) is State.CLOSED


Running = tuple[AbstractContextManager[Attempt], Attempt, bool]  # the block, its attempt, is it the probe


class AnyOrder(RuleBasedStateMachine):
    """Attempts begin and end in any order, at any time, with any verdict, against a small model."""

    @initialize(jitter=st.floats(0, 1))
    def begin(self, jitter: float) -> None:
        self.clock = Clock()
        self.moves: list[Transition] = []
        self.breaker = make(self.clock, self.moves, random=lambda: jitter)
        self.running: list[Running] = []
        self.opened_until = 0.0

    def _note_opening(self) -> None:
        if self.breaker.state is State.OPEN:
            self.opened_until = self.clock.now + self.breaker.retry_in
            assert 0.79 <= self.breaker.retry_in <= 300.0

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.9, 1.0, 5.0, 11.0, 60.0, 301.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.pass_(seconds)

    @rule()
    def call(self) -> None:
        before, retry_in = self.breaker.state, self.breaker.retry_in
        block = self.breaker.attempt()
        if before is not State.CLOSED and (retry_in > 0 or any(probe for *_, probe in self.running)):
            with pytest.raises(BreakerOpen) as refused:
                block.__enter__()
            assert refused.value.retry_in > 0
            return
        attempt = block.__enter__()
        assert before is not State.OPEN or self.clock.now >= self.opened_until - 1e-6
        assert retry_in == 0.0
        self.running.append((block, attempt, self.breaker.state is State.HALF_OPEN))

    def _end(self, index: int, verdict: str) -> None:
        block, attempt, probe = self.running.pop(index % len(self.running))
        before, moves = self.breaker.state, len(self.moves)
        if verdict == "failed":
            attempt.failed("made up")
        elif verdict == "asked to wait":
            attempt.failed("made up", retry_after=120.0)
        elif verdict == "answered":
            attempt.answered()
        if verdict == "cancelled":
            assert not block.__exit__(asyncio.CancelledError, asyncio.CancelledError(), None), "swallowed"
            assert len(self.moves) == moves, "a cancellation changed the state"
        else:
            block.__exit__(None, None, None)
        after = self.breaker.state
        if before is not State.CLOSED and after is State.CLOSED:
            assert probe
            assert verdict in {"success", "answered"}
        if before is not State.OPEN and after is State.OPEN:
            assert probe or before is State.CLOSED
        if probe and verdict in {"failed", "asked to wait"}:
            assert after is State.OPEN
        if len(self.moves) > moves:
            self._note_opening()

    @precondition(lambda self: self.running)
    @rule(
        index=st.integers(0, 9),
        verdict=st.sampled_from(["success", "failed", "asked to wait", "answered", "cancelled"]),
    )
    def end(self, index: int, verdict: str) -> None:
        self._end(index, verdict)

    @rule(verdict=st.sampled_from(["success", "failed", "failed", "answered"]))
    def quick_call(self, verdict: str) -> None:
        count = len(self.running)
        self.call()
        if len(self.running) > count:
            self._end(count, verdict)

    @invariant()
    def never_two_probes(self) -> None:
        assert sum(probe for _, _, probe in self.running) <= 1

    @invariant()
    def the_books_are_straight(self) -> None:
        assert 0.0 <= self.breaker.failure_ratio <= 1.0
        assert (self.breaker.opened_at is None) == (self.breaker.state is State.CLOSED)
        for earlier, later in zip(self.moves, self.moves[1:], strict=False):
            assert earlier.new is later.old

    def teardown(self) -> None:
        for block, _, _ in getattr(self, "running", []):
            block.__exit__(None, None, None)


AnyOrder.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestAnyOrder = AnyOrder.TestCase
