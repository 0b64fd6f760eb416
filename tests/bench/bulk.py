"""Bulk statements, with capture and without: INSERT … SELECT, and COPY from a file of the server's."""

import time

from psycopg import sql

from tests.bench.site import Site, connect

ROWS = """
select gen_random_uuid() as "id", 'The Lighthouse at the End of the Pier, part ' || k as "title", 'writer' || k % 1000 || '@example.com' as "authorEmail",
       k % 2 = 0 as "isPublic", array['drama', 'harbour', 'night'] as "tags", bench.settings(k) as "settings",
       clock_timestamp() as "createdAt", clock_timestamp() as "updatedAt"
  from generate_series(1, {}) k
"""


def bulk(site: Site, kind: str, rows: int) -> dict[str, float]:
    """Rows a second by statement; `kind` is the template: `plain`, or `outboxd` with nothing running."""
    made = sql.SQL(ROWS).format(sql.Literal(rows))
    file = sql.Literal(str(site.source.folder / "bulk.copy"))
    rates = {}
    with site.stores(kind) as stores, connect(stores.source) as conn:
        conn.execute("call bench.warm(200)")
        conn.execute(sql.SQL("copy ({}) to {}").format(made, file))
        site.settle()
        for name, statement in (
            ("insert", sql.SQL('insert into "Story" {}').format(made)),
            ("copy", sql.SQL('copy "Story" from {}').format(file)),
        ):
            began = time.monotonic()
            conn.execute(statement)
            rates[name] = rows / (time.monotonic() - began)
    return rates
