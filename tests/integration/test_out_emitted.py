"""Tables that no copy can bring back (emitted by the application, or no longer watched): their changes wait while the
target cannot take them, and flow by themselves once it can."""

from typing import Any

import pytest

from daemon.errors import TargetError
from daemon.progress import Timing
from tests.integration.test_dead_letters import AT_ONCE, asked, held
from tests.pairs import Pair, Parts
from tests.waiting import wait_until_async

TRIED = Timing(poll=0.05, recheck=0.0, retry_first=0.01, retry_cap=0.05, letters=0.0)
CARD = "create table card (id int primary key, title text)"


@pytest.fixture
def cards(pair: Pair) -> Pair:
    """`card` is on neither side: mapped on the source alone. `tale` flows beside it."""
    pair.create("create table tale (id int primary key)", "tale")
    pair.write("select outbox.map('public.card', array['id'])")
    return pair


def emit(pair: Pair, *rows: str, table: str = "public.card", op: str = "upsert") -> None:
    """Each in a transaction of its own."""
    for row in rows:
        pair.write(f"select outbox.emit('{table}', '{op}', '{row}')")


def there(pair: Pair, query: str = "select id, title from card order by 1") -> list[Any]:
    with pair.target.connect() as conn:
        return conn.execute(query.encode()).fetchall()


def on_target(pair: Pair, *statements: str) -> None:
    with pair.target.connect() as conn:
        for statement in statements:
            conn.execute(statement.encode())


def letters(pair: Pair) -> list[Any]:
    with pair.source.connect() as conn:
        return conn.execute("select key, sqlstate from outbox.held order by id").fetchall()


def out(parts: Parts) -> list[str]:
    return [copy["table"] for copy in parts.relay.copier.report() if copy["state"] == "out"]


async def turned(parts: Parts, until: Any) -> None:
    async def true() -> bool:
        await parts.relay.drain()
        return bool(until())

    await wait_until_async(true)


async def test_what_was_emitted_before_the_target_had_the_table_arrives(cards: Pair) -> None:
    """In order, with what is emitted meanwhile; the others flow; meanwhile the table counts as out."""
    async with cards.relay(timing=TRIED) as parts:
        emit(cards, '{"id":1,"title":"a"}', '{"id":2,"title":"b"}')
        cards.write("insert into tale values (1)")
        await parts.relay.drain()
        assert there(cards, "select id from tale") == [(1,)]
        assert out(parts) == ["public.card"]
        emit(cards, '{"id":1,"title":"c"}')
        emit(cards, '{"id":2}', op="delete")
        await parts.relay.drain()
        assert len(letters(cards)) == 4
        on_target(cards, CARD, "select outboxd.map('card')")
        await turned(parts, lambda: not out(parts))
        assert there(cards) == [(1, "c")]
        assert letters(cards) == []
        emit(cards, '{"id":3,"title":"flows"}')
        await parts.relay.drain()
        assert there(cards) == [(1, "c"), (3, "flows")]
    assert there(cards, "select state from outboxd.copy where table_name = 'public.card'") == [("done",)]


MISFITS = {
    "a column that the target lacks": ("alter table card drop column title", "alter table card add column title text"),
    "a right": ("revoke insert, update on card from current_user", "grant insert, update on card to current_user"),
    "the map": ("select outboxd.unmap('public.card')", "select outboxd.map('card')"),
}


@pytest.mark.parametrize("what", list(MISFITS))
@pytest.mark.parametrize("restarted", [False, True])
async def test_while_something_is_missing_its_changes_wait(cards: Pair, what: str, restarted: bool) -> None:
    """Also where another process comes in between."""
    breaks, mends = MISFITS[what]
    on_target(cards, CARD, "select outboxd.map('card')")
    emit(cards, '{"id":1,"title":"before"}')
    await cards.drain()
    on_target(cards, breaks)
    emit(cards, '{"id":1,"title":"meanwhile"}', '{"id":2,"title":"meanwhile"}')
    await cards.drain(timing=TRIED)
    if restarted:
        await cards.drain(timing=TRIED)
    on_target(cards, mends)
    async with cards.relay(timing=TRIED) as parts:
        await turned(parts, lambda: parts.relay.stated and not out(parts))
    assert there(cards) == [(1, "meanwhile"), (2, "meanwhile")]
    assert letters(cards) == []


async def test_a_table_no_longer_watched_keeps_what_had_happened_before(pair: Pair) -> None:
    pair.write(CARD, "select outbox.watch('card')", "insert into card values (1, 'a')")
    pair.write("update card set title = 'b'", "insert into card values (2, 'x')", "select outbox.unwatch('card')")
    async with pair.relay(timing=TRIED) as parts:
        await parts.relay.drain()
        assert out(parts) == ["public.card"]
        on_target(pair, CARD, "select outboxd.map('card')")
        await turned(parts, lambda: not out(parts))
    pair.assert_equal("card")


