"""Faults that the soak must find: each puts back one that outboxd once had, or could have, at one of its edges.

Those of Python are a context in which the wrong piece is in place; those of SQL replace a text within an installed function.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from daemon.copier import Copier
from daemon.copies import Copy, Wish
from daemon.letters import Letters
from tests.databases import Database
from tests.edges import deeds, migrations, writes
from tests.edges.deeds import Deed


@dataclass(frozen=True, slots=True)
class Text:
    """Within this function of one side, this in place of that."""

    side: str
    function: str
    was: str
    becomes: str

    def put(self, source: Database, target: Database) -> None:
        """Into the database of its side."""
        with (source if self.side == "source" else target).connect() as conn:
            found = conn.execute("select pg_get_functiondef(%s::regproc)", (self.function,)).fetchone()
            assert found is not None
            assert found[0].count(self.was) == 1, f"{self.function} is another one by now"
            conn.execute(found[0].replace(self.was, self.becomes).encode())


@dataclass(frozen=True, slots=True)
class Planted:
    """`often`: the deeds that it is about; `seeds`: which find it, the quick way; one of the first `within` does."""

    name: str
    often: tuple[Deed, ...]
    seeds: tuple[int, ...]
    context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    texts: tuple[Text, ...] = ()
    within: int = 30


# -- copies ----------------------------------------------------------------------------------------------------


@contextmanager
def back_without_pruning() -> Iterator[None]:
    """A table that was out is copied, and rows that went meanwhile stay."""
    real = Copy.begun

    def begun(self: Copy, wish: Wish) -> Copy:
        return real(Copy(self.table, wish=self.wish, aim=self.aim) if self.state == "out" else self, wish)

    with patch.object(Copy, "begun", begun):
        yield


# -- mappings --------------------------------------------------------------------------------------------------


@contextmanager
def excluded_values_stay() -> Iterator[None]:
    """A column that no longer travels keeps what the target has in it."""

    async def same(_: Copier, copy: Copy) -> Copy:
        return copy

    with patch.object(Copier, "_emptying", same):
        yield


# -- emitted tables ---------------------------------------------------------------------------------------------


@contextmanager
def emitted_changes_are_skipped() -> Iterator[None]:
    """What is emitted for a table that is out is skipped, as if a copy could bring it."""

    async def uncopied(*_: Any) -> dict[str, bool]:
        return {}

    with patch.object(Letters, "uncopied", uncopied):
        yield


PLANTED = (
    Planted("a table that was out is copied without pruning", (deeds.put_out,), (0,), context=back_without_pruning),
    Planted("excluded values stay", (deeds.map_anew,), (1,), context=excluded_values_stay),
    Planted(
        "emitted changes of a table that is out are skipped", (deeds.put_out, writes.emit), (0,),
        context=emitted_changes_are_skipped,
    ),
    Planted(
        "sleeping triggers are not noticed", (deeds.asleep,), (0,),
        texts=(
            Text("source", "outbox.compared", "or now -> 'asleep' = '[]'", "or false and now -> 'asleep' = '[]'"),
            Text("source", "outbox.installed", "if w.layout -> 'asleep' <> '[]' then", "if false then"),
        ),
    ),
    Planted(
        "a row deleted and emitted in part keeps its old values", (writes.emit,), (2,),
        texts=(Text("target", "outboxd.is_anew", "select g -> 'anew' is not null and", "select false and"),),
    ),
    Planted(
        "a table made anew is taken for the one before", (migrations.remake,), (4,),
        texts=(Text("target", "outboxd.copies", "coalesce(c.place = outboxd.place(c.table_name), false)", "true"),),
    ),
)  # fmt: skip
