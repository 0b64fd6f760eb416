"""The process ends, or stands still, exactly at each edge of the relay's turn: nothing lost, nothing twice.

`OUTBOXD_FAILPOINT` names the place (daemon/failpoint.py). Every row of the load is written once on the source, so
the target, which counts, must have written every row exactly once, too.
"""

import signal
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from daemon.dead_letters import ask
from daemon.demo.child import Outboxd
from daemon.failpoint import VARIABLE
from tests.acceptance.conftest import Pair, Start, ended, measured, streaming, wait_until
from tests.acceptance.counting import count_writes, effects
from tests.acceptance.dripping import Drip

PASSINGS = (1, 2, 5)
PATIENCE = 90.0  # seconds: five processes start here, one after the other
_HANG_UP = (
    "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
    " and application_name like 'outboxd% bell %'"
)

_REFUSE = """alter table "Story" add constraint no_poison check ("title" <> 'poison')"""
_ACCEPT = """alter table "Story" drop constraint no_poison"""
_POISONED = """
select id from outbox.change where key::json ->> 'id' in (select "id"::text from "Story" where "title" = 'poison') order by id
"""
_POISONED_KEYS = """select "id"::text from "Story" where "title" = 'poison' order by 1"""
_HELD_KEYS = "select key::json ->> 'id' from outboxd.held order by 1"

# The transport makes a difference only to what is on its way.
REST = ["before_send", "after_send", "after_answer"]
DIRECT = ["after_claim", "after_arm", "after_read", "before_send", "after_answer"]


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Pair:
    """Two stores by one of both transports, the target counting what is written."""
    pair: Pair = request.getfixturevalue(request.param)
    return count_writes(pair)


def at(start: Start, pair: Pair, failpoint: str) -> Outboxd:
    """A daemon with small batches that meets its end there."""
    return start({**pair.settings, "batch_changes": "10"}, environment={VARIABLE: failpoint})


def hang_up_on(pair: Pair, outboxd: Outboxd) -> None:
    """Close the leader's connection whenever it moves, until the process ends: each time it claims the target again."""

    def hang_up() -> bool:
        if (outboxd.status() or {}).get("leads"):
            pair.ask(pair.source, _HANG_UP)
        return outboxd.returncode is not None

    wait_until(hang_up, PATIENCE)


def dies(outboxd: Outboxd) -> None:
    assert ended(outboxd, PATIENCE) == -signal.SIGKILL, outboxd.last_words()


def settled(pair: Pair, outboxd: Outboxd) -> None:
    """Everything arrives, row by row; no row was written twice."""
    pair.arrives(PATIENCE)
    recorded, written = effects(pair)
    assert len(recorded) > 10
    assert written == recorded
    assert outboxd.returncode is None


@pytest.mark.parametrize(
    ("counted", "point"),
    [*(("rest", point) for point in REST), *(("direct", point) for point in DIRECT)],
    indirect=["counted"],
)
def test_killed_at(counted: Pair, start: Start, point: str) -> None:
    """Killed at the first, the second and the fifth passing of this place, it goes on where the target stands."""
    with Drip(counted.source, pause=1.5 if point == "after_arm" else 0.02):
        for passing in PASSINGS:
            outboxd = at(start, counted, f"{point}:kill:{passing}")
            if point == "after_claim" and passing > 1:
                hang_up_on(counted, outboxd)
            dies(outboxd)
        last = streaming(start(counted.settings))
    settled(counted, last)


@pytest.mark.parametrize(
    ("counted", "point"),
    [("direct", "before_send"), ("rest", "after_send"), ("direct", "after_arm")],
    indirect=["counted"],
)
def test_frozen_at(counted: Pair, start: Start, point: str) -> None:
    """Frozen with its locks, it loses them to a second daemon; thawed, it writes nothing. Commits go on as ever."""
    leader = at(start, counted, f"{point}:freeze:3")
    with Drip(counted.source, pause=1.5 if point == "after_arm" else 0.02) as drip:
        wait_until(lambda: stopped(leader))
        before = len(drip.seconds)
        frozen = time.monotonic()
        second = start({**counted.settings, "batch_changes": "10"})
        wait_until(lambda: (second.status() or {}).get("leads"))
        assert time.monotonic() - frozen < 20  # 10 s without a ping, 1 s until it is tried again, and patience
        reached = counted.mirrored()
        wait_until(lambda: counted.mirrored() > reached)
        leader.send(signal.SIGCONT)
        # With a batch still to be sent it is fenced. Else whichever it notices first: its lock is gone, and it stands by,
        # or another has claimed the target.
        may_stand_by = point != "before_send"
        wait_until(
            lambda: (
                leader.returncode is not None or (may_stand_by and (leader.status() or {}).get("state") == "standby")
            )
        )
        if point != "after_arm" and leader.returncode is not None:
            assert leader.returncode == 75, leader.last_words()
            assert "claimed this relay" in leader.last_words()
        during = drip.seconds[before:]
    settled(counted, second)
    # Promise I7: one wait on a lock of the frozen process would have lasted for seconds.
    assert max(during) < 2.0
    assert statistics.median(during) < 0.05
    assert measured(second, "outboxd_leader") == 1


