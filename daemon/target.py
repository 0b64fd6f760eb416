"""The Supabase project: one door, two ways to reach it; the direct one is here, the other in daemon.rest.

Knows the door's documents and answers, and how a direct connection fails. Knows nothing of the source or of
windows. A request is never repeated here: the relay decides, from the cursor that the target states.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import psycopg
from psycopg import sql
from psycopg.adapt import Dumper
from psycopg.pq import Format

from daemon import answers
from daemon.breaker import Breaker
from daemon.connection import SETTINGS, cause, connect, turned_away
from daemon.errors import Fenced, Kind, Refusal, TargetError, classify, counts
from daemon.plan import SEPARATOR, Plan
from daemon.refusal_words import spoken
from daemon.sheaf import Pieces
from outbox import Cursor
from outbox.migrations import migrations


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the target says it stands: the only place a relay goes on from. `digest` is its last batch's."""

    epoch: int
    batch_no: int
    cursor: Cursor | None
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """`what`: claimed, cursor, described, extra, keys, held, spelled, isolated, rebased, applied, duplicate or mismatch."""

    what: str
    standing: Standing
    more: Mapping[str, Any] = field(default_factory=dict)


def digest_of(plan: Plan, cursor: Cursor) -> str:
    """What tells a batch from every other of its number: what it writes, and where it leads. A batch planned anew may
    write the same rows and lead further than the first of its number."""
    leads_to = f"{plan.digest} {cursor.snapshot} {cursor.torn}"
    return hashlib.blake2b(leads_to.encode(), digest_size=16).hexdigest()


# Once, so that an upgrade on disk does not mix with the version that runs.
NEEDS = migrations("target")[-1].version


def require_schema(claimed: Answer) -> None:
    """Schema outboxd must have what this version asks of it; what a newer one added is in nobody's way."""
    version = claimed.more.get("migration")
    if version is not None and version < NEEDS:
        said = (
            f"schema outboxd is at migration {version}, this outboxd needs {NEEDS}: run `outboxd setup target` with this "
            "version; it goes on by itself"
        )
        raise TargetError(
            Kind.CONTRACT, "the target's schema is older than this outboxd", Refusal("OB008", message=said)
        )


def require_known(standing: Standing, place: str, known: tuple[int, int, str]) -> None:
    """Is it the target of this relay that the source knows (epoch, batch number, address)? One that stands behind it was
    restored from a backup, which is no matter; at another address it is a copy, and the one it is of may go on without
    what this one would be sent. None is ahead by more than can have been done since: that would stay."""
    if max(standing.epoch - known[0], standing.batch_no - known[1]) > answers.REACH:
        raise TargetError(Kind.AMBIGUOUS, "the target's answer is not one of outboxd's (it is ahead out of reach)")
    if standing.cursor is not None and (said := unknown(standing, place, known)):
        raise TargetError(
            Kind.CONTRACT, "the target is not the one that the source knows", Refusal("OB010", message=said)
        )


def require_reached(standing: Standing, batch_no: int) -> None:
    """Can it have come there from where it stood last?"""
    if standing.batch_no - batch_no > answers.REACH:
        raise TargetError(Kind.AMBIGUOUS, "the target's answer is not one of outboxd's (batch_no)")


def unknown(standing: Standing, place: str, known: tuple[int, int, str]) -> str | None:
    """Why this target is not the one that the source knows; None: it is, as far as can be told. One that stands nowhere is
    a new one, and may be meant: whoever claims it begins there."""
    epoch, batch_no, before = known
    behind = standing.epoch < epoch or standing.batch_no < batch_no
    if not behind or not place or not before or place == before:
        return None
    stands = "is new to this relay" if standing.cursor is None else f"stands at batch {standing.batch_no}"
    return (
        f"the target at {place} {stands}, and the one that the source knows, at {before}, at batch "
        f"{batch_no}: it is another one, or was restored into another project; where {place} is to take its place, "
        "`outboxd rebase` (a dry run first) leads on; else set the target's address (SUPABASE_URL, SUPABASE_DB_URL) right"
    )


