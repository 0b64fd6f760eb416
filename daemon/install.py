"""What `setup` and `watch` do to the databases.

Knows which statements, in which order, and how to wait for a lock without making the application queue. Knows
nothing of settings or of printing.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import psycopg
from psycopg.types.json import Jsonb

from daemon.connection import connect_once
from daemon.errors import AmbiguousTable, SourceUnavailable
from daemon.refusal_words import told_of
from daemon.selection import Named, Selection, going_on
from daemon.session import query
from daemon.tables import meant, readings
from outbox import __version__
from outbox.migrations import Side, migrate, quote, require, step

_Done = TypeVar("_Done")


@dataclass(frozen=True, slots=True)
class Watched:
    """One row of `outboxd watched`."""

    table: str
    capture: bool
    key: list[str] | None
    include: list[str] | None
    exclude: list[str] | None
    on_error: str
    target: str | None
    rename: dict[str, str] | None
    constant: dict[str, str] | None
    mask: dict[str, str] | None
    where: str | None

    @property
    def on_target(self) -> str:
        return self.target or self.table

    @property
    def mapped(self) -> str:
        """What becomes of its rows on their way, for a person; empty: nothing."""
        said = [f"as {self.target}"] if self.target else []
        said += [f"{column} as {name}" for column, name in (self.rename or {}).items()]
        said += [f"{name} = {text!r}" for name, text in (self.constant or {}).items()]
        said += [f"{column} masked ({mask})" for column, mask in (self.mask or {}).items()]
        return "; ".join(said + ([f"where {self.where}"] if self.where else []))

    @property
    def selection(self) -> Selection:
        """What was chosen."""
        return Selection(
            key=self.key, include=self.include, exclude=self.exclude, capture=self.capture, on_error=self.on_error, target=self.target,
            rename=self.rename, constant=self.constant, mask=self.mask, where=self.where,
        )  # fmt: skip

    def differs(self, now: "Watched") -> bool:
        """Would rows that are there already travel otherwise now?"""
        return self.capture and now.capture and replace(self, key=now.key, on_error=now.on_error) != now


def setup(dsn: str, side: Side, *, exposed_schema: str, role: bool) -> list[str]:
    """Apply what is pending on one side; returns the names of what was applied."""
    with connect(dsn) as conn:
        # Promise I7: what a later version alters may be in use. Nobody waits behind this for longer than its lock_timeout.
        applied = retried(
            conn, lambda: migrate(conn, side, exposed_schema=exposed_schema), about=f"the {side}'s schema"
        )
        if role:
            conn.execute(step("source", "role").encode())
    return [f"{migration.version:04}_{migration.name}" for migration in applied]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a database has of outboxd, and looks like. `named`: the server and the database."""

    source: bool
    target: bool
    project: bool
    named: str


def misdirected(source_dsn: str, target_dsn: str) -> str | None:
    """Are the two addresses each other's? None: not as far as can be seen; a store that is away says nothing."""
    try:
        here, there = _side(source_dsn), _side(target_dsn)
    except psycopg.Error:
        return None
    if here.named == there.named:
        return "the source's address and the target's lead to the same database"
    installed = here.target and there.source and not (here.source or there.target)
    looks = here.project and not there.project and not (here.source or there.target)
    if installed or looks:
        return "the source's address leads to the Supabase project, and the target's to the application's database: exchange them"
    return None


def installed_at(dsn: str) -> str | None:
    """When outboxd was first installed on a target: what one project is told from another by. None: it is away, or nothing
    is there."""
    try:
        with connect(dsn) as conn:
            row = conn.execute(query("installed_at")).fetchone()
            return str(row[0]) if row and row[0] else None
    except psycopg.Error:
        return None


def installation(dsn: str, patience: float = 1.0) -> str | None:
    """Which installation of schema outbox a source has. None: it does not say so within so many seconds."""
    told: list[str | None] = []

    def ask() -> None:
        with contextlib.suppress(psycopg.Error, SourceUnavailable), connect(dsn) as conn:
            told.extend(conn.execute(query("source_installation")).fetchone() or ())

    asking = threading.Thread(target=ask, daemon=True)  # a name server that is away has no patience of ours
    asking.start()
    asking.join(patience)
    return told[0] if told else None


def _side(dsn: str) -> Seen:
    with connect(dsn) as conn:
        row = conn.execute(query("side")).fetchone()
        assert row is not None
        return Seen(*row)


