"""Tables that are copied as a whole: how far each has come, and what that means for the next step. As values.

Knows the target's record of a copy and the source's wishes. Knows nothing of connections. Pure.
"""

import json
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

from daemon.aim import same_outbox, same_rows
from daemon.plan import Group
from daemon.sheaf import GLUE, Sheaf

COLUMNS = -1  # the shape of copied rows: they are no changes, and their columns come with them


@dataclass(frozen=True, slots=True)
class Wish:
    """What the source wants of a watched table. `number`: of the newest wish, 0: nothing yet; `prune`, `restart`: of the
    newest that asked for it. `estimate`: its rows, about. `aim`: what a copy is of now; None: that cannot be said."""

    table: str
    number: int
    prune: int
    restart: int
    estimate: int
    aim: str | None = None

    def missed(self, number: int, copy: "Copy | None") -> bool:
        """Is this one newer than what the record has had in hand? Numbers of another outbox mean nothing here."""
        return number > (copy.wish if copy is not None and same_outbox(copy.aim, self.aim) else 0)


@dataclass(frozen=True, slots=True)
class Copy:
    """The target's record. `step`: `rows` are brought over, then rows that the source does not have (`extra`) are
    looked for; `after` is how far that step has come (`seen`: further, but no row was there that travels; the target is
    not told). `state` out: its changes are skipped until it fits again.

    `aim`: what it is of, as the source says; `here`: is its table on the target still the same one? Else it begins anew,
    whatever the record says. `empties`: columns that no longer travel, which it sets to null; `emptied`: those that stay so;
    `kept`: those that cannot be set to null, having to have a value there, or being called otherwise; `freed`: that could not,
    and can by now; `awaits`: are there some of which none is called so yet?"""

    table: str
    state: str = "wanted"
    wish: int = 0
    step: str = "rows"
    after: str | None = None
    rows: int = 0
    extra: int = 0
    pruned: int = 0
    prune: bool = False
    reason: str | None = None
    seen: str | None = None
    aim: str | None = None
    here: bool = True
    empties: tuple[str, ...] = ()
    emptied: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    freed: tuple[str, ...] = ()
    awaits: bool = False

    @property
    def never(self) -> bool:
        """Was there nothing to be copied, ever? All its rows came as changes."""
        return self.state == "done" and not (self.wish or self.rows)

    @property
    def vacant(self) -> tuple[str, ...]:
        """Columns of which the target is to have no values any more."""
        return tuple(dict.fromkeys((*self.emptied, *self.empties)))

    def fits(self, wish: Wish) -> bool:
        """Is it of what is wanted? Where the source cannot say what that is, what is known stands."""
        return self.here and (wish.aim is None or same_rows(self.aim, wish.aim))

    def lost(self, wish: Wish) -> bool:
        """Are its rows read in another order by now? Then `after` says nothing."""
        return self.state == "copying" and wish.aim is not None and self.aim != wish.aim

    def begun(self, wish: Wish) -> "Copy":
        """From the beginning. Of a table that was out, or is a copy of something else, what is there too much goes in any
        case: deletes were missed. What an unfinished copy was to do, this one does."""
        fits, unfinished = self.fits(wish), self.state == "copying"
        prune = (self.prune and unfinished) or self.state == "out" or (self.state != "wanted" and not fits)
        begun = Copy(
            self.table, "copying", wish.number or self.wish, prune=prune or wish.missed(wish.prune, self), aim=wish.aim
        )
        if not fits:
            return begun
        empties = (*(self.empties if self.state != "done" else ()), *self.freed)
        return replace(begun, empties=empties, emptied=self.vacant, kept=self.kept)

    def went_out(self, reason: str) -> "Copy":
        """From here on its changes are skipped. What a copy had not come to its end with is still to be done."""
        left = () if self.state == "done" else self.empties
        out = replace(self, state="out", step="rows", after=None, seen=None, reason=reason)
        return replace(out, empties=left, emptied=self.vacant)

    def less_pruned(self, refused: int) -> "Copy":
        """So many of the rows that were to be deleted are there still."""
        return replace(self, pruned=self.pruned - refused)

    def further(self, page: "Page", found: int, pruned: int) -> "Copy":
        """After a page of rows, or a look at a part of the target's."""
        if self.step == "rows":
            done = {"rows": self.rows + found}
            if page.ends:
                return replace(self, **done, step="extra", after=None, seen=None)  # type: ignore[arg-type]
            return replace(self, **done, after=page.after, seen=page.seen)  # type: ignore[arg-type]
        extra = replace(self, extra=self.extra + found, pruned=self.pruned + pruned, after=page.after)
        return replace(extra, state="done", after=None) if page.ends else extra


_RECORD = {one.name for one in fields(Copy)} - {"seen"}


@dataclass(frozen=True, slots=True)
class Progress:
    """What a batch of copied rows leads to. `copy` None: nothing but what is to be noted of other tables. `freed`: held keys that
    are no row's, here or there: nothing is sent of them, and they are released."""

    copy: Copy | None
    begins: bool = False
    rows: int = 0
    freed: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Page:
    """How far one step leads: to `after`, or to the end."""

    after: str | None
    ends: bool
    seen: str | None = None


