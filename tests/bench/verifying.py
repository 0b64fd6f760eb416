"""Verification (W11): how fast a table is compared, how soon differences are found and repaired, what it costs others.

Beside it what people do by hand: COPY … TO of both tables, ordered by key, each into md5. That says whether they
differ, of tables that nobody writes to meanwhile; not where, nor how to mend it.
"""

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from psycopg import sql

from daemon.demo.process import poll_until
from tests.bench import cpu
from tests.bench.alone import SILENT
from tests.bench.bill import sent
from tests.bench.bulk import ROWS
from tests.bench.catchup import warm
from tests.bench.load import write
from tests.bench.rows import assert_equal
from tests.bench.site import Site, Stores, connect
from tests.bench.steady import CLIENTS, RATE, latencies, percentiles
from tests.bench.systems import KIND, NAMES, BenchFailed, Daemon, moving

HAND = "md5"
DRIFT = 1000
_LOOK = 0.005  # seconds
_COPY = 'copy (select * from "Story" order by "id") to stdout'
_COUNT = 'select count(*) from "Story"'
_ASK = """select outbox.ask_verification('public."Story"', %s)"""
_RECORD = """select state, missing + different + extra, repaired, rows from outboxd.verification where table_name = 'public."Story"' and wish >= %s"""
_DRIFT = (
    """delete from "Story" where "id" in (select "id" from "Story" where "title" like 'The L%' order by md5('a' || "id"::text) limit 400)""",
    """update "Story" set "title" = 'other' where "id" in (select "id" from "Story" order by md5('b' || "id"::text) limit 300)""",
    """insert into "Story" select md5('extra ' || k)::uuid, "title", "authorEmail", "isPublic", "tags", "settings", "createdAt", "updatedAt"
         from (select * from "Story" limit 1) s, generate_series(1, 300) k""",
)
_BY_THE_CLOCK = {"verify_interval": "86400", "verify_rows_per_second": "2000", **SILENT}


def verifying(
    site: Site, systems: Sequence[str], rows: int, seconds: float, deadline: float
) -> dict[str, dict[str, float]]:
    """Numbers by system, and of the way by hand. `seconds`: how long latencies and processors are looked at each time."""
    found: dict[str, dict[str, float]] = {system: {} for system in (HAND, *systems)}
    with site.stores(KIND["rest"]) as stores:
        _fill(stores, rows)
        for system in systems:
            with _leading(system, site, stores, warmed=system != systems[0]) as daemon:
                site.settle()
                found[system] |= _compared(daemon, stores, deadline)
        found[HAND]["rate"] = _by_hand(stores, found[systems[0]]["rows"])
        with _leading(systems[0], site, stores) as daemon:
            found[systems[0]] |= _repaired(daemon, stores, deadline)
            found[systems[0]] |= _beside(daemon, site, stores, seconds)
        assert_equal(stores, f"{NAMES[systems[0]]}, W11")
        found[systems[0]] |= _paced(systems[0], site, stores, seconds)
    return found


def _paced(system: str, site: Site, stores: Stores, seconds: float) -> dict[str, float]:
    """What a pass by the clock costs: percent of a core by process, and requests a second. (With none: W7.)"""
    with connect(stores.source) as source, connect(stores.target) as target:  # never verified, asked for by nobody
        source.execute("delete from outbox.verification")
        target.execute("delete from outboxd.verification")
    with _leading(system, site, stores, _BY_THE_CLOCK) as daemon:
        time.sleep(1.0)  # whoever starts is busy with itself
        before = sent(daemon).requests
        groups = {"source": site.source.pid, "target": site.target.pid, **daemon.groups}
        used = cpu.used(groups)
        time.sleep(seconds)
        shares = used.until(cpu.used(groups))
        asked = {"paced requests": (sent(daemon).requests - before) / seconds}
        return asked | {f"paced {group}": share * 100 for group, share in shares.items()}


def _fill(stores: Stores, rows: int) -> None:
    """Equal rows on both sides, of which no change is recorded and no copy is wanted."""
    with connect(stores.source) as source, connect(stores.target) as target:
        source.execute("""select outbox.unwatch('public."Story"')""")
        source.execute(sql.SQL('insert into "Story" {}').format(sql.SQL(ROWS).format(sql.Literal(rows))))
        with (
            source.cursor().copy('copy "Story" to stdout') as out,
            target.cursor().copy('copy "Story" from stdin') as taken,
        ):
            for block in out:
                taken.write(block)
        source.execute("""select outbox.watch('public."Story"')""")
        source.execute("delete from outbox.copy")
        for conn in (source, target):
            conn.execute('vacuum analyze "Story"')


@contextmanager
def _leading(
    system: str, site: Site, stores: Stores, settings: Mapping[str, str] | None = None, *, warmed: bool = True
) -> Iterator[Daemon]:
    with moving(system, site, stores, settings=settings or SILENT) as mover:
        assert isinstance(mover, Daemon)
        if not warmed:
            warm(mover, stores, f"{NAMES[system]}, W11")
        mover.start()
        yield mover
        mover.stop()


