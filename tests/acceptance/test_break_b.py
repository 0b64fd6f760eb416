"""What the operator's commands say, and whether what they advise works when it is pasted."""

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


def test_what_left_home_is_asked_quickly_of_a_wide_table(direct: Pair) -> None:
    """It is asked for each copy, on the connection that reads the changes of all tables."""
    columns = ", ".join(f"c{n} {COLUMNS[n % 10]}" for n in range(600))
    direct.write(f"create table wide (id int primary key, {columns})")
    assert Cli(direct.settings)("watch", "wide").code == 0
    with direct.source.connect() as conn:
        conn.execute("set statement_timeout = '3s'")
        conn.execute("select outbox.left_home(w) from outbox.watched w where w.table_name = 'public.wide'")
