"""Rows of any size: capture fails no statement, and the daemon fetches no row beyond its limit."""

import json
from typing import Any

import psycopg
import pytest

from daemon.batch import Batch
from outbox import Cursor
from tests.captured import Connection, rows, value, watch
from tests.databases import Database
from tests.pairs import batches, reading
from tests.pairs import changes as changes_of

MB = 1024 * 1024


@pytest.fixture
def doc(app: Connection) -> Connection:
    """A watched table for documents; text is stored as it is, so that sizes are what they seem."""
    app.execute("create table doc (id int primary key, title text, body text, raw bytea, data jsonb)")
    app.execute("alter table doc alter body set storage external")
    watch(app, "doc")
    return app


def recorded(conn: Connection) -> list[tuple[Any, ...]]:
    """Op, key, whether there is a shape, the row if it is short, and its length; by key, then in order."""
    found = rows(
        conn,
        "select op, (key::json ->> 'id')::int, shape is not null,"
        " case when octet_length(row) < 1000 then row end, octet_length(row) from outbox.change order by 2, id",
    )
    conn.execute("truncate outbox.change")
    return found


def kinds(found: list[tuple[Any, ...]]) -> list[tuple[str, int]]:
    return [(op, key) for op, key, *_ in found]


@pytest.mark.slow
def test_a_row_of_540_mb_fails_no_statement(doc: Connection) -> None:
    """Insert, another column's update, its own update, delete; its neighbours are captured as ever."""
    doc.execute(
        "insert into doc (id, body) select n, repeat('x', case n when 2 then 540000000 else 9 end) from generate_series(1, 3) n"
    )
    found = recorded(doc)
    assert kinds(found) == [("upsert", 1), ("too_large", 2), ("upsert", 3)]
    _, _, shaped, stands_for, _ = found[1]
    assert not shaped
    assert json.loads(stands_for) == {"stored_bytes": 540_000_000}
    assert json.loads(found[2][3])["body"] == "xxxxxxxxx"

    doc.execute("update doc set title = 'new'")
    assert kinds(recorded(doc)) == [("upsert", 1), ("too_large", 2), ("upsert", 3)]
    doc.execute("update doc set body = body || 'y' where id = 2")
    assert kinds(recorded(doc)) == [("too_large", 2)]
    doc.execute("delete from doc where id >= 2")
    assert kinds(recorded(doc)) == [("delete", 2), ("delete", 3)]


@pytest.mark.slow
def test_what_cannot_be_written_as_json_at_all_is_too_large(doc: Connection) -> None:
    """Little is stored here, and Postgres fails to make its text: it would have more than 1 GB."""
    doc.execute("alter table doc alter body set storage extended; alter table doc add column xs numeric[]")
    for column, of in (
        ("data", "(select jsonb_agg(1e131071) from generate_series(1, 9000))"),
        ("xs", "array_fill(1e131071::numeric, array[9000])"),
        ("raw", f"(select string_agg(decode(repeat('00', {MB}), 'hex'), '') from generate_series(1, 540))"),
    ):
        watch(doc, "doc")
        doc.execute(f"insert into doc (id, title, {column}) values (1, 'a', null), (2, 'b', {of}), (3, 'c', null)")
        assert value(doc, f"select pg_column_size({column}) < {MB if column == 'xs' else 9 * MB} from doc where id = 2")
        if column != "raw":
            with pytest.raises(psycopg.Error):
                doc.execute(f"select length({column}::text) from doc where id = 2")
        assert kinds(recorded(doc)) == [("upsert", 1), ("too_large", 2), ("upsert", 3)]
        doc.execute("delete from doc")
        assert kinds(recorded(doc)) == [("delete", 1), ("delete", 2), ("delete", 3)]


@pytest.mark.slow
def test_the_slower_ways_keep_to_it_too(app: Connection) -> None:
    """A table altered since it was watched, and a partitioned one."""
    app.execute("create table doc (id int, body text, primary key (id)) partition by range (id)")
    app.execute("create table doc_1 partition of doc for values from (0) to (10)")
    watch(app, "doc")
    large = "insert into doc (id, body) values (1, 'a'), (2, repeat('x', 150000000)), (3, repeat('y', 1000000))"
    app.execute(large)
    assert kinds(recorded(app)) == [("upsert", 1), ("too_large", 2), ("upsert", 3)]
    app.execute("alter table doc add column more text")
    app.execute("update doc set more = 'm'")
    found = recorded(app)
    assert kinds(found) == [("upsert", 1), ("too_large", 2), ("upsert", 3)]
    assert found[2][4] > 1_000_000


