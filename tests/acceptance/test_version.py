"""One version, wherever outboxd is met: its own word, its metrics, its requests, its connections to both stores."""

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import psycopg
import pytest

from daemon.demo.supabase import EmbeddedSupabase
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import STORIES, Pair, Start, ended, streaming
from tests.databases import Database

VERSION = version("outboxd")
PRODUCT = re.compile(rf"outboxd/{re.escape(VERSION)}( bell \S+ \d+|( [a-z]+)*)")
# What libpq says for a program that does not say who it is.
NAMELESS = {"PGAPPNAME": "nobody said"}

_NOTES = """
create table public.knock (name text not null);
create function public.note_knock() returns event_trigger language plpgsql security definer set search_path = pg_catalog as
$$ begin insert into public.knock values (current_setting('application_name')); end $$;
create event trigger note_knock on login execute function public.note_knock();
alter event trigger note_knock enable always;
"""
# PostgREST hands a request's headers on; the door moves the cursor in the same transaction.
_HEARS = """
create table public.agent (name text not null);
create function public.note_agent() returns trigger language plpgsql security definer set search_path = pg_catalog as
$$ begin insert into public.agent values (current_setting('request.headers')::json ->> 'user-agent'); return null; end $$;
create trigger note_agent after insert or update on outboxd.cursor for each row execute function public.note_agent();
"""


def noting(database: Database) -> None:
    """From now on the database writes down under which name each connection comes."""
    with psycopg.connect(database.superuser_dsn, autocommit=True) as conn:
        if conn.info.server_version < 170000:
            pytest.skip("only PostgreSQL 17 and newer can note who connects")
        conn.execute(_NOTES)


def knocks(database: Database) -> list[str]:
    """The names of the connections since, one each; the test's own say none."""
    with psycopg.connect(database.superuser_dsn, autocommit=True) as conn:
        return [name for (name,) in conn.execute("select name from public.knock where name <> ''")]


@pytest.fixture
def noted(app: Database, mirror: Database) -> Iterator[None]:
    for database in (app, mirror):
        noting(database)
    yield
    for database in (app, mirror):  # or it could not be dropped by somebody whose trigger fails
        with psycopg.connect(database.superuser_dsn, autocommit=True) as conn:
            conn.execute("drop event trigger note_knock")


def test_the_program_says_the_version_that_is_installed() -> None:
    cli = Cli({})
    assert cli("--version").out.split() == ["outboxd,", "version", VERSION]
    assert cli("version", "--json").json()["outboxd"] == VERSION


@pytest.mark.usefixtures("noted")
def test_every_connection_and_the_metrics_name_it(
    direct: Pair, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon's connections and those of each command beside it, as both servers see them."""
    outboxd = streaming(start(direct.settings, environment=NAMELESS))
    direct.write(STORIES, 3)
    direct.arrives()
    built = rf'^outboxd_build_info{{.*version="{re.escape(VERSION)}".*}} 1\.0$'
    assert re.search(built, outboxd.get("/metrics")[1], re.MULTILINE)
    assert (outboxd.status() or {})["version"] == VERSION
    served = {database.name: knocks(database) for database in (direct.source, direct.target)}
    assert [name for name in served[direct.source.name] if name.startswith(f"outboxd/{VERSION} bell ")]
    assert f"outboxd/{VERSION}" in served[direct.target.name]
    monkeypatch.chdir(tmp_path)
    cli = Cli({**direct.settings, "admin_port": str(outboxd.port)})
    for name, value in NAMELESS.items():
        monkeypatch.setenv(name, value)
    for command in (
        ("status",), ("check",), ("setup", "source"), ("setup", "target"), ("watch", "Story"), ("watched",),
        ("schema", "plan"), ("schema", "status"), ("backfill", "Story"), ("dead-letters", "list"), ("rebase",),
    ):  # fmt: skip
        assert cli(*command).code in {0, 3}, command
    assert outboxd.stop() == 0
    monkeypatch.delenv("PGAPPNAME")
    for database in (direct.source, direct.target):
        names = knocks(database)
        assert len(names) > len(served[database.name])
        assert not [name for name in names if not PRODUCT.fullmatch(name)], names


@pytest.mark.usefixtures("noted")
def test_every_request_to_the_data_api_names_it(rest: Pair, supabase: EmbeddedSupabase, start: Start) -> None:
    """As PostgREST hands its headers on to the database; and its source's connections do, too."""
    with psycopg.connect(rest.target.superuser_dsn, autocommit=True) as conn:
        conn.execute(_HEARS)
    rest.write(STORIES, 3)
    outboxd = start(rest.settings, "run", "--until-idle", environment=NAMELESS)
    assert ended(outboxd) == 0
    assert rest.ask(rest.target, "select distinct name from public.agent") == [(f"outboxd/{VERSION}",)]
    assert all(PRODUCT.fullmatch(name) for name in knocks(rest.source))
