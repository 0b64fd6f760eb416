"""The bench's arithmetic: ratios are taken within a repeat, a figure is judged by its median, and what a change costs."""

import pytest

from tests.bench.alone import rates_of_tenths
from tests.bench.bill import Sent, total
from tests.bench.cpu import Used, beside
from tests.bench.figures import Measured, Results, Spread
from tests.bench.goals import goals
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
    results = Results([*rates("W1", "native", 100, 100, 100), *rates("W1", "rest", 99, 100, 101)])
    by_name = {(goal.workload, goal.what): goal for goal in goals(results)}
    assert by_name["W1", "Data API / native"].reached is True
    assert by_name["W1", "direct / native"].reached is None
    worse = Results([*rates("W1", "native", 100, 100, 100), *rates("W1", "rest", 99, 99, 101)])
    assert next(goal for goal in goals(worse) if goal.what == "Data API / native").reached is False


def test_the_table_shows_what_was_seen_and_each_figure_beside_it():
    results = Results([*rates("W1", "native", 100, 100, 100), *rates("W1", "rest", 69, 70, 71)])
    text = rendered(results, {"cpu": "2 cores"})
    assert "cpu            2 cores" in text
    assert "0.700 (0.690 – 0.710)" in text
    assert "≥ 1 x" in text
    assert "reached" in text
    assert "direct" not in text


def costing(repeat: int, rate: float, daemon: float, **values: float) -> Measured:
    return Measured("W1", "rest", repeat, {"rate": rate, **values}, {"source": 0.3, "target": 0.9, "daemon": daemon})


def test_what_a_change_costs_is_the_share_of_a_core_over_the_changes_a_second():
    # 0.15 of a core at 100 000 a second are 1.5 µs a change, and 0.15 at 50 000 twice that: taken within each repeat.
    results = Results([costing(1, 100_000, 0.15), costing(2, 50_000, 0.15), costing(3, 100_000, 0.2)])
    seen = results.cost("W1", "rest", "daemon")
    assert seen is not None
    assert [round(at, 6) for at in (seen.low, seen.middle, seen.high)] == [1.5, 2.0, 3.0]
    assert results.cost("W1", "rest", "PostgREST") is None
    assert results.cost("W1", "rest", "daemon", per="changes/s") is None


def test_a_backlog_and_a_steady_load_of_one_workload_are_not_mixed():
    results = Results([
        Measured("W12", "rest", 1, {"rate": 50_000, "requests": 0.5}, {"source": 0.5}),
        Measured("W12", "rest", 1, {"changes/s": 5_000, "requests": 4.0}, {"source": 0.25}),
    ])  # fmt: skip
    assert results.cost("W12", "rest", "source") == Spread(10, 10, 10)
    assert results.cost("W12", "rest", "source", per="changes/s") == Spread(50, 50, 50)
    assert results.percent("W12", "rest", "source", with_value="changes/s") == Spread(25, 25, 25)
    assert results.spread("W12", "rest", "requests", beside="rate") == Spread(0.5, 0.5, 0.5)


def test_the_bill_is_what_was_sent_since_for_a_thousand_changes():
    metrics = """# HELP outboxd_sent_count of requests
outboxd_sent_count{mode="apply"} 30.0
outboxd_sent_count{mode="ask"} 12.0
outboxd_sent_sum 9.0"""
    assert total(metrics, "outboxd_sent_count") == 42
    assert Sent(42, 9_000).since(Sent(2, 1_000), 4_000) == {"requests": 10, "bytes": 2_000}


def test_of_a_server_only_sessions_that_were_there_all_the_time_are_beyond_its_writers():
    relay, checkpointer, writer, late = 11, 12, 13, 14
    before = {relay: 1.0, checkpointer: 2.0, writer: 0.5}
    assert beside(before, {relay: 1.4, checkpointer: 2.1, late: 9.0}) == (1.4 - 1.0) + (2.1 - 2.0)


def test_shares_are_of_one_core_while_the_clock_ran():
    before, after = Used(100.0, {"source": 5.0, "target": 1.0}), Used(104.0, {"source": 7.0, "target": 1.0})
    assert before.until(after) == {"source": 0.5, "target": 0.0}


def test_the_table_shows_what_a_change_costs_and_the_bill():
    one = {"changes": 100, "start-up": 0.5, "requests": 0.5, "bytes": 400_000}
    text = rendered(Results([costing(1, 100_000, 0.15, **one)]), {})
    (line,) = [line for line in text.splitlines() if "outboxd, Data API" in line and "1.50" in line]
    assert line.split()[3:] == ["3.00", "9.00", "1.50", "0.50,", "400"]
    assert "Data API: CPU of the daemon, a change          ≤ 1.5 µs   1.50                         reached" in text


def test_a_batch_that_lies_in_several_tenths_is_split_between_them():
    # 1 000 changes in one second, then 1 000 in two: the first five tenths at 1 000 a second, the others at 500.
    assert rates_of_tenths([(101.0, 1000), (103.0, 1000)], began=100.0) == pytest.approx([1000] * 5 + [500] * 5)
    # Batches finer than a tenth, and the last half as fast.
    fine = [(100 + at / 20, 50) for at in range(1, 20)] + [(101.05, 50)]
    assert rates_of_tenths(fine, began=100.0) == pytest.approx([1000] * 9 + [100 / 0.15])
