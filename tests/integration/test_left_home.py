"""Columns that no longer travel are emptied, whatever comes in between; columns that outboxd has not filled stay."""

from collections.abc import Sequence
from typing import Any

import pytest

from daemon.batch import Limits
from daemon.copies import Copy
from daemon.progress import Timing
from daemon.session import query
from tests.integration.test_aim import on_source, on_target
from tests.integration.test_verify import ask
from tests.pairs import Pair, Parts

STORY = "create table story (id int primary key, n int, note text)"
WITHOUT = "select outbox.watch('story', exclude => array['note'])"
THEIRS = (
    "alter table story drop column note",
    "alter table story add column note text",
    "update story set note = 'theirs'",
)
SMALL = Limits(changes=100)
EAGER = Timing(poll=0.05, recheck=0.0, retry_first=0.01, retry_cap=0.05, letters=0.0)


def secrets(pair: Pair, many: int) -> None:
    pair.write(f"insert into story select g, g, 'secret' from generate_series(1, {many}) g")


def on_it(pair: Pair, question: str) -> list[Any]:
    with pair.target.connect() as target:
        return target.execute(question.encode()).fetchall()


def left(pair: Pair, column: str = "note", table: str = "story") -> list[Any]:
    """How many rows of the target have a value of it, and how many rows there are."""
    return on_it(pair, f"select count({column}), count(*) from {table}")


async def settled(parts: Parts) -> None:
    """The daemon has looked at everything, until there is nothing left to do."""
    for _ in range(4):
        parts.relay.copier.ring()
        parts.relay.copier.recheck()
        parts.relay.verifier.ring()
        await parts.relay.drain()


async def reaches(parts: Parts, rows: int) -> Copy:
    """The copy is under way, and has brought so many."""
    parts.relay.copier.ring()
    while (copy := parts.relay.copier.copies["public.story"]).state != "copying" or copy.rows < rows:
        await parts.relay.step()
    return copy


@pytest.mark.parametrize(
    "again",
    [
        ["""select outbox.watch('story', constant => '{"origin": "main"}')"""],
        ["select outbox.unwatch('story')", WITHOUT],
        [
            "select outbox.watch('story', exclude => '{}', include => array['id'])",
            "select outbox.watch('story', exclude => array['note'])",
        ],
    ],
    ids=["mapped anew", "watched anew", "left out in another way"],
)
async def test_one_that_was_made_anew_there_is_theirs_for_every_later_copy(pair: Pair, again: Sequence[str]) -> None:
    pair.create(STORY, "story", on_target="create table story (id int primary key, n int, note text, origin text)")
    async with pair.relay(timing=EAGER) as parts:
        secrets(pair, 20)
        await settled(parts)
        on_source(pair, WITHOUT)
        await settled(parts)
        assert left(pair) == [(0, 20)]
        on_target(pair, *THEIRS)
        on_source(pair, *again)
        await settled(parts)
    assert left(pair) == [(20, 20)]


async def test_one_that_was_made_anew_is_theirs_while_the_copy_that_empties_it_goes_on(pair: Pair) -> None:
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER, limits=SMALL) as parts:
        secrets(pair, 1000)
        await settled(parts)
        on_source(pair, WITHOUT)
        await reaches(parts, 300)
        on_target(pair, *THEIRS)
        await settled(parts)
    assert left(pair) == [(1000, 1000)]


async def test_one_that_was_made_anew_is_theirs_for_a_repair(pair: Pair) -> None:
    """What the daemon knows of the target's columns is older."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        secrets(pair, 20)
        await settled(parts)
        on_source(pair, WITHOUT)
        await settled(parts)
        on_target(pair, *THEIRS, "update story set n = -1 where id = 5")
        ask(pair, repair=True)
        await settled(parts)
        assert parts.relay.verifier.records["public.story"].repaired == 1
    assert on_it(pair, "select n, note from story where id = 5") == [(5, "theirs")]


async def test_one_that_was_made_anew_is_theirs_for_a_letter(pair: Pair) -> None:
    """It is from before, and has a value of it."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        secrets(pair, 5)
        await settled(parts)
        on_target(pair, "alter table story add constraint lucky check (n <> 13)")
        pair.write("update story set n = 13, note = 'another' where id = 3")
        await settled(parts)
        on_source(pair, WITHOUT)
        await settled(parts)
        on_target(pair, *THEIRS, "alter table story drop constraint lucky")
        on_source(pair, "update outbox.held set wanted = 'retry'")
        await settled(parts)
    assert on_it(pair, "select n, note from story where id = 3") == [(13, "theirs")]


