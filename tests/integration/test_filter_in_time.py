"""Filters that may answer otherwise tomorrow, and filters over types that users made."""

import json
from typing import Any

import pytest

from tests.captured import Connection, assert_replays, changes, ops, rows, value, watch
from tests.pairs import Pair

CARD = "create table card (id int primary key, note text, starts date, expires_at timestamptz, at time)"


def lasting(conn: Connection) -> bool:
    return bool(value(conn, "select mapping -> 'lasting' = 'true' from outbox.watched"))


FILTERS = {
    "expires_at > now()": False,
    "expires_at > current_timestamp": False,
    "starts >= current_date": False,
    "expires_at > 'now'": False,
    "starts >= 'to'\n'day'": False,
    "starts >= $$yesterday$$": False,
    "starts >= U&'\\0074oday'": False,
    "expires_at::date > '2026-01-01'": False,
    "public.visible(note)": False,
    "note operator(public.===) 'x'": False,
    "to_char(id, '9') = '1'": False,
    "note = current_setting('app.note', true)": False,
    "note = current_user": False,
    "expires_at is null": True,
    "expires_at > '2026-01-01'": True,
    "starts between '2026-01-01' and 'infinity'": True,
    "note in ('now', 'today')": True,
    "note like 'a%' and id > 3 or lower(note) = 'x'": True,
    "(id, note) < (3, 'x')": True,
}


@pytest.mark.parametrize("filter_", FILTERS)
def test_a_filter_lasts_when_all_of_it_is_immutable(scratch: Connection, filter_: str) -> None:
    """And of the system: a function that users made may be another one tomorrow."""
    scratch.execute(CARD)
    scratch.execute("create function visible(text) returns bool immutable language sql as 'select true'")
    scratch.execute("create function same(text, text) returns bool immutable language sql as 'select $1 = $2'")
    scratch.execute("create operator === (leftarg = text, rightarg = text, function = same)")
    watch(scratch, "card", filter=filter_)
    assert lasting(scratch) is FILTERS[filter_]


WRITES = {
    "deleted": "delete from card where id = 1",
    "updated, outside by now": "update card set note = 'x' where id = 1",
    "key moved": "update card set id = 7 where id = 1",
    "deleted twice over": "delete from card where id = 1; insert into card values (1, 'new', null, now() + '1 day'); delete from card where id = 1",
}


@pytest.mark.parametrize("kind", ["", "partition by list (id)"])
@pytest.mark.parametrize("how", WRITES)
def test_a_row_that_has_left_by_the_clock_is_deleted_when_it_is_written(app: Connection, how: str, kind: str) -> None:
    """Promise I1: it was inside when it came, whatever the filter says of that version now."""
    app.execute(f"{CARD} {kind}".encode())
    if kind:
        app.execute("create table card_1 partition of card default")
    watch(app, "card", filter="expires_at > now()")
    app.execute("insert into card values (1, 'a', null, clock_timestamp() + '50 ms'), (2, 'b', null, now() + '1 day')")
    assert len(changes(app)) == 2
    app.execute("select pg_sleep(0.06)")
    app.execute(WRITES[how].encode())
    assert ("delete", '{"id":1}') in [(c.op, c.key) for c in changes(app)]
    assert_replays(app)


@pytest.mark.parametrize("again", [False, True], ids=["watched again", "unwatched before"])
def test_a_row_that_came_by_another_filter_is_deleted_when_it_is_written(app: Connection, *, again: bool) -> None:
    """The new filter says nothing of what the old one let through."""
    app.execute(CARD)
    watch(app, "card", filter="id > 0")
    assert lasting(app)
    app.execute("insert into card select n, 'a' from generate_series(1, 6) n")
    if again:
        app.execute("select outbox.unwatch('card')")
    watch(app, "card", filter="id > 3")
    app.execute("update card set note = 'b' where id < 3; delete from card where id in (3, 5)")
    assert {c.key for c in changes(app) if c.op == "delete"} == {f'{{"id":{n}}}' for n in (1, 2, 3, 5)}
    watch(app, "card")
    assert not lasting(app)


async def test_what_the_clock_has_put_outside_is_no_extra_row_after_a_repair(pair: Pair) -> None:
    """A comparison asks the filter now: what has left by the clock alone is drift, and a copy with prune takes it away."""
    ddl = "create table card (id int primary key, expires_at timestamptz)"
    with pair.source.connect() as source, pair.target.connect() as target:
        source.execute(ddl)
        target.execute(ddl)
        watch(source, "card", filter="expires_at > now()")
        target.execute("select outboxd.map('card')")
        source.execute("insert into card values (1, clock_timestamp() + '50 ms'), (2, now() + '1 day')")
        async with pair.relay() as parts:
            await parts.relay.drain()
            source.execute("select pg_sleep(0.06)")
            assert target.execute("select id from card order by 1").fetchall() == [(1,), (2,)]
            source.execute("select outbox.ask_copy('card', prune => true)")
            parts.relay.copier.ring()
            await parts.relay.drain()
            assert target.execute("select id from card order by 1").fetchall() == [(2,)]


