"""Whoever may create functions in schema outbox (a second watcher), or in public, puts one in the way of every one of ours."""

import psycopg

from daemon.check import check
from daemon.install import setup
from daemon.install import watch as watch_by_command
from daemon.selection import Selection
from outbox import Change, emit
from outbox.migrations import script
from tests.captured import Connection, ops, rows, value, watch
from tests.databases import Database
from tests.mirrored import Mirrored

# Of each function of ours: one with fewer arguments for each that has a default, and one of other types for each argument.
OVERLOADS = """
do $$
declare
  f     record;
  types text[];
  names text[];
  swaps jsonb := '{"regclass": "oid", "oid": "regclass", "text": "character varying", "jsonb": "json", "json": "jsonb", "integer": "smallint",
                   "bigint": "integer", "text[]": "character varying[]", "name": "text", "boolean": "integer", "tid": "text", "regclass[]": "oid[]",
                   "xid8": "text", "interval": "text", "xid8[]": "text[]", "name[]": "text[]", "regprocedure": "oid"}';
  made  text;
  back  text;
begin
  for f in select p.*, array(select format_type(t, null) from unnest(p.proargtypes) with ordinality u(t, n) order by n) as of_types from pg_proc p
            where p.pronamespace = 'outbox'::regnamespace and p.prorettype <> 'trigger'::regtype and p.proname !~ '_[0-9]+$'
  loop
    types := f.of_types;
    names := coalesce((f.proargnames)[1 : cardinality(types)], array[]::text[]);
    back := case when f.proretset then 'setof ' else '' end || format_type(f.prorettype, null);
    for n in -f.pronargdefaults .. cardinality(types) + 1 loop
      continue when n = 0;
      made := (select string_agg(concat_ws(' ', quote_ident(nullif(names[u.i], '')), case when u.i = n or n > cardinality(types) then coalesce(swaps ->> u.t, u.t) else u.t end), ', ' order by u.i)
                 from unnest(types) with ordinality u(t, i) where n > 0 or u.i <= cardinality(types) + n);
      begin
        execute format('create function outbox.%I(%s) returns %s language plpgsql as %L', f.proname, made, back,
                       format('begin raise exception ''hijacked by %s, as %%'', current_user; end', f.proname));
      exception when duplicate_function or invalid_function_definition then null;
      end;
    end loop;
  end loop;
end
$$
"""
TRAP = "language plpgsql as $$ begin raise exception 'hijacked, as %', current_user; end $$"
SYSTEM = f"""
create function public.format(text, int, int) returns text {TRAP}; create function public.lower(name) returns text {TRAP};
create function public.joined(text, text, text) returns text {TRAP}; create aggregate public.string_agg(text, text) (sfunc = public.joined, stype = text);
create function public.to_regclass(unknown_) returns regclass {TRAP}; create function public.set_config(text, text, bool) returns text {TRAP};
create function public.format(text, name, name) returns text {TRAP}; create table "Mixed" (id int primary key);
"""
TABLES = """
create function large() returns text language sql as $$ select string_agg(md5(n::text), '') from generate_series(1, 9000) n $$;
create domain word as text; create type mood as enum ('a', 'b');
create table plain (id int primary key, v text, n numeric);
create table mapped (id word primary key, at timestamptz default now(), mail varchar(90), kind word, m mood, c char(3), big text);
create table p (id int primary key, v text) partition by range (id);
create table p_1 partition of p for values from (0) to (100);
"""
MAPPING = {
    "mask": '{"mail": "hash"}',
    "filter": "kind <> 'no' and c <> 'zz' and at > '2000-01-01'",
    "rename": '{"kind": "sort"}',
    "constant": '{"origin": "x"}',
}


def written(conn: Connection) -> None:
    """By every way of capture: copied, re-read, too large, of altered tables, marked, truncated."""
    conn.execute(
        "insert into plain values (1, large(), 1), (2, 'b', 2); update plain set v = v || 'c', id = id + 10 where id = 2; delete from plain where id = 12; delete from plain where id = 1 and n > 5; update plain set n = n + 1"
    )
    conn.execute(
        "insert into mapped values ('a', default, 'm', 'yes', 'a', 'x', large()), ('b', default, 'm', 'no', 'b', 'y', '')"
    )
    conn.execute(
        "update mapped set kind = 'yes'; update mapped set id = id || '2', kind = 'no'; delete from mapped where id = 'a2'"
    )
    conn.execute(
        "insert into p values (1, large()), (2, 'a'); update p set id = id + 10; delete from p where id = 11; truncate p_1; truncate p"
    )


