"""Texts arrive as they are, whatever encoding the source, its address or the environment of the daemon prefers.

Rows are spliced as bytes on their way, and the document is UTF-8: so the connection must be, too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from daemon import install
from daemon.check import check
from daemon.demo.cluster import Cluster
from daemon.errors import SourceUnfit
from daemon.selection import Selection
from daemon.source import Source
from outbox.migrations import FILES, migrate
from tests.databases import Database
from tests.integration.test_dead_letters import AT_ONCE, asked
from tests.pairs import Pair

# The second is what UTF-8's bytes of the first would be in WIN1252: taken for one another they arrive without an error.
TEXTS = ("é", "Ã©")
ENCODINGS = {"WIN1252": TEXTS, "LATIN1": ("é",), "EUC_JP": ("日本",), "UTF8": (*TEXTS, "日本", "\U0001f600")}


@pytest.fixture(params=ENCODINGS)
def encoded(request: pytest.FixtureRequest, source_cluster: Cluster) -> Iterator[tuple[Database, tuple[str, ...]]]:
    database = Database(source_cluster, f"encoded_{request.param.lower()}", "postgres")
    source_cluster.execute(
        f"create database {database.name} template template0 encoding '{request.param}' lc_collate 'C' lc_ctype 'C'"
    )
    with psycopg.connect(database.dsn, client_encoding="UTF8") as conn:
        migrate(conn, "source")
    yield database, ENCODINGS[request.param]
    source_cluster.drop_database(database.name)


@pytest.mark.parametrize("looked", [False, True], ids=["first", "look"])
async def test_texts_and_keys_of_any_encoding_arrive(
    encoded: tuple[Database, tuple[str, ...]], target: Database, *, looked: bool
) -> None:
    source, texts = encoded
    pair = Pair(source, target)
    pair.create("create table t (id text primary key, v text)", "t")
    async with pair.relay() as parts:
        if looked:
            await parts.relay.drain()
        written(source, texts)
        await parts.relay.drain()
    assert arrived(target) == {(text, text) for text in texts}


@dataclass(frozen=True)
class Preferring:
    """A database whose address asks for an encoding."""

    database: Database
    encoding: str

    @property
    def dsn(self) -> str:
        return f"{self.database.dsn}?client_encoding={self.encoding}"


@pytest.mark.parametrize("by", ["address", "environment"])
async def test_what_an_address_or_the_environment_prefers_changes_nothing(
    source: Database, target: Database, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    pair = Pair(source, target)
    pair.create("create table t (id text primary key, v text)", "t")
    written(source, TEXTS)
    if by == "environment":
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    else:
        pair = Pair(Preferring(source, "latin1"), Preferring(target, "latin1"))  # type: ignore[arg-type]
    async with pair.relay() as parts:
        await parts.relay.drain()
    monkeypatch.delenv("PGCLIENTENCODING", raising=False)
    assert arrived(target) == {(text, text) for text in TEXTS}


def written(source: Database, texts: tuple[str, ...]) -> None:
    with psycopg.connect(source.dsn, autocommit=True, client_encoding="UTF8") as conn:
        for text in texts:
            conn.execute("insert into t values (%s::text, %s::text)", (text, text))


def arrived(target: Database) -> set[tuple[str, str]]:
    with psycopg.connect(target.dsn, client_encoding="UTF8") as conn:
        return set(conn.execute("select id, v from t").fetchall())


@pytest.mark.parametrize("path", sorted(FILES.glob("*/*.sql")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_is_installed_can_be_read_in_any_encoding(path: Path) -> None:
    """A server of another encoding has no such character, and would refuse the whole file."""
    if path.parent.name != "demo":
        path.read_text(encoding="ascii")


@pytest.fixture
def meaningless(source_cluster: Cluster) -> Iterator[Database]:
    database = Database(source_cluster, "encoded_ascii", "postgres")
    source_cluster.execute(
        f"create database {database.name} template template0 encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C'"
    )
    yield database
    source_cluster.drop_database(database.name)


async def test_a_database_whose_bytes_mean_nothing_is_refused_in_one_sentence(meaningless: Database) -> None:
    """At setup, by every command, and by the daemon where a migration tool has installed the schema."""
    sentence = "database encoded_ascii is SQL_ASCII: nobody knows what the bytes of its texts mean"
    with pytest.raises(SourceUnfit, match=sentence):
        install.setup(meaningless.dsn, "source", exposed_schema="public", role=False)
    with psycopg.connect(meaningless.dsn, client_encoding="UTF8") as conn:
        migrate(conn, "source")
    with pytest.raises(SourceUnfit, match=sentence):
        list(install.watch(meaningless.dsn, ["t"], lambda *_: Selection(), print))
    reader = Source(meaningless.dsn)
    try:
        with pytest.raises(SourceUnfit, match=sentence):
            await reader.identify()
    finally:
        await reader.close()
    assert [item.what.partition(":")[0] for item in await check(meaningless.dsn, None)] == [sentence.partition(":")[0]]


@pytest.fixture
def windows(source_cluster: Cluster) -> Iterator[Database]:
    database = Database(source_cluster, "encoded_holes", "postgres")
    source_cluster.execute(
        f"create database {database.name} template template0 encoding 'WIN1252' lc_collate 'C' lc_ctype 'C'"
    )
    with psycopg.connect(database.dsn, client_encoding="UTF8") as conn:
        migrate(conn, "source")
    yield database
    source_cluster.drop_database(database.name)


@pytest.mark.parametrize("copied", [False, True], ids=["changes", "copy"])
async def test_a_row_with_a_byte_that_means_nothing_is_held_and_the_others_flow(
    windows: Database, target: Database, *, copied: bool
) -> None:
    """In a value and in a key. Written anew it arrives; deleted it is forgotten."""
    pair = Pair(windows, target)
    rows = "insert into t values (chr(233), 'a'), ('b', chr(129)), ('c', repeat('x', 200000) || chr(129)), ('d', 'd')"
    if copied:
        with windows.connect() as source:
            source.execute("create table t (id text primary key, v text)")
            source.execute(rows)
            source.execute("select outbox.watch('t')")
        with target.connect() as mirror:
            mirror.execute("create table t (id text primary key, v text)")
            mirror.execute("select outboxd.map('t')")
    else:
        pair.create("create table t (id text primary key, v text)", "t")
        pair.write(rows, "insert into t values (chr(129), 'key')")
    async with pair.relay(timing=AT_ONCE) as parts:
        await parts.relay.drain()
        assert arrived(target) == {("é", "a"), ("d", "d")}
        with windows.connect() as source:
            held = source.execute("select key, sqlstate from outbox.held order by id").fetchall()
            keys = {key for key, _ in held}
            assert keys == {'{"id":"b"}', '{"id":"c"}'} | ({'{"id":"\\u0081"}'} if not copied else set())
            assert {state for _, state in held} == {"22P05"}
            source.execute("update t set v = id; delete from t where id = 'c' or id = chr(129)")
        await parts.relay.drain()
        await asked(pair, parts, "retry")
        assert arrived(target) == {("é", "é"), ("b", "b"), ("d", "d")}
