"""What the target refuses is held, key by key; neighbours flow; a retry brings it over in order."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from daemon import dead_letters
from daemon.errors import Kind, SourceUnfit, TargetError
from daemon.progress import Timing
from daemon.target import PostgresDoor
from tests.pairs import QUICK, Pair, Parts
from tests.relaying import until
from tests.silent import Silent

AT_ONCE = Timing(poll=0.05, recheck=0.02, retry_first=0.01, retry_cap=0.05, letters=0.0)
ASKED = Timing(poll=0.05, recheck=3600, letters=0.0)  # no letter goes by itself
STORY = "create table story (id int primary key, title text, stars int)"
PICKY = "create table story (id int primary key, title text, stars int constraint stars_check check (stars < 6))"


class Told(Silent):
    def __init__(self) -> None:
        self.letters: dict[str, int] = {}
        self.gears: list[int] = []

    def letters_held(self, tables: Any) -> None:
        for table, count in tables.items():
            self.letters[table] = self.letters.get(table, 0) + count

    def batch_applied(self, batch: Any, plan: Any, answer: Any, seconds: float) -> None:
        self.gears.append(int(answer.more["gear"]))


@pytest.fixture
def stories(pair: Pair) -> Pair:
    """One table; the target takes fewer than six stars."""
    pair.create(STORY, "story", on_target=PICKY)
    return pair


def letters(pair: Pair) -> list[tuple[Any, ...]]:
    with pair.source.connect() as conn:
        return conn.execute("select key, op, sqlstate, reason, wanted from outbox.held order by id").fetchall()


def wanted(pair: Pair) -> bool:
    """Does somebody want something of a letter? Not by reading them: there may be very many."""
    with pair.source.connect() as conn:
        return bool(conn.execute("select exists (select from outbox.held where wanted is not null)").fetchall()[0][0])


def held(pair: Pair) -> list[tuple[Any, ...]]:
    with pair.target.connect() as conn:
        return conn.execute("select table_name, key from outboxd.held order by 1, 2").fetchall()


def ids(pair: Pair, table: str = "story") -> list[int]:
    with pair.target.connect() as conn:
        return [id_ for (id_,) in conn.execute(f"select id from {table} order by 1".encode())]


async def asked(
    pair: Pair, parts: Parts, what: Any, *, wait: Callable[[], object] | None = None
) -> dead_letters.Outcome:
    """What `outboxd dead-letters retry --all` prints, while the relay runs."""
    answer = asyncio.create_task(asyncio.to_thread(dead_letters.ask, pair.source.dsn, what, None, patience=20.0))
    await until(lambda: answer.done() or wanted(pair))  # before they go by themselves
    while not answer.done():
        await parts.relay.step()
        await asyncio.wait([answer], timeout=0.01)
    return await answer


async def test_a_refused_row_is_held_and_its_neighbours_flow(stories):
    told = Told()
    stories.write("insert into story select n, 'n', case n when 50 then 9 else 1 end from generate_series(1, 99) n")
    stories.write("insert into story values (100, 'later', 2)")
    assert await stories.drain(observer=told) == 99
    assert ids(stories) == [n for n in range(1, 101) if n != 50]
    assert held(stories) == [("public.story", '{"id":50}')]
    [(key, op, state, reason, wanted)] = letters(stories)
    assert (key, op, state, wanted) == ('{"id":50}', "upsert", "23514", None)
    assert reason == "the target refuses the upsert because of stars_check (23514)"
    assert told.letters == {"public.story": 1}
    assert told.gears == [3]


async def test_every_refused_row_of_a_batch_is_found_in_one_more_request(stories):
    """Twenty of two thousand: no request more than for one."""
    modes: list[str] = []
    stories.write(
        "insert into story select n, 'n', case n %% 100 when 7 then 9 else 1 end from generate_series(1, 2000) n".replace(
            "%%", "%"
        )
    )
    async with stories.relay() as parts:
        ask = parts.target._ask

        async def noted(header: Any, body: str = "", **more: Any) -> Any:
            modes.append(header["mode"])
            return await ask(header, body, **more)

        parts.target._ask = noted
        assert await parts.relay.drain() == 1980
    # The last: to see when the table is another.
    assert modes == ["cursor", "claim", "apply", "isolate", "apply", "describe"]
    assert len(held(stories)) == len(letters(stories)) == 20


async def test_later_changes_of_a_held_key_join_it_and_a_retry_brings_the_last_over(stories):
    stories.write("insert into story values (1, 'a', 9), (2, 'b', 1)")
    await stories.drain()
    stories.write(
        "update story set title = 'still refused' where id = 1", "update story set title = 'flows' where id = 2"
    )
    stories.write("update story set title = 'mended', stars = 5 where id = 1")
    async with stories.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        assert ids(stories) == [2]
        assert [state for _, _, state, _, _ in letters(stories)] == ["23514", None, None]
        assert (await asked(stories, parts, "retry")).done == 3
        stories.assert_equal("story")
        assert letters(stories) == held(stories) == []
        stories.write("update story set title = 'it flows again' where id = 1")
        await parts.relay.drain()
    stories.assert_equal("story")
    assert letters(stories) == []


async def test_a_retry_that_is_refused_again_stays_and_counts(stories):
    stories.write("insert into story values (1, 'a', 9), (2, 'b', 8), (3, 'c', 1)")
    async with stories.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        stories.write("update story set stars = 1 where id = 2")
        await parts.relay.drain()
        outcome = await asked(stories, parts, "retry")
        assert outcome.done == 2
        assert [table for _, table, _ in outcome.refused] == ["public.story"]
        [one] = dead_letters.listed(stories.source.dsn)
        assert (one.attempts, one.wanted, one.changes) == (2, None, 1)
        assert ids(stories) == [2, 3]
        with stories.target.connect() as conn:
            conn.execute("alter table story drop constraint stars_check")
        assert (await asked(stories, parts, "retry")).done == 1
    stories.assert_equal("story")


async def test_a_discarded_letter_leaves_the_target_as_it_is_until_the_row_changes_again(stories):
    stories.write("insert into story values (1, 'a', 1)")
    await stories.drain()
    stories.write("update story set stars = 9 where id = 1")
    async with stories.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        assert (await asked(stories, parts, "discard")).done == 1
        assert letters(stories) == held(stories) == []
        assert stories.rows("select stars from story") == ([(9,)], [(1,)])
        stories.write("update story set stars = 4 where id = 1")
        await parts.relay.drain()
    stories.assert_equal("story")


async def test_a_delete_joins_a_held_key_and_is_drained_with_it(stories):
    stories.write("insert into story values (1, 'a', 1)")
    await stories.drain()
    stories.write("update story set stars = 9 where id = 1")
    stories.write("delete from story where id = 1")
    async with stories.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        if letters(stories):  # in one batch the delete alone is left
            await asked(stories, parts, "retry")
    stories.assert_equal("story")


async def test_truncate_frees_held_keys(stories):
    stories.write("insert into story values (1, 'a', 9), (2, 'b', 1)")
    await stories.drain()
    stories.write("truncate story", "insert into story values (1, 'anew', 2)")
    async with stories.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        stories.assert_equal("story")
        assert letters(stories) == held(stories) == []
        stories.write("update story set title = 'flows' where id = 1")
        await parts.relay.drain()
    stories.assert_equal("story")


async def test_halt_keeps_the_relay_where_it_is(stories):
    with stories.source.connect() as conn:
        conn.execute("select outbox.on_error('story', 'halt')")
    stories.write("insert into story values (1, 'a', 9), (2, 'b', 1)")
    with pytest.raises(TargetError, match=r"public\.story has on_error = halt") as caught:
        await stories.drain()
    assert caught.value.kind is Kind.DATA
    assert (ids(stories), letters(stories), held(stories)) == ([], [], [])
    with stories.source.connect() as conn:
        conn.execute("select outbox.on_error('story', 'hold')")
    await stories.drain()
    assert ids(stories) == [2]


FAMILY = """
create table parent (id int primary key, name text);
create table child (id int primary key, parent_id int references parent, name text)
"""
PICKY_FAMILY = """
create table parent (id int primary key, name text constraint short check (length(name) < 5));
create table child (id int primary key, parent_id int references parent deferrable, name text)
"""


@pytest.fixture
def family(pair: Pair) -> Pair:
    pair.create(FAMILY, "parent", "child", on_target=PICKY_FAMILY)
    return pair


async def test_children_of_a_held_parent_are_held_name_it_and_come_with_it(family):
    family.write(
        "insert into parent values (1, 'too long'), (2, 'ok')", "insert into child values (10, 1, 'a'), (20, 2, 'b')"
    )
    await family.drain()
    family.write("insert into child values (11, 1, 'of a later batch')")
    async with family.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        assert (ids(family, "parent"), ids(family, "child")) == ([2], [20])
        first, *children = dead_letters.listed(family.source.dsn)
        assert first.reason == "the target refuses the upsert because of short (23514)"
        assert [child.parent for child in children] == [first.letter] * 2
        assert all("the row of public.parent it refers to is held" in child.reason for child in children)
        family.write("update parent set name = 'now' where id = 1")
        await parts.relay.drain()
        # Only the parent is asked for: its children follow by themselves.
        await asyncio.to_thread(dead_letters.ask, family.source.dsn, "retry", [first.letter], patience=0.0)
        while letters(family):
            await parts.relay.step()
    family.assert_equal("parent", "child")
    assert held(family) == []


async def test_a_parent_that_a_held_child_still_needs_is_held_as_well(family):
    """The child's move away is refused, so the old parent cannot go yet."""
    with family.target.connect() as conn:
        conn.execute("alter table child add constraint no_x check (name <> 'x')")
    family.write("insert into parent values (1, 'a'), (2, 'b')", "insert into child values (10, 1, 'a')")
    await family.drain()
    family.write("update child set parent_id = 2, name = 'x' where id = 10", "delete from parent where id = 1")
    family.write("insert into parent values (3, 'c')")
    async with family.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        assert ids(family, "parent") == [1, 2, 3]
        reasons = {one.table: one.reason for one in dead_letters.listed(family.source.dsn)}
        assert "a row of public.child on the target still refers to it" in reasons["public.parent"]
        with family.target.connect() as conn:
            conn.execute("alter table child drop constraint no_x")
        await asked(family, parts, "retry")
    family.assert_equal("parent", "child")
    assert held(family) == letters(family) == []


