"""Users of the target, and whoever owns or may create something near a mirrored table: what they can do is said.

The door writes with its owner's rights, and constraints look at rows that their asker may not see.
"""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.cli import Cli
from tests.databases import Database
from tests.pairs import Pair
from tests.schemas import Schemas

THINGS = (
    "create table place (id int primary key)",
    "create table thing (id uuid primary key, user_id uuid, email text unique, place_id int references place, slug text, unique (user_id, slug))",
)


@pytest.fixture
def schemas(source: Database, target: Database) -> Schemas:
    both = Schemas(source, target)
    both.on_source(*THINGS)
    both.watch("place", "thing")
    return both


def findings(target: Database) -> dict[tuple[str | None, str], tuple[str, str]]:
    with target.connect() as conn:
        rows = conn.execute("select name, rule, what, fix from outboxd.findings()").fetchall()
    return {(name, rule): (what, fix) for name, rule, what, fix in rows}


def test_a_mirror_is_read_unless_writing_is_said(schemas: Schemas) -> None:
    """An owner alone reads; what writing would bring is named before it is granted, as a note and in --json."""
    schemas.say("public.thing", owner="user_id")
    schemas.settle()
    assert findings(schemas.target) == {}
    with schemas.target.connect() as conn:
        assert conn.execute(
            "select has_table_privilege('authenticated', 'thing', 'select'), has_any_column_privilege('authenticated', 'thing', 'insert')"
        ).fetchone() == (True, False)
    schemas.say("public.thing", owner="user_id", write=True)
    (note,) = [one for one in schemas.look().notes if "write = true" in one]
    assert "unique thing_email_key and foreign key thing_place_id_fkey" in note
    assert "slug" not in note
    assert "pkey" not in note


def test_check_names_what_users_who_write_can_reach_and_how_it_ends(schemas: Schemas) -> None:
    schemas.say("public.thing", owner="user_id", write=True)
    schemas.apply(allow_destructive=True)
    what, fix = findings(schemas.target)["public.thing", "clients_write"]
    assert what.startswith("authenticated may write here: by foreign key thing_place_id_fkey, unique thing_email_key")
    schemas.on_target(fix)
    assert findings(schemas.target) == {}


def test_realtime_tells_of_deletes_without_asking_a_policy(schemas: Schemas) -> None:
    schemas.say("public.thing", owner="user_id", realtime=True)
    assert [one for one in schemas.look().notes if "realtime" in one] == [
        "public.thing: realtime = true tells of a deleted row's key (id) whoever subscribes: Realtime asks no policy about deletes"
    ]


async def test_a_letter_names_the_table_at_the_other_end(schemas: Schemas) -> None:
    """Also one that outboxd knows nothing of: a child that somebody hung on a row, and a value that is taken."""
    schemas.settle()
    one, two = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"
    schemas.on_source("insert into place values (1)", f"insert into thing values ('{one}', null, 'a', 1)")
    pair = Pair(schemas.source, schemas.target)
    await pair.drain()
    schemas.on_target(
        f"insert into thing (id, email) values ('{two}', 'b')",
        f"create schema own; create table own.note (thing uuid references public.thing); insert into own.note values ('{one}')",
    )
    schemas.on_source(
        f"delete from thing where id = '{one}'", "insert into thing values (gen_random_uuid(), null, 'b', 1)"
    )
    await pair.drain()
    reasons = {reason for *_, reason in _reasons(schemas.source)}
    assert any("a row of own.note on the target still refers to it" in one for one in reasons), reasons
    assert any("another row of public.thing there has what is unique" in one for one in reasons), reasons


def _reasons(source: Database) -> list[tuple[str, str]]:
    with source.connect() as conn:
        return conn.execute("select table_name, reason from outbox.held where sqlstate is not null").fetchall()


@pytest.fixture
def neighbour(target: Database) -> Iterator[str]:
    """A role of the project's that is not the door's owner."""
    name = f"neighbour_{target.name}"
    with psycopg.connect(target.superuser_dsn, autocommit=True) as conn:
        conn.execute(f"create role {name}; grant {name} to supabase_owner".encode())
        yield name
        conn.execute(f"drop owned by {name} cascade; drop role {name}".encode())


