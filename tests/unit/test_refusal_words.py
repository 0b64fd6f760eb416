"""What of a refusal's own words is repeated to the operator: the statement that mends it, and nothing that could be a value."""

import httpx
import pytest

from daemon.errors import Kind, advice
from daemon.refusal_words import denial_of, hint_of
from daemon.rest import _rest_error

HINT = "Grant the required privileges to the current role with: GRANT SELECT, INSERT ON public.story TO service_role;"


@pytest.mark.parametrize(
    ("hint", "statement"),
    [
        (HINT, "GRANT SELECT, INSERT ON public.story TO service_role;"),
        ('try: grant select on "App"."Story" to authenticated', 'grant select on "App"."Story" to authenticated;'),
        ("GRANT EXECUTE ON FUNCTION public.outboxd(text) TO service_role", "GRANT EXECUTE ON FUNCTION public.outboxd(text) TO service_role;"),
        ("GRANT USAGE ON SCHEMA outboxd TO anon, service_role.", "GRANT USAGE ON SCHEMA outboxd TO anon, service_role;"),
        ("the row (1, hunter2) may not be seen", None),
        ("GRANT SELECT ON 'hunter2' TO x", None),
        ("GRANT SELECT ON x; drop table y", None),
        ("", None),
        (None, None),
    ],
)  # fmt: skip
def test_the_grant_and_nothing_else(hint: str | None, statement: str | None) -> None:
    assert hint_of({"hint": hint}) == statement


def test_a_denial_names_what_and_no_more() -> None:
    assert denial_of({"message": "permission denied for table story"}) == "permission denied for table story"
    assert denial_of({"message": "permission denied for table story: row hunter2"}) is None


def test_the_hint_of_a_refusal_reaches_the_operator() -> None:
    """A 403 of the Data API that carries the exact GRANT: it stands in the status and in `check`."""
    body = b'{"code": "42501", "message": "permission denied for table story", "details": null, "hint": "%b"}'
    error = _rest_error(403, httpx.Headers(), body % HINT.encode())
    assert error.kind is Kind.AUTH
    assert advice(error.kind, error.refusal) == (
        "a right is missing on the target: GRANT SELECT, INSERT ON public.story TO service_role;"
    )
    assert error.refusal.message == (
        "permission denied for table story: GRANT SELECT, INSERT ON public.story TO service_role;"
    )
    bare = _rest_error(403, httpx.Headers(), body % b"")
    assert bare.refusal.message == "permission denied for table story"
    assert "GRANT" not in advice(bare.kind, bare.refusal)
