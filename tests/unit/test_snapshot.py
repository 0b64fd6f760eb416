"""Snapshots against the plainest model there is: the set of transactions they see."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.snapshot import Snapshot, between, cut

HORIZON = 40  # transactions in the model are numbered below it


@st.composite
def snapshots(draw: st.DrawFn, least: int = 3) -> Snapshot:
    """Any snapshot whose xmax is at least `least`."""
    xmax = draw(st.integers(least, HORIZON))
    return Snapshot.of(xmax, draw(st.sets(st.integers(3, HORIZON))))


@st.composite
def windows(draw: st.DrawFn) -> tuple[Snapshot, Snapshot]:
    """Two instants, the second no earlier: what was seen stays seen."""
    reached = draw(snapshots())
    xmax = draw(st.integers(reached.xmax, HORIZON))
    may_run = sorted(reached.running | set(range(reached.xmax, xmax)))
    running = draw(st.sets(st.sampled_from(may_run))) if may_run else set()
    return reached, Snapshot.of(xmax, running)


def seen(snapshot: Snapshot) -> set[int]:
    return {xid for xid in range(1, HORIZON + 2) if snapshot.sees(xid)}


@given(snapshots())
def test_a_snapshot_is_read_as_it_was_printed(snapshot):
    """Print and parse are inverse."""
    assert Snapshot.parse(str(snapshot)) == snapshot


@pytest.mark.parametrize(
    "text", ["10:10:", "737:741:737", "100:110:100,103,109", "18446744073709551000:18446744073709551615:"]
)
def test_what_postgres_prints_stays_as_it_is(text):
    """Postgres' own texts, the longest included, survive a round trip to the letter."""
    assert str(Snapshot.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "10", "10:20", "a:b:", "20:10:", "10:20:30", "10:20:5", "0:0:", "10:20:,", "10:20:11:12"]
)
def test_what_is_no_snapshot_is_refused(text):
    """Garbage, and numbers that no instant can have, raise ValueError."""
    with pytest.raises(ValueError, match="not a snapshot"):
        Snapshot.parse(text)


def test_xmax_itself_has_not_begun():
    """xmax is the first transaction that had not ended, so it is not seen; those below it are, unless running."""
    snapshot = Snapshot.parse("10:13:11")
    assert [xid for xid in range(9, 15) if snapshot.sees(xid)] == [9, 10, 12]


@given(windows(), st.data())
def test_a_cut_sees_what_was_reached_and_what_was_taken(window, data):
    """The synthetic snapshot adds the taken transactions and none of the untaken or running ones."""
    reached, goal = window
    inside = sorted(seen(goal) - seen(reached))
    taken = data.draw(st.sets(st.sampled_from(inside)) if inside else st.just(set()))
    idle = data.draw(st.sets(st.sampled_from(inside)) if inside else st.just(set())) - taken  # changed nothing
    result = cut(reached, goal, taken, set(inside) - taken - idle)
    assert seen(reached) | taken <= seen(result) <= seen(reached) | taken | idle


@given(windows(), st.data())
def test_cuts_lead_to_the_goal(window, data):
    """Taking a window piece by piece, each cut is a later instant than the one before and none passes the goal."""
    reached, goal = window
    left = sorted(seen(goal) - seen(reached))
    while left:
        taken = data.draw(st.sets(st.sampled_from(left), min_size=1))
        left = [xid for xid in left if xid not in taken]
        following = cut(reached, goal, taken, left)
        assert seen(reached) < seen(following) <= seen(goal)
        assert following.xmax <= goal.xmax
        reached = following
    assert seen(reached) == seen(goal)


@given(windows(), st.sets(st.integers(3, HORIZON)), st.none() | st.integers(3, HORIZON))
def test_runs_name_exactly_the_window(window, without, below):
    """The runs handed to Postgres are the window's transactions, each once, less those left out."""
    reached, goal = window
    named = [xid for first, last in between(reached, goal, without, below) for xid in range(first, last + 1)]
    wanted = {
        xid for xid in seen(goal) - seen(reached) - without if below is None or xid < below or xid in reached.running
    }
    assert len(named) == len(set(named))
    assert set(named) == wanted
