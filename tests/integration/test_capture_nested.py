"""An application's own triggers write to the table that is being written: statements nest, the outbox stays right."""

import contextlib

import pytest
from psycopg import errors

from tests.captured import Connection, assert_replays, changes, copying_trigger, ops, watch
from tests.replay import Recorded, replay

TABLE = """
    create table item (id int primary key, position int not null default 0, current bool not null default false,
                       deleted_at timestamptz, total int not null default 0);
"""

# Triggers by name. {0} is where they sort: triggers of one kind fire in order of their names, ours is called outbox_….
TRIGGERS = {
    "after row, updates the same row": """
        create function f() returns trigger language plpgsql as $$ begin
          if pg_trigger_depth() = 1 then update item set total = total + 1 where id = new.id; end if; return null; end $$;
        create trigger {0} after insert or update on item for each row execute function f();
    """,
    "after row, updates all rows": """
        create function f() returns trigger language plpgsql as $$ begin
          if pg_trigger_depth() = 1 then update item set total = total + 1; end if; return null; end $$;
        create trigger {0} after insert or update on item for each row execute function f();
    """,
    "before row, only one current": """
        create function f() returns trigger language plpgsql as $$ begin
          if new.current then update item set current = false where id <> new.id and current; end if; return new; end $$;
        create trigger {0} before insert or update on item for each row execute function f();
    """,
    "before delete, a tombstone": """
        create function f() returns trigger language plpgsql as $$ begin
          update item set deleted_at = now() where id = old.id; return null; end $$;
        create trigger {0} before delete on item for each row execute function f();
    """,
    "before row, writes another value": """
        create function f() returns trigger language plpgsql as $$ begin new.total := 1000 + new.position; return new; end $$;
        create trigger {0} before insert or update on item for each row execute function f();
    """,
    "before row, another key": """
        create function f() returns trigger language plpgsql as $$ begin
          if new.id < 1000 then new.id := new.id + 1000; end if; return new; end $$;
        create trigger {0} before insert on item for each row execute function f();
    """,
    "before row, suppresses": """
        create function f() returns trigger language plpgsql as $$ begin
          if new.id % 2 = 0 then return null; end if; return new; end $$;
        create trigger {0} before insert or update on item for each row execute function f();
    """,
    "after statement, renumbers": """
        create function f() returns trigger language plpgsql as $$ begin
          if pg_trigger_depth() = 1 then
            update item i set position = n.n from (select id, row_number() over (order by id) n from item) n where n.id = i.id;
          end if; return null; end $$;
        create trigger {0} after insert or update or delete on item for each statement execute function f();
    """,
    "after row, deletes and inserts again": """
        create function f() returns trigger language plpgsql as $$ begin
          if pg_trigger_depth() = 1 then
            delete from item where id = new.id; insert into item (id, total) values (new.id, 77);
          end if; return null; end $$;
        create trigger {0} after update on item for each row execute function f();
    """,
    "after row, moves the key": """
        create function f() returns trigger language plpgsql as $$ begin
          if pg_trigger_depth() = 1 then update item set id = -id where id = new.id; end if; return null; end $$;
        create trigger {0} after insert or update on item for each row execute function f();
    """,
    "after row, tries and fails": """
        create function f() returns trigger language plpgsql as $$ begin
          if pg_trigger_depth() = 1 then
            begin update item set total = 5; perform 1 / 0; exception when division_by_zero then null; end;
            update item set position = position + 1 where id = new.id;
          end if; return null; end $$;
        create trigger {0} after insert or update on item for each row execute function f();
    """,
    "a deferred trigger": """
        create function f() returns trigger language plpgsql as $$ begin
          if new.total < 3 then update item set total = total + 1 where id = new.id; end if; return null; end $$;
        create constraint trigger {0} after insert or update on item deferrable initially deferred for each row execute function f();
    """,
}

STATEMENTS = [
    "insert into item (id, current) values (1, true), (2, false), (3, true)",
    "insert into item (id, current) values (4, true), (2, true) on conflict (id) do update set current = true, position = 9",
    "update item set position = position + 1",
    "update item set current = true where id in (1, 2, 1001)",
    "update item set total = total + floor(random() * 100)::int",
    "savepoint s; delete from item where id % 2 = 1; rollback to s; update item set total = 0 where id = 2",
    "delete from item where id in (1, -1, 1001)",
    (
        "merge into item using (values (2), (7)) s (id) on item.id = s.id when matched then update set total = -1"
        " when not matched then insert (id, current) values (s.id, true)"
    ),
    "delete from item",
    "insert into item (id) select generate_series(10, 30)",
    "update item set id = id + 100",
    "truncate item; insert into item (id, current) values (1, true)",
]