async def test_one_that_never_travelled_is_theirs(pair: Pair) -> None:
    """It was left out before any daemon ran. Also for copies that begin later."""
    pair.create(STORY)
    secrets(pair, 20)
    on_target(
        pair,
        "insert into story select g, g, 'theirs' from generate_series(1, 20) g",
        "select outboxd.map('story')",
    )
    on_source(pair, "select outbox.watch('story')", WITHOUT)
    async with pair.relay(timing=EAGER) as parts:
        await settled(parts)
        on_source(pair, "select outbox.watch('story', filter => 'n > 0')", "update story set n = -n where id = 7")
        await settled(parts)
        assert parts.relay.copier.copies["public.story"].state == "done"
    assert left(pair) == [(19, 19)]


@pytest.mark.parametrize("before", [True, False], ids=["watched before it is out", "while it is out"])
async def test_the_table_goes_out_while_its_column_is_emptied(pair: Pair, before: bool) -> None:
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER, limits=SMALL) as parts:
        secrets(pair, 1000)
        await settled(parts)
        on_source(pair, *([WITHOUT] if before else ["select outbox.ask_copy('story')"]))
        await reaches(parts, 300)
        on_target(pair, "alter table story rename column n to m")
        await settled(parts)
        assert parts.relay.copier.out
        if not before:
            on_source(pair, WITHOUT)
        on_target(pair, "alter table story rename column m to n")
        await settled(parts)
        assert parts.relay.copier.copies["public.story"].state == "done"
        assert left(pair) == [(0, 1000)]
        on_target(pair, "update story set note = 'their own'", "alter table story rename column n to m")
        pair.write("update story set n = 0 where id = 1")
        await settled(parts)
        on_target(pair, "alter table story rename column m to n")
        await settled(parts)
    assert left(pair) == [(1000, 1000)], "what was emptied is emptied once"


KEYED = "create table story (id int primary key, email text not null unique, note text)"
REBUILT = (
    "create table new (note text, id int primary key, email text not null unique)",
    "insert into new (id, email, note) select id, email, note from story",
    "drop table story",
    "alter table new rename to story",
)


@pytest.mark.parametrize(
    ("watch", "there"),
    [
        (
            "select outbox.watch('story', key_columns => array['email'], exclude => array['note'])",
            ["select outboxd.map('story', key_columns => array['email'])"],
        ),
        (WITHOUT, REBUILT),
    ],
    ids=["by another key", "in a table built anew of the one before"],
)
@pytest.mark.parametrize("leads", [True, False], ids=["while the daemon runs", "while none runs"])
async def test_left_out_while_the_place_is_another_one(
    pair: Pair, watch: str, there: Sequence[str], leads: bool
) -> None:
    pair.create(KEYED)
    on_source(
        pair,
        "insert into story select g, 'e' || g, 'secret' from generate_series(1, 20) g",
        "select outbox.watch('story')",
    )
    on_target(pair, "select outboxd.map('story')")
    async with pair.relay(timing=EAGER) as parts:
        await settled(parts)
        assert left(pair) == [(20, 20)]
        if leads:
            on_target(pair, *there)
            on_source(pair, watch)
            parts.relay.ask_again()
            await settled(parts)
    if not leads:
        on_source(pair, watch)
        on_target(pair, *there)
    async with pair.relay(timing=EAGER) as parts:
        await settled(parts)
    assert left(pair) == [(0, 20)]


async def test_a_table_of_theirs_that_it_goes_to_keeps_its_column(pair: Pair) -> None:
    """Nothing of it ever came there; in the table before nothing is written any more."""
    pair.create(STORY, "story")
    on_target(
        pair,
        "create table tale (id int primary key, n int, note text)",
        "insert into tale select g, g, 'theirs' from generate_series(1, 20) g",
    )
    async with pair.relay(timing=EAGER) as parts:
        secrets(pair, 20)
        await settled(parts)
        on_target(pair, "select outboxd.map('tale', 'public.story')")
        on_source(pair, "select outbox.watch('story', target => 'public.tale', exclude => array['note'])")
        await settled(parts)
    assert left(pair, table="tale") == [(20, 20)]


RENAMED = """select outbox.watch('story', rename => '{"note": "remark"}')"""
CALLED = ("alter table story rename to tale", "select outbox.watch('tale', exclude => array['note'], rename => '{}')")


