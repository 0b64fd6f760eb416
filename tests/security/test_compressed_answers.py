"""A few bytes from the gateway that would become gigabytes: packed answers, and answers without an end."""

import gzip
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from daemon import exposed
from daemon.demo.child import Outboxd
from daemon.demo.supabase import EmbeddedSupabase
from daemon.exchange import UNPACKED, Unwanted, ask
from tests.acceptance.conftest import STORIES, Pair, Start, streaming, wait_until
from tests.hostile import Hostile, Says, hostile, reply

MEGA = 1024**2


def bomb() -> bytes:
    """A megabyte of gzip for a gigabyte of blanks, packed twice more: some hundred bytes."""
    packed = gzip.compress(b" " * MEGA) * 1024  # members follow each other
    return gzip.compress(gzip.compress(packed))


BOMB = bomb()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

# By name: what is said to each request, and what the daemon calls it.
ANSWERS: dict[str, tuple[Says, str]] = {
    "packed three times": (lambda _: [reply(BOMB, "Content-Encoding: gzip, gzip, gzip")], "is packed (gzip, gzip, gzip)"),
    "packed, said in three headers": (
        lambda _: [reply(BOMB, *["Content-Encoding: gzip"] * 3)], "is packed (gzip, gzip, gzip)",
    ),
    "packed some other way": (lambda _: [reply(BOMB, "Content-Encoding: deflate")], "is packed (deflate)"),
    "packed, with a word that paints": (lambda _: [reply(BOMB, "Content-Encoding: x\x9b31m")], r"is packed (x\x9b31m)"),
    "packed in the framing": (
        lambda _: [HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n"], "the connection failed before the answer",
    ),
    "a body without end": (
        lambda _: itertools.chain([HEAD + b"Transfer-Encoding: chunked\r\n\r\n"], itertools.repeat(b"10000\r\n" + b" " * 65536 + b"\r\n")),
        "does not end",
    ),
    "a body without a length": (lambda _: itertools.chain([HEAD + b"\r\n"], itertools.repeat(b" " * 65536)), "does not end"),
    "pieces of a byte": (
        lambda _: itertools.chain([HEAD + b"Transfer-Encoding: chunked\r\n\r\n"], itertools.repeat(b"1;" + b"x" * 4000 + b"\r\n \r\n")),
        "does not end",
    ),
    "a head without end": (lambda _: itertools.chain([HEAD], itertools.repeat(b"X-More: " + b"x" * 8000 + b"\r\n")), "before the answer"),
    "go on, go on": (lambda _: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 100), "does not end"),
}  # fmt: skip


@pytest.fixture
def between(supabase: EmbeddedSupabase) -> Iterator[Hostile]:
    with hostile(supabase.gateway.port) as here:
        yield here


def highest(outboxd: Outboxd) -> int:
    """Kilobytes of memory that it has had at once."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{outboxd.pid}/status").read_text())
    assert found
    return int(found[1])


def test_no_answer_costs_more_than_what_it_weighs(rest: Pair, between: Hostile, start: Start) -> None:
    """Each is refused by what it is, the process does not grow by it, and goes on once the gateway is itself again."""
    outboxd = streaming(start({**rest.settings, "supabase_url": between.url}))
    assert len(BOMB) < 20_000
    before = highest(outboxd)
    for says, word in ANSWERS.values():
        outboxd.said()
        between.say(says)
        rest.write(STORIES, 1)
        wait_until(lambda word=word: any(word in str(line.get("error")) for line in outboxd.said()))  # type: ignore[misc]
        between.say(None)
    rest.arrives()
    assert outboxd.returncode is None
    assert highest(outboxd) - before < 80 * 1024
    assert all(b"\r\naccept-encoding: identity\r\n" in head.lower() for head in between.heads)


@pytest.mark.parametrize("what", ["packed three times", "a body without end", "a body without a length"])
async def test_an_ordinary_client_is_as_careful(between: Hostile, what: str) -> None:
    """What `status` asks of a port that may be anybody's, and `schema apply` of the Data API."""
    between.say(ANSWERS[what][0])
    async with httpx.AsyncClient(trust_env=False) as client:
        request = client.build_request("GET", between.url, headers=UNPACKED)
        with pytest.raises(Unwanted, match=re.escape(ANSWERS[what][1])):
            await ask(client, request, MEGA)
    assert b"accept-encoding: identity" in between.heads[0].lower()


def test_a_table_is_not_shown_by_an_answer_that_is_packed(between: Hostile) -> None:
    """Refused before it is unpacked; both questions ask for none."""
    between.answer(BOMB, "Content-Encoding: gzip, gzip, gzip")
    table = exposed.Shown(("public", "story"), ("id",))
    found = exposed.wait_until_shown(between.url, "sb_secret_x", [table], user_agent="test", patience=0.0)
    assert [one.shown for one in found] == [False]
    assert b"accept-encoding: identity" in between.heads[0].lower()
