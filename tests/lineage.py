"""Sources that part ways: a standby promoted, a server restored to an earlier moment, a disk image put back."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psycopg
import pytest

from daemon.demo.cluster import Cluster
from tests.databases import SETTINGS, Database, source_template
from tests.pairs import Pair, run
from tests.waiting import wait_until

PATIENCE = 60.0  # seconds: servers start and catch up beside other tests

_numbers = count(1)


@dataclass
class Lineage:
    """A source of its own that a test may copy, and a target; `pair` is what the relay sees now."""

    folder: Path
    pair: Pair
    _started: list[Cluster]

    @property
    def cluster(self) -> Cluster:
        return self.pair.source.cluster

    def write(self, *statements: str) -> None:
        self.pair.write(*statements)

    def insert(self, *ids: int) -> None:
        """Each row in a transaction of its own."""
        for each in ids:
            self.write(f"insert into t values ({each}, 'written')")

    def ids(self) -> tuple[list[int], list[int]]:
        """Source first."""
        source, target = self.pair.rows("select id from t order by id")
        return [row[0] for row in source], [row[0] for row in target]

    def turn_to(self, cluster: Cluster) -> None:
        """From now on this is the source."""
        self.pair = Pair(Database(cluster, self.pair.source.name, "postgres"), self.pair.target)

    def backup(self) -> Cluster:
        made = self.cluster.backup(self.folder / f"copy-{next(_numbers)}")
        self._started.append(made)
        return made

    def standby(self) -> Cluster:
        """A hot standby that follows."""
        made = self.backup()
        made.configure({"primary_conninfo": f"host=127.0.0.1 port={self.cluster.port} user=postgres"})
        (made.data / "standby.signal").touch(mode=0o666)
        made.start()
        self.followed(made)
        return made

    def followed(self, standby: Cluster) -> None:
        """Wait until the standby has replayed all of the log."""
        with (
            psycopg.connect(self.cluster.dsn()) as primary,
            psycopg.connect(standby.dsn(), autocommit=True) as follower,
        ):
            reached = value(primary, "select pg_current_wal_flush_lsn()::text")
            wait_until(lambda: value(follower, f"select pg_last_wal_replay_lsn() >= '{reached}'") is True, PATIENCE)

    def cut(self, standby: Cluster) -> None:
        """The standby hears no more of its primary."""
        with psycopg.connect(standby.dsn(), autocommit=True) as follower:
            run(follower, "alter system set primary_conninfo = ''", "select pg_reload_conf()")
            wait_until(lambda: value(follower, "select count(*) from pg_stat_wal_receiver") == 0, PATIENCE)

    def promote(self, standby: Cluster) -> None:
        """The primary is gone for good; the standby takes over."""
        self.cluster.stop("immediate")
        with psycopg.connect(standby.dsn(), autocommit=True) as follower:
            run(follower, "select pg_promote()")
        self.turn_to(standby)

    def restore(self, backup: Cluster, point: str) -> None:
        """Point-in-time recovery: the backup and the log up to a named point; the server before is gone."""
        backup.configure(
            {
                "restore_command": f"cp '{self.cluster.data}/pg_wal/%f' '%p'",
                "recovery_target_name": point,
                "recovery_target_action": "promote",
            }
        )
        (backup.data / "recovery.signal").touch(mode=0o666)
        self.cluster.stop()
        backup.start()
        with psycopg.connect(backup.dsn(), autocommit=True) as restored:
            wait_until(lambda: value(restored, "select pg_is_in_recovery()") is False, PATIENCE)
        self.turn_to(backup)

    def name_this_moment(self, point: str) -> None:
        self.write(f"select pg_create_restore_point('{point}')")

    def image(self) -> Path:
        """A cold copy of the disk."""
        self.cluster.stop()
        kept = self.folder / f"image-{next(_numbers)}"
        _copy(self.cluster.data, kept)
        self.cluster.start()
        return kept

    def put_back(self, image: Path) -> None:
        self.cluster.stop()
        self.cluster.data.rename(self.folder / f"lost-{next(_numbers)}")
        _copy(image, self.cluster.data)
        self.cluster.start()

    def dump_into_new(self) -> None:
        """Another cluster, filled from a dump of this one, which is gone then."""
        made = new_cluster(self.folder / f"new-{next(_numbers)}", self.cluster.version)
        self._started.append(made)
        made.start()
        name = self.pair.source.name
        made.create_database(name)
        programs = self.cluster.installed
        dump = [str(programs / "pg_dump"), "-h", "127.0.0.1", "-p", str(self.cluster.port), "-U", "postgres", name]
        text = subprocess.run(dump, check=True, capture_output=True).stdout
        load = [
            str(programs / "psql"),
            "-h",
            "127.0.0.1",
            "-p",
            str(made.port),
            "-U",
            "postgres",
            "-Xqv",
            "ON_ERROR_STOP=1",
            name,
        ]
        subprocess.run(load, check=True, input=text, capture_output=True)
        self.cluster.stop()
        self.turn_to(made)

    def spend(self, transactions: int) -> None:
        """Let the source's transaction ids run on; nothing is written to the outbox."""
        with psycopg.connect(self.pair.source.dsn, autocommit=True) as conn:
            for _ in range(transactions):
                run(conn, "select pg_current_xact_id()")
            run(conn, "select pg_logical_emit_message(true, '', '')")  # on disk, all of them


def value(conn: psycopg.Connection[tuple[object, ...]], statement: str) -> object:
    row = conn.execute(statement.encode()).fetchone()
    return row[0] if row else None


def new_cluster(folder: Path, version: int | None) -> Cluster:
    # The log must survive its server, and be there for others to read.
    return Cluster.create(
        folder, version=version, settings={**SETTINGS, "wal_keep_size": "64MB", "max_wal_senders": "4"}
    )


@contextmanager
def lineage(folder: Path, version: int | None, target: Database) -> Iterator[Lineage]:
    """A source with table t (id, what), watched, and the same on the target."""
    here = folder / f"lineage-{next(_numbers)}"
    first = new_cluster(here / "first", version)
    if not (first.installed / "pg_basebackup").exists():
        pytest.skip("this PostgreSQL comes without pg_basebackup")
    started = [first]
    try:
        first.start()
        made = Lineage(here, Pair(source_template(first), target), started)
        made.pair.create("create table t (id int primary key, what text not null)", "t")
        yield made
    finally:
        for cluster in started:
            cluster.stop("immediate")


def _copy(data: Path, into: Path) -> None:
    subprocess.run(["cp", "-a", data, into], check=True)  # keeps whom it belongs to
