"""Dead letters of a table that is captured no longer: what was recorded for something else than it was last is never sent.

No copy brings their rows any more, so they stay listed until somebody discards them."""

import pytest

from daemon import dead_letters
from tests.integration.test_aim import on_source, on_target
from tests.integration.test_dead_letters import held, letters
from tests.integration.test_letters_aim import BY_EMAIL, EAGER, KEYED, REFUSES, TAKES, none_is_left, rest, retried
from tests.integration.test_letters_key import still
from tests.integration.test_out_emitted import there
from tests.pairs import Pair, Parts

SECRET = "create table story (id int primary key, n int, secret text)"


async def discarded(pair: Pair, parts: Parts) -> None:
    dead_letters.ask(pair.source.dsn, "discard", None, patience=0.0)
    await rest(parts)


@pytest.mark.parametrize("rested", [True, False], ids=["the copy is done", "at once"])
@pytest.mark.parametrize("end", ["unwatch", "emit-only"])
@pytest.mark.parametrize("way", ["exclude", "mask"])
async def test_a_raw_value_after_capture_is_given_up(pair: Pair, way: str, end: str, rested: bool) -> None:
    """A letter in the clear; the column is taken off; then the table is captured no longer."""
    pair.create(SECRET, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1, 'raw'), (2, 1, 'raw')")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13, secret = 'rawer' where id = 1")
        await rest(parts)
        assert len(letters(pair)) == 1
        hidden = {"exclude": "exclude => array['secret']", "mask": """mask => '{"secret": "hash"}'"""}[way]
        on_source(pair, f"select outbox.watch('story', {hidden})")
        if rested:
            await rest(parts)
        ends = {"unwatch": "select outbox.unwatch('story')", "emit-only": "select outbox.watch('story', capture => false"
                + (", mask => '{}')" if way == "mask" else ")")}[end]  # fmt: skip
        on_source(pair, ends)
        await rest(parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
    values = there(pair, "select id, secret from story order by 1")
    assert (1, "rawer") not in values


async def test_a_stale_letter_after_there_and_back_and_unwatched(pair: Pair) -> None:
    """By another key a newer change went; by the first again; then it is watched no longer."""
    pair.create(KEYED, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 'a', 1), (2, 'b', 1)")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13 where id = 1")
        await rest(parts)
        on_source(pair, "select outbox.watch('story', key_columns => array['email'])")
        on_target(pair, BY_EMAIL)
        pair.write("update story set n = 7 where id = 1")
        await still(parts)
        before = there(pair, "select id, n from story order by 1")
        on_source(pair, "select outbox.watch('story', key_columns => '{}')", "select outbox.unwatch('story')")
        on_target(pair, "select outboxd.map('story')")
        await rest(parts)
        on_target(pair, TAKES)
        await retried(pair, parts)
    assert before == [(1, 7), (2, 1)]
    assert there(pair, "select id, n from story order by 1") == [(1, 7), (2, 1)]


@pytest.mark.parametrize("end", ["unwatch", "emit-only"])
async def test_a_raw_value_of_a_table_that_is_out_after_capture_is_given_up(pair: Pair, end: str) -> None:
    """What was skipped becomes letters: also what was recorded before a column was taken off."""
    pair.create(SECRET, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1, 'raw'), (2, 1, 'raw')")
        await rest(parts)
        on_target(pair, "alter table story rename column n to m")
        pair.write("update story set n = 2, secret = 'rawer' where id = 1")
        await rest(parts)
        assert parts.relay.copier.out
        on_source(pair, "select outbox.watch('story', exclude => array['secret'])")
        await rest(parts)
        on_source(
            pair,
            {
                "unwatch": "select outbox.unwatch('story')",
                "emit-only": "select outbox.watch('story', capture => false)",
            }[end],
        )
        await rest(parts)
        on_target(pair, "alter table story rename column m to n")
        await retried(pair, parts)
    values = there(pair, "select id, secret from story order by 1")
    assert (1, "rawer") not in values


