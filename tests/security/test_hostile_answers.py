"""A wrong target, or a gateway that answers in its place: nothing that it says stays, and nothing ends the process."""

import asyncio
import contextlib
import copy
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from daemon import answers, copies, hold, verification
from daemon.breaker import Breaker, BreakerOpen, Thresholds
from daemon.copies import misfit
from daemon.demo.child import Outboxd
from daemon.demo.supabase import EmbeddedSupabase
from daemon.errors import DaemonError
from daemon.plan import SEPARATOR, table_order
from daemon.relay import Relay
from daemon.rest import RestDoor
from daemon.snapshot import Snapshot
from daemon.source import Source
from daemon.spelling import types_of
from daemon.target import Target
from daemon.wakeup import Bell
from daemon.watchlist import unspoken
from outbox import Cursor
from tests.acceptance.conftest import STORIES, Pair, Start, streaming, wait_until
from tests.hostile import Hostile, hostile, reply
from tests.silent import Silent

LAST = 2**63 - 1

_NONSENSE: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, 1.0, 2**31 + 7, LAST, LAST + 1, 10**400, "", "x", "\0", "\ud800", "a\x1b[31m\n", "1", "out",
    "copying", "3:2:", "{", '{"id":{}}', [], [[]], [None], ["x", "y"], [1, 2], {}, {"": None}, {"sqlstate": {}},
]  # fmt: skip
_RAW = ["NaN", "Infinity", "-1e999", "[" * 3000 + "]" * 3000, '"\\ud800"', '"\\u0000"', "01", ""]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value in an answer."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield from _places(one, (*path, name))


def spoilt(text: str, chance: Random) -> str:
    """A real answer in which something is of another type, out of range, missing, twice, or cut off."""
    how = chance.choice(["value", "value", "value", "raw", "gone", "twice", "cut", "garbage"])
    at = chance.randrange(len(text))
    if how == "cut":
        return text[:at]
    if how == "garbage":
        return text[:at] + chance.choice(['"', ",", "}", "\\", "\x1b", "{", "1"]) + text[at:]
    answer = json.loads(text)
    *above, last = chance.choice(list(_places(answer))[1:])
    place = answer
    for name in above:
        place = place[name]
    if how == "gone":
        del place[last]
    elif how == "twice" and isinstance(place, dict):
        place["twice"] = chance.choice(_NONSENSE[:12])
        return json.dumps(answer).replace('"twice"', json.dumps(last))
    elif how == "raw":
        place[last] = "the place"
        return json.dumps(answer).replace('"the place"', chance.choice(_RAW), 1)
    else:
        place[last] = copy.deepcopy(chance.choice(_NONSENSE))
    return json.dumps(answer)


class Spoiling:
    """The real door; what it answers may be spoiled on the way."""

    def __init__(self, door: RestDoor) -> None:
        self._door = door
        self.real: dict[str, tuple[dict[str, Any], str]] = {}
        self.spoil: Any = None

    async def send(self, document: bytes) -> str:
        header = json.loads(document.split(SEPARATOR, 1)[0])
        text, mode = await self._door.send(document), header["mode"]
        answer = json.loads(text)
        self.real[f"{mode} {answer['answer']} {'compared' in answer.get('more', {})}"] = header, text
        return str(self.spoil(mode, text)) if self.spoil else text

    async def close(self) -> None:
        await self._door.close()


def unread(pair: Pair) -> tuple[Any, ...]:
    """What the source keeps of the target."""
    ((epoch, batch_no),) = pair.ask(pair.source, "select max(epoch), max(batch_no) from outbox.relay") or [(0, 0)]
    return epoch or 0, batch_no or 0


@contextlib.contextmanager
def related(pair: Pair, supabase: EmbeddedSupabase) -> Iterator[tuple[asyncio.Runner, Relay, Spoiling]]:
    """A relay of this process through the Data API, and its door."""
    with asyncio.Runner() as runner:

        async def build() -> tuple[Relay, Spoiling, Source]:
            door = Spoiling(RestDoor(supabase.url, supabase.secret_key))
            breaker = Breaker("target", Thresholds(consecutive_failures=10**6, minimum_calls=10**6))
            source = Source(pair.source.dsn)
            return Relay(source, Target(door, "main", breaker), Bell(pair.source.dsn), Silent()), door, source

        relay, door, source = runner.run(build())
        try:
            yield runner, relay, door
        finally:
            runner.run(door.close())
            runner.run(source.close())


async def turns(relay: Relay, most: int) -> None:
    """So many turns, whatever the target is said to have said."""
    for _ in range(most):
        with contextlib.suppress(DaemonError, BreakerOpen):
            if not await relay.step():
                return


