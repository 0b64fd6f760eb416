"""What a batch leaves to write, against the plainest target there is: a dict a table."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.errors import CaptureLost
from daemon.plan import SEPARATOR, Group, Plan, table_order
from daemon.plan import plan as plan_of
from daemon.sheaf import Change, bind

SHAPES = {1: ("id", "a", "b"), 2: ("id", "a"), 3: ("id", "b", "c")}
ORDER = {"parent": 0, "child": 1}

Tables = dict[str, dict[str, dict[str, object]]]


def change(op: str, key: int = 0, table: str = "parent", shape: int | None = None, value: int = 0, **row) -> Change:
    """A change as the source would hand it over; an upsert gets a value for every column of its shape."""
    text = None
    if op == "upsert":
        shape = shape or 1
        text = json.dumps({"id": key} | dict.fromkeys(SHAPES[shape][1:], value) | row, separators=(",", ":"))
    return Change(9, 1, table, op, shape, f'{{"id":{key}}}', text, len(text or ""), False, 0)


def plan(
    changes: list[Change],
    order: dict[str, int],
    shapes: dict[int, tuple[str, ...]],
    places: dict[str, str] | None = None,
) -> Plan:
    """Of changes that come in this order."""
    return plan_of(bind(item._replace(id=1 + at) for at, item in enumerate(changes)), order, shapes, places=places)


changes = st.lists(
    st.one_of(
        st.builds(
            change, st.just("upsert"), st.integers(1, 4), st.sampled_from(["parent", "child"]),
            st.sampled_from(sorted(SHAPES)), st.integers(0, 99),
        ),
        st.builds(change, st.just("delete"), st.integers(1, 4), st.sampled_from(["parent", "child"])),
        st.builds(change, st.just("truncate"), table=st.sampled_from(["parent", "child"])),
    ),
    max_size=25,
)  # fmt: skip
tables = st.fixed_dictionaries(
    dict.fromkeys(
        ("parent", "child"), st.dictionaries(st.integers(1, 5).map('{{"id":{}}}'.format), st.just({"a": -1, "b": -1, "c": -1}))
    )
)  # fmt: skip


def key_of(row: dict[str, object]) -> str:
    return f'{{"id":{row["id"]}}}'


def replay(target: Tables, changes: list[Change]) -> Tables:
    """Each change by itself, in order."""
    result = {table: {key: dict(row) for key, row in rows.items()} for table, rows in target.items()}
    for item in changes:
        rows = result[item.table]
        if item.op == "truncate":
            rows.clear()
        elif item.op == "delete":
            rows.pop(item.key, None)
        else:
            rows.setdefault(item.key, {}).update(json.loads(item.row or "{}"))
    return result


def apply(target: Tables, planned: Plan) -> Tables:
    """The plan's document, read as the target reads it; of a name that occurs twice the second counts."""
    result = {table: {key: dict(row) for key, row in rows.items()} for table, rows in target.items()}
    records = planned.body.split(SEPARATOR) if planned.body else []
    for head, texts in zip(records[::2], records[1::2], strict=True):
        group, given = json.loads(head), json.loads(texts)
        rows = result[group["table"]]
        if group["op"] == "upsert":
            for row in given:
                assert set(row) == set(group["columns"])
                if group.get("anew"):
                    rows.pop(key_of(row), None)
                rows.setdefault(key_of(row), {}).update(row)
        elif group["op"] == "delete":
            for key in given:
                rows.pop(key_of(key), None)
        else:
            keep = {key_of(key) for key in given}
            result[group["table"]] = {key: row for key, row in rows.items() if key in keep}
    return result


@given(tables, changes)
def test_a_plan_leads_where_its_changes_lead(target, changes):
    """Applying the plan is the same as replaying the changes one by one, columns left out included."""
    assert apply(target, plan(changes, ORDER, SHAPES)) == replay(target, changes)


@given(tables, changes)
def test_tables_of_one_place_are_one_table(target, changes):
    """Whatever they are called: of a key their last change counts."""
    planned = plan(changes, ORDER, SHAPES, places={"parent": "public.one", "child": "public.one"})
    one, called = {"one": target["parent"]}, [item._replace(table="one") for item in changes]
    body = planned.body.replace(b'"table":"parent"', b'"table":"one"').replace(b'"table":"child"', b'"table":"one"')
    assert apply(one, replace(planned, pieces=(body,))) == replay(one, called)
    kept = [(group.table, row) for group in planned.groups if group.op != "truncate" for row in group.keys]
    last = {item.key: item.table for item in changes}
    assert all(last[key] == table for table, key in kept)


@given(changes)
def test_every_key_is_written_once_parents_first(changes):
    """One row a key; upserts by rising rank, then truncates and deletes by falling rank, never of an upserted key."""
    groups = plan(changes, ORDER, SHAPES).groups
    written = [(g.table, key_of(json.loads(row))) for g in groups if g.op != "truncate" for row in g.rows]
    assert len(written) == len(set(written))
    upserts, removals = [g for g in groups if g.op == "upsert"], [g for g in groups if g.op != "upsert"]
    assert list(groups) == upserts + removals
    assert [g.rank for g in upserts] == sorted(g.rank for g in upserts)
    assert [g.rank for g in removals] == sorted((g.rank for g in removals), reverse=True)


@given(changes)
def test_changes_are_counted(changes):
    """All changes by table and op, and of them those that a later one replaced."""
    planned = plan(changes, ORDER, SHAPES)
    assert planned.counts == Counter((item.table, item.op) for item in changes)
    assert planned.changes == len(changes)
    rows = sum(len(group.rows) for group in planned.groups if group.op != "truncate")
    kept_by_truncate = {g.table for g in planned.groups if g.op == "truncate"}
    assert 0 <= planned.superseded <= len(changes)
    if not kept_by_truncate:
        assert planned.superseded == len(changes) - rows