MOODS = """
    create type mood as enum ('calm', 'wild'); create type pair as (a int, b text); create type span as range (subtype = timestamptz);
    create domain short as varchar(5) check (length(value) < 5); create domain feeling as mood;
    create table card (id int primary key, kind mood, kinds mood[], two pair, during span, code short, felt feeling, note text)
"""
OVER_OWN_TYPES: dict[str, list[int]] = {
    "kind = 'calm'": [1, 3],
    "kind > 'calm' or kind is null": [2, 4],
    "kinds @> '{wild}'": [2],
    "'calm' = any (kinds)": [1],
    "(two).b = 'x, y'": [1],
    "two is null": [3, 4],
    "upper(during) > '2026-02-01'": [1],
    "code = 'ab'": [1],
    "felt::public.mood = 'wild'": [2],
    "kind is not distinct from felt::public.mood": [1, 2, 4],
}


@pytest.mark.parametrize("session", ["", "set local datestyle = 'German'; set local timezone = 'Asia/Kathmandu'"])
@pytest.mark.parametrize("filter_", OVER_OWN_TYPES)
def test_a_filter_over_types_that_users_made(scratch: Connection, filter_: str, session: str) -> None:
    """Its function is given them as text, and depends on none of them."""
    scratch.execute(MOODS)
    watch(scratch, "card", filter=filter_, include=["id"])
    scratch.execute(session.encode() or b"select")
    scratch.execute("""insert into card values
        (1, 'calm', '{calm}', (1, 'x, y'), '[2026-01-01 00:00+00, 2026-03-04 00:00+00)', 'ab', 'calm'), (2, 'wild', '{wild}', (1, null), 'empty', 'cd', 'wild'),
        (3, 'calm', '{}', null, null, null, null), (4, null, null, (null, null), null, null, null)""")
    assert [json.loads(c.key)["id"] for c in changes(scratch)] == OVER_OWN_TYPES[filter_]
    assert_replays(scratch)
    depends = """
        select d.refobjid from pg_depend d
         where d.classid = 'pg_proc'::regclass and d.objid = to_regproc('outbox.inside_' || (select id from outbox.watched))
           and d.refclassid = 'pg_type'::regclass and d.refobjid::int8 >= 16384
    """
    assert rows(scratch, depends) == []


PRISMA = """
    create type mood_new as enum ('calm', 'wild', 'sad');
    alter table card alter kind type mood_new using kind::text::mood_new;
    alter type mood rename to mood_old; alter type mood_new rename to mood; drop type mood_old
"""


def test_an_enum_is_replaced_as_migrations_do_it(app: Connection) -> None:
    """Promise I7: the migration succeeds, rows go on, and the filter reads the new type."""
    app.execute("create type mood as enum ('calm', 'wild'); create table card (id int primary key, kind mood)")
    watch(app, "card", filter="kind = 'calm'")
    app.execute("insert into card values (1, 'calm'), (2, 'wild')")
    with app.transaction():
        app.execute(PRISMA)
    app.execute("insert into card values (3, 'calm'), (4, 'sad'); update card set kind = 'sad' where id = 1")
    assert_replays(app)
    assert "resync" not in ops(app)
    app.execute("alter type mood rename to temper")
    watch(app, "card")
    app.execute("insert into card values (6, 'calm')")
    assert ops(app)[-1] == "upsert"


def test_a_domains_check_is_not_run_by_the_filter(scratch: Connection) -> None:
    """It is code of the table's owner, and capture has the rights of whoever watches."""
    scratch.execute("""
        create function trap(text) returns bool language plpgsql as $$ begin raise exception 'called'; end $$;
        create domain plain as text; create type holder as (one plain); create table card (id int primary key, code plain, two holder);
        insert into card values (1, 'a', row('a'))
    """)
    watch(scratch, "card", filter="code = 'a' and (two).one = 'a'")
    scratch.execute("alter domain plain add constraint guarded check (trap(value)) not valid")
    scratch.execute("update card set id = 2")
    assert ops(scratch) == ["delete", "upsert"]


async def test_a_key_that_contains_an_enum_survives_a_new_label(pair: Pair) -> None:
    """The row whose key the target cannot read is held, the others flow, and it arrives once the label is there."""
    pair.create(
        "create type mood as enum ('calm', 'wild'); create table card (kind mood, id int, primary key (kind, id))",
        "card",
    )
    with pair.source.connect() as source, pair.target.connect() as target:
        await pair.drain()
        source.execute("insert into card values ('calm', 1)")
        source.execute("alter type mood add value 'sad'")
        source.execute("insert into card values ('sad', 2), ('wild', 3)")
        async with pair.relay() as parts:
            await parts.relay.drain()
            arrived: list[Any] = target.execute("select id from card order by id").fetchall()
            assert arrived == [(1,), (3,)], arrived
