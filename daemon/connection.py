"""Opening a Postgres connection for a process that must notice a dead peer.

Knows connection options, and how a failure to connect is told. Knows nothing of what is asked over it.

A dead peer is found in three ways. Idle: by keepalives. With bytes on their way: by tcp_user_timeout. A frozen server
still acknowledges both: there only a clock of our own helps, which every wait on a `Link` has.
"""

import asyncio
import contextlib
import os
import re
import select
import socket
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import psycopg
import structlog
from psycopg import generators, waiting
from psycopg.abc import Buffer
from psycopg.adapt import Loader, Transformer
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import ExecStatus, Format

from daemon.errors import SourceUnfit

log = structlog.get_logger()

_IDLE, _INTERVAL, _COUNT, _UNACKNOWLEDGED = 5, 3, 3, 15_000  # seconds, and for the last milliseconds
_GRANTED = "it is done in a dearer way: `outboxd setup source`, with --role if the daemon has a role of its own"
_CONNECT = 10.0  # in all: name, every address behind it, TLS, login
PATIENCE = 15.0
_GLANCE = 0.1  # seconds between two looks at whether somebody interrupts
_FEW, _MOMENT = 4, 0.001

# The address' own word wins. connect_timeout is for each address, so that a dead first one leaves time for the next.
_OPTIONS: dict[str, Any] = {
    "connect_timeout": 4,
    "keepalives": 1,
    "keepalives_idle": _IDLE,
    "keepalives_interval": _INTERVAL,
    "keepalives_count": _COUNT,
    "tcp_user_timeout": _UNACKNOWLEDGED,
}

# The same, for a socket that libpq does not open.
SOCKET_OPTIONS: list[tuple[int, int, int]] = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_KEEPIDLE", _IDLE),
            ("TCP_KEEPINTVL", _INTERVAL),
            ("TCP_KEEPCNT", _COUNT),
            ("TCP_USER_TIMEOUT", _UNACKNOWLEDGED),
        )
        if hasattr(socket, name)
    ),
]

# What a role or a database was given by ALTER ROLE … SET is meant for the application. The server gives up before we
# do, and looks by itself whether we are still there: a query that we have left does not run on. search_path: what others
# may create in a schema of it could stand in the way of a function of the system's, and would run with our rights.
# constraint_exclusion: so would the constraints of a table, which the planner computes.
SETTINGS: Mapping[str, str] = {
    "statement_timeout": "14s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "client_connection_check_interval": "5s",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "search_path": "pg_catalog, pg_temp",
    "constraint_exclusion": "off",
}


class Unanswered(psycopg.OperationalError):
    """The other side kept silent for too long; the connection is closed."""


class _AsBytes(Loader):
    """A text as the bytes that came."""

    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