@pytest.mark.parametrize(
    ("first", "then", "there", "column"),
    [
        (RENAMED, ["select outbox.watch('story', rename => '{}', exclude => array['note'])"], [], "remark"),
        (RENAMED, ["select outbox.unwatch('story')", WITHOUT], [], "remark"),
        ("select outbox.watch('story')", [RENAMED], [], "note"),
        ("select outbox.watch('story')", ["select outbox.unwatch('story')", RENAMED], [], "note"),
        ("""select outbox.watch('story', constant => '{"remark": "main"}')""",
         ["select outbox.unwatch('story')", "select outbox.watch('story')"], [], "remark"),
        ("select outbox.watch('story')", [*CALLED, "select outbox.unwatch('public.story')"],
         ["alter table story rename to tale", "select outboxd.map('tale')"], "note"),
        (RENAMED, [*CALLED, "select outbox.unwatch('public.story')"],
         ["alter table story rename to tale", "select outboxd.map('tale')"], "remark"),
    ],
    ids=["its name there", "its name there, watched anew", "by a name there", "by a name there, watched anew", "a constant",
         "with another name of the table", "its name there, with another name of the table"],
)  # fmt: skip
async def test_what_came_under_another_name_goes(
    pair: Pair, first: str, then: Sequence[str], there: Sequence[str], column: str
) -> None:
    pair.create(STORY, on_target="create table story (id int primary key, n int, note text, remark text)")
    on_source(pair, first)
    on_target(pair, "select outboxd.map('story')")
    async with pair.relay(timing=EAGER) as parts:
        secrets(pair, 20)
        await settled(parts)
        table = "story"
        assert left(pair, column) == [(20, 20)]
        on_source(pair, *then)
        if there:
            table = "tale"
            on_target(pair, *there)
        on_source(pair, "select outbox.notice()")
        await settled(parts)
    assert left(pair, column, table) == [(0, 20)]


@pytest.mark.parametrize("how", ["dropped", "renamed"])
async def test_what_was_dropped_or_renamed_on_the_source_stays_as_it_is(pair: Pair, how: str) -> None:
    """Also when something else is mapped anew: the target may keep it, and its owner knows."""
    pair.create(STORY, "story", on_target="create table story (id int primary key, n int, note text, remark text)")
    async with pair.relay(timing=EAGER) as parts:
        secrets(pair, 20)
        await settled(parts)
        pair.write("alter table story " + ("drop column note" if how == "dropped" else "rename note to remark"))
        on_source(pair, "select outbox.watch('story')", "select outbox.watch('story', filter => 'n > 0')")
        await settled(parts)
        assert parts.relay.copier.copies["public.story"].state == "done"
    assert left(pair) == [(20, 20)]


@pytest.mark.parametrize("watched", ["before it comes again", "often", "after it came again"])
async def test_a_column_left_out_that_was_dropped_and_comes_again_stays_at_home(pair: Pair, watched: str) -> None:
    """As a migration down and up does it."""
    again = "select outbox.watch('story')"
    pair.create(STORY)
    on_source(pair, WITHOUT)
    on_target(pair, "select outboxd.map('story')")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("alter table story drop column note")
        for _ in range({"before it comes again": 1, "often": 3}.get(watched, 0)):
            on_source(pair, again)
        pair.write("alter table story add column note text", "insert into story values (1, 1, 'secret')")
        if watched != "before it comes again":
            on_source(pair, again)
        pair.write("insert into story values (2, 2, 'secret')")
        on_source(pair, "select outbox.notice()", "select outbox.ask_copy('story')")
        await settled(parts)
    assert left(pair) == [(0, 2)]


NONE = "create table story (id int primary key, n int unique deferrable, note text default 'none')"
GEARS = {
    "written": (),
    "swapped": ("update story set n = 3 - n where n < 3",),
    "one is refused": ("insert into story values (13, 13)",),
}


@pytest.mark.parametrize("more", list(GEARS))
async def test_new_rows_where_one_that_was_taken_off_has_a_default(pair: Pair, more: str) -> None:
    """Also where rows are taken out and put back, or one of them is refused."""
    pair.create(NONE, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1, 'raw'), (2, 2, 'raw')")
        await settled(parts)
        on_source(pair, WITHOUT)
        on_target(pair, "alter table story add check (n <> 13)")
        await settled(parts)
        pair.write("insert into story values (3, 3, 'raw')", "delete from story where id = 2",
                   "insert into story values (2, 5, 'raw')", "update story set n = 2 where id = 2", *GEARS[more])  # fmt: skip
        await settled(parts)
        ask(pair)
        await settled(parts)
        record = parts.relay.verifier.records["public.story"]
        assert (record.state, record.rows, record.drift) == ("done", 3 + (more == "one is refused"), 0)
    assert left(pair) == [(0, 3)]


async def test_one_that_was_taken_off_must_have_a_value_meanwhile(pair: Pair) -> None:
    """The relay has not been told: rows get what a new one has there."""
    pair.create(NONE, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1, 'raw')")
        await settled(parts)
        on_source(pair, WITHOUT)
        await settled(parts)
        on_target(pair, "update story set note = 'theirs'", "alter table story alter column note set not null")
        pair.write("insert into story values (2, 2, 'raw')", "update story set n = 7 where id = 1")
        await parts.relay.drain()
    assert on_it(pair, "select * from story order by 1") == [(1, 7, "theirs"), (2, 2, "none")]


