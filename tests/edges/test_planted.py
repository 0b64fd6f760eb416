"""The soak finds faults: each that is put back makes a play end wrong, within a bounded number of seeds."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from tests.databases import Database, clone
from tests.edges.planted import PLANTED, Planted
from tests.edges.play import play

_STEADY = 40  # turns: some times what comes to rest needs

Sides = Callable[[], AbstractContextManager[tuple[Database, Database]]]


@pytest.fixture
def sides(_source_template: Database, _target_template: Database) -> Sides:
    """Two databases for one play."""

    @contextmanager
    def made() -> Iterator[tuple[Database, Database]]:
        with clone(_source_template) as source, clone(_target_template) as target:
            yield source, target

    return made


async def _found(planted: Planted, sides: Sides) -> int | None:
    """The first seed that finds it. What is named comes first: a play is not the same to the last turn each time."""
    tries: tuple[int, ...] = (*planted.seeds, *range(planted.within))
    for seed in tries:
        with sides() as (source, target):
            for text in planted.texts:
                text.put(source, target)
            with planted.context():
                wrong = await play(source, target, seed, often=planted.often, steady=_STEADY)
        if wrong:
            print(f"{planted.name}: found by seed {seed}\n", "\n".join(wrong))
            return seed
    return None


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
async def test_the_soak_finds(planted: Planted, sides: Sides) -> None:
    seed = await _found(planted, sides)
    assert seed is not None, f"{planted.name} was not found by {planted.within} seeds"
    with sides() as (source, target):
        wrong = await play(source, target, seed, often=planted.often)
    assert not wrong, "\n".join(["wrong without the fault, too", *wrong])
