"""Whoever may create functions in schema outbox takes the names of those that the next `watch` makes: nobody is kept from watching,
and none of them is ever called."""

from collections.abc import Iterator

import psycopg
import pytest

from daemon.session import query
from tests.captured import Connection, ops, rows, value, watch
from tests.databases import Database

WATCHES = """
grant usage, create on schema public, outbox to {0};
grant all on all tables in schema outbox to {0}; grant all on all sequences in schema outbox to {0};
grant execute on all functions in schema outbox to {0}; revoke all on outbox.mask_key from {0}
"""
COPY = "(what text, keys text[], most int, max_bytes bigint, row_bytes bigint)"
FORGED = (
    f"create function outbox.copy_{{}}{COPY} returns table (columns text[], named text, texts text, sizes bytea) language sql security definer"
    " as 'select array[current_user::text], null::text, null::text, null::bytea'"
)
TAKEN = {
    "capture": "create function outbox.capture_{}() returns int language sql as 'select 1'",
    "capture, for a trigger": "create function outbox.capture_{}() returns trigger language plpgsql as 'begin return null; end'",
    "row": "create function outbox.row_{}(tid) returns int language sql as 'select 1'",
    "copy": FORGED,
    "inside": "create function outbox.inside_{}(int) returns int language sql as 'select 1'",
    "a procedure": "create procedure outbox.capture_{}() language sql as 'select 1'",
}


@pytest.fixture
def second(source: Database, watcher: Connection) -> Iterator[Connection]:
    """Another role that watches tables of its own."""
    role = f"second_{source.name}"
    watcher.execute(f"create role {role} login; {WATCHES.format(role)}".encode())
    with psycopg.connect(source.cluster.dsn(source.name, role), autocommit=True) as conn:
        yield conn
    watcher.execute(f"drop owned by {role} cascade; drop role {role}".encode())


def taken(second: Connection, what: str, *numbers: int) -> None:
    for number in numbers:
        second.execute(TAKEN[what].format(number).encode())


@pytest.mark.parametrize("what", TAKEN)
def test_ids_whose_names_are_taken_are_left_out(watcher: Connection, second: Connection, what: str) -> None:
    """By a superuser as by a role that is none; `check` names what stands there."""
    taken(second, what, *range(1, 31))
    watcher.execute("create table t (id int primary key)")
    watch(watcher, "t", filter="id > 0")
    watcher.execute("insert into t values (1), (0)")
    watcher.execute("select outbox.map('public.card', '{id}')")
    assert rows(watcher, "select id from outbox.watched order by 1") == [(31,), (32,)]
    assert ops(watcher) == ["upsert"]
    strangers = watcher.execute(query("check_strangers")).fetchall()
    assert len(strangers) == 30
    assert {owner for *_, owner in strangers} == {second.info.user}


@pytest.mark.parametrize("what", TAKEN)
def test_what_has_taken_the_names_of_a_known_id_goes(watcher: Connection, second: Connection, what: str) -> None:
    """Of a table that was emitted until now, or had no filter: a superuser watches all the same, and the table is captured by ours."""
    watcher.execute("create table t (id int primary key)")
    watch(watcher, "t", capture=False)
    taken(second, what, number := value(watcher, "select id from outbox.watched"))
    assert len(watcher.execute(query("check_strangers")).fetchall()) == 1
    watch(watcher, "t")
    taken(second, "inside", number)
    watch(watcher, "t", filter="id > 0")
    watcher.execute("insert into t values (1), (0)")
    assert ops(watcher) == ["upsert"]
    owners = "select distinct pg_get_userbyid(p.proowner) from pg_proc p where p.proname ~ '^(capture|row|copy|inside)_[0-9]+$'"
    assert rows(watcher, owners) == [(watcher.info.user,)]
    assert watcher.execute(query("check_strangers")).fetchall() == []


def test_what_cannot_go_is_named_with_its_owner(source: Database, watcher: Connection, second: Connection) -> None:
    """Something depends on it, or whoever watches may not: the sentence says which, whose, and the statement that ends it."""
    role = f"third_{source.name}"
    watcher.execute(f"create role {role} login; {WATCHES.format(role)}".encode())
    try:
        with psycopg.connect(source.cluster.dsn(source.name, role), autocommit=True) as third:
            third.execute("create table t (id int primary key)")
            watch(third, "t", capture=False)
            number = value(third, "select id from outbox.watched")
            taken(second, "capture, for a trigger", number)
            second.execute(
                f"create table mine (id int); create trigger mine before insert on mine for each row execute function outbox.capture_{number}()".encode()
            )
            for who in (third, watcher):
                with pytest.raises(psycopg.errors.DuplicateFunction) as refused:
                    watch(who, "t")
                assert str(refused.value.diag.message_primary) == (
                    f"cannot watch public.t: outbox.capture_{number}(), which {second.info.user} owns, has the name of a function that outboxd needs"
                )
                assert (
                    refused.value.diag.message_hint
                    == f"as that one, or a superuser: drop routine outbox.capture_{number}() cascade"
                )
            watcher.execute(f"drop routine outbox.capture_{number}() cascade".encode())
            watch(third, "t")
            third.execute("insert into t values (1)")
            assert ops(watcher) == ["upsert"]
    finally:
        watcher.execute(f"drop owned by {role} cascade; drop role {role}".encode())


def test_a_table_with_such_a_name_beside_it_is_unwatched_all_the_same(watcher: Connection, second: Connection) -> None:
    """By a role that may not end what stands there."""
    second.execute("create table t (id int primary key)")
    watch(second, "t", capture=False)
    taken(watcher, "copy", value(watcher, "select id from outbox.watched"))
    second.execute("select outbox.unwatch('t')")
    assert rows(watcher, "select count(*) from outbox.watched") == [(0,)]


def test_no_copy_is_read_by_another_function(watcher: Connection, second: Connection) -> None:
    """Of a table that is emitted, whose copy nobody makes: the daemon's call answers with the sentence, not with what was forged."""
    watcher.execute("create table t (id int primary key)")
    watch(watcher, "t", capture=False)
    taken(second, "copy", value(watcher, "select id from outbox.watched"))
    with pytest.raises(psycopg.Error, match=r"cannot be copied"):
        watcher.execute("select * from outbox.copy_of('public.t', 'rows', null, 10, 1000, 1000)")


@pytest.mark.parametrize("emitted", [False, True])
def test_functions_go_with_the_capture(watcher: Connection, *, emitted: bool) -> None:
    watcher.execute("create table t (id int primary key)")
    watch(watcher, "t", filter="id > 0")
    if emitted:
        watch(watcher, "t", filter="", capture=False)
    else:
        watcher.execute("select outbox.unwatch('t')")
    assert rows(watcher, "select p.proname from pg_proc p where p.proname ~ '^(capture|row|copy|inside)_[0-9]+$'") == []
