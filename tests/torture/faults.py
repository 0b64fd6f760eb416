"""What may go wrong, as context managers: it is wrong inside, and mended on the way out.

Know the world and how to hurt it; numbers are those of the fault matrix. Must not know what is expected of anybody.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from random import Random
from signal import SIGCONT, SIGSTOP

from daemon.dead_letters import ask
from daemon.demo.faults import Fault as GatewayFault
from daemon.demo.process import poll_until
from tests.torture.fleet import Member
from tests.torture.world import World
from tests.torture.writers import ACCOUNTS, SLOTS

Inflict = Callable[[World, Random], AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """How often it is drawn, how long it lasts (seconds, at least and at most), how it is inflicted, how much time it
    needs by itself.
    """

    name: str
    weight: int
    lasts: tuple[float, float]
    inflict: Inflict
    needs: float = 0.0


# -- the daemon -----------------------------------------------------------------------------------------------


@contextmanager
def killed(world: World, random: Random) -> Iterator[None]:
    """1: SIGKILL at a random point."""
    world.fleet.kill(_one(world, random))
    yield


@contextmanager
def terminated(world: World, random: Random) -> Iterator[None]:
    """42: SIGTERM, often in the middle of a batch."""
    world.fleet.terminate(_one(world, random))
    yield


@contextmanager
def frozen(world: World, random: Random) -> Iterator[None]:
    """A stopped virtual machine: back before anybody noticed, or just after."""
    outboxd = _one(world, random).outboxd
    outboxd.send(SIGSTOP)
    try:
        yield
    finally:
        outboxd.send(SIGCONT)


@contextmanager
def taken_over(world: World, random: Random) -> Iterator[None]:
    """3, 4: frozen with a batch in hand until a second daemon leads; thawed, the first must not write."""
    place = random.choice(("after_read", "before_send", "after_send"))
    before = world.fleet.members
    first = world.fleet.add(f"{place}:freeze:{random.randint(2, 6)}")
    for each in before:
        world.fleet.retire(each)
    poll_until(lambda: first.stopped or world.stopped.is_set(), 15)
    second = world.fleet.add()
    first.outboxd.send(SIGSTOP)  # whether or not it came that far
    try:
        poll_until(lambda: second.leads or world.stopped.is_set(), 30)
        yield
    finally:
        first.outboxd.send(SIGCONT)
        # Fenced it ends with 75 by itself; one that finds its connection closed first stands by.
        poll_until(lambda: first.outboxd.returncode is not None or first.status.get("state") == "standby", 5)
        world.fleet.retire(first)


@contextmanager
def hung_up_on_by_the_source(world: World, _: Random) -> Iterator[None]:
    """6: all of outboxd's connections to the source are closed."""
    with world.connect(world.bank) as conn:
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'outboxd%'"
            " and datname = current_database()"
        )
    yield


# -- the source -----------------------------------------------------------------------------------------------


@contextmanager
def source_killed(world: World, _: Random) -> Iterator[None]:
    """5: SIGKILL for the postmaster and everything below it; what was not written is lost."""
    with world.source_in_trouble():
        world.source.kill()
        try:
            yield
        finally:
            world.source.start()


@contextmanager
def source_restarted(world: World, _: Random) -> Iterator[None]:
    """A fast shutdown."""
    with world.source_in_trouble():
        world.source.stop()
        try:
            yield
        finally:
            world.source.start()


@contextmanager
def source_frozen(world: World, _: Random) -> Iterator[None]:
    """15: every process stands still, connections stay open."""
    with world.source_in_trouble():
        world.source.freeze()
        try:
            yield
        finally:
            world.source.thaw()


@contextmanager
def long_transaction(world: World, random: Random) -> Iterator[None]:
    """10: it wrote before others and commits, or not, long after them."""
    with world.connect(world.bank) as conn:
        conn.execute("begin")
        conn.execute(
            "insert into receipt (id, owner, account, amount, memo) values (%s, -1, 1, 0, %s)",
            (world.ledger.number(), world.row_canary),
        )
        yield
        conn.execute(random.choice((b"commit", b"rollback")))


@contextmanager
def outbox_locked(world: World, _: Random) -> Iterator[None]:
    """12: somebody's ACCESS EXCLUSIVE lock on the outbox; the application waits for it, too."""
    with world.connect(world.bank) as conn:
        conn.execute("begin; set local lock_timeout = '2s'; lock table outbox.change in access exclusive mode")
        yield
        conn.execute("rollback")


# -- the target -----------------------------------------------------------------------------------------------


@contextmanager
def target_killed(world: World, _: Random) -> Iterator[None]:
    """20: SIGKILL for the postmaster and everything below it, also in the middle of a batch."""
    world.target.kill()
    try:
        yield
    finally:
        world.target.start()


@contextmanager
def target_frozen(world: World, _: Random) -> Iterator[None]:
    """Every process stands still; what was sent is applied afterwards."""
    world.target.freeze()
    try:
        yield
    finally:
        world.target.thaw()