def test_whoever_may_run_code_with_the_doors_rights_is_named(schemas: Schemas, neighbour: str) -> None:
    """The table's owner, who may create functions beside it, a trigger's and a domain's: each with a statement that ends it."""
    schemas.settle()
    schemas.on_target(
        f"grant create on schema public to {neighbour}",
        "create domain sly as text; alter table thing alter slug type sly",
        "create function see() returns trigger language plpgsql set search_path = '' as 'begin return new; end'",
        "create trigger see before insert on thing for each row execute function see()",
        f"alter function see() owner to {neighbour}; alter domain sly owner to {neighbour}; alter table thing owner to {neighbour}",
    )
    found = findings(schemas.target)
    rules = {"foreign_owner", "foreign_create", "foreign_trigger", "foreign_type"}
    assert {rule for name, rule in found if name == "public.thing"} == rules
    heard: list[str] = []
    with schemas.target.connect() as conn:
        conn.add_notice_handler(lambda said: heard.append(f"{said.message_primary} {said.message_hint}"))
        conn.execute("select outboxd.map('public.thing', key_columns => array['id'])")
    assert len(heard) == 4, heard
    cli = Cli({"source_dsn": schemas.source.dsn, "target_dsn": schemas.target.dsn, "transport": "postgres"})
    assert cli("watch", "public.thing").err.count("warning: ") == 4
    with psycopg.connect(schemas.target.superuser_dsn, autocommit=True) as conn:
        for _, fix in found.values():
            conn.execute(fix.encode())
    assert findings(schemas.target) == {}


ADVICE = {
    "policy_exists_rls_disabled": ("create policy p on thing using (true); alter table thing disable row level security",),
    "unindexed_foreign_keys": ("create index kept on thing (slug); drop index thing_place_id_idx",),
    "security_definer_view": ("create view shown as select * from thing; grant select on shown to authenticated",),
    "materialized_view_in_api": ("create materialized view shown as select * from thing; grant select on shown to anon",),
    "function_search_path_mutable": (
        "create function see() returns trigger language plpgsql as 'begin return new; end'",
        "create trigger see after insert on thing for each row execute function see()",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", ADVICE)
def test_check_gives_supabases_advice_about_mirrors_with_a_fix_that_ends_it(schemas: Schemas, rule: str) -> None:
    schemas.settle()
    assert findings(schemas.target) == {}
    schemas.on_target(*ADVICE[rule])
    ((name, found), (_, fix)) = next(iter(findings(schemas.target).items()))
    assert (name, found) == ("public.thing", rule)
    schemas.on_target(fix)
    assert findings(schemas.target) == {}


def test_check_names_views_that_show_the_users(schemas: Schemas) -> None:
    with psycopg.connect(schemas.target.superuser_dsn, autocommit=True) as conn:
        conn.execute(
            "create table auth.users (id uuid, email text); create view public.everybody as select * from auth.users"
        )
        conn.execute("grant select on public.everybody to anon")
        ((name, rule), (what, fix)) = next(iter(findings(schemas.target).items()))
        assert (name, rule, what) == (None, "auth_users_exposed", "view public.everybody shows auth.users to anon")
        conn.execute(fix.encode())
    assert findings(schemas.target) == {}


def test_check_and_plan_print_it(schemas: Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the door, as the daemon's key may ask it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outboxd.toml").write_text("[tables.'public.thing']\nowner = 'user_id'\nwrite = true\n")
    cli = Cli({"source_dsn": schemas.source.dsn, "target_dsn": schemas.target.dsn, "transport": "postgres"})
    schemas.settle()
    schemas.on_target("create view shown as select * from thing; grant select on shown to anon")
    (item,) = [one for one in cli("check", "--json").json() if "security_definer_view" in one["what"]]
    assert item["fix"] == "alter view public.shown set (security_invoker = on);"
    assert any("unique thing_email_key" in one for one in cli("schema", "plan", "--json").json()["notes"])
