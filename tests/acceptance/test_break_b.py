"""What the operator's commands say, and whether what they advise works when it is pasted."""

from pathlib import Path

import pytest

from tests.acceptance.cli import Cli
from tests.acceptance.conftest import STORIES, Pair, Start, wait_until

QUIET = {"verify_interval": "0"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("setting", ["retention", "request_timeout"])
@pytest.mark.parametrize("value", ["inf", "1e300"])
def test_a_number_without_an_end(direct: Pair, start: Start, setting: str, value: str) -> None:
    """Either refused as bad configuration, or it runs."""
    daemon = start({**direct.settings, setting: value})
    wait_until(lambda: daemon.returncode is not None or (daemon.status() or {}).get("state") == "streaming")
    if daemon.returncode is not None:
        assert daemon.returncode == 78, daemon.last_words()
        return
    direct.write(STORIES, 3)
    direct.arrives()
    assert "Traceback" not in daemon.last_words()
    assert daemon.returncode is None


def test_a_variable_that_is_misspelled(direct: Pair) -> None:
    told = Cli(direct.settings)("check", retenton="3600")
    assert told.code == 78 or "RETENTON" in (told.out + told.err).upper(), told


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
