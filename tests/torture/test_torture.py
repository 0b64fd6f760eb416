"""Everything at once: real processes hurt at random while a bank writes, and not one promise broken."""

from pathlib import Path

import pytest

from daemon.demo.binaries import MissingPostgrest
from tests.torture.run import torture

SECONDS = 60
SEED = 1291  # kills, a takeover, a refused row and a lost answer come early


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_whatever_happens(run_folder: Path, pytestconfig: pytest.Config) -> None:
    """A minute of faults at both stores, at the way between them and at the daemons; by hand: `make torture`."""
    try:
        verdict = torture(run_folder / "torture", SECONDS, SEED, print, pytestconfig.getoption("postgres"))
    except MissingPostgrest as missing:
        pytest.skip(str(missing))
    print(f"\n{verdict}")
    assert verdict.wrong == []
    assert (verdict.lost, verdict.duplicated) == (0, 0)
    # It was no idle minute, however slow the machine.
    assert sum(verdict.faults.values()) > 10
    assert verdict.faults.keys() >= {"daemon killed", "daemon taken over", "source killed", "rows refused"}
    assert verdict.transactions["transfer"] > 100
    assert verdict.batches > 5
    assert verdict.looks > 50