def everything(rest: Pair, runner: asyncio.Runner, relay: Relay) -> None:
    """So that every kind of question is asked: rows, one that is refused, a copy, a comparison."""
    with rest.target.connect() as conn:
        conn.execute("""alter table "Story" add constraint no_poison check (title <> 'poison') not valid""")
    rest.write(STORIES, 3)
    runner.run(turns(relay, 20))
    rest.write("""insert into "Story" ("id", "title", "updatedAt") values (gen_random_uuid(), 'poison', now())""")
    rest.ask(
        rest.source, """select outbox.ask_copy('public."Story"'), outbox.ask_verification('public."Story"', false)"""
    )
    runner.run(turns(relay, 40))


ROWS = [("upsert", 9), ("digest", 9), ("truncate", 1)]


def taken(mode: str, given_: dict[str, Any]) -> None:
    """What the daemon does with an answer that it believes."""
    more = given_["more"]
    if given_["cursor"]:
        str(Snapshot.parse(Cursor.from_json(json.dumps(given_["cursor"])).snapshot))
    if "tables" in more:
        table_order(
            [one["table"] for one in more["tables"]], [(one["child"], one["parent"]) for one in more["references"]]
        )
        types_of(more)
        for one in more["tables"]:
            misfit(one["table"], more, ["id"], ["id"])
            unspoken({}, one)
    for copied in copies.known(more.get("copies", ())).values():
        copies.begun_by(copied, copies.Wish(copied.table, 3, 0, 0, 1))
        copies.note(copied, begins=False)
    for record, _ in verification.known(more.get("verifications", ())).values():
        verification.shown(record.table, record)
        verification.note(record)
    for _, key in more.get("held", ()):
        hold.names(key)
    json.dumps(given_).encode()


def test_what_is_spoilt_is_refused_or_harmless(rest: Pair, supabase: EmbeddedSupabase) -> None:
    """Real answers to every kind of question: whatever is done to one, it is refused as a whole, or can be worked with."""
    with related(rest, supabase) as (runner, relay, door):
        everything(rest, runner, relay)

        def all_asked() -> bool:
            runner.run(turns(relay, 5))
            return any(name.startswith("extra") for name in door.real)

        wait_until(all_asked)
        real = dict(door.real)
    assert {name.split()[0] for name in real} >= {"cursor", "claim", "describe", "apply", "isolate", "extra"}
    for header, text in real.values():
        taken(header["mode"], answers.read(text, header, groups=lambda: ROWS))
    refused = 0

    @settings(max_examples=1500, deadline=None, database=None, phases=[Phase.generate], derandomize=True)
    @given(st.sampled_from(sorted(real)), st.integers(0, 2**32).map(Random))
    def spoiled(which: str, chance: Random) -> None:
        nonlocal refused
        header, text = real[which]
        try:
            taken(header["mode"], answers.read(spoilt(text, chance), header, groups=lambda: ROWS))
        except answers.Unfit as exc:
            refused += str(exc).isprintable()

    spoiled()
    assert refused > 700


def test_no_spoilt_answer_ends_the_relay_or_stays(rest: Pair, supabase: EmbeddedSupabase) -> None:
    """The source remembers nothing of it, and with the true answers everything arrives."""
    with related(rest, supabase) as (runner, relay, door):
        everything(rest, runner, relay)
        for number, chosen in enumerate(["cursor", "claim", "describe", "apply"] * 4):
            chance = Random(number)
            door.spoil = lambda mode, text, one=chosen, chance=chance: spoilt(text, chance) if mode == one else text
            relay._claimed = relay._claimed and chosen != "claim"
            rest.write(STORIES, 1)
            runner.run(relay._forget() if chosen == "cursor" else turns(relay, 0))
            runner.run(turns(relay, 3))
            door.spoil = None
            ((epoch, batch_no),) = rest.ask(rest.target, "select epoch, batch_no from outboxd.cursor")
            noted = unread(rest)
            assert noted[0] <= epoch
            assert noted[1] <= batch_no
            runner.run(turns(relay, 30))
    ((there,),) = rest.ask(rest.target, 'select count(*) from "Story"')
    assert there == 3 + 16


CLAIMED = {"answer": "claimed", "epoch": LAST, "more": {"tables": [], "references": []}}

