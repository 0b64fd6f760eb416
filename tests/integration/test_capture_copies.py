"""A version that nobody has touched since is copied as it was handed over; otherwise the row is re-read by its key.

What is read of the table itself is counted by Postgres: so the cost is held down without a clock.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.captured import Connection, assert_replays, ops, rows, value, watch

SOURCE = "pg_get_functiondef(to_regproc('outbox.capture_' || id))"


def probes(conn: Connection) -> int:
    """How often this transaction has looked up a key in table t."""
    return int(value(conn, "select idx_scan from pg_stat_xact_user_tables where relname = 't'"))


def rewrite(conn: Connection, old: str, new: str) -> None:
    """Change the source of every capture function: to break what a test is about."""
    for (source,) in rows(conn, f"select {SOURCE} from outbox.watched where capture"):
        assert old in source
        conn.execute(source.replace(old, new))


def always_copy(conn: Connection) -> None:
    rewrite(conn, "if new.xmax = 0 and", "if tg_op <> 'DELETE' and")


def copy_moved_keys(conn: Connection) -> None:
    for (source,) in rows(conn, f"select {SOURCE} from outbox.watched where capture"):
        broken = re.sub(r"if new.xmax = 0 and .* is not true then", "if tg_op <> 'DELETE' then", source)
        assert broken != source
        conn.execute(broken)


def test_what_nobody_touched_is_copied(scratch: Connection) -> None:
    """One row or a thousand; only of a row that is gone its key is looked up."""
    scratch.execute("create table t (id int primary key, n int)")
    watch(scratch, "t")
    scratch.execute("insert into t select i, 0 from generate_series(1, 1000) i")
    scratch.execute("do $$ begin for n in 1001 .. 1010 loop insert into t values (n); end loop; end $$")
    scratch.execute("update t set n = 1")
    assert probes(scratch) == 0
    scratch.execute("delete from t")
    assert probes(scratch) == 1010
    assert len(ops(scratch)) == 3030
    assert_replays(scratch)


TOUCHED = {
    "a lock of its own": ("select from t where n = 0 for update; update t set n = 1", 0),
    "a lock that a savepoint gave back": (
        "savepoint s; select from t for update; rollback to s; update t set n = 1",
        0,
    ),
    "a lock in a savepoint": ("savepoint s; select from t for share; release s; update t set n = 1", 0),
    "an upsert": (
        "insert into t values (1), (2), (9) on conflict (id) do update set n = 2",
        3,
    ),  # it looks for conflicts
    "a key that moves": ("update t set id = id + 10 where n = 0", 6),
}


@pytest.mark.parametrize("case", TOUCHED)
def test_what_may_have_been_touched_is_looked_up(scratch: Connection, case: str) -> None:
    """By its key only if somebody replaced it: a lock of one's own leaves it the row that is seen at its place."""
    scratch.execute("create table t (id int primary key, n int)")
    watch(scratch, "t")
    scratch.execute("insert into t values (1, 0), (2, 0), (3, 0)")
    statements, expected = TOUCHED[case]
    scratch.execute(statements)
    assert probes(scratch) == expected
    assert_replays(scratch)


def test_a_version_that_came_back_is_looked_up(scratch: Connection) -> None:
    """Written again in an EXCEPTION block that failed: the version handed over is the row, and is seen at its place."""
    scratch.execute(
        NESTED.format("begin update t set n = 7; perform 1 / 0; exception when division_by_zero then null; end;")
    )
    watch(scratch, "t")
    scratch.execute("insert into t values (1)")
    assert (probes(scratch), ops(scratch)) == (0, ["upsert"])
    assert_replays(scratch)


NESTED = """
    create table t (id int primary key, n int not null default 0);
    create function f() returns trigger language plpgsql set datestyle = 'German' set timezone = 'Asia/Kathmandu' as $$ begin
      if pg_trigger_depth() = 1 then {} end if; return null; end $$;
    create trigger aaa after insert or update on t for each row execute function f();
"""


@pytest.mark.parametrize(
    "action",
    [
        "update t set n = n + 1 where id = new.id;",
        "begin update t set n = 7; perform 1 / 0; exception when division_by_zero then null; end; update t set n = 8;",
        "delete from t where id = new.id;",
    ],
)
def test_what_nests_in_a_statement_makes_it_re_read(scratch: Connection, action: str) -> None:
    """Whatever the nested function sets; and copying always would end wrong."""
    scratch.execute(NESTED.format(action))
    watch(scratch, "t")
    scratch.execute("insert into t values (1), (2)")
    assert_replays(scratch)
    scratch.execute("update t set n = 5")
    assert_replays(scratch)
    always_copy(scratch)
    scratch.execute("insert into t values (3), (4)")
    with pytest.raises(AssertionError):
        assert_replays(scratch)


