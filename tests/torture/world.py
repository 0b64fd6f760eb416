"""The world of a run: a bank's Postgres, a Supabase project, both of its own; the daemons between them.

Knows how it is put together and taken down. Must not know what happens in it.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from daemon.demo.binaries import postgrest_binary
from daemon.demo.cluster import Cluster
from daemon.demo.supabase import EmbeddedSupabase
from tests.canaries import planted
from tests.databases import SETTINGS, Database, source_template, target_template
from tests.torture.fleet import Fleet
from tests.torture.ledger import Ledger
from tests.torture.writers import ACCOUNTS, TOTAL, Writer, populate

WRITERS = 5
_HERE = Path(__file__).parent
_TABLES = ("public.checking", "public.savings", "public.list", "public.receipt")
# A crash must not take long to recover from, however long the run.
_CLUSTER = {**SETTINGS, "checkpoint_timeout": "30s"}
_MINE = "torture"  # application_name of whoever looks on


class World:
    """Made by `raised`. Canaries are planted in rows and passwords: no log may ever show one."""

    def __init__(self, folder: Path, seed: int, version: int | None, stack: ExitStack) -> None:
        postgrest_binary()  # before anything starts: raises MissingPostgrest
        self.folder = folder
        self.stopped = threading.Event()
        self.ledger = Ledger()
        self.row_canary, self.password = planted("row"), planted("password")
        self.source = stack.enter_context(Cluster.create(folder / "source", version=version, settings=_CLUSTER))
        self.target = stack.enter_context(Cluster.create(folder / "target", version=version, settings=_CLUSTER))
        self.bank, self.mirror = source_template(self.source), target_template(self.target)
        self._install()
        self.supabase = stack.enter_context(EmbeddedSupabase(self.target, self.mirror.name, folder))
        self.fleet = Fleet(folder, self._ways(), str(seed))
        self.writers = [
            Writer(number, self.bank.dsn, self.ledger, str(seed), self.row_canary, durable=number > 0)
            for number in range(WRITERS)
        ]

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no log may show, beside the canaries."""
        keys = self.supabase.keys
        return keys.secret, keys.jwt_secret, keys.service_jwt

    def connect(self, database: Database, **options: Any) -> psycopg.Connection[Any]:
        """As superuser, to look on or to interfere."""
        return psycopg.connect(
            database.superuser_dsn, autocommit=True, connect_timeout=10, application_name=_MINE, **options
        )

    def wait(self, seconds: float) -> None:
        """Let it happen; the end of the run cuts it short."""
        self.stopped.wait(seconds)

    @contextmanager
    def source_in_trouble(self) -> Iterator[None]:
        """Meanwhile writers may lose their connections."""
        self.ledger.trouble(begins=True)
        try:
            yield
        finally:
            self.ledger.trouble(begins=False)

    def _install(self) -> None:
        with self.bank.connect(autocommit=False) as conn:
            conn.execute((_HERE / "bank.sql").read_bytes())
        with self.bank.connect() as conn:
            for table in _TABLES:
                conn.execute("select outbox.watch(%s::regclass)", (table,))
        with self.mirror.connect(autocommit=False) as conn:
            witness(conn)
            for table in _TABLES:
                conn.execute("select outboxd.map(%s::regclass)", (table,))
        with self.bank.connect(autocommit=False) as conn:
            populate(conn)

    def _ways(self) -> dict[str, dict[str, str]]:
        rest = {"supabase_url": self.supabase.url, "supabase_key": self.supabase.secret_key}
        direct = {"transport": "postgres", "target_dsn": self._with_password(self.mirror.dsn)}
        source = {"source_dsn": self._with_password(self.bank.dsn)}
        return {"rest": {**source, **rest}, "postgres": {**source, **direct}}

    def _with_password(self, dsn: str) -> str:
        return dsn.replace("@", f":{self.password}@")


def witness(conn: psycopg.Connection[Any]) -> None:
    """The bank's tables on the target, and what looks on there."""
    for file in ("bank.sql", "witness.sql"):
        conn.execute((_HERE / file).read_bytes())
    conn.execute(
        "create trigger balanced after update on outboxd.cursor for each row"
        f" when (new.batch_no <> old.batch_no) execute function torture.balanced({2 * ACCOUNTS}, {TOTAL})".encode()
    )


@contextmanager
def raised(folder: Path, seed: int, version: int | None = None) -> Iterator[World]:
    """A world with writers and a daemon at work; whatever happened, nothing is left of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        world = World(folder, seed, version, stack)
        stack.callback(world.fleet.stop)
        stack.callback(_halt, world)
        world.fleet.start()
        for writer in world.writers:
            writer.start()
        yield world


def _halt(world: World) -> None:
    world.stopped.set()
    halt_writers(world)


def halt_writers(world: World) -> None:
    """Each finishes the transaction in hand."""
    for writer in world.writers:
        writer.stop()
    for writer in world.writers:
        writer.join()
