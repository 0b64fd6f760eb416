"""The target's tables change under the relay: a table is out, or rows are held; it says which step leads on, and goes on."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
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
    "right revoked": (
        "revoke update, delete on story from current_user",
        "^a right is missing on the target: grant update, delete on public.story to supabase_owner$",
        "grant update, delete on story to current_user",
    ),
    "a trigger lacks a right": (
        """create table audit (id int); revoke all on audit from current_user;
        create function note() returns trigger language plpgsql as 'begin insert into public.audit values (new.id); return new; end';
        create trigger note before insert on story for each row execute function note()""",
        r"^a right is missing on the target: supabase_owner may not do something .* triggers \(public\.note\(\)\)",
        "grant insert on audit to current_user",
    ),
}


@pytest.mark.parametrize("how", list(CONTRACT))
async def test_a_table_that_does_not_fit_is_out_until_it_does_and_the_others_flow(stories: Pair, how: str) -> None:
    """Nothing is held meanwhile, the sentence names the table and the step; once it fits it is copied again, by itself:
    what was written and deleted meanwhile is made good."""
    drift, sentence, mend = CONTRACT[how]
    stories.create("create table tale (id int primary key)" if how != "table renamed" else "create table other (id int primary key)",
                   "tale" if how != "table renamed" else "other")  # fmt: skip
    other = "other" if how == "table renamed" else "tale"
    stories.write("insert into story select n, 'more', n from generate_series(10, 19) n")
    async with running(stories) as parts:
        await until(lambda: same(stories), PATIENCE)
        run(stories, drift)
        stories.write("insert into story values (2, 'meanwhile', 2)", "update story set stars = 7 where id = 1")
        await until(lambda: state(parts) == "out", PATIENCE)
        reason = parts.relay.copier.report()[0]["reason"]
        assert re.search(sentence, reason), reason
        stories.write(
            "delete from story where id = 11",
            "update story set id = 99 where id = 12",
            f"insert into {other} values (1)",
        )
        await until(lambda: rows_of(stories, other) == [("(1)",)], PATIENCE)
        assert state(parts) == "out"
        assert parts.relay.status.state == "streaming"
        assert held(stories) == []
        run(stories, mend)
        await until(lambda: state(parts) == "done" and same(stories), PATIENCE)
        stories.write("update story set stars = 8 where id = 1")
        await until(lambda: same(stories), PATIENCE)


@pytest.fixture
def unreading(pair: Pair) -> Iterator[None]:
    """The role that owns the door reads what it was granted, not everything, as a project's own does."""
    with psycopg.connect(pair.target.superuser_dsn, autocommit=True) as conn:
        conn.execute("revoke pg_read_all_data from supabase_owner")
        try:
            yield
        finally:
            conn.execute("grant pg_read_all_data to supabase_owner")


@pytest.mark.usefixtures("unreading")
async def test_a_schema_that_may_not_be_used_puts_its_tables_out_and_no_others(pair: Pair) -> None:
    """Also a relay that begins then can claim the target, and find rows that the source does not have."""
    ddl = "create schema away; create table away.story (id int primary key, title text, stars int)"
    pair.create(ddl, "away.story")
    pair.create("create table tale (id int primary key)", "tale")
    pair.write("insert into away.story values (1, 'before', 1)")
    with psycopg.connect(pair.target.superuser_dsn, autocommit=True) as conn:
        conn.execute("alter schema away owner to postgres; revoke all on schema away from public, supabase_owner")
    pair.write("insert into tale values (1)")
    async with running(pair) as parts:
        await until(lambda: rows_of(pair, "tale") == [("(1)",)], PATIENCE)
        await until(lambda: parts.relay.status.state == "streaming", PATIENCE)
        ((reason, state),) = [(copy["reason"], copy["state"]) for copy in parts.relay.copier.report()]
        assert (reason, state) == (
            "a right is missing on the target: grant usage on schema away to supabase_owner",
            "out",
        )
        with psycopg.connect(pair.target.superuser_dsn, autocommit=True) as conn:
            conn.execute("grant usage on schema away to supabase_owner")
        await until(lambda: rows_of(pair, "away.story") == [("(1,before,1)",)], PATIENCE)


@pytest.mark.usefixtures("unreading")
async def test_a_right_that_is_lost_while_rows_are_looked_for_that_are_too_many(stories: Pair) -> None:
    """A copy's last step writes nothing: there, too, the table alone is out."""
    stories.create("create table tale (id int primary key)", "tale")
    async with stories.relay() as parts:
        await parts.relay.drain()
        with stories.source.connect() as conn:
            conn.execute("select outbox.ask_copy('public.story')")
        parts.relay.copier.ring()
        assert await parts.relay.step()
        assert parts.relay.copier.copies["public.story"].step == "extra"
        run(stories, "revoke select on story from current_user")
        stories.write("insert into tale values (1)")
        await parts.relay.drain()
        assert state(parts) == "out"
        assert parts.relay.copier.report()[0]["reason"].endswith("grant select on public.story to supabase_owner")
        assert rows_of(stories, "tale") == [("(1)",)]


def state(parts: Parts) -> str:
    return "".join(copy["state"] for copy in parts.relay.copier.report() if copy["table"] == "public.story")


def rows_of(pair: Pair, table: str) -> list[tuple[object, ...]]:
    with pair.target.connect() as conn:
        return list(conn.execute(f"select t::text from {table} t order by 1".encode()).fetchall())


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
