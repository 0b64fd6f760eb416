"""Faults that the soak must find: each puts back one that outboxd once had, or could have, at one of its edges.

Those of Python are a context in which the wrong piece is in place; those of SQL replace a text within an installed function.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from daemon import retries, session
from daemon.copier import Copier
from daemon.copies import Copy, Wish
from daemon.delivery import Delivery
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
def aim_ignored() -> Iterator[None]:
    """A copy goes on with what it was of before."""
    with patch.object(Copy, "fits", lambda self, _: self.here):
        yield


@contextmanager
def back_without_pruning() -> Iterator[None]:
    """A table that was out is copied, and rows that went meanwhile stay."""
    real = Copy.begun

    def begun(self: Copy, wish: Wish) -> Copy:
        return real(Copy(self.table, wish=self.wish, aim=self.aim) if self.state == "out" else self, wish)

    with patch.object(Copy, "begun", begun):
        yield


@contextmanager
def refused_deletes_vanish() -> Iterator[None]:
    """Of a row that is to be pruned, and that the target does not let go, there is no letter."""

    async def keep(self: Delivery, load: Any, letters: Any) -> None:
        kept = [letter for letter in letters if not (load.parcel.copied and letter.change.op == "delete")]
        await _REAL_KEEP(self, load, kept)

    with patch.object(Delivery, "_keep", keep):
        yield


_REAL_KEEP = Delivery._keep


# -- mappings --------------------------------------------------------------------------------------------------


@contextmanager
def excluded_values_stay() -> Iterator[None]:
    """A column that no longer travels keeps what the target has in it."""

    async def none(*_: Any) -> tuple[str, ...]:
        return ()

    with patch.object(Copier, "_empties", none):
        yield


@contextmanager
def letters_keep_excluded_values() -> Iterator[None]:
    """So do rows that were refused while all others were emptied."""
    with patch.object(retries, "vacated", lambda changes, shapes, _: (list(changes), dict(shapes))):
        yield


# -- emitted tables, letters -----------------------------------------------------------------------------------


@contextmanager
def emitted_changes_are_skipped() -> Iterator[None]:
    """What is emitted for a table that is out is skipped, as if a copy could bring it."""

    async def uncopied(*_: Any) -> dict[str, bool]:
        return {}

    with patch.object(Letters, "uncopied", uncopied):
        yield


@contextmanager
def discard_takes_all() -> Iterator[None]:
    """Letters are dropped by their key, those that came since somebody asked with them."""
    was = b"select k.first, h.id, h.op, h.shape, h.wanted\n"
    known = session._QUERIES["held_wanted"]
    assert known.count(was) == 1
    all_of_them = known.replace(was, was.replace(b"h.wanted", b"min(h.wanted) over (partition by k.first) as wanted"))
    with patch.dict(session._QUERIES, {"held_wanted": all_of_them}):
        yield


PLANTED = (
    Planted("a copy goes on with what it was", (deeds.midway,), (), context=aim_ignored),
    Planted("a table that was out is copied without pruning", (deeds.put_out,), (), context=back_without_pruning),
    Planted("a refused delete while pruning vanishes", (deeds.cling, deeds.put_out), (), context=refused_deletes_vanish),
    Planted("excluded values stay", (deeds.map_anew,), (), context=excluded_values_stay),
    Planted("letters keep excluded values", (deeds.map_anew, deeds.refuse), (), context=letters_keep_excluded_values),
    Planted("emitted changes of a table that is out are skipped", (deeds.put_out, writes.emit), (), context=emitted_changes_are_skipped),
    Planted("a discard takes newer changes", (deeds.refuse, deeds.discard), (), context=discard_takes_all),
    Planted(
        "requests do not add up", (deeds.asleep, deeds.copy), (),
        texts=(
            Text("source", "outbox.ask_copy", "else c.prune end", "else 0 end"),
            Text("source", "outbox.ask_copy", "else c.restart end", "else 0 end"),
        ),
    ),
    Planted(
        "a filter hides deletes", (deeds.map_anew, deeds.day), (), texts=(Text("source", "outbox.is_lasting", "return not exists", "return true or not exists"),)
    ),
    Planted(
        "watched again without a wish", (deeds.unwatch, deeds.watch_again), (),
        texts=(
            Text("source", "outbox.unwatch", "perform outbox.ask_copy(known[1], prune => true);", "null;"),
            Text("source", "outbox.install", "perform outbox.ask_copy(w.table_name);", "null;"),
        ),
    ),
    Planted(
        "rows without a trigger are not noticed", (migrations.add,), (),
        texts=(Text("source", "outbox.notice", "if since.given or since.gone or since.came then", "if false then"),),
    ),
    Planted(
        "sleeping triggers are not noticed", (deeds.asleep,), (),
        texts=(
            Text("source", "outbox.compared", "or now -> 'asleep' = '[]'", "or false and now -> 'asleep' = '[]'"),
            Text("source", "outbox.installed", "if w.layout -> 'asleep' <> '[]' and", "if false and"),
        ),
    ),
    Planted(
        "a row deleted and emitted in part keeps its old values", (writes.emit,), (),
        texts=(Text("target", "outboxd.is_anew", "select g -> 'anew' is not null and", "select false and"),),
    ),
    Planted(
        "a table made anew is taken for the one before", (migrations.remake,), (),
        texts=(Text("target", "outboxd.copies", "coalesce(c.place = outboxd.place(c.table_name), false)", "true"),),
    ),
)  # fmt: skip
