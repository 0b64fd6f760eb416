"""What the daemon says of itself follows from what the relay did."""

from daemon.batch import Batch
from daemon.metrics import Metrics
from daemon.plan import plan
from daemon.report import Observed, heartbeat
from daemon.sheaf import Change, bind
from daemon.target import Answer, Standing
from outbox import Cursor

READ_US = 1_000_000_000


def applied(metrics: Metrics, *, more: bool) -> None:
    """A batch of two changes, 3 s and 1 s old when it was read, is on the target 0.5 s later."""
    ages = (3_000_000, 1_000_000)
    sheaves = bind(
        Change(10 + n, n, "public.t", "upsert", 1, f'{{"id":{n}}}', "{}", 2, unflushed=False, created_us=READ_US - age)
        for n, age in enumerate(ages, 1)
    )
    batch = Batch(sheaves, Cursor("20:20:"), {1: ("id",)}, 0, more, READ_US)
    answer = Answer("applied", Standing(1, 1, batch.cursor))
    Observed(metrics).batch_applied(batch, plan(sheaves, {"public.t": 0}, batch.shapes), answer, 0.5)


def test_a_batch_that_reached_the_end_leaves_no_lag() -> None:
    """On a busy source the gauges always find something in flight: it must not seem to grow old until they look again."""
    now = 100.0
    metrics = Metrics(clock=lambda: now)
    metrics.lag.observe(0.02, 14)
    applied(metrics, more=False)
    now += 5
    assert (metrics.lag.seconds(), metrics.lag.backlog()) == (0.0, 0)


def test_a_batch_with_more_behind_it_tells_how_far_it_came() -> None:
    """What waits is as old as the newest change applied, fewer by the batch, and grows older with the clock."""
    now = 100.0
    metrics = Metrics(clock=lambda: now)
    metrics.lag.observe(60.0, 14)
    applied(metrics, more=True)
    assert (metrics.lag.seconds(), metrics.lag.backlog()) == (1.5, 12)
    now += 5
    assert metrics.lag.seconds() == 6.5


def beaten(metrics: Metrics, beats: int, changes: int, *, more: bool) -> None:
    """A batch with heartbeats, 2 s old when it was read, the last of all: on the target 0.5 s later."""
    made = [
        Change(
            10, n, "public.t", "upsert", 1, f'{{"id":{n}}}', "{}", 2, unflushed=False, created_us=READ_US - 2_000_000
        )
        for n in range(1, changes + beats + 1)
    ]
    batch = Batch(bind(made[:changes]), Cursor("20:20:"), {}, 0, more, READ_US, beats=tuple(made[changes:]))
    Observed(metrics).heartbeat_arrived(batch, 2.5, 0.5)


def test_a_heartbeat_alone_tells_how_far_the_target_is() -> None:
    """Nothing waits behind it, or what does is younger; what it counts as is its own."""
    metrics = Metrics(clock=lambda: 100.0)
    metrics.lag.observe(60.0, 7)
    beaten(metrics, 1, 0, more=True)
    assert (metrics.lag.seconds(), metrics.lag.backlog()) == (2.5, 6)
    beaten(metrics, 1, 0, more=False)
    assert (metrics.lag.seconds(), metrics.lag.backlog()) == (0.0, 0)
    assert "outboxd_heartbeat_latency_seconds 2.5\n" in metrics.render()[0].decode()
    assert "outboxd_change_latency_seconds_count 0.0\n" in metrics.render()[0].decode()


def test_of_a_batch_with_changes_the_heartbeat_tells_its_own_latency_only() -> None:
    """What the batch says of the lag was told with its changes."""
    metrics = Metrics(clock=lambda: 100.0)
    metrics.lag.observe(60.0, 7)
    beaten(metrics, 1, 1, more=False)
    assert (metrics.lag.seconds(), metrics.lag.backlog()) == (60.0, 7)


def test_what_a_status_says_of_heartbeats() -> None:
    assert heartbeat(None, None, None) is None
    assert heartbeat(0.5, None, None) == {"written": "1970-01-01T00:00:00Z", "arrived": None, "seconds": None}
    assert heartbeat(60.0, 61.0, 0.12345) == {
        "written": "1970-01-01T00:01:00Z", "arrived": "1970-01-01T00:01:01Z", "seconds": 0.123,
    }  # fmt: skip
