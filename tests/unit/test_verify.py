"""What a command makes of the target's records, and the sentence of status, without either store."""

from typing import Any

import pytest

from daemon.errors import TargetError
from daemon.report import dated
from daemon.verdict import Facts, findings, sentence, unequal
from daemon.verification import Drift, Verification, shown
from daemon.verify import advice, progress

STORY, CARD = "public.story", 'public."Card"'
WISHES = {STORY: 7}


def record(state: str = "running", wish: int = 7, **more: Any) -> dict[str, Any]:
    return {"table": STORY, "state": state, "wish": wish, "ago": 0.0, **more}


def copy(state: str) -> dict[str, Any]:
    return {"table": STORY, "state": state, "reason": "the target has no table public.story"}


def outcome(*records: dict[str, Any], copies: tuple[dict[str, Any], ...] = ()) -> str | None:
    found = progress({"verifications": records, "copies": copies}, WISHES).outcomes
    return found[STORY].state if found else None


def test_a_pass_counts_only_when_it_is_of_this_wish_or_a_later_one() -> None:
    last = {"began_at": 5.0, "rows": 1, "samples": []}
    assert outcome(record("done", 6, last=last)) is None
    assert outcome(record("done", 7, last=last)) == "equal"
    assert outcome(record("done", 8, last=last, missing=1)) == "differs"
    assert outcome(record("running", 7)) is None
    assert outcome(record("failed", 7, reason="so")) == "failed"


@pytest.mark.parametrize("state", ["out", "copying"])
def test_what_is_not_compared_ends_the_wait(state: str) -> None:
    assert outcome(copies=(copy(state),)) == state
    assert outcome(record("running"), copies=(copy(state),)) == state
    assert outcome(record("done"), copies=(copy(state),)) == "equal", "it had been compared before that"


def test_a_target_that_does_not_know_of_verifications_is_named() -> None:
    assert progress({}, WISHES).outcomes == {}, "it says nothing: it is away"
    with pytest.raises(TargetError, match="outboxd setup target"):
        progress({"copies": ()}, WISHES)


def test_what_to_do_about_it() -> None:
    def said(**more: Any) -> str | None:
        return advice(progress({"verifications": [record("done", **more)]}, WISHES).outcomes[STORY])

    assert said() is None
    assert (
        said(different=2) == "2 rows of public.story differ: `outboxd verify public.story --repair` writes them again"
    )
    assert said(missing=1, repair=True) == (
        "1 row of public.story differs after being written again: `outboxd check` names triggers there that change rows"
    )
    assert said(held=2) == "2 rows of public.story wait as dead letters: `outboxd dead-letters list`"


def test_the_verdict_names_the_tables_that_differ_most_and_no_more_than_three() -> None:
    def drifting(table: str, rows: int) -> dict[str, Any]:
        drifts = [Drift(f'{{"id":{n}}}', "missing") for n in range(rows)]
        return shown(table, Verification(table, began_at=60.0).found(drifts).done())

    tables = [drifting(STORY, 1), drifting(CARD, 12), shown("public.equal", Verification("public.equal").done())]
    assert sentence(findings(Facts(verifications=tables))) == (
        '12 rows of public."Card" differ: `outboxd verify \'public."Card"\' --repair`; '
        "1 row of public.story differs: `outboxd verify public.story --repair`"
    )
    failed = shown("public.bad", Verification("public.bad").failed("the target cannot compare its rows (22P02)"))
    drift, not_compared = unequal([*tables, failed, shown("public.new", None)])
    assert len(drift) == 2
    assert not_compared == ["public.bad could not be compared: the target cannot compare its rows (22P02)"]
    more = [*tables, drifting("public.more", 2), drifting("public.most", 200)]
    assert unequal(more)[0][3:] == ["1 more: `outboxd verify`"]
    assert [one["through"] for one in dated(tables)][:2] == ["1970-01-01T00:01:00Z"] * 2