def _pass(daemon: Daemon, stores: Stores, deadline: float, *, repair: bool = False) -> dict[str, float]:
    """One pass through the table that is asked for now, and what it has found."""
    with connect(stores.source) as source, connect(stores.target) as target:
        began = time.monotonic()
        ((wish,),) = source.execute(_ASK, (repair,)).fetchall()
        while time.monotonic() < began + deadline:
            for state, drift, repaired, rows in target.execute(_RECORD, (wish,)).fetchall():
                if state == "done":
                    seconds = time.monotonic() - began
                    return {"seconds": seconds, "drift": drift, "repaired": repaired, "rows": rows}
                if state == "failed":
                    raise BenchFailed(f"W11: verification failed: {daemon.last_words()}")
            time.sleep(_LOOK)
    raise BenchFailed(f"W11: the table was not compared within {deadline:g} s: {daemon.last_words()}")


def _compared(daemon: Daemon, stores: Stores, deadline: float) -> dict[str, float]:
    _pass(daemon, stores, deadline)  # the ranges find their size
    before = sent(daemon)
    done = _pass(daemon, stores, deadline)
    if done["drift"]:
        raise BenchFailed(f"W11: {done['drift']:g} rows of equal tables were said to differ")
    rows, after = done["rows"], sent(daemon)
    return {"rows": rows, "rate": rows / done["seconds"], **after.since(before, rows)}


def _by_hand(stores: Stores, rows: float) -> float:
    """Rows a second: one side, then the other."""
    began, sums = time.monotonic(), set[str]()
    for database in (stores.source, stores.target):
        said = hashlib.md5(usedforsecurity=False)
        with connect(database) as conn:
            conn.execute("set timezone = 'UTC'")
            with conn.cursor().copy(_COPY) as out:
                for block in out:
                    said.update(block)
        sums.add(said.hexdigest())
    if len(sums) > 1:
        raise BenchFailed("W11: COPY … TO | md5 says that equal tables differ")
    return rows / (time.monotonic() - began)


def _repaired(daemon: Daemon, stores: Stores, deadline: float) -> dict[str, float]:
    with connect(stores.target) as conn:
        for statement in _DRIFT:
            conn.execute(statement.encode())
    found = _pass(daemon, stores, deadline)
    mended = _pass(daemon, stores, deadline, repair=True)
    if (found["drift"], mended["drift"], mended["repaired"]) != (DRIFT, 0, DRIFT):
        raise BenchFailed(
            f"W11: of {DRIFT} differences {found['drift']:g} were found and {mended['repaired']:g} repaired"
        )
    return {"found in": found["seconds"], "repaired in": mended["seconds"]}


def _beside(daemon: Daemon, site: Site, stores: Stores, seconds: float) -> dict[str, float]:
    """Milliseconds from commit to commit at a steady rate: with no pass, and while one follows the other."""
    late: dict[str, list[float]] = {"alone": [], "beside": []}
    compared = 0.0
    for _ in range(2):  # in turn: a bad moment of the machine hits both
        late["alone"] += _late(daemon, site, stores, seconds / 2)
        over = threading.Event()
        with ThreadPoolExecutor(1) as asking:
            asked = asking.submit(_asking, daemon, stores, over)
            try:
                late["beside"] += _late(daemon, site, stores, seconds / 2)
            finally:
                over.set()
            compared += asked.result()
    shown = {name: percentiles(sorted(found)) for name, found in late.items()}
    return {f"{value} {name}": ms for name, found in shown.items() for value, ms in found.items()} | {
        "rows beside": compared
    }


def _asking(daemon: Daemon, stores: Stores, over: threading.Event) -> float:
    """One pass after the other; how many rows were compared."""
    rows = 0.0
    while not over.is_set():
        done = _pass(daemon, stores, 60.0)
        if done["drift"]:
            raise BenchFailed(f"W11: {done['drift']:g} rows in flight were said to differ")
        rows += done["rows"]
    return rows


def _late(daemon: Daemon, site: Site, stores: Stores, seconds: float) -> list[float]:
    write(stores, site.folder, clients=CLIENTS, seconds=1, rate=RATE)  # not counted: whoever starts is slow
    with connect(stores.source) as source, connect(stores.target) as target:
        ((since,),) = source.execute("select extract(epoch from clock_timestamp())::float8").fetchall()
        write(stores, site.folder, clients=CLIENTS, seconds=seconds, rate=RATE)
        wanted = source.execute(_COUNT).fetchall()
        if not poll_until(lambda: target.execute(_COUNT).fetchall() == wanted, 60.0):
            raise BenchFailed(f"W11: not everything arrived within 60 s: {daemon.last_words()}")
    return latencies(stores, since)
