"""Each kind of step, done for real; and after it there is nothing left to do."""

import psycopg
import pytest

from daemon.errors import SchemaUnfit
from tests.schemas import Schemas


def test_a_missing_table(schemas: Schemas) -> None:
    """Columns, types, constant defaults, the key; what is computed on the source is a plain column here."""
    schemas.on_source(
        "create type mood as enum ('calm', 'wild')",
        """create table story (
             id bigint generated always as identity primary key, title varchar(40) not null default 'untitled',
             mood mood default 'calm', tags text[] default '{}', doc jsonb not null default '{}', price numeric(10, 2) default -1.5,
             shout text generated always as (upper(title)) stored, made timestamptz(3) not null default now(),
             token uuid default gen_random_uuid(), "Serial" serial, code text collate "C")""",
        "comment on table story is 'what is told'; comment on column story.title is 'it''s a title'",
    )
    schemas.watch("story")
    kinds = schemas.kinds()
    assert kinds == ["type", "table", "grant", "comment", "comment", "map"]
    assert len(schemas.settle()) == len(kinds)
    assert schemas.columns("story") == {
        "id": "bigint not null", "title": "character varying(40) not null", "mood": "mood", "tags": "text[]", "doc": "jsonb not null",
        "price": "numeric(10,2)", "shout": "text", "made": "timestamp(3) with time zone not null", "token": "uuid",
        "Serial": "integer not null", "code": "text",
    }  # fmt: skip
    defaults = schemas.ask(
        "select json_object_agg(a.attname, pg_get_expr(d.adbin, d.adrelid)) from pg_attrdef d"
        " join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum where d.adrelid = 'story'::regclass"
    )
    assert set(defaults) == {"title", "mood", "tags", "doc", "price"}
    assert (
        schemas.ask(
            "select count(*) from pg_attribute where attrelid = 'story'::regclass and (attidentity <> '' or attgenerated <> '')"
        )
        == 0
    )
    assert schemas.ask("select relrowsecurity from pg_class where oid = 'story'::regclass")
    assert schemas.ask("select obj_description('story'::regclass)") == "what is told"
    assert schemas.ask("select col_description('story'::regclass, 2)") == "it's a title"
    assert (
        schemas.ask(
            "select collname from pg_attribute a join pg_collation l on l.oid = attcollation where attrelid = 'story'::regclass and attname = 'code'"
        )
        == "C"
    )


def test_types_of_every_kind(schemas: Schemas) -> None:
    """Enum types, domains over them, composite types, arrays of each, in a schema of their own, and an extension's."""
    schemas.on_source(
        "create schema kinds",
        "create type kinds.mood as enum ('a', 'b'); create domain kinds.inner_one as varchar(5); create domain kinds.outer_one as kinds.inner_one",
        "create type kinds.pair as (left_one int, mood kinds.mood)",
        "create extension hstore",
        "create table thing (id int primary key, moods kinds.mood[], o kinds.outer_one, p kinds.pair, h hstore, hs hstore[])",
    )
    schemas.on_target("create schema if not exists extensions")
    schemas.watch("thing")
    assert schemas.kinds() == ["schema", "extension", *["type"] * 4, "table", "grant", "map"]
    schemas.settle()
    assert schemas.columns("thing") == {
        "id": "integer not null", "moods": "kinds.mood[]", "o": "kinds.outer_one", "p": "kinds.pair",
        "h": "extensions.hstore", "hs": "extensions.hstore[]",
    }  # fmt: skip


def test_a_type_that_cannot_be_made(schemas: Schemas) -> None:
    """A range type of one's own: the sentence says who has to."""
    schemas.on_source("create type span as range (subtype = float8)", "create table thing (id int primary key, s span)")
    schemas.watch("thing")
    with pytest.raises(SchemaUnfit, match=r'type "public"."span" is neither an enum type, a domain nor'):
        schemas.look()


