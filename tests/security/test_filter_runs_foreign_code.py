"""A filter runs as whoever watches: nothing that the owner of a type, a function or a schema puts in another's place runs with it."""

from typing import Any

import psycopg
import pytest

from tests.captured import Connection, assert_replays, changes, ops, value, watch
from tests.databases import Database

# Whoever runs this function is noted; with a superuser's rights it would do more.
NOTE = """
create table public.ran (who text); grant insert on public.ran to public;
create function public.note(text) returns bool language plpgsql as $$ begin insert into public.ran values (current_user); return true; end $$;
"""
MOODS = """
create type public.mood as enum ('a', 'b', 'c');
create table t (id int primary key, m mood, ms mood[], v text)
"""
FILTERS = ["m <> 'b'", "m::text <> 'b'", "m in ('a', 'c')", "'a' = any (ms)", "ms <> '{b}'", "coalesce(m, 'b') = 'a'"]
INSTEAD = {
    "a domain in the type's place": "alter type mood rename to was; create domain mood as text check (note(value))",
    "an implicit cast to text": """
        create function spelled(mood) returns text language plpgsql as $$ begin perform public.note(''); return 'a'; end $$;
        create cast (mood as text) with function spelled(mood) as implicit""",
    "an implicit cast of its arrays": """
        create function spelled(mood[]) returns text[] language plpgsql as $$ begin perform public.note(''); return '{a}'; end $$;
        create cast (mood[] as text[]) with function spelled(mood[]) as implicit""",
    "operators beside it": """
        create function differs(mood, mood) returns bool language plpgsql as $$ begin return public.note(''); end $$;
        create operator public.<> (leftarg = mood, rightarg = mood, function = differs);
        create operator public.= (leftarg = mood, rightarg = mood, function = differs)""",
}


def ran(watcher: Connection) -> set[str]:
    return {who for (who,) in watcher.execute("select distinct who from public.ran")}


def fresh(source: Database, conn: Connection) -> Connection:
    """A session of the same role, which reads every text anew."""
    return psycopg.connect(source.cluster.dsn(source.name, conn.info.user), autocommit=True)


@pytest.mark.parametrize("instead", INSTEAD)
@pytest.mark.parametrize("filter_", FILTERS)
def test_what_comes_in_the_place_of_a_type_is_not_run(
    source: Database, owner: Connection, watcher: Connection, filter_: str, instead: str
) -> None:
    """The filter goes on as it was, in every session: for a copy as for capture."""
    owner.execute(NOTE + MOODS)
    watch(watcher, "t", filter=filter_)
    owner.execute("insert into t values (1, 'a', '{a}')")
    owner.execute(INSTEAD[instead].encode())
    with fresh(source, owner) as conn:
        conn.execute(
            "insert into t values (2, 'a', '{a}'), (3, 'b', '{b}'); update t set v = 'x'; delete from t where id = 1"
        )
    with fresh(source, watcher) as conn:
        conn.execute("select outbox.copy_of('public.t', 'rows', null, 10, 1000, 1000)")
    assert ran(watcher) == set()
    assert_replays(watcher)
    assert {change.key for change in changes(watcher) if change.op == "upsert"} == {'{"id":1}', '{"id":2}'}


