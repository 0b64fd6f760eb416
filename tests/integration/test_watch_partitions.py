"""A watched partitioned table: written through its root, through its partitions, moved, truncated, rebuilt."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg import IsolationLevel

from tests.captured import Connection, assert_replays, changes, ops, rows, value, waits_for, watch
from tests.databases import Database
from tests.waiting import wait_until

TREE = """
    create table p (region text, id int, note text, primary key (region, id)) partition by list (region);
    create table p_eu partition of p for values in ('eu');
    create table p_us partition of p for values in ('us') partition by range (id);
    create table p_us_low partition of p_us for values from (0) to (100);
    create table p_us_high partition of p_us for values from (100) to (200);
"""
ROWS = "insert into p values ('eu', 1, 'a'), ('eu', 2, 'b'), ('us', 1, 'c'), ('us', 150, 'd')"


@pytest.fixture
def tree(scratch: Connection) -> Connection:
    """A tree of two levels with a row in each leaf, recorded so far."""
    scratch.execute(TREE)
    watch(scratch, "p")
    scratch.execute(ROWS)
    return scratch


WRITES = {
    "through the root": "update p set note = 'x'; delete from p where id = 2; insert into p values ('us', 2, 'n')",
    "into a leaf": "insert into p_eu values ('eu', 3, 'n'); update p_eu set note = 'x' where id = 1; delete from p_eu where id = 2",
    "into a branch": "insert into p_us values ('us', 3, 'n'); update p_us set note = 'x'; delete from p_us where id = 150",
    "a row that moves to another branch": "update p set region = 'us' where region = 'eu' and id = 2",
    "a row that moves within a branch": "update p_us set id = id + 100 where id < 100",
    "rows that trade places": "update p set id = 199 where region = 'eu' and id = 1;"
    " update p set region = 'eu' where region = 'us' and id = 1; update p set region = 'us', id = 1 where id = 199",
    "upserts": "insert into p values ('eu', 1, 'x'), ('us', 5, 'y') on conflict (region, id) do update set note = 'merged'",
    "merge": "merge into p using (values ('eu', 1), ('us', 9)) s (region, id) on p.region = s.region and p.id = s.id"
    " when matched then delete when not matched then insert values (s.region, s.id, 'm')",
    "truncate of the root": "truncate p",
    "truncate of a branch": "truncate p_us",
    "truncate of a leaf": "truncate p_us_low",
    "truncate of leaves at once": "truncate p_eu, p_us_high",
    "truncate, and rows again": "truncate p; insert into p values ('eu', 1, 'again'); truncate p_us; insert into p values ('us', 7, 'x')",
    "truncate of a leaf after the root": "truncate p; insert into p values ('eu', 1, 'again'), ('us', 7, 'x'); truncate p_eu",
    "truncate taken back": "savepoint s; truncate p; rollback to s; truncate p_eu",
}  # fmt: skip


@pytest.mark.parametrize("case", WRITES)
def test_every_way_into_the_tree_is_captured(tree: Connection, case: str) -> None:
    """Whatever relation a statement names, the outbox names the root and the row's own key."""
    tree.execute(WRITES[case])
    assert {change.table for change in changes(tree)} == {"public.p"}
    assert_replays(tree)


def test_truncating_the_root_is_one_change(tree: Connection) -> None:
    """Not one a row: the partitions keep silent while the root speaks."""
    before = len(changes(tree))
    tree.execute("truncate p")
    assert ops(tree)[before:] == ["truncate"]
    tree.execute(ROWS)
    tree.execute("truncate p_us_low")
    assert ops(tree)[-1] == "delete"


def test_a_partition_added_later(tree: Connection) -> None:
    """It is captured at once, through the root and by itself; its TRUNCATE alone once the root is watched again."""
    tree.execute("create table p_as partition of p for values in ('as')")
    tree.execute("insert into p values ('as', 1, 'a')")
    assert_replays(tree)
    tree.execute("truncate p")
    assert_replays(tree)
    tree.execute("insert into p_as values ('as', 2, 'seen')")
    assert_replays(tree)
    tree.execute("savepoint s; truncate p_as")
    with pytest.raises(AssertionError):
        assert_replays(tree)
    tree.execute("rollback to s")
    watch(tree, "p")
    tree.execute("update p_as set note = 'seen'; insert into p_as values ('as', 3, 'seen')")
    assert_replays(tree)
    tree.execute("truncate p_as")
    assert_replays(tree)