def watch(
    dsn: str,
    tables: Sequence[str],
    selected: Callable[[str, Collection[str]], Selection],
    warn: Callable[[str], None],
    place: Callable[[str, str], str] = lambda was, _: was,
) -> Iterator[tuple[Watched | None, Watched]]:
    """Watch one table after the other, a transaction each; yields each as it was watched before, and is now.

    `selected` says how a table, named as the outbox has it, is to be watched (and is told of those whose names are like
    it); `warn` is told what outbox.watch warns of. A table that was watched by another name goes on as it was: `place` says
    where on the target, given where its rows went and what it is called now.
    """
    with connect(dsn) as conn:
        conn.add_notice_handler(lambda said: _warned(said, warn))
        require(conn, "source")
        for table in tables:
            before = _watched(conn)
            named = _named(conn, table)
            wanted = selected(named, _alike(conn, named))
            old = next((one for one in _renamed(conn) if one.called == named and named not in before), None)
            if old is not None:
                was = replace(before[old.was].selection, key=old.key)
                goes = old.gone and wanted.target is None
                wanted = going_on(wanted, was, place(before[old.was].on_target, named) if goes else None)
            mapping = [None if one is None else Jsonb(one) for one in (wanted.rename, wanted.constant, wanted.mask)]
            parameters = (
                named,
                wanted.key,
                wanted.include,
                wanted.exclude,
                wanted.capture,
                wanted.target,
                *mapping,
                wanted.where,
            )
            taken = old.was if old is not None and old.gone else None
            name = retried(conn, lambda: _watch(conn, parameters, wanted, taken), about=named)  # noqa: B023
            yield before.get(name) or (before[old.was] if old else None), _watched(conn)[name]


def _watch(conn: psycopg.Connection[Any], parameters: Sequence[Any], wanted: Selection, old: str | None) -> str:
    """`old`: the name that the table had. In one transaction no change goes by neither name; what is on its way by the old
    one arrives before the copy, which brings what deletes of it may have missed as well."""
    with conn.transaction():
        if old is not None:
            conn.execute("select outbox.unwatch(%s::text)", (old,))
        [name] = conn.execute(
            "select outbox.watch(%s::regclass, %s::text[], %s::text[], %s::text[], %s::boolean, %s::text, %s::jsonb, %s::jsonb, %s::jsonb, %s::text)"
            " where set_config('outbox.copy', %s, true) is not null",
            (*parameters, "on" if wanted.copy else "off"),
        ).fetchone() or [""]
        if old is not None and wanted.capture and wanted.copy:
            conn.execute("select outbox.ask_copy(%s::text, true, false)", (name,))
        if wanted.on_error is not None:
            conn.execute("select outbox.on_error(%s::text, %s::text)", (name, wanted.on_error))
        return str(name)


@dataclass(frozen=True, slots=True)
class Renamed:
    """A captured table that is called otherwise than it is watched as. `gone`: no other table has the old name; `key`: columns
    that were named."""

    was: str
    called: str
    gone: bool
    key: list[str] | None


def _renamed(conn: psycopg.Connection[Any]) -> list[Renamed]:
    return [Renamed(*row) for row in conn.execute(query("renamed"))]


def _warned(said: psycopg.errors.Diagnostic, warn: Callable[[str], None]) -> None:
    if said.severity_nonlocalized == "WARNING":
        warn(": ".join(filter(None, (said.message_primary, said.message_hint))))


def ask_copies(dsn: str, tables: Sequence[str], *, prune: bool, restart: bool) -> dict[str, int]:
    """Ask for copies of watched tables; returns the number of each wish by the table's name."""
    with connect(dsn) as conn, conn.transaction():
        require(conn, "source")
        wishes = {}
        for table in tables:
            row = conn.execute(
                "select (outbox.known(%(t)s::text)).table_name, outbox.ask_copy(%(t)s::text, %(prune)s::boolean, %(restart)s::boolean)",
                {"t": _named(conn, table), "prune": prune, "restart": restart},
            ).fetchone()
            assert row is not None
            wishes[str(row[0])] = int(row[1])
        return wishes


def ask_verifications(dsn: str, tables: Sequence[str], *, repair: bool) -> dict[str, int]:
    """Ask for passes through watched tables (none named: through all that are captured); returns the number of each wish
    by the table's name."""
    with connect(dsn) as conn, conn.transaction():
        require(conn, "source")
        wishes = {}
        for table in tables or [name for name, one in _watched(conn).items() if one.capture]:
            row = conn.execute(
                "select (outbox.known(%(t)s::text)).table_name, outbox.ask_verification(%(t)s::text, %(repair)s::boolean)",
                {"t": _named(conn, table), "repair": repair},
            ).fetchone()
            assert row is not None
            wishes[str(row[0])] = int(row[1])
        return wishes


def unwatch(
    dsn: str, tables: Sequence[str], living: Callable[[Renamed, bool], None] = lambda *_: None
) -> Iterator[str]:
    """Stop watching; yields each name. `living` is told of a table that lives on under another name, and whether it was called
    by that: it raises where nobody means that one."""
    with connect(dsn) as conn:
        require(conn, "source")
        for table in tables:
            named, known = _named(conn, table), _watched(conn)
            renamed = {one.called: one for one in _renamed(conn) if one.called not in known}
            one = renamed.get(named) or next((one for one in renamed.values() if one.was == named), None)
            if one is not None:
                living(one, named == one.called)
                named = one.was
            yield patiently(conn, "select outbox.unwatch(%s::text)", (named,))