async def test_what_was_left_is_discarded(pair: Pair) -> None:
    """It says why it stays, whoever asks for it; what is emitted of its key goes without it."""
    pair.create(SECRET, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1, 'raw'), (2, 1, 'raw')")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13, secret = 'rawer'")
        await rest(parts)
        on_source(
            pair,
            "select outbox.watch('story', exclude => array['secret'])",
            "select outbox.watch('story', capture => false)",
        )
        on_target(pair, TAKES)
        await retried(pair, parts)
        assert [(state, wanted) for _, _, state, _, wanted in letters(pair)] == [("OB013", None)] * 2
        pair.write("select outbox.emit('public.story', 'upsert', '{\"id\": 1, \"n\": 5}')")
        await rest(parts)
        assert there(pair, "select id, n, secret from story order by 1") == [(1, 5, "raw"), (2, 1, "raw")]
        assert held(pair) == [("public.story", '{"id":2}')]
        await discarded(pair, parts)
        none_is_left(pair)
        pair.write("select outbox.emit('public.story', 'upsert', '{\"id\": 2, \"n\": 6}')")
        await rest(parts)
    assert there(pair, "select id, n, secret from story order by 1") == [(1, 5, "raw"), (2, 6, "raw")]


async def test_what_comes_after_what_was_left_is_not_tried_without_end(pair: Pair) -> None:
    """It is refused for itself, and says so."""
    pair.create(SECRET, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1, 'raw')")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13, secret = 'rawer'")
        await rest(parts)
        on_source(
            pair,
            "select outbox.watch('story', exclude => array['secret'])",
            "select outbox.watch('story', capture => false)",
        )
        pair.write("select outbox.emit('public.story', 'upsert', '{\"id\": 1, \"n\": 13}')")
        await rest(parts)
        assert [state for _, _, state, *_ in letters(pair)] == ["OB013", "23514"]
        on_target(pair, TAKES)
        await retried(pair, parts)
    none_is_left(pair)
    assert there(pair, "select n, secret from story") == [(13, "raw")]


@pytest.mark.parametrize("mapped", [True, False])
async def test_a_table_that_is_out_waits_for_what_is_left_to_be_discarded(pair: Pair, mapped: bool) -> None:
    """Its changes of later flow meanwhile, also where only the name is known any more."""
    pair.create(SECRET, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1, 'raw'), (2, 1, 'raw')")
        await rest(parts)
        on_target(pair, "alter table story rename column n to m")
        pair.write("update story set n = 2, secret = 'rawer' where id = 1")
        await rest(parts)
        on_source(pair, "select outbox.watch('story', exclude => array['secret'])")
        pair.write("update story set n = 3 where id = 2")
        await rest(parts)
        on_source(pair, "select outbox.unwatch('story')")
        on_target(pair, "alter table story rename column m to n")
        if mapped:
            on_source(pair, "select outbox.map('public.story', array['id'])")
            pair.write("select outbox.emit('public.story', 'upsert', '{\"id\": 3, \"n\": 4}')")
        await retried(pair, parts)
        new = [(3, 4, None)] if mapped else []
        assert there(pair, "select id, n, secret from story order by 1") == [(1, 1, "raw"), (2, 3, "raw"), *new]
        assert [state for _, _, state, *_ in letters(pair)] == ["OB013"]
        assert "discard" in str(parts.relay.copier.copies["public.story"].reason)
        await discarded(pair, parts)
        assert not parts.relay.copier.out
        none_is_left(pair)


async def test_what_was_left_goes_once_the_table_is_captured_again(pair: Pair) -> None:
    """Its copy brings the rows as they are."""
    pair.create(SECRET, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1, 'raw')")
        await rest(parts)
        on_target(pair, REFUSES)
        pair.write("update story set n = 13, secret = 'rawer'")
        await rest(parts)
        exclude = "select outbox.watch('story', exclude => array['secret'])"
        on_source(pair, exclude, "select outbox.unwatch('story')")
        await retried(pair, parts)
        assert [state for _, _, state, *_ in letters(pair)] == ["OB013"]
        on_source(pair, exclude)
        on_target(pair, TAKES)
        await retried(pair, parts)
    none_is_left(pair)
    assert (1, "rawer") not in there(pair, "select n, secret from story")
    assert there(pair, "select id, n from story") == [(1, 13)]
