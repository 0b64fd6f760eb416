"""Every kind of statement, alone and in transactions: the outbox, replayed, equals the table."""

import io

import psycopg
import pytest

from tests.captured import Connection, assert_replays, changes, ops, rows, value, watch

TABLES = """
    create table parent (id int primary key, name text not null unique, n int not null default 0);
    create table child (
      id int primary key,
      cascading int references parent on delete cascade on update cascade,
      emptied int references parent on delete set null on update set null,
      defaulted int default 1 references parent on delete set default on update cascade,
      named text references parent (name) on update cascade);
    create table grandchild (id int primary key, child int references child on delete cascade on update cascade);
"""
ROWS = """
    insert into parent select i, 'p' || i from generate_series(1, 5) i;
    insert into child select i, 1 + i % 5, 1 + i % 5, 1 + i % 5, 'p' || 1 + i % 5 from generate_series(1, 12) i;
    insert into grandchild select i, 1 + i % 12 from generate_series(1, 30) i;
"""


@pytest.fixture
def family(scratch: Connection) -> Connection:
    """Three watched tables with every kind of foreign key between them."""
    scratch.execute(TABLES)
    for table in ("parent", "child", "grandchild"):
        watch(scratch, table)
    scratch.execute(ROWS)
    return scratch


STATEMENTS = {
    "insert": "insert into parent values (9, 'nine')",
    "insert of nothing": "insert into parent select * from parent where false",
    "insert select": "insert into parent select id + 10, name || '+' from parent",
    "update": "update parent set n = n + 1 where id > 2",
    "update of nothing": "update parent set n = 1 where id = 99",
    "update to the same": "update parent set n = n",
    "update from": "update parent set n = c.id from child c where c.cascading = parent.id",
    "delete": "delete from grandchild where id < 5",
    "delete using": "delete from grandchild g using child c where g.child = c.id and c.cascading = 3",
    "truncate": "truncate grandchild",
    "truncate cascade": "truncate parent cascade",
    "truncate of several": "truncate parent, child, grandchild restart identity",
    "truncate, then rows again": "truncate grandchild; insert into grandchild values (1, 1)",
    "rows, truncate in one transaction": "insert into grandchild values (99, 1); truncate grandchild; insert into grandchild values (98, 2)",
    "a key that changes": "update parent set id = 100 where id = 2",
    "a key that moves and comes back": "update grandchild set id = 100 where id = 1; update grandchild set id = 1 where id = 100",
    "a key that another row takes": "update grandchild set id = 100 where id = 1; update grandchild set id = 1 where id = 2",
    "keys that trade places": "update grandchild set id = -1 where id = 1; update grandchild set id = 1 where id = 2;"
    " update grandchild set id = 2 where id = -1",
    "delete, then insert of one key": "delete from grandchild where id = 1; insert into grandchild values (1, 7)",
    "insert, then delete": "insert into grandchild values (99, 1); delete from grandchild where id = 99",
    "insert on conflict do nothing": "insert into parent values (1, 'x'), (9, 'nine') on conflict do nothing",
    "insert on conflict do update": "insert into parent values (1, 'x'), (9, 'nine') on conflict (id) do update set n = 7",
    "insert on conflict that changes the key": "insert into parent values (99, 'p1') on conflict (name) do update set id = excluded.id",
    "insert on conflict where false": "insert into parent values (1, 'x') on conflict (id) do update set n = 7 where false",
    "merge": "merge into parent using (values (1), (2), (9)) s (id) on parent.id = s.id when matched and s.id = 1 then delete"
    " when matched then update set n = 5 when not matched then insert values (s.id, 'm' || s.id)",
    "merge that changes keys": "merge into parent using (values (1)) s (id) on parent.id = s.id when matched then update set id = 50",
    "cascades of a delete": "delete from parent where id in (2, 3)",
    "cascades of a key": "update parent set id = id * 10 where id > 1",
    "cascade of a name": "update parent set name = upper(name)",
    "a cascade and a key change at once": "update child set id = id + 100; delete from parent where id = 4",
    "writable CTEs": "with d as (delete from grandchild where id < 4 returning *), u as (update parent set n = -1 where id = 1 returning *)"
    " insert into grandchild select d.id + 100, d.child from d, u",
    "writable CTEs on one table": "with d as (delete from grandchild where id < 4 returning *), u as (update grandchild set child = 2 where id > 25)"
    " insert into grandchild select id + 200, child from d",
    "volatile functions": "update parent set n = floor(random() * 1000)::int, name = gen_random_uuid()::text",
    "select into a new row of a sequence": "create sequence s; insert into grandchild select 1000 + nextval('s'), 1 from generate_series(1, 3)",
    "savepoint kept": "savepoint s; update parent set n = 1; release s; update parent set n = 2 where id = 1",
    "savepoint taken back": "update parent set n = 3; savepoint s; update parent set n = 4; delete from grandchild; rollback to s",
    "savepoint in savepoint": "savepoint a; insert into grandchild values (99, 1); savepoint b; update grandchild set child = 2;"
    " rollback to b; delete from grandchild where id = 1; release a",
    "a delete taken back, then an update": "savepoint s; delete from grandchild where id = 1; rollback to s; update grandchild set child = 3 where id = 1",
    "a block that fails": "do $$ begin update grandchild set child = 5; begin delete from grandchild; raise 'no'; exception when others then null; end;"
    " insert into grandchild values (99, 1); end $$",
    "a cursor": "declare c cursor for select * from parent for update; fetch 2 from c; update parent set n = 8 where current of c;"
    " move next in c; delete from parent where current of c",
    "a view": "create view v as select id, n from parent where id < 3; update v set n = 77; delete from v where id = 2",
    "a rule": "create rule away as on delete to grandchild do instead update grandchild set child = null where id = old.id;"
    " delete from grandchild where id = 3",
    "a prepared statement": "prepare p (int) as update parent set n = $1; execute p (1); execute p (2); deallocate p",
    "a deferred constraint": "alter table child alter constraint child_cascading_fkey deferrable initially deferred;"
    " insert into child values (50, 99); insert into parent values (99, 'late')",
}  # fmt: skip


