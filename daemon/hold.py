"""Which changes flow and which wait: the arithmetic of held keys.

Knows changes and the keys the target holds. Knows nothing of connections, nor why the target refuses. Pure.

A key of more than KEY_BYTES never travels: the source records it by a name made of its digest (outbox.name_of), and its row as
too large. So nothing of such a row is on the target, and its delete has nothing to do there.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from daemon.sheaf import GLUE, Change, Sheaf, Sheaves, bind, unbind

Key = tuple[str, str]  # table, and the key as outbox.change has it
KEY_BYTES = 4096  # as outbox.key_limit
_DIGEST = b"{ "  # what the name of a long key begins with, and no key


@dataclass(frozen=True, slots=True)
class Identity:
    """Of a table: is it watched, or mapped, and what is its key called by now? And of a captured one which columns travel, and
    its aim. None: that cannot be said. `sure`: it is known which of its letters are of before; `left_over`: there are such as
    nobody sends."""

    watched: bool
    keys: frozenset[str] | None = None
    columns: frozenset[str] | None = None
    aim: str | None = None
    sure: bool = True
    left_over: bool = False

    def names(self, key: str) -> bool:
        """May this be a key of it? One of other columns is of a row that has another name by now."""
        return self.keys is None or names(key) in (None, self.keys)


@dataclass(frozen=True, slots=True)
class Why:
    """Why a change waits. `sqlstate` None: nothing is wrong with it, it waits with another of its key.

    `relative`: the row without which it cannot be, when that is held itself.
    """

    reason: str
    sqlstate: str | None = None
    relative: Key | None = None


BEHIND = Why("it waits with the refused change of its key")


STRANGER = Why("it waits until letters of its table by another key or name have gone: retry or discard those", "OB011")


@dataclass(frozen=True, slots=True)
class Letter:
    """A change that is to wait, and why."""

    change: Change
    why: Why


@dataclass(frozen=True, slots=True)
class Parted:
    """A batch's changes: those that `flow`, those that wait as `letters`, and keys a TRUNCATE has `freed`. `emptied`: the id of the
    last TRUNCATE of each table."""

    flow: Sheaves
    letters: tuple[Letter, ...] = ()
    freed: frozenset[Key] = frozenset()
    emptied: Mapping[str, int] = field(default_factory=dict)


def names(key: str) -> frozenset[str] | None:
    """The columns of a key; None: it is none, and is refused with its row."""
    try:
        return frozenset(json.loads(key).keys())
    except (ValueError, AttributeError):
        return None


def is_long(key: str) -> bool:
    """Does it have more bytes than may travel?"""
    return len(key) > KEY_BYTES or (4 * len(key) > KEY_BYTES and len(key.encode()) > KEY_BYTES)


def is_digest(key: str) -> bool:
    """Is it the name of a long key?"""
    return key.startswith("{ ")


def name_of(key: str) -> str:
    """What a key is held by: itself, or its name where it is long. As outbox.name_of."""
    if not is_long(key):
        return key
    digest = hashlib.sha256(key.encode()).hexdigest()
    return (
        "{ "
        + ",".join(f'{json.dumps(name, ensure_ascii=False)}:"{digest}"' for name in json.loads(key, parse_int=str))
        + "}"
    )


def key_of(change: Change) -> Key:
    """The row a change is about."""
    return change.table, change.key


def part(sheaves: Sheaves, held: Collection[Key], row_bytes: int) -> Parted:
    """Changes of held keys join them, in order; what is too large to be sent is held as well.

    Promise I4: from its first held change on nothing of a key flows, until a TRUNCATE of its table: what came
    before that is of no row any more. Nor does anything of a long key: once it is deleted, it is free.
    """
    touched = _touched(sheaves, held)
    if not touched:
        return Parted(sheaves)
    changes = unbind(sheaf for sheaf in sheaves if sheaf.table in touched)
    emptied = {change.table: at for at, change in enumerate(changes) if change.op == "truncate"}
    last = {key_of(change): change for change in changes}
    too_large = {key for key, change in last.items() if _is_oversize(change)}
    gone = {key for key, change in last.items() if change.op == "delete" and is_digest(change.key)}
    flow: list[Change] = []
    letters: list[Letter] = []
    for at, change in enumerate(changes):
        key, oversize = key_of(change), _is_oversize(change)
        waits = key in too_large or (key in held and change.table not in emptied)
        if key in gone:
            continue
        if waits and at >= emptied.get(change.table, 0):
            letters.append(Letter(change, _too_large(change, row_bytes) if oversize else BEHIND))
        elif not oversize:  # one that is not the last of its key has been overtaken
            flow.append(change)
    others = tuple(sheaf for sheaf in sheaves if sheaf.table not in touched)
    return Parted(
        (*others, *bind(flow)),
        tuple(letters),
        frozenset(key for key in held if key[0] in emptied or key in gone),
        {table: changes[at].id for table, at in emptied.items()},
    )


def _touched(sheaves: Sheaves, held: Collection[Key]) -> set[str]:
    """The tables of which something may have to wait: these are looked at change by change."""
    of_table: dict[str, set[bytes]] = {}
    for table, key in held:
        of_table.setdefault(table, set()).add(key.encode())
    return {sheaf.table for sheaf in sheaves if _oversize(sheaf) or _meets(sheaf, of_table.get(sheaf.table))}


def _oversize(sheaf: Sheaf) -> bool:
    if sheaf.op == "delete":
        return sheaf.keys.startswith(_DIGEST) or GLUE + _DIGEST in sheaf.keys
    return sheaf.op == "too_large" or (sheaf.op == "upsert" and (sheaf.rows is None or _long(sheaf)))


def _long(sheaf: Sheaf) -> bool:
    """Is one of its keys long? Only rows of a copy, whose shape is no number of the source's, have their keys as they are."""
    return (sheaf.shape or 0) < 0 and longest(sheaf) > KEY_BYTES


