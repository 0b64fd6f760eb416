"""The mode as a function of what is known: each fact that decides, and which of two decides."""

import itertools

import pytest

from daemon.breaker import State
from daemon.errors import Kind
from daemon.mode import Facts, Mode, Worth, judge
from daemon.series import TARGET_MODES

MISSING = "supabase_key is missing"


def test_the_words_are_the_metrics_own():
    assert tuple(Mode) == TARGET_MODES


def test_nothing_speaks_against_it():
    assert judge(Facts()) == Worth(Mode.FULL, None)


@pytest.mark.parametrize(
    ("facts", "worth"),
    [
        (Facts(lacking=MISSING), Worth(Mode.DISABLED, MISSING)),
        (Facts(refused="answered 401"), Worth(Mode.DISABLED, "answered 401")),
        (Facts(refused="answered 401", problem="answered 401: another key", problem_kind="auth"),
         Worth(Mode.DISABLED, "answered 401: another key")),
        (Facts(breaker="open", breaker_error="answered 503"), Worth(Mode.DEGRADED, "answered 503")),
        (Facts(breaker="half_open"), Worth(Mode.DEGRADED, "the target's breaker is half_open")),
        (Facts(problem="a row is refused", problem_kind="data"), Worth(Mode.DEGRADED, "a row is refused")),
        (Facts(problem="over quota", problem_kind="auth"), Worth(Mode.DEGRADED, "over quota")),
        (Facts(problem="no connection to the source", problem_kind="source"), Worth(Mode.FULL)),
        (Facts(problem="what the outbox still has is sent again", problem_kind="target_restored"), Worth(Mode.FULL)),
    ],
)  # fmt: skip
def test_one_fact_decides(facts, worth):
    assert judge(facts) == worth


def test_settings_before_the_key_before_the_rest():
    """Over every combination: what a person must mend first is what is said."""
    for lacking, refused, breaker, kind in itertools.product(
        (None, MISSING), (None, "answered 401"), State, (None, "source", *Kind)
    ):
        worth = judge(Facts(lacking, refused, breaker, "answered 503", kind and f"a {kind} problem", kind))
        away = breaker is not State.CLOSED or kind in set(Kind)
        expected = Mode.DISABLED if lacking or refused else Mode.DEGRADED if away else Mode.FULL
        assert worth.mode is expected
        assert (worth.because is None) is (worth.mode is Mode.FULL)
        assert worth.because == lacking or not lacking