def test_a_partition_attached_with_its_rows(tree: Connection) -> None:
    """ATTACH fires no trigger: its rows travel when somebody touches them, or with a resync."""
    tree.execute("create table p_as (like p including all); insert into p_as values ('as', 1, 'a'), ('as', 2, 'b')")
    before = len(changes(tree))
    tree.execute("alter table p attach partition p_as for values in ('as')")
    assert len(changes(tree)) == before
    watch(tree, "p")
    tree.execute("update p set note = 'touched' where region = 'as'")
    assert_replays(tree)


TRIGGERS = (
    "select tgrelid::regclass::text, tgenabled::text from pg_trigger where tgname like 'outbox\\_row\\_%' order by 1"
)


def test_the_trigger_for_rows_is_cloned_and_fires_always(tree: Connection) -> None:
    """To partitions that are there, come later, or are attached; it goes when they are detached, and when watched again it is the same."""
    tree.execute("create table p_as partition of p for values in ('as')")
    tree.execute("create table p_af (like p); alter table p attach partition p_af for values in ('af')")
    everywhere = [(name, "A") for name in ("p", "p_af", "p_as", "p_eu", "p_us", "p_us_high", "p_us_low")]
    assert rows(tree, TRIGGERS) == everywhere
    watch(tree, "p")
    assert rows(tree, TRIGGERS) == everywhere
    tree.execute("set local session_replication_role = replica")
    tree.execute(
        "insert into p_as values ('as', 1, 'a'); insert into p values ('af', 1, 'a'); update p set region = 'eu', id = 9 where region = 'as'"
    )
    assert_replays(tree)
    tree.execute("alter table p detach partition p_as")
    assert ("p_as", "A") not in rows(tree, TRIGGERS)


def test_a_watched_table_may_be_attached(tree: Connection) -> None:
    """Its own trigger is in nobody's way: ATTACH succeeds, and the root has its rows from then on; watching that settles it."""
    tree.execute(
        "create table p_as (note text, id int, region text, primary key (region, id))"
    )  # another order of columns
    watch(tree, "p_as")
    tree.execute("alter table p attach partition p_as for values in ('as')")
    tree.execute(
        "insert into p values ('as', 1, 'a'); update p_as set note = 'b'; insert into p_as values ('x', 2, 'as'); delete from p where id = 2"
    )
    assert_replays(tree, "public.p")
    assert_replays(tree, "public.p_as")
    watch(tree, "p")
    tree.execute("insert into p_as values ('x', 3, 'as'); truncate p_as")
    assert_replays(tree, "public.p")
    assert rows(tree, "select count(*) from pg_trigger where tgrelid = 'p_as'::regclass and tgname like 'outbox%'") == [
        (2,)
    ]


def test_a_detached_partition_is_no_longer_the_table(tree: Connection) -> None:
    """Its triggers stay until the root is watched again, but write nothing under the root's name."""
    before = len(changes(tree))
    tree.execute("alter table p detach partition p_eu")
    tree.execute(
        "insert into p_eu values ('eu', 9, 'elsewhere'); update p_eu set note = 'x'; delete from p_eu; truncate p_eu"
    )
    assert len(changes(tree)) == before
    watch(tree, "p")
    on_detached = "select tgname from pg_trigger where tgrelid = 'p_eu'::regclass and not tgisinternal"
    assert rows(tree, on_detached) == []
    tree.execute("alter table p attach partition p_eu default")
    watch(tree, "p")
    tree.execute("insert into p values ('af', 1, 'x')")
    assert ops(tree)[before:] == ["upsert"]


def test_unwatching_takes_all_triggers_of_the_tree(tree: Connection) -> None:
    """Root, branches and leaves."""
    tree.execute("select outbox.unwatch('p')")
    assert rows(tree, "select tgrelid::regclass from pg_trigger where tgname like 'outbox%'") == []


