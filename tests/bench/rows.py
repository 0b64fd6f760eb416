"""Are both stores equal? Asked after every measurement, of every row: its count and the sum of all rows' hashes.

Only when they differ are the rows fetched and their keys named.
"""

from psycopg import sql

from daemon.demo.compare import compare
from tests.bench.site import Stores, connect
from tests.bench.systems import BenchFailed

_SPELLING = "set timezone = 'UTC'; set datestyle = 'ISO, YMD'; set extra_float_digits = 1"
_SUM = "select count(*), coalesce(sum(('x' || left(md5(t::text), 16))::bit(64)::int8::numeric), 0)::text from {} t"


def assert_equal(stores: Stores, whose: str) -> int:
    """How many rows both have; fails loudly when they are not the same ones."""
    rows = 0
    with connect(stores.source) as source, connect(stores.target) as target:
        for table in stores.tables:
            name = sql.Identifier(*(part.strip('"') for part in table.split(".")))
            sums = []
            for conn in (source, target):
                conn.execute(_SPELLING)
                sums += conn.execute(sql.SQL(_SUM).format(name)).fetchall()
            if sums[0] != sums[1]:
                found = compare(source, target, table)
                raise BenchFailed(
                    f"{whose}: the rows of {table} differ at the end: {found.source_rows} on the source, "
                    f"{found.target_rows} on the target; {len(found.missing)} missing, {len(found.extra)} extra, "
                    f"{len(found.different)} different, such as {[*found.missing, *found.extra, *found.different][:3]}"
                )
            rows += int(sums[0][0])
    return rows
