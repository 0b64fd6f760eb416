"""Which kind a failure is, and what an operator is told about it."""

import pytest

from daemon.errors import CaptureLost, Kind, Refusal, advice, classify

CODES = {
    Kind.TRANSIENT: ["08006", "25006", "40001", "40P01", "53100", "53300", "55P03", "57P01", "57P03", "58030", "XX000",
                     "PGRST000", "PGRST001", "PGRST002", "PGRST003"],
    Kind.SIZE: ["54000", "54001", "57014"],
    Kind.DATA: ["20000", "21000", "22001", "22P02", "22P05", "23502", "23503", "23505", "23514", "23P01", "27000", "38000",
                "42601", "44000", "P0001", "0A000", "MY001"],
    Kind.CONTRACT: ["OB002", "OB005", "3D000", "3F000", "42P01", "42703", "42804", "42883", "42P10", "428C9", "55000",
                    "PGRST106", "PGRST202", "PGRST203", "PGRST205"],
    Kind.AUTH: ["42501", "28000", "28P01", "0P000", "PGRST300", "PGRST301", "PGRST302", "PGRST303"],
}  # fmt: skip
STATUSES = {
    Kind.TRANSIENT: [500, 502, 503, 504, 520, 522, 540, 544],
    Kind.AMBIGUOUS: [302, 307, 408],
    Kind.SIZE: [413],
    Kind.THROTTLE: [429],
    Kind.CONTRACT: [400, 404, 405, 406, 409],
    Kind.AUTH: [401, 402, 403],
}


@pytest.mark.parametrize(("kind", "code"), [(kind, code) for kind, codes in CODES.items() for code in codes])
def test_a_code_decides_the_kind(kind, code):
    """SQLSTATE or PostgREST's code, whatever the status that came with it."""
    for status in (None, 400, 404, 409, 500):
        assert classify(code, status) is kind


@pytest.mark.parametrize(
    ("kind", "status"), [(kind, status) for kind, statuses in STATUSES.items() for status in statuses]
)
def test_without_a_code_the_status_decides(kind, status):
    """A gateway's answers carry no code of the database."""
    assert classify(None, status) is kind


def test_without_either_it_may_pass():
    """Nothing known: wait and try again."""
    assert classify(None) is Kind.TRANSIENT


def test_throttling_is_known_by_its_status():
    """The gateway's own code on a 429 does not hide it."""
    assert classify("rate_limited", 429) is Kind.THROTTLE


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_its_sentence(kind):
    """Each tells an operator something, none ends in the air."""
    sentence = advice(kind, Refusal())
    assert len(sentence) > 30
    assert not sentence.endswith((" ", ":", "("))


@pytest.mark.parametrize(
    ("kind", "refusal", "parts"),
    [
        (Kind.DATA, Refusal("23514", table='public."Story"', constraint="story_check"), ['public."Story"', "story_check", "23514"]),
        (Kind.DATA, Refusal("23502", table="public.t", column="title"), ["public.t", "title"]),
        (Kind.CONTRACT, Refusal("OB002", message="public.t is not mapped on the target: select outboxd.map('public.t')"),
         ["select outboxd.map('public.t')"]),
        (Kind.CONTRACT, Refusal("PGRST202"), ["outboxd setup target", "notify pgrst, 'reload schema'"]),
        (Kind.CONTRACT, Refusal(status=404), ["OUTBOXD_SUPABASE_URL"]),
        (Kind.AUTH, Refusal("42501", table="public.t", message="grant insert on public.t to postgres"),
         ["grant insert on public.t to postgres"]),
        (Kind.AUTH, Refusal("42501", 403), ["secret key", "outboxd setup target"]),
        (Kind.AUTH, Refusal(status=401), ["OUTBOXD_SUPABASE_KEY"]),
        (Kind.SIZE, Refusal("57014"), ["OUTBOXD_BATCH_CHANGES"]),
    ],
)  # fmt: skip
def test_advice_names_what_to_do(kind, refusal, parts):
    """The table, the constraint, the setting or the very statement, as far as they are known."""
    sentence = advice(kind, refusal)
    for part in parts:
        assert part in sentence


def test_a_lost_key_says_which_command_helps():
    """CaptureLost is the one error of the source that carries a table."""
    assert "outboxd watch 'public.t'" in str(CaptureLost("public.t"))