def test_truncating_a_leaf_under_an_old_snapshot_is_marked(source: Database, app: Connection) -> None:
    """TRUNCATE removes rows that the snapshot cannot name: the outbox says so. For the root it need not name any."""
    app.execute(TREE)
    watch(app, "p")
    app.execute(ROWS)
    with source.connect(autocommit=False) as early:
        early.isolation_level = IsolationLevel.REPEATABLE_READ
        for target, op in (("p_eu", "resync"), ("p", "truncate")):
            early.execute("select 1")
            app.execute("insert into p values ('eu', 99, 'late') on conflict do nothing")
            early.execute(f"truncate {target}")
            early.commit()
            assert ops(app)[-1] == op


@pytest.mark.parametrize("change", ["watch('p')", "unwatch('p')", "watch('p', capture => false)"])
def test_watch_locks_the_tree_as_its_writers_do(source: Database, app: Connection, change: str) -> None:
    """From the root down, also where a partition is older than its root: no writer dies of a deadlock."""
    older = range(2, 8)
    for i in older:
        app.execute(f"create table p_{i} (id int primary key)")
    app.execute("create table p (id int primary key) partition by list (id)")
    app.execute("create table p_1 partition of p for values in (1)")
    for i in older:
        app.execute(f"alter table p attach partition p_{i} for values in ({i})")
    watch(app, "p")
    with source.connect() as watcher, ThreadPoolExecutor() as pool, source.connect(autocommit=False) as writer:
        writer.execute("insert into p values (1)")
        done = pool.submit(watcher.execute, f"select outbox.{change}")
        wait_until(lambda: waits_for(app, watcher, writer))
        for i in older:
            writer.execute(f"insert into p values ({i})")
        writer.commit()
        done.result(10)
    assert ops(app) == ["upsert"] * 7


@pytest.fixture
def owners(source: Database, app: Connection) -> Iterator[tuple[str, str]]:
    """Two roles that own tables; what they own is watched by somebody else."""
    roles = (f"owner_{source.name}", f"heir_{source.name}")
    for role in roles:
        app.execute(f"create role {role}; grant create, usage on schema public to {role}")
    yield roles
    app.execute(f"reset role; drop owned by {', '.join(roles)} cascade; drop role {', '.join(roles)}")


def test_the_owner_makes_partitions_of_what_somebody_else_watches(app: Connection, owners: tuple[str, str]) -> None:
    """The trigger is cloned as whoever makes or attaches one. After another owner came, once the table is watched again."""
    app.execute(TREE)
    for role in owners:
        for table in ("p", "p_eu", "p_us", "p_us_low", "p_us_high"):
            app.execute(f"alter table {table} owner to {role}")
        watch(app, "p")
        part = role.split("_")[0]
        app.execute(f"set role {role}; create table p_{part} partition of p for values in ('{part}')")
        app.execute(
            f"create table q_{part} (like p); alter table p attach partition q_{part} for values in ('q{part}')"
        )
        app.execute(f"insert into p values ('{part}', 1, 'a'), ('q{part}', 2, 'b'); reset role")
        assert_replays(app)
    assert rows(
        app,
        "select has_function_privilege(r, p.oid, 'execute') from unnest(%s::text[]) r, pg_proc p where p.proname ~ '^capture_[0-9]+$'",
        list(owners),
    ) == [(False,), (True,)]


@pytest.mark.parametrize("kind", ["", "partition by list (id)"])
def test_the_trigger_on_another_table_records_none_of_its_rows(
    app: Connection, owners: tuple[str, str], kind: str
) -> None:
    """Its owner may call the function: what happens elsewhere is marked, and never written as the watched table's."""
    app.execute(f"set role {owners[0]}; create table t (id int primary key) {kind}; reset role")
    if kind:
        app.execute("create table t_1 partition of t default")
    watch(app, "t")
    (number, function) = rows(app, "select id, 'outbox.capture_' || id from outbox.watched")[0]
    app.execute(f"""
        grant usage on schema outbox to {owners[0]};
        set role {owners[0]};
        create table mine (id int primary key);
        create trigger mine after insert or update or delete on mine for each row execute function {function}('{number}');
        insert into mine values (1), (2); update mine set id = 3 where id = 1; delete from mine;
        reset role
    """)
    assert {(change.op, change.key, change.row) for change in changes(app)} == {("resync", "{}", None)}


