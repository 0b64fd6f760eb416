"""Emitted tables that are out while what they are changes: mapped by another key, mapped anew, or captured before."""

import pytest

from tests.integration.test_aim import on_source, on_target
from tests.integration.test_letters_aim import (
    BY_EMAIL,
    EAGER,
    KEYED,
    REFUSES,
    STORY,
    TAKES,
    emitted,
    none_is_left,
    rest,
    retried,
)
from tests.integration.test_out_emitted import there
from tests.pairs import Pair


async def test_a_captured_table_that_went_and_is_mapped(pair: Pair) -> None:
    """The source drops it, and the application emits its rows from now on; then the mirror is out for a while."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1)")
        await rest(parts)
        on_source(pair, "drop table story", "select outbox.map('public.story', array['id'])")
        say = "select outbox.emit('public.story', 'upsert', '{{\"id\": {}, \"n\": {}}}')"
        pair.write(say.format(2, 2))
        await rest(parts)
        assert there(pair, "select id, n from story order by 1") == [(1, 1), (2, 2)]
        on_target(pair, "alter table story rename column n to m")
        pair.write(say.format(3, 3))
        await rest(parts)
        on_target(pair, "alter table story rename column m to n")
        await rest(parts)
        pair.write(say.format(4, 4))
        await rest(parts)
    assert there(pair, "select id, n from story order by 1") == [(1, 1), (2, 2), (3, 3), (4, 4)]


@pytest.mark.parametrize("before", [True, False], ids=["letters of the first key", "of the second alone"])
async def test_an_emitted_table_that_is_out_is_mapped_by_another_key(pair: Pair, before: bool) -> None:
    """What waits is of the key before; its rows have the new one, and it comes back."""
    on_source(pair, "select outbox.map('public.story', array['id'])")
    async with pair.relay(timing=EAGER) as parts:
        if before:
            pair.write(emitted(1), emitted(1, id_=2, email="b"))
        await rest(parts)
        on_source(pair, "select outbox.map('public.story', array['email'])")
        pair.write(emitted(5))
        await rest(parts)
        assert parts.relay.copier.out
        on_target(pair, KEYED, BY_EMAIL)
        await rest(parts)
        await retried(pair, parts)
        pair.write(emitted(6, id_=3, email="c"))
        await rest(parts)
        assert not parts.relay.copier.out, parts.relay.copier.copies
    none_is_left(pair)
    assert there(pair, "select id, n from story order by 1") == [*[(1, 5)], *([(2, 1)] if before else []), (3, 6)]


async def test_an_emitted_table_that_is_mapped_anew_keeps_its_letters_in_order(pair: Pair) -> None:
    """Unmapped, mapped by another key, and by the first again, each with letters, while it is out."""
    on_source(pair, "select outbox.map('public.story', array['id'])")
    async with pair.relay(timing=EAGER) as parts:
        pair.write(emitted(1))
        await rest(parts)
        on_source(pair, "select outbox.unwatch('public.story')", "select outbox.map('public.story', array['id'])")
        pair.write(emitted(2), emitted(3, id_=2, email="b"), emitted(0, op="delete", id_=2))
        await rest(parts)
        on_target(pair, KEYED, "select outboxd.map('story')")
        await rest(parts)
        assert not parts.relay.copier.out
    assert there(pair, "select id, n from story order by 1") == [(1, 2)]
    none_is_left(pair)


async def test_a_stranger_that_came_while_the_table_was_out(pair: Pair) -> None:
    on_source(pair, "select outbox.map('public.story', array['id'])")
    on_target(pair, KEYED, REFUSES, "select outboxd.map('story')")
    async with pair.relay(timing=EAGER) as parts:
        pair.write(emitted(13), emitted(1, id_=2, email="b"))
        await rest(parts)
        on_source(pair, "select outbox.map('public.story', array['email'])")
        on_target(pair, BY_EMAIL, "alter table story rename column n to m")
        pair.write(emitted(5), emitted(6, id_=2, email="b"))
        await rest(parts)
        on_target(pair, "alter table story rename column m to n", TAKES)
        await retried(pair, parts)
        await rest(parts)
        assert not parts.relay.copier.out
    assert there(pair, "select id, n from story order by 1") == [(1, 5), (2, 6)]
    none_is_left(pair)


async def test_the_same_row_by_both_keys_while_it_is_out(pair: Pair) -> None:
    """Which row of the one key is which of the other nobody knows: what came by the second comes second."""
    on_source(pair, "select outbox.map('public.story', array['id'])")
    async with pair.relay(timing=EAGER) as parts:
        pair.write(emitted(1), emitted(2, id_=2, email="b"))
        await rest(parts)
        on_source(pair, "select outbox.map('public.story', array['email'])")
        pair.write(*(emitted(n, id_=n, email=email) for n, email in ((7, "b"), (8, "a"), (9, "c"))))
        await rest(parts)
        on_target(pair, KEYED, BY_EMAIL)
        await retried(pair, parts)
        assert not parts.relay.copier.out
    none_is_left(pair)
    assert there(pair, "select id, email, n from story order by 1") == [(7, "b", 7), (8, "a", 8), (9, "c", 9)]


async def test_a_captured_table_that_went_and_is_mapped_is_captured_again(pair: Pair) -> None:
    """What went in between nobody recorded: it is copied, with prune."""
    pair.create(STORY, "story")
    async with pair.relay(timing=EAGER) as parts:
        pair.write("insert into story values (1, 1), (2, 2)")
        await rest(parts)
        on_source(pair, "drop table story", "select outbox.map('public.story', array['id'])")
        pair.write("select outbox.emit('public.story', 'upsert', '{\"id\": 3, \"n\": 3}')")
        await rest(parts)
        assert there(pair, "select count(*) from story") == [(3,)]
        on_source(pair, STORY, "insert into story values (2, 5)", "select outbox.watch('story', key_columns => '{}')")
        await rest(parts)
    pair.assert_equal("story")
    none_is_left(pair)