def moved(dsn: str, was: str, called: str) -> str:
    """Where the mirror of a renamed table is on the target: as it was, unless there is none and there is one of the new name. What
    is on its way by the old name goes there as well, until the copy is done."""
    with connect(dsn) as conn:
        require(conn, "target")
        there = [conn.execute("select to_regclass(%s) is not null", (name,)).fetchone() for name in (was, called)]
        if there != [(False,), (True,)]:
            return was
        conn.execute(query("mirror_moved"), {"was": was, "called": called})
        return called


def named(dsn: str, names: Collection[str]) -> dict[str, Named]:
    """What names as `[tables]` has them mean."""
    with connect(dsn) as conn:
        rows, found = _watched(conn), {}
        for name in names:
            try:
                table = meant(name, _alike(conn, name))
                found[name] = Named(table, rows[table].selection if table in rows else None)
            except AmbiguousTable as exc:
                found[name] = Named(None, None, str(exc))
        return found


def watched(dsn: str) -> list[Watched]:
    """Every watched table."""
    with connect(dsn) as conn:
        require(conn, "source")
        return list(_watched(conn).values())


def map_on_target(
    dsn: str, tables: Sequence[Watched], warn: Callable[[str], None]
) -> Iterator[tuple[Watched, bool, str | None]]:
    """Allow tables on the target; yields (table, whether the target has it, why it refuses). One that it refuses keeps none
    of the others out. `warn` is told what others may do by way of a table."""
    with connect(dsn) as conn:
        require(conn, "target")
        conn.add_notice_handler(lambda said: warn(f"{said.message_primary}: {said.message_hint}"))
        for one in tables:
            try:
                row = conn.execute("select to_regclass(%s) is not null", (one.on_target,)).fetchone()
                there = bool(row and row[0])
                if there:
                    conn.execute("select outboxd.map(%s::regclass, %s)", (one.on_target, one.table))
            except (psycopg.ProgrammingError, psycopg.DataError) as exc:
                yield one, True, told_of(exc.sqlstate, exc.diag.message_primary, exc.diag.context, type(exc).__name__)
            else:
                yield one, there, None


def _watched(conn: psycopg.Connection[Any]) -> dict[str, Watched]:
    return {row[0]: Watched(*row) for row in conn.execute(query("watched"))}


def _named(conn: psycopg.Connection[Any], name: str) -> str:
    """The table that a person means, named as the outbox has it; one that is not there as it is written."""
    return meant(name, _alike(conn, name)) or _written(name)


def _alike(conn: psycopg.Connection[Any], name: str) -> list[str]:
    """The tables, there or watched, that some spelling of this name means."""
    spelled = [(schema and schema.lower(), title.lower()) for schema, title in readings(name)]
    schemas, titles = zip(*spelled, strict=True) if spelled else ((), ())
    return [
        found for (found,) in conn.execute(query("tables_alike"), {"schemas": list(schemas), "titles": list(titles)})
    ]


def _written(name: str) -> str:
    return ".".join(quote(part) for part in readings(name)[0] if part) if readings(name) else name


def connect(dsn: str) -> psycopg.Connection[Any]:
    return connect_once(dsn, f"outboxd/{__version__}")


def patiently(
    conn: psycopg.Connection[Any], statement: bytes | str, parameters: Sequence[Any] | None = None, *, about: str = ""
) -> str:
    """Run DDL on a busy table in a transaction of its own; its one value, if it has one."""

    def attempt() -> str:
        with conn.transaction():
            found = conn.execute(statement.encode() if isinstance(statement, str) else statement, parameters)
            row = found.fetchone() if found.description else None
        return str(row[0]) if row else ""

    return retried(conn, attempt, about=about or str((parameters or [""])[0]))


def _held(conn: psycopg.Connection[Any], about: str) -> str:
    row = conn.execute(query("lock_holders"), {"about": about}).fetchone()
    return f", {row[0]}" if row and row[0] else ""


def retried(
    conn: psycopg.Connection[Any], attempt: Callable[[], _Done], *, about: str, patience: float = 60.0
) -> _Done:
    """DDL while the application works (promise I7): wait 200 ms for its locks, then step back so that nobody queues."""
    deadline = time.monotonic() + patience
    conn.execute("set lock_timeout = '200ms'")
    while True:
        try:
            return attempt()
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() > deadline:
                raise SourceUnavailable(
                    f"{about} is locked by long transactions{_held(conn, about)}: try again when they have ended"
                ) from None
            time.sleep(0.3)
