"""Two stores with one table a type, a real relay between them, and an exact comparison.

Knows the way from one store to the other and how to compare what arrived. Knows no type by name.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from daemon.breaker import Breaker, Thresholds
from daemon.progress import Timing
from daemon.relay import Relay
from daemon.source import Source
from daemon.target import Door, Target
from daemon.verification import Verification
from daemon.wakeup import Bell
from tests.databases import Database
from tests.silent import Silent

Connection = psycopg.Connection[Any]

# How both sides spell values while they are compared: every digit, whatever the servers are set to.
SPELLING = (
    "set datestyle = 'ISO, YMD'; set timezone = 'UTC'; set intervalstyle = 'iso_8601'; set extra_float_digits = 3; "
    "set bytea_output = 'hex'; set lc_monetary = 'C'; set xmloption = content; set array_nulls = on; set quote_all_identifiers = off; "
    "set search_path = public"
)


@dataclass
class Stores:
    """A source, a target, a relay that is driven by hand, and a connection to each side for looking."""

    source: Database
    target: Database
    door: Callable[[], Door]
    here: Connection = field(init=False)
    there: Connection = field(init=False)

    def __post_init__(self) -> None:
        self._runner = asyncio.Runner()
        self._open()

    def _open(self) -> None:
        self.here, self.there = self.source.connect(), self.target.connect()
        for conn in (self.here, self.there):
            conn.execute(SPELLING)
        self._runner.run(self._build())

    async def _build(self) -> None:
        self._source = Source(self.source.dsn)
        self._target = Target(self.door(), "main", Breaker("target", Thresholds()))
        self._relay = Relay(self._source, self._target, Bell(self.source.dsn), Silent(), Timing())
        self._relay.lead()

    def reconnect(self) -> None:
        """A new relay and new connections, which meet settings made since."""
        self._close()
        self._open()

    def close(self) -> None:
        self._close()
        self._runner.close()

    def _close(self) -> None:
        self._runner.run(self._source.close())
        self._runner.run(self._target.close())
        self.here.close()
        self.there.close()

    def both(self, statement: str) -> None:
        """The same DDL on both sides."""
        for conn in (self.here, self.there):
            conn.execute(statement.encode())

    def mirror(self, tables: Iterable[str]) -> None:
        """Watch them here and map them there."""
        with self.here.transaction(), self.there.transaction():
            for table in tables:
                self.here.execute("select outbox.watch(%s)", (table,))
                self.there.execute("select outboxd.map(%s)", (table,))

    def carry(self) -> int:
        """Bring everything over, and do what was asked for; how many changes that were."""
        self._relay.verifier.ring()
        return self._runner.run(self._relay.drain())

    def verifications(self) -> Mapping[str, Verification]:
        """What the passes through the tables have found."""
        return self._relay.verifier.records

    def compared_as_rows(self) -> set[str]:
        """Tables of which digests say nothing."""
        return self._relay.verifier._by_rows

    def assert_equal(self, tables: Iterable[str], *, order: str = "id") -> int:
        """Every row of every column, to the last byte; returns how many rows there were."""
        found = 0
        for table in tables:
            query = f"copy (select * from {table} order by {order}) to stdout"
            here, there = dump(self.here, query), dump(self.there, query)
            assert there == here, f"{table}: {first_difference(here, there)}"
            found += here.count(b"\n")
        return found

    def bring_back(self, table: str) -> None:
        """The target's rows, into schema `back` beside the source's."""
        self.here.execute(sql.SQL("truncate back.{}").format(sql.Identifier(table)))
        into = sql.SQL("copy back.{} from stdin").format(sql.Identifier(table))
        with self.here.cursor() as cursor, cursor.copy(into) as copy:
            copy.write(dump(self.there, f"copy public.{table} to stdout"))

    def distinct(self, table: str, columns: Sequence[str]) -> list[int]:
        """Rows that are not there, or that Postgres itself would not call the same."""
        self.bring_back(table)
        differs = " or ".join(f"t.{column} is distinct from b.{column}" for column in columns)
        query = f"select coalesce(t.id, b.id) from public.{table} t full join back.{table} b on b.id = t.id where t.id is null or b.id is null or {differs}"
        return [number for (number,) in self.here.execute(query.encode())]


def dump(conn: Connection, query: str) -> bytes:
    """What COPY writes."""
    with conn.cursor() as cursor, cursor.copy(query.encode()) as copy:
        return b"".join(bytes(block) for block in copy)


def first_difference(here: bytes, there: bytes) -> str:
    """For a person: the first lines that differ, shortened."""
    ours, theirs = here.splitlines(), there.splitlines()
    for one, other in zip(ours, theirs, strict=False):
        if one != other:
            return f"{one[:300]!r} became {other[:300]!r}"
    return f"{len(ours)} rows became {len(theirs)}"


@contextmanager
def stores(source: Database, target: Database, door: Callable[[], Door]) -> Iterator[Stores]:
    """Closed again at the end."""
    made = Stores(source, target, door)
    try:
        yield made
    finally:
        made.close()
