"""The whole way on every major version that can be found: install, watch, write in every way, drain, compare."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from daemon.demo.binaries import MissingPostgres, binaries
from tests.captured import Connection, assert_replays, rows, value, watch
from tests.databases import clone, running_cluster, source_template, target_template
from tests.pairs import Pair

VERSIONS = [15, 16, 17, 18]

ON_BOTH_SIDES = """
    create table story (
      id uuid primary key, title text, doc jsonb, tags text[], price numeric(10, 2), at timestamptz default now(), raw bytea,
      upper text generated always as (upper(title)) stored);
    create table scene (id int primary key, story uuid references story deferrable, position int, unique (story, position) deferrable);
    create table metric (day date, name text, n float8, primary key (day, name)) partition by range (day);
    create table metric_old partition of metric for values from (minvalue) to ('2026-01-01');
    create table metric_new partition of metric default;
"""

STATEMENTS = [
    ("insert into story (id, title, doc, tags, price, raw) select md5(i::text)::uuid, 't' || i, jsonb_build_object('n', i),"
    " array['a', null, 'b c'], i * 1.10, decode('00ff', 'hex') from generate_series(1, 20) i"),
    "insert into scene select i, md5((1 + i % 20)::text)::uuid, i from generate_series(1, 60) i",
    "update story set title = title || '!', doc = 'null' where price < 5",
    "insert into story (id, title) values (md5('1')::uuid, 'x'), (md5('99')::uuid, 'y') on conflict (id) do update set title = excluded.title",
    ("merge into scene using (values (1), (2), (99)) s (id) on scene.id = s.id when matched and s.id = 1 then delete"
    " when matched then update set position = 1000 when not matched then insert values (s.id, null, 7)"),
    "begin; update scene set position = -position; savepoint s; delete from scene; rollback to s; update scene set id = id + 1000 where id < 5; commit",
    "delete from scene where story = md5('3')::uuid; delete from story where id = md5('3')::uuid",
    "insert into metric values ('2025-05-05', 'a', 'NaN'), ('2026-05-05', 'b', 1e-300), ('2025-06-06', 'c', 3)",
    "update metric set day = '2026-06-06' where name = 'a'; update metric_old set n = 5; delete from metric_new where name = 'b'",
    "insert into metric_new values ('2027-01-01', 'd', 'Infinity'); truncate metric_old",
    "alter table story add note text default 'new'; update story set note = 'set' where price < 7",
    "truncate scene; insert into scene select i, md5('4')::uuid, i from generate_series(1, 3) i",
]  # fmt: skip

BY_VERSION = {
    17: ["merge into scene using (values (1)) s (id) on scene.id = s.id when not matched by source then delete when matched then update set position = 0"],
    18: [
        "alter table story add double text generated always as (title || title) virtual; update story set title = 'virtual'",
        "update scene set position = position + 1 returning old.position, new.position",
    ],
}  # fmt: skip


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> int:
    """A major version that is on this machine."""
    try:
        binaries(request.param)
    except MissingPostgres as missing:
        pytest.skip(str(missing))
    return int(request.param)


@pytest.fixture(scope="module")
def pair(version: int, new_folder: Callable[[str], Path]) -> Iterator[Pair]:
    """Both stores in one cluster of that version."""
    with ExitStack() as stack:
        cluster = stack.enter_context(running_cluster(new_folder(f"postgres-{version}"), version))
        templates = source_template(cluster), target_template(cluster)
        yield Pair(*(stack.enter_context(clone(template)) for template in templates))


@pytest.fixture
def app(pair: Pair) -> Iterator[Connection]:
    with pair.source.connect() as conn:
        yield conn


def migrated_target(pair: Pair, *statements: str) -> None:
    with pair.target.connect() as conn:
        for statement in statements:
            conn.execute(statement)


async def test_everything_arrives(version: int, pair: Pair, app: Connection) -> None:
    """Each kind of statement this version has, drained after each, and both sides hold the same rows."""
    assert value(app, "select current_setting('server_version_num')::int / 10000") == version
    pair.create(ON_BOTH_SIDES, "story", "scene", "metric")
    # The target takes a new column before the source uses it.
    migrated_target(pair, "alter table story add note text default 'new', add double text")
    statements = STATEMENTS + [s for since, more in BY_VERSION.items() if version >= since for s in more]
    for statement in statements:
        app.execute(statement)
        await pair.drain()
        columns = [name for (name,) in rows(app, "select unnest(outbox.row_columns('story', null, null))")]
        for query in (
            f"select {', '.join(columns)} from story order by id",
            "select * from scene order by id",
            "select * from metric order by day",
        ):
            here, there = pair.rows(query)
            assert [*map(str, here)] == [*map(str, there)], statement
    assert_replays(app, "public.scene", "public.metric")


@pytest.mark.parametrize(
    "version", [15], indirect=True, scope="module"
)  # Debian's is built with ICU, the wheels are not
def test_nondeterministic_collations_are_refused(version: int, app: Connection) -> None:
    """A real one, that takes two texts for one key."""
    app.execute("create collation loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    app.execute("create table loosely (id text collate loose primary key); insert into loosely values ('a')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        app.execute("insert into loosely values ('A')")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="nondeterministic"):
        watch(app, "loosely")


@pytest.mark.parametrize("version", [18], indirect=True, scope="module")
def test_a_key_that_older_rows_may_lack_is_refused(version: int, app: Connection) -> None:
    """NOT NULL NOT VALID: the column says NOT NULL, and rows without a value are there all the same."""
    app.execute("create table halfway (id int primary key, code text unique); insert into halfway values (1, null)")
    app.execute("alter table halfway add constraint coded not null code not valid")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="no key of"):
        watch(app, "halfway", key_columns=["code"])
    app.execute(
        "update halfway set code = 'a'; alter table halfway validate constraint coded; select outbox.watch('halfway', '{code}')"
    )
