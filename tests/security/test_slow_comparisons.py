"""A table that the target takes too long to compare: its pass fails and says why, changes and other passes go on."""

import json
from itertools import product

import pytest

from daemon import verifier
from daemon.batch import Limits
from daemon.errors import Kind, Refusal, TargetError
from daemon.target import PostgresDoor
from tests.integration.test_copy import filled
from tests.integration.test_dead_letters import AT_ONCE
from tests.integration.test_verify import ask, drifted
from tests.integration.test_verify_pace import Clock, by_the_clock
from tests.pairs import Pair, Parts
from tests.security.relayed import turned_until
from tests.security.tenants import Tenants
from tests.waiting import wait_until

DRIFT = (
    "update story set n = -1 where id in (3, 303, 603)",
    "delete from story where id = 850",
    "insert into story select n, n from generate_series(1001, 1300) n",
)


class SlowDoor(PostgresDoor):
    """The direct door; of one table no comparison by `op` ends in time: the target `said` so, the request was refused for it
    (`size`), or the answer is `lost`."""

    def __init__(self, dsn: str, how: str) -> None:
        super().__init__(dsn)
        self.op: str | None = None
        self.how = how
        self.met = 0

    async def send(self, document: bytes) -> str:
        if not self._meets(document):
            return await super().send(document)
        self.met += 1
        if self.how == "size":
            raise TargetError(Kind.SIZE, "the target answered 57014", Refusal("57014"))
        answer = await super().send(document)
        if self.how == "lost":
            raise TargetError(Kind.AMBIGUOUS, "no answer in time")
        failed = json.loads(answer)
        failed["more"] = {"keys": [], "ends": True, "failed": "57014", "compared": {"failed": "57014"}}
        return json.dumps(failed)

    def _meets(self, document: bytes) -> bool:
        header, *parts = document.split(b"\x1e")
        asked = json.loads(header)
        groups = [(group["op"], group["table"]) for group in map(json.loads, parts[::2])]
        if asked["mode"] == "keys":
            return (self.op, "public.story") == ("keys", asked["table"])
        repairs = ("verification", "public.story") in groups
        return (self.op, "public.story") in groups and (self.op != "upsert" or repairs)


@pytest.mark.parametrize(
    ("op", "how"),
    [
        *product(["digest", "compare", "present", "keys"], ["said", "size", "lost"]),
        ("upsert", "size"),
        ("upsert", "lost"),
    ],
)
async def test_a_pass_through_what_is_never_compared_in_time_ends_and_says_so(
    pair: Pair, op: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever step, also where all that leads there is answered in time each time."""
    monkeypatch.setattr(verifier, "_PAUSE", 0.02)
    pair.create("create table item (id int primary key)", "item")
    filled(pair, many=850)
    door = SlowDoor(pair.target.dsn, how)
    async with pair.relay(limits=Limits(changes=300), door=door, timing=AT_ONCE) as parts:
        await turned_until(parts, lambda: pair.rows("select count(*) from story")[1] == [(850,)])
        drifted(pair, *DRIFT)
        door.op = op
        ask(pair, repair=op == "upsert")
        ask(pair, "item")
        pair.write("insert into item values (1)")
        parts.relay.verifier.ring()
        await turned_until(parts, lambda: ended(parts, "public.story") and ended(parts, "public.item"), 40)
        await turned_until(parts, lambda: pair.rows("select count(*) from item")[1] == [(1,)])
        told = {line["table"]: (line["state"], line["reason"]) for line in parts.relay.verifier.report()}
        assert parts.relay._sizing.changes > 100, "changes go in batches as large as before"
    assert told["public.item"] == ("done", None)
    if op == "upsert":
        return  # what is written again has arrived, or waits as a change
    assert told["public.story"][0] == "failed"
    assert "explain analyze select t::text from public.story t limit 50" in str(told["public.story"][1])
    assert door.met <= 8


def ended(parts: Parts, table: str) -> bool:
    record = parts.relay.verifier.records.get(table)
    return record is not None and record.wish > 0 and record.state != "running"


@pytest.mark.parametrize("how", ["said", "size"])
async def test_changes_wait_behind_one_comparison_and_the_next_comes_after_a_pause_that_grows(
    pair: Pair, how: str
) -> None:
    pair.create("create table item (id int primary key)", "item")
    filled(pair, many=5000)
    door, clock = SlowDoor(pair.target.dsn, how), Clock()
    async with pair.relay(door=door, timing=AT_ONCE) as parts:
        await turned_until(parts, lambda: pair.rows("select count(*) from story")[1] == [(5000,)])
        relay = by_the_clock(parts, clock, rate=0)
        relay.lead()
        await relay.drain()
        door.op = "digest"
        ask(pair)
        clock.now += 2.0
        for number, pause in enumerate((1.0, 2.0, 4.0), 1):
            pair.write(f"insert into item values ({number})")
            await relay.drain()
            clock.now += pause - 0.1
            pair.write(f"insert into item values ({-number})")
            await relay.drain()
            assert pair.rows("select count(*) from item")[1] == [(2 * number,)]
            assert door.met == number, "and no second one in a row"
            clock.now += 0.2
        while (record := relay.verifier.records["public.story"]).state != "failed":
            await relay.drain()
            clock.now += 15.1
    assert door.met <= 8
    assert "public.story" in str(record.reason)


def test_a_mirror_that_is_slow_to_read_stops_neither_changes_nor_its_neighbours_comparison(tenants: Tenants) -> None:
    """Its owner has made the key's type one that takes 20 ms a value: 50 rows are more than the target's timeout."""
    tenants.both("create table slow (id int primary key, v int)", "slow")
    tenants.run()
    tenants.tenant.execute("insert into slow select n, n from generate_series(1, 400) n")
    wait_until(lambda: tenants.there("select count(*) from slow") == [(400,)])
    tenants.mirror.execute(
        "create function takes(n int) returns boolean language plpgsql as $$ begin perform pg_sleep(0.02); return true; end $$;"
        " create domain slowly as int; alter table slow alter id type slowly;"
        " alter domain slowly add check (takes(value)) not valid;"
        " alter function public.outboxd(text) set statement_timeout = '500ms'"
    )
    for table in ("public.slow", "public.item"):
        tenants.tenant.execute("select outbox.ask_verification(%s, false)", (table,))

    def record(table: str) -> tuple[object, ...]:
        found = tenants.there("select state, reason from outboxd.verification where table_name = %s", table)
        return found[0] if found else (None, None)

    wait_until(lambda: record("public.item")[0] == "done")
    tenants.flows()
    wait_until(lambda: record("public.slow")[0] == "failed", 60)
    tenants.flows()
    reason = str(record("public.slow")[1])
    assert (
        "50 rows of public.slow in time (57014): `explain analyze select t::text from public.slow t limit 50`" in reason
    )
    tenants.mirror.execute("select t::text from public.slow t limit 50")
