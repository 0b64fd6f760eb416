"""How large the next batch may be."""

from hypothesis import given
from hypothesis import strategies as st

from daemon.sizing import Sizing


def fresh() -> Sizing:
    return Sizing(2000, 4_000_000)


def test_begins_with_all_that_the_settings_allow():
    assert (fresh().changes, fresh().bytes) == (2000, 4_000_000)


def test_a_refusal_halves_what_was_sent():
    sizing = fresh()
    sizing.refused(800, 1_000_000, 0.0)
    assert (sizing.changes, sizing.bytes) == (400, 500_000)


def test_refusals_lead_to_single_changes_and_no_further():
    sizing = fresh()
    for _ in range(20):
        sizing.refused(sizing.changes, sizing.bytes, 0.0)
    assert sizing.changes == 1
    assert sizing.bytes == sizing.least_bytes


def test_growth_is_by_a_twentieth_and_ends_at_the_limit():
    sizing = fresh()
    sizing.suspected(2000, 4_000_000)
    sizing.applied(1000, 2_000_000, 0.1, 0.0)
    assert (sizing.changes, sizing.bytes) == (1100, 2_200_000)
    for _ in range(20):
        sizing.applied(1000, 2_000_000, 0.1, 0.0)
    assert (sizing.changes, sizing.bytes) == (2000, 4_000_000)


def test_what_was_refused_is_not_tried_again_for_ten_minutes():
    sizing = fresh()
    sizing.refused(1000, 2_000_000, 0.0)
    for now in range(30):
        sizing.applied(500, 1_000_000, 0.1, float(now))
    assert (sizing.changes, sizing.bytes) == (750, 1_500_000)
    for _ in range(30):
        sizing.applied(700, 1_000_000, 0.1, 601.0)
    assert (sizing.changes, sizing.bytes) == (2000, 4_000_000)


def test_a_slow_answer_halves_without_being_remembered():
    sizing = fresh()
    sizing.applied(2000, 4_000_000, 5.0, 0.0)
    assert sizing.changes == 1000
    for _ in range(20):
        sizing.applied(1000, 1_000_000, 0.1, 1.0)
    assert sizing.changes == 2000


def test_a_target_that_is_slow_at_any_size_does_not_make_batches_tear_transactions():
    """Each answer takes six seconds, whatever is asked: batches stop shrinking while they hold a transaction."""
    sizing = fresh()
    for now in range(30):
        sizing.applied(sizing.changes, sizing.bytes, 6.0, float(now))
    assert (sizing.changes, sizing.bytes) == (100, 65_536)
    sizing.applied(3, 500, 6.0, 31.0)
    assert (sizing.changes, sizing.bytes) == (100, 65_536)


def test_a_slow_answer_does_not_raise_what_a_refusal_has_lowered():
    sizing = fresh()
    sizing.refused(10, 20_000, 0.0)
    sizing.applied(5, 10_000, 6.0, 1.0)
    assert (sizing.changes, sizing.bytes) == (5, 10_000)


@given(st.lists(st.tuples(st.sampled_from("ars"), st.integers(1, 5000), st.integers(0, 10**8), st.floats(0, 60))))
def test_stays_between_one_and_the_limit_whatever_happens(steps):
    sizing, now = fresh(), 0.0
    for what, changes, size, seconds in steps:
        now += seconds
        if what == "a":
            sizing.applied(changes, size, seconds, now)
        elif what == "r":
            sizing.refused(changes, size, now)
        else:
            sizing.suspected(changes, size)
        assert 1 <= sizing.changes <= 2000
        assert sizing.least_bytes <= sizing.bytes <= 4_000_000