async def test_where_it_is_to_halt_the_relay_halts_and_goes_on_by_itself(cards: Pair) -> None:
    cards.write("select outbox.on_error('public.card', 'halt')")
    emit(cards, '{"id":1,"title":"a"}')
    cards.write("insert into tale values (1)")
    async with cards.relay(timing=TRIED) as parts:
        for _ in range(2):
            with pytest.raises(TargetError, match="refused"):
                await parts.relay.step()
        assert (letters(cards), there(cards, "select id from tale")) == ([], [])
        on_target(cards, CARD, "select outboxd.map('card')")
        await parts.relay.drain()
    assert there(cards) == [(1, "a")]


async def test_a_refused_value_among_what_waited_is_held_by_its_key(cards: Pair) -> None:
    """The others of the table flow, and so does what comes later of them."""
    async with cards.relay(timing=TRIED) as parts:
        emit(cards, '{"id":1,"title":"too long"}', '{"id":2,"title":"b"}', '{"id":1,"title":"long too"}')
        await parts.relay.drain()
        on_target(cards, "create table card (id int primary key, title varchar(3))", "select outboxd.map('card')")
        await turned(parts, lambda: not out(parts))
        assert there(cards) == [(2, "b")]
        assert [key for key, _ in letters(cards)] == ['{"id":1}'] * 2
        emit(cards, '{"id":1,"title":"ok"}', '{"id":2,"title":"c"}')
        await parts.relay.drain()
        assert there(cards) == [(2, "c")]
        assert len(letters(cards)) == 3
        await asked(cards, parts, "retry")
    assert there(cards) == [(1, "ok"), (2, "c")]


async def test_letters_of_a_table_that_is_out_can_be_asked_for_and_dropped(cards: Pair) -> None:
    """Nothing that waits is lost by asking; what is dropped stays away, and nothing else does."""
    async with cards.relay(timing=Timing(poll=0.05, recheck=3600, letters=0.0)) as parts:
        emit(cards, '{"id":1,"title":"a"}', '{"id":2,"title":"b"}')
        await parts.relay.drain()
        outcome = await asked(cards, parts, "retry")
        assert (outcome.done, outcome.waiting, len(outcome.refused)) == (0, 0, 2)
        assert len(letters(cards)) == 2
        assert (await asked(cards, parts, "discard")).done == 2
        emit(cards, '{"id":3,"title":"c"}')
        on_target(cards, CARD, "select outboxd.map('card')")
        await parts.relay.drain()
        await asked(cards, parts, "retry")
        await turned(parts, lambda: there(cards))
    assert there(cards) == [(3, "c")]


async def test_captured_from_now_on_it_is_copied_and_what_waited_is_forgotten(cards: Pair) -> None:
    async with cards.relay(timing=TRIED) as parts:
        emit(cards, '{"id":1,"title":"emitted"}')
        await parts.relay.drain()
        cards.write(CARD, "insert into card values (7, 'there')", "select outbox.watch('card')")
        on_target(cards, CARD, "select outboxd.map('card')")
        parts.relay.copier.ring()
        await turned(parts, lambda: there(cards) and not out(parts) and not letters(cards))
    cards.assert_equal("card")


async def test_two_new_tables_that_the_target_lacks_are_both_told_to_be_out(pair: Pair) -> None:
    """On a source where nothing happens: what is told of the first comes with rows of the second, which are refused."""
    for table in ("a", "b"):
        pair.write(
            f"create table {table} (id int primary key)",
            f"insert into {table} values (1)",
            f"select outbox.watch('{table}')",
        )
    async with pair.relay() as parts:
        turns = 0
        while await parts.relay.step():
            turns += 1
            assert turns < 20
        assert out(parts) == ["public.a", "public.b"]
    assert there(pair, "select state from outboxd.copy") == [("out",)] * 2


async def rested(parts: Parts) -> None:
    """Both sides have been looked at, and there is nothing to do."""
    for _ in range(4):
        parts.relay.copier.recheck()
        await parts.relay.drain()


@pytest.mark.parametrize("way", ["unwatch('story')", "watch('story', capture => false)"])
@pytest.mark.parametrize("again", [False, True], ids=["one daemon", "another daemon"])
async def test_what_was_skipped_of_a_table_that_is_captured_no_more(pair: Pair, way: str, again: bool) -> None:
    """A copy was to bring it, and now none will: it arrives as letters, and nothing older of its rows."""
    pair.create("create table story (id int primary key, n int)", "story")
    async with pair.relay(timing=AT_ONCE) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rested(parts)
        on_target(pair, "alter table story rename column n to m")
        pair.write("insert into story values (3, 3)", "delete from story where id = 1")
        await rested(parts)
        pair.write(f"select outbox.{way}")
        await rested(parts)
        if not again:
            on_target(pair, "alter table story rename column m to n")
            await rested(parts)
    if again:
        on_target(pair, "alter table story rename column m to n")
        async with pair.relay(timing=AT_ONCE) as parts:
            await rested(parts)
    assert there(pair, "select * from story order by id") == [(2, 2), (3, 3)]
    assert held(pair) == []
