"""One project for a whole file, and every way to its door."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from daemon.breaker import Breaker, Thresholds
from daemon.demo.binaries import MissingPostgrest, postgrest_binary
from daemon.demo.faults import Fault
from daemon.demo.keys import ApiKeys
from daemon.demo.process import free_port
from daemon.demo.supabase import EmbeddedSupabase
from daemon.errors import TargetError
from daemon.plan import Plan, plan
from daemon.rest import RestDoor
from daemon.sheaf import Change, bind
from daemon.target import Door, PostgresDoor, Target
from outbox import Cursor
from tests.contract.wire import Wire
from tests.databases import Database, clone
from tests.waiting import wait_until_async

KINDS = ["secret key", "legacy key", "postgres"]

TABLES = """
create table item (id int primary key, v text);
create table part (id int primary key, item_id int constraint part_item_fkey references item deferrable initially deferred);
create table effect (id int not null, v text);
create function note_effect() returns trigger language plpgsql as $$
begin
  insert into public.effect values (new.id, new.v);
  return new;
end $$;
create trigger note_effect after insert or update on item for each row execute function note_effect();
select outboxd.map('item'), outboxd.map('part');
"""

_numbers = count(1)


@pytest.fixture(scope="module")
def project(_target_template: Database, run_folder: Path) -> Iterator[EmbeddedSupabase]:
    """A project that mirrors `item` and `part`, and notes every write to an item in `effect`."""
    try:
        postgrest_binary()
    except MissingPostgrest as missing:
        pytest.skip(str(missing))
    with clone(_target_template) as database:
        with database.connect() as conn:
            conn.execute(TABLES.encode())
        with EmbeddedSupabase(database.cluster, database.name, run_folder) as running:
            yield running


@dataclass
class Stand:
    """The project by one kind of door, with its tables empty and relays that nobody knows."""

    kind: str
    project: EmbeddedSupabase
    wire: Wire
    owner: psycopg.Connection[Any]
    name: str
    _open: list[Door] = field(default_factory=list)

    @property
    def rest(self) -> bool:
        return self.kind != "postgres"

    def door(self, *, key: str | None = None, nowhere: bool = False) -> Door:
        """A new one: to the project, or, by an address where nobody listens, to nowhere."""
        door: Door
        if self.rest:
            own = self.project.secret_key if self.kind == "secret key" else self.project.service_jwt
            url = f"http://127.0.0.1:{free_port()}" if nowhere else self.project.url
            door = RestDoor(url, key or own)
        else:
            port = free_port() if nowhere else self.wire.port
            user = key or "supabase_owner"
            door = PostgresDoor(f"postgresql://{user}@127.0.0.1:{port}/{self.project.database}")
        self._open.append(door)
        return door

    def target(self, door: Door | None = None) -> Target:
        """The relay of this test, by this kind of door."""
        return patient(door or self.door(), self.name)

    async def claimed(self) -> Target:
        """The same, claimed for the first time."""
        target = self.target()
        assert (await target.claim()).standing.epoch == 1
        return target

    def wrong_key(self) -> str:
        """One that looks right."""
        other = ApiKeys()
        return {"secret key": other.secret, "legacy key": other.service_jwt, "postgres": "nobody_knows"}[self.kind]

    def lose_answer(self) -> None:
        """The next request is carried out, and its answer lost."""
        if self.rest:
            self.project.gateway.fault = Fault.drop_response(times=1)
        else:
            self.wire.lose(0)

    def cut_answer(self) -> None:
        """The next request is carried out, and its answer ends in the middle."""
        if self.rest:
            self.project.gateway.fault = Fault.truncate(times=1)
        else:
            self.wire.lose(7)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.owner.execute(query.encode()).fetchall()

    def items(self) -> dict[int, str]:
        return dict(self.rows("select id, v from item"))

    def effects(self) -> list[tuple[int, str]]:
        """Every write to an item so far."""
        return sorted((id_, v) for id_, v in self.rows("select id, v from effect"))

    @contextmanager
    def cursor_locked(self) -> Iterator[None]:
        """Whoever applies or asks meanwhile waits."""
        with (
            psycopg.connect(self.project.dsn()) as holder,
            holder.transaction(),
        ):
            held = holder.execute("select from outboxd.cursor where relay = %s for update", (self.name,))
            assert held.rowcount == 1
            yield

    async def waiting(self, backends: int = 1, what: str = "Lock") -> list[int]:
        """Process ids of requests that wait for the lock (or for time to pass: Timeout), once there are so many."""

        async def found() -> list[int]:
            query = "select pid from pg_stat_activity where datname = current_database() and wait_event_type = %s order by query_start"
            pids = [pid for (pid,) in self.owner.execute(query, (what,))]
            return pids if len(pids) >= backends else []

        return await wait_until_async(found)


class Deadlines:
    """Those set with asyncio.timeout, so that a test need not wait for one."""

    def __init__(self, timeout: Callable[[float | None], asyncio.Timeout]) -> None:
        self._timeout = timeout
        self._newest: asyncio.Timeout | None = None

    def set(self, seconds: float | None) -> asyncio.Timeout:
        self._newest = self._timeout(seconds)
        return self._newest

    def pass_(self) -> None:
        """The one set last is over, now."""
        assert self._newest is not None
        self._newest.reschedule(asyncio.get_running_loop().time())


@pytest.fixture
def deadlines(monkeypatch: pytest.MonkeyPatch) -> Deadlines:
    """Deadlines that pass when the test says so."""
    noted = Deadlines(asyncio.timeout)
    monkeypatch.setattr(asyncio, "timeout", noted.set)
    return noted


@asynccontextmanager
async def standing(kind: str, project: EmbeddedSupabase) -> AsyncIterator[Stand]:
    project.gateway.fault = None
    async with Wire(project.cluster.port) as wire:
        with psycopg.connect(project.dsn(), autocommit=True) as owner:
            owner.execute("truncate item, part, effect")
            stand = Stand(kind, project, wire, owner, f"relay_{next(_numbers)}")
            try:
                yield stand
            finally:
                for door in stand._open:
                    await door.close()
    project.gateway.fault = None


@pytest.fixture(params=KINDS)
async def stand(request: pytest.FixtureRequest, project: EmbeddedSupabase) -> AsyncIterator[Stand]:
    """Every kind of door in turn."""
    async with standing(request.param, project) as each:
        yield each


@pytest.fixture
async def rest(project: EmbeddedSupabase) -> AsyncIterator[Stand]:
    """The door by the Data API alone."""
    async with standing("secret key", project) as each:
        yield each


def patient(door: Door, relay: str) -> Target:
    """A target whose breaker never opens."""
    return Target(door, relay, Breaker("target", Thresholds(consecutive_failures=1000, minimum_calls=1000)))


def upserts(*items: tuple[int, str]) -> Plan:
    """A plan that writes these items."""
    changes = [
        Change(1, number, "public.item", "upsert", 1, f'{{"id":{id_}}}', f'{{"id":{id_},"v":"{v}"}}', 20, False, 0)
        for number, (id_, v) in enumerate(items, 1)
    ]
    return plan(bind(changes), {"public.item": 0}, {1: ("id", "v")})


def parts(*pairs: Sequence[int]) -> Plan:
    """A plan that writes parts of items, the items aside."""
    changes = [
        Change(
            1, number, "public.part", "upsert", 1, f'{{"id":{id_}}}', f'{{"id":{id_},"item_id":{item}}}', 20, False, 0
        )
        for number, (id_, item) in enumerate(pairs, 1)
    ]
    return plan(bind(changes), {"public.part": 0}, {1: ("id", "item_id")})


def at(xid: int) -> Cursor:
    """A cursor."""
    return Cursor(f"{xid}:{xid}:", xid, (), "a system")


async def failure(target: Target, *, key: str = "") -> TargetError:
    """How a batch fails; the key is in nothing that is said of it."""
    with pytest.raises(TargetError) as caught:
        await target.apply(upserts((1, "a")), at(10), 1, 1)
    error = caught.value
    assert not key or key not in "".join(traceback.format_exception(error)) + repr(error.refusal)
    return error
