"""Who may do what: nobody is given anything of ours by default, on either side, and nothing is exposed."""

from collections.abc import Iterator

import httpx
import psycopg
import pytest

from daemon.demo.supabase import EmbeddedSupabase
from daemon.install import setup
from tests.captured import watch
from tests.databases import Database

DOOR = {"mode": "claim", "relay": "main"}

# Rights of PUBLIC, as aclexplode names it: grantee 0. An empty list means the defaults.
OPEN_FUNCTIONS = """
select p.oid::regprocedure::text from pg_proc p
 where p.pronamespace = %s::regnamespace
   and exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee = 0)
"""
OPEN_RELATIONS = """
select c.oid::regclass::text from pg_class c
 where c.relnamespace = %s::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S')
   and exists (select from aclexplode(coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))) a
                where a.grantee = 0)
"""
OPEN_SCHEMA = """
select n.nspname from pg_namespace n
 where n.oid = %s::regnamespace and exists (select from aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a where a.grantee = 0)
"""
LOOSE_PATHS = """
select p.oid::regprocedure::text from pg_proc p
 where p.pronamespace = %s::regnamespace
   and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)
"""


@pytest.mark.parametrize("side", ["source", "target"])
def test_public_has_nothing_and_every_function_has_its_own_path(request: pytest.FixtureRequest, side: str) -> None:
    """Read from the catalogue: what later migrations add is held to it as well."""
    database: Database = request.getfixturevalue(side)
    schema = {"source": "outbox", "target": "outboxd"}[side]
    with database.connect() as conn:
        if side == "source":
            conn.execute("create table story (id int primary key)")
            watch(conn, "story")
            conn.execute("alter table story add v int; insert into story values (1)")
        (functions,) = conn.execute(
            "select count(*) from pg_proc where pronamespace = %s::regnamespace", (schema,)
        ).fetchone() or (0,)
        assert functions > 10
        for query in (OPEN_FUNCTIONS, OPEN_RELATIONS, OPEN_SCHEMA, LOOSE_PATHS):
            assert conn.execute(query.encode(), (schema,)).fetchall() == [], query
        if side == "target":
            wrapper = conn.execute(OPEN_FUNCTIONS.encode(), ("public",)).fetchall()
            assert "outboxd(text)" not in {name for (name,) in wrapper}


@pytest.fixture
def stranger(source: Database) -> Iterator[psycopg.Connection]:
    """An application's role that may write its tables."""
    role = f"stranger_{source.name}"
    with source.connect() as conn:
        conn.execute(
            f"create role {role} login; create table story (id int primary key); grant all on story to {role}".encode()
        )
        watch(conn, "story")
        with psycopg.connect(source.cluster.dsn(source.name, role), autocommit=True) as own:
            yield own
        conn.execute(f"drop owned by {role}; drop role {role}".encode())


def test_an_applications_role_can_use_nothing_of_the_outbox(source: Database, stranger: psycopg.Connection) -> None:
    """Every function and relation there is, by name: what the catalogue lists, it may not touch."""
    stranger.execute("insert into story values (1)")
    with source.connect() as conn:
        functions = conn.execute(
            "select format('outbox.%I', proname), pronargs from pg_proc where pronamespace = 'outbox'::regnamespace"
            " and prorettype <> 'trigger'::regtype"
        ).fetchall()
        relations = conn.execute(
            "select format('outbox.%I', relname) from pg_class where relnamespace = 'outbox'::regnamespace and relkind in ('r', 'p')"
        )
        statements = [f"select {name}({', '.join(['null'] * count)})" for name, count in functions]
        for (relation,) in relations:
            statements += [f"select * from {relation}", f"delete from {relation}", f"truncate {relation}"]
    assert len(statements) > 25
    for statement in statements:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            stranger.execute(statement.encode())


