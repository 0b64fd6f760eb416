"""A row that the target takes too long for, although it answers others: it waits alone, or its table does."""

import json
import time
from dataclasses import dataclass, field

import pytest

from daemon import delivery
from daemon.errors import Kind, Refusal, TargetError
from daemon.plan import SEPARATOR
from daemon.progress import Timing
from daemon.schema_apply import apply
from daemon.target import PostgresDoor
from tests.integration.test_dead_letters import ASKED
from tests.integration.test_sizes import until_idle
from tests.pairs import Pair
from tests.security.relayed import turned_until
from tests.security.tenants import Tenants


@dataclass
class SlowDoor:
    """The direct door, where the target's own timeout ends whatever has a row called slow."""

    dsn: str
    word: bytes = b"slow"
    ended: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._door = PostgresDoor(self.dsn)

    async def send(self, document: bytes) -> str:
        mode = json.loads(document.split(SEPARATOR, 1)[0])["mode"]
        if mode in {"apply", "isolate"} and self.word in document:
            self.ended.append(mode)
            raise TargetError(Kind.SIZE, "the target answered 57014", Refusal("57014"))
        return await self._door.send(document)

    async def close(self) -> None:
        await self._door.close()


SOON = Timing(poll=0.02, recheck=0.05, letters=0.0)


@pytest.fixture
def notes(pair: Pair) -> Pair:
    pair.create("create table note (id int primary key, body text)", "note")
    pair.create("create table item (id int primary key)", "item")
    return pair


def held(pair: Pair) -> list[tuple[object, ...]]:
    with pair.source.connect() as conn:
        return conn.execute("select table_name, key, sqlstate from outbox.held order by id").fetchall()


def test_a_row_that_takes_the_target_too_long_stops_nobody_else(tenants: Tenants) -> None:
    """Who: an owner of one watched table. Steps: an index that outboxd copies to the target (`(factorial(v) % 10)`: of the system, immutable); one
    row for which it takes longer than the door's statement_timeout (12 s; here 1 s). The source waits that long once, the target never
    takes it: 57014 `for a single change` is `transient`, the turn fails for ever, and every other table waits behind it.
    Gain: replication of all tables is over, until a person deletes the change. Right: as of a change that a gateway refuses by its size
    (413): a dead letter, or the table is out."""
    tenants.tenant.execute("create table slow (id int primary key, v int); create index on slow ((factorial(v) % 10))")
    tenants.tenant.execute("select outbox.watch('slow')")
    apply(tenants.source.dsn, tenants.target.dsn, {})
    assert tenants.there(
        "select count(*) from pg_indexes where tablename = 'slow' and indexdef like '%factorial%'"
    ) == [(1,)]
    size, took = 8000, 0.0
    while took < 1.3:
        size = min(int(size * 1.3), 32_000)  # beyond, it is no number
        began = time.monotonic()
        tenants.tenant.execute(f"select factorial({size}) % 10".encode())
        took = time.monotonic() - began
    tenants.mirror.execute("alter function public.outboxd(text) set statement_timeout = '1s'")
    tenants.run()
    tenants.tenant.execute(f"insert into slow values (1, {size})".encode())
    tenants.flows(25)


async def test_the_row_waits_and_what_comes_later_of_it_waits_behind(notes: Pair) -> None:
    notes.write("insert into note select n, case when n = 7 then 'slow' else 'n' end from generate_series(1, 40) n")
    notes.write("insert into item values (1)")
    door = SlowDoor(notes.target.dsn)
    async with notes.relay(door=door, timing=ASKED) as parts:
        await until_idle(parts)
        notes.write("update note set body = 'quick' where id = 7")
        await until_idle(parts)
        assert held(notes) == [("public.note", '{"id":7}', "57014"), ("public.note", '{"id":7}', None)]
        assert notes.rows("select count(*) from note")[1] == [(39,)]
        assert notes.rows("select count(*) from item")[1] == [(1,)]
        notes.write("insert into note select n, 'n' from generate_series(100, 140) n")
        await until_idle(parts)
        assert parts.relay._sizing.changes > 10, "nor do batches stay small for it"
        door.word = b"no such row"
        with notes.source.connect() as conn:
            conn.execute("update outbox.held set wanted = 'retry'")
        await until_idle(parts)
    notes.assert_equal("note", "item")
    assert held(notes) == []


async def test_a_letter_that_takes_too_long_again_stays_one(notes: Pair) -> None:
    notes.write("insert into note values (1, 'slow')", "insert into item values (1)")
    door = SlowDoor(notes.target.dsn)
    async with notes.relay(door=door, timing=ASKED) as parts:
        await until_idle(parts)
        door.ended.clear()
        with notes.source.connect() as conn:
            conn.execute("update outbox.held set wanted = 'retry'")
        assert await until_idle(parts) == 0
        assert door.ended == ["apply"], "one try"
        assert held(notes) == [("public.note", '{"id":1}', "57014")]


