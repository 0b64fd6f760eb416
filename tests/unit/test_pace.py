"""When to poll and when to sleep, on an injected clock."""

from hypothesis import given
from hypothesis import strategies as st

from daemon.wakeup import Pace


def stream(pace: Pace, gap: float, count: int, start: float = 100.0) -> float:
    """Changes `gap` seconds apart; returns the time of the last."""
    for n in range(count):
        pace.found(start + n * gap)
    return start + (count - 1) * gap


def test_it_sleeps_at_once_before_the_first_change():
    """Nothing was ever found: there is nothing to linger for."""
    assert Pace().pause(5.0) is None


def test_it_lingers_at_least_fifty_milliseconds():
    """However quick the stream was, a pause shorter than 50 ms is no reason to sleep: each writer would ring."""
    pace = Pace()
    last = stream(pace, 0.0001, 200)
    assert pace.pause(last + 0.049) is not None
    assert pace.pause(last + 0.051) is None


def test_it_lingers_twenty_mean_gaps():
    """At a hundred changes a second it waits for a fifth of a second of silence."""
    pace = Pace()
    last = stream(pace, 0.01, 200)
    assert pace.pause(last + 0.19) is not None
    assert pace.pause(last + 0.21) is None


def test_it_never_lingers_longer_than_a_second():
    """Rare changes are rung for, not polled for."""
    pace = Pace()
    last = stream(pace, 0.9, 200)
    assert pace.pause(last + 0.99) is not None
    assert pace.pause(last + 1.0) is None


def test_a_long_silence_counts_as_one_second():
    """A change after a night does not make the next thousand look rare."""
    pace = Pace()
    pace.found(100.0)
    pace.found(100.0 + 8 * 3600)
    last = stream(pace, 0.001, 50, 100.0 + 8 * 3600)
    assert pace.mean_gap < 0.01
    assert pace.pause(last + 0.02) is not None


@given(st.lists(st.floats(0, 3600), min_size=1), st.floats(0, 10))
def test_pauses_stay_within_their_bounds(gaps, quiet):
    """Whatever the rhythm: from three to twenty milliseconds, or sleep."""
    pace, now = Pace(), 0.0
    for gap in gaps:
        now += gap
        pace.found(now)
    pause = pace.pause(now + quiet)
    assert pause is None or pace.shortest <= pause <= pace.longest
    if quiet < pace.linger:
        assert pause is not None
