"""What is shown of a table's verification, for people, metrics and alerts."""

from dataclasses import replace

from daemon.verification import Drift, Verification, Wanted, shown

DONE = Verification("public.story", "running", rows=1000).found([Drift("{}", "extra")] * 2).done()
NOW = Wanted("public.story", 0, 0)
MISSING = [Drift("{}", "missing")] * 30


def test_rows_that_a_pass_under_way_has_found_are_no_share_of_the_few_it_has_seen() -> None:
    """30 of the first 60 differ: of 1000, as the last pass counted them. An alert on 5 % must not fire for that alone."""
    begun = replace(DONE.begun(NOW, asked=False), rows=60)
    seen = shown("public.story", begun.found(MISSING))
    assert (seen["drift"], seen["rows"]) == ({"missing": 30, "different": 0, "extra": 0}, 1000)
    assert seen["so_far"]["rows"] == 60
    seen = shown("public.story", replace(begun.found(MISSING), rows=1200))
    assert seen["rows"] == 1200


def test_until_a_pass_has_found_more_the_last_one_counts() -> None:
    begun = replace(DONE.begun(NOW, asked=False), rows=60)
    for record in (DONE, begun, begun.found(MISSING[:2]), begun.found(MISSING).failed("why")):
        seen = shown("public.story", record)
        assert (seen["drift"], seen["rows"]) == ({"missing": 0, "different": 0, "extra": 2}, 1000)


def test_a_first_pass_shows_what_it_has_found_of_what_it_has_seen() -> None:
    """And before it has found anything, nothing: no table is equal before it was compared."""
    first = Verification("public.story").begun(NOW, asked=False)
    assert shown("public.story", None)["drift"] is shown("public.story", first)["drift"] is None
    seen = shown("public.story", replace(first.found(MISSING), rows=60))
    assert (seen["drift"]["missing"], seen["rows"], seen["through"]) == (30, 60, None)
