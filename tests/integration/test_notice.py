"""What outbox.notice finds: rows that got values, left or came without a statement that was captured."""

import time

import pytest
from structlog.testing import capture_logs

from daemon.noticing import Noticing
from daemon.session import query
from daemon.source import Source
from tests.captured import Connection, rows, value, watch
from tests.databases import Database
from tests.waiting import wait_until_async

STORY = "create table story (id int primary key, title text, stars int)"
TREE = """
    create table story (id int primary key, title text, stars int) partition by range (id);
    create table story_low partition of story for values from (0) to (100);
    create table story_high partition of story for values from (100) to (200)
"""
NOT_ASKED, COPIED, PRUNED = None, False, True


def noticed(conn: Connection) -> bool | None:
    """Is a copy asked for by now, and does it prune?"""
    found = rows(conn, "select * from outbox.notice()")
    asked = rows(conn, "select prune > 0 from outbox.copy")
    assert len(found) == len(asked)
    conn.execute("delete from outbox.copy")
    assert rows(conn, "select * from outbox.notice()") == []
    return asked[0][0] if asked else NOT_ASKED


def uncaptured(conn: Connection) -> list[str]:
    """Why changes are not captured."""
    return [reason for _, reasons in conn.execute(query("uncaptured")).fetchall() for reason in reasons]


@pytest.fixture
def story(app: Connection) -> Connection:
    """A watched table with rows; another one, which keeps out of it."""
    app.execute(STORY + "; create table other (id int primary key)")
    watch(app, "story")
    watch(app, "other")
    app.execute("insert into story select n, 'a', n from generate_series(1, 30) n")
    return app


@pytest.fixture
def tree(app: Connection) -> Connection:
    """A watched tree with rows in both leaves."""
    app.execute(TREE)
    watch(app, "story")
    app.execute("insert into story select n, 'a', n from generate_series(1, 150) n")
    return app


GIVEN = {
    "a default that went at once": ("alter table story add mood int default 5 null; alter table story alter mood drop default", COPIED),
    "a volatile default that went at once": ("alter table story add at timestamptz default clock_timestamp(); alter table story alter at drop default", COPIED),
    "a column without values": ("alter table story add mood int", NOT_ASKED),
    "a column with a default from now on": ("alter table story add mood int; alter table story alter mood set default 5", COPIED),
    "another type": ("alter table story alter stars type bigint", COPIED),
    "the same type, other values": ("alter table story alter stars type int using stars * 2", COPIED),
    "a name": ("alter table story rename title to name", COPIED),
    "not null": ("alter table story alter stars set not null; alter table story alter stars set default 7", NOT_ASKED),
    "statistics": ("alter table story alter stars set statistics 10; analyze story", NOT_ASKED),
    "written anew": ("vacuum full story", NOT_ASKED),
    "emptied": ("truncate story", NOT_ASKED),
}  # fmt: skip


@pytest.mark.parametrize("how", GIVEN)
def test_a_column_is_given_values(story: Connection, how: str) -> None:
    """In one migration, or one after the other; what gives none is not noticed."""
    statements, expected = GIVEN[how]
    for statement in statements.split(";"):
        story.execute(statement.encode())
    assert noticed(story) is expected


@pytest.mark.parametrize("how", ["in one migration", "seen in between", "watched in between", "watched at once"])
def test_a_column_goes_and_one_of_its_name_comes(story: Connection, how: str) -> None:
    """It has no values, and the target's has those of the one before."""
    story.execute("alter table story drop column title")
    if how == "seen in between":
        assert noticed(story) is NOT_ASKED
    if how == "watched in between":
        watch(story, "story")
    story.execute("alter table story add column title text")
    if how == "watched at once":
        watch(story, "story")
        assert rows(story, "select table_name from outbox.copy") == [("public.story",)]
    else:
        assert noticed(story) is COPIED
    story.execute("alter table story add column subtitle text")
    story.execute("delete from outbox.copy")
    assert noticed(story) is NOT_ASKED, "nobody has had a name like that"


@pytest.mark.parametrize(
    "how", ["a default that went at once", "a volatile default that went at once", "the same type, other values"]
)
def test_a_column_of_a_tree_is_given_values(tree: Connection, how: str) -> None:
    """The leaves hold the rows."""
    for statement in GIVEN[how][0].split(";"):
        tree.execute(statement.encode())
    assert noticed(tree) is COPIED


def test_a_column_is_computed_otherwise(app: Connection) -> None:
    """SET EXPRESSION fires no trigger. Of a column that the filter reads rows may leave, too."""
    if app.info.server_version < 170000:
        pytest.skip("SET EXPRESSION came with Postgres 17")
    app.execute("create table story (id int primary key, stars int, twice int generated always as (2 * stars) stored)")
    watch(app, "story")
    app.execute("alter table story alter twice set expression as (3 * stars)")
    assert noticed(app) is COPIED
    watch(app, "story", include=["id"], filter="twice > 4")
    app.execute("delete from outbox.copy; alter table story alter twice set expression as (2 * stars)")
    assert noticed(app) is PRUNED
    app.execute("alter table story alter twice drop expression")
    assert noticed(app) is NOT_ASKED