# By name: what is said to the first question, and to whoever claims.
LIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the last epoch there is": ({"answer": "cursor", "more": {}}, CLAIMED),
    "a batch out of reach": ({"answer": "cursor", "batch_no": LAST, "epoch": 1, "more": {}}, CLAIMED | {"epoch": 1}),
    "a claim at a batch out of reach": (
        {"answer": "cursor", "more": {}},
        CLAIMED | {"epoch": 1, "batch_no": LAST, "digest": "x", "cursor": {"snapshot": "3:3:", "floor_id": 0}},
    ),
    "held is a string": ({"answer": "cursor", "more": {"held": "x"}}, CLAIMED),
    "a held key is a number": ({"answer": "cursor", "more": {"held": [["public.x", 1]]}}, CLAIMED),
    "a lone surrogate": ({"answer": "cursor", "more": {"held": [["public.x", "\ud800"]]}}, CLAIMED),
    "a copy's counts are texts": (
        {"answer": "cursor", "more": {"copies": [{"table": "public.x", "state": "out", "step": "rows", "wish": "many"}]}}, CLAIMED,
    ),
    "a refusal's code is an object": ({"answer": "refused", "more": {"sqlstate": {"a": "zqcanaryqz"}}}, CLAIMED),
    "a depth without end": ({"answer": "cursor", "more": {"held": "DEEP"}}, CLAIMED),
}  # fmt: skip


@pytest.fixture
def between(supabase: EmbeddedSupabase) -> Iterator[Hostile]:
    with hostile(supabase.gateway.port) as here:
        yield here


def test_what_a_wrong_target_says_of_itself_is_not_believed(rest: Pair, between: Hostile, start: Start) -> None:
    """The process lives, says what is the matter in one sentence, remembers nothing of it, and goes on with the true one."""
    outboxd = start({**rest.settings, "supabase_url": between.url})
    for first, second in LIES.values():
        streaming(outboxd)
        outboxd.said()

        def says(body: bytes, first: Any = first, second: Any = second) -> Iterable[bytes]:
            said = json.dumps(second if b'"mode":"claim"' in body else first)
            return [reply(said.replace('"DEEP"', "[" * 100_000 + "]" * 100_000).encode())]

        between.say(says)
        rest.write(STORIES, 1)
        wait_until(lambda: any("is not one of outboxd's" in str(line.get("error")) for line in outboxd.said()))
        between.say(None)
    rest.arrives()
    assert outboxd.returncode is None
    ((epoch,),) = rest.ask(rest.target, "select epoch from outboxd.cursor")
    assert unread(rest)[0] == epoch < 100


@pytest.mark.parametrize("lie", ["the last epoch there is", "a batch out of reach", "a claim at a batch out of reach"])
def test_a_lie_at_the_first_meeting_is_no_memory(rest: Pair, between: Hostile, start: Start, lie: str) -> None:
    """The source's first note of its target is the true one's."""
    first, second = LIES[lie]
    between.say(lambda body: [reply(json.dumps(second if b'"mode":"claim"' in body else first).encode())])
    outboxd = start({**rest.settings, "supabase_url": between.url})
    wait_until(lambda: any("is not one of outboxd's" in str(line.get("error")) for line in outboxd.said()))
    assert unread(rest) == (0, 0)
    between.say(None)
    streaming(outboxd)
    assert unread(rest)[0] == 1


def test_the_source_takes_no_epoch_out_of_reach(source: Any) -> None:
    """Whoever may call outbox.confirm cannot leave the target without numbers."""
    with source.connect() as conn:
        conn.execute("select outbox.confirm('main', 7, 1, '3:3:', null)")
        for told in (
            "'main', 9223372036854775807, 1, '3:3:'",
            "'other', 2147483649, 1, '3:3:'",
            "'main', 8, 1, 'nonsense'",
        ):
            with pytest.raises(Exception, match=r"out of reach|invalid input syntax"):
                conn.execute(f"select outbox.confirm({told}, null)")
        assert conn.execute("select relay, epoch from outbox.relay").fetchall() == [("main", 7)]


def test_whatever_ends_the_process_is_one_line(rest: Pair, folder: Path) -> None:
    """A bug that stumbles on a value: kind and place go to the log, with the exit code; the value and its escapes do not."""
    environment = Outboxd(folder, rest.settings).environment
    ended = subprocess.run(
        [sys.executable, "-c", BUG],
        env=environment,
        cwd=Path.cwd(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == ""
    assert "zqcanaryqz" not in ended.stdout
    last = json.loads(ended.stdout.splitlines()[-1])
    assert (last["event"], last["error"], last["exit_code"]) == ("failed_by_a_bug", "ValueError", 1)
    assert any(frame.endswith("step") for one in last["exception"] for frame in one["frames"])


BUG = """
from daemon import cli, relay

async def step(self, *_):
    return int("\\x1b]0;zqcanaryqz\\x07")

relay.Relay.step = step
cli.main(["run"])
"""
