"""The rule by which both stores are called in sync, and what is said instead: every fact that decides, the worst first."""

import itertools
from typing import Any

import pytest

from daemon.verdict import IN_SYNC, KINDS, Facts, equal, findings, sentence
from daemon.watchlist import Entry, State

WAITS = {"backlog": 3, "lag": 60.0}


def kinds(**facts: Any) -> list[str]:
    return [one.kind for one in findings(Facts(**facts))]


def test_nothing_speaks_against_it() -> None:
    assert sentence(findings(Facts())) == IN_SYNC
    assert kinds(tables=[Entry("public.a", State.WELL)], backlog=5, lag=4.9) == [], "what is on its way is no lag"


@pytest.mark.parametrize(
    ("facts", "kind", "words"),
    [
        ({"away": ["target"]}, "away", "target cannot be asked"),
        ({"setup": ["run `outboxd setup source`"]}, "setup", "run `outboxd setup source`"),
        ({"foreign": "another cluster: `outboxd rebase`"}, "source", "another cluster: `outboxd rebase`"),
        ({"disabled": "no key", **WAITS}, "disabled", "disabled: no key; captures go on, 3 changes wait safely in Postgres"),
        ({"problem": "no way", "paused": True}, "problem", "paused: no way; nothing waits"),
        ({"problem": "no way", **WAITS}, "problem", "interrupted: no way; 3 changes wait safely in Postgres"),
        ({"leads": False}, "unled", "nobody leads, so nothing moves: `outboxd run`; nothing waits"),
        ({"instead": "eu"}, "unled", "relay eu leads this source"),
        ({"leads": None}, "unled", "nobody is known to lead"),
        ({"tables": None}, "unknown", "the tables have not been looked at yet"),
        ({"held": 1}, "held", "1 row held as dead letters: `outboxd dead-letters list`"),
        (WAITS, "lag", "catching up: 3 changes, 60.0 s behind"),
    ],
)  # fmt: skip
def test_one_fact_decides(facts: dict[str, Any], kind: str, words: str) -> None:
    assert kinds(**facts) == [kind]
    assert words in sentence(findings(Facts(**facts)))


@pytest.mark.parametrize("state", [one for one in State if one is not State.WELL])
def test_a_table_that_is_not_well(state: State) -> None:
    """Named with its command; of many no more than three, and how many there are."""
    entries = [Entry(f"public.t{n}", state, "so", "outboxd check") for n in range(5)]
    [found] = findings(Facts(tables=entries))
    assert (found.kind, found.many) == (state, 5)
    assert "public.t2" in found.text
    assert "public.t3" not in found.text
    assert "2 more tables" in found.text


def test_the_worst_comes_first_and_nothing_hides_it() -> None:
    """Over every pair: the order is that of the kinds, and what is lost comes before what only waits."""
    alone: dict[str, dict[str, Any]] = {
        "setup": {"setup": ["a"]}, "source": {"foreign": "b"}, "held": {"held": 2}, "unled": {"leads": False},
        **{str(state): {"tables": [Entry("public.t", state)]} for state in State if state is not State.WELL},
    }  # fmt: skip
    for one, other in itertools.permutations(alone, 2):
        if "tables" in alone[one] and "tables" in alone[other]:
            continue
        found = kinds(**{**alone[one], **alone[other]})
        assert found == sorted(found, key=KINDS.index)
        follows = {one, other} & {"setup", "source"} and "unled" in {one, other}  # a reason why nobody could
        assert set(found) == {one, other} - ({"unled"} if follows else set())


def test_equal_is_said_as_of_one_time() -> None:
    def seen(through: float | None, missing: int = 0) -> dict[str, Any]:
        return {"through": through, "rows": 10, "drift": None if through is None else {"missing": missing}}

    assert equal([seen(50.0), seen(40.0)], 0) == {"through": 40.0, "tables": 2, "rows": 20}
    assert equal([], 0) is None
    assert equal([seen(50.0), seen(None)], 0) is None
    assert equal([seen(50.0, 1)], 0) is None
    assert equal([seen(50.0)], 1) is None
