"""The first copy of a table: rows a second, beside COPY … TO | COPY … FROM between the same two databases."""

import time

from psycopg import sql

from tests.bench import cpu
from tests.bench.bill import NOTHING, sent
from tests.bench.bulk import ROWS
from tests.bench.catchup import arrived, warm
from tests.bench.rows import assert_equal
from tests.bench.site import Site, Stores, connect
from tests.bench.systems import KIND, NAMES, BenchFailed, Daemon, moving

PIPE = "copy"
_DONE = """select coalesce((select state = 'done' from outboxd.copy where table_name = 'public."Story"'), false)"""


def copying(site: Site, way: str, rows: int, deadline: float) -> tuple[dict[str, float], dict[str, float]]:
    """`way` is a system of outboxd's, or the pipe. With shares of the processor by group."""
    clusters = {"source": site.source.pid, "target": site.target.pid}
    if way == PIPE:
        with site.stores("plain") as stores:
            _fill(stores, rows)
            site.settle()
            before = cpu.used(clusters)
            began = time.monotonic()
            _pipe(stores)
            seconds = time.monotonic() - began
            shares = before.until(cpu.used(clusters))
            assert_equal(stores, "COPY … TO | COPY … FROM, W10")
        return {"rows": rows, "rate": rows / seconds}, shares
    whose = f"{NAMES[way]}, W10"
    with site.stores(KIND[way]) as stores, moving(way, site, stores) as mover:
        assert isinstance(mover, Daemon)
        warm(mover, stores, whose)
        with connect(stores.source) as conn:
            conn.execute("""select outbox.unwatch('public."Story"')""")
            _fill(stores, rows)
            conn.execute("""select outbox.watch('public."Story"')""")
        site.settle()
        began = mover.start()
        groups = {**clusters, **mover.groups}
        before = cpu.used(groups)
        if not arrived(_DONE, stores, deadline):
            raise BenchFailed(f"{whose}: {rows} rows were not copied within {deadline:g} s: {mover.last_words()}")
        seconds = time.time() - began
        shares = before.until(cpu.used(groups))
        bill = sent(mover).since(NOTHING, rows)
        mover.stop()
        return {"rows": assert_equal(stores, whose), "rate": rows / seconds, **bill}, shares


def _fill(stores: Stores, rows: int) -> None:
    with connect(stores.source) as conn:
        conn.execute(sql.SQL('insert into "Story" {}').format(sql.SQL(ROWS).format(sql.Literal(rows))))
        conn.execute('analyze "Story"')


def _pipe(stores: Stores) -> None:
    with (
        connect(stores.source) as source,
        connect(stores.target) as target,
        source.cursor().copy('copy "Story" to stdout') as out,
        target.cursor().copy('copy "Story" from stdin') as taken,
    ):
        for block in out:
            taken.write(block)
