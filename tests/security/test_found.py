"""What an attack of one hour still broke, the gravest first. Each test says who, by which steps, what he gains, what would be right."""

import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from daemon import private
from daemon.install import setup
from daemon.logs import redact
from daemon.schema_apply import apply
from tests.acceptance.conftest import Pair, Start, streaming
from tests.captured import Connection, value, watch
from tests.databases import Database
from tests.security.tenants import Tenants
from tests.waiting import wait_until

# Whoever runs this function is noted; with a superuser's rights it would do more.
NOTE = """
create table public.ran (who text); grant insert on public.ran to public;
create function public.note(text) returns bool language plpgsql as $$ begin insert into public.ran values (current_user); return true; end $$;
"""
WATCHES = """
grant usage, create on schema public, outbox to {0};
grant all on all tables in schema outbox to {0}; grant all on all sequences in schema outbox to {0};
grant execute on all functions in schema outbox to {0}; revoke all on outbox.mask_key from {0}
"""


def ran(watcher: Connection) -> set[str]:
    return {who for (who,) in watcher.execute("select distinct who from public.ran")}


@pytest.fixture
def second(source: Database, watcher: Connection) -> Iterator[Connection]:
    """Another role that watches tables of its own."""
    role = f"second_{source.name}"
    watcher.execute(f"create role {role} login; {WATCHES.format(role)}")
    with psycopg.connect(source.cluster.dsn(source.name, role), autocommit=True) as conn:
        yield conn
    watcher.execute(f"drop owned by {role} cascade; drop role {role}")


# -- critical: code as the schema's owner, without a race ------------------------------------------------------


def test_a_domain_put_in_the_place_of_a_filters_type(source: Database, owner: Connection, watcher: Connection) -> None:
    """Who: an owner of an enum type that a filter's column has. Steps: `alter type mood rename to was; create domain mood as text
    check (note(value))`; one insert in a new session. inside_<id> names the type by its name (x(v public.mood)), and the signature of the
    table has its number, which is the same. Gain: SQL as whoever watches, with each row that anybody writes.
    Right: the signature, or the function's own plan, has to know that the name is no longer that type. Critical."""
    owner.execute(NOTE + "create type public.mood as enum ('a', 'b'); create table t (id int primary key, m mood)")
    watch(watcher, "t", filter="m <> 'b'")
    owner.execute("insert into t values (1, 'a')")
    owner.execute("alter type mood rename to was; create domain mood as text check (note(value))")
    with psycopg.connect(source.cluster.dsn(source.name, owner.info.user), autocommit=True) as fresh:
        fresh.execute("insert into t values (2, 'a')")
    assert ran(watcher) <= {owner.info.user}


# -- critical: one row stops everybody -------------------------------------------------------------------------


def test_a_row_that_takes_the_target_too_long_stops_nobody_else(tenants: Tenants) -> None:
    """Who: an owner of one watched table. Steps: an index that outboxd copies to the target (`(factorial(v) % 10)`: of the system, immutable); one
    row for which it takes longer than the door's statement_timeout (12 s; here 2 s). The source waits that long once, the target never
    takes it: 57014 `for a single change` is `transient`, the turn fails for ever, and every other table waits behind it.
    Gain: replication of all tables is over, until a person deletes the change. Right: as of a change that a gateway refuses by its size
    (413): a dead letter, or the table is out. Critical."""
    tenants.tenant.execute("create table slow (id int primary key, v int); create index on slow ((factorial(v) % 10))")
    tenants.tenant.execute("select outbox.watch('slow')")
    apply(tenants.source.dsn, tenants.target.dsn, {})
    assert tenants.there(
        "select count(*) from pg_indexes where tablename = 'slow' and indexdef like '%factorial%'"
    ) == [(1,)]
    size, took = 8000, 0.0
    while took < 2.5:
        size = int(size * 1.3)
        began = time.monotonic()
        tenants.tenant.execute(f"select factorial({size}) % 10".encode())
        took = time.monotonic() - began
    tenants.mirror.execute("alter function public.outboxd(text) set statement_timeout = '2s'")
    tenants.run()
    tenants.tenant.execute(f"insert into slow values (1, {size})".encode())
    tenants.flows(25)


