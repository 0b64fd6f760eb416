"""How far a copy is, what it does next, and whose turn it is."""

from dataclasses import replace
from typing import Any

import pytest

from daemon.copies import Copy, Page, Wish, begun_by, choose, known, misfit, note

ORDER = {"parent": 0, "child": 1}
AIM, NARROWER, ELSEWHERE = "here:1", "here:2", "there:1"
DONE = Copy("parent", "done", 1, aim=AIM)


def wish(number: int, *, prune: int = 0, restart: int = 0, aim: str | None = AIM) -> Wish:
    return Wish("parent", number, prune, restart, 0, aim)


def test_a_wish_begins_a_copy_once() -> None:
    """A new one begins it again; one that finds its table being copied does only when it is told to."""
    assert not begun_by(None, wish(0))
    assert begun_by(None, wish(1))
    begun = Copy("parent").begun(wish(1))
    assert not begun_by(begun, wish(1))
    assert not begun_by(begun, wish(2))
    assert begun_by(begun, wish(2, restart=2))
    assert not begun_by(DONE, wish(1))
    assert begun_by(DONE, wish(2))
    assert not begun_by(DONE, wish(0)), "not watched any more, then watched without a copy"


def test_what_was_out_is_pruned_whatever_is_wished() -> None:
    assert not DONE.begun(wish(2)).prune
    assert Copy("parent").begun(wish(2, prune=2)).prune
    out = Copy("parent", "copying", 1, after="{}", rows=5, aim=AIM).went_out("why")
    assert (out.state, out.after, out.reason) == ("out", None, "why")
    again = out.begun(wish(1))
    assert (again.state, again.prune, again.rows, again.reason) == ("copying", True, 0, None)


@pytest.mark.parametrize("number", [0, 1, 2], ids=["nothing asked", "the same number", "another number"])
@pytest.mark.parametrize("state", ["copying", "done"])
@pytest.mark.parametrize("other", ["another mapping", "another outbox", "another table"])
def test_a_copy_of_something_else_begins_anew_and_prunes(other: str, state: str, number: int) -> None:
    """Whatever it has come to, and whatever the number of its wish."""
    copy = replace(DONE, state=state, here=other != "another table")
    now = wish(number, aim={"another mapping": NARROWER, "another outbox": ELSEWHERE}.get(other, AIM))
    assert begun_by(copy, now)
    begun = copy.begun(now)
    assert (begun.state, begun.prune, begun.aim, begun.after) == ("copying", True, now.aim, None)
    assert not begun_by(begun, now)


def test_a_table_that_is_gone_says_nothing_of_its_copy() -> None:
    assert not begun_by(DONE, wish(1, aim=None))


def test_wishes_add_up() -> None:
    """What an earlier one asked for, and nobody has done, a later one does not take away."""
    assert DONE.begun(wish(3, prune=2)).prune, "asked before the last"
    assert not DONE.begun(wish(3, prune=1)).prune, "done"
    copying = replace(DONE, state="copying")
    assert begun_by(copying, wish(3, restart=2))
    assert not begun_by(copying, wish(3, restart=1))
    unfinished = replace(copying, prune=True)
    assert unfinished.begun(wish(3, restart=3)).prune
    assert not replace(unfinished, state="done").begun(wish(3)).prune


def test_numbers_of_another_outbox_say_nothing() -> None:
    assert wish(1, prune=1, aim=ELSEWHERE).missed(1, replace(DONE, wish=9))
    assert not wish(1, prune=1).missed(1, replace(DONE, wish=9))


def test_rows_then_what_is_too_much_then_done() -> None:
    copy = Copy("parent").begun(wish(1)).further(Page("a", ends=False), 10, 0)
    assert (copy.step, copy.after, copy.rows) == ("rows", "a", 10)
    copy = copy.further(Page("b", ends=True), 3, 0)
    assert (copy.state, copy.step, copy.after, copy.rows) == ("copying", "extra", None, 13)
    copy = copy.further(Page("x", ends=False), 2, 1).further(Page(None, ends=True), 1, 1)
    assert (copy.state, copy.after, copy.rows, copy.extra, copy.pruned) == ("done", None, 13, 3, 2)


def test_rows_go_parents_first_and_what_is_too_much_children_first() -> None:
    parent, child = Copy("parent"), Copy("child")
    extra = [Copy("parent", step="extra"), Copy("child", step="extra")]
    assert choose([child, parent], ORDER) == parent
    assert choose([*extra, child], ORDER) == child
    assert choose(extra, ORDER) == extra[1]
    assert choose([], ORDER) is None
    assert choose([Copy("unknown"), child], ORDER) == child


def test_the_record_comes_back_as_it_was_told() -> None:
    copy = Copy("parent", "copying", 3, "rows", '{"id":"ä"}', 5, 1, 1, True, None, aim=AIM, empties=("a", "b"))
    told = note(copy, begins=True)
    assert (told.table, told.op) == ("parent", "copy")
    assert '"after":"{\\"id\\":\\"ä\\"}"' in told.rows[0]
    assert known([{"table": "parent", "state": "copying", "wish": 3, "step": "rows", "after": '{"id":"ä"}', "rows": 5, "extra": 1,
                   "pruned": 1, "prune": True, "aim": AIM, "here": True, "empties": ["a", "b"], "later": 1}]) == {"parent": copy}  # fmt: skip


@pytest.mark.parametrize(
    ("mirror", "said"),
    [
        ({}, None),
        ({"table": "other"}, "parent is not mapped on the target"),
        ({"exists": False}, "the target has no table public.parent"),
        ({"columns": [{"name": "id"}]}, "the target table public.parent has no column n"),
        ({"key_is_unique": False}, "(id) is no unique key of public.parent"),
        ({"key": ["n", "id"]}, "the key of parent is (id), and that of the target table public.parent is (n, id)"),
        ({"missing_usage": "public"}, "a right is missing on the target table public.parent"),
        ({"missing_grants": ["INSERT"]}, "a right is missing on the target table public.parent"),
        ({"hides_rows": True}, "a right is missing on the target table public.parent"),
    ],
)
def test_a_target_that_does_not_fit_is_told_by_what_it_lacks(mirror: dict[str, Any], said: str | None) -> None:
    there = {
        "table": "parent", "target": "public.parent", "exists": True, "key": ["id"], "key_is_unique": True,
        "columns": [{"name": "id"}, {"name": "n"}, {"name": "more"}], "missing_grants": [], "hides_rows": False,
    }  # fmt: skip
    assert misfit("parent", {"tables": [there | mirror]}, ["id", "n"], ["id"]) == said
