"""What the daemon says of itself follows from what the relay did."""

from daemon.metrics import Metrics
from daemon.plan import Change, plan
from daemon.report import Observed
from daemon.source import Batch
from daemon.target import Answer, Standing
from outbox import Cursor

READ_US = 1_000_000_000


def applied(metrics: Metrics, *, more: bool) -> None:
    """A batch of two changes, 3 s and 1 s old when it was read, is on the target 0.5 s later."""
    ages = (3_000_000, 1_000_000)
    changes = tuple(
        Change(10 + n, n, "public.t", "upsert", 1, f'{{"id":{n}}}', "{}", 2, unflushed=False, created_us=READ_US - age)
        for n, age in enumerate(ages, 1)
    )
    batch = Batch(changes, Cursor("20:20:"), {1: ("id",)}, 0, more, READ_US)
    answer = Answer("applied", Standing(1, 1, batch.cursor))
    Observed(metrics).batch_applied(batch, plan(changes, {"public.t": 0}, batch.shapes), answer, 0.5)


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
