"""What fires no trigger on the source: the table is copied again, by itself, and the others flow meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.integration.test_schema_drift import PATIENCE, state
from tests.pairs import QUICK, Pair, Parts
from tests.relaying import until

STORY = "create table story (id int primary key, title text, stars int)"
PARTS = (
    "create table story (id int primary key, title text, stars int) partition by range (id);"
    "create table story_low partition of story for values from (0) to (100);"
    "create table story_high partition of story for values from (100) to (200)"
)


@asynccontextmanager
async def running(pair: Pair) -> AsyncIterator[Parts]:
    async with pair.relay(timing=QUICK) as parts:
        task = asyncio.create_task(parts.relay.run())
        try:
            yield parts
            assert not task.done()
        finally:
            parts.relay.stop()
            await asyncio.wait([task])
            task.result()


def same(pair: Pair, columns: str = "t") -> bool:
    source, target = pair.rows(f"select ({columns})::text from story t order by 1")
    return source == target


# What is done on the source; what has to be done on the target first, if anything; what is compared.
GIVEN = {
    "column added with a default": (
        "alter table story add column mood text not null default 'calm'", "alter table story add column mood text", "id, title, stars, mood",
    ),
    "column added, computed": (
        "alter table story add column twice int generated always as (2 * stars) stored", "alter table story add column twice int",
        "id, title, stars, twice",
    ),
    "type changed": ("alter table story alter stars type text using 'number ' || stars", "alter table story alter stars type text", "t"),
    "column renamed": ("alter table story rename title to name", "alter table story rename title to name", "t"),
    "table made anew": (
        ("drop table story; create table story (id int primary key, title text, stars int); insert into story values (50, 'new', 5);"
        "select outbox.watch('story')"), "", "t",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", list(GIVEN))
async def test_rows_that_got_values_without_a_statement_are_copied_again(pair: Pair, how: str) -> None:
    on_source, on_target, columns = GIVEN[how]
    pair.create(STORY, "story")
    pair.write("insert into story select n, 'a', n from generate_series(1, 30) n")
    async with running(pair) as parts:
        await until(lambda: same(pair), PATIENCE)
        pair.write(*on_source.split(";"))
        if on_target:
            await until(lambda: state(parts) == "out", PATIENCE)
            with pair.target.connect() as conn:
                conn.execute(on_target.encode())
        await until(lambda: state(parts) == "done" and same(pair, columns), PATIENCE)


@pytest.mark.parametrize("how", ["alter table story detach partition story_low", "drop table story_low"])
async def test_rows_of_a_partition_that_is_gone_go_on_the_target_too(pair: Pair, how: str) -> None:
    pair.create(PARTS, "story", on_target=STORY)
    pair.write("insert into story select n, 'a', n from generate_series(90, 110) n")
    async with running(pair) as parts:
        await until(lambda: same(pair), PATIENCE)
        pair.write(how)
        await until(lambda: state(parts) == "done" and same(pair), PATIENCE)
        assert [row for (row,) in pair.rows("select count(*) from story")[1]] == [11]


@pytest.mark.parametrize(
    "how", ["alter table story add column note text", "alter table story drop column title", "vacuum full story"]
)
async def test_what_gives_no_row_a_value_asks_for_no_copy(pair: Pair, how: str) -> None:
    """And the target keeps what it has in a column that the source has dropped."""
    pair.create(STORY, "story")
    pair.write("insert into story select n, 'a', n from generate_series(1, 30) n")
    async with running(pair) as parts:
        await until(lambda: same(pair), PATIENCE)
        with pair.source.connect() as conn:
            conn.execute(how.encode())
            assert conn.execute("select * from outbox.notice()").fetchall() == []
        pair.write("update story set stars = 100 where id = 1") if "note" not in how else None
        await until(lambda: same(pair, "id, stars"), PATIENCE)
        known = {table: (one.state, one.wish, one.rows) for table, one in parts.relay.copier.copies.items()}
        assert known == {"public.story": ("done", 0, 0)}, "where its rows went, and no copy"


async def test_after_a_statement_that_could_not_be_captured_the_table_is_copied_again(pair: Pair) -> None:
    """The key is gone for a while: the table is out, the others flow; once the key is back it is copied, by itself."""
    pair.create(STORY, "story")
    pair.create("create table tale (id int primary key)", "tale")
    pair.write("insert into story select n, 'a', n from generate_series(1, 30) n")
    async with running(pair) as parts:
        await until(lambda: same(pair), PATIENCE)
        pair.write(
            "alter table story drop constraint story_pkey",
            "update story set stars = 0 where id < 9",
            "delete from story where id = 20",
        )
        await until(lambda: state(parts) == "out", PATIENCE)
        assert "`outboxd watch public.story` again" in parts.relay.copier.report()[0]["reason"]
        pair.write("insert into tale values (1)")
        await until(lambda: pair.rows("select * from tale")[1] == [(1,)], PATIENCE)
        pair.write("alter table story add primary key (id)")
        await until(lambda: state(parts) == "done" and same(pair), PATIENCE)
        pair.write("update story set stars = 1 where id = 1")
        await until(lambda: same(pair), PATIENCE)


async def test_a_table_dropped_on_the_source_keeps_its_rows_on_the_target(pair: Pair) -> None:
    """Nobody said that they are to go; the others flow."""
    pair.create(STORY, "story")
    pair.create("create table tale (id int primary key)", "tale")
    pair.write("insert into story values (1, 'a', 1)")
    async with running(pair):
        await until(lambda: same(pair), PATIENCE)
        pair.write("drop table story", "insert into tale values (1)")
        await until(lambda: pair.rows("select * from tale")[1] == [(1,)], PATIENCE)
        with pair.target.connect() as conn:
            assert conn.execute("select count(*) from story").fetchall() == [(1,)]