def test_values_of_an_enum_type(schemas: Schemas) -> None:
    """Each lands where the source has it; one that only the target has stays."""
    schemas.on_source("create type mood as enum ('b', 'd')", "create table thing (id int primary key, mood mood)")
    schemas.watch("thing")
    schemas.settle()
    schemas.on_target("alter type mood add value 'own'")
    schemas.on_source(
        "alter type mood add value 'a' before 'b'",
        "alter type mood add value 'c' after 'b'",
        "alter type mood add value 'e'",
    )
    assert schemas.kinds() == ["label"] * 3
    schemas.settle()
    assert schemas.ask("select enum_range(null::mood)::text") == "{a,b,c,d,e,own}"


def test_a_missing_column(schemas: Schemas) -> None:
    """It comes without values, also where the source's has a default: what the rows have there is the source's to say."""
    schemas.on_source("create table thing (id int primary key)")
    schemas.watch("thing")
    schemas.settle()
    schemas.on_target("insert into thing values (1)")
    schemas.on_source(
        'alter table thing add n int not null default 5, add at timestamptz default now(), add c text collate "C"'
    )
    assert schemas.kinds() == ["column"] * 3
    schemas.settle()
    assert schemas.columns("thing") == {
        "id": "integer not null",
        "n": "integer",
        "at": "timestamp with time zone",
        "c": "text",
    }
    assert schemas.ask("select n from thing") is None
    assert schemas.ask("select pg_get_expr(adbin, adrelid) from pg_attrdef where adrelid = 'thing'::regclass") == "5"


def test_not_null_where_the_source_has_null(schemas: Schemas) -> None:
    """It goes; so does that of a column that the source does not send, unless it gets a value by itself."""
    schemas.on_source("create table thing (id int primary key, a int)")
    schemas.on_target(
        "create table thing (id int primary key, a int not null, own int not null, mine int not null default 1, seq int generated always as identity)"
    )
    schemas.watch("thing")
    assert schemas.kinds()[:2] == ["not_null", "not_null"]
    schemas.settle()
    assert schemas.columns("thing") == {
        "id": "integer not null",
        "a": "integer",
        "own": "integer",
        "mine": "integer not null",
        "seq": "integer not null",
    }


def test_not_null_of_a_column_that_does_not_travel_any_more(schemas: Schemas) -> None:
    """With a default as well: else what has travelled stays there for ever. Not one that never travelled, nor one that the
    source has dropped."""
    schemas.on_source(
        "create table thing (id int primary key, a int not null, b int not null default 1, gone int not null default 2)"
    )
    schemas.watch("thing")
    schemas.settle()
    schemas.on_target("alter table thing add mine int not null default 3")
    schemas.on_source(
        "insert into thing values (1, 1)",
        "alter table thing drop gone",
        "select outbox.watch('thing', exclude => array['a', 'b'])",
    )
    found = [step for step in schemas.look().steps if step.kind == "not_null"]
    assert [(step.what, step.destructive) for step in found] == [("a", False), ("b", False)]
    assert "once it may be null" in found[1].reason
    schemas.apply()
    assert {step.kind for step in schemas.look().steps} == {"drop_column"}, "a person has to allow that"
    assert schemas.columns("thing") == {
        "id": "integer not null", "a": "integer", "b": "integer", "gone": "integer not null", "mine": "integer not null",
    }  # fmt: skip


def test_a_column_that_gets_wider(schemas: Schemas) -> None:
    """Done without being allowed, because nothing is written anew, also under a policy of ours on that column."""
    schemas.on_source(
        "create table thing (id int primary key, a varchar(5), b varchar(5), c numeric(6, 2), d timestamp(3), owner varchar(40))"
    )
    schemas.watch("thing")
    schemas.say("public.thing", owner="owner", write=True)
    schemas.settle()
    filenode = schemas.ask("select pg_relation_filenode('thing')")
    schemas.on_source(
        "alter table thing alter a type varchar(9), alter b type text, alter c type numeric(9, 2), alter d type timestamp, alter owner type text"
    )
    assert schemas.kinds() == ["change_type"] * 5
    schemas.settle()
    assert schemas.columns("thing")["a"] == "character varying(9)"
    assert schemas.ask("select pg_relation_filenode('thing')") == filenode, "the table was written anew"
    assert schemas.ask("select count(*) from pg_policy where polrelid = 'thing'::regclass") == 4


