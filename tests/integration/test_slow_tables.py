"""A table whose rows are very large, or slow to read, is copied at its own pace; the others flow."""

from typing import Any

import pytest

from daemon import session
from daemon.batch import Limits
from tests.integration.test_dead_letters import AT_ONCE, held
from tests.integration.test_out_emitted import turned
from tests.integration.test_schema_drift import state
from tests.integration.test_verify import ask
from tests.pairs import Pair

LIMITS = Limits(changes=40, bytes=200_000, row_bytes=100_000)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A range that takes 0.2 s is cut."""
    cut = session._QUERIES["window_copy"].replace(b"'3s'", b"'200ms'")
    monkeypatch.setitem(session._QUERIES, "window_copy", cut)


async def test_rows_above_row_bytes_are_read_one_by_one_and_do_not_fill_the_outbox(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.create(
        "create table doc (id int primary key, body text)", on_target="create table doc (id int primary key, body text)"
    )
    pair.create("create table tale (id int primary key)", "tale")
    pair.write(
        "insert into doc select n, case when n % 5 > 0 then repeat('x', 150000) else 'small' end from generate_series(1, 20) n"
    )
    with pair.source.connect() as conn, pair.target.connect() as mirror:
        conn.execute("select outbox.watch('doc')")
        mirror.execute("select outboxd.map('doc')")
    async with pair.relay(limits=LIMITS, timing=AT_ONCE) as parts:
        read: list[int] = []
        real = parts.relay.copier._rows

        def noted(*arguments: Any) -> Any:
            batch = real(*arguments)
            read.append(batch.count if batch else 0)
            return batch

        monkeypatch.setattr(parts.relay.copier, "_rows", noted)
        pair.write("insert into tale values (1)")
        await turned(parts, lambda: len(held(pair)) == 16)
        assert max(read) <= 3
    pair.assert_equal("tale")
    there, here = pair.rows("select id from doc where body = 'small' order by 1")
    assert there == here
    with pair.source.connect() as conn:
        assert conn.execute("select max(octet_length(row)) < 1000 from outbox.change").fetchone() == (True,)
        assert conn.execute("select distinct op, sqlstate from outbox.held").fetchall() == [("too_large", "54000")]


@pytest.mark.usefixtures("impatient")
async def test_where_a_filter_is_slow_fewer_rows_are_read_at_once(pair: Pair) -> None:
    """Also when those are looked for that the target has too much."""
    pair.write(
        "create function slow(int) returns boolean language plpgsql immutable as 'begin perform pg_sleep(0.02); return true; end'"
    )
    ddl = "create table story (id int primary key)"
    pair.create(ddl, on_target=ddl)
    pair.create("create table tale (id int primary key)", "tale")
    pair.write("insert into story select generate_series(1, 40)")
    with pair.source.connect() as conn, pair.target.connect() as mirror:
        conn.execute("select outbox.watch('story', filter => 'public.slow(id)')")
        conn.execute("select outbox.ask_copy('story', true)")
        mirror.execute("select outboxd.map('story'); insert into story select generate_series(100, 140)")
    async with pair.relay(limits=LIMITS, timing=AT_ONCE) as parts:
        pair.write("insert into tale values (1)")
        await parts.relay.drain()
        pair.assert_equal("tale")
        assert parts.relay.copier.slow == {"public.story": 10}
        [told] = [one for one in parts.relay.copier.report() if one["table"] == "public.story"]
        assert (told["state"], told["slow"]) == ("copying", 10) or told["state"] == "wanted"
        assert told["reason"] == "slow: 10 rows at a time (large rows, or a slow filter)"
        await turned(parts, lambda: state(parts) == "done")
        assert parts.relay.copier.copies["public.story"].pruned == 41
        assert parts.relay.copier.slow == {}
        assert [one["reason"] for one in parts.relay.copier.report()] == [None] * len(parts.relay.copier.report())
    pair.assert_equal("story")


@pytest.mark.usefixtures("impatient")
async def test_a_comparison_that_takes_too_long_says_so_until_it_has_failed(pair: Pair) -> None:
    """And why, without the values of a row."""
    pair.write(
        "create function slow(int) returns boolean language plpgsql immutable as 'begin perform pg_sleep(0.02); return true; end'"
    )
    ddl = "create table story (id int primary key, title text)"
    pair.create(ddl, on_target=ddl)
    pair.write("insert into story select n, 'private' from generate_series(1, 40) n")
    with pair.source.connect() as conn, pair.target.connect() as mirror:
        conn.execute("select outbox.watch('story', filter => 'public.slow(id)')")
        mirror.execute("select outboxd.map('story')")
    async with pair.relay(limits=LIMITS, timing=AT_ONCE) as parts:
        await turned(parts, lambda: state(parts) == "done")
        said: list[tuple[str, str]] = []

        def failed() -> bool:
            [told] = parts.relay.verifier.report()
            said.append((told["state"], told["reason"]))
            return bool(told["state"] == "failed")

        ask(pair)
        parts.relay.verifier.ring()
        await turned(parts, failed)
    assert said[-1] == ("failed", "the source does not answer in time when its rows are compared")
    assert ("never", "slow: 40 rows at a time (large rows, or a slow filter)") in said
