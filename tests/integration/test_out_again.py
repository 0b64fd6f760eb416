"""Tables that go out again and again: never without a pause, and no other table waits for them."""

import asyncio
from collections import Counter
from collections.abc import MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from daemon.errors import TargetError
from daemon.progress import Timing
from daemon.target import Answer
from tests.integration.test_aim import on_source, on_target
from tests.integration.test_copy import filled
from tests.integration.test_dead_letters import letters
from tests.integration.test_letters_aim import EAGER, STORY, rest
from tests.integration.test_out_emitted import CARD, emit, out, there
from tests.integration.test_verify import ask
from tests.pairs import Pair, Parts

GONE = ["alter table story rename to tale", "drop table story"]


def times(log: list[MutableMapping[str, Any]], event: str = "table_out") -> int:
    return Counter(entry["event"] for entry in log)[event]


async def drained(parts: Parts) -> bool:
    """Does it come to rest? As `run --until-idle` waits for it."""
    parts.relay.copier.ring()
    try:
        async with asyncio.timeout(10):
            await parts.relay.finish()
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("asked", ["first copy", "backfill", "backfill and verify"])
@pytest.mark.parametrize("what", GONE)
async def test_a_table_that_is_gone_before_it_is_copied_is_out_once(pair: Pair, what: str, asked: str) -> None:
    """A copy of it is wanted, which nobody can bring. It stays out, and says why, until it is there again or given up."""
    filled(pair, many=5)
    with capture_logs() as log:
        async with pair.relay(timing=Timing()) as parts:
            if asked != "first copy":
                await parts.relay.drain()
                on_source(pair, "select outbox.ask_copy('story')")
            if asked == "backfill and verify":
                ask(pair)
            pair.write(what)
            assert await drained(parts), Counter(entry["event"] for entry in log)
            assert 1 <= times(log) <= 2
            assert times(log, "table_back") == 0
            (told,) = (one for one in parts.relay.copier.report() if one["table"] == "public.story")
            assert told["state"] == "out"
            assert "no such table any more" in told["reason"]
            assert "`outboxd unwatch public.story`" in told["reason"]


@pytest.mark.parametrize("end", ["given up", "there again"])
@pytest.mark.parametrize("what", GONE)
async def test_a_table_that_was_gone_when_it_was_to_be_copied_is_back(pair: Pair, what: str, end: str) -> None:
    filled(pair, many=5)
    async with pair.relay(timing=EAGER) as parts:
        pair.write(what)
        await rest(parts)
        assert out(parts) == ["public.story"]
        if end == "given up":
            on_source(pair, "select outbox.unwatch('public.story')")
        else:
            back = (
                "alter table tale rename to story"
                if "rename" in what
                else "create table story (id int primary key, n int)"
            )
            on_source(pair, back, "select outbox.watch('story')", "insert into story (id, n) values (7, 7)")
        await rest(parts)
        assert (parts.relay.copier.out, out(parts)) == (set(), [])
    if end == "there again":
        pair.assert_equal("story")


async def test_a_copy_that_is_refused_although_its_table_fits_waits_for_the_next_look(pair: Pair) -> None:
    """The filter cannot be computed for a row that was there before."""
    on_source(pair, STORY, "insert into story values (1, 0), (2, 1)")
    on_source(pair, "select outbox.watch('story', filter => $$10 / n > 0$$)")
    on_target(pair, STORY, "select outboxd.map('story')")
    with capture_logs() as log:
        async with pair.relay(timing=Timing()) as parts:
            assert await drained(parts)
            assert out(parts) == ["public.story"]
            for _ in range(3):
                parts.relay.copier.recheck()
                assert await drained(parts)
                assert parts.relay.copier.due_in() is None, "it begins at once, without end"
            pair.write("update story set n = 5 where id = 1")
            parts.relay.copier.recheck()
            assert await drained(parts)
    assert times(log) == 1
    assert there(pair, "select id, n from story order by 1") == [(1, 5), (2, 1)]


async def test_each_table_that_is_out_is_looked_at_in_its_own_time(pair: Pair) -> None:
    """One that goes out all the time must not put off the look at another."""
    pair.create("create table tale (id int primary key)", "tale")
    pair.create(STORY, "story")
    async with pair.relay(timing=Timing(recheck=0.5)) as parts:
        on_target(pair, "alter table story drop column n", "alter table tale rename column id to no")
        pair.write("insert into story values (1, 1)")
        await parts.relay.drain()
        assert out(parts) == ["public.story"]
        on_target(pair, "alter table story add column n int")
        async with asyncio.timeout(10):
            while "public.story" in parts.relay.copier.out:
                parts.relay.copier._put_out("public.tale", "again")
                parts.relay.copier.ring()
                await parts.relay.drain()
                await asyncio.sleep(0.05)


NOT_IN_A_TRIAL = """create function moody() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  context text;
begin
  get diagnostics context = pg_context;
  if context !~ 'isolate' then
    raise exception using errcode = '22023';
  end if;
  return null;
end $$;
create trigger moody after insert or update or delete on story for each statement execute function moody()"""


