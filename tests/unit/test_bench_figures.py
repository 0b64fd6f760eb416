"""The bench's arithmetic: ratios are taken within a repeat, and a figure is judged by its median."""

from tests.bench.figures import Measured, Results, Spread, goals
from tests.bench.table import rendered


def rates(workload: str, system: str, *numbers: float) -> list[Measured]:
    return [
        Measured(workload, system, repeat, {"changes": 100, "rate": rate, "start-up": 0.5}, {"target": 0.7}, "inserts")
        for repeat, rate in enumerate(numbers, 1)
    ]


def test_a_ratio_is_taken_within_a_repeat_and_only_then_the_median():
    # The machine was slow in the third repeat, for both. Of the medians it would be 80 / 100.
    results = Results([*rates("W1", "native", 100, 200, 10), *rates("W1", "rest", 80, 180, 9)])
    assert results.ratio("W1", "rest", "native", "rate") == Spread(0.8, 0.9, 0.9)


def test_a_repeat_that_one_of_the_two_missed_does_not_count():
    results = Results([*rates("W1", "native", 100), *rates("W1", "rest", 50, 90)])
    assert results.ratio("W1", "rest", "native", "rate") == Spread(0.5, 0.5, 0.5)


def test_a_figure_is_reached_by_its_median_and_unknown_when_it_was_not_measured():
    results = Results([*rates("W1", "native", 100, 100, 100), *rates("W1", "rest", 69, 70, 71)])
    by_name = {(goal.workload, goal.what): goal for goal in goals(results)}
    assert by_name["W1", "Data API / native"].reached is True
    assert by_name["W1", "direct / native"].reached is None
    worse = Results([*rates("W1", "native", 100, 100, 100), *rates("W1", "rest", 69, 69, 71)])
    assert next(goal for goal in goals(worse) if goal.what == "Data API / native").reached is False


def test_the_table_shows_what_was_seen_and_each_figure_beside_it():
    results = Results([*rates("W1", "native", 100, 100, 100), *rates("W1", "rest", 69, 70, 71)])
    text = rendered(results, {"cpu": "2 cores"})
    assert "cpu            2 cores" in text
    assert "0.700 (0.690 – 0.710)" in text
    assert "≥ 0.7 x" in text
    assert "reached" in text
    assert "direct" not in text