@pytest.mark.parametrize("case", STATEMENTS)
def test_the_outbox_replayed_equals_the_tables(family: Connection, case: str) -> None:
    """One kind of statement after the other, each on rows that were recorded already."""
    family.execute(STATEMENTS[case])
    family.execute("set constraints all immediate")
    assert_replays(family)


def test_a_row_that_was_not_touched_is_not_recorded(family: Connection) -> None:
    """One change for each touched row of a statement, none for others, none for a statement that found none."""
    family.execute("delete from outbox.change")
    family.execute(
        "update parent set n = 1 where id = 99; delete from parent where false; insert into parent select * from parent where false"
    )
    assert ops(family) == []
    family.execute("update parent set n = 1 where id in (1, 2)")
    assert sorted(c.key for c in changes(family)) == ['{"id":1}', '{"id":2}']


def test_a_key_change_is_two_changes(family: Connection) -> None:
    """The old key is deleted, the new one has the row."""
    family.execute("delete from outbox.change; update grandchild set id = 100 where id = 1")
    assert sorted((c.op, c.key) for c in changes(family)) == [("delete", '{"id":1}'), ("upsert", '{"id":100}')]


def test_a_chain_of_keys(scratch: Connection) -> None:
    """k = k + 1 over many rows, as far as the key allows it in one statement."""
    scratch.execute("create table chain (k int primary key, was int)")
    watch(scratch, "chain")
    scratch.execute("insert into chain select i, i from generate_series(100, 1, -1) i")  # highest first, in heap order
    scratch.execute("update chain set k = k + 1")
    assert_replays(scratch)
    assert ops(scratch)[100:].count("delete") == 1
    scratch.execute("update chain set k = k + 1 where was > 50; update chain set k = k - 1000")
    assert_replays(scratch)


@pytest.mark.parametrize("form", ["", "with (format csv)", "with (format binary)"])
def test_copy_in_is_captured(scratch: Connection, form: str) -> None:
    """COPY fires triggers like any INSERT."""
    scratch.execute(
        "create table t (id int primary key, note text); create table seed as select i, 'n' || i from generate_series(1, 50) i"
    )
    watch(scratch, "t")
    data = io.BytesIO()
    with scratch.cursor() as cursor:
        with cursor.copy(f"copy seed to stdout {form}") as out:
            for block in out:
                data.write(block)
        with cursor.copy(f"copy t from stdin {form}") as into:
            into.write(data.getvalue())
    assert value(scratch, "select count(*) from t") == 50
    assert_replays(scratch)


def test_copy_freeze_is_captured(scratch: Connection) -> None:
    """Rows that are born frozen are read back like others."""
    scratch.execute("create table t (id int primary key)")
    watch(scratch, "t")
    scratch.execute("truncate t")
    with scratch.cursor() as cursor, cursor.copy("copy t from stdin with (freeze)") as into:
        into.write("1\n2\n")
    assert_replays(scratch)
    assert ops(scratch) == ["truncate", "upsert", "upsert"]


