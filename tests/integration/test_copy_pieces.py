"""What is read of a table in pieces is what was read of it row by row: the same rows, bounds and marks (outbox.copy_work)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql

from daemon.batch import Question, stretch
from daemon.sheaf import split, texts
from tests.databases import Database, clone

ROWS = 700  # more than two pieces
ABSENT = -1
Row = tuple[str, str | None, int]  # key, row or digest, bytes


@dataclass(frozen=True)
class Told:
    """An answer: rows in order, those that were fetched and the others; the last key of all."""

    fetched: list[Row]
    others: list[Row]
    last: str | None
    seen: str | None

    @property
    def rows(self) -> list[Row]:
        return self.fetched + self.others


def told(rows: list[Row], last: str | None, seen: str | None) -> Told:
    return Told([row for row in rows if row[1] is not None], [row for row in rows if row[1] is None], last, seen)


@pytest.fixture(scope="module")
def story(_source_template: Database) -> Iterator[psycopg.Connection[Any]]:
    """Rows that a filter leaves out, here few and there many; and of very different sizes."""
    with clone(_source_template) as database, database.connect() as conn:
        conn.execute("create table story (a int, b text, note text, open boolean, primary key (b, a))")
        conn.execute(
            "insert into story select n, case when n % 3 = 0 then 'é\"' else 'b' end, repeat('x', case when n % 50 = 0 then 3000 else n % 40 end),"
            f" n % 7 <> 0 and n not between 300 and 600 from generate_series(1, {ROWS}) n"
        )
        conn.execute("select outbox.watch('story', key_columns => '{a,b}', filter => 'open')")
        yield conn


def in_pieces(conn: psycopg.Connection[Any], what: str, keys: list[str] | None, *bounds: int) -> Told:
    most, max_bytes, row_bytes = bounds
    found = conn.execute(
        "select columns, named, texts, sizes from outbox.copy_of('story', %s, %s, %s, %s, %s)",
        (what, keys, most, max_bytes, row_bytes),
    ).fetchall()
    assert all(len(keys.split("\x1d")) <= 256 for _, keys, _, _ in found if keys is not None)
    read = stretch(Question("story", what, None, most, max_bytes), found, 0)
    assert what in {"missing", "these"} or set(read.columns) == {"a", "b", "note", "open"}
    rows: dict[str, Row] = {}
    for sheaf in read.sheaves:
        bodies = [None] * len(sheaf) if sheaf.rows is None else [body.decode() for body in texts(sheaf.rows)]
        sizes = [ABSENT] * len(sheaf) if sheaf.op == "delete" else sheaf.sizes
        rows |= {key: (key, body, size) for key, body, size in zip(split(sheaf.keys), bodies, sizes, strict=True)}
    if what in {"rows", "digests"}:
        full = sum(size for _, _, size in rows.values()) >= max_bytes  # also of rows that are too large to be fetched
        assert read.whole == (read.seen is None and len(rows) < most and not full)
    return told(list(rows.values()), read.last, read.seen)


def row_by_row(conn: psycopg.Connection[Any], what: str, after: str | None, *bounds: int) -> Told:
    """As it was: one after the other, until the bytes are full or enough were looked at."""
    most, max_bytes, row_bytes = bounds
    ((statement,),) = conn.execute(
        "select outbox.range_sql(w, outbox.keyed(w), outbox.projection(w.id), %s) from outbox.watched w",
        (after is None,),
    ).fetchall()
    conn.execute(f"prepare range(text, int) as select key, made, size, inside, md5(made) from ({statement}) r".encode())
    given = sql.SQL("execute range({}, {})").format(sql.Literal(after), sql.Literal(most))
    found = conn.execute(given).fetchall()
    conn.execute("deallocate range")
    rows, total, looked = list[Row](), 0, 0
    key = None
    for key, made, size, inside, digest in found:
        looked += 1
        if not inside:
            continue
        body = digest if what == "digests" else None if size > row_bytes else made
        total += size
        rows.append((key, body, size))
        if total >= max_bytes:
            return told(rows, rows[-1][0], None)
    seen = key if looked == most and len(rows) < looked else None
    return told(rows, rows[-1][0] if rows else None, seen)


bounds = st.tuples(
    st.sampled_from([1, 2, 5, 100, 255, 256, 257, 400, 1000]),
    st.sampled_from([1, 100, 2000, 20_000, 10**9]),
    st.sampled_from([10, 90, 1000, 10**9]),
)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["rows", "digests"]), bounds)
def test_a_whole_table_in_pieces_is_the_table_row_by_row(
    story: psycopg.Connection[Any], what: str, bounds: tuple[int, int, int]
) -> None:
    """From the beginning to the end, range by range."""
    after: str | None = None
    turns = 0
    while True:
        answer = in_pieces(story, what, None if after is None else [after], *bounds)
        assert answer == row_by_row(story, what, after, *bounds)
        behind = answer.seen or answer.last
        turns += 1
        if behind is None or turns == 12:
            return
        after = behind


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-2, ROWS + 5), min_size=1, max_size=300, unique=True), bounds)
def test_these_rows_in_pieces_are_these_rows(
    story: psycopg.Connection[Any], wanted: list[int], bounds: tuple[int, int, int]
) -> None:
    """In any order, such as are not there, and keys that are no values here."""
    _, max_bytes, row_bytes = bounds
    keys = [f'{{"a":{n},"b":"b"}}' if n > -2 else '{"a":"no number","b":"b"}' for n in wanted]
    answer = in_pieces(story, "these", keys, len(keys), max_bytes, row_bytes)
    there = dict(story.execute("select a, open from story where b = 'b'").fetchall())
    expected, total = list[tuple[str, bool, bool]](), 0
    for n, key in zip(wanted, keys, strict=True):
        ((size,),) = story.execute("select coalesce(max(octet_length((select row_to_json(x.*)::text from (select t.a, t.b, t.note, t.open) x))), -1) from story t where a = %s and b = 'b' and open", (n,)).fetchall()  # fmt: skip
        expected.append((key, bool(there.get(n)), 0 <= size <= row_bytes))
        total += max(0, size)
        if total >= max_bytes:
            break
    by_key = {key: (size >= 0, body is not None) for key, body, size in answer.rows}
    assert by_key == {key: (exists, has) for key, exists, has in expected}
    assert {key for key, _, _ in in_pieces(story, "missing", keys, 0, 0, 0).rows} == {
        key for n, key in zip(wanted, keys, strict=True) if not there.get(n)
    }


@pytest.mark.parametrize("what", ["rows", "digests"])
def test_no_row_is_made_beyond_the_bytes_of_a_range(story: psycopg.Connection[Any], what: str) -> None:
    """However large the next ones are: Postgres stops where the bytes are full, and sorts nothing before."""
    ((statement,),) = story.execute(
        "select outbox.pieces_sql(outbox.range_sql(w, outbox.keyed(w), outbox.projection(w.id), false), 2, %s, 500) from outbox.watched w",
        (what == "digests",),
    ).fetchall()
    for setting in ("seqscan", "bitmapscan", "sort"):  # as the function has it: outbox.compose_copy
        story.execute(f"set enable_{setting} = off".encode())
    story.execute(f"prepare pieces(text, int, bigint, bigint) as {statement}".encode())
    ((plan,),) = story.execute(
        """explain (analyze, format json) execute pieces('{"a":1,"b":"b"}', 500, 1000, 1000000)"""
    ).fetchall()
    story.execute("deallocate pieces")
    (scan,) = [node for node in _nodes(plan[0]["Plan"]) if node.get("Relation Name") == "story"]
    assert scan["Actual Rows"] < 30


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from _nodes(inner)
