"""Which changes flow and which wait."""

from collections.abc import Collection

from daemon.hold import BEHIND, Key, Parted, Why, refuse
from daemon.hold import part as part_of
from daemon.sheaf import Change, bind, unbind

LIMIT = 100


def change(
    at: int, op: str = "upsert", *, key: int = 1, table: str = "t", row: str | None = "{}", size: int = 2
) -> Change:
    name = "{}" if op == "truncate" else f'{{"id":{key}}}'
    return Change(at, at, table, op, 1, name, row if op == "upsert" else None, size, False, 0)


def part(changes: list[Change], held: Collection[Key], limit: int) -> Parted:
    return part_of(bind(changes), held, limit)


def ids(parted: Parted) -> tuple[list[int], list[int]]:
    return [c.id for c in unbind(parted.flow)], [letter.change.id for letter in parted.letters]


def test_without_held_keys_everything_flows():
    changes = [change(1), change(2, "delete"), change(3, key=2)]
    assert part(changes, set(), LIMIT) == Parted(bind(changes))


def test_changes_of_a_held_key_join_it_in_order():
    parted = part([change(1), change(2, key=2), change(3, "delete"), change(4)], {("t", '{"id":1}')}, LIMIT)
    assert ids(parted) == ([2], [1, 3, 4])
    assert {letter.why for letter in parted.letters} == {BEHIND}


def test_the_same_key_of_another_table_is_another_key():
    assert ids(part([change(1, table="u")], {("t", '{"id":1}')}, LIMIT)) == ([1], [])


def test_a_truncate_frees_its_tables_keys_from_there_on():
    held = {("t", '{"id":1}'), ("t", '{"id":7}'), ("u", '{"id":1}')}
    parted = part([change(1), change(2, "truncate"), change(3), change(4, table="u")], held, LIMIT)
    assert ids(parted) == ([1, 2, 3], [4])
    assert parted.freed == {("t", '{"id":1}'), ("t", '{"id":7}')}


def test_a_row_too_large_to_send_is_held_with_its_size():
    parted = part([change(1), change(2, row=None, size=500), change(3, key=2)], set(), LIMIT)
    assert ids(parted) == ([3], [1, 2])
    assert parted.letters[0].why is BEHIND
    assert parted.letters[1].why.reason == "the row is 500 bytes, more than row_bytes (100) allows"


def test_a_row_too_large_to_record_is_held():
    parted = part([change(1, "too_large")], set(), LIMIT)
    assert ids(parted) == ([], [1])
    assert parted.letters[0].why.sqlstate == "54000"


def test_a_large_row_that_a_later_change_replaced_is_of_no_matter():
    assert ids(part([change(1, row=None, size=500), change(2)], set(), LIMIT)) == ([2], [])
    assert ids(part([change(1, "too_large"), change(2, "delete")], set(), LIMIT)) == ([2], [])


def test_a_large_row_before_a_truncate_is_dropped_and_after_it_held():
    assert ids(part([change(1, "too_large"), change(2, "truncate")], set(), LIMIT)) == ([2], [])
    assert ids(part([change(1, "truncate"), change(2, "too_large")], set(), LIMIT)) == ([1], [2])


def test_refusing_a_key_takes_all_its_changes_and_blames_the_last():
    why = Why("because", "23514")
    parted = refuse(bind([change(1), change(2, key=2), change(3)]), {("t", '{"id":1}'): why})
    assert ids(parted) == ([2], [1, 3])
    assert [letter.why for letter in parted.letters] == [BEHIND, why]
