"""The cursor as a value: what it writes it reads, and nothing else passes for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox import Cursor, Mark, Span

numbers = st.integers(0, 2**63 - 1)
marks = st.builds(
    Mark,
    st.integers(1, 2**31 - 1),
    st.just("1A/2B3C4D"),
    st.lists(st.builds(Span, st.just("737:741:737"), numbers, numbers, numbers), max_size=3).map(tuple),
    st.lists(st.tuples(numbers, numbers, numbers), max_size=3).map(tuple),
)
cursors = st.builds(
    Cursor,
    st.sampled_from(["3:3:", "737:741:737", "100:110:100,103,109"]),
    numbers,
    st.lists(st.tuples(numbers, numbers), max_size=3).map(tuple),
    st.text(max_size=20),
    st.none() | marks,
)


@given(cursors)
def test_a_cursor_is_read_as_it_was_written(cursor):
    """To JSON and back is the same cursor, down to the types of its parts."""
    assert Cursor.from_json(cursor.to_json()) == cursor
    assert hash(Cursor.from_json(cursor.to_json())) == hash(cursor)


def test_equal_cursors_are_written_alike():
    """The text is compact and always in one order, so it can be compared and stored."""
    assert Cursor("5:9:7", 3, ((7, 2),), "42").to_json() == (
        '{"snapshot":"5:9:7","floor_id":3,"torn":[[7,2]],"system":"42"}'
    )


def test_a_mark_is_part_of_the_text_only_where_there_is_one():
    """Older cursors have none, and stay as they are when they are written again."""
    mark = Mark(2, "0/15", (Span("3:3:", 1, 2, 30),), ((740, 2, 20),))
    assert Cursor("5:9:7", 3, (), "42", mark).to_json() == (
        '{"snapshot":"5:9:7","floor_id":3,"torn":[],"system":"42",'
        '"mark":{"timeline":2,"lsn":"0/15","spans":[["3:3:",1,2,30]],"last":[[740,2,20]]}}'
    )


def test_the_beginning_sees_no_transaction():
    """3 is the first transaction id that Postgres ever gives out."""
    assert Cursor.beginning("42") == Cursor("3:3:", 0, (), "42")


def test_parts_added_later_may_be_absent():
    """Only the snapshot and the floor must be there."""
    assert Cursor.from_json('{"snapshot":"3:3:","floor_id":0}') == Cursor.beginning()


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "7", '"3:3:"', "{}", '{"snapshot":"3:3:"}', '{"snapshot":"3:3:","floor_id":null}',
     '{"snapshot":"3:3:","floor_id":0,"torn":[7]}', '{"snapshot":"3:3:","floor_id":0,"torn":[[1,2,3]]}',
     '{"snapshot":"3:3:","floor_id":0,"mark":7}', '{"snapshot":"3:3:","floor_id":0,"mark":{"timeline":1}}',
     '{"snapshot":"3:3:","floor_id":0,"mark":{"timeline":1,"lsn":"","spans":[[1]],"last":[]}}'],
)  # fmt: skip
def test_anything_else_is_refused(text):
    """Garbage raises ValueError, never another error and never a cursor at the beginning."""
    with pytest.raises(ValueError):  # noqa: PT011  JSON's own errors are ValueErrors too
        Cursor.from_json(text)