LABELS = {
    "a column": "kind mood",
    "an array": "kind mood[]",
    "a domain": "kind feeling",
    "in a composite": "kind pair",
    "an array of domains in a range": "kind pair[]",
}


@pytest.mark.parametrize("column", LABELS)
def test_a_label_is_renamed(app: Connection, column: str) -> None:
    """Wherever the enum stands; a new label, or a new name of the type, gives no row another value."""
    app.execute(
        "create type mood as enum ('calm', 'wild'); create domain feeling as mood; create type pair as (a int, of feeling)"
    )
    app.execute(f"create table story (id int primary key, {LABELS[column]})".encode())
    watch(app, "story")
    app.execute("alter type mood add value 'sad'")
    app.execute("alter type mood rename to temper")
    assert noticed(app) is NOT_ASKED
    app.execute("alter type temper rename value 'calm' to 'quiet'")
    assert noticed(app) is COPIED
    app.execute("alter table story drop column kind; alter type temper rename value 'quiet' to 'calm'")
    assert noticed(app) is NOT_ASKED


def test_a_type_is_replaced_by_one_of_its_name(app: Connection) -> None:
    """As migrations change an enum: the values may be others."""
    app.execute("create type mood as enum ('calm', 'wild'); create table story (id int primary key, kind mood)")
    watch(app, "story")
    app.execute("""create type mood_new as enum ('calm'); alter table story alter kind type mood_new using 'calm';
                   drop type mood; alter type mood_new rename to mood""")
    assert noticed(app) is COPIED


SLEPT = {
    "asleep and awake": "alter table story disable trigger all; delete from story where id = 1; alter table story enable trigger all",
    "in one transaction": "begin; alter table story disable trigger all; delete from story; alter table story enable trigger all; commit",
    "ours alone": "alter table story disable trigger outbox_truncate",
    "an ordinary one": "alter table story enable trigger outbox_truncate",
    "for replicas": "alter table story enable replica trigger outbox_truncate",
    "dropped": "drop trigger outbox_truncate on story",
}


@pytest.mark.parametrize("how", SLEPT)
def test_triggers_that_sleep_are_told_and_the_rows_copied_once_they_are_awake(story: Connection, how: str) -> None:
    """Promise I1: until it is watched again that is told; then what was missed is copied, and what went is pruned."""
    for statement in SLEPT[how].split(";"):
        story.execute(statement.encode())
    assert uncaptured(story)
    assert all("story" in reason for reason in uncaptured(story))
    assert noticed(story) is NOT_ASKED
    watch(story, "story")
    assert uncaptured(story) == []
    assert rows(story, "select table_name, prune > 0, restart > 0 from outbox.copy") == [("public.story", True, True)]
    story.execute("delete from outbox.copy")
    watch(story, "story")
    assert noticed(story) is NOT_ASKED


def test_watch_sees_for_itself_that_triggers_slept(story: Connection) -> None:
    """Nobody has looked since."""
    story.execute(
        "alter table story disable trigger user; delete from story where id = 1; alter table story enable trigger user"
    )
    watch(story, "story")
    assert rows(story, "select prune > 0 from outbox.copy") == [(True,)]


def test_triggers_that_slept_between_two_looks(story: Connection) -> None:
    """Somebody woke them as they should be: the catalogue still tells that they were altered."""
    number = value(story, "select id from outbox.watched where table_name = 'public.story'")
    for name in (f"outbox_row_{number}", "outbox_truncate"):
        story.execute(
            f"alter table story disable trigger {name}; delete from story where id = 1; alter table story enable always trigger {name}".encode()
        )
        assert noticed(story) is PRUNED
        assert uncaptured(story) == []


def test_a_trigger_of_a_partition_sleeps(tree: Connection) -> None:
    """Of one leaf alone."""
    number = value(tree, "select id from outbox.watched")
    tree.execute(f"alter table story_low disable trigger outbox_row_{number}".encode())
    assert uncaptured(tree) == [f"trigger outbox_row_{number} of public.story_low is disabled"]
    assert noticed(tree) is NOT_ASKED
    tree.execute(f"alter table story_low enable always trigger outbox_row_{number}".encode())
    assert noticed(tree) is PRUNED


