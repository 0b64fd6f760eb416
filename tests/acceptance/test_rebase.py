"""`outboxd rebase`: after each way in which a source can go back in time the relay is led on, and both stores agree."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from daemon.batch import Limits
from daemon.errors import SourceForeign
from tests.acceptance.cli import Cli, Said
from tests.acceptance.conftest import QUICK, Start, streaming, wait_until
from tests.databases import Database
from tests.lineage import Lineage, lineage
from tests.pairs import run


@pytest.fixture
def line(run_folder: Path, pytestconfig: pytest.Config, target: Database) -> Iterator[Lineage]:
    with lineage(run_folder, pytestconfig.getoption("postgres"), target) as made:
        yield made


def settings(line: Lineage) -> dict[str, str]:
    return {"source_dsn": line.pair.source.dsn, "transport": "postgres", "target_dsn": line.pair.target.dsn}


def outboxd(line: Lineage) -> Cli:
    return Cli(settings(line))


def drain(line: Lineage, changes: int = 2000) -> int:
    return asyncio.run(line.pair.drain(limits=Limits(changes=changes)))


def rows(line: Lineage) -> tuple[dict[int, str], dict[int, str]]:
    """What each store has in t: the source first."""
    source, target = line.pair.rows("select id, what from t")
    return dict(source), dict(target)


def stored(line: Lineage) -> list[tuple[Any, ...]]:
    """All that a dry run must not touch."""
    with line.pair.target.connect() as target, line.pair.source.connect() as source:
        cursor = target.execute("select relay, epoch, batch_no, digest, cursor from outboxd.cursor").fetchall()
        changes = source.execute("select id, xid::text from outbox.change order by id").fetchall()
        return [*cursor, *changes, *target.execute("select * from t order by 1").fetchall()]


def rebased(line: Lineage) -> Said:
    """Dry run, then for real; what the dry run said."""
    before = stored(line)
    dry = outboxd(line)("rebase", "--json")
    assert dry.code == 3
    assert stored(line) == before
    done = outboxd(line)("rebase", "--yes", "--json")
    assert (done.code, done.json()["rebased"]) == (0, True)
    assert (done.json() | {"rebased": False}).keys() == dry.json().keys()
    return dry


def put_back(line: Lineage) -> None:
    """Rows 2 and 3 were applied and are lost, and what became of row 1; rows 4 to 6 are new."""
    image = line.image()
    line.write("update t set what = 'lost' where id = 1")
    line.insert(2, 3)
    drain(line)
    line.put_back(image)


def recovered(line: Lineage) -> None:
    backup = line.backup()
    line.name_this_moment("before")
    line.write("update t set what = 'lost' where id = 1")
    line.insert(2, 3)
    drain(line)
    line.restore(backup, "before")


def promoted(line: Lineage) -> None:
    standby = line.standby()
    line.cut(standby)
    line.write("update t set what = 'lost' where id = 1")
    line.insert(2, 3)
    drain(line)
    line.promote(standby)


@pytest.mark.parametrize("goes_back", [put_back, recovered, promoted])
@pytest.mark.parametrize("late", [False, True], ids=["at_once", "caught_up"])
def test_a_source_that_went_back_is_led_on_from(
    line: Lineage, goes_back: Callable[[Lineage], None], late: bool
) -> None:
    """What it still has is right on the target; of what it lost only rows that nobody wrote again remain there."""
    line.insert(1)
    drain(line)
    goes_back(line)
    if late:
        line.insert(4, 5, 6)
        line.spend(40)
    dry = rebased(line).json()
    assert "source" in dry["why"]
    assert dry["send_again"] == [
        {"table": "public.t", "changes": 4 if late else 1, "oldest_s": dry["send_again"][0]["oldest_s"]}
    ]
    assert dry["came_with_a_dump"] == 0
    line.insert(7)
    drain(line, changes=2)
    source, target = rows(line)
    assert source == {1: "written", **({4: "written", 5: "written", 6: "written"} if late else {}), 7: "written"}
    assert target == source | {2: "written", 3: "written"}, "rows that only the lost changes wrote remain"
    line.write("update t set what = 'again'")
    drain(line)
    source, target = rows(line)
    assert target == source | {2: "written", 3: "written"}
    assert outboxd(line)("rebase").code == 0


def straddling(line: Lineage) -> None:
    """Changes of one row whose ids and transactions run in opposite order, on both sides of where the transaction ids
    of a cluster that is filled from a dump will stand."""
    with psycopg.connect(line.pair.source.dsn) as early:
        run(early, "select pg_current_xact_id()")
        line.spend(4000)
        line.write("insert into t values (1, 'old')")
        run(early, "update t set what = 'new' where id = 1")
        early.commit()
    line.write("insert into t select n, 'written' from generate_series(2, 12) n")


def test_a_dump_in_a_new_cluster_is_led_on_from(line: Lineage) -> None:
    """Its changes carry another cluster's transaction ids: some in this one's future, some in its past. None is missed,
    none comes late, and each row ends with its last state, whatever the size of a batch."""
    line.insert(50, 51)  # then old and new share a page of two; the other foreign ones go on beyond it
    drain(line)
    straddling(line)  # not applied yet: the target gets it from the new cluster, or never
    line.dump_into_new()
    line.insert(20)
    dry = rebased(line).json()
    assert "another database cluster" in dry["why"]
    assert dry["came_with_a_dump"] == 15, "all changes up to the last with a foreign transaction"
    line.insert(21)
    with line.pair.target.connect() as conn:
        run(conn, "create table seen (n int generated always as identity, what text)",
            "create function note() returns trigger language plpgsql as $$ begin insert into public.seen (what)"
            " values (new.what); return null; end $$",
            "create trigger note after insert or update on t for each row when (new.id = 1) execute function note()")  # fmt: skip
    drain(line, changes=2)
    line.pair.assert_equal("t")
    with line.pair.target.connect() as conn:
        assert conn.execute("select what from seen order by n").fetchall()[-1] == ("new",)
    line.spend(5000)  # the foreign ids are this cluster's own by now
    assert drain(line) == 0
    line.pair.assert_equal("t")
    line.write("update t set what = 'again'")
    drain(line)
    line.pair.assert_equal("t")


def test_a_dump_whose_sequence_stayed_behind_is_named(line: Lineage) -> None:
    """Rows copied without the sequence: new changes would draw ids that are taken. The sentence is the statement."""
    line.insert(1, 2, 3)
    drain(line)
    line.dump_into_new()
    line.write("select setval('outbox.change_id_seq', 1)")
    said = outboxd(line)("rebase", "--yes")
    assert said.code == 1
    assert "select setval('outbox.change_id_seq', 3)" in said.err


@pytest.mark.parametrize("dies", ["rebase_restamped", "nowhere"])
def test_a_rebase_that_is_interrupted_is_run_again(line: Lineage, folder: Path, dies: str) -> None:
    """Killed between the two stores: the relay still refuses, the next rebase ends it. And twice is once."""
    straddling(line)
    drain(line)
    line.dump_into_new()
    environment = {**os.environ, "OUTBOXD_FAILPOINT": f"{dies}:kill"}
    named = {f"OUTBOXD_{key.upper()}": value for key, value in settings(line).items()}
    command = [sys.executable, "-P", "-m", "daemon", "rebase", "--yes"]
    ran = subprocess.run(command, cwd=folder, env=environment | named, capture_output=True, check=False)
    if dies == "nowhere":
        assert ran.returncode == 0, ran.stderr
        assert outboxd(line)("rebase", "--yes").err.startswith("nothing to rebase")
    else:
        assert ran.returncode == -9
        with pytest.raises(Exception, match="another database cluster"):
            drain(line)
        assert rebased(line).json()["came_with_a_dump"] == 0, "the source's part was done"
    line.insert(20)
    drain(line, changes=2)
    line.pair.assert_equal("t")


def test_held_keys_stay_held_as_far_as_they_have_letters(line: Lineage) -> None:
    """The letters are on the source: a key whose letters were lost with it flows again."""
    line.insert(1)
    drain(line)
    with line.pair.target.connect() as target:
        run(target, "alter table t add constraint never check (id not in (8, 9))")
    line.insert(8)
    drain(line)
    image = line.image()
    line.insert(9)
    drain(line)
    with line.pair.target.connect() as target:
        assert [key for (key,) in target.execute("select key from outboxd.held order by 1")] == [
            '{"id":8}',
            '{"id":9}',
        ]
    line.put_back(image)
    assert rebased(line).json()["held_keys"] == 1
    with line.pair.target.connect() as target:
        assert [key for (key,) in target.execute("select key from outboxd.held order by 1")] == ['{"id":8}']
        run(target, "alter table t drop constraint never")
    line.insert(9)
    drain(line)
    assert [letter["table"] for letter in outboxd(line)("dead-letters", "list", "--json").json()] == ["public.t"]
    line.write("update outbox.held set wanted = 'retry'")
    drain(line)
    line.pair.assert_equal("t")


def test_nothing_is_rebased_without_need(line: Lineage) -> None:
    """A source that holds what was applied is left alone, with --yes too."""
    line.insert(1)
    drain(line)
    before = stored(line)
    said = outboxd(line)("rebase", "--yes")
    assert (said.code, said.err) == (0, "nothing to rebase: this source holds what the target has from it\n")
    assert stored(line) == before


def test_a_running_daemon_halts_says_why_and_makes_room(line: Lineage, start: Start) -> None:
    """paused, with the reason in /api/status and in the log; after the rebase it goes on by itself: it had
    looked before it claimed the target, so there was nothing to fence."""
    line.insert(1)
    way = {**settings(line), **QUICK}
    first = streaming(start(way))
    wait_until(lambda: rows(line)[1] == {1: "written"})
    image = line.image()
    line.insert(*range(2, 22))
    wait_until(lambda: len(rows(line)[1]) == 21)
    line.put_back(image)
    line.spend(60)
    wait_until(lambda: "rebase" in ((first.status() or {}).get("problem") or ""), 60)
    told = first.status() or {}
    assert told["state"] == "paused"
    assert "an older image of its disk was put back" in told["problem"]
    assert "outboxd rebase" in told["verdict"]
    talk = outboxd(line)("rebase")
    assert talk.code == 3
    assert "public.t" in talk.out
    assert "outboxd rebase --yes" in talk.err
    assert outboxd(line)("rebase", "--yes").code == 0
    line.insert(100)
    wait_until(lambda: 100 in rows(line)[1], 60)
    assert rows(line)[1].keys() == {1, 100, *range(2, 22)}
    assert first.stop() == 0


def test_a_target_older_than_the_outbox_reaches_is_led_on_from(line: Lineage) -> None:
    """Restored from a backup, and the changes since were pruned in part: what is left is sent, and each table is copied as
    a whole."""
    line.insert(1)
    drain(line)
    with line.pair.target.connect() as conn:
        before = conn.execute("select batch_no, cursor from outboxd.cursor").fetchone()
    line.insert(2, 3)
    drain(line)
    line.write("delete from outbox.change where id <= 2", "update outbox.pruned set up_to_id = 2")
    with line.pair.target.connect() as conn:
        run(conn, "delete from t where id > 1")
        conn.execute("update outboxd.cursor set (batch_no, cursor, digest) = row (%s, %s, null)", before)
    with pytest.raises(SourceForeign, match=r"no longer holds the changes after the target's cursor.*outboxd rebase"):
        drain(line)
    dry = rebased(line).json()
    assert "no longer holds" in dry["why"]
    assert (dry["pruned_up_to_id"], dry["copied"]) == (2, ["public.t"])
    drain(line)
    line.pair.assert_equal("t")