def _behind(after: str | None) -> dict[str, str]:
    return {} if after is None else {"after": after}


class Door(Protocol):
    """A transport: carries one document there and one answer back."""

    async def send(self, document: bytes) -> str:
        """The answer's JSON. Raises TargetError, of kind AMBIGUOUS when the document may have been applied."""

    async def close(self) -> None:
        """Let go of connections."""


class Placed(Door, Protocol):
    """One that knows by what address the target is reached."""

    @property
    def place(self) -> str: ...


class Target:
    """The door behind a breaker. `observe(mode, outcome, seconds, bytes)` is told of every request. `place`: by what
    address the target is reached now; empty: that is not known."""

    def __init__(
        self, door: Door, relay: str, breaker: Breaker, observe: Callable[[str, str, float, int], None] | None = None,
        *, place: Callable[[], str] = lambda: "",
    ) -> None:  # fmt: skip
        self._door = door
        self.place = place
        self._relay = relay
        self.breaker = breaker
        self._observe = observe or (lambda *_: None)

    @property
    def relay(self) -> str:
        """The name under which the target keeps the cursor."""
        return self._relay

    async def claim(self, above: int = 0, since: int | None = None) -> Answer:
        """Become the one writer, with an epoch above this one: an older claimant is fenced from now on. `since`: the batch at which it
        stood just now; None: that is not known."""
        stood = {} if since is None else {"batch_no": since}
        return await self._ask({"mode": "claim", "relay": self._relay, "epoch_above": above, **stood})

    async def rebase(self, cursor: Cursor, keep: Sequence[tuple[str, str]], above: int = 0) -> Answer:
        """Begin anew from this cursor: whoever writes is fenced, and of the held keys only `keep` stay held."""
        header = {"mode": "rebase", "relay": self._relay, "epoch_above": above, "keep": keep}
        return await self._ask({**header, "cursor": json.loads(cursor.to_json())})

    async def cursor(self) -> Answer:
        """Where the target stands, once everything in flight has ended."""
        return await self._ask({"mode": "cursor", "relay": self._relay})

    async def describe(self) -> Answer:
        """The target's tables, keys, grants and foreign keys."""
        return await self._ask({"mode": "describe", "relay": self._relay})

    async def advise(self) -> Answer:
        """What others may do by way of the mirrored tables."""
        return await self._ask({"mode": "advise", "relay": self._relay})

    async def unwritten(self, table: str, place: str | None, held: Pieces = (), many: int = 0) -> Answer:
        """Keys of rows that have not been written since the table's copy began, from a place in the table on. And which of
        these keys (`no_values`: their places) can be no row's there."""
        return await self._ask({"mode": "extra", "relay": self._relay, "table": table, "place": place}, held, many=many)

    async def keys(self, table: str, after: str | None, most: int, began: float) -> Answer:
        """The next keys of the table's rows there, in the order of its key, for the pass that began then."""
        asked = {"table": table, "after": after, "most": most, "began": began}
        return await self._ask({"mode": "keys", "relay": self._relay, **asked})

    async def held(self, after: Sequence[str]) -> Answer:
        """More of the keys that the target holds, behind those that an answer had."""
        return await self._ask({"mode": "held", "relay": self._relay, "after": after})

    async def spelled(self, table: str, keys: Pieces, many: int) -> Answer:
        """So many keys of a table as its types there spell them; None in place of those that they do not take."""
        return await self._ask({"mode": "spell", "relay": self._relay, "table": table}, keys, many=many)

    async def apply(
        self, plan: Plan, cursor: Cursor, epoch: int, batch_no: int, *, after: str | None = None, singly: bool = False,
        gently: bool = False,
    ) -> Answer:  # fmt: skip
        """Lead the target to `cursor` by this plan: applied, duplicate or mismatch. Raises Fenced or TargetError.

        `after` is the digest of the batch that this one was read behind; None: whatever it was. `singly`: row by row.
        `gently`: it waits for locks of others no longer than a second.
        """
        header = {**self._header("apply", plan, cursor, epoch, batch_no), **_behind(after)}
        how = {name: True for name, asked in (("singly", singly), ("gently", gently)) if asked}
        return await self._ask({**header, **how}, plan.pieces, plan=plan)

    async def takes(self, size: int, epoch: int) -> bool:
        """Does a request of so many bytes come through, whatever it says? This one has the number of no batch."""
        header = {"mode": "apply", "relay": self._relay, "epoch": epoch, "batch_no": 0, "digest": "", "cursor": {}}
        try:
            await self._ask({**header, "padding": "x" * size})
        except TargetError as exc:
            if exc.kind is Kind.SIZE:
                return False
            raise
        return True

    async def isolate(
        self, plan: Plan, cursor: Cursor, epoch: int, batch_no: int, *, after: str | None = None
    ) -> Answer:
        """Which rows of this plan does the target refuse? Changes nothing: isolated, duplicate or mismatch."""
        header = {**self._header("isolate", plan, cursor, epoch, batch_no), **_behind(after)}
        return await self._ask(header, plan.pieces, plan=plan)

    def _header(self, mode: str, plan: Plan, cursor: Cursor, epoch: int, batch_no: int) -> dict[str, Any]:
        return {
            "mode": mode, "relay": self._relay, "epoch": epoch, "batch_no": batch_no, "digest": digest_of(plan, cursor),
            "cursor": json.loads(cursor.to_json()),
        }  # fmt: skip

    async def close(self) -> None:
        """Let go of the transport."""
        await self._door.close()

    async def _ask(
        self, header: Mapping[str, Any], body: Pieces = (), *, many: int = 0, plan: Plan | None = None
    ) -> Answer:
        document = b"".join((json.dumps(header, separators=(",", ":")).encode(), SEPARATOR if body else b"", *body))
        started, outcome = time.monotonic(), "retryable"
        # That the target can say where it stands does not mean that it can take a batch.
        with self.breaker.attempt(light=header["mode"] in answers.QUESTIONS) as attempt:
            try:
                answer = _answer(await self._door.send(document), header, many, plan)
                outcome = "ok"
                return answer
            except TargetError as exc:
                if counts(exc):
                    attempt.failed(str(exc), exc.retry_after)
                else:
                    outcome = "refused"
                    attempt.answered()
                raise
            except Fenced:
                outcome = "refused"
                attempt.answered()
                raise
            finally:
                self._observe(str(header["mode"]), outcome, time.monotonic() - started, len(document))


