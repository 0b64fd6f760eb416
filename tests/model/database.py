"""The application's Postgres in miniature: transactions, row locks, ids, snapshots, a log that a crash cuts.

Knows how Postgres gives out transaction ids and makes commits visible. Knows nothing of outboxd but the table
outbox.change and lock K, which writers try.
"""

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter

from daemon.sheaf import Change

TABLES = ("public.account", "public.entry")
SHAPE = {0: ("id", "v"), 1: ("id", "v")}

Key = tuple[str, int]


@dataclass(slots=True)
class Session:
    """An application's connection, with its transaction if it has one."""

    number: int
    xid: int = 0  # 0: none yet
    durable: bool = True  # synchronous_commit
    changes: list[Change] = field(default_factory=list)
    locks: set[Key] = field(default_factory=set)
    waits: tuple[str, str, int] | None = None  # op, table, key: wants a lock that another one has
    writing: tuple[str, str, int] | None = None  # has the lock, and the row written; captures next
    awake: bool = False  # holds K shared: the relay was awake
    rings: bool = False  # will notify: the relay slept


@dataclass(slots=True)
class Letter:
    """A row of outbox.held."""

    change: Change
    wanted: bool = False  # a person asked for a retry


@dataclass(slots=True)
class Committed:
    """A transaction that has committed: where in the log."""

    lsn: int
    changes: list[Change]