async def test_a_letter_that_took_too_long_goes_by_itself_once_it_no_longer_does(notes: Pair) -> None:
    """Nothing else happens, neither here nor there: no row arrives, no table changes."""
    notes.write(*(f"insert into note values ({n}, 'slow')" for n in (1, 2)), "insert into item values (1)")
    door = SlowDoor(notes.target.dsn)
    async with notes.relay(door=door, timing=SOON) as parts:
        await turned_until(parts, lambda: len(held(notes)) == 2)
        door.ended.clear()
        await turned_until(parts, lambda: len(door.ended) > 2)
        assert {state for *_, state in held(notes)} == {"57014"}
        door.word = b"no such row"
        await turned_until(parts, lambda: not held(notes))
    notes.assert_equal("note", "item")


async def test_slow_rows_that_come_and_go_are_their_tables_matter(notes: Pair) -> None:
    """Who takes each away once it is held would have a neighbour wait for every one of them."""
    door = SlowDoor(notes.target.dsn)
    async with notes.relay(door=door, timing=ASKED) as parts:
        for n in range(3):
            notes.write(f"insert into note values ({n}, 'slow')")
            await until_idle(parts)
            notes.write(f"delete from note where id = {n}")
            await until_idle(parts)
            with notes.source.connect() as conn:
                conn.execute("update outbox.held set wanted = 'retry'")
            await until_idle(parts)
            assert held(notes) == []
        door.ended.clear()
        notes.write("insert into note values (9, 'slow')")
        await until_idle(parts)
        notes.write("insert into item values (1)")
        await until_idle(parts)
        assert len(door.ended) == 1
        assert parts.relay.copier.out == {"public.note"}
    assert notes.rows("select count(*) from item")[1] == [(1,)]


async def test_a_row_whose_reason_takes_too_long_to_find_waits_as_well(notes: Pair) -> None:
    """Refused at once, but to look for what of it is refused takes too long."""
    notes.write("insert into note values (1, 'slow')", "insert into item values (1)")

    class Searching(SlowDoor):
        async def send(self, document: bytes) -> str:
            if json.loads(document.split(SEPARATOR, 1)[0])["mode"] == "apply" and self.word in document:
                raise TargetError(Kind.DATA, "the target answered 23514", Refusal("23514", table="public.note"))
            return await super().send(document)

    async with notes.relay(door=Searching(notes.target.dsn), timing=ASKED) as parts:
        await until_idle(parts)
    assert held(notes) == [("public.note", '{"id":1}', "57014")]
    assert notes.rows("select count(*) from item")[1] == [(1,)]


async def test_a_target_that_answers_late_is_slow_for_all(notes: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it answers: a request that writes nothing but a lock takes it longer than a second."""
    monkeypatch.setattr(delivery, "_QUICK", 0.0)
    notes.write("insert into note values (1, 'slow')")
    door = SlowDoor(notes.target.dsn)
    async with notes.relay(door=door) as parts:
        for _ in range(6):
            with pytest.raises(TargetError) as caught:
                await parts.relay.step()
            parts.relay._stumble(caught.value)
            assert caught.value.kind is Kind.TRANSIENT
        door.word = b"no such row"
        await until_idle(parts)
    assert held(notes) == []


async def test_a_copied_row_that_takes_too_long_waits_as_a_change(notes: Pair) -> None:
    notes.write("insert into note select n, case when n = 7 then 'slow' else 'n' end from generate_series(1, 40) n")
    await notes.drain()
    with notes.target.connect() as conn:
        conn.execute("delete from note where id > 3")
    with notes.source.connect() as conn:
        conn.execute("select outbox.ask_copy('note')")
    async with notes.relay(door=SlowDoor(notes.target.dsn), timing=ASKED) as parts:
        await until_idle(parts)
    assert held(notes) == [("public.note", '{"id":7}', "57014")]
    assert notes.rows("select count(*) from note")[1] == [(39,)]


async def test_many_such_rows_are_their_tables_matter(notes: Pair) -> None:
    """A neighbour does not wait for each of them."""
    door = SlowDoor(notes.target.dsn)
    async with notes.relay(door=door, timing=ASKED) as parts:
        await until_idle(parts)
        notes.write(*(f"insert into note values ({n}, 'slow')" for n in range(30)), "insert into item values (1)")
        await until_idle(parts)
        assert notes.rows("select count(*) from item")[1] == [(1,)]
        assert len(held(notes)) == 3
        assert len(door.ended) < 30
        assert parts.relay.copier.out == {"public.note"}


async def test_a_target_that_is_slow_for_all_blames_no_row(notes: Pair) -> None:
    notes.write("insert into note values (1, 'a')")
    door = SlowDoor(notes.target.dsn, word=b"apply")
    async with notes.relay(door=door) as parts:
        for _ in range(12):
            with pytest.raises(TargetError) as caught:
                await parts.relay.step()
            parts.relay._stumble(caught.value)
            assert caught.value.kind is Kind.TRANSIENT
        door.word = b"no such row"
        await until_idle(parts)
    notes.assert_equal("note")
    assert held(notes) == []