async def test_no_function_of_ours_is_taken_for_another(
    source: Database, target: Database, watcher: Connection
) -> None:
    """All that a source does, with overloads of everything, as whoever watches and as the daemon."""
    role = f"second_{source.name}"
    watcher.execute(f"create role {role}; grant usage, create on schema outbox to {role}")
    watcher.execute(f"set role {role}; set check_function_bodies = off; {OVERLOADS}; reset role")
    assert value(watcher, "select count(*) from pg_proc p where p.proowner = %s::regrole", role) > 250
    both = Mirrored(source, target)
    try:
        both.on_target(
            "create table plain (id int primary key, v text, n numeric, late int)", "select outboxd.map('plain')"
        )
        watcher.execute(TABLES)
        watcher.execute(
            "select outbox.watch('plain'::regclass, null::text[], null::text[], null::text[], true, null::text, null::jsonb, null::jsonb, null::jsonb, null::text)"
        )
        list(watch_by_command(source.dsn, ["mapped", "p"], lambda name, _: _selected(name), lambda _: None))
        written(watcher)
        watcher.execute(
            "delete from plain; alter table plain add late int; alter table mapped add late int; alter table p add late int"
        )
        written(watcher)
        watcher.execute("select outbox.map('public.card'::text, array['id']::text[])")
        with source.connect(autocommit=False) as app:
            app.execute("select 1")
            emit(app, Change.upsert("public.plain", {"id": 5, "v": "x"}))
            emit(app, Change.delete("public.card", {"id": 5}))
        watcher.execute("alter table mapped drop constraint mapped_pkey; update mapped set kind = 'yes'")
        assert {"upsert", "delete", "truncate", "resync"} <= set(ops(watcher))
        watcher.execute(
            "select outbox.unwatch('public.mapped'::text), outbox.unwatch('public.p'::text); delete from outbox.change where table_name <> 'public.plain'"
        )
        watcher.execute(
            "select outbox.ask_copy('public.plain'::text, true, true), outbox.ask_verification('public.plain'::text, true)"
        )
        await both.relay.drain()
        assert rows(watcher, "select id, v from plain order by id") == _there(target)
        found = await check(source.dsn, None)
        assert {item.name for item in found if item.level == "FAIL"} == {"schema outbox", "grants"}
        for item in [one for one in found if one.name == "schema outbox"]:
            assert role in item.what
            watcher.execute(item.fix.encode())
        assert "schema outbox" not in {item.name for item in await check(source.dsn, None)}
    finally:
        await both.close()
        watcher.execute(f"drop owned by {role} cascade; drop role {role}")


def _selected(name: str) -> Selection:
    if name != "public.mapped":
        return Selection()
    return Selection(mask={"mail": "hash"}, where=MAPPING["filter"], rename={"kind": "sort"}, constant={"origin": "x"})


def _there(target: Database) -> list[tuple[object, ...]]:
    with target.connect() as conn:
        return rows(conn, "select id, v from plain order by id")


def test_setup_and_watch_run_nothing_that_lies_in_public(
    source: Database, owner: Connection, watcher: Connection
) -> None:
    """A tenant may create there, and set-up is done by a superuser: by the command, and by the printed script."""
    owner.execute("create type unknown_ as enum ('a')")
    owner.execute(SYSTEM)
    watcher.execute("drop schema outbox cascade")
    setup(source.dsn, "source", exposed_schema="public", role=False)
    (watched,) = watch_by_command(source.dsn, ["Mixed"], lambda *_: Selection(), lambda _: None)
    assert watched[1].table == 'public."Mixed"'
    watcher.execute('drop table "Mixed"; drop schema outbox cascade; set search_path = public, pg_catalog')
    watcher.execute(script("source"))
    assert value(watcher, "show search_path") == "public, pg_catalog"
    owner.execute("create table t (id int primary key)")
    watch(watcher, "t")
    owner.execute("insert into t values (1)")
    assert ops(watcher) == ["upsert"]
    with psycopg.connect(source.dsn, autocommit=True) as plain:
        assert value(plain, "show search_path") == '"$user", public'
