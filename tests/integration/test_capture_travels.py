"""Captured changes through a relay where their form matters: altered tables, keys that change their name."""

import pytest

from tests.databases import Database
from tests.pairs import Pair


@pytest.fixture
def pair(source: Database, target: Database) -> Pair:
    made = Pair(source, target)
    made.create("create table story (id int primary key, title text, doc jsonb, tags text[])", "story")
    return made


async def test_rows_of_two_forms_in_one_batch(pair: Pair) -> None:
    """Before and after ALTER TABLE, the target altered first: each row arrives with the columns it had."""
    with pair.target.connect() as there:
        there.execute("alter table story add late int, add old_title text")
    pair.write("insert into story select i, 't' || i, 'null', '{}' from generate_series(1, 4) i")
    pair.write("alter table story add late int", "update story set late = 5 where id < 3")
    pair.write(
        "alter table story rename title to old_title",
        "update story set tags = '{x}' where id = 2",
        "delete from story where id = 4",
    )
    assert await pair.drain() == 8
    here, there_now = pair.rows("select id, late, old_title, doc::text, tags from story order by id")
    assert here == [(1, 5, "t1", "null", []), (2, 5, "t2", "null", ["x"]), (3, None, "t3", "null", [])]
    assert [row[0] for row in there_now] == [1, 2, 3]
    assert there_now[1] == here[1]


@pytest.mark.parametrize("statement", ["update story set title = 'x'", "delete from story where number = 1"])
async def test_a_renamed_key_that_the_target_does_not_know_is_refused(pair: Pair, statement: str) -> None:
    """Neither lost nor applied to another row: the table is out until the target follows, then it is copied by itself."""
    pair.write("insert into story (id) values (1), (2)")
    await pair.drain()
    pair.write("alter table story rename id to number", statement)
    await pair.drain()
    with pair.target.connect() as there:
        assert there.execute("select state from outboxd.copy").fetchall() == [("out",)]
        assert there.execute("select title from story order by id").fetchall() == [(None,), (None,)]
        there.execute("alter table story rename id to number")
        there.execute("select outboxd.map('story')")
    await pair.drain()
    pair.assert_equal("story")
