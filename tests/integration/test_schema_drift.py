"""The target's tables change under the relay: it pauses or holds, says which step leads on, and goes on by itself."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from daemon.demo.supabase import EmbeddedSupabase
from daemon.rest import RestDoor
from daemon.target import Door
from tests.integration.test_dead_letters import AT_ONCE, asked, held
from tests.pairs import QUICK, Pair, Parts
from tests.relaying import until

STORY = "create table story (id int primary key, title text, stars int)"
PATIENCE = 60.0


@pytest.fixture
def stories(pair: Pair) -> Pair:
    pair.create(STORY, "story")
    pair.write("insert into story values (1, 'before', 1)")
    return pair


@asynccontextmanager
async def running(pair: Pair, door: Door | None = None) -> AsyncIterator[Parts]:
    """A relay that turns by itself, with what was written so far brought over."""
    async with pair.relay(timing=QUICK, door=door) as parts:
        task = asyncio.create_task(parts.relay.run())
        try:
            await until(lambda: parts.relay.status.applied > 0, PATIENCE)
            yield parts
            assert not task.done()
        finally:
            parts.relay.stop()
            await asyncio.wait([task])
            task.result()


def run(pair: Pair, statement: str) -> None:
    with pair.target.connect() as conn:
        conn.execute(statement.encode())


# What is done to the target's table; what the relay says; the statement that mends it.
CONTRACT = {
    "column dropped": (
        "alter table story drop column stars",
        "the target table public.story has no column stars",
        "alter table story add column stars int",
    ),
    "column renamed": (
        "alter table story rename stars to points",
        "the target table public.story has no column stars",
        "alter table story rename points to stars",
    ),
    "key renamed": (
        "alter table story rename id to number",
        "do not have the key of the target table public.story|has no column id",
        "alter table story rename number to id",
    ),
    "key dropped": (
        "alter table story drop constraint story_pkey",
        "`outboxd check` names what is missing",
        "alter table story add primary key (id)",
    ),
    "table dropped": ("drop table story", "the target has no table public.story: create it", STORY),
    "table renamed": (
        "alter table story rename to tale",
        "the target has no table public.story: create it",
        "alter table tale rename to story",
    ),
    "no longer mapped": (
        "select outboxd.unmap('public.story')",
        r"public\.story is not mapped on the target: select outboxd\.map\('public\.story'\)",
        "select outboxd.map('public.story')",
    ),
}


@pytest.mark.parametrize("how", list(CONTRACT))
async def test_a_target_that_does_not_fit_pauses_the_relay_until_it_does(stories: Pair, how: str) -> None:
    """Nothing is held or dropped meanwhile, the sentence names the table and the step, and no restart is needed."""
    drift, sentence, mend = CONTRACT[how]
    async with running(stories) as parts:
        run(stories, drift)
        stories.write("insert into story values (2, 'meanwhile', 2)", "update story set stars = 7 where id = 1")
        await until(lambda: parts.relay.status.state == "paused", PATIENCE)
        status = parts.relay.status
        assert status.problem_kind == "contract"
        assert re.search(sentence, status.problem or ""), status.problem
        assert held(stories) == []
        run(stories, mend)
        await until(lambda: parts.relay.status.state == "streaming", PATIENCE)
        if how in {"column dropped", "table dropped"}:  # what the target threw away is asked for anew
            stories.write("update story set stars = stars")
        await until(lambda: same(stories), PATIENCE)
        assert parts.relay.status.problem is None


def same(pair: Pair) -> bool:
    with pair.source.connect() as conn:
        return conn.execute("select (id, title, stars)::text from story order by 1").fetchall() == rows(pair)


def rows(pair: Pair) -> list[object]:
    with pair.target.connect() as conn:
        return list(conn.execute("select (id, title, stars)::text from story order by 1").fetchall())


# What is done to the target's table; the SQLSTATE; the statement that mends it.
DATA = {
    "column added without a default": (
        "delete from story; alter table story add column extra int not null",
        "23502",
        "alter table story alter extra drop not null",
    ),
    "type changed": (
        "alter table story alter title type int using 0",
        "22P02",
        "alter table story alter title type text",
    ),
    "type narrower": (
        "alter table story alter title type varchar(6)",
        "22001",
        "alter table story alter title type text",
    ),
}


@pytest.mark.parametrize("how", list(DATA))
async def test_a_type_that_refuses_rows_makes_them_dead_letters(stories: Pair, how: str) -> None:
    """The rows that do not fit are held, the relay goes on, and after the fix a retry brings them over."""
    drift, sqlstate, mend = DATA[how]
    async with stories.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        run(stories, drift)
        stories.write("insert into story values (2, 'meanwhile', 2)")
        await parts.relay.drain()
        assert held(stories) == [("public.story", '{"id":2}')]
        with stories.source.connect() as conn:
            assert conn.execute("select sqlstate from outbox.held").fetchall() == [(sqlstate,)]
        run(stories, mend)
        assert (await asked(stories, parts, "retry")).refused == ()
        assert held(stories) == []
        stories.write("update story set stars = 8")  # what the change of type did to older rows is overwritten
        await parts.relay.drain()
        source, _ = stories.rows("select (id, title, stars)::text from story order by 1")
        assert rows(stories) == source


async def test_a_column_the_source_does_not_have_is_left_alone(stories: Pair) -> None:
    """Added on the target with a default, or nullable: no reason to stop, and its values stay."""
    async with running(stories):
        run(stories, "alter table story add column seen int not null default 5, add column note text")
        run(stories, "update story set seen = 9, note = 'mine'")
        stories.write("update story set stars = 7 where id = 1")
        await until(lambda: (7, 9, "mine") in _seen(stories), PATIENCE)


def _seen(pair: Pair) -> list[tuple[object, ...]]:
    with pair.target.connect() as conn:
        return conn.execute("select stars, seen, note from story").fetchall()


async def test_a_stale_schema_cache_is_waited_for_and_named(stories: Pair, supabase: EmbeddedSupabase) -> None:
    """PostgREST started before the function was there and heard nothing of it since: paused, with the statement that
    helps; after the reload it goes on by itself."""
    with stories.target.connect() as conn:
        ((made, acl),) = conn.execute(
            "select pg_get_functiondef(oid), 'grant execute on function public.outboxd(text) to service_role' "
            "from pg_proc where oid = 'public.outboxd(text)'::regprocedure"
        ).fetchall()
    door = RestDoor(supabase.url, supabase.secret_key)
    async with running(stories, door) as parts:
        supabase.stop_postgrest()
        _quietly(stories, "drop function public.outboxd(text)")
        supabase.start_postgrest()
        _quietly(stories, made, acl)
        stories.write("insert into story values (2, 'meanwhile', 2)")
        await until(lambda: parts.relay.status.state == "paused", PATIENCE)
        assert "notify pgrst, 'reload schema'" in (parts.relay.status.problem or "")
        run(stories, "notify pgrst, 'reload schema'")
        await until(lambda: parts.relay.status.state == "streaming" and len(rows(stories)) == 2, PATIENCE)
    stories.assert_equal("story")


def _quietly(pair: Pair, *statements: str) -> None:
    """DDL that PostgREST is not told of: its event triggers stay silent."""
    with psycopg.connect(pair.target.superuser_dsn, autocommit=True) as conn:
        conn.execute("set event_triggers = off")
        for statement in statements:
            conn.execute(statement.encode())