CAME = {
    "made as one": ("create table story_new partition of story for values from (200) to (300); insert into story values (250)", NOT_ASKED),
    "attached, empty": ("create table story_new (like story); alter table story attach partition story_new for values from (200) to (300)", NOT_ASKED),
    "attached with rows": (
        ("create table story_new (like story); insert into story_new values (250);"
        " alter table story attach partition story_new for values from (200) to (300)"), COPIED,
    ),
    "made, filled and attached in one transaction": (
        ("begin; create table story_new (like story including all); insert into story_new values (250);"
        " alter table story attach partition story_new for values from (200) to (300); commit"), COPIED,
    ),
    "below one that was attached": (
        ("create table branch (like story) partition by range (id); create table story_new partition of branch for values from (200) to (250);"
        " insert into branch values (220); alter table story attach partition branch for values from (200) to (300)"), COPIED,
    ),
    "made below one that was there": (
        ("create table branch partition of story for values from (200) to (300) partition by range (id);"
        " create table story_new partition of branch for values from (200) to (250); insert into story values (220)"), NOT_ASKED,
    ),
    "detached": ("alter table story detach partition story_low", PRUNED),
    "detached and attached again": (
        ("alter table story detach partition story_low; delete from story_low; insert into story_low values (7);"
        " alter table story attach partition story_low for values from (0) to (100)"), PRUNED,
    ),
    "emptied where no trigger guards it": (
        ("create table story_new partition of story for values from (200) to (300); insert into story values (250);"
        " select outbox.notice(); truncate story_new"), PRUNED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", CAME)
def test_a_partition_comes_or_goes(tree: Connection, how: str) -> None:
    """One that was made as a partition came empty; one that is attached may have rows that nobody captured."""
    statements, expected = CAME[how]
    for statement in statements.split(";"):
        tree.execute(statement.encode())
    assert noticed(tree) is expected
    assert uncaptured(tree) == []


@pytest.mark.parametrize("question", ["copy_notice", "uncaptured", "copy_wanted"])
def test_who_has_a_partition_locked_holds_up_no_look(source: Database, tree: Connection, question: str) -> None:
    """One that is truncated, or altered for long, must not keep the relay from looking at all others."""
    tree.execute("set lock_timeout = '1ms'")
    with source.connect(autocommit=False) as other:
        other.execute("truncate story")
        other.execute("lock table story_high in access exclusive mode")
        tree.execute(query(question))
        other.rollback()


def test_a_look_at_many_columns_is_quick(app: Connection) -> None:
    """It grew with the square of the columns: 7.4 s for 200 tables of 100, for ever for one of 1,400."""
    app.execute("""
        do $$ declare cols text; begin
          select string_agg(format('c%s int', n), ', ') into cols from generate_series(1, 100) n;
          for n in 1 .. 20 loop execute format('create table t%s (id int primary key, %s)', n, cols); end loop;
          select string_agg(format('c%s int', n), ', ') into cols from generate_series(1, 1400) n;
          execute format('create table wide (id int primary key, %s)', cols);
        end $$""")
    app.execute("select outbox.watch(('t' || n)::regclass) from generate_series(1, 20) n")
    watch(app, "wide")
    assert rows(app, "select * from outbox.notice()") == []
    began = time.perf_counter()
    assert rows(app, "select * from outbox.notice()") == []
    taken = time.perf_counter() - began
    # By the square it took 0.7 s for the twenty, and minutes for the wide one; 0.05 s is usual.
    assert taken < 0.5, taken


async def test_looks_go_on_beside_the_relay(source: Database, app: Connection) -> None:
    """The first is waited for, the others are not, and one that takes long is not begun twice. Sleeping triggers are logged once."""
    app.execute(STORY)
    watch(app, "story")
    reader = Source(source.dsn)
    noticing = Noticing(reader, aside=True, clock=lambda: 0.0)

    async def looked() -> bool:
        return noticing._looking is None or noticing._looking.done()

    try:
        with capture_logs() as log:
            app.execute("alter table story disable trigger outbox_truncate")
            await noticing.due(0.0, 15.0)
            assert noticing.uncaptured == {"public.story": "trigger outbox_truncate of public.story is disabled"}
            with source.connect(autocommit=False) as busy:
                busy.execute("lock table outbox.watched in access exclusive mode")
                await noticing.due(15.0, 15.0)
                begun = noticing._looking
                await noticing.due(30.0, 15.0)
                assert noticing._looking is begun
                assert not await looked()
            await wait_until_async(looked)
            watch(app, "story")
            await noticing.due(45.0, 15.0)
            await wait_until_async(looked)
        assert noticing.uncaptured == {}
        assert [entry["table"] for entry in log if entry["event"] == "table_uncaptured"] == ["public.story"]
    finally:
        await reader.close()


async def test_a_look_that_takes_long_is_followed_by_a_long_pause(source: Database, app: Connection) -> None:
    """Two seconds of the source for hundreds of tables: the next after a hundred."""
    app.execute(STORY)
    watch(app, "story")
    reader, times = Source(source.dsn), [0.0, 2.0, 101.0, 101.1, 117.0, 117.1]
    noticing = Noticing(reader, clock=lambda: times.pop(0))
    try:
        for now, left in ((0.0, 4), (15.0, 4), (99.0, 4), (101.0, 2), (117.0, 0)):
            await noticing.due(now, 15.0)
            assert len(times) == left, now
    finally:
        await reader.close()