def test_what_is_rolled_back_leaves_nothing(app: Connection) -> None:
    """Neither a change nor a set of columns."""
    app.execute("create table t (id int primary key)")
    watch(app, "t")
    app.execute("alter table t add late int")
    with app.transaction(force_rollback=True):
        app.execute("insert into t values (1)")
        assert ops(app) == ["upsert"]
    assert (changes(app), value(app, "select count(*) from outbox.shape")) == ([], 1)


def test_a_failing_statement_leaves_nothing(app: Connection) -> None:
    """The application meets its own error, and no other."""
    app.execute("create table t (id int primary key)")
    watch(app, "t")
    app.execute("insert into t values (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        app.execute("insert into t values (2), (1)")
    assert [c.key for c in changes(app)] == ['{"id":1}']


def test_two_spellings_of_a_numeric_key_are_one(scratch: Connection) -> None:
    """1 and 1.00 are the same row."""
    scratch.execute("create table t (id numeric primary key, note text)")
    watch(scratch, "t")
    scratch.execute(
        "insert into t values (1.00, 'a'), (20, 'b'), ('NaN', 'c'); update t set id = 1, note = 'x' where id = 1.0"
    )
    scratch.execute("update t set id = 20.500 where id = 20; delete from t where id = 'NaN'")
    assert [c.key for c in changes(scratch) if c.op == "upsert"] == [
        '{"id":1}', '{"id":20}', '{"id":"NaN"}', '{"id":1}', '{"id":20.5}'
    ]  # fmt: skip
    assert_replays(scratch)


def test_the_columns_of_a_row_are_named_once(scratch: Connection) -> None:
    """Rows of one form share a shape; a column more makes another."""
    scratch.execute("create table t (id int primary key, note text)")
    watch(scratch, "t")
    scratch.execute(
        "insert into t values (1); insert into t values (2); delete from t where id = 1; alter table t add late int; insert into t values (3)"
    )
    assert rows(scratch, "select columns from outbox.change c left join outbox.shape s on s.id = c.shape order by c.id") == [
        (["id", "note"],), (["id", "note"],), (None,), (["id", "note", "late"],)
    ]  # fmt: skip


def test_the_time_the_writer_and_its_headers_travel(scratch: Connection) -> None:
    """outbox.headers, set for the transaction, is written with each change; so is whether its commit is flushed."""
    scratch.execute("create table t (id int primary key)")
    watch(scratch, "t")
    scratch.execute("""set local outbox.headers = '{"trace": "1"}'; insert into t values (1)""")
    scratch.execute("set local outbox.headers = ''; set local synchronous_commit = off; insert into t values (2)")
    told = "select headers, unflushed, xid = pg_current_xact_id(), created_at between now() and clock_timestamp() from outbox.change order by id"
    assert rows(scratch, told) == [('{"trace": "1"}', False, True, True), (None, True, True, True)]


def test_a_large_table_is_never_scanned(app: Connection) -> None:
    """Each key re-read is one index probe, also when the plan was made while the table was small or after a bulk statement."""
    app.execute("create table t (id int primary key, n int); alter table t set (autovacuum_enabled = off)")
    watch(app, "t")
    counters = "select seq_scan, idx_scan from pg_stat_xact_user_tables where relname = 't'"
    app.execute("insert into t values (1), (2), (3); analyze t")
    locked = "select from t for update; "  # so that what is written next is re-read
    app.execute(
        locked + "update t set n = 0; delete from t where id = 3; insert into t values (3)"
    )  # planned for three rows
    with app.transaction():
        ((scans, probes),) = rows(app, counters)
        app.execute("insert into t select i, 0 from generate_series(4, 3000) i on conflict do nothing")
        app.execute("insert into t select i, 0 from generate_series(4, 3000) i on conflict (id) do update set n = 1")
        for i in range(100, 107):
            app.execute(f"select from t where id = {i} for update; update t set n = {i} where id = {i}")
        app.execute("delete from t where id between 10 and 19")
        ((scans_now, probes_now),) = rows(app, counters)
        assert scans_now == scans
        assert probes_now - probes >= 2997 + 7 + 10
    with app.transaction():
        app.execute("alter table t add late int")
        ((scans, _),) = rows(app, counters)
        app.execute("update t set late = 1 where id = 5")  # composed afresh
        assert rows(app, counters)[0][0] == scans
