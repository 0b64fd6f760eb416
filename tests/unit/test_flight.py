"""When a second batch may follow the first."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from daemon.flight import Flights


async def one_on_its_way(usual: float, *, more: bool) -> float | None:
    """Seconds until a second may follow it, just after it was sent."""
    flights, arrived = Flights(), asyncio.Event()

    async def answer() -> Any:
        await arrived.wait()

    flights.usual = usual
    flights.launch(cast("Any", SimpleNamespace(more=more)), cast("Any", SimpleNamespace(settles=False)), answer())
    last = flights.last
    assert last is not None
    room = flights.room_in(last.started)
    arrived.set()
    await flights.landed()
    return room


@pytest.mark.parametrize("usual", [0.001, 0.019, 0.2])
async def test_the_second_follows_a_full_batch_at_once(usual):
    assert await one_on_its_way(usual, more=True) == 0.0


@pytest.mark.parametrize(("usual", "room"), [(0.0, None), (0.019, None), (0.02, 0.01), (0.2, 0.1), (2.1, None)])
async def test_behind_a_small_one_it_waits_for_a_near_answer_and_for_half_the_way_of_a_far_one(usual, room):
    """Near by each request costs more than it saves; far away two hide the way between, unless answers take very long."""
    assert await one_on_its_way(usual, more=False) == pytest.approx(room)