def _answer(text: str, header: Mapping[str, Any], many: int, plan: Plan | None) -> Answer:
    """Read the door's answer. Anything that is not one to this request is ambiguous: a captive portal, a cut body."""

    def groups() -> list[tuple[str, int]]:
        return [(one.op, 1 if one.op == "truncate" else len(one.keys)) for one in plan.groups] if plan else []

    try:
        given = answers.read(text, header, needs=NEEDS, many=many, groups=groups)
    except answers.Unfit as exc:
        raise TargetError(Kind.AMBIGUOUS, f"the target's answer is not one of outboxd's ({exc})") from None
    what, more = given["answer"], given["more"]
    if what == "fenced":
        raise Fenced("another process has claimed this relay on the target since")
    if what == "refused":
        named = (more.get(name) for name in ("table", "constraint", "column", "message"))
        names = replace(Refusal(more["sqlstate"], None, *named), gear=more.get("gear"))
        raise TargetError(classify(names.sqlstate), f"the target refused the batch ({names.sqlstate})", names)
    cursor = Cursor.from_json(json.dumps(given["cursor"])) if given["cursor"] else None
    return Answer(what, Standing(given["epoch"], given["batch_no"], cursor, given["digest"]), more)


# The exposed function carries these for PostgREST; a statement_timeout of a function's own does nothing by itself.
_SETTINGS = {**SETTINGS, "statement_timeout": "12s", "lock_timeout": "6s"}
_LOCALLY = (
    "set transaction isolation level read committed, read write; "
    "set local statement_timeout = '12s'; set local lock_timeout = '6s'"
)


