"""Reading both sides, planning, and doing the steps one by one.

Knows connections, locks and what a step's failure means. Whoever stops in the middle loses nothing: the next plan is
made from the catalogues again, and has what is left.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from daemon import catalog
from daemon.connection import connect_once
from daemon.errors import SchemaUnfit
from daemon.printable import word
from daemon.refusal_words import spoken
from daemon.schema import plan
from daemon.schema_steps import Plan, Step
from daemon.session import query
from daemon.structure import EMPTY_PROJECT, Audience, Catalogue, Watched
from daemon.tables import TableSettings, meant, said_of
from outbox import __version__
from outbox.migrations import require

_LOCK = (1869968482, 4)  # on the target: one applies at a time
PATIENCE = 60.0

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Done:
    """What an apply did: `left` waits for --allow-destructive. `refused`: steps that were not done, each with why, as a
    sentence. `unrecorded`: the source's role may not record who may see the tables."""

    steps: tuple[Step, ...]
    left: tuple[Step, ...]
    plan: Plan
    refused: tuple[str, ...] = ()
    unrecorded: bool = False


def look(
    source_dsn: str, target_dsn: str | None, tables: Mapping[str, TableSettings], only: Sequence[str] = ()
) -> Plan:
    """The plan. Without a connection to the target: for a project that has none of it."""
    with connect(source_dsn) as source:
        if target_dsn is None:
            return _planned(source, None, tables, only)
        with connect(target_dsn) as target:
            return _planned(source, target, tables, only)


def apply(
    source_dsn: str,
    target_dsn: str,
    tables: Mapping[str, TableSettings],
    only: Sequence[str] = (),
    *,
    allow_destructive: bool = False,
    agreed: Callable[[Plan], bool] = lambda _: True,
    on_step: Callable[[Step], None] = lambda _: None,
    patience: float = PATIENCE,
    record: bool = False,
) -> Done:
    """Plan, ask whether that is agreed to, and do it. Nothing destructive is done unless that is allowed. `record`: a
    person has agreed, so the source remembers who may see the tables."""
    with connect(source_dsn) as source, connect(target_dsn) as target, _alone(target, patience):
        found = _planned(source, target, tables, only)
        wanted = [step for step in found.due if allow_destructive or not step.destructive]
        left = tuple(step for step in found.due if step not in wanted)
        if wanted and not agreed(found):
            return Done((), left, found)
        done, refused = _do_all(target, wanted, patience, on_step)
        if wanted:
            target.execute("notify pgrst, 'reload schema'")
            source.execute(query("ring_fits"))
        unrecorded = record and not _record(source, found, left)
        return Done(done, left, found, refused, unrecorded)


# What other steps of a table rest on: without it they would fail one after the other, each with a sentence of its own.
_FIRST = {"schema", "extension", "type", "table"}