def test_a_type_that_changes(schemas: Schemas) -> None:
    """Printed with what it costs, done only when that is allowed; and the rest is done without it."""
    schemas.on_source("create table thing (id int primary key, n int default 3, owner uuid)")
    schemas.watch("thing")
    schemas.say("public.thing", owner="owner")
    schemas.settle()
    schemas.on_target(
        "insert into thing select i, i from generate_series(1, 100) i; analyze thing",
        "create view seen as select n from thing",
    )
    schemas.on_source("alter table thing alter n type bigint, add more int")
    step = schemas.step("change_type")
    assert step.destructive
    assert (
        step.loses
        == "the table is written anew under a lock that nobody reads through (about 100 rows); it rests on this column: view public.seen"
    )
    done = schemas.apply()
    assert [one.kind for one in done.steps] == ["column"]
    assert [one.kind for one in done.left] == ["change_type"]
    assert schemas.columns("thing")["n"] == "integer"
    with pytest.raises(
        SchemaUnfit, match=r"change_type n was refused \(0A000\): cannot alter type of a column used by a view or rule"
    ):
        schemas.apply(allow_destructive=True)
    schemas.on_target("drop view seen")
    assert [one.kind for one in schemas.settle(allow_destructive=True)] == ["change_type"]
    assert schemas.columns("thing")["n"] == "bigint"


def test_values_that_do_not_fit_a_new_type_are_not_repeated(schemas: Schemas) -> None:
    schemas.on_source("create table thing (id int primary key, n varchar(20))")
    schemas.watch("thing")
    schemas.settle()
    schemas.on_target("insert into thing values (1, 'hunter2')")
    schemas.on_source("alter table thing alter n type int using 1")
    with pytest.raises(SchemaUnfit, match="rows that are on the target do not allow it") as refused:
        schemas.apply(allow_destructive=True)
    assert "hunter2" not in str(refused.value)


async def test_a_column_that_the_source_has_no_longer(schemas: Schemas) -> None:
    """Dropped only when that is allowed. One that never came from the source is somebody's own, and stays."""
    schemas.on_source("create table thing (id int primary key, gone text)")
    schemas.watch("thing")
    schemas.settle()
    schemas.on_target("alter table thing add own text")
    schemas.on_source("insert into thing values (1, 'x')")
    await schemas.pair.drain()
    schemas.on_source("alter table thing drop gone")
    step = schemas.step("drop_column")
    assert step.destructive
    assert step.loses == "the values of gone (few or no rows)"
    assert [one.kind for one in schemas.apply().left] == ["drop_column"]
    assert list(schemas.columns("thing")) == ["id", "gone", "own"]
    schemas.settle(allow_destructive=True)
    assert list(schemas.columns("thing")) == ["id", "own"]


def test_the_key(schemas: Schemas) -> None:
    """Added where the target has none; a deferrable one is replaced, when that is allowed; another primary key stays."""
    schemas.on_source(
        *(f"create table {name} (a int, b int, primary key (a, b))" for name in ("bare", "late", "other"))
    )
    schemas.on_target(
        "create table bare (a int, b int)",
        "create table late (a int, b int, primary key (b, a) deferrable)",
        "create table other (a int, b int, own int generated always as identity primary key)",
    )
    schemas.watch("bare", "late", "other")
    keys = {step.table: step for step in schemas.look().steps if step.kind == "key"}
    assert {table: step.destructive for table, step in keys.items()} == {
        "public.bare": False,
        "public.late": True,
        "public.other": False,
    }
    schemas.settle(allow_destructive=True)
    for table in ("bare", "late", "other"):
        assert (
            schemas.ask(
                f"select count(*) from pg_index where indrelid = '{table}'::regclass and indimmediate and indnkeyatts = 2"
            )
            == 1
        )