class PostgresDoor:
    """Direct connections to the project's database, one a request on its way: no gateway in between."""

    def __init__(
        self, dsn: str, *, exposed_schema: str = "public", deadline: float = 20.0, application_name: str = "outboxd"
    ) -> None:
        self._dsn = dsn
        self._name = application_name
        self._deadline = deadline
        self._call = sql.SQL("select {}(%s)::text").format(sql.Identifier(exposed_schema, "outboxd"))
        self._idle: list[_Line] = []

    @property
    def place(self) -> str:
        """The address of the database, without anything secret."""
        given = psycopg.conninfo.conninfo_to_dict(self._dsn)
        return f"{given.get('host', '')}:{given.get('port', 5432)}/{given.get('dbname', '')}"

    async def send(self, document: bytes) -> str:
        """Call the function in a transaction of its own."""
        line: _Line | None = None
        try:
            async with asyncio.timeout(self._deadline):
                line = self._idle.pop() if self._idle else await self._opened()
                row = await self._called(line, document)
        except TimeoutError:
            await _drop(line)
            raise TargetError(
                Kind.TRANSIENT if line is None else Kind.AMBIGUOUS,
                f"the target did not answer within {self._deadline:g} s",
            ) from None
        except psycopg.Error as exc:
            broken = line is None or line.conn.closed or line.conn.broken
            if broken:
                await _drop(line)
            elif line is not None:
                self._idle.append(line)
            raise _postgres_error(exc, sent=line is not None, broken=broken) from None
        except BaseException:
            await _drop(line)
            raise
        self._idle.append(line)
        return str(row[0]) if row else ""

    async def close(self) -> None:
        """Close the connections."""
        lines, self._idle = self._idle, []
        for line in lines:
            await _drop(line)

    async def _opened(self) -> "_Line":
        conn = await connect(self._dsn, self._name, settings=_SETTINGS, patience=self._deadline)
        conn.adapters.register_dumper(bytes, _AsText)
        try:
            row = await (await conn.execute("show statement_timeout")).fetchone()
        except BaseException:
            await conn.close()
            raise
        return _Line(conn, row is not None and row[0] == _SETTINGS["statement_timeout"])

    async def _called(self, line: "_Line", document: bytes) -> Any:
        if line.told:
            return await (await line.conn.execute(self._call, (document,))).fetchone()
        # A pooler swallowed them. What is SET for a session there may reach somebody else's.
        async with line.conn.transaction():
            await line.conn.execute(_LOCALLY)
            return await (await line.conn.execute(self._call, (document,))).fetchone()


class _AsText(Dumper):
    """A document as the text that it is."""

    oid = 25
    format = Format.BINARY

    def dump(self, obj: bytes) -> bytes:
        return obj


@dataclass(frozen=True, slots=True)
class _Line:
    """A connection. `told`: did the server take our settings?"""

    conn: psycopg.AsyncConnection[Any]
    told: bool


async def _drop(line: _Line | None) -> None:
    if line is not None:
        await line.conn.close()


def _postgres_error(exc: psycopg.Error, *, sent: bool, broken: bool) -> TargetError:
    if broken and sent:
        return TargetError(Kind.AMBIGUOUS, f"the connection failed before the answer ({cause(exc)})")
    code = exc.sqlstate
    if code is None:
        kind = Kind.AUTH if turned_away(exc) else Kind.TRANSIENT
        return TargetError(kind, f"no connection to the target's database ({cause(exc)})")
    said = spoken(code, exc.diag.message_primary, exc.diag.context) if code in {"42501", "42883", "3F000"} else None
    return TargetError(classify(code), f"the target answered {code}", Refusal(code, message=said))