async def test_rows_that_swap_a_unique_value_flow_beside_a_refused_row(pair):
    """Neither fits alone; the same constraint refuses both, so they are tried together."""
    ddl = "create table item (id int primary key, position int unique {}, stars int {})"
    pair.create(ddl.format("deferrable", ""), "item", on_target=ddl.format("", "check (stars < 6)"))
    pair.write("insert into item select n, n, 1 from generate_series(1, 8) n")
    await pair.drain()
    pair.write(
        "update item set position = position % 8 + 1, stars = case when id = 99 then 9 else 1 end",
        "insert into item values (50, 50, 9)",
    )
    await pair.drain()
    assert [key for _, key in held(pair)] == ['{"id":50}']
    source, target = pair.rows("select id, position from item where id < 50 order by 1")
    assert source == target


async def test_a_row_held_in_a_rotation_holds_whoever_needs_its_place(pair):
    """Its old row stays on the target and keeps its unique value: the row that wants that is refused, too; no other."""
    ddl = "create table item (id int primary key, position int unique {}, stars int {})"
    pair.create(ddl.format("deferrable", ""), "item", on_target=ddl.format("", "check (stars < 6)"))
    pair.write("insert into item select n, n, 1 from generate_series(1, 4) n")
    await pair.drain()
    # 1 → 9 is refused; 2 wants 1; 3 wants 2, which 2 does not leave.
    pair.write(
        "update item set position = 9, stars = 9 where id = 1",
        "update item set position = 1 where id = 2",
        "update item set position = 7 where id = 4",
    )
    async with pair.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        assert [key for _, key in held(pair)] == ['{"id":1}', '{"id":2}']
        assert pair.rows("select id, position from item order by 1")[1] == [(1, 1), (2, 2), (3, 3), (4, 7)]
        pair.write("update item set stars = 1 where id = 1")
        await parts.relay.drain()
        assert (await asked(pair, parts, "retry")).refused == ()
    pair.assert_equal("item")