def test_a_key_that_rows_do_not_allow(schemas: Schemas) -> None:
    schemas.on_source("create table bare (a int primary key)")
    schemas.on_target("create table bare (a int); insert into bare values (1), (1)")
    schemas.watch("bare")
    with pytest.raises(
        SchemaUnfit,
        match=r"public.bare: key bare_pkey was refused \(23505\): rows that are on the target do not allow it",
    ):
        schemas.apply()


def test_unique_constraints_wait(schemas: Schemas) -> None:
    """Also those that are but indexes on the source; one with a condition is a plain index, and a note says so."""
    schemas.on_source(
        "create table thing (id int primary key, a int unique, b int, c int, d int)",
        "create unique index on thing (b, c)",
        "create unique index rare on thing (d) where d > 0",
        "create unique index lowered on thing ((c + d))",
    )
    schemas.watch("thing")
    assert [note.split(":")[1].split()[0] for note in schemas.look().notes] == ["lowered", "rare"]
    schemas.settle()
    unique = "select count(*) from pg_constraint where conrelid = 'thing'::regclass and contype = 'u' and condeferrable"
    assert schemas.ask(unique) == 2
    assert schemas.ask("select count(*) from pg_index where indrelid = 'thing'::regclass and not indisunique") == 2


def test_unique_constraints_that_cannot_wait(schemas: Schemas) -> None:
    """The target's own: replaced when that is allowed, whether constraint or index, wanted by the source or not."""
    schemas.on_source(
        "create table thing (id int primary key, a int unique, b int, c int)", "create unique index on thing (b)"
    )
    schemas.on_target(
        "create table thing (id int primary key, a int unique, b int, c int unique)",
        "create unique index mine on thing (b)",
    )
    schemas.watch("thing")
    unique = [step for step in schemas.look().steps if step.kind == "unique"]
    assert [step.destructive for step in unique] == [True] * 3
    schemas.settle(allow_destructive=True)
    assert (
        schemas.ask(
            "select count(*) from pg_constraint where conrelid = 'thing'::regclass and contype = 'u' and condeferrable"
        )
        == 3
    )


def test_indexes(schemas: Schemas) -> None:
    """As on the source, of any kind that needs nothing special; one that finds the same rows already will do."""
    schemas.on_source(
        "create table thing (id int primary key, a int, b text, doc jsonb, tags text[])",
        "create index on thing (a desc nulls last, b text_pattern_ops)",
        "create index on thing using gin (doc)",
        "create index on thing using gin (tags)",
        "create index lowered on thing (lower(b)) where a > 0",
        "create index on thing (b)",
        "create function twice(int) returns int immutable language sql as 'select $1 * 2'",
        "create index doubled on thing (twice(a))",
    )
    schemas.on_target(
        "create table thing (id int primary key, a int, b text, doc jsonb, tags text[])",
        "create index mine on thing (b, a)",
    )
    schemas.watch("thing")
    assert schemas.look().notes == (
        "public.thing: no index like doubled: it needs a function, an operator or a type that the target may not have",
    )
    assert schemas.kinds().count("index") == 4
    schemas.settle()


def test_names_that_others_have_on_the_target(schemas: Schemas) -> None:
    """IF NOT EXISTS would take another table's index for ours."""
    schemas.on_source(
        "create table thing (id int primary key, a int, b int)",
        "create index taken on thing (a)",
        "create unique index also on thing (b)",
    )
    schemas.on_target(
        "create table other (id int primary key, a int)",
        "create index taken on other (a)",
        "create view also as select 1",
    )
    schemas.on_target("create sequence thing_pkey_not")
    schemas.watch("thing")
    schemas.settle()
    assert schemas.ask("select count(*) from pg_index where indrelid = 'thing'::regclass") == 3


def test_names_of_new_tables_keys_are_not_taken(schemas: Schemas) -> None:
    """Long ones are cut, to the same; and a table may be called as another one's key would be."""
    long = "n" * 58
    schemas.on_source(
        f"create table {long} (id int primary key)",
        f"create table {long}63 (id int primary key)",
        "create table thing_pkey (id int primary key)",
        "create table thing (id int primary key)",
    )
    schemas.watch(long, f"{long}63", "thing", "thing_pkey")
    schemas.settle()
    assert (
        schemas.ask("select count(*) from pg_constraint where contype = 'p' and connamespace = 'public'::regnamespace")
        == 4
    )


