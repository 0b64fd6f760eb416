"""Sequences that end wrong: what somebody found who set out to break it. Each says its smallest steps, what happened, and what is right."""

import pytest

from daemon import install
from daemon.selection import Selection
from tests.integration.test_aim import on_source, on_target
from tests.integration.test_dead_letters import letters
from tests.integration.test_letters_aim import EAGER, REFUSES, STORY, TAKES, rest, retried
from tests.integration.test_out_emitted import there
from tests.pairs import Pair

FAMILY = """create table story (id int primary key, gone timestamptz);
create table line (id int primary key, story int {here}, n int)"""
REMOVED = {
    "left its filter": ["update story set gone = now() where id = 1"],
    "no foreign key on the source": ["delete from story where id = 1"],
    "one that is not enforced": ["set local session_replication_role = replica", "delete from story where id = 1"],
}


@pytest.mark.parametrize("action", ["cascade", "set null"])
@pytest.mark.parametrize("way", list(REMOVED))
async def test_a_parent_that_goes_while_its_child_is_written(pair: Pair, way: str, action: str) -> None:
    """Grave: wrong value, silent. One transaction takes a parent away and writes a child that still refers to it: `story`
    is watched with the filter `gone is null` (a soft delete), or the source has no foreign key, or does not enforce it; the mirror's
    cascades. The delete of the parent is spared (outboxd.spared_sql), without a letter: the row stays on the target, the status
    says that all is well. Right: it goes as the filter says, or is a dead letter."""
    refers = f"references story (id) on delete {action}"
    here = "" if way == "no foreign key on the source" else refers
    pair.create(FAMILY.format(here=here), "line", on_target=FAMILY.format(here=refers))
    on_source(pair, f"select outbox.watch('story'{', filter => $$gone is null$$' if way == 'left its filter' else ''})")
    on_target(pair, "select outboxd.map('story')")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1), (2)", "insert into line values (1, 1, 1), (2, 2, 2)")
        await rest(parts)
        pair.write(*REMOVED[way], "update line set n = 5 where id = 1")
        await rest(parts)
    assert there(pair, "select id from story order by 1") == [(2,)] or letters(pair)


@pytest.mark.parametrize("by", ["SQL", "the command, without a copy"])
async def test_a_table_that_is_renamed_while_it_is_empty(pair: Pair, by: str) -> None:
    """Grave: silent loss. Rows of `story` are deleted, it is renamed and watched by its new name into the mirror it had, and a
    row of the same key comes, all before the next batch. Both names go to one table of the target in one batch, upserts
    first: the delete by the old name takes the row that came by the new one, and nothing asks for a copy, because there was
    nothing to be copied. Right: what was recorded by the old name arrives first, or a copy follows."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        pair.write("delete from story", "alter table story rename to tale")
        if by == "SQL":
            on_source(
                pair,
                "select outbox.unwatch('public.story')",
                "select outbox.watch('tale', target => 'public.story')",
            )
            on_target(pair, "select outboxd.map('story', 'public.tale')")
        else:
            place = lambda was, called: install.moved(pair.target.dsn, was, called)  # noqa: E731
            selected = Selection(copy=False)
            for _, now in install.watch(pair.source.dsn, ["public.tale"], lambda *_: selected, print, place):
                list(install.map_on_target(pair.target.dsn, [now]))
        pair.write("insert into tale values (1, 5)")
        await rest(parts)
        await rest(parts)
    assert there(pair, "select id, n from story order by 1") == [(1, 5)]


AND_BACK = {
    "another type": (
        "create table story (id int primary key, n int)",
        "alter table story alter column id type text",
        "alter table story alter column id type int using id::int",
    ),
    "another order": (
        "create table story (id int, b int default 0, n int, primary key (id, b))",
        "alter table story drop constraint story_pkey, add constraint story_pkey primary key (b, id)",
        "alter table story drop constraint story_pkey, add constraint story_pkey primary key (id, b)",
    ),
}
LATER = ["delete from story where id::int = 1", "update story set n = 4 where id::int = 1"]


@pytest.mark.parametrize(
    ("key", "change"),
    [("another type", LATER[0]), ("another order", LATER[0]), ("another order", LATER[1])],
)
async def test_a_key_that_was_another_one_for_less_than_a_look(pair: Pair, key: str, change: str) -> None:
    """Grave: wrong value, silent. A row waits as a letter; a migration gives the key another type (or the primary key's columns
    another order), the row is deleted or written, and the migration is taken back, all within the 15 s between two looks of
    outbox.notice. The change travels by a key that is spelled otherwise, so the held one does not stop it; afterwards the aim is what
    it was, since_id is not noted, and the letter is sent over it: a deleted row is there again, an older value stays. Right: the
    letter is never sent; a copy with prune brings the row as it is."""
    ddl, to, back = AND_BACK[key]
    pair.create(ddl, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story (id, n) values (1, 1), (2, 2)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        pair.write(to)
        pair.write(change)
        pair.write(back)
        await rest(parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
        await retried(pair, parts)
    pair.assert_equal("story")
