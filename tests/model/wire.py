"""The daemon's connections to the source: its own queries, by name, answered from the simulated database.

Stands in for psycopg where daemon.session connects. Each query is a call that waits until the world serves it, one
statement after the other; anything may happen in between.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from daemon import session as daemon_session
from daemon.sheaf import Change
from daemon.source import NEEDS
from tests.model.database import SHAPE, Database, Letter

if TYPE_CHECKING:
    from tests.model.process import Process

NAMES = {text: name for name, text in daemon_session._QUERIES.items()}

Rows = list[Any]


def _asks(name: str, word: str) -> bool:
    return word.encode() in daemon_session._QUERIES[name]


_OPEN = tuple(_asks("window_open", word) for word in ("pg_postmaster_start_time", "flush_lsn()::text", "outbox.pruned"))
Statement = Callable[[], Rows]


class Gone(BaseException):
    """The process does not exist any more: whatever it awaits ends here."""


class Call:
    """Something a process waits for. `serve` runs the next statement; with the last one comes the answer."""

    __slots__ = ("future", "name", "results", "statements")

    def __init__(self, name: str, statements: list[Statement], future: "asyncio.Future[Any]") -> None:
        self.name = name
        self.statements = statements
        self.results: list[Rows] = []
        self.future = future

    def serve(self) -> bool:
        """True when all statements have run."""
        self.results.append(self.statements[len(self.results)]())
        return len(self.results) == len(self.statements)


class Results:
    """What psycopg's cursor offers, as far as the daemon asks."""

    __slots__ = ("_at", "_results", "all", "description", "rowcount")

    def __init__(self, results: list[Rows]) -> None:
        self.all = self._results = results
        self._at = 0
        self.rowcount = len(results[-1])
        self.description = True  # it has rows, if only none

    def nextset(self) -> bool:
        self._at += 1
        return self._at < len(self._results)

    async def fetchone(self) -> Any:
        rows = self._results[self._at]
        return rows[0] if rows else None

    async def fetchall(self) -> Rows:
        return self._results[self._at]


