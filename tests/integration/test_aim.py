"""A copy and a comparison say what they are of: when that is another table, key, mapping or place by now, they begin anew."""

from typing import Any

import pytest
from psycopg.types.json import Jsonb

from daemon import relay
from daemon.batch import Limits
from daemon.copies import Copy
from tests.integration.test_copy import filled
from tests.integration.test_dead_letters import ASKED, AT_ONCE, asked, held
from tests.integration.test_out_emitted import there, turned
from tests.integration.test_verify import ask
from tests.pairs import Pair, Parts

SMALL = Limits(changes=100)


def on_source(pair: Pair, *statements: str) -> None:
    """Each in a transaction of its own."""
    with pair.source.connect() as source:
        for statement in statements:
            source.execute(statement.encode())


def on_target(pair: Pair, *statements: str) -> None:
    with pair.target.connect() as target:
        for statement in statements:
            target.execute(statement.encode())


async def looked(parts: Parts) -> Copy:
    """Everything is done that is wanted by now; the record of the copy."""
    parts.relay.copier.ring()
    parts.relay.verifier.ring()
    await parts.relay.drain()
    return parts.relay.copier.copies["public.story"]


async def half_copied(parts: Parts) -> None:
    """The copy is under way."""
    while (copy := parts.relay.copier.copies.get("public.story")) is None or copy.rows < 300:
        await parts.relay.step()
    assert copy.state == "copying"


async def test_watched_anew_during_a_copy(pair: Pair) -> None:
    """What changed in between nobody recorded: the copy begins anew, and what is gone goes."""
    filled(pair)
    async with pair.relay(limits=SMALL) as parts:
        await half_copied(parts)
        on_source(
            pair,
            "select outbox.unwatch('story')",
            "update story set n = -1 where id < 100",
            "delete from story where id between 100 and 120",
            "select outbox.watch('story')",
        )
        copy = await looked(parts)
        assert (copy.state, copy.prune) == ("done", True)
    pair.assert_equal("story")


@pytest.mark.parametrize("empty", [False, True], ids=["some are left", "none is left"])
async def test_watched_anew_after_a_copy(pair: Pair, empty: bool) -> None:
    """Also where there is nothing to copy any more, and no new wish."""
    filled(pair, many=300)
    async with pair.relay(limits=SMALL) as parts:
        await parts.relay.drain()
        on_source(
            pair,
            "select outbox.unwatch('story')",
            "delete from story" + ("" if empty else " where id < 100"),
            "select outbox.watch('story')",
        )
        await looked(parts)
    pair.assert_equal("story")


async def test_masked_during_a_copy_and_wished_again_before_the_relay_looks(pair: Pair) -> None:
    """A wish that lets a copy go on must not let it go on unmasked."""
    filled(pair)
    async with pair.relay(limits=SMALL) as parts:
        await half_copied(parts)
        on_source(pair, """select outbox.watch('story', mask => '{"n": "null"}')""", "select outbox.ask_copy('story')")
        assert (await looked(parts)).state == "done"
    with pair.target.connect() as target:
        assert target.execute("select count(*), count(n) from story").fetchone() == (2500, 0)


async def test_a_later_wish_takes_no_prune_away(pair: Pair) -> None:
    filled(pair, many=300)
    async with pair.relay(limits=SMALL) as parts:
        await parts.relay.drain()
        on_target(pair, "insert into story values (1000, 1)")
        on_source(pair, "select outbox.ask_copy('story', prune => true)", "select outbox.ask_copy('story')")
        copy = await looked(parts)
        assert (copy.prune, copy.pruned) == (True, 1)
        on_target(pair, "insert into story values (1000, 1)")
        on_source(pair, "select outbox.ask_copy('story')")
        copy = await looked(parts)
        assert (copy.prune, copy.pruned, copy.extra) == (False, 0, 1), "once it has been done, it is"


async def test_a_later_wish_takes_no_restart_away(pair: Pair) -> None:
    filled(pair)
    async with pair.relay(limits=SMALL) as parts:
        await half_copied(parts)
        on_target(pair, "delete from story where id = 1")
        on_source(pair, "select outbox.ask_copy('story', restart => true)", "select outbox.ask_copy('story')")
        await looked(parts)
    pair.assert_equal("story")


async def test_a_later_wish_takes_no_repair_away(pair: Pair) -> None:
    filled(pair, many=300)
    async with pair.relay(limits=SMALL) as parts:
        await parts.relay.drain()
        on_target(pair, "delete from story where id = 1")
        ask(pair, repair=True)
        ask(pair)
        await looked(parts)
        assert parts.relay.verifier.records["public.story"].repaired == 1
    pair.assert_equal("story")