class Database:
    """What the source's server keeps. `on_notify` is called when a commit notifies."""

    def __init__(self) -> None:
        self.incarnation = 1
        self.version = 0  # of what is committed
        self.next_xid = 100
        self.ended = 99  # the latest transaction that has ended
        self.running: dict[int, Session | None] = {}
        self.committed: dict[int, Committed] = {}
        self.changes: list[Change] = []  # of committed transactions, in id order; pruned ones, too
        self.pruned = 0
        self.letters: dict[int, Letter] = {}  # durable: whoever writes one waits for the disk
        self.notes: list[tuple[int, tuple[int, int]]] = []  # lsn, and the epoch and batch number it was told
        self.sequence = 0
        self.values = 0
        self.lsn = 0
        self.flushed = 0
        self.log: list[tuple[int, int, int]] = []  # lsn, xid, id
        self.locks: dict[Key, Session] = {}  # key 0: the whole table
        self.sleeper: object | None = None  # who holds K exclusively
        self.sharers = 0  # how many hold it shared
        self.now_us = 1
        self.on_notify: Callable[[], None] = lambda: None

    # -- writers ---------------------------------------------------------------------------------------------

    def blocked(self, session: Session, table: str, key: int) -> bool:
        """Must this session wait for somebody's lock?"""
        if key:
            holders = self.locks.get((table, key)), self.locks.get((table, 0))
            return any(holder is not None and holder is not session for holder in holders)
        return any(holder is not session for (of, _), holder in self.locks.items() if of == table)

    def write(self, session: Session, op: str, table: str, key: int) -> bool:
        """Lock and write the row; False when it has to wait. Its change gets no id before `capture`."""
        if self.blocked(session, table, key):
            session.waits = (op, table, key)
            return False
        session.waits = None
        self.locks[table, key] = session
        session.locks.add((table, key))
        if not session.xid:
            session.xid = self._begin(session)
        session.writing = (op, table, key)
        return True

    def capture(self, session: Session, *, poisoned: bool = False) -> Change:
        """The trigger: an id, a row in the outbox, and K."""
        assert session.writing is not None
        (op, table, key), session.writing = session.writing, None
        self.sequence += 1
        row = None
        if op == "upsert":
            self.values += 1
            row = f'{{"id":{key},"v":{-self.values if poisoned else self.values}}}'
        self.now_us += 1
        change = Change(
            session.xid, self.sequence, table, op, TABLES.index(table) if row else None,
            f'{{"id":{key}}}' if key else "{}", row, len(row or ""), not session.durable, self.now_us,
        )  # fmt: skip
        session.changes.append(change)
        self._log(session.xid, change.id)
        if self.sleeper is None:
            self.sharers += not session.awake
            session.awake = True
        elif not session.awake:
            session.rings = True
        return change

    def commit(self, session: Session) -> None:
        """Visible at once; on disk at once only when the session waits for that."""
        if session.xid:
            lsn = self._log(session.xid, 0)
            if session.durable:
                self.flushed = lsn
            self.committed[session.xid] = Committed(lsn, session.changes)
            for change in session.changes:
                insort(self.changes, change, key=attrgetter("id"))
            self._end(session.xid)
        rings = session.rings
        self.release(session)
        if rings:
            self.on_notify()

    def rollback(self, session: Session) -> None:
        """As if it had never been, but for the numbers it drew."""
        if session.xid:
            self._end(session.xid)
        self.release(session)

    def release(self, session: Session) -> None:
        """The session has no transaction any more."""
        for lock in session.locks:
            del self.locks[lock]
        self.sharers -= session.awake
        session.xid, session.changes, session.locks = 0, [], set()
        session.waits = session.writing = None
        session.awake = session.rings = False

    # -- readers ---------------------------------------------------------------------------------------------

    @property
    def kept(self) -> list[Change]:
        """The committed changes that are still in the outbox."""
        return [change for change in self.changes if change.id > self.pruned] if self.pruned else self.changes

    def snapshot(self) -> str:
        """pg_current_snapshot()."""
        xmax = self.ended + 1
        running = sorted(xid for xid in self.running if xid < xmax)
        return f"{running[0] if running else xmax}:{xmax}:{','.join(map(str, running))}"

    def spend_xid(self, *, flush: bool) -> int:
        """A transaction of the reader's own."""
        xid = self._begin(None)
        lsn = self._log(xid, 0)
        if flush:
            self.flushed = lsn
        self._end(xid)
        return xid

    def prune(self, floor_id: int) -> None:
        """Let go of everything up to a floor that the target has stated, however new it is."""
        gone = max((change.id for change in self.kept if change.id <= floor_id), default=0)
        if gone:
            self.pruned = gone
            self.spend_xid(flush=True)

    def want(self) -> None:
        """A person asks for a retry of every dead letter, and rings."""
        for letter in self.letters.values():
            letter.wanted = True
        if self.sleeper is not None:
            self.on_notify()

    def note(self, told: tuple[int, int]) -> None:
        """Where the target stands. Not flushed."""
        epoch = max(told[0], self.notes[-1][1][0] if self.notes else 0)
        self.spend_xid(flush=False)
        self.notes.append((self.lsn, (epoch, told[1])))

    # -- the server ------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """The log writer came round."""
        self.flushed = self.lsn

    def crash(self, sessions: list[Session]) -> list[int]:
        """Start again from the log. Returns the transactions that had committed and are gone.

        Numbers are given again as far as the log allows: harsher than Postgres, which logs a sequence ahead.
        """
        self.log = [record for record in self.log if record[0] <= self.flushed]
        lost = [xid for xid, transaction in self.committed.items() if transaction.lsn > self.flushed]
        for xid in lost:
            del self.committed[xid]
        self.changes = [change for change in self.changes if change.xid in self.committed]
        self.notes = [note for note in self.notes if note[0] <= self.flushed]
        self.lsn = self.flushed
        self.next_xid = 1 + max((xid for _, xid, _ in self.log), default=99)
        self.ended = self.next_xid - 1
        self.sequence = max((id_ for _, _, id_ in self.log), default=0)
        self.running.clear()
        self.sleeper = None
        for session in sessions:
            self.release(session)
        assert not self.locks
        assert not self.sharers
        self.incarnation += 1
        self.version += 1
        return lost

    def _begin(self, session: Session | None) -> int:
        xid = self.next_xid
        self.next_xid += 1
        self.running[xid] = session
        return xid

    def _end(self, xid: int) -> None:
        del self.running[xid]
        self.ended = max(self.ended, xid)
        self.version += 1

    def _log(self, xid: int, id_: int) -> int:
        self.lsn += 1
        self.log.append((self.lsn, xid, id_))
        return self.lsn