def known(given: Sequence[Mapping[str, Any]]) -> dict[str, Copy]:
    """The records in an answer of the target, by table."""
    records = ({name: value for name, value in one.items() if name in _RECORD} for one in given)
    named = ("empties", "emptied", "kept", "freed")
    return {one["table"]: Copy(**{**one, **{name: tuple(one.get(name, ())) for name in named}}) for one in records}


def note(copy: Copy, *, begins: bool) -> Group:
    """The group of a batch that has the target record this."""
    told = {
        "state": copy.state, "wish": copy.wish, "step": copy.step, "after": copy.after, "rows": copy.rows,
        "extra": copy.extra, "pruned": copy.pruned, "prune": copy.prune, "reason": copy.reason, "begins": begins,
        "aim": copy.aim, "empties": copy.empties, "kept": copy.kept if begins else (),
    }  # fmt: skip
    return Group(copy.table, "copy", 0, (), (json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode(),))


def begun_by(copy: Copy | None, wish: Wish) -> bool:
    """Does this wish begin a copy, or begin one anew? One that finds its table being copied lets it go on, unless it asks
    to begin anew. A copy of something else neither goes on nor counts; one that could not set a column to null begins anew
    once it can."""
    if copy is None or copy.state == "wanted":
        return wish.number > 0
    if copy.state == "out":
        return False  # once it fits again
    if not copy.fits(wish) or copy.freed:
        return True
    if copy.state == "copying":
        return wish.missed(wish.restart, copy) or copy.lost(wish)
    return wish.number > 0 and wish.number != copy.wish


class Stepping(Protocol):
    """A table's way through `rows`, then `extra`."""

    @property
    def table(self) -> str: ...
    @property
    def step(self) -> str: ...


_S = TypeVar("_S", bound=Stepping)


def choose(copies: Collection[_S], order: Mapping[str, int]) -> _S | None:
    """Whose turn it is: rows parents first, so that references find theirs; then what is too much, children first."""
    last = len(order)
    rows = [(order.get(one.table, last), one.table, one) for one in copies if one.step == "rows"]
    extra = [(order.get(one.table, last), one.table, one) for one in copies if one.step == "extra"]
    if rows:
        return min(rows, key=lambda entry: entry[:2])[2]
    return max(extra, key=lambda entry: entry[:2])[2] if extra else None


def rows(table: str, keys: bytes, texts: bytes | None, sizes: Sequence[int], now_us: int) -> Sheaf:
    """Rows as of a snapshot, in the clothes of changes: what is done with their keys is the same."""
    none, now = array("q", bytes(8)) * len(sizes), array("q", [now_us]) * len(sizes)
    return Sheaf(table, "upsert", COLUMNS, none, none, now, sizes, False, keys, None if texts is None else (texts,))


def gone(table: str, keys: bytes, now_us: int) -> Sheaf:
    """Rows of the target that the source does not have."""
    many = keys.count(GLUE) + 1
    none, now = array("q", bytes(8)) * many, array("q", [now_us]) * many
    return Sheaf(table, "delete", None, none, none, now, none, False, keys, None)


def slowly(most: int | None) -> str | None:
    """How a table goes of which no more than so many rows are read at once; None: as any other."""
    if most is None:
        return None
    return f"slow: {'one row' if most == 1 else f'{most} rows'} at a time (large rows, or a slow filter)"


def empties(
    name: str, described: Mapping[str, Any], columns: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which of these columns a copy can set to null on the target, as far as they are outboxd's own there. And which it cannot,
    because they need a value, or none is called so: one that is later may be full of what travelled under another name."""
    has = [column for table in described["tables"] if table["table"] == name for column in table["columns"] or ()]
    known = {column["name"]: bool(column.get("nullable")) for column in has if column["name"] in columns}
    return tuple(one for one in known if known[one]), tuple(sorted(one for one in columns if not known.get(one)))


def other_key(name: str, mirror: Mapping[str, Any], key: Collection[str]) -> str | None:
    """Are rows told apart by other columns there than on the source (`key`; none: that is not known)? Two of them would be
    one, or one of them two."""
    if not key or set(key) == set(mirror["key"]):
        return None
    return f"the key of {name} is ({', '.join(key)}), and that of the target table {mirror['target']} is ({', '.join(mirror['key'])})"


def misfit(name: str, described: Mapping[str, Any], columns: Collection[str], key: Collection[str] = ()) -> str | None:
    """Why the target cannot take rows of this table that have these columns and this key; None: it can."""
    mirror = next((table for table in described["tables"] if table["table"] == name), None)
    if mirror is None:
        return f"{name} is not mapped on the target"
    if not mirror["exists"]:
        return f"the target has no table {mirror['target']}"
    has = {column["name"] for column in mirror["columns"]}
    if missing := [column for column in columns if column not in has]:
        return f"the target table {mirror['target']} has no column {', '.join(missing)}"
    if other := other_key(name, mirror, key):
        return other
    if not mirror["key_is_unique"]:
        return f"({', '.join(mirror['key'])}) is no unique key of {mirror['target']}"
    if mirror.get("locked"):
        return str(mirror["locked"])
    if mirror.get("missing_usage") or mirror["missing_grants"] or mirror["hides_rows"]:
        return f"a right is missing on the target table {mirror['target']}"
    return None
