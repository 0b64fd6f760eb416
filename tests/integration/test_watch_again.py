"""Watching again, watching from an old snapshot, and two tables for one place."""

import json

import psycopg
import pytest
from psycopg import IsolationLevel

from daemon import install
from daemon.selection import Selection, plain
from daemon.survey import survey
from daemon.watchlist import State
from tests.captured import Connection, changes, rows, value, watch
from tests.databases import Database
from tests.pairs import Pair

STORY = "create table story (id int primary key, code text not null unique, title text, secret text)"
SAID = "select key_columns, include, exclude, on_error from outbox.watched"


def test_columns_that_did_not_travel_do_not_when_it_is_watched_again(scratch: Connection) -> None:
    """Nor does another key take the chosen one's place; each is taken away when that is said."""
    scratch.execute(STORY)
    watch(scratch, "story", key_columns=["code"], exclude=["secret"])
    scratch.execute("select outbox.on_error('story', 'halt')")
    watch(scratch, "story")
    scratch.execute("insert into story values (1, 'a', 'x', 'hidden')")
    assert json.loads(changes(scratch)[0].row or "") == {"id": 1, "code": "a", "title": "x"}
    assert rows(scratch, SAID) == [(["code"], None, ["secret"], "halt")]
    watch(scratch, "story", include=["code", "title"])
    assert rows(scratch, SAID) == [(["code"], ["code", "title"], None, "halt")]
    watch(scratch, "story", filter="id > 0")
    assert rows(scratch, SAID) == [(["code"], ["code", "title"], None, "halt")]
    watch(scratch, "story", key_columns=[], include=[])
    assert rows(scratch, SAID) == [(None, None, None, "halt")]


def test_a_column_left_out_that_is_gone_is_forgotten_and_one_renamed_is_not(scratch: Connection) -> None:
    """Its values travel under no other name."""
    scratch.execute(STORY)
    watch(scratch, "story", exclude=["title", "secret"])
    scratch.execute("alter table story drop title")
    watch(scratch, "story")
    assert rows(scratch, SAID) == [(None, None, ["secret"], "hold")]
    scratch.execute("alter table story rename secret to private")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="has no column secret"), scratch.transaction():
        watch(scratch, "story")
    scratch.execute("insert into story values (1, 'a', 'hidden')")
    assert "hidden" not in str(changes(scratch))


def test_the_command_keeps_what_it_is_not_told(source: Database, app: Connection) -> None:
    """on_error, too; --plain takes away what says which rows and columns travel."""
    app.execute(STORY)

    def run(wanted: Selection) -> None:
        list(install.watch(source.dsn, ["story"], lambda *_: wanted, print))

    run(Selection(key=["code"], exclude=["secret"], on_error="halt"))
    run(Selection())
    assert rows(app, SAID) == [(["code"], None, ["secret"], "halt")]
    run(plain(Selection()))
    assert rows(app, SAID) == [(None, None, None, "halt")]


@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_from_an_old_snapshot_a_copy_is_always_asked_for(
    source: Database, app: Connection, isolation: IsolationLevel
) -> None:
    """It does not show a row that has committed meanwhile, which nobody captured."""
    app.execute("create table story (id int primary key)")
    with source.connect(autocommit=False) as old:
        old.isolation_level = isolation
        old.execute("select 1 from outbox.watched")
        app.execute("insert into story values (1)")
        watch(old, "story")
    assert rows(app, "select table_name from outbox.copy") == [("public.story",)]


def test_two_tables_do_not_go_to_one_place(scratch: Connection) -> None:
    """Named on both ways, by watch and by map, in any order; not when one has made room."""
    scratch.execute(
        "create table a (id int primary key); create table b (id int primary key); create table x (id int primary key)"
    )
    watch(scratch, "a", target="app.x")
    for statement, other in (
        ("select outbox.watch('b', target => 'app.x')", "app.x"),
        ("select outbox.watch('b', target => 'app.\"x\"', capture => false)", "app.x"),
        ("select outbox.map('app.x', array['id'])", "app.x"),
    ):
        with (
            pytest.raises(
                psycopg.errors.InvalidParameterValue, match=f"public.a goes to {other} on the target already"
            ),
            scratch.transaction(),
        ):
            scratch.execute(statement.encode())
    watch(scratch, "x")
    with (
        pytest.raises(psycopg.errors.InvalidParameterValue, match=r"public\.x goes to public\.x"),
        scratch.transaction(),
    ):
        watch(scratch, "b", target="public.x")
    watch(scratch, "a", target="app.y")
    watch(scratch, "b", target="app.x")
    watch(scratch, "a")
    assert value(scratch, "select count(*) from outbox.watched") == 3


def test_nor_do_two_that_are_watched_at_one_time(source: Database, app: Connection) -> None:
    """Where an old snapshot does not show one to the other."""
    app.execute("create table a (id int primary key); create table b (id int primary key)")
    with source.connect(autocommit=False) as old:
        old.isolation_level = IsolationLevel.REPEATABLE_READ
        old.execute("select 1 from outbox.watched")
        watch(app, "a", target="app.x")
        with pytest.raises(psycopg.errors.UniqueViolation):
            watch(old, "b", target="app.x")


async def test_two_that_are_mapped_to_one_place_are_named(pair: Pair) -> None:
    """Which nothing on the target refuses: a name there may be left from before."""
    pair.create("create table a (id int primary key); create table b (id int primary key)", "a", "b")
    with pair.target.connect() as target:
        target.execute("create table x (id int primary key); select outboxd.map('x', 'public.a')")
    async with pair.relay() as parts:
        described = (await parts.target.describe()).more
        assert {one.state for one in (await survey(parts.source, described)).entries({})} == {State.WELL}
        with pair.target.connect() as target:
            target.execute("select outboxd.map('x', 'public.b')")
        described = (await parts.target.describe()).more
        said = {one.table: (one.state, one.what) for one in (await survey(parts.source, described)).entries({})}
    assert said == {
        "public.a": (State.UNFIT, "public.b goes to public.x as well"),
        "public.b": (State.UNFIT, "public.a goes to public.x as well"),
    }
