"""Random triggers of an application × random statements × savepoints: the outbox, replayed, equals the tables.

Derandomised: every run tries the same scenarios. CAPTURE_EXAMPLES=2000 in the environment tries that many new ones.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from psycopg import errors, sql

from tests.captured import Connection, assert_replays, copying_trigger, watch

SEARCH = int(os.environ.get("CAPTURE_EXAMPLES", "0"))

TABLES = """
    create sequence codes;
    create table item (id int primary key, a int not null default 0, b int not null default 0,
                       code int not null unique default nextval('codes'));
    create table part (id int primary key, a int not null default 0,
                       item int references item on delete {} on update cascade);
"""

STATEMENTS = [
    "insert into item (id, a) values ({k}, {v}) on conflict (id) do update set a = excluded.a",
    "insert into item (id) select i from generate_series({k}, {k} + 2) i on conflict do nothing",
    "update item set a = a + {v} where id = {k}",
    "update item set a = floor(random() * 10)::int, b = {v}",
    "update item set id = {j} where id = {k}",
    "update item set id = id + 1 where id >= {k}",
    "update item set id = id - 20 where id > 15",
    "delete from item where id = {k}",
    "delete from item where a > {v}",
    ("merge into item using (values ({k}), ({j})) s (id) on item.id = s.id"
    " when matched and a > 3 then delete when matched then update set b = {v} when not matched then insert (id) values (s.id)"),
    "with gone as (delete from item where id = {k}) update item set b = {v} where id = {j}",
    "with gone as (delete from item where id = {k} returning a) insert into item (id, a) select {j}, a from gone",
    "insert into part values ({k}, {v}, {j}) on conflict (id) do update set item = excluded.item",
    "update part set item = {k} where id = {j}",
    "delete from part where item = {k}",
    "select 1 from item where id = {k} for update",
    "select 1 from item for key share",
    "insert into item (id) select i from generate_series({k}, {k} + 2) i on conflict (id) do update set b = item.b + 1",
    "with own as (select id from item where a > {v} for no key update) update item set a = {v} from own where own.id = item.id",
    ("do $s$ begin perform 1 from item where id = {k} for share; begin perform 1 from item where id = {k} for update;"
    " update item set b = {v} where id = {k}; if {v} % 2 = 0 then raise 'no'; end if; exception when raise_exception then null; end; end $s$"),
    "truncate part",
    "truncate item cascade",
]  # fmt: skip

# What a trigger does. `r` stands for the row it fires for, or for some row when it fires for a statement.
ACTIONS = [
    "update item set b = b + 1 where id = r.id;",
    "update item set b = b + 1;",
    "update item set a = 0 where a > 3 and id <> r.id;",
    "update item set id = id + 20 where id = r.id and id < 15;",
    "delete from item where id = r.id and a > 5;",
    "delete from item where id = r.id; insert into item (id, a) values (r.id, 7) on conflict do nothing;",
    "insert into item (id) values (r.id + 1) on conflict (id) do update set b = 50;",
    "begin update item set b = 99; perform 1 / (r.a - r.a); exception when division_by_zero then null; end;",
    ("begin delete from item where id = r.id; if r.b % 2 = 0 then raise 'no'; end if;"
    " exception when raise_exception then null; end;"),
    "update item set b = n.n from (select id, row_number() over (order by id) n from item) n where n.id = item.id;",
    "insert into part (id, item) values (r.id, r.id) on conflict (id) do update set a = part.a + 1;",
    "update part set a = a + 1 where item = r.id;",
    "perform 1 from item where id = r.id for update;",
    "begin perform 1 from item where id = r.id for share; raise 'no'; exception when raise_exception then null; end;",
]  # fmt: skip
ROW = {"item": "coalesce(new.id, old.id) id, coalesce(new.a, old.a) a, coalesce(new.b, old.b) b",
       "part": "coalesce(new.item, old.item, 1) id, 1 a, 1 b"}  # fmt: skip
RETURNS = {
    "the row": "return coalesce(new, old);",
    "another row": "if tg_op <> 'DELETE' then new.a := coalesce(new.a, 0) + 1; end if; return coalesce(new, old);",
    "nothing": "return null;",
}

# Errors that these triggers and statements make by themselves, outbox or not.
THE_APPLICATIONS_OWN = (
    errors.UniqueViolation,
    errors.ForeignKeyViolation,
    errors.NotNullViolation,
    errors.TriggeredDataChangeViolation,
    errors.CardinalityViolation,
    errors.StatementTooComplex,
)


@dataclass(frozen=True)
class Trigger:
    """A trigger of the application; those of one kind fire in the order of their names, ours is called outbox_…"""

    name: str
    table: str
    when: str
    events: tuple[str, ...]
    each: str
    actions: tuple[str, ...]
    depth: int
    returns: str

    def ddl(self, number: int) -> str:
        row = ROW[self.table] if self.each == "row" else "2 id, 1 a, 1 b"
        last = RETURNS[self.returns if (self.when, self.each) == ("before", "row") else "nothing"]
        name = f"{self.name}_{number}"
        return f"""
            create function {name}() returns trigger language plpgsql as $$ declare r record; begin
              if pg_trigger_depth() <= {self.depth} then select {row} into r; {" ".join(self.actions)} end if; {last} end $$;
            create trigger {name} {self.when} {" or ".join(self.events)} on {self.table}
              for each {self.each} execute function {name}();
        """


@dataclass(frozen=True)
class Scenario:
    on_delete: str
    triggers: tuple[Trigger, ...]
    steps: tuple[str, ...]
    """Statements, and `savepoint`, `rollback to`, `release`."""


def tuples_of(options: list[str], most: int) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(options), min_size=1, max_size=most, unique=True).map(tuple)


triggers = st.builds(
    Trigger,
    name=st.sampled_from(["aaa", "zzz"]),
    table=st.sampled_from(["item", "item", "part"]),
    when=st.sampled_from(["after", "before"]),
    events=tuples_of(["update", "insert", "delete"], 3),
    each=st.sampled_from(["row", "statement"]),
    actions=tuples_of(ACTIONS, 2),
    depth=st.integers(1, 2),
    returns=st.sampled_from(sorted(RETURNS)),
)
statements = st.builds(
    lambda text, k, j, v: text.format(k=k, j=j, v=v),
    st.sampled_from(STATEMENTS), st.integers(1, 4), st.integers(1, 4), st.integers(0, 9),
)  # fmt: skip
steps = st.one_of(statements, statements, st.sampled_from(["savepoint", "rollback to", "release"]))
scenarios = st.builds(
    Scenario,
    on_delete=st.sampled_from(["cascade", "set null", "no action"]),
    triggers=st.lists(triggers, max_size=3).map(tuple),
    steps=st.lists(steps, min_size=2, max_size=10).map(tuple),
)


@dataclass(frozen=True)
class Session:
    """Where and at which level of isolation scenarios are played, each on a connection of its own."""

    dsn: str
    level: str


Break = Callable[[Connection], None]


def play(
    session: Session,
    scenario: Scenario,
    *,
    copying: bool = False,
    breaks: Break | None = None,
    at_once: bool = False,
    mapping: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Run a scenario in a transaction that is taken back; fails when the outbox does not replay to the tables.

    `copying`: by AFTER ROW triggers. `breaks` changes what outbox.watch installed. `at_once`: all in one command.
    `mapping`: how a table is to be watched besides.
    """
    with psycopg.connect(session.dsn, autocommit=True) as conn, conn.transaction(force_rollback=True):
        conn.execute(f"set transaction isolation level {session.level}")
        conn.execute("select setseed(0)")  # played again, a scenario ends the same way
        conn.execute(TABLES.format(scenario.on_delete))
        for table in ("item", "part"):
            watch(conn, table, capture=not copying, **(mapping or {}).get(table, {}))
            if copying:
                copying_trigger(conn, table)
        if breaks:
            breaks(conn)
        conn.execute(
            "insert into item (id, a) select i, i from generate_series(1, 4) i; insert into part select i, 0, i from generate_series(1, 3) i"
        )
        for number, trigger in enumerate(scenario.triggers):
            conn.execute(trigger.ddl(number))
        if at_once:
            play_at_once(conn, scenario)
            return
        open_savepoints = 0
        for step in scenario.steps:
            if step == "savepoint":
                open_savepoints += 1
                conn.execute(f"savepoint s{open_savepoints}")
            elif step in {"rollback to", "release"}:
                if open_savepoints:
                    conn.execute(f"{step} s{open_savepoints}")
                    open_savepoints -= step == "release"
            else:
                with contextlib.suppress(*THE_APPLICATIONS_OWN), conn.transaction():
                    conn.execute(step)
            assert_replays(conn, "public.item", "public.part")