def test_foreign_keys_wait_and_never_act(schemas: Schemas) -> None:
    """Also one to a unique constraint, which then cannot wait; and one of a table to itself."""
    schemas.on_source(
        "create table parent (id int primary key, code text unique)",
        "create table child (id int primary key, parent int references parent on delete cascade, code text references parent (code) on delete set null,"
        " elder int references child)",
        "create table stray (id int primary key, unwatched int references parent)",
    )
    schemas.watch("parent", "child")
    assert schemas.kinds().count("foreign_key") == 3
    schemas.settle()
    assert (
        schemas.ask(
            "select count(*) from pg_constraint where conrelid = 'child'::regclass and contype = 'f' and confdeltype = 'a' and condeferrable and convalidated"
        )
        == 3
    )
    assert not schemas.ask(
        "select condeferrable from pg_constraint where conrelid = 'parent'::regclass and contype = 'u'"
    )
    assert schemas.ask("select count(*) from pg_index where indrelid = 'child'::regclass") == 4, (
        "a parent that goes looks for its children"
    )
    schemas.watch("stray")
    assert [step.kind for step in schemas.settle()][-2:] == ["foreign_key", "validate"]


def test_foreign_keys_come_after_the_copy(schemas: Schemas) -> None:
    """Not before every row of both tables is there, by the target's own record; the script looks for itself."""
    schemas.on_source(
        "create table parent (id int primary key); create table child (id int primary key, parent int references parent)"
    )
    schemas.on_source("insert into parent values (1); insert into child values (1, 1)")
    schemas.watch("parent", "child")
    schemas.on_target(
        "create table if not exists outboxd.copy (relay text, table_name text, state text, primary key (relay, table_name))"
    )
    done = schemas.apply()
    assert [(step.kind, step.waits_for) for step in done.plan.waiting] == [
        ("foreign_key", ("public.child", "public.parent")), ("validate", ("public.child", "public.parent")),
    ]  # fmt: skip
    assert schemas.look().due == ()
    schemas.on_target(
        "insert into outboxd.copy (relay, table_name, state) values ('main', 'public.parent', 'done'), ('main', 'public.child', 'copying')"
    )
    assert schemas.look().due == ()
    schemas.on_target("insert into parent values (1); insert into child values (1, 1)")
    schemas.on_target("update outboxd.copy set state = 'done'")
    assert [step.kind for step in schemas.settle()] == ["foreign_key", "validate"]
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        schemas.on_target("insert into child values (2, 2)")


def test_foreign_keys_that_would_break_gear_2(schemas: Schemas) -> None:
    """The target's own, wherever they come from: named with what they do, replaced when that is allowed."""
    schemas.on_source(
        "create table parent (id int primary key)",
        "create table child (id int primary key, parent int references parent, other int)",
    )
    schemas.on_target(
        "create table parent (id int primary key)",
        "create table child (id int primary key, parent int references parent on delete cascade, other int references parent)",
        "create table profile (id int primary key, parent int references parent on delete set null)",
        "create table account (id int primary key)",
        "alter table child add foreign key (other) references account on delete cascade",
    )
    schemas.watch("parent", "child")
    found = [step for step in schemas.look().steps if step.kind == "foreign_key"]
    assert [step.loses.partition(":")[0] for step in found] == [
        "its ON DELETE SET NULL", "its ON DELETE CASCADE", "nothing; it is checked at the end of a batch from then on",
    ] or sorted(step.loses.partition(":")[0] for step in found) == [
        "its ON DELETE CASCADE", "its ON DELETE SET NULL", "nothing; it is checked at the end of a batch from then on",
    ]  # fmt: skip
    assert all(step.destructive for step in found)
    assert any('account", which is no mirror' in note for note in schemas.look().notes)
    schemas.settle(allow_destructive=True)
    assert (
        schemas.ask(
            "select count(*) from pg_constraint where contype = 'f' and confdeltype = 'a' and condeferrable and convalidated"
        )
        == 3
    )