def test_a_function_in_an_expression_nests_too(scratch: Connection) -> None:
    """It writes the row that the statement deletes or updates next, or has written before."""
    scratch.execute("""
        create table t (id int primary key, n int not null default 0);
        create function other(of int) returns int language plpgsql as $$ begin
          update t set n = 50 where id = of; return 1; end $$;
    """)
    watch(scratch, "t")
    scratch.execute("insert into t select generate_series(1, 4)")
    scratch.execute("update t set n = 1 where id in (3, 4) returning other(id)")
    assert_replays(scratch)
    always_copy(scratch)
    scratch.execute("update t set n = 2 where id in (3, 4) returning other(id)")
    with pytest.raises(AssertionError):
        assert_replays(scratch)


CASCADES = {
    "a key of two foreign keys": """
        create table t (a int references p on update cascade, b int references p on update cascade, n int, primary key (a, b));
        insert into t values (1, 1, 0);
    """,
    "a trigger that moves the key on": """
        create table t (id int primary key, a int references p on update cascade, b int references p on update cascade);
        create function f() returns trigger language plpgsql as $$ begin new.id := old.id + 10; return new; end $$;
        create trigger moves before update on t for each row execute function f();
        insert into t values (1, 1, 1);
    """,
    "a trigger that moves the key to and fro": """
        create table t (id int primary key, a int references p on update cascade, b int references p on update cascade);
        create function f() returns trigger language plpgsql as $$ begin new.id := -old.id; return new; end $$;
        create trigger moves before update on t for each row execute function f();
        insert into t values (1, 1, 1);
    """,
}


@pytest.mark.parametrize("table", CASCADES)
def test_cascades_that_move_one_row_twice_are_re_read(scratch: Connection, table: str) -> None:
    """They belong to the statement on the other table, and both have happened when the first is recorded."""

    def play(breaks: Callable[[Connection], None] | None) -> None:
        scratch.execute("create table p (k int primary key); insert into p values (1)")
        create, insert, values = CASCADES[table].partition("insert into")
        scratch.execute(create)
        watch(scratch, "t")
        scratch.execute(insert + values)
        if breaks:
            breaks(scratch)
        scratch.execute("update p set k = 2")
        assert_replays(scratch, "public.t")

    scratch.execute("savepoint before")
    play(None)
    scratch.execute("rollback to before")
    with pytest.raises(AssertionError):
        play(copy_moved_keys)


def test_cascades_that_touch_one_row_twice_end_with_the_last(scratch: Connection) -> None:
    """Two foreign keys, a row that refers to itself, set null and cascade for one row."""
    scratch.execute("""
        create table p (k int primary key);
        create table t (id int primary key, up int references t on update cascade on delete cascade,
                        a int references p on update cascade on delete set null, b int references p on update cascade on delete cascade);
        insert into p values (1), (2), (3);
    """)
    watch(scratch, "t")
    scratch.execute("insert into t values (1, 1, 1, 1), (2, 1, 1, 2), (3, 1, 2, 1), (4, 4, 3, 2), (5, 5, 2, 3)")
    for statement in (
        "update p set k = k + 10",
        "update t set id = id + 100 where id = 1",
        "update t set id = id + 100 where id = 2",
        "update p set k = 31 where k = 13",
        "delete from p where k = 12",
        "delete from t where id = 101",
        "delete from p",
    ):
        scratch.execute(statement)
        assert_replays(scratch, "public.t")


def test_what_is_copied_is_what_the_table_holds(scratch: Connection) -> None:
    """Defaults, identity, generated columns, BEFORE triggers, values kept out of line, a dropped column."""
    kinds = ["stored", "virtual"] if scratch.info.server_version >= 180000 else ["stored"]
    for kind in kinds:
        scratch.execute(f"""
            create table {kind} (gone int, id int generated always as identity primary key, n int default 3, body text,
                                 tags text[] default '{{a}}', data jsonb default 'null',
                                 twice int generated always as (n * 2) {kind}, late timestamptz default now());
            alter table {kind} alter body set storage external;
            alter table {kind} drop column gone;
            create or replace function f() returns trigger language plpgsql as $$ begin new.n := new.n + 1; return new; end $$;
            create trigger f before insert or update on {kind} for each row execute function f();
        """)
        watch(scratch, kind)
        scratch.execute(f"insert into {kind} (body) values ('a'), (repeat('b', 9000)), (repeat('c', 90000)), (null)")
        assert_replays(scratch)
        scratch.execute(f"update {kind} set n = 10 where id <> 1")
        assert_replays(scratch)
        scratch.execute(f"update {kind} set tags = tags || body where id <= 2; delete from {kind} where id = 3")
        assert_replays(scratch)