@contextmanager
def target_hung_up(world: World, _: Random) -> Iterator[None]:
    """All connections to the target, PostgREST's too, are closed from the server's side."""
    with world.connect(world.mirror) as conn:
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
            " and datname = current_database() and application_name <> 'torture'"
        )
    yield


@contextmanager
def row_locked(world: World, random: Random) -> Iterator[None]:
    """38: somebody holds rows that a batch will want."""
    row = ("list", "key", random.randrange(SLOTS)) if random.random() < 0.5 else ("checking", "id", 1 + ACCOUNTS // 2)
    with world.connect(world.mirror) as conn:
        conn.execute("begin")
        conn.execute(f"select from {row[0]} where {row[1]} >= %s order by {row[1]} for update".encode(), (row[2],))
        yield
        conn.execute("rollback")


@contextmanager
def cursor_locked(world: World, _: Random) -> Iterator[None]:
    """Somebody holds the cursor's row: every request waits."""
    with world.connect(world.mirror) as conn:
        conn.execute("begin; select from outboxd.cursor for update")
        yield
        conn.execute("rollback")


@contextmanager
def rows_refused(world: World, _: Random) -> Iterator[None]:
    """33: some rows cannot be: they are held, their neighbours flow. Mended, they are asked for again."""
    with world.connect(world.mirror) as conn:
        conn.execute("set lock_timeout = '10s'")
        conn.execute("alter table receipt add constraint no_sevens check (amount % 7 <> 0) not valid")
        try:
            yield
        finally:
            conn.execute("alter table receipt drop constraint no_sevens")
    ask(world.bank.dsn, "retry", None, patience=0)


# -- the way between ------------------------------------------------------------------------------------------


@contextmanager
def postgrest_stopped(world: World, _: Random) -> Iterator[None]:
    """19: SIGKILL for PostgREST."""
    world.supabase.stop_postgrest()
    try:
        yield
    finally:
        world.supabase.start_postgrest()


@contextmanager
def gateway_stopped(world: World, _: Random) -> Iterator[None]:
    """Nobody listens."""
    world.supabase.gateway.stop()
    try:
        yield
    finally:
        world.supabase.gateway.start()


def gateway(fault: GatewayFault) -> Inflict:
    """21 to 27: what a gateway does to requests and answers."""

    @contextmanager
    def inflicted(world: World, _: Random) -> Iterator[None]:
        world.supabase.gateway.fault = fault
        try:
            yield
        finally:
            world.supabase.gateway.fault = None

    return inflicted


def _one(world: World, random: Random) -> Member:
    return random.choice(world.fleet.members)


_DOOR = "rpc/outboxd"
_HTML = b"<html><body>an error occurred</body></html>"

ON_DAEMONS: Sequence[Fault] = (
    Fault("daemon killed", 8, (0, 0), killed),
    Fault("daemon terminated", 3, (0, 0), terminated),
    Fault("daemon frozen", 3, (1, 4), frozen),
    Fault("daemon taken over", 2, (0, 1), taken_over, needs=25),
    Fault("connections to the source closed", 3, (0, 0), hung_up_on_by_the_source),
)
ON_STORES: Sequence[Fault] = (
    Fault("source killed", 5, (0.2, 2), source_killed),
    Fault("source restarted", 1, (0, 1), source_restarted),
    Fault("source frozen", 2, (1, 3), source_frozen),
    Fault("long transaction", 4, (2, 5), long_transaction),
    Fault("outbox locked", 2, (1, 3), outbox_locked),
    Fault("target killed", 5, (0.2, 2), target_killed),
    Fault("target frozen", 3, (1, 4), target_frozen),
    Fault("connections to the target closed", 3, (0, 0), target_hung_up),
    Fault("rows of the target locked", 3, (1, 4), row_locked),
    Fault("rows refused", 3, (1, 5), rows_refused),
    Fault("the cursor locked", 2, (1, 3), cursor_locked),
    Fault("PostgREST killed", 3, (0.5, 3), postgrest_stopped),
    Fault("gateway stopped", 2, (0.5, 3), gateway_stopped),
    Fault("gateway: 503", 2, (1, 3), gateway(GatewayFault.status(503, _HTML))),
    Fault("gateway: 429", 2, (1, 3), gateway(GatewayFault.status(429, b"{}", [("Retry-After", "1")]))),
    Fault("gateway: 544", 1, (1, 3), gateway(GatewayFault.status(544, b'{"error":"database timed out"}'))),
    Fault("gateway: a portal's 200", 2, (1, 2), gateway(GatewayFault.status(200, _HTML))),
    Fault("gateway: answers lost", 4, (1, 4), gateway(GatewayFault.drop_response(path=_DOOR))),
    Fault("gateway: answers cut", 3, (1, 4), gateway(GatewayFault.truncate(path=_DOOR))),
    Fault("gateway: answers late", 3, (2, 5), gateway(GatewayFault.delay(1.5, path=_DOOR))),
    Fault("gateway: requests refused", 2, (1, 3), gateway(GatewayFault.refuse(path=_DOOR))),
)
