"""Reading in sheaves comes to what reading change by change comes to: the same changes, plans and cursors.

Transactions side by side, long ones and short ones, with savepoints, hot keys, deletes, two shapes of a table and rows
that are not fetched, against the reader that went before (tests/rowwise.py), in the same windows.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import psycopg
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from daemon.batch import Limits
from daemon.connection import Link
from daemon.plan import Group, plan
from daemon.sheaf import Change, unbind
from daemon.source import Source
from outbox import Cursor
from tests.databases import Database, clone
from tests.rowwise import RowGroup, RowPages, RowWindow, row_plan

ORDER = {"public.parent": 0, "public.child": 1}
TABLES = sorted(ORDER)
COLUMNS = (("id", "v"), ("id", "v", "w"))
INSERT = (
    "insert into outbox.change (table_name, op, shape, key, row) values"
    " (%(table)s, %(op)s, case when %(op)s = 'upsert' then outbox.shape_of(%(table)s, %(columns)s) end, %(key)s, %(row)s)"
)
Act = tuple[int, str, int, int, int]  # session, what, table, key, size

# Few write many: the page ends within most of their transactions.
acts = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["upsert"] * 12 + ["delete"] * 3 + ["commit"] * 4 + ["many", "rollback", "save", "back", "other", "truncate"]),
        st.integers(0, 1), st.integers(1, 5), st.sampled_from([0, 0, 0, 40, 400]),
    ),
    max_size=60,
)  # fmt: skip
limits = st.builds(Limits, changes=st.integers(1, 12), bytes=st.sampled_from([60, 500, 10_000]), row_bytes=st.just(300))


@dataclass
class Application:
    """Sessions that write to the outbox, each in a transaction of its own."""

    conns: list[psycopg.Connection[Any]]
    written: int = 0
    saved: set[int] = field(default_factory=set)

    def act(self, act: Act) -> None:
        who, what, table, key, size = act
        conn = self.conns[who]
        if what in {"commit", "rollback"}:
            (conn.commit if what == "commit" else conn.rollback)()
            self.saved.discard(who)
        elif what == "save":
            conn.execute("savepoint here")
            self.saved.add(who)
        elif what == "back":
            if who in self.saved:
                conn.execute("rollback to savepoint here")
        else:
            for n in range(15 if what == "many" else 1):
                self._write(conn, what, TABLES[table], key + n, size)

    def _write(self, conn: psycopg.Connection[Any], what: str, table: str, key: int, size: int) -> None:
        self.written += 1
        op = what if what in {"delete", "truncate"} else "upsert"
        columns = COLUMNS[what == "other"]
        filled = "x" * size
        more = ', "w": 1' if what == "other" else ""
        row = f'{{ "id": {key},\n"v": "{self.written}é{filled}"{more}}}'
        named = {"table": table, "op": op, "columns": list(columns)}
        conn.execute(INSERT, {**named, "key": f'{{"id":{key}}}', "row": row if op == "upsert" else None})

    def end(self) -> None:
        for conn in self.conns:
            conn.commit()
        self.saved.clear()


@pytest.fixture(scope="module")
def outbox(_source_template: Database) -> Iterator[tuple[Database, Application]]:
    with clone(_source_template) as database, ExitStack() as stack:
        conns = [stack.enter_context(database.connect(autocommit=False)) for _ in range(4)]
        yield database, Application(conns)


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(acts, acts, limits, st.booleans())
@example(
    [], [(who, "upsert", 0, 1, 0) for who in (0, 0, 0, 0, 1, 1, 1, 1)], Limits(changes=3), False
)  # the second is torn, too
def test_sheaves_come_to_what_single_changes_come_to(outbox, first, second, limits, by_id):
    """Two windows, one behind the other, and a third when everybody has ended; whatever the limits."""
    database, application = outbox
    with database.connect() as conn:
        conn.execute("truncate outbox.change")

    async def compare() -> int:
        source, cursor, seen = Source(database.dsn, limits), Cursor.beginning(), 0
        try:
            for chosen in (first, second, list[Act]()):
                for act in chosen:
                    application.act(act)
                if not chosen:
                    application.end()
                cursor, read = await window(source, cursor, limits, by_id=by_id)
                seen += read
        finally:
            application.end()
            await source.close()
        return seen

    seen = asyncio.run(compare())
    with database.connect() as conn:
        assert conn.execute("select count(*) from outbox.change").fetchone() == (seen,)


async def window(source: Source, cursor: Cursor, limits: Limits, *, by_id: bool) -> tuple[Cursor, int]:
    """Read one by both, part by part. The cursor it leads to, and how many changes it had."""
    read = 0
    async with source.connected() as conn:
        pages = await source._opening.open(conn, cursor, limits)
        pages.looked, pages.by_id = None, by_id
        w = pages.window
        same = (w.cursor, w.goal, w.goal_floor, w.ceiling, w.max_changes, w.max_bytes, w.timeline, w.lsn)
        rows = RowPages(RowWindow(*same), pages.home, pages.flushed, by_id)
        while True:
            part, wanted = await pages.next(conn, limits), await rows.next(conn, limits)
            assert plain(unbind(part.sheaves)) == plain(sorted(wanted.changes, key=lambda change: change.id))
            assert (part.cursor, part.torn, part.more) == (wanted.cursor, wanted.torn, wanted.more)
            shapes = {
                id_: tuple(columns)
                for id_, columns in await (await conn.execute("select id, columns from outbox.shape")).fetchall()
            }
            flow = tuple(sheaf for sheaf in part.sheaves if sheaf.op != "upsert" or sheaf.rows is not None)
            fetched = [change for change in wanted.changes if change.op != "upsert" or change.row is not None]
            planned, (groups, counts, superseded) = plan(flow, ORDER, shapes), row_plan(fetched, ORDER, shapes)
            assert (planned.counts, planned.superseded) == (counts, superseded)
            assert in_order(planned.groups) == in_order(groups)
            read += len(wanted.changes)
            if not part.more:
                return part.cursor, read


def plain(changes: list[Change]) -> list[Change]:
    """A sheaf knows only that one of its changes is not flushed."""
    return [change._replace(unflushed=False) for change in changes]


def written(group: Group | RowGroup) -> tuple[Any, ...]:
    """What it says; the rows by their keys, for where a key was deleted as well the place of its row may be another."""
    rows = sorted(zip(group.keys, group.rows, strict=True))
    return group.table, group.op, group.rank, group.columns, group.anew, rows


def in_order(groups: Sequence[Group | RowGroup]) -> list[list[tuple[Any, ...]]]:
    """What is written of each table in turn; rows of different columns, and rows that went before, are of one turn."""
    return [sorted(map(written, of_one)) for _, of_one in groupby(groups, key=lambda group: (group.table, group.op))]


async def test_a_page_of_many_large_rows_is_not_read_as_a_whole(source: Database, monkeypatch) -> None:
    """600 rows of 10 kB, 1 MB a batch: what comes is bounded by bytes, row by row exact."""
    answers, pieces = list[int](), Link.pieces

    async def counted(*asked: Any) -> list[Any]:
        found = await pieces(*asked)
        answers.append(sum(len(piece[-1] or b"") for piece in found))
        return found

    monkeypatch.setattr(Link, "pieces", counted)
    with source.connect() as conn:
        conn.execute(
            "insert into outbox.change (table_name, op, shape, key, row)"
            """ select 'public.t', 'upsert', outbox.shape_of('public.t', '{id}'), '{"id":' || n || '}', '{"id":"' || repeat(md5(n::text), 320) || '"}'"""
            " from generate_series(1, 600) n"
        )
    reader = Source(source.dsn, Limits(bytes=1_000_000))
    try:
        cursor, read, largest = Cursor.beginning(), 0, 0
        more = True
        while more:
            batch = await reader.read(cursor)
            cursor, read, more = batch.cursor, read + batch.count, batch.more
            largest = max(largest, batch.size)
    finally:
        await reader.close()
    assert read == 600
    assert 1_000_000 <= largest < 1_020_000
    assert 1_000_000 <= max(answers) < 1_020_000
