"""The dead letters: changes kept on the source because the target refuses them.

Knows table outbox.held and the connection of the source. Knows nothing of the target: which keys are held, the
relay says. Rows are copied inside Postgres; they come here only to be sent again.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from daemon.connection import Link
from daemon.errors import Fenced, SourceUnavailable
from daemon.hold import BEHIND, Identity, Key, Letter, Why
from daemon.session import query
from daemon.sheaf import GLUE, Change, Sheaf, Sheaves, split
from daemon.source import Source
from outbox import Cursor

_PAGE = 5000  # letters that one statement marks or removes: there may be very many, of one key too
_BEFORE_ALL = -(2**63)

OUT = "OB010"  # in place of an SQLSTATE: nothing is wrong with the change, its table is out
LEFT = Why(
    "it was recorded while its table was watched as something else, and no copy brings the row any more: discard it",
    "OB013",
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Letters that are to be sent again, in id order: of each key those that decide what becomes of it. And keys of which
    all letters are to be dropped. Headers: see Batch."""

    retry: tuple[Change, ...]
    shapes: Mapping[int, tuple[str, ...]]
    discard: frozenset[Key]
    headers: tuple[str, ...] = ()
    headers_left_out: int = 0


@dataclass(frozen=True, slots=True)
class Parked:
    """The first letters of a table that is out, in id order."""

    changes: tuple[Change, ...]
    shapes: Mapping[int, tuple[str, ...]]


