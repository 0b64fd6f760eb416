"""A tenant who means no good beside a neighbour: each has a table, and one daemon carries both."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from daemon.demo.child import Outboxd
from tests.databases import Database
from tests.waiting import wait_until

# What the tenant's table is called is its own; the neighbour's is `item`.
ITEM = "create table item (id int primary key, n int)"


@dataclass(eq=False)
class Tenants:
    """Two stores, and the process between them. `start`: as the fixture of that name; `settings` are the process' own."""

    source: Database
    target: Database
    settings: Mapping[str, str]
    start: Callable[..., Outboxd]
    last: int = field(init=False, default=0)  # the neighbour's newest row
    _connections: list[psycopg.Connection[Any]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.tenant, self.mirror = self.source.connect(), self.target.connect()
        self._connections += [self.tenant, self.mirror]
        self.both(ITEM, "item")

    def both(self, ddl: str, table: str, *, there: str | None = None) -> None:
        """A table that is watched here and mapped there (`there`: as other DDL makes it)."""
        self.tenant.execute(ddl.encode())
        self.tenant.execute("select outbox.watch(%s)", (table,))
        self.mirror.execute((there or ddl).encode())
        self.mirror.execute("select outboxd.map(%s::regclass)", (table,))

    def run(self, **settings: str) -> Outboxd:
        """The process, once it leads and what was there has arrived."""
        outboxd = self.start({**self.settings, **settings})
        self.flows()
        return outboxd

    def flows(self, deadline: float = 30.0) -> None:
        """The neighbour's next row arrives."""
        self.last += 1
        self.tenant.execute("insert into item values (%s, 1)", (self.last,))
        wait_until(lambda: self.there("select count(*) from item where id = %s", self.last) == [(1,)], deadline)

    def here(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of a query on the source."""
        return self.tenant.execute(statement.encode(), parameters or None).fetchall()

    def there(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of a query on the target."""
        return self.mirror.execute(statement.encode(), parameters or None).fetchall()

    def held(self) -> list[tuple[Any, ...]]:
        """Keys that the target holds: table and length."""
        return self.there("select table_name, octet_length(key) from outboxd.held order by 1, 2")

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


def resident(outboxd: Outboxd) -> int:
    """The most memory that the process has had, in MB."""
    status = Path(f"/proc/{outboxd.pid}/status").read_text("utf-8")
    (peak,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) // 1024
