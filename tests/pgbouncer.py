"""A real PgBouncer before a test's database: unpacked by tests/fetch.sh pgbouncer, run as nobody.

Knows its ini file and how it starts. Knows nothing of outboxd.
"""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from daemon.demo.process import Command, end, free_port, poll_until, spawn
from tests.databases import Database

_FETCHED = Path(__file__).parent.parent / ".cache/pgbouncer"
_INI = """
[databases]
{name} = host=127.0.0.1 port={port} dbname={name} user={user}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
auth_type = any
auth_file =
unix_socket_dir =
pool_mode = {mode}
default_pool_size = {size}
server_tls_sslmode = disable
{more}
"""


class MissingPgBouncer(Exception):
    """There is none on this machine."""


def pgbouncer() -> tuple[Path, dict[str, str]]:
    """The program, and the environment it needs."""
    if installed := shutil.which("pgbouncer"):
        return Path(installed), {}
    program = _FETCHED / "usr/sbin/pgbouncer"
    if not program.exists():
        raise MissingPgBouncer("PgBouncer is not on this machine: run tests/fetch.sh pgbouncer, or install it")
    return program, {"LD_LIBRARY_PATH": ":".join(map(str, _FETCHED.glob("usr/lib/*-linux-gnu*")))}


@contextmanager
def pgbouncer_before(database: Database, folder: Path, mode: str, *, size: int = 4, more: str = "") -> Iterator[str]:
    """A DSN that leads to the database through a PgBouncer of this mode."""
    program, libraries = pgbouncer()
    own = free_port()
    user = database.cluster.user
    place = folder / f"pgbouncer-{own}"
    place.mkdir()
    if user:  # it refuses to run as root, and who runs it must be able to read it
        os.chown(place, user.uid, user.gid)
        program = Path(shutil.copy(program, place))
        program.chmod(0o755)
        for library in list(_FETCHED.glob("usr/lib/*-linux-gnu*/*.so*")) if libraries else []:
            shutil.copy(library, place)
        libraries = {"LD_LIBRARY_PATH": str(place)} if libraries else {}
    ini = place / "pgbouncer.ini"
    ini.write_text(
        _INI.format(
            name=database.name,
            port=database.cluster.port,
            user=database.owner,
            own=own,
            mode=mode,
            size=size,
            more=more,
        )
    )
    ini.chmod(0o644)
    log = folder / f"pgbouncer-{own}.log"
    environment = {"PATH": os.defpath, **libraries}
    process = spawn(Command([str(program), str(ini)], environment, place, log, user, signal.SIGTERM))
    dsn = f"postgresql://{database.owner}@127.0.0.1:{own}/{database.name}"
    try:
        assert poll_until(lambda: process.poll() is not None or _answers(dsn), 30), "PgBouncer does not answer"
        assert process.poll() is None, log.read_text(errors="replace")[-600:]
        yield dsn
    finally:
        end(process, signal.SIGQUIT, 10)


def _answers(dsn: str) -> bool:
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return False
    return True
