"""Where the bench happens: two clusters with every guarantee on, and for each measurement databases of its own.

Knows how they are set and what lies in them. Must not know what is measured.
"""

import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString

import psycopg

from daemon.demo.binaries import postgrest_binary
from daemon.demo.cluster import Cluster
from daemon.demo.supabase import prepare
from tests.acceptance.cli import Cli
from tests.bench.schemas import EXAMPLE, Schema
from tests.databases import Database, clone

# The same for every system, on both sides; the rest is as Postgres ships it. Commit timestamps are what latencies are
# taken from. Checkpoints are made by hand, before each clock starts, so that none falls into one system's time.
SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "wal_level": "logical",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "track_commit_timestamp": "on",
    "max_connections": "200",
}
_HERE = Path(__file__).parent
_MIRROR = """
alter table {} enable row level security;
grant select, insert, update, delete on {} to service_role;
"""
_NOTE = "create trigger note_change after insert or update or delete on {} for each row execute function note_change()"


@dataclass(frozen=True)
class Stores:
    """The two databases of one measurement, and the tables that are to be equal in the end."""

    source: Database
    target: Database
    tables: tuple[str, ...]


@dataclass(frozen=True)
class Site:
    folder: Path
    source: Cluster
    target: Cluster
    templates: dict[tuple[str, str], Stores] = field(default_factory=dict)

    @contextmanager
    def stores(self, kind: str, schema: Schema = EXAMPLE) -> Iterator[Stores]:
        """Fresh databases, as a system wants to find them: `plain`, `script` or `outboxd`."""
        which = kind, schema.name
        if which not in self.templates:
            self.templates[which] = _template(kind, schema, self.source, self.target)
        template = self.templates[which]
        with clone(template.source) as source, clone(template.target) as target:
            yield Stores(source, target, template.tables)

    def settle(self) -> None:
        """What building a backlog left to be written is written now, and in nobody's time."""
        for cluster in (self.source, self.target):
            cluster.execute("checkpoint")


@contextmanager
def opened(folder: Path, version: int | None = None) -> Iterator[Site]:
    postgrest_binary()  # before anything starts: raises MissingPostgrest
    with ExitStack() as stack:
        source, target = (
            Cluster.create(folder / side, version=version, settings=SETTINGS) for side in ("source", "target")
        )
        for cluster in (source, target):
            stack.callback(cluster.stop, "immediate")
            cluster.start()
        yield Site(folder, source, target)


def _template(kind: str, schema: Schema, source: Cluster, target: Cluster) -> Stores:
    name = f"{schema.name}_{kind}"
    stores = Stores(
        Database(source, f"{name}_source", "postgres"),
        Database(target, f"{name}_target", "supabase_owner"),
        schema.tables,
    )
    source.create_database(stores.source.name)
    target.create_database(stores.target.name)
    prepare(target, stores.target.name)
    stores.source.install("example_app.sql")
    stores.target.install("example_mirror.sql")
    _run(stores.source, "bench.sql")
    _run(stores.target, "mirror.sql")
    _add(stores, schema)
    if kind == "script":
        _run(stores.source, "script.sql")
        _each(stores.source, schema.tables, _NOTE)
    elif kind == "outboxd":
        _set_up(stores)
        if schema.script:  # both sides are equal already: nobody's warm-up shall copy them
            _each(stores.source, ("outbox.copy",), "delete from {}")
    return stores


def _add(stores: Stores, schema: Schema) -> None:
    if schema.script:
        for database in (stores.source, stores.target):
            with database.connect() as conn:
                conn.execute(schema.script.encode())
        _each(stores.target, schema.more, _MIRROR)


def _each(database: Database, tables: Sequence[str], statement: LiteralString) -> None:
    with database.connect() as conn:
        for table in tables:
            conn.execute(statement.replace("{}", table).encode())


def _set_up(stores: Stores) -> None:
    """As the README says, by the commands a person types."""
    outboxd = Cli({"source_dsn": stores.source.dsn, "target_dsn": stores.target.dsn})
    for command in (("setup", "source"), ("setup", "target"), ("watch", *stores.tables)):
        said = outboxd(*command)
        if said.code != 0:
            raise RuntimeError(f"outboxd {' '.join(command)} failed: {said.err}")


def _run(database: Database, file: str) -> None:
    with database.connect() as conn:
        conn.execute((_HERE / file).read_bytes())


def connect(database: Database) -> psycopg.Connection[Any]:
    """As superuser, to build, to look and to compare."""
    return psycopg.connect(database.superuser_dsn, autocommit=True, application_name="bench")


def machine(site: Site) -> dict[str, str]:
    """What a reader must know of the machine, and every setting that is not Postgres' own."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next(
        (line.partition(":")[2].strip() for line in cpu.splitlines() if line.startswith("model name")), "unknown"
    )
    memory = int(Path("/proc/meminfo").read_text(encoding="utf-8").split()[1]) // 1024
    with connect(Database(site.source, "postgres", "postgres")) as conn:
        ((server,),) = conn.execute("show server_version").fetchall()
    return {
        "cpu": f"{cpu.count('processor	:')} cores, {model}",
        "memory": f"{memory} MB",
        "system": platform.platform(),
        "python": platform.python_version(),
        "postgres": f"{server}, twice, on this machine, over loopback",
        "Data API": f"{_postgrest()} behind a bare asyncio relay, each a process of its own",
        "load before": Path("/proc/loadavg").read_text(encoding="utf-8").split()[0],
        "outboxd": "as shipped, but for verify_interval = 0; W7 and W11 with heartbeat_interval = 0, W7 beside it with it",
        "both clusters": ", ".join(f"{name} = {value}" for name, value in SETTINGS.items()),
    }


def _postgrest() -> str:
    asked = subprocess.run([postgrest_binary(), "--version"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "PostgREST"