class Connection:
    """A connection of one process to one incarnation of the server."""

    def __init__(self, process: "Process", database: Database) -> None:
        self._process = process
        self._database = database
        self._incarnation = database.incarnation
        self.adapters = self.info = self
        self.backend_pid = -1  # as of one behind a pooler: nothing is prepared
        self.broken = False
        self._effects: list[Callable[[], None]] | None = None  # of the transaction that is open

    def parameter_status(self, _: str) -> str:
        return "UTF8"

    def register_loader(self, *_: Any) -> None:
        """psycopg's loaders are not needed: values come as they are."""

    async def execute(self, text: bytes, parameters: Mapping[str, Any] | None = None, **_: Any) -> Results:
        if self._effects is not None and text not in NAMES:
            return Results([[]])  # set local synchronous_commit = on, which every transaction here has
        name = NAMES[text]
        if name in _WRITES:
            return await self._write(name, parameters or {})
        if name not in _STATEMENTS:
            raise NotImplementedError(f"the model does not know {name}.sql: answer it in tests/model/wire.py")
        statements = _STATEMENTS[name](self._database, parameters or {})
        return Results(await self._process.call(name, [self._alive(statement) for statement in statements]))

    async def _write(self, name: str, parameters: Mapping[str, Any]) -> Results:
        """A statement on the letters; outside a transaction it commits at once."""
        open_, effects = self._effects, list[Callable[[], None]]()

        def run() -> Rows:
            rows, effect = _WRITES[name](self._database, parameters)
            effects.append(effect)
            if open_ is None:
                self._commit(effects)
            else:
                open_.extend(effects)
            return rows

        return Results(await self._process.call(name, [self._alive(run)]))

    async def pieces(self, text: bytes, parameters: Mapping[str, Any]) -> Rows:
        """Changes, as the statements for pages have them: in sheaves, of a few ids each."""
        return _pieces((await self.execute(text, parameters)).all[-1])

    async def several(self, text: bytes, parameters: Mapping[str, Any] | None = None) -> list[Rows]:
        results = await self.execute(text, parameters)
        return [rows for rows in results.all if rows is not NOTHING]

    async def planned(self, text: bytes, values: Sequence[bytes]) -> tuple[Any, ...]:
        """The look: its statements one after the other, and what they found as one row."""
        names = ("after", "first", "last", "deep", "limit", "bytes", "row_bytes")
        asked = {name: _value(value.decode()) for name, value in zip(names, values, strict=True)}
        *seen, page = (await self.execute(text, asked)).all
        return (
            *(value for rows in seen for row in rows for value in row),
            *(zip(*page, strict=True) if page else [None] * 10),
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        await self._process.call("begin", [self._alive(_nothing)])
        effects: list[Callable[[], None]] = []
        self._effects = effects
        try:
            yield
        finally:
            self._effects = None
        await self._process.call("commit", [self._alive(lambda: self._commit(effects))])

    def _commit(self, effects: list[Callable[[], None]]) -> Rows:
        for effect in effects:
            effect()
        if effects:
            self._database.spend_xid(flush=True)
        return []

    async def close(self) -> None:
        self.broken = True

    def _alive(self, statement: Statement) -> Statement:
        def run() -> Rows:
            if self.broken or self._incarnation != self._database.incarnation:
                raise psycopg.OperationalError("server closed the connection unexpectedly")
            return statement()

        return run


# -- the queries, as sql/queries has them ----------------------------------------------------------------------


NOTHING: Rows = []  # of a statement that answers without rows


def _nothing() -> Rows:
    return NOTHING


def _identity(database: Database, _: Mapping[str, Any]) -> list[Statement]:
    now = [("7001", False, 170000, 1, 0, NEEDS), (1, database.incarnation)]  # timeline, since when the server runs
    return [lambda: [now[0] + now[1] if _asks("source_identity", "pg_postmaster_start_time") else now[0]]]


def _floor(database: Database, _: Mapping[str, Any]) -> list[Statement]:
    return [
        _nothing,
        lambda: [(database.sequence,)],
        lambda: [(database.spend_xid(flush=False),)],
        _nothing,
    ]


def _flush(database: Database, _: Mapping[str, Any]) -> list[Statement]:
    return [lambda: [(database.spend_xid(flush=True),)]]


def _window_open(database: Database, _: Mapping[str, Any]) -> list[Statement]:
    """Its statements in their order."""
    since, lsn, pruned = _OPEN
    return [
        _nothing,
        lambda: [(database.snapshot(), False, database.incarnation) if since else (database.snapshot(), False)],
        lambda: [(database.sequence,)],
        *([lambda: [(database.pruned, "")]] if pruned else []),
        lambda: [(database.lsn <= database.flushed, database.now_us, *([f"0/{database.flushed:X}"] if lsn else []))],
        _nothing,
    ]


def _window_look(database: Database, p: Mapping[str, Any]) -> list[Statement]:
    """As window_open, and between its statements what the snapshot sees of the changes; these come last."""
    inside, looked = _within(p), list[Any]()
    _, snapshot, ceiling, *pruned, log, _ = _window_open(database, p)

    def noted() -> Rows:
        rows = snapshot()
        looked.append(rows[0][0])
        return rows

    def page() -> Rows:
        visible = seen(looked[0])
        found = (c for c in database.kept if p["after"] < c.id and inside(c.xid) and visible(c.xid))
        looked.append(_limited(found, p) if looked[1] <= p["deep"] else [])
        return []

    def counted() -> Rows:
        rows = ceiling()
        looked.append(rows[0][0])
        return rows

    return [noted, counted, page, *pruned, log, lambda: looked[2]]


def _by_id(database: Database, p: Mapping[str, Any]) -> list[Statement]:
    before, goal = seen(p["from_snapshot"]), seen(p["to_snapshot"])
    return [
        lambda: _limited(
            (c for c in database.kept if p["after"] < c.id <= p["upto"] and not before(c.xid) and goal(c.xid)), p
        )
    ]


def _by_id_small(database: Database, p: Mapping[str, Any]) -> list[Statement]:
    """Rows are not added up; one that is larger than its share is left out."""
    (by_id,) = _by_id(database, {**p, "bytes": 10**9})
    return [lambda: [c if c.size <= p["row_bytes"] else c._replace(row=None) for c in by_id()]]


def _by_xid(database: Database, p: Mapping[str, Any]) -> list[Statement]:
    inside = _within(p)
    return [lambda: _limited((c for c in database.kept if p["after"] < c.id <= p["upto"] and inside(c.xid)), p)]


def _beyond(database: Database, p: Mapping[str, Any]) -> list[Statement]:
    inside = _within(p)
    return [
        lambda: list({c.xid: c.id for c in database.kept if p["upto"] < c.id <= p["ceiling"] and inside(c.xid)}.items())
    ]


def _rest(database: Database, p: Mapping[str, Any]) -> list[Statement]:
    begun = dict(zip(_numbers(p["xids"]), _numbers(p["above"]), strict=True))
    return [lambda: [c for c in database.kept if c.xid in begun and begun[c.xid] < c.id <= p["upto"]]]


def _shapes(_: Database, p: Mapping[str, Any]) -> list[Statement]:
    return [lambda: [(id_, SHAPE[id_]) for id_ in p["ids"]]]


def _held_wanted(database: Database, p: Mapping[str, Any]) -> list[Statement]:
    """Rows are whole here: the newest letter of a key decides. Nobody drops any."""
    passed = _passed(p)

    def run() -> Rows:
        letters = sorted(database.letters.values(), key=lambda letter: letter.change.id)
        keys = {(letter.change.table, letter.change.key) for letter in letters if letter.wanted}
        newest = {(c.table, c.key): c for c in (letter.change for letter in letters) if passed(c)}
        changes = sorted((c for key, c in newest.items() if key in keys), key=lambda c: c.id)
        return [(*c[:8], False, c.created_us, False) for c in changes]

    return [run]


def _pruned(database: Database, _: Mapping[str, Any]) -> list[Statement]:
    return [lambda: [(database.pruned,)]]


def _remembered(database: Database, _: Mapping[str, Any]) -> list[Statement]:
    return [lambda: [(*note, "") for _, note in database.notes[-1:]]]


def _still_leads(database: Database, p: Mapping[str, Any]) -> list[Statement]:
    return [lambda: [(all(epoch <= p["epoch"] for _, (epoch, _) in database.notes),)]]


def _remember(database: Database, p: Mapping[str, Any]) -> list[Statement]:
    def run() -> Rows:
        database.note((p["epoch"], p["batch_no"]))
        return []

    return [run]


def _mark_sum(database: Database, p: Mapping[str, Any]) -> list[Statement]:
    inside, torn = _within(p), dict(zip(_numbers(p["torn"]), _numbers(p["upto"]), strict=True))

    def run() -> Rows:
        times = [c.created_us for c in database.kept if inside(c.xid) or c.id <= torn.get(c.xid, 0)]
        return [(len(times), sum(times) % 10**15)]

    return [run]


def _mark_named(database: Database, p: Mapping[str, Any]) -> list[Statement]:
    named = list(zip(_numbers(p["xids"]), _numbers(p["ids"]), _numbers(p["times"]), strict=True))

    def run() -> Rows:
        there = {(c.xid, c.id, c.created_us) for c in database.kept}
        ids, xids = {c.id for c in database.kept}, {c.xid for c in database.kept}
        return [(id_, (xid, id_, at) in there, id_ in ids or xid in xids) for xid, id_, at in named]

    return [run]


def _copy_wanted(_: Database, __: Mapping[str, Any]) -> list[Statement]:
    return [_nothing]


def _identities(_: Database, p: Mapping[str, Any]) -> list[Statement]:
    """Nothing is ever watched in another way."""
    return [lambda: [(table, True, None, None, None, True, False) for table in p["tables"]]]


def _heartbeat(_: Database, __: Mapping[str, Any]) -> list[Statement]:
    """The model writes none: nothing was written."""
    return [lambda: [(None,)]]


def _on_error(_: Database, __: Mapping[str, Any]) -> list[Statement]:
    return [_nothing]


_STATEMENTS: dict[str, Callable[[Database, Mapping[str, Any]], list[Statement]]] = {
    "source_identity": _identity,
    "floor": _floor,
    "flush": _flush,
    "window_open": _window_open,
    "window_look": _window_look,
    "window_by_id": _by_id,
    "window_by_id_small": _by_id_small,
    "window_by_xid": _by_xid,
    "window_beyond": _beyond,
    "window_rest": _rest,
    "shapes": _shapes,
    "held_wanted": _held_wanted,
    "letters_identities": _identities,
    "held_orphans": _copy_wanted,
    "on_error": _on_error,
    "letters_wake": _on_error,
    "letters_hurdles": _copy_wanted,
    "copy_wanted": _copy_wanted,
    "copy_met": _copy_wanted,
    "copy_notice": _copy_wanted,
    "uncaptured": _copy_wanted,
    "verify_wanted": _copy_wanted,
    "heartbeat": _heartbeat,
    "pruned": _pruned,
    "remembered": _remembered,
    "remember": _remember,
    "still_leads": _still_leads,
    "mark_sum": _mark_sum,
    "mark_named": _mark_named,
}


# -- what writes: its rows, and what its commit does -------------------------------------------------------------


def _hold(database: Database, p: Mapping[str, Any]) -> tuple[Rows, Callable[[], None]]:
    wanted = set(zip(map(int, p["xids"]), p["ids"], strict=True))
    changes = [change for change in database.kept if (change.xid, change.id) in wanted]

    def effect() -> None:
        for change in changes:
            database.letters.setdefault(change.id, Letter(change))

    return list(changes), effect


def _hold_again(database: Database, p: Mapping[str, Any]) -> tuple[Rows, Callable[[], None]]:
    def effect() -> None:
        again = {_hashed(database.letters[id_].change) for id_ in p["ids"] if id_ in database.letters}
        for letter in database.letters.values():
            if _hashed(letter.change) in again:
                letter.wanted = False

    return [], effect


def _forget(database: Database, p: Mapping[str, Any]) -> tuple[Rows, Callable[[], None]]:
    last = dict(zip(zip(p["tables"], p["keys"], strict=True), p["last"], strict=True))
    passed = _passed(p)
    gone = [
        id_
        for id_, held in database.letters.items()
        if (key := (held.change.table, held.change.key)) in last
        and passed(held.change)
        and (last[key] is None or id_ <= last[key])
    ]

    def effect() -> None:
        for id_ in gone:
            database.letters.pop(id_, None)

    return [(len(gone), 0)], effect


def _settle(database: Database, p: Mapping[str, Any]) -> tuple[Rows, Callable[[], None]]:
    kept, passed = set(zip(p["tables"], p["keys"], strict=True)), _passed(p)
    gone = [id_ for id_, held in database.letters.items() if _hashed(held.change) not in kept and passed(held.change)]
    left = sum(not passed(held.change) for held in database.letters.values())

    def effect() -> None:
        for id_ in gone:
            database.letters.pop(id_, None)

    return [(None, left)], effect


def _arrived(database: Database, p: Mapping[str, Any]) -> tuple[Rows, Callable[[], None]]:
    passed = _passed(p)
    gone = [id_ for id_ in p["ids"] if id_ in database.letters and passed(database.letters[id_].change)]

    def effect() -> None:
        for id_ in gone:
            database.letters.pop(id_, None)

    return [(len(gone),)], effect


def _hashed(change: Change) -> tuple[str, str]:
    return change.table, hashlib.md5(change.key.encode(), usedforsecurity=False).hexdigest()


_WRITES: dict[str, Callable[[Database, Mapping[str, Any]], tuple[Rows, Callable[[], None]]]] = {
    "hold": _hold,
    "hold_again": _hold_again,
    "held_arrived": _arrived,
    "held_forget": _forget,
    "held_settle": _settle,
}


def _passed(p: Mapping[str, Any]) -> Callable[[Change], bool]:
    sees, torn = seen(p["snapshot"]), dict(zip(map(int, p["torn"]), p["upto"], strict=True))
    return lambda change: sees(change.xid) or change.id <= torn.get(change.xid, 0)


def seen(snapshot: str) -> Callable[[int], bool]:
    """pg_visible_in_snapshot, written without daemon.snapshot, which is under test."""
    _, end, listed = snapshot.split(":")
    xmax, running = int(end), frozenset(map(int, listed.split(","))) if listed else frozenset()
    return lambda xid: xid < xmax and xid not in running


def _within(p: Mapping[str, Any]) -> Callable[[int], bool]:
    runs = list(zip(_numbers(p["first"]), _numbers(p["last"]), strict=True))
    return lambda xid: any(first <= xid <= last for first, last in runs)


def _value(text: str) -> int | str:
    return text if text.startswith("{") else int(text)


def _numbers(array: str) -> list[int]:
    return list(map(int, array[1:-1].split(","))) if len(array) > 2 else []


def _pieces(changes: Iterable[Change]) -> Rows:
    sheaves: dict[tuple[Any, ...], list[Change]] = {}
    for c in changes:
        sheaves.setdefault((c.id >> 2, c.table, c.op, c.shape, c.row is None), []).append(c)
    return [
        (
            table, op, shape, any(c.unflushed for c in alike),
            b"".join(number.to_bytes(8, "big") for c in alike for number in (c.id, c.xid, c.created_us, c.size)),
            "\x1d".join(c.key for c in alike).encode(), None if bare else "\x1d".join(c.row or "" for c in alike).encode(),
        )
        for (_, table, op, shape, bare), alike in sheaves.items()
    ]  # fmt: skip


def _limited(changes: Iterable[Change], p: Mapping[str, Any]) -> Rows:
    page: Rows = []
    size = 0
    for change in changes:
        if len(page) == p["limit"] or (page and size >= p["bytes"]):
            break
        page.append(change)
        size += change.size
    return page
