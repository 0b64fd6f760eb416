"""A source that is not what it was: told apart from one that lost nothing, and never read on from by mistake."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from daemon.batch import Limits
from daemon.errors import SourceForeign
from tests.databases import Database
from tests.lineage import Lineage, lineage
from tests.pairs import run


@pytest.fixture
def line(run_folder: Path, pytestconfig: pytest.Config, target: Database) -> Iterator[Lineage]:
    with lineage(run_folder, pytestconfig.getoption("postgres"), target) as made:
        yield made


async def drained(line: Lineage) -> list[EventDict]:
    """Bring everything over with a new relay; what it logged."""
    with capture_logs() as log:
        await line.pair.drain()
    return log


async def halts(line: Lineage) -> str:
    """The relay must refuse, and leave the target alone; its sentence."""
    before = line.pair.rows("select id, what from t order by id")[1]
    with pytest.raises(SourceForeign) as caught:
        await line.pair.drain()
    assert line.pair.rows("select id, what from t order by id")[1] == before
    assert "`outboxd rebase` (a dry run first) leads on" in str(caught.value)
    return str(caught.value)


def said(log: list[EventDict], event: str) -> list[dict[str, Any]]:
    return [dict(line) for line in log if line["event"] == event]


# -- nothing was lost ------------------------------------------------------------------------------------------


async def test_a_standby_promoted_without_loss_is_read_on_from(line):
    """Another timeline, and everything that was applied is there: go on, and say so once."""
    standby = line.standby()
    line.insert(1, 2, 3)
    await drained(line)
    line.insert(4)
    line.followed(standby)
    line.promote(standby)
    line.insert(5)
    log = await drained(line)
    (promoted,) = said(log, "source_promoted")
    assert (promoted["timeline_before"], promoted["timeline"]) == (1, 2)
    assert line.ids() == ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert said(await drained(line), "source_promoted") == [], "the cursor now speaks of the new timeline"


async def test_a_loss_that_never_reached_the_target_is_none(line):
    """The standby misses a row that was not applied either: both stores agree that it never was."""
    standby = line.standby()
    line.insert(1)
    await drained(line)
    line.followed(standby)
    line.cut(standby)
    line.insert(2)
    line.promote(standby)
    line.insert(3)
    assert said(await drained(line), "source_promoted")
    assert line.ids() == ([1, 3], [1, 3])


async def test_a_relay_that_is_connected_meets_the_promoted_server(line):
    """The same process: its connection breaks, the next one leads to the new primary, and is asked before it is read."""
    standby = line.standby()
    async with line.pair.relay() as parts:
        line.insert(1)
        await parts.relay.drain()
        line.followed(standby)
        line.cut(standby)
        line.insert(2)
        await parts.relay.drain()
        line.promote(standby)
        line.spend(20)
        await parts.source.close()
        parts.source._session._dsn = line.pair.source.dsn
        with pytest.raises(SourceForeign, match="timeline 1 → 2"):
            await parts.relay.drain()


async def test_a_crash_with_asynchronous_commits_loses_nothing_that_was_applied(line):
    """kill -9 of the whole server: the same timeline, restarted; what was sent had been flushed before."""
    line.cluster.configure({"wal_writer_delay": "10s"})
    line.cluster.restart()
    line.write("set synchronous_commit = off", "insert into t values (1, 'written')")
    await drained(line)
    line.write("set synchronous_commit = off", "insert into t values (2, 'written')")
    line.cluster.kill()
    line.cluster.start()
    line.insert(3)
    await drained(line)
    source, target = line.ids()
    assert source == target
    assert {1, 3} <= set(source)


async def test_what_was_pruned_is_not_missing(line):
    """Retention let go of what the target had: the prune mark tells that from a loss."""
    line.insert(1, 2)
    await drained(line)
    line.write("delete from outbox.change")
    await halts(line)
    line.write("update outbox.pruned set up_to_id = 2")
    line.insert(3)
    await drained(line)
    assert line.ids() == ([1, 2, 3], [1, 2, 3])


async def test_what_is_half_pruned_is_known_by_what_is_left(line):
    """Sums no longer compare; the changes that must still be there are looked up by name."""
    line.insert(1)
    await drained(line)
    line.insert(2)
    await drained(line)
    line.write("delete from outbox.change where id = 1", "update outbox.pruned set up_to_id = 1")
    await drained(line)
    line.write("delete from outbox.change where id = 2")
    assert "of 2 changes looked up 1 are not in its outbox as they were (change 2)" in await halts(line)


async def test_a_cursor_without_a_mark_is_taken_as_it_is(line):
    """One that an older outboxd wrote; from the next batch on it has one."""
    line.insert(1)
    await drained(line)
    with line.pair.target.connect() as conn:
        run(conn, "update outboxd.cursor set cursor = (cursor::jsonb - 'mark')::text")
    line.insert(2)
    await drained(line)
    with line.pair.target.connect() as conn:
        row = conn.execute("select cursor::json #> '{mark,last}' from outboxd.cursor").fetchone()
    assert row is not None
    assert [entry[1] for entry in row[0]] == [2]
    assert line.ids() == ([1, 2], [1, 2])


# -- something was lost ----------------------------------------------------------------------------------------


async def test_a_dump_in_a_new_cluster_is_refused(line):
    """Its transaction ids are another cluster's."""
    line.insert(1, 2)
    await drained(line)
    line.dump_into_new()
    line.insert(3)
    assert "belongs to another database cluster" in await halts(line)


