"""What a person does with dead letters: look, ask for a retry, ask to drop them.

Knows table outbox.held. The relay is the only one that writes to the target: here it is only asked, through the
source. Knows nothing of settings or of printing.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psycopg

from daemon.connection import connect_once
from daemon.session import query
from outbox import __version__
from outbox.migrations import require

SHOWN = 1000  # letters
_PAGE = 5000  # letters that one statement looks at or marks
_LOOK = 0.1  # seconds between looks at what the relay has done


@dataclass(frozen=True, slots=True)
class HeldKey:
    """One line of `dead-letters list`. `letter` is the change that was refused; `parent` the letter it waits for."""

    letter: int
    table: str
    op: str
    changes: int
    attempts: int
    since: str
    sqlstate: str | None
    reason: str
    wanted: str | None
    parent: int | None


@dataclass(frozen=True, slots=True)
class LetterShown:
    """One change that waits. `key`, `row` and `headers` are the user's data."""

    letter: int
    table: str
    op: str
    key: str
    row: str | None
    headers: str | None
    created_at: str
    held_at: str
    sqlstate: str | None
    reason: str
    attempts: int
    wanted: str | None
    row_bytes: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of asking: letters that are gone, that were refused again (with the reason), that still wait."""

    done: int
    refused: tuple[tuple[int, str, str], ...]
    waiting: int


def listed(dsn: str, table: str | None = None, letters: Sequence[int] | None = None) -> list[HeldKey]:
    """The held keys, oldest refused change first. `letters`: those that these belong to."""
    asked = {"table": table, "ids": None if letters is None else list(letters)}
    with _connect(dsn) as conn:
        return [HeldKey(*row) for row in conn.execute(query("letters_list"), asked)]


def shown(dsn: str, letters: Sequence[int], *, values: bool = True) -> list[LetterShown]:
    """The changes of the keys that these letters belong to, SHOWN at most: there may be very many of one."""
    asked = {"ids": list(letters), "values": values, "limit": SHOWN}
    with _connect(dsn) as conn:
        return [LetterShown(*row) for row in conn.execute(query("letters_show"), asked)]


def ask(
    dsn: str,
    wanted: Literal["retry", "discard"],
    letters: Sequence[int] | None,
    table: str | None = None,
    *,
    patience: float = 30.0,
) -> Outcome:
    """Ask the relay to send letters again or to drop them (None: all), and wait for what comes of it."""
    with _connect(dsn) as conn:
        asked = mark(conn, wanted, letters, table)
        if not asked:
            return Outcome(0, (), 0)
        conn.execute("select outbox.ring()")
        deadline, about = time.monotonic() + patience, {"ids": list(asked)}
        while conn.execute(query("letters_waiting"), about).fetchone() == (True,) and time.monotonic() < deadline:
            time.sleep(_LOOK)
        return _outcome(asked, conn.execute(query("letters_left"), about).fetchall())


def mark(
    conn: psycopg.Connection[Any],
    wanted: Literal["retry", "discard"],
    letters: Sequence[int] | None = None,
    table: str | None = None,
) -> dict[int, int]:
    """Ask for something, for whole keys; of each its newest letter, and how many there are. All at once: of a key that is marked
    in part some letters would be dropped, and others sent.

    Whoever asks for a retry looks again once the newest letters are its own: until then another session may have marked all
    of a key to be dropped, which is seen only once it has committed. From there on such a session waits for this one.
    """
    about = {"ids": None if letters is None else list(letters), "table": table, "wanted": wanted, "page": _PAGE}
    with conn.transaction():
        conn.execute("set local enable_sort = off")  # each page by the index, or it would look at all letters
        asked, _ = _pages(conn, about)
        ids = [newest for newest, _ in asked.values()]
        for first in range(0, len(ids), _PAGE):
            conn.execute(query("letters_want"), {"wanted": wanted, "ids": ids[first : first + _PAGE]})
        while wanted == "retry" and _pages(conn, about)[1]:
            pass
    return dict(sorted(asked.values()))


def _pages(
    conn: psycopg.Connection[Any], about: Mapping[str, Any]
) -> tuple[dict[tuple[str, str], tuple[int, int]], int]:
    """Mark what each page says is to be marked. Of each key the newest letter, and how many there are; and how many were marked."""
    asked: dict[tuple[str, str], tuple[int, int]] = {}
    behind: tuple[str, str, int] | None = ("", "", -(2**63))
    marked = 0
    while behind is not None:
        after = dict(zip(("after_table", "after_hash", "after"), behind, strict=True))
        behind = None
        for of_table, hashed, newest, many, ids in conn.execute(query("letters_page"), {**about, **after}).fetchall():
            asked[of_table, hashed] = newest, many + asked.get((of_table, hashed), (0, 0))[1]
            behind = of_table, hashed, newest
            if ids:
                marked += conn.execute(query("letters_want"), {"wanted": about["wanted"], "ids": ids}).rowcount
    return asked, marked


def _outcome(asked: Mapping[int, int], left: Sequence[Any]) -> Outcome:
    """`asked`: the newest letter of each key, and how many letters of it these were."""
    refused = tuple((id_, table, reason) for id_, waits, table, reason in left if reason and not waits)
    done = sum(asked.values()) - sum(asked[row[0]] for row in left)
    return Outcome(done, refused, sum(asked[row[0]] for row in left if row[1]))


def _connect(dsn: str) -> psycopg.Connection[Any]:
    conn = connect_once(dsn, f"outboxd/{__version__}")
    try:
        require(conn, "source")
    except BaseException:
        conn.close()
        raise
    return conn