def test_a_hot_row_costs_one_write():
    """A thousand updates of one row are one upsert, of the last."""
    planned = plan([change("upsert", 1, value=n) for n in range(1000)], ORDER, SHAPES)
    assert [group.rows for group in planned.groups] == [('{"id":1,"a":999,"b":999}',)]
    assert planned.superseded == 999


def test_of_a_key_written_and_deleted_the_later_counts():
    """Promise I4, where upserts and deletes lie in sheaves of their own; keys of one kind alone are left as they are."""
    came = [change("delete", 1), change("upsert", 1), change("upsert", 2), change("delete", 2), change("delete", 3)]
    planned = plan([*came, change("upsert", 4)], ORDER, SHAPES)
    assert [(group.op, group.keys) for group in planned.groups] == [
        ("upsert", ('{"id":4}',)),
        ("upsert", ('{"id":1}',)),
        ("delete", ('{"id":2}', '{"id":3}')),
    ]
    assert [group.anew for group in planned.groups] == [False, True, False]
    assert planned.superseded == 2


def test_a_row_written_in_parts_keeps_every_part():
    """What outbox.emit left out of the later change is taken from the earlier one, by splicing alone."""
    planned = plan([change("upsert", 1, shape=2, value=5), change("upsert", 1, shape=3, value=6)], ORDER, SHAPES)
    assert planned.groups == (
        Group("parent", "upsert", 0, ("id", "b", "c", "a"), (b'{"id":1,"a":5,"id":1,"b":6,"c":6}',), b'{"id":1}', keyed=(("id",),)),
    )  # fmt: skip


def test_a_group_says_by_which_columns_its_rows_are_told_apart():
    """Also where the key was changed in between: the target is to see both."""
    wider = change("delete", 2)._replace(key='{"id":2,"a":1}')
    assert {group.keyed for group in plan([change("upsert", 1), change("delete", 3)], ORDER, SHAPES).groups} == {
        (("id",),)
    }
    assert {group.keyed for group in plan([change("upsert", 1), wider], ORDER, SHAPES).groups} == {
        (("a", "id"), ("id",))
    }
    assert b'"keyed":[["a","id"],["id"]]' in plan([change("upsert", 1), wider], ORDER, SHAPES).body


def test_rows_of_two_shapes_are_two_groups():
    """After an ALTER TABLE a batch may hold rows of both kinds: one statement each."""
    groups = plan([change("upsert", 1), change("upsert", 2, shape=2)], ORDER, SHAPES).groups
    assert [(group.columns, len(group.rows)) for group in groups] == [(SHAPES[1], 1), (SHAPES[2], 1)]


def test_a_truncate_keeps_what_came_after_it():
    """TRUNCATE removes every key without a later upsert, whatever was written before it."""
    changes = [change("upsert", 1), change("truncate"), change("upsert", 2), change("upsert", 3), change("delete", 3)]
    groups = plan(changes, ORDER, SHAPES).groups
    assert [(group.op, group.rows) for group in groups] == [
        ("upsert", ('{"id":2,"a":0,"b":0}',)),
        ("truncate", ('{"id":2}',)),
    ]


def test_lost_keys_stop_the_plan():
    """A statement whose rows could not be named is never skipped: the sentence says what to run."""
    with pytest.raises(CaptureLost, match="outboxd watch parent"):
        plan([change("upsert", 1), change("resync")], ORDER, SHAPES)


def test_the_digest_is_of_what_is_written():
    """Equal writes have one digest, others another."""
    one, same, other = (plan([change("upsert", 1, value=n)], ORDER, SHAPES) for n in (1, 1, 2))
    assert one.digest == same.digest != other.digest


def test_rows_are_carried_as_they_came():
    """Big numbers, NaN as text, escapes and non-ASCII pass byte for byte; names are quoted by JSON."""
    row = '{"id":1,"a":9223372036854775807,"b":1.10000000000000000000001,"c":"é\\u001e\\ud800 NaN"}'
    item = change("upsert", 1, 'public."Stóry \x1e"')._replace(row=row)
    head, rows = plan([item], {}, SHAPES).body.split(SEPARATOR)
    assert rows.decode() == f"[{row}]"
    assert json.loads(head)["table"] == 'public."Stóry \x1e"'


def test_parents_stand_before_children():
    """Ranks follow the foreign keys; unrelated tables and references to elsewhere do not matter."""
    order = table_order(
        ["leaf", "root", "branch", "alone"],
        [("leaf", "branch"), ("branch", "root"), ("leaf", "elsewhere"), ("root", "root")],
    )
    assert order == {"root": 0, "alone": 0, "branch": 1, "leaf": 2}


def test_tables_of_a_cycle_share_a_rank_and_others_do_not():
    """What hangs below a cycle still comes after it, and what the cycle hangs on before it."""
    order = table_order(
        ["a_child", "x", "y", "z_parent"], [("x", "y"), ("y", "x"), ("x", "z_parent"), ("a_child", "y")]
    )
    assert order == {"z_parent": 0, "x": 1, "y": 1, "a_child": 2}


references = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef")), max_size=12)


@given(references)
def test_every_table_gets_a_rank_and_no_child_stands_before_its_parent(references):
    """Whatever the foreign keys, the order ends, and is wrong for no pair."""
    order = table_order("abcdef", references)
    assert order.keys() == set("abcdef")
    assert all(order[parent] <= order[child] for child, parent in references)