async def test_a_standby_promoted_with_loss_is_refused(line):
    """Applied changes are not there: whatever is written next would take their transaction ids."""
    standby = line.standby()
    line.insert(1)
    await drained(line)
    line.followed(standby)
    line.cut(standby)
    line.insert(2, 3)
    await drained(line)
    line.promote(standby)
    line.spend(20)
    sentence = await halts(line)
    assert "timeline 1 → 2" in sentence
    assert "of the last 3 changes 2 are not in its outbox (change 2, 3)" in sentence


@pytest.mark.parametrize("others", [1, 40])
async def test_a_late_commit_is_missed_though_the_last_change_survived(line, others):
    """One transaction began first, with the lowest id and xid, and committed last: it alone is lost. With many others
    in the batch it is not among those known by name; the sum knows it."""
    standby = line.standby()
    with psycopg.connect(line.pair.source.dsn) as late:
        run(late, "insert into t values (1000, 'late')")
        line.insert(*range(1, others + 1))
        line.followed(standby)
        line.cut(standby)
        late.commit()
    await drained(line)
    assert 1000 in line.ids()[1]
    line.promote(standby)
    line.spend(20)
    assert f"of the last {others + 1} changes 1 are not in its outbox" in await halts(line)


async def test_a_loss_inside_a_window_that_many_batches_carry(line):
    """What was lost went with the first of several batches of one window, the last batch survived: the mark reaches back."""
    standby = line.standby()
    with psycopg.connect(line.pair.source.dsn) as late:
        run(late, "insert into t values (1000, 'late')")
        line.insert(*range(1, 60))
        line.followed(standby)
        line.cut(standby)
        late.commit()
    assert await line.pair.drain(limits=Limits(changes=10)) == 60
    line.promote(standby)
    line.spend(20)
    assert "of the last 60 changes 1 are not in its outbox" in await halts(line)


async def test_recovery_to_an_earlier_moment_is_refused(line):
    """At once, and also when the restored server's transactions have caught up with the cursor."""
    backup = line.backup()
    line.insert(1)
    line.name_this_moment("before")
    line.insert(*range(2, 22))
    await drained(line)
    line.restore(backup, "before")
    assert "lies in this source's future" in await halts(line)
    line.spend(50)
    assert "of the last 21 changes 20 are not in its outbox (change 7, 8, 9" in await halts(line)


async def test_recovery_is_refused_when_others_stand_in_the_place_of_what_was_lost(line):
    """The restored server gave the same transaction and change ids to other rows."""
    backup = line.backup()
    line.insert(1)
    line.name_this_moment("before")
    line.insert(2, 3)
    await drained(line)
    line.restore(backup, "before")
    line.insert(12, 13, 14, 15, 16)
    assert "others stand in their place" in await halts(line)


async def test_a_disk_image_put_back_is_refused(line):
    """The same system, the same timeline, only older: at once, and when its transactions have caught up."""
    line.insert(1)
    await drained(line)
    image = line.image()
    line.insert(*range(2, 22))
    await drained(line)
    line.put_back(image)
    assert "lies in this source's future" in await halts(line)
    line.insert(*range(102, 122))
    line.spend(20)
    assert "its timeline is 1 as before, so an older image of its disk was put back" in await halts(line)


async def test_a_transaction_id_in_use_again_is_refused(line):
    """Everything applied survived, but the cursor has seen transactions end that the new primary has not begun: first
    its future, then, while one of those runs again, that very id."""
    standby = line.standby()
    async with line.pair.relay() as parts:
        await parts.relay.drain()  # its first window spends a transaction id, so is not on disk at once
        line.insert(1)
        line.followed(standby)
        line.cut(standby)
        line.spend(10)
        await parts.relay.drain()
    line.promote(standby)
    assert "lies in this source's future" in await halts(line)
    with psycopg.connect(line.pair.source.dsn) as again:
        run(again, "insert into t values (2, 'again')")
        line.spend(30)
        assert "are in use again" in await halts(line)
    line.write("delete from t where id = 2")
    sentence = await halts(line)
    assert "in place of the last 1 changes its outbox has 2 others" in sentence


# -- a target that went back -----------------------------------------------------------------------------------


async def test_a_target_restored_from_a_backup_is_rewound(line):
    """It states an older cursor: everything since is sent again, it is said, and no old relay shares the new epoch."""
    line.insert(1)
    await drained(line)
    with line.pair.target.connect() as conn:
        row = conn.execute("select epoch, batch_no, cursor from outboxd.cursor").fetchone()
    line.insert(2)
    await drained(line)
    line.insert(3)
    await drained(line)
    with line.pair.target.connect() as conn:
        run(conn, "delete from t where id > 1")
        conn.execute("update outboxd.cursor set (epoch, batch_no, cursor, digest) = row (%s, %s, %s, null)", row)
    with capture_logs() as log:
        async with line.pair.relay(limits=Limits(changes=1)) as parts:
            assert await parts.relay.step()
            assert parts.relay.status.epoch == 4, "above the three that went before, not the second again"
            assert "stands 1 batches behind where it stood" in (parts.relay.status.problem or "")
            assert await parts.relay.drain() == 1
            assert parts.relay.status.problem is None
    (restored,) = said(log, "target_restored")
    assert restored["batches"] == 1, "as far as the source knew: it is told once a minute"
    assert line.ids() == ([1, 2, 3], [1, 2, 3])
