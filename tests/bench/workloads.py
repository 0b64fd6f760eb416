"""The backlogs: how each is built, what its last transaction is, and when that has arrived.

Knows the application's tables. Must not know who moves the rows.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import LiteralString

from psycopg import sql

from tests.bench.schemas import EXAMPLE, PUBLISHED, Schema
from tests.bench.site import Stores, connect

WARM = 1000
WARMED: LiteralString = """select count(*) = 1 from "Story" where "id" = md5('hot 1000')::uuid"""
_WRITERS = 16  # build side by side: their commits share flushes
_LAST = "md5('the last one')::uuid"


@dataclass(frozen=True)
class Backlog:
    """`last` is its last transaction; `arrived` asks the target whether that is there, by primary key."""

    title: str
    procedure: str
    per_transaction: int
    last: LiteralString
    arrived: LiteralString
    half: LiteralString | None = None
    schema: Schema = EXAMPLE
    arguments: tuple[int, ...] = ()  # of the procedure, behind how often


BACKLOGS = {
    "W1": Backlog(
        "single-row insert transactions", "w1", 1,
        f"call bench.story({_LAST}, 0)",
        f'select count(*) = 1 from "Story" where "id" = {_LAST}',
    ),
    "W2": Backlog(
        "updates over 1 000 hot rows", "w2", 1,
        """update "Story" set "title" = 'the last one' where "id" = bench.hot(1)""",
        """select "title" = 'the last one' from "Story" where "id" = md5('hot 1')::uuid""",
    ),
    "W3": Backlog(
        "changes, in transactions of 1 parent, 3 children, 1 update", "w3", 5,
        f"call bench.family({_LAST}, 0)",
        f'select coalesce(bool_and("isPublic"), false) and (select count(*) = 3 from "Scenario" where "storyId" = {_LAST})'
        f' from "Story" where "id" = {_LAST}',
        """select count(*) from "Story" s where s."authorEmail" = 'w3' and not (s."isPublic" and """
        """(select count(*) = 3 from "Scenario" c where c."storyId" = s."id"))""",
    ),
    "W6": Backlog(
        "inserts, 20 in a transaction", "w6", 1,
        f"call bench.story({_LAST}, 0)",
        f'select count(*) = 1 from "Story" where "id" = {_LAST}',
    ),
    "W8": Backlog(
        "single-row insert transactions of 20 columns, 4 kB", "w8", 1,
        "call bench.wide(0, 0)",
        'select count(*) = 1 from "Wide" where "id" = 0',
    ),
    "W12": Backlog(
        "changes of 100-byte rows, 100 inserts, 100 updates and 100 deletes a transaction", "w12", 300,
        "call bench.block(nextval('bench.block'), true)",
        'select count(*) = 1 from "Item" where "id" = -1',
        schema=PUBLISHED,
    ),
}  # fmt: skip


def warm_up(stores: Stores) -> None:
    """What every system moves before it is measured."""
    with connect(stores.source) as conn:
        conn.execute("call bench.warm(%s)", (WARM,))


def build(backlog: Backlog, stores: Stores, changes: int) -> int:
    """So many changes and one transaction more; how many changes that is."""
    each = max(1, changes // backlog.per_transaction // _WRITERS)
    call = sql.SQL("call bench.{}({})").format(
        sql.Identifier(backlog.procedure), sql.SQL(", ").join(map(sql.Literal, (each, *backlog.arguments)))
    )

    def write(_: int) -> None:
        with connect(stores.source) as conn:
            conn.execute(call)

    with ThreadPoolExecutor(_WRITERS) as writers:
        list(writers.map(write, range(_WRITERS)))
    with connect(stores.source) as conn:
        conn.execute(backlog.last)
    return (each * _WRITERS + 1) * backlog.per_transaction