def test_triggers_that_change_rows(schemas: Schemas) -> None:
    """Named; disabled when that is allowed. One that comes after the row does no harm."""
    schemas.on_source("create table thing (id int primary key, a int)")
    schemas.on_target(
        "create table thing (id int primary key, a int)",
        "create function touch() returns trigger language plpgsql as 'begin new.a := 7; return new; end'",
        "create trigger before_it before insert on thing for each row execute function touch()",
        "create trigger after_it after insert on thing for each row execute function touch()",
    )
    schemas.watch("thing")
    assert "before_it" in schemas.step("trigger").sql
    assert schemas.step("trigger").destructive
    schemas.settle(allow_destructive=True)
    assert (
        schemas.ask(
            "select string_agg(tgenabled::text, '' order by tgname) from pg_trigger where tgrelid = 'thing'::regclass"
        )
        == "OD"
    )


def test_row_level_security_is_switched_on(schemas: Schemas) -> None:
    schemas.on_source("create table thing (id int primary key)")
    schemas.on_target("create table thing (id int primary key)")
    schemas.watch("thing")
    assert "security" in schemas.kinds()
    schemas.settle()
    assert schemas.ask("select relrowsecurity from pg_class where oid = 'thing'::regclass")


GRANTS = """
select coalesce(json_object_agg(grantee, privileges), '{}') from (
  select grantee, string_agg(lower(privilege_type), ' ' order by privilege_type) as privileges
    from information_schema.role_table_grants where table_name = 'thing' and grantee in ('anon', 'authenticated', 'service_role') group by 1) g
"""
POLICIES = "select coalesce(json_object_agg(policyname, roles), '{}') from pg_policies where tablename = 'thing'"


def test_who_may_see_it(schemas: Schemas) -> None:
    """Grants and policies follow what is said; nobody but the secret key where nothing is."""
    schemas.on_source("create table thing (id int primary key, user_id uuid)")
    schemas.watch("thing")
    schemas.settle()
    everything = "delete insert select update"
    assert schemas.ask(GRANTS) == {"service_role": everything}
    assert schemas.ask(POLICIES) == {}
    schemas.say("public.thing", access="public_read")
    assert schemas.kinds() == ["grant", "grant", "policy"]
    schemas.settle()
    assert schemas.ask(GRANTS) == {"service_role": everything, "anon": "select", "authenticated": "select"}
    schemas.say("public.thing", owner="user_id", write=True)
    assert schemas.kinds() == ["index", "grant", *["policy"] * 4]
    assert [step.loses for step in schemas.look().steps if step.destructive] == [
        "what it lets now: anon, authenticated may select rows where true"
    ]
    schemas.settle(allow_destructive=True)
    assert schemas.ask(POLICIES) == {
        f"outboxd_{verb}": ["authenticated"] for verb in ("select", "insert", "update", "delete")
    }
    schemas.on_target("create policy own on thing using (true)", "drop policy outboxd_insert on thing")
    schemas.on_target("create policy outboxd_insert on thing for insert to authenticated with check (true)")
    assert schemas.kinds() == ["policy"], "somebody has changed one of ours"
    schemas.settle(allow_destructive=True)
    schemas.say("public.thing", access="none")
    assert schemas.kinds() == ["policy"] * 4
    assert all(step.destructive for step in schemas.look().steps)
    schemas.settle(allow_destructive=True)
    assert list(schemas.ask(POLICIES)) == ["own"], "a person's own policies are not touched"


