"""Letters that the target does not take when they are tried again, whatever it says: they stay, and the others flow."""

import json

import pytest

from daemon import dead_letters
from daemon.errors import Kind, Refusal, TargetError
from daemon.plan import SEPARATOR
from tests.integration.test_dead_letters import ASKED
from tests.integration.test_out_emitted import on_target
from tests.integration.test_sizes import until_idle
from tests.pairs import Pair
from tests.security.relayed import turned_until
from tests.security.test_poison_slow import SOON, SlowDoor


def mode(document: bytes) -> str:
    return str(json.loads(document.split(SEPARATOR, 1)[0])["mode"])


def states(pair: Pair) -> list[object]:
    with pair.source.connect() as conn:
        return [state for (state,) in conn.execute("select sqlstate from outbox.held order by id").fetchall()]


def wanted(pair: Pair) -> list[object]:
    with pair.source.connect() as conn:
        return conn.execute("select id from outbox.held where wanted is not null").fetchall()


def items(pair: Pair) -> int:
    ((many,),) = pair.rows("select count(*) from item")[1]
    return int(str(many))


@pytest.fixture
def cards(pair: Pair) -> Pair:
    """A table that the application emits, and one that is captured."""
    pair.create("create table item (id int primary key)", "item")
    pair.write("select outbox.map('public.card', array['id'])")
    on_target(pair, "create table card (id int primary key, title text, stars int)", "select outboxd.map('card')")
    return pair


TITLE = """select outbox.emit('public.card', 'upsert', '{"id": 1, "title": "slow"}')"""
STARS = """select outbox.emit('public.card', 'upsert', '{"id": 1, "stars": 3}')"""


async def test_a_slow_row_with_two_sets_of_columns_stays(cards: Pair) -> None:
    cards.write(TITLE)
    door = SlowDoor(cards.target.dsn)
    async with cards.relay(door=door, timing=SOON) as parts:
        await turned_until(parts, lambda: len(states(cards)) == 1)
        cards.write(STARS)
        await turned_until(parts, lambda: len(states(cards)) == 2)
        door.ended.clear()
        await turned_until(parts, lambda: len(door.ended) > 2)
        cards.write("insert into item values (1)")
        await turned_until(parts, lambda: items(cards) == 1, 10)
        assert sorted(map(str, states(cards))) == ["57014", "None"]
        door.word = b"no such row"
        await turned_until(parts, lambda: not states(cards))
    with cards.target.connect() as conn:
        assert conn.execute("select title, stars from card").fetchall() == [("slow", 3)]


async def test_a_slow_captured_row_that_came_again_before_a_column_did_stays(pair: Pair) -> None:
    """No letter of it is a whole row any more: the delete and the row decide."""
    pair.create("create table item (id int primary key)", "item")
    pair.create("create table note (id int primary key, body text)", "note")
    pair.write("insert into note values (1, 'slow')")
    door = SlowDoor(pair.target.dsn)
    async with pair.relay(door=door, timing=SOON) as parts:
        await turned_until(parts, lambda: len(states(pair)) == 1)
        on_target(pair, "alter table note add column x int")
        pair.write(
            "delete from note where id = 1",
            "insert into note values (1, 'slow')",
            "alter table note add column x int",
        )
        await turned_until(parts, lambda: len(states(pair)) == 3)
        door.ended.clear()
        await turned_until(parts, lambda: len(door.ended) > 2)
        pair.write("insert into item values (1)")
        await turned_until(parts, lambda: items(pair) == 1, 10)


class Gateway(SlowDoor):
    """Something in between that refuses a row for its size."""

    async def send(self, document: bytes) -> str:
        if mode(document) in {"apply", "isolate"} and self.word in document:
            self.ended.append(mode(document))
            raise TargetError(Kind.SIZE, "the target answered 413", Refusal(None, 413))
        return await self._door.send(document)


async def test_a_row_too_large_for_the_gateway_with_two_sets_of_columns_stays(cards: Pair) -> None:
    cards.write(TITLE)
    door = Gateway(cards.target.dsn)
    async with cards.relay(door=door, timing=ASKED) as parts:
        await until_idle(parts)
        cards.write(STARS)
        await until_idle(parts)
        assert len(states(cards)) == 2
        dead_letters.ask(cards.source.dsn, "retry", None, patience=0.0)
        assert await until_idle(parts) == 0
        assert wanted(cards) == []
        assert sorted(map(str, states(cards))) == ["54000", "None"]
        cards.write("insert into item values (1)")
        await until_idle(parts)
        assert items(cards) == 1


async def test_many_slow_letters_that_are_asked_for_are_tried_one_by_one_in_one_turn(cards: Pair) -> None:
    cards.write(TITLE, TITLE.replace("1", "2"))
    door = SlowDoor(cards.target.dsn)
    async with cards.relay(door=door, timing=ASKED) as parts:
        await until_idle(parts)
        parts.relay._delivery.slow.clear()  # as another process knows them
        dead_letters.ask(cards.source.dsn, "retry", None, patience=0.0)
        assert await until_idle(parts) == 0
    assert wanted(cards) == []
    assert states(cards) == ["57014", "57014"]


@pytest.mark.parametrize("kind", [Kind.THROTTLE, Kind.CONTRACT, Kind.AUTH])
async def test_whatever_letters_meet_the_next_turn_reads_on(cards: Pair, kind: Kind) -> None:
    """Nobody can say that the target is not away for all: the turn fails, and another one shows."""

    class Failing(SlowDoor):
        fails = False

        async def send(self, document: bytes) -> str:
            if self.fails and mode(document) == "apply" and self.word in document:
                self.ended.append(mode(document))
                raise TargetError(kind, "whatever it is")
            return await super().send(document)

    cards.write(TITLE)
    door = Failing(cards.target.dsn)
    async with cards.relay(door=door, timing=ASKED) as parts:
        await until_idle(parts)
        door.fails = True
        dead_letters.ask(cards.source.dsn, "retry", None, patience=0.0)
        await turned_until(parts, lambda: len(door.ended) > 2)
        cards.write("insert into item values (1)")
        await turned_until(parts, lambda: items(cards) == 1, 10)
