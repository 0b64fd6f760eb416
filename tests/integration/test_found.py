"""Sequences that end wrong: what somebody found who set out to break it. Each says its smallest steps, what happened, and what is right."""

import asyncio
import time
from collections import Counter

import pytest
from structlog.testing import capture_logs

from daemon.errors import TargetError
from daemon.progress import Timing
from tests.integration.test_aim import on_source, on_target
from tests.integration.test_copy import filled
from tests.integration.test_letters_aim import EAGER, REFUSES, TAKES, none_is_left, rest, retried
from tests.integration.test_out_emitted import there
from tests.pairs import Pair


@pytest.mark.parametrize("asked", ["first copy", "backfill"])
@pytest.mark.parametrize("what", ["alter table story rename to tale", "drop table story"])
async def test_a_table_that_is_gone_before_it_is_copied(pair: Pair, what: str, asked: str) -> None:
    """Grave: stuck in a loop. A copy is wished for, and the table is renamed or dropped before it begins (or somebody asks for
    one just then). It is out; no copy can bring it, and it has no letters, so it is back; the wish is still there, so the copy
    begins, so it is out: 20 to 50 `table_out` lines and twice as many requests a second, without a pause and whatever `recheck`,
    until somebody unwatches it; the relay never sleeps, and `run --until-idle` does not end. Right: out once, looked at every
    15 s."""
    filled(pair)
    with capture_logs() as log:
        async with pair.relay(timing=Timing()) as parts:
            if asked == "backfill":
                await parts.relay.drain()
                on_source(pair, "select outbox.ask_copy('story')")
            pair.write(what)
            parts.relay.copier.ring()
            began = time.monotonic()
            try:
                async with asyncio.timeout(5):
                    await parts.relay.drain()
            except TimeoutError:
                pass
    times = Counter(entry["event"] for entry in log)
    assert times["table_out"] <= 2, f"{times} in {time.monotonic() - began:.1f} s"


LABEL, UUID = (
    "alter type kind rename value 'x' to 'z'",
    "alter table story alter column k type uuid using lpad(k::text, 32, '0')::uuid",
)
KEYS = {
    "a label renamed": (
        "create type kind as enum ('x', 'y'); create table story (k kind primary key, n int)",
        "x",
        LABEL,
    ),
    "integers made uuids": ("create table story (k int primary key, n int)", "1", UUID),
}


@pytest.mark.parametrize("change", ["select 1", "delete from story where n = 13"])
@pytest.mark.parametrize("way", list(KEYS))
async def test_a_held_key_that_is_no_value_of_its_type_any_more(pair: Pair, way: str, change: str) -> None:
    """Stuck. A row waits as a letter; on both sides its key becomes another type, or the label of its enum another name. The rows end
    equal, but the copy puts the held key, which is no value by now, among those that may be too much: its delete is refused
    (22P02), and becomes a letter with an id below 0, which no since_id ends and no retry delivers. `status` says "1 row held"
    until somebody discards it. Right: such a key means no row, and is released by the copy."""
    ddl, key, ddl_then = KEYS[way]
    pair.create(ddl, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write(f"insert into story values ('{key}', 1)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13")
        await rest(parts)
        pair.write(ddl_then)
        on_target(pair, ddl_then)
        await rest(parts)
        pair.write(change)
        on_source(pair, "select outbox.notice()")
        await rest(parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
        await retried(pair, parts)
    pair.assert_equal("story")
    none_is_left(pair)


async def test_a_held_key_that_is_no_value_fails_every_turn(pair: Pair) -> None:
    """Grave: stuck, for all. As before, with the row deleted between the two renames and the next look: the copy's step for rows that
    are too much sends the held key alone, the target refuses that batch (22P02), `isolate` blames no row, and the turn raises, each
    time: the copy never ends, no copy or comparison gets its turn behind it, and what others write moves one batch a failed turn, at the
    pace of retries (up to `retry_cap`). Right: that key is released; nothing fails."""
    ddl, key, ddl_then = KEYS["a label renamed"]
    pair.create(ddl, "story")
    pair.create("create table other (id int primary key)", "other")
    async with pair.relay(timing=EAGER) as parts:
        pair.write(f"insert into story values ('{key}', 1)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13")
        await rest(parts)
        pair.write(ddl_then)
        on_target(pair, ddl_then)
        pair.write("delete from story")
        failed = []
        for turn in range(12):
            parts.relay.copier.ring()
            parts.relay.copier.recheck()
            if turn == 6:
                pair.write("insert into other values (1)")
            try:
                await parts.relay.drain()
            except TargetError as exc:
                failed.append(str(exc))
    assert (there(pair, "select id from other"), failed) == ([(1,)], [])