@pytest.mark.parametrize("dies", ["hold", "forget"])
async def test_dying_between_source_and_target_leaves_no_letter_without_a_held_key(stories, dies):
    """After the copy and before the target's commit; and after the commit of a release and before the letters go."""
    stories.write("insert into story values (1, 'a', 9), (2, 'b', 1)")
    async with stories.relay(timing=AT_ONCE) as parts:
        store = parts.relay._delivery._letters
        if dies == "hold":
            real = store.hold

            async def then_dies(*arguments: Any) -> None:
                await real(*arguments)
                raise asyncio.CancelledError

            store.hold = then_dies
            with pytest.raises(asyncio.CancelledError):
                await parts.relay.drain()
            assert (len(letters(stories)), held(stories)) == (1, [])
        else:
            await parts.relay.drain()
            stories.write("update story set stars = 1 where id = 1")
            await parts.relay.drain()

            async def dies_first(*_: Any, **__: Any) -> None:
                raise asyncio.CancelledError

            store.forget = dies_first
            await asyncio.to_thread(dead_letters.ask, stories.source.dsn, "retry", None, patience=0.0)
            with pytest.raises(asyncio.CancelledError):
                await parts.relay.drain()
            assert (len(letters(stories)), held(stories)) == (2, [])
    if dies == "hold":
        with stories.target.connect() as conn:
            conn.execute("alter table story drop constraint stars_check")
    await stories.drain()
    await stories.drain()
    stories.assert_equal("story")
    assert letters(stories) == held(stories) == []