@pytest.mark.parametrize("who", ["nobody", "anon", "publishable", "authenticated", "forged", "expired"])
def test_others_reach_nothing_of_ours_through_the_data_api(
    target: Database, supabase: EmbeddedSupabase, who: str
) -> None:
    """By every verb and every profile: refused or not found, and nothing has happened."""
    with target.connect() as owner:
        owner.execute(
            "create table item (id int primary key, v text); select outboxd.map('item'); insert into item values (1, 'secret-4711')"
        )
    token = {
        "nobody": None,
        "anon": supabase.anon_jwt,
        "publishable": supabase.publishable_key,
        "authenticated": supabase.jwt_for("22222222-2222-4222-8222-222222222222"),
        "forged": supabase.service_jwt[:-4] + "AAAA",
        "expired": supabase.keys.mint(seconds=-3600, role="service_role"),
    }[who]
    headers = {"apikey": supabase.publishable_key} | ({"Authorization": f"Bearer {token}"} if token else {})
    document = '{"mode":"claim","relay":"main"}'
    plain = {"content-type": "text/plain"}
    with httpx.Client(base_url=f"{supabase.url}/rest/v1/", headers=headers) as client:
        answers = [
            client.post("rpc/outboxd", content=document, headers=plain),
            client.post("rpc/outboxd", json={"document": document}),
            client.post("rpc/outboxd", content=document, headers={**plain, "Prefer": "params=single-object"}),
            client.get("rpc/outboxd"),
            client.get("item"),
            client.post("item", json={"id": 2}),
            client.patch("item?id=eq.1", json={"v": "x"}),
            client.delete("item?id=eq.1"),
        ]
        for profile in ("outboxd", "outbox", "pg_catalog", "extensions"):
            named = {"accept-profile": profile, "content-profile": profile}
            answers += [
                client.get(table, headers=named) for table in ("cursor", "mirror", "migration", "held", "pg_authid")
            ]
            for function in ("door", "apply", "claim", "map", "describe", "outboxd"):
                answers.append(client.post(f"rpc/{function}", content=document, headers={**plain, **named}))
        opened = client.get("")
    for answer in answers:
        assert answer.status_code in (401, 403, 404, 405, 406), (answer.request.method, answer.request.url, answer.text)
        assert "secret-4711" not in answer.text
    assert "secret-4711" not in opened.text
    with target.connect() as owner:
        assert owner.execute("select count(*) from outboxd.cursor").fetchone() == (0,)
        assert owner.execute("select id, v from item").fetchall() == [(1, "secret-4711")]


def test_default_privileges_of_an_older_project_do_not_open_the_door(
    target: Database, supabase: EmbeddedSupabase
) -> None:
    """Before October 2026 a project granted everything new in public to everybody: setup takes that back."""
    from outbox.migrations import migrate

    with target.connect() as owner:
        owner.execute("drop schema outboxd cascade; drop function public.outboxd(text)")
        for what in ("functions", "tables", "sequences"):
            owner.execute(f"alter default privileges grant all on {what} to anon, authenticated, service_role".encode())
    with target.connect(autocommit=False) as owner:
        migrate(owner, "target")
    with psycopg.connect(target.superuser_dsn, autocommit=True) as conn:
        for role in ("anon", "authenticated"):
            conn.execute(f"set role {role}".encode())
            for statement in (
                "select public.outboxd('{}')",
                "select outboxd.door('{}')",
                "select * from outboxd.cursor",
                "select outboxd.claim('x')",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    conn.execute(statement.encode())
        conn.execute("set role service_role")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("select * from outboxd.cursor")


def test_default_privileges_do_not_open_the_targets_door(target: Database) -> None:
    """Of schemas and of functions, given to whatever role before setup: it cannot call the door, and check names nobody."""
    role = f"lower_{target.name}"
    target.cluster.execute(f"create role {role} login")
    with target.connect() as mirror, psycopg.connect(target.superuser_dsn, autocommit=True) as root:
        mirror.execute("drop schema outboxd cascade")
        for kind in ("schemas", "functions"):
            mirror.execute(f"alter default privileges grant all on {kind} to {role}".encode())
        setup(target.dsn, "target", exposed_schema="public", role=False)
        assert mirror.execute("select what from outboxd.findings() where rule = 'foreign_grant'").fetchall() == []
        mirror.execute(f"grant select on outboxd.cursor to {role}".encode())
        assert mirror.execute("select fix from outboxd.findings() where rule = 'foreign_grant'").fetchall() == [
            (f"revoke select on table outboxd.cursor from {role} cascade;",)
        ]
        try:
            with (
                psycopg.connect(target.cluster.dsn(target.name, role), autocommit=True) as lower,
                pytest.raises(psycopg.errors.InsufficientPrivilege),
            ):
                lower.execute('select outboxd.door(\'{"mode": "claim", "relay": "main"}\')')
        finally:
            root.execute(f"drop owned by {role} cascade; drop role {role}".encode())
