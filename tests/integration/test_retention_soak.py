"""An outbox through which many changes pass while a snapshot is held open: `make soak` for millions of them."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import pytest
from structlog.testing import capture_logs

from daemon.batch import Batch, Pruned
from daemon.prune import Pruner
from tests.pairs import Pair, Parts
from tests.silent import Silent
from tests.waiting import wait_until, wait_until_async

RETENTION = 0.5
CHUNK = 2000
_ROOM = 5 * CHUNK  # the writer runs ahead of the relay by no more: this is about applied changes
_OUTBOX = """
select (select sum(pg_total_relation_size(relid)) from pg_stat_user_tables where relname like 'change\\_%'),
       (select sum(n_dead_tup) from pg_stat_user_tables where relname like 'change\\_%'),
       (select last_value from outbox.change_id_seq) - (select up_to_id from outbox.pruned)
"""


@dataclass
class Watched(Silent):
    """What it takes to read a full window, by the number of changes read before it.

    In the server's own time on a processor, pruning included: what else the machine does is not counted.
    """

    total: int
    changes: int = 0
    read_ms: list[list[float]] = field(default_factory=lambda: [[] for _ in range(10)])
    server: int | None = None  # the process that serves the relay's reads
    _spent: float = 0.0

    def batch_read(self, batch: Batch, seconds: float) -> None:
        tenth = min(9, self.changes * 10 // self.total)
        self.changes += len(batch.changes)
        before, self._spent = self._spent, int(Path(f"/proc/{self.server}/schedstat").read_text().split()[0]) / 1e6
        if len(batch.changes) >= CHUNK and before:
            self.read_ms[tenth].append(self._spent - before)


@dataclass
class Sample:
    """The outbox at an instant: bytes, dead rows, changes kept."""

    changes: int
    size: int
    dead: int
    kept: int


def write(pair: Pair, parts: Parts, total: int) -> list[Sample]:
    """Transactions of CHUNK rows each; returns a look at the outbox after each of them."""
    samples = []
    with pair.source.connect() as app:
        for first in range(0, total, CHUNK):
            wait_until(lambda least=first - _ROOM: parts.relay.status.applied >= least, 120)  # type: ignore[misc]
            app.execute(
                "insert into entry select n, md5(n::text), n %% 97 from generate_series(%s::int, %s) n",
                (first, first + CHUNK - 1),
            )
            size, dead, kept = app.execute(_OUTBOX).fetchone() or (0, 0, 0)
            samples.append(Sample(first + CHUNK, int(size), int(dead), int(kept)))
    return samples


@contextmanager
def snapshot_held(pair: Pair) -> Iterator[None]:
    """A reader somewhere holds an xmin for as long as this lasts: vacuum can remove no row that died since."""
    with pair.source.connect(autocommit=False) as reader:
        reader.execute("set transaction isolation level repeatable read")
        reader.execute("select count(*) from entry")
        yield
        held = reader.execute("select backend_xmin is not null from pg_stat_activity where pid = pg_backend_pid()")
        assert held.fetchone() == (True,)


@pytest.mark.slow
async def test_the_outbox_stays_small_and_quick_while_a_snapshot_is_held_open(pair: Pair, pytestconfig) -> None:
    """No dead rows, a bounded size, reads as quick at the end as in the beginning, and everything arrives."""
    total = int(pytestconfig.getoption("--changes")) // CHUNK * CHUNK
    pair.create("create table entry (id int primary key, note text, n int)", "public.entry")
    seen, pruned = Watched(total), list[Pruned]()
    with snapshot_held(pair), capture_logs():
        async with pair.relay(observer=seen, pruner=Pruner(RETENTION, pruned.append)) as parts:
            await parts.source.identify()
            assert parts.source._session.conn is not None
            seen.server = parts.source._session.conn.info.backend_pid
            task = asyncio.create_task(parts.relay.run())
            started = time.monotonic()
            samples = await asyncio.to_thread(write, pair, parts, total)

            async def arrived() -> bool:
                return parts.relay.status.applied == total

            await wait_until_async(arrived, 120)
            elapsed = time.monotonic() - started
            parts.relay.stop()
            await task
    report(total, elapsed, samples, seen, pruned)
    count, target = pair.rows("select count(*), sum(hashtextextended(t::text, 0)) from entry t")
    assert count == target

    marks = [done.up_to_id for done in pruned if done.emptied is not None]
    assert marks == sorted(set(marks))
    assert len(marks) >= 4, "several slots were emptied"
    assert sum(done.rotated for done in pruned) >= 4
    assert max(sample.dead for sample in samples) == 0
    # Kept is what the retention holds, twice at most, and what waits; not what has passed through.
    assert max(sample.kept for sample in samples) < total * 0.6
    half = len(samples) // 2
    assert max(s.size for s in samples[half:]) < 2 * max(s.size for s in samples[:half])
    first, last = (median(seen.read_ms[tenth]) for tenth in (0, 9))
    assert last < 2 * first + 1, f"windows took {first:.1f} ms at first, {last:.1f} ms in the end"


def report(total: int, elapsed: float, samples: list[Sample], seen: Watched, pruned: list[Pruned]) -> None:
    """A table for people: `make soak`, or `-s`."""
    print(f"\n{total} changes in {elapsed:.0f} s ({total / elapsed:.0f}/s), a snapshot held open throughout,")
    emptied = sum(done.emptied is not None for done in pruned)
    print(f"retention {RETENTION} s: {emptied} slots emptied, {sum(d.locked for d in pruned)} times one was in use")
    print(f"{'changes':>10} {'outbox MB':>10} {'kept':>8} {'n_dead_tup':>10} {'read ms per window (server)':>27}")
    for tenth, read in enumerate(seen.read_ms):
        part = samples[len(samples) * tenth // 10 : len(samples) * (tenth + 1) // 10] or samples[-1:]
        print(
            f"{part[-1].changes:>10} {max(s.size for s in part) / 1e6:>10.1f} {max(s.kept for s in part):>8}"
            f" {max(s.dead for s in part):>10} {median(read) if read else float('nan'):>27.2f}"
        )


def test_the_promise_needs_a_held_snapshot(pair: Pair) -> None:
    """The fixture of the test above does what it says: rows deleted meanwhile stay, and vacuum cannot help."""
    with pair.source.connect() as app:
        app.execute("create table entry (id int); insert into entry select generate_series(1, 100)")
        with snapshot_held(pair):
            app.execute("delete from entry")
            app.execute("vacuum entry")
            assert app.execute("select pg_relation_size('entry') > 0").fetchone() == (True,)
        app.execute("vacuum entry")
        assert app.execute("select pg_relation_size('entry')").fetchone() == (0,)