async def test_a_row_that_is_refused_while_its_column_is_emptied_and_taken_right_after(pair: Pair) -> None:
    """The copy goes on without it; the source records it anew, and it arrives as a change like any other."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 13, 'raw'), (2, 1, 'raw')")
        await settled(parts)
        on_target(pair, "alter table story add constraint lucky check (n <> 13) not valid")
        on_source(pair, WITHOUT)
        parts.relay.copier.ring()
        with pair.source.connect() as conn:
            newest = "select max(id) from outbox.change"
            before = conn.execute(newest).fetchall()
            while conn.execute(newest).fetchall() == before:
                await parts.relay.step()
        on_target(pair, "alter table story drop constraint lucky")
        await settled(parts)
        assert parts.relay.copier.copies["public.story"].state == "done"
        assert on_it(pair, "select * from outboxd.held") == []
    assert on_it(pair, "select * from story order by 1") == [(1, 13, None), (2, 1, None)]


BEHIND = "alter table story rename column note to memo"
EXCLUDED = "select outbox.watch('story', exclude => array['memo'])"


@pytest.mark.parametrize("leads", [True, False], ids=["while the daemon runs", "while none runs"])
@pytest.mark.parametrize("needed", [False, True], ids=["may be null", "needs a value at first"])
async def test_one_that_a_mirror_calls_by_its_former_name_goes_once_it_follows(
    pair: Pair, leads: bool, needed: bool
) -> None:
    """Renamed on the source and left out there, before the target was renamed, too."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        secrets(pair, 20)
        await settled(parts)
        on_source(pair, BEHIND, EXCLUDED)
        await settled(parts)
        assert parts.relay.copier.copies["public.story"].state == "done"
        assert left(pair) == [(20, 20)]
        if leads:
            await _follows(pair, parts, needed)
    if not leads:
        async with pair.relay(timing=EAGER) as parts:
            await _follows(pair, parts, needed)
    assert left(pair, "memo") == [(0, 20)]


async def _follows(pair: Pair, parts: Parts, needed: bool) -> None:
    on_target(pair, BEHIND)
    if needed:
        on_target(pair, "alter table story alter column memo set not null")
        parts.relay.ask_again()
        await settled(parts)
        assert left(pair, "memo") == [(20, 20)]
        on_target(pair, "alter table story alter column memo drop not null")
    assert parts.relay.copier.keeps or parts.relay.stated is None, "the target is asked again, without anybody asking"
    parts.relay.ask_again()
    await settled(parts)
    assert not parts.relay.copier.copies["public.story"].freed
    pair.write("insert into story values (21, 21, 'secret')", "delete from story where id = 1")
    await settled(parts)


async def test_that_the_mirror_follows_is_seen_with_the_next_heartbeat(pair: Pair) -> None:
    """Not only when the target is next asked for all that it knows, minutes later."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        secrets(pair, 20)
        await settled(parts)
        on_source(pair, BEHIND, EXCLUDED)
        await settled(parts)
        on_target(pair, BEHIND)
        for _ in range(2):  # the second is not told of it again
            assert parts.relay.stated is not None
            told = {"relay": "main", "epoch": parts.relay.status.epoch, "snapshot": parts.relay.stated.snapshot}
            with pair.source.connect() as conn:
                conn.execute(query("heartbeat"), told)
            await settled(parts)
            assert left(pair, "memo") == [(0, 20)]
        assert on_it(pair, "select outboxd.moved('main')") == [([],)]


async def test_it_follows_while_the_copy_is_under_way(pair: Pair) -> None:
    """The rows that were copied by then are gone through once more."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER, limits=SMALL) as parts:
        secrets(pair, 1000)
        await settled(parts)
        on_source(pair, BEHIND, EXCLUDED)
        await reaches(parts, 300)
        on_target(pair, BEHIND)
        parts.relay.ask_again()
        await settled(parts)
        assert parts.relay.copier.copies["public.story"].state == "done"
    assert left(pair, "memo") == [(0, 1000)]


@pytest.mark.parametrize("there", ["add column memo text", "rename column n to memo"])
async def test_one_of_that_name_that_is_not_of_the_column_left_out(pair: Pair, there: str) -> None:
    """Somebody's own stays; by the name of what is left at home ours is not told from another of ours."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        secrets(pair, 20)
        await settled(parts)
        on_source(pair, BEHIND, EXCLUDED)
        await settled(parts)
        theirs = "add" in there
        on_target(pair, f"alter table story {there}", "alter table story add column if not exists n int")
        on_target(pair, *["update story set memo = 'theirs'"] * theirs)
        parts.relay.ask_again()
        await settled(parts)
        pair.write("update story set n = -1 where id = 5")
        await settled(parts)
    assert left(pair, "memo") == [(20 * theirs, 20)]
    assert left(pair, "n") == [(20, 20)]
