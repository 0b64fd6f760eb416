"""kill -9, as a machine that runs out of memory does it: nothing is lost, and nothing takes effect twice."""

import pytest

from daemon.demo.child import Outboxd
from daemon.demo.faults import Fault
from daemon.demo.supabase import EmbeddedSupabase
from daemon.demo.writer import Writer
from tests.acceptance.conftest import STORIES, Pair, Start, streaming, wait_until
from tests.acceptance.counting import count_writes, effects

KILLS = 3
PATIENCE = 90.0  # seconds: on a busy machine four starts leave a long way to catch up

_BATCH = "select coalesce(max(batch_no), 0) from outboxd.cursor"


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Pair:
    """Two stores, the target counting what is written."""
    pair: Pair = request.getfixturevalue(request.param)
    return count_writes(pair)


def batch_no(pair: Pair) -> int:
    ((number,),) = pair.ask(pair.target, _BATCH)
    return int(number)


def killed_at(pair: Pair, outboxd: Outboxd, batch: int) -> None:
    """kill -9 as soon as the target has that batch, or a later one."""

    def reached() -> bool:
        assert outboxd.returncode is None, outboxd.last_words()
        return batch_no(pair) >= batch

    wait_until(reached)
    outboxd.kill()


@pytest.mark.parametrize("counted", ["rest"], indirect=True)
def test_killed_again_and_again_under_load(counted: Pair, supabase: EmbeddedSupabase, start: Start) -> None:
    """Killed in the middle of requests while the application writes, outboxd ends with both stores equal."""
    writer = Writer(counted.source.dsn, per_second=150, seed=11)
    writer.start()
    try:
        for kill in range(KILLS):
            outboxd, before = start(counted.settings), batch_no(counted)
            # Every other time, what the target has committed is on its way back when the process dies.
            supabase.gateway.fault = Fault.delay(0.2, path="rpc/outboxd") if kill % 2 else None
            killed_at(counted, outboxd, before + 3)
        supabase.gateway.fault = None
        streaming(start(counted.settings))
    finally:
        writer.stop()
    assert writer.failure is None
    counted.arrives(PATIENCE)
    recorded, written = effects(counted)
    assert sum(recorded.values()) > 100
    assert not written - recorded  # a batch applied twice would have written its rows more often than they changed


@pytest.mark.parametrize("counted", ["direct"], indirect=True)
def test_killed_while_catching_up(counted: Pair, start: Start) -> None:
    """Killed three times on the way through a backlog in small batches, every row is written exactly once."""
    counted.write(STORIES, 2000)
    counted.write(STORIES, 1)
    settings = {**counted.settings, "batch_changes": "25"}
    for kill in range(3):
        killed_at(counted, start(settings), 10 * (kill + 1))
    reached = counted.mirrored()
    assert 0 < reached < 2001
    streaming(start(settings))
    counted.arrives(PATIENCE)
    recorded, written = effects(counted)
    assert len(recorded) == 2001
    assert written == recorded
