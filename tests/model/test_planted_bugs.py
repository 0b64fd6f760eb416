"""The model finds bugs: each planted one breaks a promise within a bounded number of schedules."""

import pytest

from tests.model.planted import PLANTED, Planted
from tests.model.search import search


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_the_model_finds(planted: Planted):
    with planted.context():
        failure = search((planted.seed, *range(planted.within)), planted.mirror, shrink_seconds=0.5)
    assert failure is not None, f"{planted.name} was not found in {planted.within} schedules"
    print(f"{planted.name}: found in schedule {failure.schedules}, {len(failure.history)} lines\n{failure}")
    assert failure.promise in planted.promises, str(failure)
    assert f"Seed {failure.seed}" in str(failure)
    assert search([failure.seed]) is None, "the seed breaks a promise without the planted bug"