class LateDoor:
    """The direct door over a network that keeps the first request with a hold back, until the next apply is sent."""

    def __init__(self, dsn: str) -> None:
        self._door = PostgresDoor(dsn)
        self.kept: bytes | None = None
        self.delivered = False

    async def send(self, document: bytes) -> str:
        if b'"op":"hold"' in document and self.kept is None:
            self.kept = document
            raise TargetError(Kind.AMBIGUOUS, "no answer in time")
        if self.kept and not self.delivered and b'"mode":"apply"' in document:
            self.delivered = True
            await self._door.send(self.kept)
        return await self._door.send(document)

    async def close(self) -> None:
        await self._door.close()


async def test_a_hold_that_commits_late_still_has_its_letters(stories):
    """The cursor is asked for, letters are settled, and only then the first attempt commits: they must be there."""
    stories.write("insert into story values (1, 'a', 9), (2, 'b', 1)")
    door = LateDoor(stories.target.dsn)
    async with stories.relay(door=door, timing=AT_ONCE) as parts:
        with pytest.raises(TargetError, match="no answer in time"):
            await parts.relay.step()
        while await parts.relay.step():
            pass
        assert door.delivered
        assert held(stories) == [("public.story", '{"id":1}')]
        assert len(letters(stories)) == 1
        with stories.target.connect() as conn:
            conn.execute("alter table story drop constraint stars_check")
        assert (await asked(stories, parts, "retry")).done == 1
    stories.assert_equal("story")


