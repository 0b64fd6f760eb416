"""Three daemons, one relay: whoever leads is killed or stands still, another takes over in time, and the target, which
counts, has every row exactly once.
"""

import json
import signal
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from daemon.demo.child import Outboxd
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import Pair, Start, ended, wait_until
from tests.acceptance.counting import count_writes, effects
from tests.acceptance.dripping import Drip

PATIENCE = 60.0
AFTER_KILL, AFTER_FREEZE = 5.0, 15.0  # seconds until another has applied a batch

# Where the target stood, each time that it moved: in the order in which it did, because the cursor's row is locked.
_WITNESS = """
create table stood (n bigint generated always as identity, epoch bigint, batch_no bigint);
create function note_standing() returns trigger language plpgsql as $$
begin insert into public.stood (epoch, batch_no) values (new.epoch, new.batch_no); return null; end $$;
create trigger note_standing after update on outboxd.cursor for each row execute function note_standing();
"""
_STOOD = "select epoch, batch_no from stood order by n"
_NOW = "select epoch, batch_no from outboxd.cursor"


def standing(pair: Pair) -> tuple[int, int]:
    """Epoch and batch number of the target; zeros before the first claim."""
    return next(iter(pair.ask(pair.target, _NOW)), (0, 0))


def moves(pair: Pair, epoch: int) -> None:
    """Wait until somebody who claimed the target after this epoch has applied batches there."""
    claimed: list[int] = []

    def applied() -> bool:
        now, batch_no = standing(pair)
        if now > epoch and not claimed:
            claimed.append(batch_no)
        return now > epoch and batch_no > claimed[0]

    wait_until(applied, PATIENCE)


def leads(daemons: Iterable[Outboxd]) -> Outboxd:
    """Wait until one of them says that it leads."""
    return wait_until(lambda: next((one for one in daemons if (one.status() or {}).get("leads")), None), PATIENCE)  # type: ignore[return-value]


def stand_by(daemons: Iterable[Outboxd]) -> None:
    for one in daemons:
        wait_until(lambda one=one: (one.status() or {}).get("state") == "standby", PATIENCE)  # type: ignore[misc]


def handed_over(pair: Pair, leader: Outboxd, what: signal.Signals) -> float:
    """Do that to the leader; seconds until another has applied a batch."""
    epoch, _ = standing(pair)
    began = time.monotonic()
    leader.send(what)
    moves(pair, epoch)
    return time.monotonic() - began


def company(pair: Pair, leader: Outboxd, waiting: Sequence[Outboxd]) -> dict[str, Any]:
    """Wait until every one of them, and the command, name this leader and these who wait; the leader, as told."""

    def pids(told: dict[str, Any]) -> tuple[str, set[str]]:
        named = told.get("leader") or {}
        return named.get("who", "").rpartition(":")[2], {one["who"].rpartition(":")[2] for one in told["standbys"]}

    wanted = (str(leader.pid), {str(one.pid) for one in waiting})
    for one in (leader, *waiting):
        wait_until(lambda one=one: pids(one.status() or {"standbys": []}) == wanted, PATIENCE)  # type: ignore[misc]
    told = Cli(pair.settings)("status", "--json", admin_port=str(leader.port)).json()
    assert pids(told) == wanted
    return dict(told["leader"])


def test_three_daemons_killed_in_turn_under_load(direct: Pair, start: Start, folder: Path) -> None:
    """kill -9, SIGSTOP and kill -9 again, each of whoever leads: another has applied a batch within 5, 15 and 5 s. The
    frozen one changes nothing when it wakes up. `status` names who leads, since when, and who waits."""
    pair, settings = count_writes(direct), {**direct.settings, "batch_changes": "10"}
    with pair.target.connect() as conn:
        conn.execute(_WITNESS.encode())
    took = {}
    with Drip(pair.source):
        daemons = [start(settings) for _ in range(3)]
        first = leads(daemons)
        others = [one for one in daemons if one is not first]
        stand_by(others)
        began = company(pair, first, others)["since"]

        took["kill -9"] = handed_over(pair, first, signal.SIGKILL)
        second = leads(others)
        (third,) = [one for one in others if one is not second]
        named = company(pair, second, [third])
        assert named["since"] > began
        assert named["version"]

        took["SIGSTOP"] = handed_over(pair, second, signal.SIGSTOP)
        assert leads([third]) is third
        replaced = [start(settings)]
        epoch, batch_no = standing(pair)
        second.send(signal.SIGCONT)
        wakes_up_fenced(second)
        moves(pair, epoch - 1)
        if second.returncode is not None:  # systemd starts it again
            replaced.append(start(settings))
        else:
            replaced.append(second)
        stand_by(replaced)
        company(pair, third, replaced)
        assert standing(pair)[0] == epoch
        assert standing(pair)[1] > batch_no

        took["kill -9 again"] = handed_over(pair, third, signal.SIGKILL)
        last = leads(replaced)
    print("seconds until another had applied a batch:", json.dumps({how: round(s, 2) for how, s in took.items()}))
    pair.arrives(PATIENCE)
    recorded, written = effects(pair)
    assert written == recorded
    assert len(recorded) > 100
    stood = pair.ask(pair.target, _STOOD)
    # Nobody who was led out has moved the target again, and no batch moved it twice.
    assert stood == sorted(set(stood))
    assert all(later[1] - earlier[1] in {0, 1} for earlier, later in pairwise(stood))
    assert last.stop() == 0
    assert max(took["kill -9"], took["kill -9 again"]) < AFTER_KILL, took
    assert took["SIGSTOP"] < AFTER_FREEZE, took


def wakes_up_fenced(outboxd: Outboxd) -> None:
    """Its lock is gone, and another has claimed the target: it stands by, or ends with 75 and says why."""
    wait_until(lambda: outboxd.returncode is not None or (outboxd.status() or {}).get("state") == "standby", PATIENCE)
    if outboxd.returncode is not None:
        assert ended(outboxd) == 75, outboxd.last_words()
        assert "claimed this relay" in outboxd.last_words()
