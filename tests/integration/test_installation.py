"""Numbers mean something within one installation of schema outbox, and for one target: anything else is named as what it
is, before anybody is fenced, and `outboxd rebase` leads on from there."""

from collections.abc import Iterator

import pytest

from daemon.batch import Limits
from daemon.errors import Fenced, SourceForeign, TargetError
from daemon.follow import of_outbox
from daemon.rebase import Outlook, look, rebase
from daemon.settings import Settings
from daemon.target import PostgresDoor
from outbox.migrations import migrate
from tests.databases import Database, clone
from tests.integration.test_verify import ask
from tests.pairs import Pair

STORY = "create table story (id int primary key, n int)"


@pytest.fixture
def stories(pair: Pair) -> Pair:
    """Watched and mapped, empty."""
    pair.create(STORY, "story")
    return pair


@pytest.fixture
def other(_target_template: Database) -> Iterator[Database]:
    """Another project."""
    with clone(_target_template) as database:
        yield database


@pytest.fixture
def elsewhere(_source_template: Database) -> Iterator[Database]:
    """Another database of the source's server, cloned with its outbox."""
    with clone(_source_template) as database:
        yield database


def settings(pair: Pair) -> Settings:
    return Settings.model_validate(
        {"source_dsn": pair.source.dsn, "transport": "postgres", "target_dsn": pair.target.dsn}
    )


def epoch(pair: Pair) -> int:
    with pair.target.connect() as target:
        row = target.execute("select epoch from outboxd.cursor").fetchone()
    return int(row[0]) if row else 0


async def refused(pair: Pair) -> str:
    """By whoever reads from this source: its sentence. The right relay is not fenced."""
    before = epoch(pair)
    with pytest.raises(SourceForeign) as caught:
        await pair.drain()
    assert epoch(pair) == before
    return str(caught.value)


async def led_on(pair: Pair) -> Outlook:
    """Looked at, then done."""
    found = await look(settings(pair))
    assert found.why is not None
    again, standing = await rebase(settings(pair))
    assert standing is not None
    assert again.copied == found.copied
    return found


def installed_anew(pair: Pair) -> None:
    """Schema outbox is dropped and installed again; meanwhile the application goes on."""
    with pair.source.connect(autocommit=False) as source:
        source.execute("drop schema outbox cascade")
        source.execute("update story set n = -1 where id = 1")
        source.execute("delete from story where id = 2")
        migrate(source, "source")
        source.execute("select outbox.watch('story')")


async def test_an_outbox_that_was_installed_anew(stories: Pair) -> None:
    """Wishes and changes are numbered from the beginning again: what is recorded of those before says nothing."""
    stories.write("insert into story select n, n from generate_series(1, 300) n")
    async with stories.relay() as parts:
        await parts.relay.drain()
        with stories.source.connect() as source:
            source.execute("select outbox.ask_copy('story')")
        ask(stories)
        parts.relay.copier.ring()
        parts.relay.verifier.ring()
        await parts.relay.drain()
        assert parts.relay.copier.copies["public.story"].state == "done"
        assert parts.relay.verifier.records["public.story"].state == "done"
    installed_anew(stories)
    said = await refused(stories)
    assert "was dropped and installed anew" in said
    assert "`outboxd rebase`" in said
    found = await led_on(stories)
    assert (found.copied, found.emitted) == (["public.story"], [])
    with stories.target.connect() as target:
        assert target.execute("select count(*) from outboxd.verification").fetchone() == (0,)
    await stories.drain()
    stories.assert_equal("story")
    assert (await look(settings(stories))).why is None


async def test_an_outbox_that_is_installed_anew_beside_the_relay(stories: Pair) -> None:
    """Its ids begin again, below all that the relay has read: not one of its changes is passed over in silence."""
    stories.write("insert into story select n, n from generate_series(1, 300) n")
    async with stories.relay() as parts:
        await parts.relay.drain()
        installed_anew(stories)
        stories.write("insert into story select n, n from generate_series(301, 700) n")
        with pytest.raises(SourceForeign, match="was dropped and installed anew"):
            await parts.relay.drain()
    await led_on(stories)
    await stories.drain()
    stories.assert_equal("story")


async def test_wishes_of_an_outbox_that_was_installed_anew_are_new(stories: Pair) -> None:
    """Also where the target's records are those of the outbox before, and the number is the same."""
    stories.write("insert into story select n, n from generate_series(1, 300) n")
    with stories.source.connect() as source:
        source.execute("select outbox.ask_copy('story')")
    await stories.drain()
    with stories.target.connect() as target:
        ((wish, aim),) = target.execute("select wish, aim from outboxd.copy").fetchall()
    installed_anew(stories)
    await led_on(stories)
    with stories.source.connect() as source, stories.target.connect() as target:
        source.execute("update outbox.copy set wish = %s, prune = 0, restart = 0", (wish,))
        target.execute(
            "insert into outboxd.copy (relay, table_name, state, wish, aim, place) values"
            " ('main', 'public.story', 'done', %s, %s, outboxd.place('public.story'))",
            (wish, aim),
        )
    await stories.drain()
    stories.assert_equal("story")


