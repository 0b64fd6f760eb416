"""A tenant whose table, or whose table put in another's place, has emit or the daemon's reading run its code: never with other rights."""

import psycopg
import pytest

from daemon.session import query
from tests.captured import Connection, changes, rows, value, watch
from tests.databases import Database

# Whoever runs the check of this domain is noted; a superuser would do more.
TRAP = """
create table public.ran (who text); grant insert on public.ran to public;
create function public.note(text) returns bool language plpgsql as $$ begin insert into public.ran values (current_user); return true; end $$;
create domain public.noted as text check (public.note(value));
create type public.pair as (a int, b public.noted);
create table public.card (id noted primary key, v noted, vs noted[], p pair, n int);
"""
ROW = '{"id": "a", "v": "b", "vs": ["c", null], "p": "(1,x)", "n": 1}'

# Whoever runs this function is noted.
NOTE = TRAP[: TRAP.index("create domain")]


def ran(watcher: Connection) -> set[str]:
    return {who for (who,) in watcher.execute("select distinct who from public.ran")}


def emitted(watcher: Connection, op: str, given: str) -> None:
    watcher.execute("select outbox.emit('public.card', %s, %s::json)", (op, given))


def test_a_table_that_is_mapped_alone_is_not_looked_at(owner: Connection, watcher: Connection) -> None:
    """It is on the target. A tenant makes one of its name, of other columns and another key: all goes on as it was."""
    watcher.execute("select outbox.map('public.card', array['id'])")
    emitted(watcher, "upsert", ROW)
    owner.execute(
        TRAP + "alter table card drop column v; alter table card drop constraint card_pkey, add primary key (n)"
    )
    emitted(watcher, "upsert", ROW)
    emitted(watcher, "delete", '{"id": "a"}')
    assert ran(watcher) == set()
    first, second, gone = changes(watcher)
    assert (first.key, first.row) == (second.key, second.row)
    assert (gone.op, gone.key) == ("delete", first.key)


def test_a_table_made_anew_under_a_name_that_is_mapped_now(owner: Connection, watcher: Connection) -> None:
    """It was watched for emit, dropped, and mapped: what was made for the old one is gone."""
    owner.execute("create table card (id text primary key)")
    watch(watcher, "card", capture=False)
    owner.execute("drop table card")
    watcher.execute("select outbox.map('public.card', array['id'])")
    owner.execute(TRAP)
    emitted(watcher, "upsert", ROW)
    assert ran(watcher) == set()


@pytest.mark.parametrize("capture", [True, False])
def test_no_check_of_a_tenants_domain_is_run_by_emit(owner: Connection, watcher: Connection, capture: bool) -> None:
    """Of a watched table, by a superuser: values are read as what lies below, and written as capture writes them."""
    owner.execute(TRAP)
    watch(watcher, "card", capture=capture)
    emitted(watcher, "upsert", ROW)
    emitted(watcher, "delete", '{"id": "a"}')
    assert ran(watcher) == set()
    upsert, delete = changes(watcher)
    assert upsert.row == '{"id":"a","v":"b","vs":"{c,NULL}","p":"(1,x)","n":1}'
    assert upsert.key == delete.key == '{"id":"a"}'
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="column p is to be given as its text"):
        emitted(watcher, "upsert", '{"id": "a", "p": {"a": 1, "b": "x"}}')


def test_rows_are_read_with_the_rights_of_whoever_watched(source: Database, watcher: Connection) -> None:
    """Emit runs nothing of a watcher's, not even with that one's own rights. And a watcher who makes its copy run with the rights
    of whoever calls it is not called."""
    role = f"second_{source.name}"
    watcher.execute(f"""
        create role {role} login; grant usage, create on schema public, outbox to {role};
        grant all on all tables in schema outbox to {role}; grant all on all sequences in schema outbox to {role};
        grant execute on all functions in schema outbox to {role}""")
    with psycopg.connect(source.cluster.dsn(source.name, role), autocommit=True) as second:
        second.execute(TRAP)
        watch(second, "card")
        emitted(watcher, "upsert", ROW)
        assert ran(watcher) == set()
        number = value(watcher, "select id from outbox.watched")
        second.execute(f"alter function outbox.copy_{number}(text, text[], int, bigint, bigint) security invoker")
        with pytest.raises(psycopg.Error, match=r"outboxd watch public\.card"):
            watcher.execute("select outbox.copy_of('public.card', 'rows', null, 10, 1000, 1000)")
    watcher.execute(f"drop owned by {role} cascade; drop role {role}")