def longest(sheaf: Sheaf) -> int:
    """Bytes of its longest key, or of all of them where these are few."""
    return len(sheaf.keys) if len(sheaf.keys) <= KEY_BYTES else max(map(len, sheaf.named()))


def _meets(sheaf: Sheaf, keys: set[bytes] | None) -> bool:
    return keys is not None and (sheaf.op == "truncate" or not keys.isdisjoint(sheaf.named()))


def refuse(sheaves: Sheaves, refused: Mapping[Key, Why]) -> Parted:
    """Take refused keys out of what flows: all changes of such a key wait, the last of them with the reason."""
    tables = {table for table, _ in refused}
    changes = unbind(sheaf for sheaf in sheaves if sheaf.table in tables)
    flow: list[Change] = []
    letters: list[Letter] = []
    last = {key_of(change): change.id for change in changes}
    for change in changes:
        why = refused.get(key_of(change))
        if why is None or change.op == "truncate":
            flow.append(change)
        else:
            letters.append(Letter(change, why if change.id == last[key_of(change)] else BEHIND))
    others = tuple(sheaf for sheaf in sheaves if sheaf.table not in tables)
    return Parted((*others, *bind(flow)), tuple(letters))


def _is_oversize(change: Change) -> bool:
    return change.op == "too_large" or (change.op == "upsert" and (change.row is None or is_long(change.key)))


def _too_large(change: Change, row_bytes: int) -> Why:
    if change.op == "too_large" and '"unreadable":true' in (change.row or ""):
        return Why(
            "a text of the row has a byte without a meaning in the source's encoding; write it anew, then retry",
            "22P05",
        )
    if is_long(change.key) or is_digest(change.key):
        return Why(
            f"the key of the row has more than {KEY_BYTES} bytes, too many to travel: give it a shorter one; then this goes by itself",
            "54000",
        )
    if change.op == "too_large":
        return Why(
            "the row is too large to be recorded; make it smaller, or allow a larger row_bytes and `outboxd backfill` its table",
            "54000",
        )
    return Why(f"the row is {change.size} bytes, more than row_bytes ({row_bytes}) allows", "54000")
