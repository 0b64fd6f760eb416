"""An owner keeps a table of his locked: whoever looks at all tables waits for none, and says who has it."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from daemon.breaker import Breaker, Thresholds
from daemon.check import check
from daemon.schema_apply import apply
from daemon.session import query
from daemon.target import PostgresDoor, Target
from tests.captured import value
from tests.databases import Database
from tests.security.tenants import Tenants
from tests.waiting import wait_until


@pytest.fixture
def locked(tenants: Tenants, source: Database) -> Iterator[tuple[Tenants, int]]:
    """A tenant's table, its partitions and its mirror, which somebody keeps locked; and the holder's process on the source."""
    tenants.tenant.execute(
        "create table p (id int primary key, v int default 7 check (v > 0), g int generated always as (v * 2) stored) partition by range (id);"
        " create table p_1 partition of p for values from (0) to (100); create index on p ((v + 1)) where v > 3; select outbox.watch('p')"
    )
    apply(tenants.source.dsn, tenants.target.dsn, {})
    tenants.mirror.execute("alter function public.outboxd(text) set lock_timeout = '200ms'")  # instead of 6 s
    with source.connect(autocommit=False) as holder, tenants.target.connect(autocommit=False) as there:
        holder.execute("lock table p, p_1 in access exclusive mode")
        there.execute("lock table p in access exclusive mode")
        yield tenants, holder.info.backend_pid


def test_whoever_looks_at_all_tables_waits_for_no_owners_lock(locked: tuple[Tenants, int], source: Database) -> None:
    """Neither the daemon's questions nor those of commands: a locked table is told of, by whom, or left for the next look."""
    tenants, pid = locked
    with source.connect() as asker:
        asker.execute("set lock_timeout = '2s'")
        for statement in ("copy_wanted", "copy_notice", "uncaptured", "check_watched", "watched"):
            asker.execute(query(statement))
        asker.execute(query("copy_fit"), {"tables": ["public.p", "public.item"]})
        asker.execute(query("letters_identities"), {"tables": ["public.p", "public.item"]})
        asker.execute("select outbox.layout_of(w) from outbox.watched w")
        assert value(asker, "show lock_timeout") == "2s"
    tenants.tenant.execute("alter table item add note text")
    done = apply(tenants.source.dsn, tenants.target.dsn, {}, patience=1)
    assert [(step.table, step.kind) for step in done.steps] == [("public.item", "column")]
    assert not [step for step in done.left if step.table == "public.p"], "it is watched still"
    assert any(f"process {pid} (role" in sentence for sentence in done.plan.problems), done.plan
    tenants.run()


def test_schema_apply_leaves_out_what_somebody_waits_for(tenants: Tenants, source: Database) -> None:
    """One session reads the table and stays, another one asks for a lock: what Postgres prints of the table waits behind."""
    tenants.tenant.execute("create table p (id int primary key, v int check (v > 0)); select outbox.watch('p')")
    apply(tenants.source.dsn, tenants.target.dsn, {})
    with closing(source.connect(autocommit=False)) as holder, closing(source.connect(autocommit=False)) as waiter:
        holder.execute("select from p")
        waiter.pgconn.send_query(b"begin; lock table p in access exclusive mode")
        tenants.tenant.execute("alter table item add note text")
        wait_until(lambda: value(tenants.tenant, "select count(*) from pg_locks where not granted") == 1)
        done = apply(tenants.source.dsn, tenants.target.dsn, {}, patience=1)
        assert any(f"process {waiter.info.backend_pid} (role" in sentence for sentence in done.plan.problems), done.plan
        holder.rollback()
    assert [(step.table, step.kind) for step in done.steps] == [("public.item", "column")]


async def test_check_names_who_has_a_table_locked(locked: tuple[Tenants, int]) -> None:
    tenants, pid = locked
    door = PostgresDoor(tenants.target.dsn)
    try:
        items = await check(tenants.source.dsn, Target(door, "main", Breaker("target", Thresholds())))
    finally:
        await door.close()
    said = [item.what for item in items if item.name in {"public.p", "target public.p"} and "is locked on" in item.what]
    assert len(said) == 2
    assert any(f"public.p is locked on the source by process {pid} (role" in what for what in said)
    assert any("p is locked on the target by process" in what for what in said)
