"""A wide table beside others: they flow, and it arrives."""

from pathlib import Path

import pytest

from tests.acceptance.cli import Cli
from tests.acceptance.conftest import STORIES, Pair, Start, wait_until

QUIET = {"verify_interval": "0"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


COLUMNS = ["text", "int", "numeric", "boolean", "timestamptz", "varchar(20)", "float8", "uuid", "date", "bytea"]


@pytest.mark.parametrize("many", [300, 1200])
def test_a_wide_table_stops_no_other(direct: Pair, start: Start, many: int) -> None:
    """Twenty rows of many columns, to be copied: the other tables flow, and it arrives itself."""
    columns = ", ".join(f"c{n} {COLUMNS[n % 10]}" for n in range(many))
    direct.write(f"create table wide (id int primary key, {columns})")
    direct.write("insert into wide (id, c0, c1, c2) select i, 'a', i, i from generate_series(1, 20) i")
    cli = Cli(direct.settings)
    assert cli("watch", "wide").code == 0
    assert cli("schema", "apply", "--yes").code == 0
    daemon = start({**direct.settings, **QUIET})
    direct.write(STORIES, 3)
    direct.arrives(40)
    wait_until(lambda: direct.mirrored("wide") == 20, 40)
    assert "took too long" not in daemon.log.read_text()
