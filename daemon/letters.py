"""The dead letters: changes kept on the source because the target refuses them.

Knows table outbox.held and the connection of the source. Knows nothing of the target: which keys are held, the
relay says. Rows are copied inside Postgres; they come here only to be sent again.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.errors import SourceUnavailable
from daemon.hold import Key, Letter, Why
from daemon.session import query
from daemon.sheaf import Change
from daemon.source import Source
from outbox import Cursor


@dataclass(frozen=True, slots=True)
class Wanted:
    """Letters that a person wants sent again, in id order, and keys whose letters are to be dropped. Headers: see Batch."""

    retry: tuple[Change, ...]
    shapes: Mapping[int, tuple[str, ...]]
    discard: frozenset[Key]
    headers: tuple[str, ...] = ()
    headers_left_out: int = 0


class Letters:
    """Dead letters on the source, on the connection that reads."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def hold(self, letters: Sequence[Letter]) -> None:
        """Copy changes to the letters, durably: only then may the target's cursor move past them (promise I1)."""
        whys = _columns([letter.why for letter in letters])
        ids = {
            "xids": [str(letter.change.xid) for letter in letters],
            "ids": [letter.change.id for letter in letters],
        }
        async with self._source.connected() as conn, conn.transaction():
            await conn.execute("set local synchronous_commit = on")
            done = await conn.execute(query("hold"), {**ids, **whys})
            if done.rowcount != len(letters):
                raise SourceUnavailable("the source no longer has the changes that are to be held: reading anew")

    async def hold_again(self, refused: Mapping[int, Why]) -> None:
        """A retry came to nothing: by change id, why."""
        parameters = {"ids": list(refused), **_columns(list(refused.values()))}
        async with self._source.connected() as conn:
            await conn.execute(query("hold_again"), parameters)

    async def wanted(self, cursor: Cursor, limit: int) -> Wanted:
        """What a person wants done, for up to `limit` keys."""
        sizes = {"limit": limit, "row_bytes": self._source.limits.row_bytes}
        async with self._source.connected() as conn:
            rows = await (
                await conn.execute(query("held_wanted"), {**sizes, **_passed(cursor)}, binary=True)
            ).fetchall()
            retry = tuple(Change._make(row[:-1]) for row in rows if not row[-1])
            said: list[tuple[str, int]] = []
            if self._source.traced and retry:
                ids = {"ids": [change.id for change in retry]}
                said = await (await conn.execute(query("letters_headers"), ids)).fetchall()
        shapes = await self._source.shapes({change.shape for change in retry if change.shape is not None})
        discard = frozenset((row[2], row[5]) for row in rows if row[-1])
        left_out = said[0][1] - len(said) if said else 0
        return Wanted(retry, shapes, discard, tuple(text for text, _ in said), left_out)

    async def keys(self) -> set[Key]:
        """Keys that have letters."""
        async with self._source.connected() as conn:
            return {(table, key) for table, key in await (await conn.execute(query("held_keys"))).fetchall()}

    async def forget(self, keys: Collection[Key], cursor: Cursor, *, wake: bool = True) -> None:
        """Remove letters that the cursor has passed, of keys the target no longer holds; with `wake`, ask for those
        that waited for one of these rows."""
        pairs = {"tables": [table for table, _ in keys], "keys": [key for _, key in keys], "wake": wake}
        async with self._source.connected() as conn:
            await conn.execute(query("held_forget"), {**pairs, **_passed(cursor)})

    async def touch(self, table: str, keys: Sequence[str]) -> None:
        """Have rows recorded as changed, as they are."""
        await self._source.touch(table, keys)

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