def test_large_rows_below_the_limit_travel_whole(doc: Connection) -> None:
    """Many of 1 MB, one of 8 and one of 64: every byte is there, whatever their columns' types."""
    doc.execute(f"insert into doc (id, body) select n, repeat('é\"', {MB} / 3) from generate_series(1, 40) n")
    assert [(op, length > MB) for op, _, _, _, length in recorded(doc)] == [("upsert", True)] * 40
    doc.execute(f"insert into doc (id, raw) values (50, decode(repeat('ab', {4 * MB}), 'hex'))")
    doc.execute(f"insert into doc (id, body) values (51, repeat('z', {64 * MB}))")
    doc.execute(
        "insert into doc (id, data) select 52, jsonb_object_agg(n, repeat('q', 99)) from generate_series(1, 9000) n"
    )
    doc.execute("insert into doc (id, body) select 53, string_agg(md5(n::text), '') from generate_series(1, 9000) n")
    assert value(
        doc,
        "select bool_and(c.op = 'upsert' and (d.body is not distinct from c.row::json ->> 'body')"
        " and (d.raw is not distinct from (c.row::json ->> 'raw')::bytea)"
        " and (d.data is not distinct from (c.row::json ->> 'data')::jsonb)) and count(*) = 4"
        " from doc d join outbox.change c on (c.key::json ->> 'id')::int = d.id where d.id >= 50",
    )


def test_small_rows_never_take_the_slow_way(doc: Connection) -> None:
    """What the guard costs is a look at what is stored; and each kind of large value does take it."""
    watched = value(doc, "select 'row_' || id from outbox.watched")
    doc.execute(f"create or replace function outbox.{watched}(at tid) returns text language sql as 'select null::text'")
    doc.execute(
        "insert into doc values (1, null, null, null, null), (2, 't', repeat('b', 30000), repeat('r', 9000)::bytea, '[1, 2]')"
    )
    assert kinds(recorded(doc)) == [("upsert", 1), ("upsert", 2)]
    doc.execute("insert into doc (id, body) values (3, repeat('b', 200000))")
    doc.execute("insert into doc (id, data) select 4, jsonb_agg(n) from generate_series(1, 900) n")
    doc.execute("insert into doc (id, data) select 5, jsonb_agg('x'::text) from generate_series(1, 900) n")
    assert kinds(recorded(doc)) == [("too_large", 3), ("too_large", 4), ("too_large", 5)]


def test_another_failure_of_the_slow_way_is_none_of_size(doc: Connection) -> None:
    """Cancelling a statement still cancels it: what is caught is only what says "too large"."""
    watched = value(doc, "select 'row_' || id from outbox.watched")
    body = value(doc, "select prosrc from pg_proc where proname = %s", watched)
    assert "when others" not in body
    doc.execute("set statement_timeout = '1ms'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        doc.execute("insert into doc (id, body) select n, repeat('b', 200000) from generate_series(1, 500) n")


def test_an_emitted_row_too_large_is_refused_in_a_sentence(doc: Connection) -> None:
    """The application called: it is told."""
    doc.execute("select outbox.emit('doc', 'upsert', json_build_object('id', 1, 'body', repeat('x', 1000000)))")
    with pytest.raises(psycopg.errors.ProgramLimitExceeded, match=r"the row has \d+ bytes, and 134217728 is the most"):
        doc.execute("select outbox.emit('doc', 'upsert', json_build_object('id', 1, 'body', repeat('x', 134300000)))")
    assert kinds(recorded(doc)) == [("upsert", 1)]


async def test_the_daemon_fetches_no_row_beyond_its_limit(source: Database, doc: Connection) -> None:
    """Such a change has a size and no row; its neighbours have theirs, in one batch, and nothing is torn."""
    doc.execute(
        "insert into doc (id, body) select n, repeat('x', case n when 2 then 3000000 else 10 end) from generate_series(1, 3) n"
    )
    async with reading(source, bytes=100_000, row_bytes=200_000) as reader:
        (batch,) = await batches(reader)
        assert [(c.op, c.row is None, c.size > 200_000) for c in sorted(batch.changes, key=lambda c: c.key)] == [
            ("upsert", False, False),
            ("upsert", True, True),
            ("upsert", False, False),
        ]
        assert batch.torn == 0
        # At the limit itself it travels.
        doc.execute("insert into doc (id, body) values (4, '')")
        found = await reader.read(batch.cursor)
        (tiny,) = changes_of([found])
        doc.execute("insert into doc (id, body) values (5, repeat('x', 3000000))")
        (large,) = changes_of([await reader.read(found.cursor)])  # a short window, which is read in another way
        assert large.row is None
    async with reading(source, row_bytes=tiny.size) as reader:
        assert (await after(reader, batch)).row is not None
    async with reading(source, row_bytes=tiny.size - 1) as reader:
        assert (await after(reader, batch)).row is None


async def after(reader: Any, batch: Batch) -> Any:
    return (await reader.read(batch.cursor)).changes[0]


async def test_what_is_too_large_to_record_is_read_as_such(source: Database, app: Connection) -> None:
    """The daemon is handed the key and the size."""
    app.execute("create table doc (id int primary key, body text)")
    watch(app, "doc")
    watched = value(app, "select 'row_' || id from outbox.watched")
    app.execute(f"create or replace function outbox.{watched}(at tid) returns text language sql as 'select null::text'")
    app.execute("insert into doc values (1, repeat('b', 30000000))")
    async with reading(source) as reader:
        (change,) = (await reader.read(Cursor.beginning())).changes
    assert (change.op, change.key, change.shape) == ("too_large", '{"id":1}', None)
    assert json.loads(change.row or "") == {"stored_bytes": value(app, "select pg_column_size(body) from doc")}