async def test_very_many_refused_keys_are_no_rows_fault(stories):
    """A constraint added by mistake must not empty the outbox into dead letters: the table is out, the others go on."""
    stories.create("create table other (id int primary key)", "other")
    stories.write("insert into story select n, 'n', 9 from generate_series(1, 5) n", "insert into other values (1)")
    async with stories.relay() as parts:
        parts.relay._delivery._limit = 4
        assert await parts.relay.step()
        assert "more than 4 keys of public.story would be held, which is no row's fault" in str(
            parts.relay.copier.copies["public.story"].reason
        )
        assert await parts.relay.step()
        assert letters(stories) == held(stories) == []
        assert parts.relay.copier.out == {"public.story"}
        stories.assert_equal("other")
        parts.relay._delivery._limit = 5
        while parts.relay.copier.out or parts.relay.copier.asked or len(held(stories)) < 5:
            await parts.relay.step()
    assert len(held(stories)) == 5


async def test_a_refused_truncate_pauses_because_it_cannot_be_divided(family):
    """A table of the target alone still refers to a row: nobody can say which of the TRUNCATE's rows to hold."""
    family.write("insert into parent values (1, 'a'), (2, 'b')")
    await family.drain()
    with family.target.connect() as conn:
        conn.execute("create table own (parent_id int references parent); insert into own values (2)")
    family.write("truncate parent cascade", "insert into parent values (3, 'c')")
    with pytest.raises(TargetError) as caught:
        await family.drain()
    assert caught.value.kind is Kind.DATA
    assert (ids(family, "parent"), letters(family)) == ([1, 2], [])
    with family.target.connect() as conn:
        conn.execute("delete from own")
    await family.drain()
    family.assert_equal("parent", "child")


async def test_letters_of_a_source_that_the_target_does_not_know_are_left_alone(stories):
    """Which letters count only the target can say, and only one that stands at a cursor of this source."""
    stories.write("insert into story values (1, 'a', 9), (2, 'b', 1)")
    await stories.drain()
    with stories.target.connect() as conn:
        conn.execute("update outboxd.cursor set cursor = jsonb_set(cursor::jsonb, '{system}', '\"1\"')::text")
        conn.execute("delete from outboxd.held")
    with pytest.raises(SourceUnfit, match="outboxd rebase"):
        await stories.drain()
    assert len(letters(stories)) == 1


async def test_an_outage_makes_no_dead_letter(stories):
    """Attempts are spent by refusals alone."""
    stories.write("insert into story values (1, 'a', 1)")
    async with stories.relay(door=PostgresDoor("host=127.0.0.1 port=1 dbname=x"), timing=QUICK) as parts:
        for _ in range(5):
            with pytest.raises(Exception, match=r"no connection|breaker"):
                await parts.relay.step()
    assert letters(stories) == []
    await stories.drain()
    stories.assert_equal("story")


async def test_a_retry_waits_until_the_target_has_said_where_it_stands(stories):
    """After a batch that came out of turn all that was read is let go of, and read again from the target's cursor. A retry
    in between must not make that look done: rows read as of a window that was let go of would move the cursor past its
    changes (promise I1), and verification would wait for ever for an answer to what was never sent."""
    stories.write("insert into story values (1, 'a', 9), (2, 'b', 1)")
    async with stories.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        with stories.target.connect() as target:
            target.execute("alter table story drop constraint stars_check")
        stories.write("select outbox.ask_verification('public.story')", "insert into story values (3, 'c', 1)")
        parts.relay.verifier.ring()
        batch = await parts.relay._read()
        assert batch is not None
        assert [change.key for change in batch.changes] == ['{"id":3}']
        with stories.source.connect() as source:
            source.execute("update outbox.held set wanted = 'retry'")
        await parts.relay._forget()  # as when a batch before it turns out to be refused
        await parts.relay._retry()
        await parts.relay.drain()
        stories.assert_equal("story")
        parts.relay.verifier.ring()
        await parts.relay.drain()
        assert parts.relay.verifier.records["public.story"].state == "done"