# Some of these triggers and statements do not go together, outbox or not.
THE_APPLICATIONS_OWN = (errors.UniqueViolation, errors.TriggeredDataChangeViolation, errors.CardinalityViolation)


@pytest.mark.parametrize("name", ["aaa", "zzz"])
@pytest.mark.parametrize("trigger", TRIGGERS)
def test_nested_statements_replay_to_the_table(scratch: Connection, trigger: str, name: str) -> None:
    """The user's trigger fires before ours and after it; after every statement the outbox is right."""
    scratch.execute(TABLE)
    watch(scratch, "item")
    scratch.execute(TRIGGERS[trigger].format(name))
    succeeded = 0
    for statement in STATEMENTS:
        with contextlib.suppress(*THE_APPLICATIONS_OWN), scratch.transaction():
            scratch.execute(statement)
            scratch.execute("set constraints all immediate")
            succeeded += 1
        assert_replays(scratch)
    assert succeeded >= 7


def test_triggers_of_two_tables_that_call_each_other(scratch: Connection) -> None:
    """A total kept by the items' trigger, and items stamped by the order's."""
    scratch.execute("""
        create table orders (id int primary key, total int not null default 0);
        create table line (id int primary key, order_id int references orders on delete cascade, amount int, seen int default 0);
        create function add_up() returns trigger language plpgsql as $$ begin
          update orders set total = (select coalesce(sum(amount), 0) from line where order_id = orders.id)
           where id in (coalesce(new.order_id, old.order_id), coalesce(old.order_id, new.order_id)); return null; end $$;
        create function stamp() returns trigger language plpgsql as $$ begin
          update line set seen = seen + 1 where order_id = new.id and pg_trigger_depth() < 4; return null; end $$;
        create trigger add_up after insert or update of order_id, amount or delete on line for each row execute function add_up();
        create trigger stamp after update on orders for each row execute function stamp();
    """)
    watch(scratch, "orders")
    watch(scratch, "line")
    for statement in (
        "insert into orders select generate_series(1, 3)",
        "insert into line select i, 1 + i % 3, i from generate_series(1, 9) i",
        "update line set amount = amount * 2, order_id = 1 where id < 5",
        "update orders set id = id + 10 where id = 3 and not exists (select from line where order_id = 3)",
        "delete from line where id > 7",
        "delete from orders where id = 1",
    ):
        scratch.execute(statement)
        assert_replays(scratch)


def test_the_oracle_catches_a_copying_trigger(scratch: Connection) -> None:
    """Copying the row ends stale when statements nest; re-reading it by its key does not. So the tests above can fail."""
    scratch.execute(TABLE)
    watch(scratch, "item", capture=False)
    scratch.execute(TRIGGERS["after row, updates the same row"].format("aaa"))
    copying_trigger(scratch, "item")
    scratch.execute("insert into item (id) values (1)")
    assert [c.op for c in changes(scratch)] == ["upsert", "upsert"]
    with pytest.raises(AssertionError):
        assert_replays(scratch, "public.item")
    scratch.execute(
        "drop trigger zzz_copy on item; drop trigger zzz_truncate on item; delete from outbox.change; delete from item"
    )
    watch(scratch, "item")
    scratch.execute("insert into item (id) values (1)")
    assert ops(scratch) == ["upsert", "upsert"]
    assert_replays(scratch)


def test_the_oracle_replays_in_id_order() -> None:
    """The last change of a key holds, a truncate empties, columns left out keep their value."""
    recorded = [
        Recorded(4, "t", "upsert", "b", '{"a":1.10}'),
        Recorded(1, "t", "upsert", "a", '{"a":1}'),
        Recorded(3, "t", "truncate", "{}"),
        Recorded(2, "t", "upsert", "b", '{"a":2}'),
        Recorded(5, "t", "upsert", "b", '{"c":"x"}'),
        Recorded(6, "t", "upsert", "d", "{}"),
        Recorded(7, "t", "delete", "d"),
    ]
    rows = replay(recorded)
    assert {key: {name: str(given) for name, given in row.items()} for key, row in rows.items()} == {
        "b": {"a": "1.10", "c": "x"}
    }
    with pytest.raises(AssertionError, match="resync"):
        replay([*recorded, Recorded(8, "t", "resync", "{}")])
