"""How late a row arrives at 300 transactions a second: from commit on the source to commit on the target.

Both clusters note when each transaction committed (track_commit_timestamp, on for every system), and every row knows
the transaction that wrote it last: exact, for every row, and nobody has to poll. Both stamps are taken as the commit
begins, before its flush; the two flushes are alike, so the difference is from visible to visible. One clock: one machine.
Native replication stamps its commits with the source's time. There a trigger notes each arrival, a moment too early.
"""

from collections.abc import Sequence
from typing import LiteralString

from tests.bench import cpu
from tests.bench.catchup import DEADLINE, arrived, warm
from tests.bench.load import write
from tests.bench.rows import assert_equal
from tests.bench.site import Site, Stores, connect
from tests.bench.systems import KIND, NAMES, BenchFailed, moving
from tests.bench.workloads import BACKLOGS

RATE = 300
CLIENTS = 4
_ARRIVALS = """select id, extract(epoch from at)::float8 from bench.arrival"""
_NOTE_ARRIVALS = 'alter table "Story" enable always trigger arrived'
STAMPS = (
    """select "id", extract(epoch from pg_xact_commit_timestamp(xmin))::float8 from "Story" where "title" like 'The%'"""
)


def steady(site: Site, system: str, seconds: float, delay: float = 0.0) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds by percentile, and shares of the processor by group."""
    whose = f"{NAMES[system]}, W4"
    with site.stores(KIND[system]) as stores, moving(system, site, stores, delay=delay) as mover:
        if system == "native":
            with connect(stores.target) as conn:
                conn.execute(_NOTE_ARRIVALS)
        warm(mover, stores, whose)
        site.settle()
        mover.start()
        write(stores, site.folder, clients=CLIENTS, seconds=1, rate=RATE)  # not counted: whoever starts is slow
        with connect(stores.source) as conn:
            ((since,),) = conn.execute("select extract(epoch from clock_timestamp())::float8").fetchall()
            groups = {"source": site.source.pid, "target": site.target.pid, **mover.groups}
            before = cpu.used(groups)
            rate = write(stores, site.folder, clients=CLIENTS, seconds=seconds, rate=RATE)
            shares = before.until(cpu.used(groups))
            conn.execute(BACKLOGS["W1"].last)
        if not arrived(BACKLOGS["W1"].arrived, stores, DEADLINE):
            raise BenchFailed(f"{whose}: not everything arrived within {DEADLINE:g} s: {mover.last_words()}")
        mover.stop()
        assert_equal(stores, whose)
        late = sorted(latencies(stores, since, _ARRIVALS if system == "native" else STAMPS))
        return {"tx/s": rate, "rows": len(late), **percentiles(late)}, shares


def latencies(stores: Stores, since: float, arrivals: LiteralString) -> list[float]:
    with connect(stores.source) as source, connect(stores.target) as target:
        here, there = dict(source.execute(STAMPS).fetchall()), dict(target.execute(arrivals).fetchall())
    return [(there[key] - at) * 1000 for key, at in here.items() if at >= since]


def percentiles(late: Sequence[float]) -> dict[str, float]:
    def at(share: float) -> float:
        return late[min(len(late) - 1, int(share * len(late)))]

    return {"p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": late[-1]}