def test_an_old_snapshot_hides_no_type_from_emit(source: Database, owner: Connection, watcher: Connection) -> None:
    """A composite type that gets an attribute of a domain, and an enum in whose place a domain is put, after the snapshot."""
    owner.execute(NOTE + "create domain noted as text check (note(value)); create type pair as (a int)")
    owner.execute("create type mood as enum ('a'); create table card (id text primary key, p pair, m mood)")
    watch(watcher, "card")
    watcher.execute(
        f"grant usage on schema outbox to {owner.info.user}; grant execute on function outbox.emit to {owner.info.user}"
    )
    with psycopg.connect(source.cluster.dsn(source.name, owner.info.user)) as old:
        old.execute("set transaction isolation level repeatable read")
        old.execute("select 1")
        owner.execute(
            "alter type pair add attribute b noted; alter type mood rename to was; alter domain noted rename to mood"
        )
        old.execute("select outbox.emit('public.card', 'upsert', %s)", ('{"id": "a", "p": "(1,x)", "m": "a"}',))
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="column p is to be given as its text"):
            old.execute("select outbox.emit('public.card', 'upsert', %s)", ('{"id": "a", "p": {"a": 1, "b": "x"}}',))
    assert ran(watcher) == set()


def test_no_function_is_taken_for_one_of_emits(source: Database, watcher: Connection, second: Connection) -> None:
    """Of a role that may create in the schema: neither for a table of another's that is mapped alone, nor for one watched."""
    watcher.execute("select outbox.map('public.card', array['id'])")
    number = value(watcher, "select id from outbox.watched")
    second.execute("create table seen (given text); create table card (id text primary key, secret text)")
    second.execute(
        f"create function outbox.emit_{number}(given json, cols text[], keys text[], out row_text text, out key_text text)"
        " language plpgsql security definer as $$ begin insert into public.seen values (given::text);"
        ' row_text := \'{"id":"a","secret":"forged"}\'; key_text := \'{"id":"a"}\'; end $$'.encode()
    )
    mine = 'select outbox.emit(\'public.card\', \'upsert\', \'{"id": "a", "secret": "mine"}\')'
    watcher.execute(mine)
    assert f"outbox.emit_{number}(" in str(watcher.execute(query("check_strangers")).fetchall())
    watch(watcher, "card", capture=False)
    watcher.execute(mine)
    assert rows(second, "select given from seen") == []
    assert all("mine" in (change.row or "") for change in changes(watcher))


def test_no_check_of_a_tenants_domain_is_run_where_a_key_is_read(owner: Connection, watcher: Connection) -> None:
    """What the daemon does for a copy, a comparison or a repair: it hands keys back."""
    owner.execute(TRAP)
    watch(watcher, "card")
    owner.execute("insert into card (id, n) values ('a', 1), ('b', 2); truncate ran")
    for what, keys in (
        ("rows", '{"id":"a"}'),
        ("these", '{"id":"a"}'),
        ("missing", '{"id":"z"}'),
        ("touch", '{"id":"b"}'),
    ):
        found = rows(
            watcher, "select named from outbox.copy_of('public.card', %s, array[%s], 10, 100000, 100000)", what, keys
        )
        assert what == "touch" or found
    assert ran(watcher) == set()


def test_a_view_in_a_tables_place_is_not_locked(owner: Connection, watcher: Connection) -> None:
    """LOCK of a view locks what it is of, with whatever rights: a tenant could stop any table."""
    owner.execute("create table t (id int primary key); create table other (id int primary key)")
    watch(watcher, "t")
    owner.execute("alter table t rename to was; create view t with (security_invoker) as select * from other")
    with pytest.raises(psycopg.Error, match=r"public\.t is no table any more"):
        watcher.execute("select outbox.copy_of('public.t', 'still', null)")


def test_an_old_snapshot_hides_no_function_from_a_copy(
    source: Database, watcher: Connection, second: Connection
) -> None:
    """A watcher's function that runs with the rights of whoever calls it, by now."""
    second.execute(NOTE + "create table public.card (id text primary key)")
    watch(second, "card")
    number = value(watcher, "select id from outbox.watched")
    copy = "select outbox.copy_of('public.card', 'rows', null, 1, 1, 1)"
    watcher.execute(copy)
    with psycopg.connect(source.cluster.dsn(source.name, second.info.user)) as old:
        old.execute("set transaction isolation level repeatable read")
        old.execute("select 1")
        second.execute(
            f"create or replace function outbox.copy_{number}(what text, keys text[], most int, max_bytes bigint, row_bytes bigint)"
            " returns table (columns text[], named text, texts text, sizes bytea) language plpgsql security invoker"
            " as $$ begin perform public.note(''); end $$".encode()
        )
        with pytest.raises(psycopg.Error, match=r"outboxd watch public\.card"):
            old.execute(copy)
    assert ran(watcher) == set()
