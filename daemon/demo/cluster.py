"""An embedded Postgres cluster on loopback: made, started, stopped, crashed, frozen.

Knows initdb, the postmaster and its signals. Must not know Supabase, nor anything of outboxd's schema.
Trust authentication is enough: it listens on 127.0.0.1 only and holds nothing but the demo's and the tests'
rows.
"""

import atexit
import os
import pwd
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, LiteralString, Self

import psycopg
from psycopg import sql

from daemon.demo.binaries import (
    MissingPostgres,
    binaries,
    library_path,
    readable_copy,
    server_version,
    shared_folder,
)
from daemon.demo.process import Command, User, alive, children, end, free_port, poll_until, signal_all, spawn

__all__ = ["Cluster", "MissingPostgres", "binaries", "shared_folder"]

_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_connections": "200",
    "shared_buffers": "64MB",
}


@dataclass(eq=False)
class Cluster:
    """One data folder and, while it runs, its postmaster. Made by `Cluster.create`."""

    folder: Path
    installed: Path
    version: int
    user: User | None
    port: int
    _dialled: bool = field(default=False, repr=False)
    _postmaster: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @classmethod
    def create(cls, folder: Path, *, version: int | None = None, settings: Mapping[str, str] | None = None) -> Self:
        """Make a new cluster in a folder that does not exist yet; it is not started.

        Postgres refuses to run as root, so root hands it to `nobody`: then every folder above must let other
        users pass, as those of `shared_folder` do.
        """
        installed = binaries(version)
        user = _unprivileged()
        if user and not _executes(installed / "postgres", user):
            installed = readable_copy(installed)
        folder.mkdir(parents=True)
        cluster = cls(folder, installed, server_version(installed), user, free_port())
        if user:
            os.chown(folder, user.uid, user.gid)
        cluster._initialise({**_SETTINGS, **(settings or {})})
        _known.add(cluster)
        return cluster

    def backup(self, folder: Path, settings: Mapping[str, str] | None = None) -> Self:
        """A base backup of this running cluster as one more, with a port of its own; it is not started."""
        folder.mkdir(parents=True)
        copy = type(self)(folder, self.installed, self.version, self.user, free_port())
        if self.user:
            os.chown(folder, self.user.uid, self.user.gid)
        _known.add(copy)
        copy.fill_from(self)
        copy.configure({**(settings or {}), "port": str(copy.port)})
        return copy

    def fill_from(self, other: "Cluster") -> None:
        """Take a base backup of a running cluster as this one's data."""
        where = f"--dbname=host=127.0.0.1 port={other.port} user=postgres"
        options = [f"--pgdata={self.data}", "--checkpoint=fast", "--no-sync"]
        if spawn(self._command([self.installed / "pg_basebackup", where, *options])).wait() != 0:
            raise RuntimeError(f"pg_basebackup failed: {self._last_words()}")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "postgres.log"

    @property
    def running(self) -> bool:
        return self._postmaster is not None and self._postmaster.poll() is None

    @property
    def pid(self) -> int:
        """The postmaster's."""
        assert self._postmaster is not None
        return self._postmaster.pid

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the postmaster, recovering if it crashed, and wait until it takes connections."""
        if self.running:
            return
        launched = self._launch()
        # Another program may have been quicker to take the port; until somebody knows it, it may change.
        if not (launched or self._dialled) and "Address already in use" in self._last_words():
            self.port = free_port()
            self.configure({"port": str(self.port)})
            launched = self._launch()
        if not launched:
            raise RuntimeError(f"Postgres {self.version} did not start: {self._last_words()}")
        self._dialled = True

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        if self._postmaster is None:
            return
        if self.running:
            self.thaw()
            end(self._postmaster, _SIGNALS[mode], 30)
        self._postmaster = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """Crash: SIGKILL for the postmaster and all it started, so that what was not flushed is lost."""
        if self._postmaster is None:
            return
        pids = self._freeze()
        signal_all(pids, signal.SIGKILL)
        self._postmaster.wait()
        self._postmaster = None
        poll_until(lambda: not any(map(alive, pids)), 10)

    def freeze(self) -> None:
        """Stop every process in its tracks, as a paused virtual machine does: connections stay open, mute."""
        self._freeze()

    def thaw(self) -> None:
        signal_all(self._pids(), signal.SIGCONT)

    def configure(self, settings: Mapping[str, str]) -> None:
        """Append to postgresql.conf; takes effect with the next start or reload."""
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as conf:
            for name, value in settings.items():
                quoted = value.replace("'", "''")
                conf.write(f"{name} = '{quoted}'\n")

    def execute(self, statement: LiteralString | sql.Composed, database: str = "postgres") -> None:
        """Run one statement outside a transaction, as superuser."""
        with psycopg.connect(self.dsn(database), autocommit=True) as connection:
            connection.execute(statement)

    def create_database(self, name: str, template: str = "template1", owner: str = "postgres") -> None:
        names = (sql.Identifier(name), sql.Identifier(template), sql.Identifier(owner))
        self.execute(sql.SQL("create database {} template {} owner {}").format(*names))

    def clone(self, template: str, name: str, owner: str = "postgres") -> None:
        """A copy of a database to which nobody is connected."""
        # From 15 on Postgres would write each block of it into the log, which takes longer than two checkpoints here.
        names = (sql.Identifier(name), sql.Identifier(template), sql.Identifier(owner))
        strategy = sql.SQL(" strategy file_copy" if self.version >= 15 else "")
        self.execute(sql.SQL("create database {} template {} owner {}").format(*names) + strategy)

    def drop_database(self, name: str) -> None:
        self.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _initialise(self, settings: Mapping[str, str]) -> None:
        locale = "C.UTF-8" if sys.platform == "linux" else "C"
        options = [
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            f"--locale={locale}",
            "--no-sync",
        ]
        outcome = spawn(self._command([self.installed / "initdb", f"--pgdata={self.data}", *options])).wait()
        if outcome != 0:
            raise RuntimeError(f"initdb failed: {self._last_words()}")
        self.configure({**settings, "port": str(self.port)})

    def _launch(self) -> bool:
        self._postmaster = spawn(self._command([self.installed / "postgres", "-D", self.data]))
        if poll_until(self._settled, 60) and self._postmaster.poll() is None:
            return True
        self.stop("immediate")
        return False

    def _command(self, argv: list[Path | str]) -> Command:
        # An immediate stop, not a kill, is what a postmaster that lost us gets: it takes its children along.
        environment = {"PATH": os.defpath, **library_path(self.installed)}
        arguments = [str(part) for part in argv]
        return Command(arguments, environment, self.folder, self.log, self.user, signal.SIGQUIT)

    def _settled(self) -> bool:
        # The postmaster writes "ready" into its own pid file; knocking at the port would litter the log.
        if self._postmaster is None or not self.running:
            return True
        try:
            lines = (self.data / "postmaster.pid").read_text().split("\n")
        except OSError:
            return False
        return lines[0] == str(self._postmaster.pid) and lines[7:8] == ["ready   "]

    def _pids(self) -> list[int]:
        if self._postmaster is None or not self.running:
            return []
        return [self._postmaster.pid, *children(self._postmaster.pid)]

    def _freeze(self) -> list[int]:
        # The postmaster first: while it stands, it cannot start another child behind our back.
        signal_all(self._pids()[:1], signal.SIGSTOP)
        pids = self._pids()
        signal_all(pids, signal.SIGSTOP)
        return pids

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-600:].strip() if self.log.exists() else "no log"


def _unprivileged() -> User | None:
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return User(nobody.pw_uid, nobody.pw_gid)


def _executes(program: Path, user: User) -> bool:
    command = Command(
        [str(program), "--version"], {"PATH": os.defpath}, Path("/"), Path(os.devnull), user, signal.SIGTERM
    )
    return spawn(command).wait() == 0


_known: "weakref.WeakSet[Cluster]" = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for cluster in list(_known):
        cluster.stop("immediate")