def test_a_change_locks_no_partition_but_its_own(source: Database, app: Connection) -> None:
    """A key can be in one partition only: whoever works on another one waits for nobody, nor makes anybody wait."""
    app.execute("create table p (region int, id int, note text, primary key (region, id)) partition by list (region)")
    for n in range(30):
        app.execute(f"create table p_{n} partition of p for values in ({n})")
    watch(app, "p")
    app.execute("insert into p select 0, i, 'a' from generate_series(1, 50) i")
    locked = "select count(distinct relation) from pg_locks where pid = pg_backend_pid() and relation::regclass::text ~ '^p_[0-9]+$'"
    with source.connect(autocommit=False) as busy, source.connect(autocommit=False) as conn:
        busy.execute("lock table p_1 in access exclusive mode")
        conn.execute("set local lock_timeout = '5s'")
        for i in range(1, 11):
            conn.execute(f"delete from p_0 where id = {i}")  # by the partition: the application locks no other
            conn.execute(f"update p_0 set id = id + 100 where id = {i + 20}")
            conn.execute(
                f"select from p_0 where id = {i + 30} for update; update p_0 set note = 'b' where id = {i + 30}"
            )
        assert value(conn, locked) == 1
        conn.commit()
    assert_replays(app)


@pytest.mark.parametrize(
    "step", ["update p set region = 'eu', id = 9 where region = 'us'", "update p_us set id = id + 100 where id < 100"]
)
def test_a_row_that_moved_and_came_back(tree: Connection, step: str) -> None:
    """Another partition, another key: what is read of each is read where such a key can be."""
    tree.execute("delete from p where id = 150")
    tree.execute(f"""
        create function back() returns trigger language plpgsql as $$ begin
          if pg_trigger_depth() = 1 then
            delete from p where region = new.region and id = new.id; insert into p values ('us', 1, 'back') on conflict do nothing;
          end if;
          return null; end $$;
        create trigger aaa after insert or update on p for each row execute function back();
        {step}
    """)
    assert_replays(tree)
    assert rows(tree, "select note from p where region = 'us' and id = 1") == [("back",)]


@pytest.mark.parametrize(
    "how", ["truncate c cascade", "truncate a cascade", "truncate c1, c", "truncate only c1", "truncate d, c1, c"]
)
@pytest.mark.parametrize("level", ["read committed", "repeatable read"])
def test_trees_that_are_emptied_together(source: Database, app: Connection, how: str, level: str) -> None:
    app.execute("""
        create table c1 (id int primary key, a int); create table d1 (id int primary key, a int);
        create table a (id int primary key);
        create table c (id int primary key, a int references a) partition by range (id);
        create table d (id int primary key, a int references a) partition by range (id);
        alter table c attach partition c1 for values from (0) to (10); alter table d attach partition d1 for values from (0) to (10)
    """)
    for table in "acd":
        watch(app, table)
    app.execute("insert into a values (1), (2); insert into c values (1, 1), (2, 2); insert into d values (1, 1)")
    with source.connect() as writer:
        writer.execute(f"begin isolation level {level}; insert into c values (3, 1)")
        writer.execute(f"savepoint s; {how}; rollback to s; {how}")
        writer.execute("insert into c values (4, null); commit")
        writer.execute("truncate c1")
    if "resync" not in ops(app):
        assert_replays(app, "public.a", "public.c", "public.d")
    else:
        assert level == "repeatable read", ops(app)


def test_a_table_becomes_the_partition_of_one_with_its_name(app: Connection) -> None:
    """The way to partition a table that is there: rename, make the root, attach."""
    app.execute("create table t (id int primary key, a text)")
    watch(app, "t")
    app.execute("insert into t values (1, 'a'), (2, 'b')")
    app.execute("""
        begin; alter table t rename to t_old; create table t (id int primary key, a text) partition by range (id);
        alter table t attach partition t_old for values from (0) to (100); create table t_new partition of t for values from (100) to (200); commit
    """)
    app.execute("update t set a = 'c' where id = 1; delete from t where id = 2; insert into t values (3, 'd')")
    watch(app, "t")
    app.execute(
        "insert into t values (101, 'x'); update t set id = 102 where id = 1; update t set id = 4 where id = 101; truncate t_new"
    )
    if "resync" not in ops(app):
        assert_replays(app, "public.t")
