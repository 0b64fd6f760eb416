"""Which kind a failure is, and what an operator is told about it."""

import pytest

from daemon.errors import (
    ACTIONS,
    LONGEST_PAUSE,
    RULES,
    CaptureLost,
    Fenced,
    Kind,
    Refusal,
    TargetError,
    advice,
    alone,
    classify,
    counts,
    rule_for,
)

CODES = {
    Kind.TRANSIENT: ["08006", "25006", "40001", "40P01", "53100", "53300", "55P03", "57P01", "57P03", "58030", "XX000",
                     "PGRST000", "PGRST001", "PGRST002", "PGRST003", "PGRSTX00", "53200", "57P02", "TLS"],
    Kind.SIZE: ["57014"],
    Kind.DATA: ["20000", "21000", "22001", "22P02", "22P05", "23502", "23503", "23505", "23514", "23P01", "27000", "38000",
                "42601", "44000", "P0001", "0A000", "MY001", "54000", "54001"],
    Kind.CONTRACT: ["OB002", "OB005", "3D000", "3F000", "42P01", "42703", "42804", "42883", "42P10", "428C9", "55000", "54011",
                    "54023", "PGRST106", "PGRST202", "PGRST203", "PGRST204", "PGRST205"],
    Kind.AUTH: ["42501", "28000", "28P01", "0P000", "PGRST300", "PGRST301", "PGRST302", "PGRST303", "TLS_CERTIFICATE"],
}  # fmt: skip
STATUSES = {
    Kind.TRANSIENT: [500, 502, 503, 504, *range(520, 528), 530, 540, 544, 599],
    Kind.AMBIGUOUS: [200, 204, 206, 301, 302, 303, 307, 308, 408],
    Kind.SIZE: [413],
    Kind.THROTTLE: [420, 429],
    Kind.CONTRACT: [400, 404, 405, 406, 409, 410, 418],
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


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("PT401", 401, Kind.AUTH),  # PostgREST's own way to choose a status, or a gateway's made-up code
        ("ABCDE", 402, Kind.AUTH),
        ("ABCDE", 429, Kind.THROTTLE),
        ("ABCDE", 544, Kind.TRANSIENT),
        ("23514", 429, Kind.DATA),  # what Postgres surely said
        ("error", 400, Kind.CONTRACT),  # five letters, and no SQLSTATE
        ("503", 503, Kind.TRANSIENT),  # the status again, as Supabase's edge has it
        ("401", 401, Kind.AUTH),
        ("404", 404, Kind.CONTRACT),
        ("413", 413, Kind.SIZE),
        ("544", 544, Kind.TRANSIENT),
        ("2200", 400, Kind.CONTRACT),
        ("UNAUTHORIZED_NO_AUTH_HEADER", 401, Kind.AUTH),
    ],
)
def test_codes_that_are_none_of_postgres(code, status, kind):
    """They never pass for a refused row, which would make a dead letter of an outage."""
    assert classify(code, status) is kind


def test_the_table_is_unambiguous():
    """No code and no status stands in two lines, so that the order of the lines means nothing."""
    codes = [code for rule in RULES for code in rule.codes]
    statuses = [status for rule in RULES for status in rule.statuses]
    assert len(codes) == len(set(codes))
    assert len(statuses) == len(set(statuses))
    assert {rule.kind for rule in RULES} | {Fenced.kind} == set(Kind) == set(ACTIONS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.kind} {(*rule.codes, *rule.statuses)[0]}")
def test_every_line_has_its_sentence(rule):
    """One sentence that ends, as `status` prints it."""
    assert len(rule.advice) > 40
    assert not rule.advice.endswith((" ", ".", "("))


def test_a_paused_project_is_left_alone():
    """Nobody restores it within seconds: five minutes, unless the answer says otherwise."""
    assert rule_for(None, 540).pause == LONGEST_PAUSE == 300
    assert [rule.statuses for rule in RULES if rule.pause] == [(540,)]


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        (None, 503, True),
        ("PGRST003", 504, True),
        ("57P01", 503, True),
        ("25006", None, True),
        ("40P01", None, False),
        ("40001", 500, False),
        ("55P03", 400, False),
        ("57014", 500, False),
        (None, 429, False),
        (None, 401, False),
        (None, 403, False),
        ("23514", 409, False),
        ("PGRST202", 404, False),
        (None, 200, True),
        ("TLS", None, True),
        ("TLS_CERTIFICATE", None, False),
    ],
)
def test_what_counts_for_the_breaker(code, status, expected):
    """An outage does; rows that others hold, keys, tables, rows and throttling do not."""
    assert counts(TargetError(classify(code, status), "", Refusal(code, status))) is expected


@pytest.mark.parametrize(
    ("code", "status", "size", "kind"),
    [
        ("57014", None, 10**6, Kind.TRANSIENT),
        (None, 413, 10**6, Kind.DATA),
        (None, 413, 200, Kind.CONTRACT),
        ("23514", None, 200, Kind.DATA),
        (None, 503, 200, Kind.TRANSIENT),
    ],
)
def test_a_batch_of_one_cannot_be_halved(code, status, size, kind):
    """Too slow alone: somebody holds the row, wait. Too large alone: the row itself, if it is large at all."""
    error = TargetError(classify(code, status), "", Refusal(code, status))
    assert alone(error, size) is kind
    assert kind is not Kind.CONTRACT or "proxy" in advice(kind, error.refusal)


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
        (Kind.CONTRACT, Refusal("PGRST204"), ["notify pgrst, 'reload schema'"]),
        (Kind.CONTRACT, Refusal("PGRST205"), ["notify pgrst, 'reload schema'"]),
        (Kind.CONTRACT, Refusal("PGRST203"), ["\\df", "outboxd(text)"]),
        (Kind.CONTRACT, Refusal("PGRST106"), ["Exposed schemas", "OUTBOXD_EXPOSED_SCHEMA"]),
        (Kind.CONTRACT, Refusal(status=404), ["OUTBOXD_SUPABASE_URL"]),
        (Kind.AMBIGUOUS, Refusal(status=307), ["redirect", "OUTBOXD_SUPABASE_URL"]),
        (Kind.TRANSIENT, Refusal(status=540), ["paused", "Restore project"]),
        (Kind.TRANSIENT, Refusal("25006"), ["read-only", "disk"]),
        (Kind.TRANSIENT, Refusal("40P01"), ["pg_stat_activity"]),
        (Kind.AUTH, Refusal(status=402), ["quota", "Billing"]),
        (Kind.AUTH, Refusal(status=403), ["network restrictions"]),
        (Kind.AUTH, Refusal("PGRST301", 401), ["expired", "looked at again by itself"]),
        (Kind.AUTH, Refusal("TLS_CERTIFICATE"), ["openssl s_client -connect"]),
        (Kind.FENCING, Refusal(), ["relay name"]),
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
    assert "`outboxd watch public.t` again" in str(CaptureLost("public.t"))
    assert """`outboxd watch 'public."T"'` again""" in str(CaptureLost('public."T"'))
