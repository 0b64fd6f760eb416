"""Dead letters whose key is no value of its type any more, or not yet on the target: what is of no row there ends with a copy."""

import pytest

from daemon.errors import TargetError
from tests.integration.test_aim import on_source, on_target
from tests.integration.test_dead_letters import held, letters
from tests.integration.test_letters_aim import EAGER, REFUSES, TAKES, none_is_left, rest, retried
from tests.integration.test_out_emitted import there
from tests.pairs import Pair

LABEL = "alter type kind rename value 'x' to 'z'"
KINDS = "create type kind as enum ('x', 'y'{}); create table story (k kind primary key, n int)"
KEYS = {
    "a label renamed": (KINDS.format(""), "x", LABEL),
    "integers made uuids": (
        "create table story (k int primary key, n int)",
        "1",
        "alter table story alter column k type uuid using lpad(k::text, 32, '0')::uuid",
    ),
    "a domain that is narrower": (
        "create domain low as int check (value < 100); create table story (k low primary key, n int)",
        "50",
        """alter domain low drop constraint low_check; update story set k = 5 where k = 50;
        alter domain low add constraint low_check check (value < 10)""",
    ),
}


@pytest.mark.parametrize("change", ["select 1", "delete from story where n = 13"])
@pytest.mark.parametrize("way", list(KEYS))
async def test_a_held_key_that_is_no_value_of_its_type_any_more(pair: Pair, way: str, change: str) -> None:
    """On both sides the key has become another type, or a label another name: no row can have it, and the copy releases it."""
    ddl, key, ddl_then = KEYS[way]
    pair.create(ddl, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write(f"insert into story values ('{key}', 1)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13")
        await rest(parts)
        pair.write(ddl_then)
        on_target(pair, ddl_then)
        await rest(parts)
        pair.write(change)
        on_source(pair, "select outbox.notice()")
        if "domain" in way:  # nothing of the table has changed
            on_source(pair, "select outbox.ask_copy('story', prune => true)")
        await rest(parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
        await retried(pair, parts)
    pair.assert_equal("story")
    none_is_left(pair)


async def test_a_held_key_that_is_no_value_is_released_before_anybody_looks(pair: Pair) -> None:
    """The row is deleted between the renaming and the next look, so that the table is empty. Nothing fails, and others flow."""
    ddl, key, ddl_then = KEYS["a label renamed"]
    pair.create(ddl, "story")
    pair.create("create table other (id int primary key)", "other")
    async with pair.relay(timing=EAGER) as parts:
        pair.write(f"insert into story values ('{key}', 1)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13")
        await rest(parts)
        pair.write(ddl_then)
        on_target(pair, ddl_then)
        pair.write("delete from story")
        failed = []
        for turn in range(12):
            parts.relay.copier.ring()
            parts.relay.copier.recheck()
            if turn == 6:
                pair.write("insert into other values (1)")
            try:
                await parts.relay.drain()
            except TargetError as exc:
                failed.append(str(exc))
    assert (there(pair, "select id from other"), failed) == ([(1,)], [])
    none_is_left(pair)


async def test_a_row_whose_key_the_target_cannot_have_yet_stays_a_letter(pair: Pair) -> None:
    """A copy that prunes releases no key of a row that is there: once the target has the label, the row arrives."""
    pair.create(KINDS.format(", 'w'"), "story", on_target=KINDS.format(""))
    async with pair.relay(timing=EAGER) as parts:
        copier = parts.relay.copier
        pair.write("insert into story values ('x', 1)")
        await rest(parts)
        on_source(pair, "select outbox.ask_copy('story', prune => true)")
        copier.ring()
        while "public.story" not in copier.copies or copier.copies["public.story"].state != "copying":
            await parts.relay.step()
        assert copier.copies["public.story"].step == "extra"
        copier._due = float("inf")  # as a rate of copying would
        pair.write("insert into story values ('w', 1)")  # not among the rows that it has brought
        await parts.relay.drain()
        assert len(held(pair)) == 1
        copier._due = 0.0
        await rest(parts)
        assert parts.relay.copier.copies["public.story"].state == "done"
        assert (len(held(pair)), there(pair, "select k::text from story")) == (1, [("x",)])
        on_target(pair, "alter type kind add value 'w'")
        await retried(pair, parts)
    assert there(pair, "select k::text from story order by 1") == [("w",), ("x",)]
    none_is_left(pair)


async def test_a_delete_of_what_the_target_cannot_have_is_refused_alone(pair: Pair) -> None:
    """The table is empty there, and Postgres need not look at the key: it is this delete that is refused all the same, and not what
    is sent with it. A copy that prunes ends it."""
    pair.create(KINDS.format(", 'w'"), "story", on_target=KINDS.format(""))
    pair.create("create table tale (id int primary key, n int)", "tale")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values ('w', 1), ('x', 1)")
        await rest(parts)
        on_target(pair, "alter table tale add constraint lucky check (n <> 13)")
        pair.write("delete from story", "insert into tale values (1, 13)")
        await rest(parts)
        assert (len(held(pair)), there(pair, "select * from story")) == (2, [])
        on_target(pair, "alter table tale drop constraint lucky")
        await retried(pair, parts)
        assert there(pair, "select id, n from tale") == [(1, 13)]
        assert [(key, state) for key, _, state, *_ in letters(pair) if state] == [('{"k":"w"}', "22P02")]
        on_source(pair, "select outbox.ask_copy('story', prune => true)")
        await rest(parts)
    none_is_left(pair)