# -- high ------------------------------------------------------------------------------------------------------


def test_default_privileges_do_not_open_the_targets_door(target: Database) -> None:
    """Who: a role of the target that has whatever is made, by `alter default privileges` (schemas and functions), set before
    setup. Steps: `select outboxd.door('{"mode": "claim", …}')`, and apply. exposed.sql revokes from anon, authenticated and service_role
    by name, and from nobody else. Gain: any row of any mirrored table, as the door's owner, past RLS; fences the relay. Right: as on the source: revoke by aclexplode
    from everybody but the owner, then grant; `check` names the rest. High (brother of row 3)."""
    role = f"lower_{target.name}"
    target.cluster.execute(f"create role {role} login")
    with target.connect() as mirror, psycopg.connect(target.superuser_dsn, autocommit=True) as root:
        mirror.execute("drop schema outboxd cascade")
        for kind in ("schemas", "functions"):
            mirror.execute(f"alter default privileges grant all on {kind} to {role}".encode())
        setup(target.dsn, "target", exposed_schema="public", role=False)
        try:
            with (
                psycopg.connect(target.cluster.dsn(target.name, role), autocommit=True) as lower,
                pytest.raises(psycopg.errors.InsufficientPrivilege),
            ):
                lower.execute('select outboxd.door(\'{"mode": "claim", "relay": "main"}\')')
        finally:
            root.execute(f"drop owned by {role} cascade; drop role {role}".encode())


def test_the_hundred_sets_of_columns_are_counted_for_all_sessions(source: Database, watcher: Connection) -> None:
    """Who: a role that may only call emit, of a mapped table. Steps: twelve transactions at once (as many as it may have connections), each with
    a hundred sets of its own, then twelve commits: 1200 are known, for good. Gain: 2000 rows of 2000 known sets took the target 28 s
    while the neighbour's row waited; it may send them again and again, for known sets are not counted.
    Right: the count is made under a lock of the table's row in outbox.watched (only where a set is new), and an emitted table has
    the 128 of decision 34 in a batch as well. High."""
    names = [f"c{n}" for n in range(11)]
    watcher.execute("select outbox.map('public.wide', '{id}')")
    number = 0
    with ExitStack() as stack:
        emitters = [stack.enter_context(source.connect(autocommit=False)) for _ in range(12)]
        try:
            for emitter in emitters:
                emitter.execute("set lock_timeout = '200ms'")
                for _ in range(100):
                    number += 1
                    row = {"id": number, **{name: 1 for at, name in enumerate(names) if number & 1 << at}}
                    emitter.execute("select outbox.emit('public.wide', 'upsert', %s)", (json.dumps(row),))
                emitter.execute("select 1")
        except psycopg.errors.LockNotAvailable:
            pass
        for emitter in emitters:
            emitter.commit()
    assert value(watcher, "select count(*) from outbox.shape where table_name = 'public.wide'") <= 100


def test_whoever_probes_is_answered_while_others_scrape(direct: Pair, start: Start) -> None:
    """Who: any local user, or pod that reaches the port. Steps: sixty clients that ask /metrics, again and again, as fast as they are answered.
    /livez is answered `at once`, and then dropped by the next who comes, before its client has read: abort() throws the answer
    away. Seven of eight probes were reset. Gain: a liveness probe fails three times: the process is killed, and its successor.
    Right: room is made among those who have asked nothing; who was told just now gets a moment; new ones wait. High in Kubernetes."""
    outboxd = streaming(start(direct.settings))
    stop = threading.Event()

    def asked(page: bytes) -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", outboxd.port), timeout=5) as one:
                one.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % page)
                return one.makefile("rb").read()
        except OSError:
            return b""

    def scrape() -> None:
        while not stop.is_set():
            asked(b"/metrics")

    threads = [threading.Thread(target=scrape) for _ in range(60)]
    for thread in threads:
        thread.start()
    try:
        probes = []
        for _ in range(10):
            stop.wait(0.2)
            probes.append(asked(b"/livez")[:12])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert probes.count(b"HTTP/1.1 200") >= 9, probes


