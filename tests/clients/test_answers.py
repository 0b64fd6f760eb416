"""A client cannot tell the mirror from the source: the same questions, the same answers, over the wire and to its caller."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile

import pytest

from daemon.demo.supabase import EmbeddedSupabase
from tests.clients.asking import Answer, MissingJs, ask_js, ask_py
from tests.clients.conftest import Library
from tests.clients.questions import WHO, Curious, Question

Ask = Callable[..., list[Answer]]
NUMBER = 200


def test_supabase_py_cannot_tell(library: Library) -> None:
    curious = Curious(library.rows, 1)
    questions = [*curious.plain(), *curious.questions(NUMBER)]
    told(questions, both(library, ask_py, questions))


def test_supabase_js_cannot_tell(library: Library) -> None:
    curious = Curious(library.rows, 2)
    questions = [*curious.plain(), *curious.questions(NUMBER)]
    try:
        told(questions, both(library, ask_js, questions))
    except MissingJs as missing:
        pytest.skip(str(missing))


def test_where_the_mirror_is_told_from_the_source(library: Library) -> None:
    """What does not travel is not there. And what is unique by an index is unique by a constraint on the mirror, which can
    wait for the end of a batch: there PostgREST embeds the one row, here a list of it."""
    asked = [
        Question("secret", "contact", "*", (("eq", "id", 1),)),
        Question("secret", "contact", "phone", (("eq", "id", 1),)),
        Question("secret", "badge", "id,person(badge(id))", (("eq", "id", 1),)),
    ]
    (star, star_there), (phone, phone_there), (badge, badge_there) = both(library, ask_py, asked)
    [row], [row_there] = json.loads(star.body), json.loads(star_there.body)
    assert row == {**row_there, "phone": "+49 1"}
    assert (phone.status, phone_there.status, json.loads(phone_there.body)["code"]) == (200, 400, "42703")
    assert json.loads(badge.body) == [{"id": 1, "person": {"badge": [{"id": 1}]}}]
    assert json.loads(badge_there.body) == [{"id": 1, "person": {"badge": {"id": 1}}}]


def both(library: Library, ask: Ask, questions: Sequence[Question]) -> list[tuple[Answer, Answer]]:
    def of(project: EmbeddedSupabase) -> list[Answer]:
        return ask(project, library.users, questions)

    return list(zip(of(library.source), of(library.mirror), strict=True))


def told(questions: Sequence[Question], answers: Iterable[tuple[Answer, Answer]]) -> None:
    """They are equal; and they say something, to everybody, of everything that was asked."""
    different, with_rows, asked = [], Counter[str](), Counter[str]()
    for question, (here, there) in zip(questions, answers, strict=True):
        if here != there:
            different.append(f"{question}\n{apart(here, there)}")
        subjects = {question.who, question.table, *(str(step[0]) for step in question.steps)}
        asked.update(subjects)
        with_rows.update(subjects if here.rows else ())
    assert not different, f"{len(different)} of {len(questions)} differ:\n" + "\n".join(different[:5])
    assert all(with_rows[who] > len(questions) / 40 for who in WHO), with_rows
    assert {subject for subject in asked if not with_rows[subject]} == set(), (asked, with_rows)
    assert sum(with_rows[who] for who in WHO) > len(questions) / 3, with_rows


def apart(here: Answer, there: Answer) -> str:
    """Where they begin to differ."""
    for name in ("status", "headers", "body", "said"):
        one, other = str(getattr(here, name)), str(getattr(there, name))
        if one != other:
            begin = max(0, len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))) - 60)
            return f"  {name} of the source: …{one[begin : begin + 300]}\n  {name} of the mirror: …{other[begin : begin + 300]}"
    return ""
