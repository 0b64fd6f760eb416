"""Emitted changes through a relay: what the application gave is what the target holds."""

from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

from outbox import Change, emit_many
from tests.captured import Connection, rows, watch
from tests.databases import Database
from tests.pairs import Pair

STORY = """
    create table story (id uuid primary key, title text, price numeric, rating float8, at timestamptz, raw bytea, doc jsonb,
                        plain json, tags text[], grid int[], links jsonb[])
"""
ID = UUID("11111111-1111-4111-8111-111111111111")


def mirrored(source: Database, target: Database, ddl: str, table: str) -> tuple[Connection, Connection]:
    """The same table on both sides; the source's is written by emit alone."""
    app, there = source.connect(), target.connect()
    for conn in (app, there):
        conn.execute(ddl)
    watch(app, table, capture=False)
    there.execute("select outboxd.map(%s::regclass)", (table,))
    return app, there


async def test_natural_json_arrives_in_its_columns(source: Database, target: Database) -> None:
    """Objects, lists, JSON text and nothing at all; numbers, times, bytes and NaN."""
    app, there = mirrored(source, target, STORY, "story")
    row = {
        "title": "ünï\x1e", "price": Decimal("1.1000"), "rating": float("nan"), "at": datetime(2026, 1, 2, tzinfo=UTC),
        "raw": b"\x00\xff", "doc": {"a": [1, None, 1.10]}, "plain": ["x"], "tags": ["x", "y z", None, '"'], "grid": [[1, 2], [3, 4]],
        "links": [{"to": 1}, "text"],
    }  # fmt: skip
    with app, there:
        with app.transaction():
            emit_many(
                app,
                [Change.upsert("story", {"id": ID, **row}), Change.upsert("story", {"id": UUID(int=2), "doc": "text"})],
            )
        assert await Pair(source, target).drain() == 2
        assert rows(there, "select title, price::text, rating, at, raw, doc, plain, tags, grid, links from story where id = %s", ID)[0][3:] == (
            row["at"], row["raw"], row["doc"], row["plain"], row["tags"], row["grid"], row["links"]
        )  # fmt: skip
        assert rows(there, "select title, price::text, rating = 'NaN' from story where id = %s", ID) == [
            ("ünï\x1e", "1.1000", True)
        ]
        assert rows(there, "select doc, doc::text, tags from story where id <> %s", ID) == [("text", '"text"', None)]


async def test_a_part_of_a_row_leaves_the_rest(source: Database, target: Database) -> None:
    """Two changes of one row in one batch, each with its own columns, and a third in the next."""
    app, there = mirrored(source, target, STORY, "story")
    with app, there:
        with app.transaction():
            emit_many(app, [Change.upsert("story", {"id": ID, "title": "a", "tags": ["x"], "price": 1})])
        await Pair(source, target).drain()
        with app.transaction():
            emit_many(
                app,
                [
                    Change.upsert("story", {"id": ID, "title": "b"}),
                    Change.upsert("story", {"id": UUID(int=2), "price": 2}),
                ],
            )
        await Pair(source, target).drain()
        assert rows(there, "select title, tags, price from story order by id desc") == [
            ("b", ["x"], 1),
            (None, None, 2),
        ]


async def test_a_table_that_is_on_the_target_alone(source: Database, target: Database) -> None:
    """A projection: mapped on both sides, its JSON columns given as they are, rows that go again."""
    with source.connect() as app, target.connect() as there:
        app.execute("select outbox.map('public.\"Totals\"', array['region', 'day'])")
        there.execute(
            'create table "Totals" (region text, day numeric, sum numeric, doc jsonb, note text, primary key (region, day))'
        )
        there.execute("select outboxd.map('\"Totals\"', key_columns => array['region', 'day'])")
        with app.transaction():
            emit_many(app, [
                Change.upsert('"Totals"', {"region": "eu", "day": Decimal("1.0"), "sum": Decimal("0.10"), "doc": {"n": [1, {}]}}),
                Change.upsert('"Totals"', {"region": "eu", "day": 1, "sum": Decimal("0.20"), "doc": ["last"], "note": None}),
                Change.upsert('"Totals"', {"region": "us", "day": 1, "sum": 5}),
                Change.delete('"Totals"', {"day": 1.0, "region": "us"}),
            ])  # fmt: skip
        assert await Pair(source, target).drain() == 4
        assert rows(there, 'select region, day, sum, doc, note from "Totals"') == [
            ("eu", 1, Decimal("0.20"), ["last"], None)
        ]