@pytest.mark.parametrize("kind", ["changes", "a copy", "emitted", "to halt"])
async def test_a_table_that_is_refused_and_no_row_of_it_alone_is_out(pair: Pair, kind: str) -> None:
    """The trial of single rows blames none, time and again. The others go on, and the table does once it can."""
    pair.create("create table tale (id int primary key)", "tale")
    pair.create(STORY, *([] if kind == "emitted" else ["story"]))
    if kind == "emitted":
        on_source(pair, "select outbox.map('public.story', array['id'])")
        on_target(pair, "select outboxd.map('story')")
    async with pair.relay(timing=Timing(poll=0.05, recheck=3600, letters=0.0)) as parts:
        await parts.relay.drain()
        on_target(pair, NOT_IN_A_TRIAL)
        if kind == "emitted":
            emit(pair, '{"id":1,"n":1}', table="public.story")
        elif kind in {"changes", "to halt"}:
            on_source(pair, f"select outbox.on_error('story', '{'halt' if kind == 'to halt' else 'hold'}')")
            pair.write("insert into story values (1, 1)")
        else:
            pair.write("set local session_replication_role = replica", "insert into story values (1, 1)")
            on_source(pair, "select outbox.ask_copy('story')")
        failed = 0
        for _ in range(5):
            parts.relay.copier.ring()
            try:
                await parts.relay.drain()
            except TargetError:
                failed += 1
        if kind == "to halt":
            assert (failed, out(parts)) == (5, [])
            return
        assert failed == 2
        assert out(parts) == ["public.story"]
        pair.write("insert into tale values (1)")
        await parts.relay.drain()
        assert there(pair, "select id from tale") == [(1,)]
        on_target(pair, "drop trigger moody on story")
        parts.relay._retries._tried.clear()
        await rest(parts)
        assert not out(parts)
    assert there(pair, "select id, n from story") == [(1, 1)]


EVERY_OTHER_TIME = """create sequence turns;
create function moody() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if nextval('public.turns') % 2 = 1 then
    raise exception using errcode = 'OB004';
  end if;
  return null;
end $$;
create trigger moody before insert on card for each statement execute function moody()"""


async def test_a_table_that_went_out_is_not_tried_again_before_its_time(pair: Pair) -> None:
    """Each change puts it out, and what waits arrives the next time: it does not go back and forth with every change."""
    on_source(pair, "select outbox.map('public.card', array['id'])")
    on_target(pair, CARD, EVERY_OTHER_TIME, "select outboxd.map('card')")
    with capture_logs() as log:
        async with pair.relay(timing=Timing(poll=0.05, recheck=3600, letters=0.0)) as parts:
            for n in range(5):
                emit(pair, f'{{"id":{n},"title":"a"}}')
                await parts.relay.drain()
            assert (times(log), times(log, "table_back")) == (2, 1)
            for _ in range(2):
                parts.relay._retries._tried.clear()
                await parts.relay.drain()
    assert there(pair) == [(n, "a") for n in range(5)]


async def test_a_truncate_among_what_waits_for_a_table_that_is_gone_stops_nobody(pair: Pair) -> None:
    """The target refuses it, for a table of its own refers to a row; then the table it is of is dropped."""
    pair.create("create table tale (id int primary key)", "tale")
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1)")
        await rest(parts)
        on_target(pair, "create table own (id int references story)", "insert into own values (1)")
        on_target(pair, "alter table story rename column n to m")
        pair.write("insert into story values (2, 2)")
        await rest(parts)
        assert out(parts) == ["public.story"]
        pair.write("truncate story")
        await rest(parts)
        pair.write("drop table story", "insert into tale values (1)")
        on_target(pair, "alter table story rename column m to n")
        await rest(parts)
        assert there(pair, "select id from tale") == [(1,)]
        assert out(parts) == ["public.story"]
        on_target(pair, "delete from own")
        await rest(parts)
        assert not out(parts)
    assert there(pair, "select * from story") == []


async def test_letters_that_are_wanted_while_their_table_is_out_are_not_tried_without_end(pair: Pair) -> None:
    """One is of a key that is held itself: it goes once the table is back, and asking for it tries the others no sooner."""
    on_source(pair, "select outbox.map('public.card', array['id'])")
    on_target(
        pair, CARD, "alter table card add constraint short check (length(title) < 3)", "select outboxd.map('card')"
    )
    async with pair.relay(timing=Timing(poll=0.05, recheck=3600, letters=0.0)) as parts:
        emit(pair, '{"id":1,"title":"long"}')
        await parts.relay.drain()
        on_target(pair, "alter table card rename column title to name")
        emit(pair, '{"id":2,"title":"b"}')
        await parts.relay.drain()
        assert (out(parts), len(letters(pair))) == (["public.card"], 2)
        sent: list[object] = []
        apply = parts.target.apply

        async def counted(*given: Any, **named: Any) -> Answer:
            sent.append(given)
            return await apply(*given, **named)

        parts.target.apply = counted  # type: ignore[method-assign]
        for wanted in ("retry", "discard"):
            on_source(pair, f"update outbox.held set wanted = '{wanted}' where key = '{{\"id\":1}}'")
            for _ in range(5):
                await parts.relay.drain()
    assert sent == []
