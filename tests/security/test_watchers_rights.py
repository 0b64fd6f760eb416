"""A role that watches tables of its own, and was given everything in schema outbox: what is left of that, and that it suffices."""

import psycopg
import pytest

from daemon.check import check
from daemon.install import setup
from tests.captured import Connection, changes, ops, rows, watch
from tests.databases import Database

OTHERS = "create table mine (id int primary key, v text); insert into mine values (1, 'secret')"


@pytest.fixture
def narrowed(source: Database, watcher: Connection, second: Connection) -> Connection:
    """Somebody else's table is watched, and one of its own; then setup is run again."""
    watcher.execute(OTHERS)
    watch(watcher, "mine")
    watcher.execute("insert into mine values (2, 'secret')")
    second.execute("create table theirs (id int primary key, v text)")
    watch(second, "theirs")
    setup(source.dsn, "source", exposed_schema="public", role=False)
    return second


@pytest.mark.parametrize(
    "deed",
    [
        "create trigger spy before update on outbox.watched for each row execute function public.spy()",
        "create trigger spy before insert on outbox.held for each row execute function public.spy()",
        "create trigger spy after insert on outbox.change_0 for each row execute function public.spy()",
        "select * from outbox.change", "select * from outbox.change_0", "update outbox.change set row = '{}'", "delete from outbox.change",
        "insert into outbox.change_0 (table_name, op, key) values ('public.mine', 'delete', '{\"id\":1}')", "truncate outbox.change_0",
        "truncate outbox.watched", "select * from outbox.held", "update outbox.held set wanted = 'discard'", "delete from outbox.held",
        "insert into outbox.held (id, xid, table_name, op, key, created_at, reason) values (1, '3', 'public.mine', 'delete', '{}', now(), '')",
        "select channel from outbox.leadership", "update outbox.leadership set key = 1", "select * from outbox.mask_key",
        "update outbox.relay set epoch = 9", "delete from outbox.pruned", "update outbox.installation set id = gen_random_uuid()",
        "update outbox.unwatched set since_id = 9", "delete from outbox.audience", "select setval('outbox.change_id_seq', 1)",
        "select setval('outbox.slot', 1)", "select outbox.prune(1, '0 s')", "select outbox.lead()",
        "select outbox.confirm('main', 1, 1, '1:1:', '')", "select outbox.heartbeat('main', 1, '')",
        "select * from outbox.copy_of('public.mine', 'rows', null, 9, 999, 999)", "select * from outbox.copy_1('rows', null, 9, 999, 999)",
    ],
)  # fmt: skip
def test_whoever_watches_does_nothing_to_others_by_it(narrowed: Connection, watcher: Connection, deed: str) -> None:
    narrowed.execute("create function public.spy() returns trigger language plpgsql as 'begin return new; end'")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        narrowed.execute(deed.encode())


async def test_what_is_left_to_whoever_watches_suffices(
    source: Database, narrowed: Connection, watcher: Connection
) -> None:
    """It watches another table, the first one otherwise, with a filter and a mask; emits no more; unwatches, maps."""
    assert [item for item in await check(source.dsn, None) if item.name == "grants"] == []
    narrowed.execute("insert into theirs values (1, 'a')")
    watch(narrowed, "theirs", filter="v <> 'b'", mask='{"v": "redact"}')
    narrowed.execute(
        "insert into theirs values (2, 'b'), (3, 'c'); update theirs set v = 'd' where id = 1; delete from theirs where id = 3"
    )
    narrowed.execute("create table more (id int primary key) partition by range (id)")
    watch(narrowed, "more")
    narrowed.execute(
        "create table more_1 partition of more for values from (0) to (9); insert into more values (1); truncate more"
    )
    assert [(c.table, c.op) for c in changes(watcher) if c.table != "public.mine"] == [
        ("public.theirs", "upsert"), ("public.theirs", "upsert"), ("public.theirs", "upsert"), ("public.theirs", "delete"),
        ("public.more", "upsert"), ("public.more", "truncate"),
    ]  # fmt: skip
    assert rows(watcher, "select named from outbox.copy_of('public.theirs', 'rows', null, 9, 9999, 9999)") == [
        ('{"id":1}',)
    ]
    narrowed.execute("select outbox.unwatch('more'); select outbox.map('public.far', '{id}')")
    watch(narrowed, "more")
    assert ops(watcher)


async def test_a_trigger_on_a_table_of_ours_is_named(source: Database, second: Connection, watcher: Connection) -> None:
    """Made before the right was taken back: it stays, and runs with the rights of whoever writes there."""
    second.execute("create function public.spy() returns trigger language plpgsql as 'begin return new; end'")
    second.execute("create trigger spy before insert on outbox.held for each row execute function public.spy()")
    named = [item for item in await check(source.dsn, None) if "spy" in item.what]
    assert [item.level for item in named] == ["FAIL"]
    watcher.execute(named[0].fix.encode())
    assert [item for item in await check(source.dsn, None) if "spy" in item.what] == []