def stopped(outboxd: Outboxd) -> bool:
    assert outboxd.returncode is None, outboxd.last_words()
    return Path(f"/proc/{outboxd.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("point", ["before_hold", "after_hold"])
@pytest.mark.parametrize("counted", ["direct"], indirect=True)
def test_killed_while_holding(counted: Pair, start: Start, point: str) -> None:
    """Killed around the writing of a dead letter: every refused change is a letter once, every other row is there."""
    tell(counted, _REFUSE)
    with Drip(counted.source, poison=True):
        for passing in PASSINGS:
            dies(at(start, counted, f"{point}:kill:{passing}"))
        last = streaming(start(counted.settings))
    wait_until(lambda: not counted.waits(), PATIENCE)
    assert counted.ask(counted.source, "select id from outbox.held order by id") == counted.ask(
        counted.source, _POISONED
    )
    poisoned = counted.ask(counted.source, _POISONED_KEYS)
    assert len(poisoned) >= 3
    assert counted.ask(counted.target, _HELD_KEYS) == poisoned
    recorded, written = effects(counted)
    assert written == Counter({row: 1 for row in recorded if (row[1],) not in poisoned})
    # Nothing was skipped: with the constraint gone each letter arrives, and the key flows again.
    tell(counted, _ACCEPT)
    assert ask(counted.source.dsn, "retry", None, patience=PATIENCE).waiting == 0
    counted.arrives(PATIENCE)
    assert last.returncode is None


@pytest.mark.parametrize("point", ["before_release", "after_release"])
@pytest.mark.parametrize("counted", ["direct"], indirect=True)
def test_killed_while_releasing(counted: Pair, start: Start, point: str) -> None:
    """Killed when the target has a retried letter and the source has not removed it: it is not sent again."""
    tell(counted, _REFUSE)
    first = start(counted.settings)
    with Drip(counted.source, poison=True):
        wait_until(lambda: len(held(counted)) >= 10)
    wait_until(lambda: not counted.waits(), PATIENCE)
    first.stop()
    tell(counted, _ACCEPT)
    with Drip(counted.source):
        for passing in PASSINGS:
            outboxd = at(start, counted, f"{point}:kill:{passing}")
            ask_until_it_ends(counted, outboxd)
            dies(outboxd)
        last = streaming(start(counted.settings))
        assert ask(counted.source.dsn, "retry", None, patience=PATIENCE).waiting == 0
    counted.arrives(PATIENCE)
    assert held(counted) == counted.ask(counted.target, _HELD_KEYS) == []
    recorded, written = effects(counted)
    assert written == Counter(recorded.keys())  # the two changes of a held row arrive as one
    assert last.returncode is None


def tell(pair: Pair, statement: str) -> None:
    """The target's owner does something."""
    with pair.target.connect() as conn:
        conn.execute(statement.encode())


def held(pair: Pair) -> list[Any]:
    """Letters that were refused, by id."""
    return [
        letter
        for (letter,) in pair.ask(pair.source, "select id from outbox.held where sqlstate is not null order by id")
    ]


def ask_until_it_ends(pair: Pair, outboxd: Outboxd) -> None:
    """Ask for one letter after the other, each when the last is gone, until the process has ended."""

    def ended_or_asked() -> bool:
        wanted = pair.ask(pair.source, "select from outbox.held where wanted is not null limit 1")
        if outboxd.returncode is None and not wanted and (left := held(pair)):
            ask(pair.source.dsn, "retry", left[:1], patience=0)
        return outboxd.returncode is not None

    wait_until(ended_or_asked, PATIENCE)