def _do_all(
    target: Connection, steps: Sequence[Step], patience: float, on_step: Callable[[Step], None]
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """One that is refused keeps only those from being done that rest on it. Returns what was done, and why the rest not."""
    done, refused, without = [], [], set[str]()
    for step in steps:
        if step.table in without:
            continue
        try:
            _do(target, step, patience)
        except SchemaUnfit as exc:
            refused.append(str(exc))
            without |= {step.table} if step.kind in _FIRST else set()
        else:
            done.append(step)
            on_step(step)
    return tuple(done), tuple(refused)


def _record(source: Connection, found: Plan, left: Collection[Step]) -> bool:
    """Who may see the tables is the source's to say from now on, except where that has not been done. False: this role may
    not write it."""
    undone = {step.table for step in left if step.kind in {"policy", "grant"}}
    try:
        for one in found.wanted:
            if one.watched.name not in undone:
                said = {name: getattr(one.audience, name) for name in ("owner", "access", "write", "realtime")}
                source.execute(query("record_audience"), {"table": one.watched.name, **said})
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def connect(dsn: str) -> Connection:
    return connect_once(dsn, f"outboxd/{__version__}")


def _planned(
    source: Connection, target: Connection | None, tables: Mapping[str, TableSettings], only: Sequence[str]
) -> Plan:
    require(source, "source")
    watched = catalog.read_watched(source)
    chosen = _chosen(watched, only)
    locked = catalog.read_locked(source, "source")
    there: Catalogue = EMPTY_PROJECT
    if target is not None:
        require(target, "target")
        for name, said in catalog.read_locked(target, "target").items():
            locked[name] = f"{locked[name]}, and {said}" if name in locked else said
    everything, watched = watched, [one for one in watched if one.name not in locked]
    here = catalog.read_source(source, watched)
    if target is not None:
        there = catalog.read_target(target, [one.target for one in watched], here.types, locked)
    recorded = catalog.read_audiences(source)
    names = [one.name for one in watched]
    audiences = {one.name: _audience(said_of(tables, one.name, names), recorded.get(one.name)) for one in watched}
    found = plan(here, there, watched, audiences, chosen, others=locked)
    left = [f"{said}; it is left out until then" for name, said in sorted(locked.items()) if name in (chosen or {name})]
    notes = (*_odd(everything, tables, chosen), *found.notes)
    return replace(found, notes=notes, problems=(*left, *found.problems))


def _audience(said: TableSettings | None, recorded: Audience | None) -> Audience:
    """A folder that says nothing of a table changes nothing of it; one that says something else is asked."""
    if said is None or not said.model_fields_set & {"owner", "access", "write", "realtime"}:
        return recorded or Audience()
    now = Audience(said.owner, said.access, said.write, said.realtime)
    return replace(now, instead=recorded.said) if recorded is not None and recorded != now else now


def _chosen(watched: Collection[Watched], only: Sequence[str]) -> set[str] | None:
    if not only:
        return None
    names = [one.name for one in watched]
    chosen = set()
    for name in only:
        found = meant(name, names)
        if found is None:
            raise SchemaUnfit(f"{name} is not watched: outboxd watch {word(name)}")
        chosen.add(found)
    return chosen


def _odd(
    watched: Collection[Watched], tables: Mapping[str, TableSettings], chosen: Collection[str] | None
) -> Iterator[str]:
    """What is said of no watched table, or cannot be planned."""
    known = [one.name for one in watched]
    for name in tables:
        if chosen is None and meant(name, known) is None:
            yield f'[tables."{name}"] is said of a table that is not watched: outboxd watch {word(name)}'
    for one in watched:
        if chosen is not None and one.name not in chosen:
            continue
        if not one.there:
            yield f"{one.name}: there is no such table on the source, so its mirror is yours to make"
        elif not one.key:
            yield f"{one.name}: it has no key any more: add a primary key, and watch it again"


@contextmanager
def _alone(target: Connection, patience: float) -> Iterator[None]:
    """One apply at a time: the next one plans when this one is through, and finds nothing to do."""
    deadline = time.monotonic() + patience
    while not _true(target, "select pg_try_advisory_lock(%s, %s)"):
        if time.monotonic() > deadline:
            raise SchemaUnfit(_taken(target))
        time.sleep(0.2)
    try:
        yield
    finally:
        if not target.closed:
            _true(target, "select pg_advisory_unlock(%s, %s)")


def _taken(target: Connection) -> str:
    """Any role that may connect can hold the lock. Who does is told, and a stranger from another apply."""
    at_work = "another `schema apply` is at work on this target: try again when it has ended"
    row = target.execute(query("apply_holders"), {"class": _LOCK[0], "number": _LOCK[1]}).fetchone()
    if row is None:
        return at_work
    pid, who, stranger = row
    if stranger:
        return f"{who} holds the lock of `schema apply` and may not apply anything: select pg_terminate_backend({pid})"
    return f"{at_work}; {who} holds its lock"


def _true(target: Connection, statement: str) -> bool:
    row = target.execute(statement.encode(), _LOCK).fetchone()
    return bool(row and row[0])


def _do(target: Connection, step: Step, patience: float) -> None:
    """One step, in one transaction. Waits 2 s at a time for a lock, then steps back so that nobody queues."""
    deadline = time.monotonic() + patience
    while True:
        try:
            with target.transaction():
                target.execute("set local lock_timeout = '2s'")
                target.execute("set local statement_timeout = 0")  # an index takes as long as it takes
                # Every name of a step is whole; what has none is the system's own, whatever others put into public.
                target.execute("set local search_path = ''")
                target.execute(step.sql.encode())
                return
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if time.monotonic() > deadline:
                raise SchemaUnfit(
                    f"{step.table}: its tables are locked by long transactions on the target: run this again when they have ended"
                ) from None
            time.sleep(0.3)
        except psycopg.OperationalError:
            raise
        except psycopg.Error as exc:
            raise SchemaUnfit(_why(step, exc)) from None


def _why(step: Step, exc: psycopg.Error) -> str:
    """Names only: Postgres' own words may quote a value in class 22 and 23 (promise I10)."""
    first, said = step.sql.splitlines()[0], spoken(exc.sqlstate, exc.diag.message_primary, exc.diag.context)
    if said is None:
        names = [name for name in (exc.diag.constraint_name, exc.diag.column_name) if name]
        said = (
            f"rows that are on the target do not allow it{' (' + ', '.join(names) + ')' * bool(names) if names else ''}"
        )
    return (
        f"{step.table}: {step.kind} {step.what} was refused ({exc.sqlstate}): {said}. The step was: {first}. "
        "What was done before it stays; mend this, and run `outboxd schema apply` again"
    )
