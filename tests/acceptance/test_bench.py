"""`make bench` in small: it measures, and it fails loudly when a figure would be worth nothing."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from daemon.demo.binaries import MissingPostgrest
from tests.bench.__main__ import main
from tests.bench.catchup import catch_up
from tests.bench.site import Site, Stores, connect, opened
from tests.bench.systems import BenchFailed

CHANGES = 160  # ten by each of sixteen writers

# A target that loses what bears this title, whoever writes it, and says nothing.
_LOSES = """
create function lose() returns trigger language plpgsql as $$
begin
  return case when new."title" like '%, part {}' then null else new end;
end $$;
create trigger lose before insert on "Story" for each row execute function lose();
alter table "Story" enable always trigger lose;
"""


def losing(part: int) -> Callable[[Stores], None]:
    def tamper(stores: Stores) -> None:
        with connect(stores.target) as conn:
            conn.execute(_LOSES.format(part).encode())

    return tamper


@pytest.fixture(scope="module")
def site(new_folder: Callable[[str], Path]) -> Iterator[Site]:
    try:
        with opened(new_folder("bench")) as site:
            yield site
    except MissingPostgrest as missing:
        pytest.skip(str(missing))


def test_it_measures_and_writes_what_it_saw(tmp_path: Path):
    report = tmp_path / "bench.json"
    arguments = ["--only", "W1", "--systems", "native,rest", "--repeats", "1", "--changes", str(CHANGES)]
    ran = CliRunner().invoke(main, [*arguments, "--json", str(report)])
    if "PostgREST" in ran.output and ran.exit_code:
        pytest.skip(ran.output)

    assert ran.exit_code == 0, ran.output
    said = json.loads(report.read_text())
    assert [(one["system"], one["values"]["changes"]) for one in said["measured"]] == [
        ("native", CHANGES + 1),
        ("rest", CHANGES + 1),
    ]
    (figure,) = [one for one in said["figures"] if one["what"] == "Data API / native" and one["workload"] == "W1"]
    rates = {one["system"]: one["values"]["rate"] for one in said["measured"]}
    assert figure["seen"]["middle"] == pytest.approx(rates["rest"] / rates["native"])
    assert "fsync = on" in ran.output


@pytest.mark.parametrize(("system", "name"), [("native", "native replication, W1"), ("direct", "outboxd, direct, W1")])
def test_a_row_that_is_not_on_the_target_fails_the_bench(site: Site, system: str, name: str):
    with pytest.raises(BenchFailed, match=rf'{name}: the rows of public."Story" differ .* 16 missing'):
        catch_up(site, system, "W1", CHANGES, tamper=losing(7))


def test_a_row_of_a_workloads_own_table_fails_the_bench_too(site: Site):
    def tamper(stores: Stores) -> None:
        with connect(stores.target) as conn:  # one that no commit touches
            conn.execute('delete from "Item" where "id" = 19999')

    with pytest.raises(BenchFailed, match=r'native replication, W12: the rows of public."Item" differ .* 1 missing'):
        catch_up(site, "native", "W12", CHANGES, tamper=tamper)


def test_a_system_that_does_not_catch_up_fails_the_bench(site: Site):
    with pytest.raises(BenchFailed, match=f"native replication, W1: {CHANGES + 1} changes did not arrive within 1 s"):
        catch_up(site, "native", "W1", CHANGES, deadline=1.0, tamper=losing(0))


def test_a_bench_that_failed_exits_with_a_sentence_and_keeps_what_it_saw(tmp_path: Path):
    report = tmp_path / "bench.json"
    arguments = ["--only", "W1", "--systems", "native", "--repeats", "1", "--changes", "20000", "--deadline", "0"]
    ran = CliRunner().invoke(main, [*arguments, "--json", str(report)])
    if "PostgREST" in ran.output and "bench failed" not in ran.output:
        pytest.skip(ran.output)

    assert ran.exit_code == 1
    assert "The bench failed. native replication, W1" in ran.output
    assert "did not arrive within 0 s" in json.loads(report.read_text())["failure"]
