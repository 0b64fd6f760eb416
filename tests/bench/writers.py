"""What the writers lose: one-row inserts, or pgbench's TPC-B, as fast as they can, with nothing beside them, and with
each way of capturing.

Where a system moves the rows meanwhile it does so on the same two cores, and must catch up and be equal in the end.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.bench import schemas
from tests.bench.catchup import DEADLINE, arrived, warm
from tests.bench.load import TPC_B, write
from tests.bench.rows import assert_equal
from tests.bench.schemas import EXAMPLE, Schema
from tests.bench.site import Site, Stores, connect
from tests.bench.systems import KIND, NAMES, BenchFailed, Mover, moving
from tests.bench.workloads import BACKLOGS

WAYS = {
    "none": "no outbox",
    "rest": "outboxd: capture, daemon running",
    "capture": "outboxd: capture only",
    "notify": "capture + NOTIFY in each transaction",
    "native": "native replication",
    "batch": "script, batches of 500, running",
}
TPC_B_WAYS = ("none", "rest", "capture", "native")
TPC_B_CLIENTS = 8  # as many as it has branches
_STILL = {"none": "plain", "capture": "outboxd", "notify": "outboxd"}
_RING = """
create function ring_always() returns trigger language plpgsql as $$ begin perform pg_notify('always', ''); return null; end $$;
create trigger ring_always after insert on "Story" for each statement execute function ring_always();
"""


def writers(site: Site, way: str, seconds: Mapping[int, float]) -> dict[str, float]:
    """Transactions a second by number of clients; `seconds` says how many, and for how long."""
    if way in _STILL:
        with site.stores(_STILL[way]) as stores:
            if way == "notify":
                with connect(stores.source) as conn:
                    conn.execute(_RING)
            return _written(site, stores, seconds)
    with _moving(site, way, EXAMPLE) as stores:
        return _written(site, stores, seconds)


def tpc_b(site: Site, way: str, seconds: float) -> dict[str, float]:
    """Transactions a second: three updates, one of them of a hot row, a read and an insert."""
    opened = site.stores(_STILL[way], schemas.TPC_B) if way in _STILL else _moving(site, way, schemas.TPC_B)
    with opened as stores:
        write(stores, site.folder, clients=TPC_B_CLIENTS, seconds=1, script=TPC_B)
        site.settle()
        return {"tpc-b": write(stores, site.folder, clients=TPC_B_CLIENTS, seconds=seconds, script=TPC_B)}


@contextmanager
def _moving(site: Site, way: str, schema: Schema) -> Iterator[Stores]:
    """Stores whose rows are being moved; in the end all have arrived."""
    whose = f"{NAMES[way]}, W5"
    with site.stores(KIND[way], schema) as stores, moving(way, site, stores) as mover:
        warm(mover, stores, whose)
        mover.start()
        yield stores
        _drained(stores, mover, whose)


def _written(site: Site, stores: Stores, seconds: Mapping[int, float]) -> dict[str, float]:
    write(stores, site.folder, clients=8, seconds=1)
    rates = {}
    for number, lasting in seconds.items():
        site.settle()
        rates[str(number)] = write(stores, site.folder, clients=number, seconds=lasting)
    return rates


def _drained(stores: Stores, mover: Mover, whose: str) -> None:
    with connect(stores.source) as conn:
        conn.execute(BACKLOGS["W1"].last)
    if not arrived(BACKLOGS["W1"].arrived, stores, DEADLINE):
        raise BenchFailed(f"{whose}: not everything arrived within {DEADLINE:g} s: {mover.last_words()}")
    mover.stop()
    assert_equal(stores, whose)