class Letters:
    """Dead letters on the source, on the connection that reads. `term`: the relay and the epoch with which it leads; whoever does
    not write needs none.

    Promise I6: each transaction that writes proves before its end that nobody leads since, and keeps it so until then.
    One that was frozen meanwhile would leave letters of what has arrived, or remove those of others.
    """

    def __init__(self, source: Source, term: Callable[[], tuple[str, int]] | None = None) -> None:
        self._source = source
        self._term = term

    @asynccontextmanager
    async def _writing(self, *, durably: bool = False) -> AsyncIterator[Link]:
        """A transaction that writes letters. Raises Fenced where another one leads by now."""
        assert self._term is not None
        relay, epoch = self._term()
        async with self._source.connected() as conn, conn.transaction():
            if durably:
                await conn.execute("set local synchronous_commit = on")
            yield conn
            proof = await conn.execute(query("still_leads"), {"relay": relay, "epoch": epoch})
            if await proof.fetchone() != (True,):
                raise Fenced("another process has claimed this relay since, by what the source was told")

    async def _write(self, name: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """One statement that writes letters; its rows, if it has any."""
        async with self._writing() as conn:
            done = await conn.execute(query(name), parameters)
            return await done.fetchall() if done.description else []

    async def hold(self, letters: Sequence[Letter]) -> None:
        """Copy changes to the letters, durably: only then may the target's cursor move past them (promise I1)."""
        ids = {
            "xids": [str(letter.change.xid) for letter in letters],
            "ids": [letter.change.id for letter in letters],
            "keys": [letter.change.key for letter in letters],
        }
        await self._hold(ids, [letter.why for letter in letters])

    async def _hold(self, ids: Mapping[str, object], whys: Sequence[Why]) -> None:
        async with self._writing(durably=True) as conn:
            done = await conn.execute(query("hold"), {**ids, **_columns(whys)})
            if done.rowcount != len(whys):
                raise SourceUnavailable("the source no longer has the changes that are to be held: reading anew")

    async def park(self, sheaves: Sequence[Sheaf], reasons: Mapping[str, str]) -> None:
        """Copy changes of tables that are out to the letters, durably: they go by themselves once their table fits."""
        whys = [Why(f"{sheaf.table} is out: {reasons[sheaf.table]}", OUT) for sheaf in sheaves]
        ids = {
            "xids": [str(xid) for sheaf in sheaves for xid in sheaf.xids],
            "ids": [id_ for sheaf in sheaves for id_ in sheaf.ids],
            "keys": [None for sheaf in sheaves for _ in sheaf.ids],
        }
        await self._hold(ids, [why for sheaf, why in zip(sheaves, whys, strict=True) for _ in sheaf.ids])

    async def hold_skipped(self, table: str, reason: str, since: Cursor, cursor: Cursor) -> None:
        """Changes of a table that were skipped while it was out, for a copy was to bring their rows, become letters, durably."""
        known = {f"from_{name}": value for name, value in _passed(since).items()} | _passed(cursor)
        async with self._writing(durably=True) as conn:
            await conn.execute(query("hold_skipped"), {**known, "table": table, "state": OUT, "reason": reason})

    async def uncopied(self, tables: Collection[str]) -> dict[str, bool]:
        """Of these tables those whose rows no copy can bring; do they halt the relay?"""
        async with self._source.connected() as conn:
            rows = await (await conn.execute(query("uncopied"), {"tables": list(tables)})).fetchall()
        return dict(rows)

    async def waiting(self, out: Sequence[str], held: Collection[Key]) -> list[tuple[str, bool, bool]]:
        """Of the tables that are out those that no copy can bring back: is a retry wanted, or letters dropped? Those of keys
        that are held themselves go once the table is back."""
        of_them = [(table, _hashed(key)) for table, key in held if table in out]
        asked = {"held_tables": [table for table, _ in of_them], "held_keys": [key for _, key in of_them]}
        return await self._source.ask("held_waiting", {"tables": list(out), **asked})

    async def drop(self, table: str, held: Collection[Key]) -> None:
        """Remove the letters of a table that is out that somebody wants dropped."""
        await self._all("held_drop", {"table": table, "held": _of(table, held)})

    async def stay(self, table: str, reason: str) -> None:
        """A table is out still: nobody waits for its letters any more."""
        await self._write("held_stay", {"table": table, "state": OUT, "reason": reason})

    async def parked(self, table: str, held: Collection[Key], cursor: Cursor, limit: int) -> Parked:
        """The first letters of a table that is out, without those of keys that are held themselves."""
        limits = self._source.limits
        asked = {
            "table": table,
            "held": _of(table, held),
            "limit": limit,
            "bytes": limits.bytes,
            "row_bytes": limits.row_bytes,
        }
        async with self._source.connected() as conn:
            found = await conn.execute(query("held_parked"), {**asked, **_passed(cursor)}, binary=True)
            changes = tuple(Change._make(row) for row in await found.fetchall())
        return Parked(changes, await self._source.shapes({one.shape for one in changes if one.shape is not None}))

    async def delivered(self, ids: Collection[int]) -> None:
        """These letters have arrived."""
        await self._write("held_delivered", {"ids": list(ids)})

    async def hold_gone(self, letters: Sequence[Letter], cursor: Cursor) -> None:
        """Rows that the source does not have as of the cursor and the target keeps, or of which nothing is known: letters that
        delete them, or say so, durably."""
        whys = _columns([letter.why for letter in letters])
        keys = {
            "tables": [one.change.table for one in letters],
            "keys": [one.change.key for one in letters],
            "ops": [one.change.op for one in letters],
        }
        async with self._writing(durably=True) as conn:
            await conn.execute(query("hold_gone"), {**keys, **whys, **_passed(cursor)})

    async def hold_again(self, letters: Sequence[Letter]) -> None:
        """A retry came to nothing."""
        ids = {"ids": [one.change.id for one in letters], "keys": [one.change.key for one in letters]}
        parameters = {**ids, "behind": BEHIND.reason, **_columns([one.why for one in letters])}
        await self._write("hold_again", parameters)

    async def identities(self, tables: Collection[str]) -> dict[str, Identity]:
        """What of these tables decides which of their letters still mean something."""
        rows = await self._source.ask("letters_identities", {"tables": sorted(tables)}) if tables else ()
        return {
            table: Identity(watched, frozenset(keys) if keys else None, frozenset(columns) if columns else None, *more)
            for table, watched, keys, columns, *more in rows
        }

    async def leave(self, tables: Collection[str]) -> None:
        """Of these tables, which no copy brings any more: let letters that nobody sends say so."""
        asked = {"tables": sorted(tables), "state": LEFT.sqlstate, "reason": LEFT.reason, "page": _PAGE}
        while (await self._write("held_left", asked))[0][0] == _PAGE:
            pass

    async def _all(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Remove letters, so many at once that no statement grows with how many there are."""
        gone = _PAGE
        while gone == _PAGE:
            async with self._writing() as conn:
                gone = (await conn.execute(query(name), {**parameters, "page": _PAGE})).rowcount

    async def remain(self, table: str, held: Collection[Key]) -> bool:
        """Are there letters of a table that is out, but for those of keys that are held themselves?"""
        [(there,)] = await self._source.ask("held_remain", {"table": table, "held": _of(table, held)})
        return bool(there)

    async def end(self, table: str, held: Collection[Key]) -> None:
        """Remove the letters of a table that is out: another one has brought its rows."""
        await self._all("held_end", {"table": table, "held": _of(table, held)})

    async def obsolete(self, tables: Collection[str]) -> set[Key]:
        """Keys of these tables, which a copy has brought as they are watched now, that have no letter but of before."""
        return set(await self._source.ask("held_obsolete", {"tables": sorted(tables)})) if tables else set()

    async def orphans(self, held: Collection[Key]) -> set[Key]:
        """Of these keys, which the target holds, those that have no letter."""
        return set(await self._source.ask("held_orphans", _pairs(held))) if held else set()

    async def ask(self, keys: Collection[Key]) -> None:
        """Have the letters of these keys sent again."""
        if keys:
            await self._write("held_ask", _pairs(keys))

    async def restore(self, table: str, keys: Collection[str] | None, why: Why, cursor: Cursor) -> None:
        """Make letters again, durably, of what the outbox still has of a table that no copy can bring."""
        asked = {
            "table": table,
            "keys": None if keys is None else sorted(keys),
            "state": why.sqlstate,
            "reason": why.reason,
        }
        async with self._writing(durably=True) as conn:
            await conn.execute(query("held_restored"), {**asked, **_passed(cursor)})

    async def missing(self, table: str, keys: Collection[str]) -> set[str]:
        """Of these keys of a captured table those that no row has."""
        asked = {"table": table, "keys": sorted(keys)}
        return {
            key
            for (text,) in await self._source.ask("copy_missing", asked)
            for key in (text or "").split(GLUE.decode())
            if key
        }

    async def wanted(self, cursor: Cursor, limit: int, out: Collection[str], others: Collection[Key] = ()) -> Wanted:
        """What is wanted, for up to `limit` keys, and about as many bytes as a batch may have. Of keys that have letters to
        be dropped and others, the first are removed, and the others wanted until they have been sent. Nothing is sent
        of the keys `others`."""
        limits = self._source.limits
        asked = {
            "limit": limit, "bytes": limits.bytes, "row_bytes": limits.row_bytes, "out": list(out),
            "other_tables": [table for table, _ in others], "other_keys": [_hashed(key) for _, key in others],
        }  # fmt: skip
        async with self._source.connected() as conn:
            found = await conn.execute(query("held_wanted"), {**asked, **_passed(cursor)}, binary=True)
            rows = await found.fetchall()
            retry = tuple(Change._make(row[:-1]) for row in rows if row[1] is not None)
            said: list[tuple[str, int]] = []
            if self._source.traced and retry:
                ids = {"ids": [change.id for change in retry]}
                said = await (await conn.execute(query("letters_headers"), ids)).fetchall()
        if dropped := {(row[2], row[5]) for row in rows if row[1] is not None and row[-1]}:
            keys = {"tables": [table for table, _ in dropped], "keys": [_hashed(key) for _, key in dropped]}
            await self._all("held_dropped", {**keys, **_passed(cursor)})
        shapes = await self._source.shapes({change.shape for change in retry if change.shape is not None})
        discard = frozenset((row[2], row[5]) for row in rows if row[1] is None and row[-1])
        left_out = said[0][1] - len(said) if said else 0
        return Wanted(retry, shapes, discard, tuple(text for text, _ in said), left_out)

    async def wake(self, states: Collection[str] | None) -> None:
        """Have letters sent again that are refused for one of these SQLSTATEs; None: for whatever."""
        await self._write("letters_wake", {"states": None if states is None else sorted(states)})

    async def wake_hurdles(self, most: int) -> set[Key]:
        """Have some of those sent again that took the target too long, or were locked there: which?"""
        return set(await self._write("letters_hurdles", {"most": most}))

    async def settle(self, held: Collection[Key], out: Collection[str], cursor: Cursor) -> int:
        """Remove letters that the cursor has passed, of keys that are not held, but for those of tables that are out. Returns how
        many are left of attempts whose changes may yet be accepted."""
        known = {"out": list(out), "tables": [table for table, _ in held], "keys": [_hashed(key) for _, key in held]}
        after: int | None = _BEFORE_ALL
        left = 0
        while after is not None:
            asked = {**known, **_passed(cursor), "after": after, "page": _PAGE}
            [(after, attempted)] = await self._write("held_settle", asked)
            left += attempted
        return left

    async def accepted(self, flow: Sheaves, cursor: Cursor) -> int:
        """The target has taken these changes: letters that attempts left of them go. Returns how many."""
        of_rows = [sheaf for sheaf in flow if sheaf.op != "truncate"]
        keys = [(sheaf.table, _hashed(key)) for sheaf in of_rows for key in split(sheaf.keys)]
        asked = {"ids": [id_ for sheaf in flow for id_ in sheaf.ids], **_pairs(keys), **_passed(cursor)}
        [(gone,)] = await self._write("held_arrived", asked)
        return int(gone)

    async def forget(
        self, keys: Collection[Key], cursor: Cursor, *, wake: bool = True, upto: Mapping[Key, int] | None = None
    ) -> None:
        """Remove letters that the cursor has passed, of keys the target no longer holds (`upto`: as far as the id of what
        freed each of them); with `wake`, ask for those that waited for one of these rows."""
        last = [(upto or {}).get(key) for key in keys]
        pairs = {**_pairs(keys), "last": last, "wake": wake}
        gone = _PAGE
        while gone == _PAGE:
            [(gone, _)] = await self._write("held_forget", {**pairs, **_passed(cursor), "page": _PAGE})

    async def touch(self, table: str, keys: Sequence[str]) -> None:
        """Have rows recorded as changed, as they are."""
        await self._source.touch(table, keys)

    async def copy(self, table: str) -> None:
        """Have a table copied as a whole, and what is there too much deleted."""
        await self._source.ask("copy_ask", {"table": table})

    async def halting(self, tables: Collection[str]) -> set[str]:
        """Of these tables those with on_error = halt."""
        async with self._source.connected() as conn:
            rows = await (await conn.execute(query("on_error"), {"tables": list(tables)})).fetchall()
        return {table for (table,) in rows}


def _columns(whys: Sequence[Why]) -> dict[str, Any]:
    relatives = [why.relative or (None, None) for why in whys]
    return {
        "states": [why.sqlstate for why in whys],
        "reasons": [why.reason for why in whys],
        "parent_tables": [table for table, _ in relatives],
        "parent_keys": [key for _, key in relatives],
    }


def _passed(cursor: Cursor) -> dict[str, Any]:
    """What it takes to see whether the cursor has passed a change."""
    torn = {"torn": [str(xid) for xid, _ in cursor.torn], "upto": [upto for _, upto in cursor.torn]}
    return {"snapshot": cursor.snapshot, **torn}


def _pairs(keys: Collection[Key]) -> dict[str, list[str]]:
    return {"tables": [table for table, _ in keys], "keys": [key for _, key in keys]}


def _of(table: str, held: Collection[Key]) -> list[str]:
    """The held keys of a table, as the source finds letters by them."""
    return [_hashed(key) for of_table, key in held if of_table == table]


def _hashed(key: str) -> str:
    return hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()
