"""How much is compared at once: as much as takes a moment, a short one while changes flow, and at its pace by the clock."""

from itertools import pairwise

import pytest

from daemon.stride import Stride


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def settled(stride: Stride, per_row: float, request: float = 0.004) -> int:
    for _ in range(20):
        rows = stride.rows("t", 5000, asked=True)
        stride.took("t", rows, request + rows * per_row)
    return stride.rows("t", 5000, asked=True)


def test_a_range_takes_a_moment_and_a_short_one_while_changes_flow() -> None:
    clock = Clock()
    stride = Stride(clock)
    quiet = settled(stride, 100e-6)
    assert 0.15 < quiet * 100e-6 < 0.3
    stride.flowed()
    flowing = settled(stride, 100e-6)
    assert flowing * 100e-6 < 0.04
    clock.now += 2.0
    assert settled(stride, 100e-6) == pytest.approx(quiet, rel=0.05)


def test_what_was_too_much_is_not_tried_again_soon() -> None:
    stride = Stride(Clock())
    before = settled(stride, 1e-6)
    assert stride.halve("t", 5000)
    sizes = []
    for _ in range(40):
        sizes.append(stride.rows("t", 5000, asked=True))
        stride.took("t", sizes[-1], 0.001)
    assert sizes[0] == before // 2
    assert all(later <= 1.11 * earlier for earlier, later in pairwise(sizes))
    assert sizes[-1] == before
    while stride.halve("t", 5000, 1):
        pass
    assert stride.rows("t", 5000, asked=True) == 1
    assert stride.rows("other", 5000, asked=True) > 1


def test_by_the_clock_rows_go_at_their_pace_and_rest_while_changes_flow() -> None:
    stride = Stride(Clock(), rate=200)
    rows = stride.rows("t", 5000, asked=False)
    assert rows == 100
    assert stride.rest(rows, 0.01, asked=False) == 0.5
    assert stride.rest(rows, 0.01, asked=True) == 0
    stride.flowed()
    assert stride.rest(rows, 0.2, asked=False) > 1.5
