"""A watcher alters its own copy function while the daemon calls it, as fast as it can: nothing of it may run as somebody else."""

import threading
import time
from collections import Counter
from itertools import product

import psycopg
import pytest

from daemon.install import setup
from tests.captured import Connection, value, watch
from tests.databases import Database
from tests.security.conftest import WATCHES

NOTE = """
create table public.ran (who text); grant all on public.ran to public;
create function public.note() returns void language plpgsql as $$ begin insert into public.ran values (current_user); end $$;
create table public.card (id text primary key)
"""
MADE = (
    "create or replace function outbox.copy_{0}(what text, keys text[], most int, max_bytes bigint, row_bytes bigint)"
    " returns table (columns text[], named text, texts text, sizes bytea) {1} as {2}"
)
HONEST = (
    "language sql security definer set search_path = pg_catalog, pg_temp",
    "'select * from outbox.copy_work({0}::int, $1, $2, $3, $4, $5)'",
)
EVIL = "select public.note(); select null::text[], null, null, null::bytea"
# What it is turned into between two honest moments.
TURNS = {
    "another body, as whoever calls it": ("language sql volatile security invoker", f"'{EVIL}'"),
    "another body, as its owner": ("language sql volatile security definer", f"'{EVIL}'"),
    "another language": ("language plpgsql volatile security invoker", "'begin perform public.note(); end'"),
}
COPY = "select * from outbox.copy_of('public.card', 'rows', null, 1, 1, 1)"


@pytest.fixture
def number(watcher: Connection, second: Connection) -> int:
    second.execute(NOTE)
    watch(second, "card")
    watcher.execute(COPY)
    return int(str(value(watcher, "select id from outbox.watched")))


@pytest.mark.parametrize(("isolation", "turn"), list(product(("read committed", "repeatable read"), TURNS)))
def test_a_copy_function_that_is_altered_all_the_time_runs_as_nobody_else(
    source: Database, second: Connection, number: int, isolation: str, turn: str
) -> None:
    """A session calls it while another makes it evil and honest again: what runs is what outbox.watch made, or nothing."""
    (kind, body), (honest, its_body) = TURNS[turn], HONEST
    evil = MADE.format(number, kind, body).encode()
    good = MADE.format(number, honest, its_body.format(number)).encode()
    stop, turns, called = threading.Event(), [0], Counter[str]()

    def alternate() -> None:
        while not stop.is_set():
            second.execute(evil)
            second.execute(good)
            turns[0] += 1

    def call() -> None:
        with psycopg.connect(source.dsn, autocommit=False) as daemon:
            daemon.execute(f"set session characteristics as transaction isolation level {isolation}".encode())
            daemon.commit()
            while not stop.is_set():
                try:
                    daemon.execute(COPY)
                    daemon.commit()
                    called["copied"] += 1
                except psycopg.Error as exc:
                    daemon.rollback()
                    called[str(exc.sqlstate)] += 1

    threads = [threading.Thread(target=run) for run in (alternate, call)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 6
    while time.monotonic() < deadline and not (turns[0] > 300 and min(called["copied"], called["OB007"]) > 30):
        stop.wait(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert turns[0] > 30
    assert min(called["copied"], called["OB007"]) > 3
    assert set(called) == {"copied", "OB007"}
    assert second.execute("select distinct who from public.ran").fetchall() == []


@pytest.mark.parametrize("turn", TURNS)
def test_what_a_watcher_has_made_of_its_copy_function_is_not_called(
    watcher: Connection, second: Connection, number: int, turn: str
) -> None:
    kind, body = TURNS[turn]
    second.execute(MADE.format(number, kind, body).encode())
    with pytest.raises(psycopg.Error, match=r"outboxd watch public\.card"):
        watcher.execute(COPY)
    assert watcher.execute("select count(*) from public.ran").fetchone() == (0,)
    watch(second, "card")
    watcher.execute(COPY)


def test_a_body_that_ends_like_ours_is_not_taken_for_it(watcher: Connection, second: Connection, number: int) -> None:
    ends = f"\nAS $function$select * from outbox.copy_work({number}::int, $1, $2, $3, $4, $5)"
    second.execute("set check_function_bodies = off")
    second.execute(MADE.format(number, "language sql security definer", f"$evil${EVIL}{ends}$evil$").encode())
    with pytest.raises(psycopg.Error, match=r"outboxd watch public\.card"):
        watcher.execute(COPY)


def test_a_watcher_that_keeps_its_function_locked_keeps_nobody_waiting(
    source: Database, watcher: Connection, second: Connection, number: int
) -> None:
    """Its table alone is not copied, at once; and while a copy is under way whoever alters it waits."""
    watcher.execute("set lock_timeout = '5s'")
    with psycopg.connect(source.cluster.dsn(source.name, second.info.user)) as holder:
        holder.execute(f"alter function outbox.copy_{number} cost 99".encode())
        with pytest.raises(psycopg.Error, match=r"outboxd watch public\.card"):
            watcher.execute(COPY)
        holder.rollback()
    with psycopg.connect(source.dsn) as daemon:
        daemon.execute(COPY)
        second.execute("set lock_timeout = '100ms'")
        for deed in ("alter function outbox.copy_{} security invoker", "drop function outbox.copy_{}"):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                second.execute(deed.format(number).encode())


def test_where_the_schemas_owner_is_no_superuser_it_is_compared(source: Database, watcher: Connection) -> None:
    """It may lock nothing of the catalogue: a copy works, and an altered function is not called."""
    boss, role = f"boss_{source.name}", f"watches_{source.name}"
    watcher.execute(f"drop schema outbox cascade; create role {boss} login createrole; create role {role} login")
    watcher.execute(f"grant create on database {source.name} to {boss}; grant create, usage on schema public to {role}")
    try:
        setup(source.cluster.dsn(source.name, boss), "source", exposed_schema="public", role=False)
        with (
            psycopg.connect(source.cluster.dsn(source.name, boss), autocommit=True) as owner,
            psycopg.connect(source.cluster.dsn(source.name, role), autocommit=True) as second,
        ):
            owner.execute(WATCHES.replace("public, ", "").format(role))
            second.execute("create table public.card (id text primary key); insert into card values ('a')")
            watch(second, "card")
            number = owner.execute("select id from outbox.watched").fetchone()
            assert owner.execute(COPY.replace("*", "named")).fetchone() == ('{"id":"a"}',)
            second.execute(f"alter function outbox.copy_{number[0] if number else 0} security invoker".encode())
            with pytest.raises(psycopg.Error, match=r"outboxd watch public\.card"):
                owner.execute(COPY)
    finally:
        watcher.execute(f"drop owned by {role}, {boss} cascade; drop role {role}; drop role {boss}")