# -- medium ----------------------------------------------------------------------------------------------------


def test_a_command_in_a_sentence_of_ours_runs_nothing_of_a_name(
    owner: Connection, watcher: Connection, tmp_path: Path
) -> None:
    """Who: an owner of a watched table called `$(…)`. Steps: rename a column that is masked; the operator reads in `check` or `status`
    "run `outboxd watch public."$(…)"` again", and pastes that. Gain: a shell of the operator's. The fix beside it is quoted by word();
    the sentences of outbox.projection, outbox.emit and outbox.copy_of (and of daemon/schema_apply) are not. Right: a word of the shell there, too, or no name. Medium."""
    table = 'public."$(touch pwned)"'
    owner.execute(f"create table {table} (id int primary key, mail text)".encode())
    watch(watcher, table, mask='{"mail": "hash"}')
    owner.execute(f"alter table {table} rename mail to post".encode())
    said = str(value(watcher, "select unfit from outbox.fit_of(array[%s])", table))
    found = re.search(r"run `(.*)` again", said)
    if found:
        subprocess.run(["bash", "-c", f"outboxd() {{ :; }}; {found[1]}"], cwd=tmp_path, check=False)
    assert not (tmp_path / "pwned").exists()


def test_a_sentence_of_a_gateways_is_masked_in_no_time() -> None:
    r"""Who: a hostile gateway or target (an answer's `message` may have 20,000 characters), or whoever's text an operator is shown (headers of a letter: 16 kB).
    Steps: `password=\"` and 19,900 backslashes. The third form of _VALUE looks ahead over all backslashes at each of them: 23 s, and
    redact() masks before it cuts; the event loop stands still: no ping, no /livez, for each line. Right: linear (one run of backslashes at a time), and cut first. Medium."""
    began = time.monotonic()
    redact('password=\\"' + "\\" * 10_000)
    assert time.monotonic() - began < 0.5


def test_a_lock_on_a_new_partition_keeps_nobody_elses_copy(tenants: Tenants, source: Database) -> None:
    """Who: an owner of one watched partitioned table. Steps: attach a partition with rows, commit; `lock table p_2 in access exclusive
    mode` in a transaction that stays open. came_filled asks pg_relation_size, which waits for that lock, and outbox.notice goes through
    all tables in one statement: it hangs, is cut off, and hangs again. Gain: a neighbour's rows that were given a column with a default (any
    migration) are not noticed and differ on the target, with /readyz 200 and no line in the log, as long as he likes.
    Right: as outbox.tree has it, who looks at all tables waits for none: lock_timeout, and that table left for the next look. Medium."""
    tenants.tenant.execute("create table p (id int primary key) partition by range (id)")
    tenants.tenant.execute("create table p_1 partition of p for values from (0) to (100); select outbox.watch('p')")
    tenants.mirror.execute("create table p (id int primary key); select outboxd.map('p'); alter table item add k int")
    tenants.run()
    with source.connect(autocommit=False) as holder:
        holder.execute("create table p_2 (id int primary key); insert into p_2 values (150)")
        holder.execute("alter table p attach partition p_2 for values from (100) to (200)")
        holder.commit()
        holder.execute("lock table p_2 in access exclusive mode")
        tenants.tenant.execute("alter table item add k int not null default 7")
        wait_until(lambda: tenants.there("select count(*) from item where k is null") == [(0,)], 20)


# -- low -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_a_pipe_of_another_user_is_not_waited_for(tmp_path: Path) -> None:
    """Who: another user of the host, where somebody works in /tmp. Steps: `mkfifo .env`, and keep it open without writing. private.read
    takes O_NONBLOCK off and reads to the end before it asks whose it is. Gain: every command there hangs. Right: owner and mode first; a foreign pipe
    is not read. Low."""
    tmp_path.chmod(0o1777)
    pipe = tmp_path / ".env"
    os.mkfifo(pipe, 0o666)
    os.chown(pipe, 65534, 65534)
    holder = os.open(pipe, os.O_RDWR)
    told = threading.Event()

    def read() -> None:
        private.read(pipe)
        told.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    in_time = told.wait(3)
    os.close(holder)
    thread.join(5)
    assert in_time