REFUSED: dict[str, tuple[str, str]] = {
    "a function of the owner's": ("public.own(v)", r"it uses public\.own\(text\), which \w+ owns"),
    "an operator of the owner's": ("v operator(public.===) 'x'", r"it uses public\.===\(text,text\), which \w+ owns"),
    "a function where the owner may create": (
        "public.ours(v)",
        r"public\.ours\(text\), in whose schema \w+ may create another",
    ),
    "a type by its name": ("m::text = 'a'::public.mood::text", r"public\.mood, which \w+ owns"),
    "a composite": ("(p).a = 1", r"column notation \.a applied to type text"),
    "a range": ("s = '[1,2)'", r"column s is of type public\.span"),
    "an array of domains": ("ds = '{a}'", r"column ds is of type"),
    "an enum's order": ("m > 'a'", "name its labels"),
    "an enum's order, at the end": ("greatest(m, 'b') = 'b'", "name its labels"),
    "an enum's order, in an array": ("ms > '{a}'", "name its labels"),
    "an enum's order, in a row": ("(m, id) < ('b', 3)", "name its labels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_its_owner_may_replace_is_refused(owner: Connection, watcher: Connection, case: str) -> None:
    """At `watch`, before anything of it is run; whoever owns it watches with it as before."""
    filter_, because = REFUSED[case]
    owner.execute(
        NOTE
        + """
        create function own(text) returns bool immutable language plpgsql as $$ begin return public.note(''); end $$;
        create operator === (leftarg = text, rightarg = text, function = texteq);
        create type pair as (a int); create type span as range (subtype = int4); create domain word as text check (note(value));
    """
        + MOODS
        + "; alter table t add p pair, add s span, add ds word[]"
    )
    watcher.execute("create function ours(text) returns bool immutable language sql as 'select true'")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=because):
        watch(watcher, "t", filter=filter_)
    assert ran(watcher) == set()
    assert value(watcher, "select count(*) from pg_class where relname like 'probe%'") == 0


def test_a_domain_of_the_owners_is_read_as_what_lies_below(
    source: Database, owner: Connection, watcher: Connection
) -> None:
    owner.execute(NOTE + "create domain word as text check (note(value)); create table t (id int primary key, v word)")
    watch(watcher, "t", filter="v <> 'b' and length(v) < 3")
    owner.execute("alter domain word rename to was; create domain word as int check (note(value::text))")
    with fresh(source, owner) as conn:
        conn.execute("insert into t values (1, 'a'), (2, 'b')")
    assert ran(watcher) <= {owner.info.user}
    assert ops(watcher) == ["upsert"]


@pytest.mark.parametrize("rename", ["alter type mood rename value 'b' to 'd'", "alter type mood add value 'd'"])
@pytest.mark.parametrize("filter_", ["m <> 'b'", "not 'b' = any (ms)"])
def test_a_label_that_has_another_name_passes_no_filter(
    source: Database, owner: Connection, watcher: Connection, filter_: str, rename: str
) -> None:
    """Nobody can say then: the table is marked, as for a filter that fails. A label that is new is one like others."""
    owner.execute(MOODS)
    watch(watcher, "t", filter=filter_)
    with fresh(source, owner) as old:
        old.execute("begin isolation level repeatable read; select 1")
        owner.execute(rename.encode())
        old.execute("insert into t values (1, 'd', '{d}'); commit")
    owner.execute("insert into t values (2, 'd', '{a,d}'), (3, 'a', '{a}')")
    recorded: list[Any] = [(change.op, change.key) for change in changes(watcher)]
    assert recorded[-1] == ("upsert", '{"id":3}')
    passed = {'{"id":2}', '{"id":3}'} if "add" in rename else {'{"id":3}'}
    assert passed == {key for op, key in recorded if op == "upsert"} - {'{"id":1}'}
    assert ("resync", "{}") in recorded or "add" in rename
    assert ("upsert", '{"id":1}') not in recorded or "add" in rename


def test_a_collation_of_another_role_is_compared_by_by_nobody(
    source: Database, owner: Connection, watcher: Connection
) -> None:
    """Another may lie under its name by the time a filter is read. Where another is named, or nothing is compared, the column is read."""
    owner.execute(
        "create collation mine (provider = libc, locale = 'C'); create table t (id int primary key, kind text collate mine, tags text[] collate mine)"
    )
    for filter_ in (
        "kind = 'a'",
        "lower(kind) = 'a'",
        "id > 0 and 'a' collate mine < 'b'",
        "coalesce(kind, 'b') in ('a')",
        "tags @> '{a}'",
        "(kind, id) < ('b', 7)",
    ):
        with pytest.raises(
            psycopg.errors.InvalidParameterValue,
            match=f"collation (public.)?mine, which {owner.info.user} owns: name one of the system's",
        ):
            watch(watcher, "t", filter=filter_.replace("collate mine", "collate public.mine"))
    watch(watcher, "t", filter="kind collate \"C\" = 'a' and tags is not null")
    owner.execute("alter collation mine rename to was; create collation mine (provider = libc, locale = 'POSIX')")
    owner.execute("insert into t values (1, 'a', '{}'), (2, 'b', '{}'), (3, 'a', null)")
    assert ops(watcher) == ["upsert"]