@pytest.mark.parametrize("copied", [False, True], ids=["during a copy", "after it"])
async def test_a_live_table_that_goes_elsewhere_is_copied_there(pair: Pair, copied: bool) -> None:
    """As a whole; where it was before nothing more is written."""
    filled(pair)
    on_target(pair, "create table tale (id int primary key, n int)")
    async with pair.relay(limits=SMALL) as parts:
        await (parts.relay.drain() if copied else half_copied(parts))
        on_target(pair, "select outboxd.map('tale', 'public.story')")
        on_source(pair, "select outbox.watch('story', target => 'public.tale')")
        await looked(parts)
    with pair.target.connect() as target:
        assert target.execute("select count(*), sum(n) from tale").fetchone() == (2500, 2500 * 2501 // 2)


async def test_a_table_of_the_target_made_anew_is_copied_again(pair: Pair) -> None:
    """Nothing is refused, and nothing is written: the answer to a heartbeat tells."""
    filled(pair, many=300)
    async with pair.relay(limits=SMALL) as parts:
        await parts.relay.drain()
        on_target(pair, "drop table story", "create table story (id int primary key, n int)")
        on_source(pair, "select outbox.heartbeat('main', 0, (select snapshot from outbox.relay))")
        on_source(pair, "insert into outbox.change (table_name, op, shape, key, row) values ('outboxd.heartbeat', 'upsert',"
                        " outbox.shape_of('outboxd.heartbeat', array['relay', 'written_at']), '{\"relay\": \"main\"}',"
                        " '{\"relay\": \"main\", \"written_at\": \"2020-01-01T00:00:00Z\"}')")  # fmt: skip
        assert (await looked(parts)).state == "done"
    pair.assert_equal("story")


async def test_a_table_of_the_target_made_anew_is_not_called_equal(pair: Pair) -> None:
    """What was found of the table before says nothing of this one; also for who begins just then."""
    filled(pair, many=300)
    async with pair.relay(limits=SMALL) as parts:
        await parts.relay.drain()
        ask(pair)
        await looked(parts)
        before = parts.relay.verifier.records["public.story"]
        on_target(pair, "drop table story", "create table story (id int primary key, n int)")
    async with pair.relay(limits=SMALL) as parts:
        await parts.relay.step()
        assert not parts.relay.verifier.records["public.story"].here
        await looked(parts)
        record = parts.relay.verifier.records["public.story"]
        assert (record.state, record.rows, record.wish) == ("done", 300, before.wish)
        assert record.began_at > before.began_at
    pair.assert_equal("story")


@pytest.mark.parametrize("copied", [True, False], ids=["copied", "watched when it was empty"])
async def test_what_a_filter_leaves_out_leaves_the_target(pair: Pair, copied: bool) -> None:
    filled(pair, many=300 if copied else 0)
    async with pair.relay(limits=SMALL) as parts:
        if not copied:
            on_source(pair, "insert into story select n, n from generate_series(1, 300) n")
        await parts.relay.drain()
        on_source(pair, "select outbox.watch('story', filter => 'n > 200')")
        assert (await looked(parts)).pruned == 200
    with pair.target.connect() as target:
        assert target.execute("select count(*), min(n) from story").fetchone() == (100, 201)


@pytest.mark.parametrize("copied", [True, False], ids=["copied", "watched when it was empty"])
async def test_what_is_excluded_leaves_the_target(pair: Pair, copied: bool) -> None:
    """The column of the rows that outboxd wrote; not that of a column nobody ever sent, nor one that must have a value."""
    with pair.source.connect() as source, pair.target.connect() as target:
        source.execute("create table story (id int primary key, n int, secret text, must text not null)")
        target.execute(
            "create table story (id int primary key, n int, secret text, must text not null default '', own text default 'ours')"
        )
        rows, watch = (
            "insert into story select n, n, 'secret', 'must' from generate_series(1, 300) n",
            "select outbox.watch('story')",
        )
        for statement in (rows, watch) if copied else (watch, rows):
            source.execute(statement.encode())
        target.execute("select outboxd.map('story')")
    async with pair.relay(limits=SMALL) as parts:
        await parts.relay.drain()
        on_source(pair, "select outbox.watch('story', exclude => array['secret', 'must'])")
        copy = await looked(parts)
        assert (copy.state, copy.empties) == ("done", ("secret",))
        with pair.target.connect() as target:
            counted = (
                "select count(*), count(secret), count(*) filter (where must = 'must'), count(own), count(n) from story"
            )
            assert target.execute(counted).fetchone() == (300, 0, 300, 300, 300)
            target.execute("update story set secret = 'their own'")
        on_source(pair, "select outbox.ask_copy('story')")
        await looked(parts)
        with pair.target.connect() as target:
            assert target.execute("select count(secret) from story").fetchone() == (300,), "that is nobody else's now"


PRIVATE = "create table story (id int primary key, n int, secret text)"


async def left_at_home(pair: Pair, parts: Parts) -> None:
    """Three hundred rows whose secret has travelled, and is taken off."""
    pair.create(PRIVATE, "story")
    on_source(pair, "insert into story select n, n, 'secret' from generate_series(1, 300) n")
    await parts.relay.drain()
    on_source(pair, "select outbox.watch('story', exclude => array['secret'])")
    await looked(parts)


def secrets(pair: Pair) -> Any:
    with pair.target.connect() as target:
        return target.execute("select count(*), count(secret) from story").fetchone()


@pytest.mark.parametrize("by_rows", [False, True], ids=["by digest", "by row"])
async def test_a_column_that_was_taken_off_is_compared_with_null(pair: Pair, by_rows: bool) -> None:
    """And repaired. Not one of its name that somebody has made anew: that is theirs."""
    async with pair.relay(limits=SMALL) as parts:
        await left_at_home(pair, parts)
        on_target(pair, "update story set secret = 'back' where id in (7, 250)")
        if by_rows:
            parts.relay.verifier._by_rows.add("public.story")
        ask(pair)
        await looked(parts)
        record = parts.relay.verifier.records["public.story"]
        assert (record.state, record.rows, record.different, record.drift) == ("done", 300, 2, 2)
        assert [(one["key"], tuple(one["columns"])) for one in record.samples] == [
            ('{"id":7}', ("secret",)),
            ('{"id":250}', ("secret",)),
        ]
        ask(pair, repair=True)
        await looked(parts)
        assert parts.relay.verifier.records["public.story"].repaired == 2
        assert secrets(pair) == (300, 0)
        on_target(pair, "alter table story drop column secret, add column secret text default 'theirs'")
        ask(pair, repair=True)
        await looked(parts)
        record = parts.relay.verifier.records["public.story"]
        assert (record.state, record.rows, record.drift) == ("done", 300, 0)
        assert secrets(pair) == (300, 300)


async def test_a_column_taken_off_stays_known_after_a_copy_and_another_leader(pair: Pair) -> None:
    async with pair.relay(limits=SMALL) as parts:
        await left_at_home(pair, parts)
        on_source(pair, "select outbox.ask_copy('story', true)")
        await looked(parts)
    on_target(pair, "update story set secret = 'back' where id = 7")
    async with pair.relay(limits=SMALL) as parts:
        ask(pair, repair=True)
        await looked(parts)
        assert parts.relay.verifier.records["public.story"].repaired == 1
        on_source(pair, "select outbox.watch('story', exclude => array[]::text[])")
        await looked(parts)
        assert parts.relay.copier.vacant("public.story") == ()
    pair.assert_equal("story")


async def test_a_row_that_was_refused_while_a_column_was_taken_off(pair: Pair) -> None:
    """Its letters are from before and after: once one arrives, the target's row has no value of it left."""
    pair.create(PRIVATE, "story")
    async with pair.relay(limits=SMALL, timing=ASKED) as parts:
        on_source(pair, "insert into story select n, n, 'secret' from generate_series(1, 9) n")
        await parts.relay.drain()
        on_target(pair, "alter table story add constraint lucky check (n <> 13) not valid")
        on_source(pair, "update story set n = 13, secret = 'another' where id in (7, 8)")
        await parts.relay.drain()
        on_source(
            pair, "select outbox.watch('story', exclude => array['secret'])", "update story set n = 13 where id = 8"
        )
        await looked(parts)
        assert secrets(pair) == (9, 2), "they are held"
        on_target(pair, "alter table story drop constraint lucky")
        await asked(pair, parts, "retry")
        assert secrets(pair) == (9, 0)
        with pair.target.connect() as target:
            assert target.execute("select id from story where n = 13 order by 1").fetchall() == [(7,), (8,)]


MUST = "create table story (id int primary key, n int, secret text not null)"


async def must_have(pair: Pair, parts: Parts) -> None:
    """Three hundred rows whose secret is taken off, and cannot be emptied; a new row is refused."""
    pair.create(MUST, "story")
    on_source(pair, "insert into story select n, n, 'secret' from generate_series(1, 300) n")
    await parts.relay.drain()
    on_source(pair, "select outbox.watch('story', exclude => array['secret'])")
    copy = await looked(parts)
    assert (copy.state, copy.empties, secrets(pair)) == ("done", (), (300, 300))
    on_source(pair, "insert into story values (301, 301, 'another')", "update story set n = -n where id = 7")
    await parts.relay.drain()
    assert [key for _, key in held(pair)] == ['{"id":301}']
    assert secrets(pair) == (300, 300)


@pytest.mark.parametrize("another", [False, True], ids=["the same leader", "another leader"])
async def test_a_column_that_had_to_have_a_value_is_emptied_once_it_may_be_null(pair: Pair, another: bool) -> None:
    """With what was refused meanwhile, and it stays so."""
    free = "alter table story alter secret drop not null"
    async with pair.relay(limits=SMALL, timing=AT_ONCE) as parts:
        await must_have(pair, parts)
        if not another:
            on_target(pair, free)
            parts.relay.ask_again()
            await turned(parts, lambda: secrets(pair) == (301, 0))
    if another:
        on_target(pair, free)
    async with pair.relay(limits=SMALL, timing=AT_ONCE) as parts:
        await turned(parts, lambda: secrets(pair) == (301, 0) and not held(pair))
        copy = await looked(parts)
        assert (copy.state, copy.prune, copy.freed, copy.kept) == ("done", False, (), ())
        assert parts.relay.copier.vacant("public.story") == ("secret",)
        on_target(pair, "update story set secret = 'their own'")
        parts.relay.ask_again()
        await looked(parts)
        assert secrets(pair) == (301, 301), "once it has been emptied, a copy does so no more; a comparison tells"
    here, there = pair.rows("select id, n from story order by 1")
    assert there == here


async def test_a_column_of_that_name_that_somebody_makes_anew_is_theirs(pair: Pair) -> None:
    async with pair.relay(limits=SMALL, timing=AT_ONCE) as parts:
        await must_have(pair, parts)
        on_target(pair, "alter table story drop column secret, add column secret text default 'theirs'")
        parts.relay.ask_again()
        await turned(parts, lambda: not held(pair))
        await looked(parts)
        assert secrets(pair) == (301, 301)


async def test_without_heartbeats_a_table_of_the_target_made_anew_is_found_in_time(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written, and nobody claims: now and then the target is asked."""
    filled(pair, many=300)
    async with pair.relay(limits=SMALL) as parts:
        await parts.relay.drain()
        on_target(pair, "drop table story", "create table story (id int primary key, n int)")
        monkeypatch.setattr(relay, "_TOLD_EVERY", 0.2)
        await turned(parts, lambda: there(pair, "select count(*) from story") == [(300,)])
    pair.assert_equal("story")


async def test_the_target_is_asked_no_more_often_than_it_has_to_be(pair: Pair) -> None:
    filled(pair, many=300)
    async with pair.relay(limits=SMALL) as parts:
        await parts.relay.drain()
        asked, real = list[str](), parts.target.cursor

        async def counted() -> Any:
            asked.append("cursor")
            return await real()

        parts.target.cursor = counted  # type: ignore[method-assign]
        for _ in range(20):
            await parts.relay.drain()
        assert asked == []
        parts.relay.ask_again()
        await parts.relay.drain()
        assert asked == ["cursor"]


@pytest.mark.parametrize("beats", [True, False], ids=["told by a heartbeat", "told to who leads next"])
async def test_a_mirror_made_anew_of_a_table_that_was_empty_when_watched(pair: Pair, beats: bool) -> None:
    """Nobody ever asked for a copy of it: where its rows went is on record all the same."""
    pair.create("create table story (id int primary key, n int)", "story")
    async with pair.relay(limits=SMALL) as parts:
        on_source(pair, "insert into story select n, n from generate_series(1, 300) n")
        await parts.relay.drain()
        assert [one["table"] for one in parts.relay.copier.report()] == []
        on_target(
            pair, "drop table story", "create table story (id int primary key, n int)", "select outboxd.map('story')"
        )
        if beats:
            parts.relay.ask_again()
            await looked(parts)
    if not beats:
        async with pair.relay(limits=SMALL) as parts:
            await looked(parts)
    pair.assert_equal("story")


@pytest.mark.parametrize("way", ["renamed before", "under another name", "a constant"])
async def test_what_is_taken_off_under_a_name_that_no_row_has_had(pair: Pair, way: str) -> None:
    """Columns leave by what they are called on the target when the table is watched in another way."""
    pair.create(
        "create table story (id int primary key, note text)",
        "story",
        on_target="create table story (id int primary key, note text, memo text)",
    )
    before, after, column = {
        "renamed before": ("select outbox.watch('story')", "select outbox.watch('story', exclude => array['memo'])", "memo"),
        "under another name": ("""select outbox.watch('story', rename => '{"note": "memo"}')""",
                               "select outbox.watch('story', rename => '{}', exclude => array['note'])", "memo"),
        "a constant": ("""select outbox.watch('story', constant => '{"memo": "x"}')""", "select outbox.watch('story', constant => '{}')", "memo"),
    }[way]  # fmt: skip
    async with pair.relay(limits=SMALL) as parts:
        on_source(pair, before, "insert into story select n, 'private' from generate_series(1, 9) n")
        await parts.relay.drain()
        if way == "renamed before":
            on_source(pair, "alter table story rename note to memo")
            on_target(pair, "alter table story drop memo", "alter table story rename note to memo")
        on_source(pair, after)
        await looked(parts)
    with pair.target.connect() as target:
        assert target.execute(f"select count(*), count({column}) from story".encode()).fetchone() == (9, 0)


@pytest.mark.parametrize("how", ["emitted alone", "mapped"])
async def test_a_letter_of_a_table_that_is_emitted_by_now_keeps_what_it_has(pair: Pair, how: str) -> None:
    """A column was taken off while the table was captured; what the application sends of it since is its own."""
    async with pair.relay(limits=SMALL, timing=ASKED) as parts:
        await left_at_home(pair, parts)
        if how == "emitted alone":
            on_source(pair, "select outbox.watch('story', capture => false, exclude => '{}')")
        else:
            on_source(pair, "select outbox.unwatch('story')", "select outbox.map('public.story', array['id'])")
        on_target(pair, "alter table story add constraint lucky check (n <> 13) not valid")
        on_source(pair, """select outbox.emit('public.story', 'upsert', '{"id": 501, "n": 13, "secret": "sent"}')""")
        await looked(parts)
        on_target(pair, "alter table story drop constraint lucky")
        await asked(pair, parts, "retry")
    with pair.target.connect() as target:
        assert target.execute("select secret from story where id = 501").fetchall() == [("sent",)]


async def test_a_comparison_of_another_mapping_begins_anew(pair: Pair) -> None:
    """In the middle of a pass, and after it: what is said is said of what travels now."""
    filled(pair)
    async with pair.relay(limits=SMALL) as parts:
        await parts.relay.drain()
        ask(pair)
        while (record := parts.relay.verifier.records.get("public.story")) is None or record.rows < 300:
            parts.relay.verifier.ring()
            await parts.relay.step()
        assert record.state == "running"
        on_source(pair, "select outbox.watch('story', filter => 'n > 200')")
        await looked(parts)
        await looked(parts)
        record = parts.relay.verifier.records["public.story"]
        assert (record.state, record.rows, record.drift) == ("done", 2300, 0)


def test_aims_differ_in_all_that_matters(pair: Pair) -> None:
    """And are the same where nothing but an order, or nothing at all, is another one."""
    with pair.source.connect() as source:
        source.execute("create table t (id int primary key, other int not null unique, a text, b text)")
        source.execute("select outbox.watch('t')")
        columns = ("key_columns", "include", "exclude", "target", "rename", "constant", "mask", "filter")

        def aim(**watched: Any) -> str:
            given = {name: watched.get(name) for name in columns}
            given = {name: Jsonb(value) if isinstance(value, dict) else value for name, value in given.items()}
            source.execute(f"update outbox.watched set {', '.join(f'{n} = %({n})s' for n in columns)}".encode(), given)
            row = source.execute("select aim from outbox.aims()").fetchone()
            assert row is not None
            return str(row[0])

        seen = [aim(), aim(exclude=["a", "b"]), aim(include=["id", "other"]), aim(key_columns=["other"]), aim(mask={"a": "null"}),
                aim(rename={"b": "c"}), aim(constant={"d": "x"}), aim(filter="id > 0"), aim(target="public.u")]  # fmt: skip
        assert len(set(seen)) == len(seen)
        assert aim(exclude=["a", "b"]) == aim(exclude=["b", "a"])
        before = aim()
        assert aim(key_columns=["id"]) == before
        source.execute("alter table t add column e int")
        assert aim() == before
        source.execute("select outbox.unwatch('t'), outbox.watch('t')")
        assert aim() != before
        assert len({one.partition(":")[0] for one in [*seen, before]}) == 1


@pytest.mark.parametrize("on", ["", "set local outbox.copy = off"], ids=["copied", "not to be copied"])
@pytest.mark.parametrize("left", [True, False], ids=["some are left", "none is left"])
@pytest.mark.parametrize("how", ["emitted for a while", "slept"])
async def test_capture_that_was_interrupted(pair: Pair, how: str, left: bool, on: str) -> None:
    """What went meanwhile goes, also where the rows that are there are not to be copied."""
    pair.create("create table story (id int primary key, n int)", "story")
    async with pair.relay(timing=AT_ONCE) as parts:
        pair.write("insert into story select g, g from generate_series(1, 20) g")
        await looked(parts)
        stop = {
            "slept": "alter table story disable trigger user",
            "emitted for a while": "select outbox.watch('story', capture => false)",
        }[how]
        pair.write(stop, "delete from story" + " where id < 11" * left)
        pair.write(*[on] * bool(on), "select outbox.watch('story')")
        assert (await looked(parts)).state == "done"
    pair.assert_equal("story")


async def test_emitted_for_a_while_before_anything_arrived(pair: Pair) -> None:
    """The target has no record yet by which it could be told."""
    pair.create("create table story (id int primary key, n int)", "story")
    pair.write("insert into story values (1, 1), (2, 2)")
    on_source(pair, "select outbox.watch('story', capture => false)", "delete from story where id = 1")
    on_source(pair, "select outbox.watch('story')")
    async with pair.relay(timing=AT_ONCE) as parts:
        await looked(parts)
    pair.assert_equal("story")


def ordered(pair: Pair) -> None:
    """A table whose key has the order of an index that may be another one."""
    pair.create(
        "create table story (a int not null, b int not null, n int)",
        on_target="create table story (a int, b int, n int, primary key (a, b))",
    )
    on_source(
        pair,
        "create unique index one on story (a, b)",
        "insert into story select g, 2000 - g, g from generate_series(1, 1000) g",
        "select outbox.watch('story', key_columns => array['a', 'b'])",
    )
    on_target(pair, "select outboxd.map('story')")


REORDERED = ("create unique index two on story (b, a)", "drop index one")


async def test_the_index_of_the_key_is_another_one_during_a_copy(pair: Pair) -> None:
    """Where it had come to says nothing in another order."""
    ordered(pair)
    async with pair.relay(limits=SMALL) as parts:
        await half_copied(parts)
        pair.write(*REORDERED)
        assert (await looked(parts)).state == "done"
    pair.assert_equal("story")


async def test_the_index_of_the_key_is_another_one_during_a_comparison(pair: Pair) -> None:
    """It begins anew; a copy that is done does not."""
    ordered(pair)
    async with pair.relay(limits=SMALL, timing=AT_ONCE) as parts:
        await looked(parts)
        on_target(pair, "update story set n = -1 where a > 400")
        ask(pair)
        parts.relay.verifier.ring()
        while (record := parts.relay.verifier.records.get("public.story")) is None or record.rows < 200:
            await parts.relay.step()
        assert record.state == "running"
        pair.write(*REORDERED)
        await looked(parts)
        record = parts.relay.verifier.records["public.story"]
        assert (record.state, record.rows, record.different) == ("done", 1000, 600)


@pytest.mark.parametrize("way", ["vacuum full story", "cluster story using story_pkey"])
async def test_a_mirror_is_written_anew_while_rows_that_are_too_many_are_looked_for(pair: Pair, way: str) -> None:
    """Its rows lie elsewhere by then."""
    pair.create("create table story (id int primary key, n int)", "story")
    async with pair.relay() as parts:
        pair.write("insert into story select g, g from generate_series(1, 9000) g")
        await looked(parts)
        on_source(pair, "select outbox.unwatch('story')", "delete from story where id <= 8000")
        on_source(pair, "select outbox.watch('story')")
        parts.relay.copier.ring()
        while (copy := parts.relay.copier.copies["public.story"]).extra < 2000:
            await parts.relay.step()
        assert copy.state == "copying"
        on_target(pair, way)
        copy = await looked(parts)
        assert (copy.state, copy.pruned) == ("done", 8000)
    pair.assert_equal("story")