def test_columns_may_have_any_name(scratch: Connection) -> None:
    """Those of the capture function's own variables and aliases too."""
    scratch.execute(
        'create table t (t int, k int, x text, seen int, way text, captured int, "new_rows" int, primary key (t, k))'
    )
    watch(scratch, "t")
    scratch.execute("insert into t values (1, 1, 'x', 1, 'INSERT', 0, 1), (1, 2, 'y', 2, 'again', 9, 1)")
    scratch.execute("update t set x = 'z'; update t set k = k + 5, seen = 3")
    scratch.execute("update t set way = 'w' where k = 6")
    assert_replays(scratch)


SPECIAL = ["new", "old", "at", "made", "t", "x", "k", "f", "j", "r", "v", "inside", "found", "key", "row", "there", "same", "were",
           "sql", "mark", "headers", "command", "captured", "op", "shape"]  # fmt: skip
MAPPED: dict[str, dict[str, Any]] = {
    "plain": {},
    "masked": {"mask": '{"new": "redact"}'},
    "filtered": {"filter": "found is distinct from 'out'"},
    "renamed": {"rename": '{"old": "new", "new": "old"}'},
    "left out": {"exclude": ["at"]},
}


@pytest.mark.parametrize("mapping", MAPPED)
@pytest.mark.parametrize("kind", ["", "partition by hash (key)"])
def test_columns_may_be_called_as_helpers_of_ours(scratch: Connection, mapping: str, kind: str) -> None:
    """Small rows and large ones, copied, re-read, deleted, and after the table was altered."""
    columns = ", ".join(f"{name} text" for name in SPECIAL)
    scratch.execute(f"create table s ({columns}, primary key (key)) {kind}")
    if kind:
        scratch.execute("create table s0 partition of s for values with (modulus 1, remainder 0)")
    watch(scratch, "s", **MAPPED[mapping])
    for late in ("", "alter table s add late int"):
        scratch.execute(late or "select")
        scratch.execute(
            "insert into s (key, new, old, at) select i, 'n', repeat('o', i * 70000), 'a' from generate_series(1, 4) i"
        )
        scratch.execute(
            "select from s for update; update s set row = 'r', made = 'm'; update s set key = key || '0' where key < '3'"
        )
        scratch.execute("update s set found = 'out' where key = '10'; delete from s where key = '3'")
        assert_replays(scratch)
        assert len(ops(scratch)) >= 12
        scratch.execute("delete from s")
        assert_replays(scratch)


def test_one_plan_for_all_rows(scratch: Connection) -> None:
    """Also in a session that asks for a plan each time: capture's statements are not planned once a row."""
    scratch.execute("create table t (id int primary key, n int); set local plan_cache_mode = force_custom_plan")
    watch(scratch, "t")
    (settings,) = rows(
        scratch, "select proconfig from pg_proc where proname ~ '^capture_[0-9]+$' order by oid desc limit 1"
    )
    assert "plan_cache_mode=force_generic_plan" in settings[0]


def calls(conn: Connection, name: str) -> int:
    """How often this transaction has called a function of ours."""
    return int(value(conn, "select coalesce(sum(calls), 0) from pg_stat_xact_user_functions where funcname = %s", name))


ALTERED = {
    "a column more": "alter table t add late int",
    "a key that is gone": "alter table t drop constraint t_pkey",
}


@pytest.mark.parametrize("kind", ["", "partition by list (id)"])
@pytest.mark.parametrize("case", ALTERED)
def test_a_statement_for_an_altered_table_is_composed_once(scratch: Connection, case: str, kind: str) -> None:
    """Not once a row: whoever adds a column fills it next."""
    scratch.execute(f"create table t (id int primary key, n int) {kind}; set local track_functions = 'all'")
    if kind:
        scratch.execute("create table t_0 partition of t default")
    watch(scratch, "t")
    scratch.execute("insert into t select generate_series(1, 300)")
    scratch.execute(ALTERED[case])
    before = calls(scratch, "capture_sql")
    for statement in ("update t set n = 1", "update t set n = 2", "delete from t where id > 200"):
        scratch.execute(statement)
    assert 1 <= calls(scratch, "capture_sql") - before <= 12
    assert calls(scratch, "column_names") < 600
    assert ops(scratch)[300:] == (["resync"] * 3 if "gone" in case else ["upsert"] * 600 + ["delete"] * 100)


def test_a_deleted_key_may_be_back_before_its_delete_is_recorded(scratch: Connection) -> None:
    """A trigger before ours has written it again, and that was recorded: the delete has to see the row."""
    scratch.execute("""
        create table t (id int primary key, n int);
        create function back() returns trigger language plpgsql as $$ begin insert into t values (old.id, 9); return null; end $$;
        create trigger aaa after delete on t for each row when (old.n = 0) execute function back();
    """)
    watch(scratch, "t")
    scratch.execute("insert into t values (1, 0), (2, 0); delete from t where id = 1")
    assert_replays(scratch)
    rewrite(scratch, "there := exists (", "there := false and exists (")
    scratch.execute("delete from t where id = 2")
    with pytest.raises(AssertionError):
        assert_replays(scratch)