class Link(psycopg.AsyncConnection[Any]):
    """A connection on which no wait lasts longer than `patience`, and a cancelled one ends at once.

    psycopg alone would first ask the server to cancel the query, and wait for that: ten seconds more, if it is the
    server that hangs.
    """

    patience = PATIENCE
    direct = False  # is there no pooler in between, which would lend a server process, and what it keeps, to others?
    _named: Mapping[bytes, bytes] = {}
    _unusable: frozenset[bytes] = frozenset()

    async def planned(self, statement: bytes, values: Sequence[bytes]) -> tuple[Any, ...] | None:
        """The one row that a statement answers with, in binary; a direct connection plans it once. None where its function
        is not there or may not be called: this connection asks once, and the log is told.
        """
        if statement in self._unusable:
            return None
        try:
            return await self._planned(statement, values)
        except (psycopg.errors.UndefinedFunction, psycopg.errors.InsufficientPrivilege) as exc:
            self._unusable |= {statement}
            log.warning("statement_unusable", sqlstate=exc.sqlstate, advice=_GRANTED)
            return None

    async def _planned(self, statement: bytes, values: Sequence[bytes]) -> tuple[Any, ...]:
        """Prepared statements live and die with a connection. `direct` may be wrong where a pooler passes on whose process it
        lends: then the name means nothing to the next one, nothing has run, and it is asked without.
        """
        if self.direct:
            try:
                if statement not in self._named:
                    name = b"outboxd_%d" % len(self._named)
                    self.pgconn.send_prepare(name, statement)
                    await self._answered()
                    self._named = {**self._named, statement: name}
                self.pgconn.send_query_prepared(self._named[statement], values, result_format=1)
                return await self._answered()
            except (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement):
                self.direct = False
        self.pgconn.send_query_params(statement, values, result_format=1)
        return await self._answered()

    async def _answered(self) -> tuple[Any, ...]:
        """What psycopg's cursors do, without what they do for statements that differ each time."""
        async with self.lock:
            (result,) = await self.wait(generators.execute(self.pgconn))
        if result.status == ExecStatus.COMMAND_OK:
            return ()
        if result.status != ExecStatus.TUPLES_OK:
            raise psycopg.errors.error_from_result(result)
        loaded = Transformer(self)
        loaded.set_pgresult(result)
        return loaded.load_rows(0, 1, tuple)[0]

    async def several(self, statements: bytes, values: Mapping[str, Any] | None = None) -> list[list[Any]]:
        """The rows of each of several statements that answers with rows. They travel as one message, which only values
        put in on this side allow; numbers come as text."""
        results = await psycopg.AsyncClientCursor(self).execute(statements, values)
        sets = []
        while True:
            if results.description:
                sets.append(await results.fetchall())
            if not results.nextset():
                return sets

    async def pieces(self, statement: bytes, values: Mapping[str, Any]) -> list[Any]:
        """The rows of a statement, texts as the bytes that came: what is only handed on need not be read."""
        cursor = self.cursor(binary=True)
        cursor.adapters.register_loader("text", _AsBytes)
        await cursor.execute(statement, values)
        return await cursor.fetchall()

    async def wait(self, gen: Any, *_: Any, **__: Any) -> Any:
        """Every wait of psycopg passes here."""
        gave_up = False

        def give_up() -> None:
            nonlocal gave_up
            gave_up = True
            _cut(self.pgconn.socket)

        timer = asyncio.get_running_loop().call_later(self.patience, give_up)
        try:
            return await _received(gen, self.pgconn.socket)
        except asyncio.CancelledError:
            self.pgconn.finish()  # who waited here no longer knows what the connection is in the middle of
            raise
        except psycopg.OperationalError:
            if not gave_up:
                raise
            self.pgconn.finish()
            raise Unanswered(f"no answer within {self.patience:g} s") from None
        finally:
            timer.cancel()


async def _received(gen: Any, descriptor: int) -> Any:
    """What psycopg's generator comes to. What it reads from the fifth time on we let gather for a moment first: to be woken
    for every packet of a large result costs more than to read it. A small one comes as it did."""
    ended, state = await waiting.wait_async(_begun(gen), descriptor, _GLANCE)
    if ended:
        return state
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        if state == waiting.WAIT_R and not poll.poll(0):
            await asyncio.sleep(_MOMENT)
        there = state == waiting.WAIT_R and poll.poll(0)
        ready = waiting.READY_R if there else await waiting.wait_async(_until_ready(state), descriptor, _GLANCE)
        try:
            state = gen.send(ready)
        except StopIteration as end:
            return end.value


def _begun(gen: Any) -> Generator[Any, Any, tuple[bool, Any]]:
    """The generator up to its fifth read: (True, what it came to) or (False, what it waits for)."""
    try:
        state, reads = next(gen), 0
        while reads < _FEW:
            ready = yield state
            reads += bool(ready & waiting.READY_R)
            state = gen.send(ready)
    except StopIteration as end:
        return True, end.value
    return False, state


def _until_ready(state: Any) -> Generator[Any, Any, Any]:
    while not (ready := (yield state)):
        pass
    return ready