def play_at_once(conn: Connection, scenario: Scenario) -> None:
    """The statements as one command of the client, each in an EXCEPTION block that may swallow its failure."""
    steps = [step for step in scenario.steps if step not in {"savepoint", "rollback to", "release"}]
    blocks = [
        sql.SQL("begin execute {}; exception when integrity_constraint_violation or triggered_data_change_violation"
                " or cardinality_violation or statement_too_complex then null; end;").format(sql.Literal(step))
        for step in steps
    ]  # fmt: skip
    conn.execute(sql.SQL("do {}").format(sql.Literal(f"begin {sql.SQL(' ').join(blocks).as_string(conn)} end")))
    assert_replays(conn, "public.item", "public.part")


BREAKS = {
    "capture without its question": ("if new.xmax = 0 and", "if tg_op <> 'DELETE' and"),
    "what was locked is taken for what is there": ("same := exists (", "same := true or exists ("),
}


def rewritten(conn: Connection, old: str, new: str) -> None:
    """Another text in what outbox.watch has installed."""
    for (source,) in conn.execute(
        "select pg_get_functiondef(to_regproc('outbox.capture_' || id)) from outbox.watched"
    ).fetchall():
        assert old in source
        conn.execute(source.replace(old, new))


@pytest.fixture(scope="module", params=["read committed", "serializable"])
def session(shared_app: Connection, request: pytest.FixtureRequest) -> Session:
    """At the mildest level and at the strictest."""
    return Session(shared_app.info.dsn, request.param)


@given(scenario=scenarios)
@settings(
    derandomize=not SEARCH, max_examples=SEARCH or 40, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_any_scenario_replays_to_the_tables(session: Session, scenario: Scenario) -> None:
    """Whatever triggers and statements an application has, every savepoint included."""
    play(session, scenario)
    play(session, scenario, at_once=True)


@pytest.mark.parametrize("how", ["triggers that copy each row", *BREAKS])
def test_the_property_can_fail(session: Session, how: str) -> None:
    """Where rows are copied as they were given, or one of the questions is not asked, the search finds a scenario that ends wrong."""
    copying = how == "triggers that copy each row"
    breaks = None if copying else lambda conn: rewritten(conn, *BREAKS[how])

    def ends_wrong(scenario: Scenario) -> bool:
        try:
            play(session, scenario, copying=copying, breaks=breaks)
        except AssertionError:
            return True
        return False

    search = settings(max_examples=200, deadline=None, database=None, phases=[Phase.generate])
    found = find(scenarios, ends_wrong, settings=search, random=Random(1))
    assert found.triggers
    play(session, found)  # and the outbox's own triggers end right there