def test_a_command_counts_no_record_of_another_outbox() -> None:
    mine, theirs, none = {"table": "a", "aim": "here:1"}, {"table": "b", "aim": "there:1"}, {"table": "c"}
    assert of_outbox("here", [mine, theirs, none]) == [mine, none]
    assert of_outbox("here", {"written_at": 1}) == {"written_at": 1}


async def test_another_database_of_the_same_server_is_named(stories: Pair, elsewhere: Database) -> None:
    """By the name that it has, and a rebase is not what is advised first. The relay whose source it is goes on."""
    stories.write("insert into story values (1, 1)")
    wrong = Pair(elsewhere, stories.target)
    with elsewhere.connect() as source:
        source.execute(STORY)
        source.execute("select outbox.watch('story')")
    async with stories.relay() as right:
        await right.relay.drain()
        said = await refused(wrong)
        assert (
            f"another database of this server: {stories.source.name}, and DATABASE_URL leads to {elsewhere.name}"
            in said
        )
        assert "image of its disk" not in said
        stories.write("insert into story values (2, 2)")
        await right.relay.drain()  # nobody has fenced it
    stories.assert_equal("story")


async def test_a_source_that_cannot_be_read_on_from_fences_nobody(stories: Pair) -> None:
    """A wrong address, in either direction, is found out before anything is claimed."""
    stories.write("insert into story values (1, 1)")
    async with stories.relay() as right:
        await right.relay.drain()
        with stories.source.connect() as source, stories.target.connect() as target:
            source.execute("update outbox.pruned set up_to_id = 1000")
            cursor = target.execute("select cursor from outboxd.cursor").fetchone()
        await refused(stories)
        with stories.source.connect() as source:
            source.execute("update outbox.pruned set up_to_id = 0")
        stories.write("insert into story values (2, 2)")
        try:
            await right.relay.drain()
        except Fenced:
            pytest.fail("the right relay was fenced by one that then found out it was wrong")
        assert cursor is not None
    stories.assert_equal("story")


async def test_a_new_project_after_the_outbox_was_pruned(stories: Pair, other: Database) -> None:
    """The daemon says that a rebase leads on, and it does: each captured table is copied."""
    stories.write("insert into story select n, n from generate_series(1, 300) n")
    await stories.drain()
    with stories.source.connect() as source:
        source.execute("truncate outbox.change")
        source.execute("update outbox.pruned set up_to_id = 300")
        source.execute("create table memo (id int primary key)")
        source.execute("select outbox.watch('memo', capture => false)")
    new = Pair(stories.source, other)
    with other.connect() as target:
        target.execute(STORY)
        target.execute("select outboxd.map('story')")
    assert "`outboxd rebase` (a dry run first) leads on" in await refused(new)
    found = await led_on(new)
    assert (found.copied, found.emitted, found.pruned) == (["public.story"], ["public.memo"], 300)
    new.write("insert into story values (301, 301)")
    await new.drain()
    new.assert_equal("story")


def cloned(pair: Pair, name: str) -> Pair:
    """The target as it is now, once more in another place."""
    pair.target.cluster.clone(pair.target.name, name, pair.target.owner)
    return Pair(pair.source, Database(pair.target.cluster, name, pair.target.owner))


async def drained(pair: Pair) -> None:
    """By a relay that knows where its target is, as the daemon's does."""
    async with pair.relay(limits=Limits(changes=100)) as parts:
        parts.target.place = lambda: PostgresDoor(pair.target.dsn).place
        await parts.relay.drain()


async def test_a_copy_of_the_target_does_not_pass_for_it(stories: Pair) -> None:
    """Restored into another project: it has the cursor, and stands behind. Which of them it is to be, a person says."""
    stories.write("insert into story values (1, 1)")
    await drained(stories)
    branch = cloned(stories, f"{stories.target.name}_branch")
    try:
        stories.write("insert into story values (2, 2)")
        await drained(stories)
        before = epoch(branch)
        with pytest.raises(TargetError, match="is not the one that the source knows") as caught:
            await drained(branch)
        assert "`outboxd rebase` (a dry run first) leads on" in (caught.value.refusal.message or "")
        assert epoch(branch) == before
        await drained(stories)  # nothing is in its way
        found = await led_on(branch)
        assert (found.again, found.copied) == (False, [])
        await drained(branch)
        branch.assert_equal("story")
        with pytest.raises(TargetError, match="is not the one that the source knows"):
            await drained(stories)
    finally:
        stories.target.cluster.drop_database(branch.target.name)


async def test_a_target_that_is_as_the_source_knows_it_may_have_another_address(stories: Pair) -> None:
    """A pooler, a custom domain, the other transport; and one restored where it was."""
    stories.write("insert into story values (1, 1)")
    await drained(stories)
    with stories.target.connect() as target:
        then = target.execute("select epoch, batch_no, cursor from outboxd.cursor").fetchone()
    stories.write("insert into story values (2, 2)")
    async with stories.relay() as parts:
        parts.target.place = lambda: "by another name"
        await parts.relay.drain()
    stories.assert_equal("story")
    with stories.target.connect() as target:
        target.execute("delete from story where id = 2")
        target.execute("update outboxd.cursor set (epoch, batch_no, cursor, digest) = row (%s, %s, %s, null)", then)
    async with stories.relay() as parts:
        parts.target.place = lambda: "by another name"
        await parts.relay.drain()
    stories.assert_equal("story")