def _cut(descriptor: int) -> None:
    """End the conversation on a socket, so that whoever waits for it is told at once."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as twin:
        twin.shutdown(socket.SHUT_RDWR)


async def connect(
    dsn: str, application_name: str, *, settings: Mapping[str, str] = SETTINGS, patience: float = PATIENCE
) -> Link:
    """An autocommit connection, or Unanswered within 10 s whatever hangs: a name server, an address, a login.

    psycopg prepares nothing: a generic plan does not know a window's bounds and would scan the outbox, and behind a
    transaction pooler a prepared statement belongs to somebody else. For the same reason `settings` are never SET:
    they come with the login, or, where a pooler refuses that, not at all.
    """
    told = conninfo_to_dict(dsn)
    options = {**_OPTIONS, **told, "application_name": application_name, "client_encoding": "UTF8"}
    ours = _spelled(settings)
    try:
        async with asyncio.timeout(min(_CONNECT, patience)):
            try:
                link = await _open(options | {"options": f"{ours} {told.get('options') or ''}".strip()})
            except psycopg.OperationalError as exc:
                if not _refuses_settings(exc):
                    raise
                link = await _open(options)
    except TimeoutError:
        raise Unanswered(f"no connection within {min(_CONNECT, patience):g} s") from None
    link.patience = patience
    return link


def _spelled(settings: Mapping[str, str]) -> str:
    """As libpq's `options` have them."""
    return " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in settings.items())


async def _open(options: Mapping[str, Any]) -> Link:
    return await Link.connect("", autocommit=True, prepare_threshold=None, **options)


def _refuses_settings(exc: psycopg.Error) -> bool:
    """PgBouncer: unsupported startup parameter: options. RDS Proxy: doesn't support command-line options."""
    return bool(re.search("startup parameter|command-line option", str(exc)))


def cause(exc: psycopg.Error) -> str:
    """Why, in a few words: the SQLSTATE, or what was said of the connection, which names no password."""
    if isinstance(exc, Unanswered):
        return str(exc)
    said = re.findall(r"failed: +(?:FATAL: +)?(.+)", str(exc))
    return exc.sqlstate or (said[-1] if said else type(exc).__name__)


def turned_away(exc: psycopg.Error) -> bool:
    """Did the server refuse who connects (it gives no SQLSTATE for that), so that waiting will not help?"""
    return bool(re.search("authentication failed|does not exist|not permitted|pg_hba.conf", cause(exc)))


def connect_once(dsn: str, application_name: str) -> psycopg.Connection[Any]:
    """An autocommit connection of a command, which has nothing else to do meanwhile. Raises SourceUnfit.

    With the daemon's search_path and constraint_exclusion, for the same reason: set-up is done by roles that may do anything."""
    told = conninfo_to_dict(dsn)
    options: dict[str, Any] = {
        **told,
        "connect_timeout": 10,
        "application_name": application_name,
        "client_encoding": "UTF8",
    }
    ours = _spelled({name: SETTINGS[name] for name in ("search_path", "constraint_exclusion")})
    try:
        conn = psycopg.connect(
            "", autocommit=True, **{**options, "options": f"{ours} {told.get('options') or ''}".strip()}
        )
    except psycopg.OperationalError as exc:
        if not _refuses_settings(exc):
            raise
        conn = psycopg.connect("", autocommit=True, **options)
    try:
        require_encoding(conn.info)
    except SourceUnfit:
        conn.close()
        raise
    return conn


def require_encoding(info: psycopg.ConnectionInfo) -> None:
    """Texts must mean something. Raises SourceUnfit."""
    if info.parameter_status("server_encoding") == "SQL_ASCII":
        raise SourceUnfit(
            f"database {info.dbname} is SQL_ASCII: nobody knows what the bytes of its texts mean, so they cannot be carried. "
            "Dump it and restore it into one that knows: createdb --encoding=UTF8 --template=template0 …"
        )
