"""What a mark proves, apart from any server."""

import pytest

from daemon.errors import SourceForeign, SourceUnfit
from daemon.identity import ADDED_UP, Held, Identity, Named, require_fit, require_held, require_passed, to_add_up
from daemon.snapshot import Snapshot
from outbox import Cursor, Mark, Span

HERE = Identity(
    "42",
    in_recovery=False,
    version=170000,
    identity_cache=1,
    prepared_transactions=0,
    migration=6,
    timeline=2,
    started_us=0,
)
MARK = Mark(
    1, "0/15", (Span("20:20:", 5, 2, 300), Span("22:22:", 7, 1, 100)), ((20, 5, 150), (21, 6, 150), (22, 7, 100))
)
THERE = [Named(id_, there=True, another=True) for id_ in (5, 6, 7)]


def test_all_of_it_there_is_proof():
    require_held(MARK, HERE, Held(0, 3, 400, THERE))


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (Held(0, 2, 300, [*THERE[:2], Named(7, there=False, another=False)]), "of the last 3 changes 1 are not in its outbox (change 7)"),
        (Held(0, 2, 300, THERE), "of the last 3 changes 1 are not in its outbox;"),
        (Held(0, 3, 401, THERE), "in place of the last 3 changes its outbox has 3 others"),
        (Held(0, 4, 500, THERE), "in place of the last 3 changes its outbox has 4 others"),
        (Held(5, None, 0, [Named(5, there=False, another=False), Named(6, there=False, another=True)]),
         "of 2 changes looked up 1 are not in its outbox as they were (change 6, others stand in their place)"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(held, said):
    """The number, and the ids that are known by name; of the two timelines which."""
    with pytest.raises(SourceForeign) as caught:
        require_held(MARK, HERE, held)
    assert said in str(caught.value)
    assert "timeline 1 → 2" in str(caught.value)


def test_what_was_pruned_need_not_be_there():
    require_held(MARK, HERE, Held(7, None, 0, [Named(entry.id, there=False, another=False) for entry in THERE]))


def test_sums_are_compared_only_where_all_is_there_and_it_is_little_enough():
    assert to_add_up(MARK, 4)
    assert not to_add_up(MARK, 5)
    assert not to_add_up(Mark(1, "", (Span("3:3:", 1, ADDED_UP + 1, 0),)), 0)
    assert not to_add_up(Mark(1, ""), 0)


def test_a_server_must_be_beyond_what_the_cursor_has_seen():
    """Its next transaction, and each that runs: one that the cursor saw end may not run again."""
    reached = Snapshot.parse("20:30:22")
    require_passed(reached, Snapshot.parse("22:30:22"))
    require_passed(reached, Snapshot.parse("30:31:30"))
    with pytest.raises(SourceForeign, match="future"):
        require_passed(reached, Snapshot.parse("29:29:"))
    with pytest.raises(SourceForeign, match="in use again \\(transaction 25\\)"):
        require_passed(reached, Snapshot.parse("22:40:22,25,35"))


def test_only_another_past_is_a_matter_for_rebase():
    """A standby, or a cached sequence, is something else."""
    with pytest.raises(SourceForeign, match="another database cluster"):
        require_fit(HERE, Cursor("3:3:", system="43"))
    with pytest.raises(SourceUnfit) as caught:
        require_fit(Identity("42", True, 170000, 1, 0, 6, 0, 0), Cursor("3:3:"))
    assert not isinstance(caught.value, SourceForeign)
