"""What the target takes too long for together, and not alone: less of it goes at once, and few timeouts are paid for that."""

from daemon.errors import Kind, Refusal, TargetError
from daemon.sizing import Portion
from tests.integration.test_dead_letters import ASKED, AT_ONCE
from tests.integration.test_out_emitted import on_target
from tests.integration.test_sizes import until_idle
from tests.pairs import Pair
from tests.security.relayed import turned_until
from tests.security.test_poison_letters import mode, states
from tests.security.test_poison_slow import SlowDoor


class FewAtOnce(SlowDoor):
    """Each change takes the target some time: more than so many of a table come up against its timeout."""

    most = 6

    async def send(self, document: bytes) -> str:
        if mode(document) in {"apply", "isolate"} and document.count(self.word) > self.most:
            self.ended.append(mode(document))
            raise TargetError(Kind.SIZE, "the target answered 57014", Refusal("57014"))
        return await self._door.send(document)


async def test_letters_of_a_table_that_was_out_go_in_portions_that_grow(pair: Pair) -> None:
    pair.write("select outbox.map('public.card', array['id'])")
    on_target(pair, "create table card (id int primary key, title text)", "select outboxd.map('card')")
    door = FewAtOnce(pair.target.dsn, b'"title"')
    async with pair.relay(door=door, timing=AT_ONCE) as parts:
        on_target(pair, "alter table card rename to away")
        for n in range(60):
            pair.write(f"""select outbox.emit('public.card', 'upsert', '{{"id": {n}, "title": "x"}}')""")
        await until_idle(parts)
        assert len(states(pair)) == 60
        on_target(pair, "alter table away rename to card")
        door.ended.clear()
        await turned_until(parts, lambda: not states(pair), 60)
        await turned_until(parts, lambda: not parts.relay.copier.out)
    assert len(door.ended) <= 3


async def test_a_copy_prunes_in_portions(pair: Pair) -> None:
    pair.create("create table note (id text primary key, body text)", "note")
    pair.write("insert into note values ('a', 'b')")
    await pair.drain()
    on_target(pair, "insert into note select 'too-much-' || n, 'extra' from generate_series(1, 40) n")
    door = FewAtOnce(pair.target.dsn, b"too-much-")
    async with pair.relay(door=door, timing=ASKED) as parts:
        pair.write("select outbox.ask_copy('note', true)")
        parts.relay.copier.ring()
        await until_idle(parts)
        assert not parts.relay.copier.asked
    pair.assert_equal("note")
    assert len(door.ended) < 10


def test_a_portion_grows_to_what_goes_and_remembers_what_does_not() -> None:
    portion, now, refused = Portion(1000), 0.0, 0
    for _ in range(40):
        if portion.now > 6:
            portion.refused(portion.now, now)
            refused += 1
        else:
            portion.arrived(now)
    assert (portion.now, refused) == (6, 2)
    for _ in range(10):
        portion.arrived(now + 10_000)
    assert portion.now == 1000
