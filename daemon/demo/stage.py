"""The demo's stage: an application's Postgres, a Supabase project, and outboxd between them.

Knows how to set it up, take Supabase away, bring it back and clear everything. Must not know the story.
"""

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg

from daemon import schema_apply
from daemon.demo.binaries import postgrest_binary, shared_folder
from daemon.demo.child import Outboxd
from daemon.demo.cluster import Cluster
from daemon.demo.supabase import EmbeddedSupabase, demo_sql, prepare
from daemon.tables import TableSettings
from outbox.migrations import migrate

TABLES = ('public."Story"', 'public."Scenario"', 'public."Prompt"', 'public."VideoAsset"')
AUDIENCE = {'public."Story"': TableSettings(access="public_read")}
_APP, _PROJECT, _OWNER = "app", "project", "supabase_owner"


class Stage:
    """Built step by step; `close` takes down whatever stands, in any state, and removes the folder."""

    def __init__(self, transport: str) -> None:
        if transport == "rest":
            postgrest_binary()  # before anything starts: raises MissingPostgrest
        self.transport = transport
        self.folder: Path = shared_folder("outboxd-demo-")
        self._stack = ExitStack()
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.source: Cluster
        self.target: Cluster
        self.outboxd: Outboxd
        self.supabase: EmbeddedSupabase | None = None

    def close(self) -> None:
        self._stack.close()

    @property
    def source_dsn(self) -> str:
        return self.source.dsn(_APP)

    @property
    def target_dsn(self) -> str:
        return self.target.dsn(_PROJECT, _OWNER)

    def raise_source(self) -> None:
        """The application's database with its tables and, on top, outboxd's side; as `outboxd setup source`."""
        self.source = self._cluster("source")
        self.source.create_database(_APP)
        with connect(self.source_dsn) as conn:
            conn.execute(demo_sql("example_app.sql"))
            migrate(conn, "source")

    def raise_target(self) -> None:
        """An empty Supabase project, as `outboxd setup target` leaves it; PostgREST when it is to be used."""
        self.target = self._cluster("target")
        self.target.create_database(_PROJECT)
        prepare(self.target, _PROJECT)
        with connect(self.target_dsn) as conn:
            migrate(conn, "target")
        if self.transport == "rest":
            self.supabase = EmbeddedSupabase(self.target, _PROJECT, self.folder)
            self._stack.callback(self.supabase.stop)
            self.supabase.start()

    def watch(self) -> None:
        """As `outboxd watch` does, on the source."""
        with connect(self.source_dsn) as conn:
            for table in TABLES:
                conn.execute("select outbox.watch(%s::regclass)", (table,))

    def apply_schema(self) -> int:
        """As `outboxd schema apply` does: the same tables on the target. Returns how many steps that took."""
        return len(schema_apply.apply(self.source_dsn, self.target_dsn, AUDIENCE).steps)

    def start_outboxd(self) -> Outboxd:
        self.outboxd = Outboxd(self.folder, {"source_dsn": self.source_dsn, **self._way_to_target()})
        self._stack.callback(self.outboxd.stop)
        self.outboxd.start()
        if not self.outboxd.answering():
            raise RuntimeError(f"outboxd did not start: {self.outboxd.last_words()}")
        return self.outboxd

    def start_verify(self) -> Outboxd:
        """`outboxd verify`, beside the daemon; it ends by itself."""
        command = Outboxd(self.folder, {"source_dsn": self.source_dsn, **self._way_to_target()}, name="verify")
        self._stack.callback(command.stop)
        command.start(("verify",))
        return command

    def take_supabase_away(self) -> None:
        if self.supabase:
            self.supabase.stop_postgrest()
        else:
            self.target.stop()

    def bring_supabase_back(self) -> None:
        if self.supabase:
            self.supabase.start_postgrest()
        else:
            self.target.start()

    def _way_to_target(self) -> dict[str, str]:
        if self.supabase:
            return {"supabase_url": self.supabase.url, "supabase_key": self.supabase.secret_key}
        return {"transport": "postgres", "target_dsn": self.target_dsn}

    def _cluster(self, name: str) -> Cluster:
        cluster = Cluster.create(self.folder / name)
        # Nobody will want to read what it wrote: no need to write its last checkpoint.
        self._stack.callback(cluster.stop, "immediate")
        cluster.start()
        return cluster


def connect(dsn: str) -> psycopg.Connection[Any]:
    return psycopg.connect(dsn, autocommit=True)
