"""How late a row arrives at a steady rate (W4, W12): from commit on the source to commit on the target.

Both clusters note when each transaction committed (track_commit_timestamp, on for every system), and every row knows
the transaction that wrote it last: exact, for every row, and nobody has to poll. Both stamps are taken as the commit
begins, before its flush; the two flushes are alike, so the difference is from visible to visible. One clock: one machine.
Native replication stamps its commits with the source's time. There a trigger notes each arrival, a moment too early.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

from tests.bench import cpu
from tests.bench.bill import NOTHING, sent
from tests.bench.catchup import DEADLINE, arrived, warm
from tests.bench.load import BLOCK, STORY, write
from tests.bench.rows import assert_equal
from tests.bench.site import Site, Stores, connect
from tests.bench.systems import KIND, NAMES, BenchFailed, Daemon, Mover, moving
from tests.bench.workloads import BACKLOGS, Backlog

RATE = 300
CLIENTS = 4
_ARRIVALS = """select id, extract(epoch from at)::float8 from bench.arrival"""
STAMPS: LiteralString = """
select "id"::text, extract(epoch from pg_xact_commit_timestamp(xmin))::float8 from "Story" where "title" like 'The%'
"""


@dataclass(frozen=True)
class Load:
    """So many transactions a second, each of `changes`. `stamps`: a row for each that is looked at, with its commit."""

    backlog: Backlog
    script: Sequence[str]
    rate: int
    stamps: LiteralString
    notes: LiteralString

    @property
    def changes(self) -> int:
        return self.backlog.per_transaction


LOADS = {
    "W4": Load(BACKLOGS["W1"], STORY, RATE, STAMPS, 'alter table "Story" enable always trigger arrived'),
    "W12": Load(
        BACKLOGS["W12"], BLOCK, 20,
        """select "id"::text, extract(epoch from pg_xact_commit_timestamp(xmin))::float8 from "Item"
            where "id" % 100 = 0 and "body" like 'made%'""",
        """create trigger arrived after insert on "Item" for each row when (new."id" % 100 = 0) execute function bench.arrived();
           alter table "Item" enable always trigger arrived""",
    ),
}  # fmt: skip


def steady(
    site: Site, system: str, seconds: float, delay: float = 0.0, *, workload: str = "W4"
) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds by percentile and what it took, and shares of the processor by group."""
    load, whose = LOADS[workload], f"{NAMES[system]}, {workload}"
    seconds = max(1, round(seconds))  # pgbench knows whole ones
    with (
        site.stores(KIND[system], load.backlog.schema) as stores,
        moving(system, site, stores, delay=delay) as mover,
    ):
        if system == "native":
            with connect(stores.target) as conn:
                conn.execute(load.notes)
        warm(mover, stores, whose)
        site.settle()
        mover.start()
        _write(load, site, stores, 1)  # not counted: whoever starts is slow
        with connect(stores.source) as conn:
            ((since,),) = conn.execute("select extract(epoch from clock_timestamp())::float8").fetchall()
            values, shares = _taken(load, site, stores, mover, seconds)
            conn.execute(load.backlog.last)
        if not arrived(load.backlog.arrived, stores, DEADLINE):
            raise BenchFailed(f"{whose}: not everything arrived within {DEADLINE:g} s: {mover.last_words()}")
        mover.stop()
        assert_equal(stores, whose)
        late = sorted(latencies(stores, since, _ARRIVALS if system == "native" else load.stamps, load.stamps))
        return {**values, "rows": len(late), **percentiles(late)}, shares


def _taken(
    load: Load, site: Site, stores: Stores, mover: Mover, seconds: float
) -> tuple[dict[str, float], dict[str, float]]:
    """What the load took: of the processor by group, of the source beyond those who wrote, and what was sent."""
    groups = {"source": site.source.pid, "target": site.target.pid, **mover.groups}
    was = sent(mover) if isinstance(mover, Daemon) else NOTHING
    before, others = cpu.used(groups), cpu.living(site.source.pid)
    rate = _write(load, site, stores, seconds)
    after, still = cpu.used(groups), cpu.living(site.source.pid)
    changes = rate * load.changes
    bill = sent(mover).since(was, changes * seconds) if isinstance(mover, Daemon) else {}
    beyond = cpu.beside(others, still) / (after.at - before.at)
    return {"tx/s": rate, "changes/s": changes, "beyond": beyond * 100, **bill}, before.until(after)


def _write(load: Load, site: Site, stores: Stores, seconds: float) -> float:
    return write(stores, site.folder, clients=CLIENTS, seconds=seconds, rate=load.rate, script=load.script)


def latencies(
    stores: Stores, since: float, arrivals: LiteralString = STAMPS, stamps: LiteralString = STAMPS
) -> list[float]:
    with connect(stores.source) as source, connect(stores.target) as target:
        here, there = dict(source.execute(stamps).fetchall()), dict(target.execute(arrivals).fetchall())
    return [(there[key] - at) * 1000 for key, at in here.items() if at >= since]


def percentiles(late: Sequence[float]) -> dict[str, float]:
    def at(share: float) -> float:
        return late[min(len(late) - 1, int(share * len(late)))]

    return {"p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": late[-1]}
