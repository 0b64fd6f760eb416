"""Every promise, in thousands of schedules: the real relay in a simulated world (tests/model/world.py).

Seeds are fixed, so a run is the same everywhere. `--schedules N` runs more of them.
"""

from collections import Counter

import pytest

from tests.model.search import search

CHUNKS = 10

# What a run must have come by, or it proves nothing.
WAYS = (
    "applied", "claimed", "fenced", "duplicate", "mismatch", "refused", "torn", "deliver late", "commits lost",
    "crash", "freeze", "thaw", "stray", "lose", "garble", "twice", "cut_bell", "drop_query", "source_crash", "prune",
)  # fmt: skip


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_promise_holds_after_every_step_of_every_schedule(chunk, pytestconfig):
    each = -(-pytestconfig.getoption("schedules") // CHUNKS)
    met = Counter[str]()
    failure = search(range(chunk * each, (chunk + 1) * each), met=met)
    assert failure is None, str(failure)
    assert not each >= 1000 or not [way for way in WAYS if not met[way]], met


def test_a_schedule_run_again_is_the_same_schedule():
    first, again = Counter[str](), Counter[str]()
    assert search(range(50), met=first) is None
    assert search(range(50), met=again) is None
    assert first == again
