"""A letter whose tries are lost, again and again: it is tried less and less often, and other letters go on."""

import json

from daemon.errors import Kind, TargetError
from daemon.progress import Timing
from daemon.target import PostgresDoor
from tests.integration.test_verify_hostile import TIRELESS
from tests.pairs import Pair
from tests.security.relayed import turned_until

SOON = Timing(poll=0.02, recheck=0.2, retry_first=0.01, retry_cap=0.02, letters=0.0)


class Losing(PostgresDoor):
    """The direct door; requests that would write a row called bad are lost."""

    met = 0

    async def send(self, document: bytes) -> str:
        if b'"bad"' in document and json.loads(document.split(b"\x1e", 1)[0])["mode"] == "apply":
            self.met += 1
            raise TargetError(Kind.AMBIGUOUS, "no answer in time")
        return await super().send(document)


async def test_letters_that_are_lost_again_and_again_back_off_and_others_go_on(pair: Pair) -> None:
    pair.create(
        "create table note (id int primary key, body text)", "note",
        on_target="create table note (id int primary key, body text check (body not in ('bad', 'well')))",
    )  # fmt: skip
    pair.write("insert into note values (1, 'bad'), (2, 'well'), (3, 'well')")
    await pair.drain()
    door = Losing(pair.target.dsn)
    async with pair.relay(door=door, timing=SOON, thresholds=TIRELESS) as parts:
        with pair.target.connect() as conn:
            conn.execute("alter table note drop constraint note_body_check")
        with pair.source.connect() as conn:
            conn.execute("update outbox.held set wanted = 'retry'")
        await turned_until(parts, lambda: pair.rows("select id from note order by 1")[1] == [(2,), (3,)])
        turns, met = parts.relay.turns, door.met
        await turned_until(parts, lambda: parts.relay.turns > turns + 60)
        assert door.met - met < 12, "each second turn would be thirty"
        assert parts.relay._retries._stumbles._pause >= 0.4
        pair.write("insert into note values (4, 'new')")
        await turned_until(parts, lambda: pair.rows("select id from note order by 1")[1] == [(2,), (3,), (4,)])