@pytest.mark.parametrize("kind", ["uuid", "text", "varchar(40)", "char(36)", "user_uuid", "user_text"])
def test_owners_of_any_spelling(schemas: Schemas, kind: str) -> None:
    """The policy is made once, on an index, and sees the owner's rows only."""
    schemas.on_source(
        "create domain user_uuid as uuid; create domain user_text as text",
        f'create table thing (id int primary key, "User Id" {kind})',
    )
    schemas.watch("thing")
    schemas.say("public.thing", owner="User Id")
    schemas.settle()
    schemas.on_target(*(f"insert into thing values ({n}, '{n}0000000-0000-0000-0000-000000000000')" for n in (1, 2)))
    with schemas.target.connect(autocommit=False) as conn:
        conn.execute("set local role authenticated")
        conn.execute(
            "select set_config('request.jwt.claims', '{\"sub\": \"10000000-0000-0000-0000-000000000000\"}', true)"
        )
        assert conn.execute("select id from thing").fetchall() == [(1,)]
        conn.execute("set local enable_seqscan = off")
        shown = "\n".join(row[0] for row in conn.execute("explain select id from thing"))
        assert "InitPlan" in shown
        assert "Index Cond" in shown or kind == "char(36)"


def test_owners_that_cannot_be(schemas: Schemas) -> None:
    """A column that is not there, and one that is no user's id."""
    schemas.on_source("create table thing (id int primary key, n int)")
    schemas.watch("thing")
    schemas.say("public.thing", owner="user_id")
    with pytest.raises(
        SchemaUnfit, match=r'owner names user_id, which is no column of "public"."thing" on the target: it has id, n'
    ):
        schemas.look()
    schemas.say("public.thing", owner="n")
    with pytest.raises(SchemaUnfit, match="n is integer, and users are told apart by a uuid"):
        schemas.look()


def test_realtime(schemas: Schemas) -> None:
    """The publication is made where a project has none; a table is in it once."""
    schemas.on_source("create table thing (id int primary key); create table quiet (id int primary key)")
    schemas.watch("thing", "quiet")
    schemas.say("public.thing", realtime=True)
    assert schemas.kinds().count("realtime") == 2
    schemas.settle()
    assert schemas.ask("select json_agg(tablename) from pg_publication_tables where pubname = 'supabase_realtime'") == [
        "thing"
    ]
    schemas.say("public.quiet", realtime=True)
    assert schemas.kinds() == ["realtime"]
    schemas.settle()


def test_another_schema(schemas: Schemas) -> None:
    """It is made, and opened to those who may see its tables."""
    schemas.on_source("create schema app; create table app.thing (id int primary key)")
    schemas.watch("app.thing")
    schemas.say("app.thing", access="public_read")
    assert schemas.kinds() == ["schema", "table", *["grant"] * 6, "policy", "map"]
    schemas.settle()
    for role in ("anon", "authenticated", "service_role"):
        assert schemas.ask(
            f"select has_schema_privilege('{role}', 'app', 'usage') and has_table_privilege('{role}', 'app.thing', 'select')"
        )
    assert schemas.ask("select target_schema from outboxd.mirror where table_name = 'app.thing'") == "app"


def test_partitioned_tables_are_plain_mirrors(schemas: Schemas) -> None:
    schemas.on_source(
        "create table thing (id int, day date, n int references thing_of, primary key (id, day)) partition by range (day)".replace(" references thing_of", ""),
        "create table thing_all partition of thing default", "create index on thing (n)",
    )  # fmt: skip
    schemas.watch("thing")
    schemas.settle()
    assert schemas.ask("select relkind::text from pg_class where oid = 'thing'::regclass") == "r"


def test_only_some_tables(schemas: Schemas) -> None:
    """A table asked for, under either spelling; its foreign key waits until the other one is there."""
    schemas.on_source(
        'create table "Parent" (id int primary key); create table child (id int primary key, p int references "Parent")'
    )
    schemas.watch('"Parent"', "child")
    assert {step.table for step in schemas.look("child").steps} == {"public.child"}
    assert "foreign_key" not in [step.kind for step in schemas.apply("child").steps]
    schemas.apply("Parent")
    assert [step.kind for step in schemas.settle()] == ["foreign_key", "validate"]
    with pytest.raises(SchemaUnfit, match="nobody is not watched: outboxd watch nobody"):
        schemas.look("nobody")
