"""Recording changes by a call: in the caller's transaction, checked before anything is written."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest

from outbox import (
    Change,
    InvalidChange,
    NotInTransaction,
    OutboxError,
    SchemaMissing,
    UnknownTable,
    aemit,
    emit,
    emit_many,
)
from tests.captured import Connection, changes, listen, rows, value, watch
from tests.databases import Database
from tests.replay import decoded

TABLES = """
    create domain positive as int check (value > 0);
    create type mood as enum ('ok', 'bad');
    create table story (
      id uuid primary key, title text, price numeric, exact numeric(8, 3), rating float8, at timestamptz, day date, raw bytea,
      doc jsonb, plain json, tags text[], grid int[], mood mood, rank positive, made text generated always as (title || '!') stored)
"""
ID = UUID("11111111-1111-4111-8111-111111111111")


@pytest.fixture
def app(scratch: Connection) -> Connection:
    """An application in the middle of a transaction, with a table that it emits for itself."""
    scratch.execute(TABLES)
    watch(scratch, "story", capture=False)
    return scratch


def emitted(app: Connection, **columns: Any) -> dict[str, Any]:
    """The row as it was recorded."""
    id_ = emit(app, Change.upsert("story", {"id": ID, **columns}))
    (change,) = [c for c in changes(app) if c.id == id_]
    assert change.key == '{"id":"11111111-1111-4111-8111-111111111111"}'
    return decoded(change.row or "")


def test_values_arrive_as_their_columns_spell_them(app: Connection) -> None:
    """Postgres reads each value by its column's type and writes it as capture would."""
    assert emitted(
        app, price=Decimal("1.10"), exact=Decimal("1.1"), rating=float("nan"), day=datetime(2026, 1, 2, tzinfo=UTC),
        at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC), raw=b"\x00\xff", mood="ok", rank=3, title="ünï\x1e",
    ) == {
        "id": str(ID), "price": Decimal("1.10"), "exact": Decimal("1.100"), "rating": "NaN", "day": "2026-01-02",
        "at": "2026-01-02T03:04:00+00:00", "raw": "\\x00ff", "mood": "ok", "rank": 3, "title": "ünï\x1e",
    }  # fmt: skip


def test_json_and_arrays_are_given_as_they_are(app: Connection) -> None:
    """A list is an array or a JSON array, as the column wants it; both travel as text."""
    row = emitted(app, doc={"a": [1, None]}, plain=[1, {"b": 2}], tags=["x", "y z", None], grid=[[1, 2], [3, 4]])
    assert row == {
        "id": str(ID), "doc": '{"a": [1, null]}', "plain": '[1, {"b": 2}]', "tags": '{x,"y z",NULL}', "grid": "{{1,2},{3,4}}"
    }  # fmt: skip
    assert emitted(app, doc="text", tags=None)["doc"] == '"text"'


def test_only_the_given_columns_travel(app: Connection) -> None:
    """Those left out keep their value on the target; None is a value."""
    assert emitted(app, title=None) == {"id": str(ID), "title": None}
    assert rows(app, "select columns from outbox.shape order by id desc limit 1") == [(["id", "title"],)]


def test_a_delete_needs_the_key_alone(app: Connection) -> None:
    """Whatever else is given is not recorded."""
    emit(app, Change.delete("story", {"id": str(ID).upper()}))
    emit(app, Change.delete("story", {"id": ID, "title": "x"}))
    assert [(c.op, c.key, c.row) for c in changes(app)] == [("delete", f'{{"id":"{ID}"}}', None)] * 2


def test_ids_come_in_the_order_of_the_changes(app: Connection) -> None:
    """Many in one statement, mixed; none is fine, too."""
    app.execute("select outbox.map('public.totals', array['day'])")
    given = [
        Change.upsert("story", {"id": UUID(int=i)}) if i % 3 else Change.delete("totals", {"day": i})
        for i in range(1, 51)
    ]
    ids = emit_many(app, iter(given))
    assert ids == sorted(ids)
    assert len(set(ids)) == 50
    assert [(c.id, c.op) for c in changes(app)] == list(zip(ids, [str(change.op) for change in given], strict=True))
    assert emit_many(app, []) == []


def test_a_table_that_is_on_the_target_alone(app: Connection) -> None:
    """outbox.map says its key; nothing else is known of it, and one key has one spelling."""
    assert value(app, """select outbox.map('PUBLIC."Totals"', array['b', 'a'])""") == 'public."Totals"'
    emit_many(app, [
        Change.upsert('"Totals"', {"a": Decimal("1.50"), "b": "x", "sum": 1, "doc": {"n": [1]}, "list": [1, "a"], "none": None}),
        Change.delete('public."Totals"', {"b": "x", "a": 1.5}),
    ])  # fmt: skip
    upsert, delete = changes(app)
    assert upsert.key == delete.key == '{"a": 1.5, "b": "x"}'
    assert decoded(upsert.row or "") == {
        "a": Decimal("1.50"), "b": "x", "sum": 1, "doc": '{"n": [1]}', "list": '[1, "a"]', "none": None
    }  # fmt: skip


@pytest.mark.parametrize(
    "spelling", ["story", "public.story", "PUBLIC.Story", '"public"."story"', ' public . "story" ']
)
def test_a_table_may_be_spelled_as_sql_allows(app: Connection, spelling: str) -> None:
    """Without a schema, public is meant."""
    emit(app, Change.delete(spelling, {"id": ID}))
    assert [c.table for c in changes(app)] == ["public.story"]


REFUSED: dict[str, tuple[Change, type[OutboxError], str]] = {
    "unknown table": (Change.delete("nope", {"id": 1}), UnknownTable, r"public\.nope is neither watched nor mapped.*outbox\.map"),
    "no name": (Change.delete("no name!", {"id": 1}), InvalidChange, "not a valid identifier"),
    "unknown column": (Change.upsert("story", {"id": ID, "nope": 1}), InvalidChange, r"public\.story has no column nope"),
    "no key": (Change.upsert("story", {"title": "x"}), InvalidChange, "needs the key: id"),
    "empty": (Change.delete("story", {}), InvalidChange, "needs the key: id"),
    "key that is null": (Change.upsert("story", {"id": None}), InvalidChange, "needs the key: id"),
    "no such operation": (Change("story", "insert", {"id": ID}), InvalidChange, "op is upsert or delete, not insert"),  # type: ignore[arg-type]
    "a value of another type": (Change.upsert("story", {"id": "secret"}), InvalidChange, r"does not fit its column \(22P02\)"),
    "a number too large": (Change.upsert("story", {"id": ID, "grid": [2**40]}), InvalidChange, r"\(22003\)"),
    "against a domain": (Change.upsert("story", {"id": ID, "rank": -1}), InvalidChange, r"\(23514\)"),
    "not in the enum": (Change.upsert("story", {"id": ID, "mood": "secret"}), InvalidChange, r"\(22P02\)"),
    "half a surrogate pair": (Change.upsert("story", {"id": ID, "doc": "\ud800"}), InvalidChange, r"\(22P0[25]\)"),
    "no JSON": (Change.upsert("story", {"id": ID, "doc": object()}), InvalidChange, "column doc of story: a object"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_change_is_refused_and_nothing_is_written(app: Connection, case: str) -> None:
    """One bad change among good ones keeps all of them out, and the sentence shows no value."""
    change, kind, sentence = REFUSED[case]
    good = Change.delete("story", {"id": ID})
    with pytest.raises(kind, match=sentence) as refused, app.transaction():
        emit_many(app, [good, change, good])
    assert type(refused.value) is kind
    assert "secret" not in str(refused.value)
    assert changes(app) == []


def test_the_key_of_a_lost_table_is_not_known(app: Connection) -> None:
    """A watched table that was dropped says so; mapping it says its key."""
    app.execute("drop table story")
    with pytest.raises(UnknownTable, match=r"public\.story is gone.*outbox\.map"), app.transaction():
        emit(app, Change.delete("story", {"id": 1}))
    app.execute("select outbox.map('public.story', array['id'])")
    emit(app, Change.delete("story", {"id": 1}))
    assert [c.key for c in changes(app)] == ['{"id": 1}']


@pytest.mark.parametrize(("table", "keys", "sentence"), [
    ("totals", ["day"], "give the schema too"),
    ("public.totals", [], "name its key columns"),
    ("public.totals", None, "name its key columns"),
])  # fmt: skip
def test_a_map_needs_a_schema_and_a_key(app: Connection, table: str, keys: list[str] | None, sentence: str) -> None:
    """Each with its sentence."""
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=sentence):
        app.execute("select outbox.map(%s, %s)", (table, keys))


def test_what_its_triggers_record_is_not_mapped(app: Connection) -> None:
    """It would take the key away from beneath them; emit knows it without."""
    app.execute("create table shelf (id int primary key, code text unique not null)")
    watch(app, "shelf")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="its triggers record it already"), app.transaction():
        app.execute("select outbox.map('public.shelf', array['code'])")
    assert rows(app, "select key_columns from outbox.watched where table_name = 'public.shelf'") == [(None,)]


def test_headers_travel(app: Connection) -> None:
    """Those of the change; else those set for the transaction."""
    app.execute("""set local outbox.headers = '{"trace": "all"}'""")
    emit_many(app, [Change.delete("story", {"id": ID}, {"trace": "one"}), Change.delete("story", {"id": ID})])
    assert rows(app, "select headers from outbox.change order by id") == [('{"trace": "one"}',), ('{"trace": "all"}',)]


@pytest.fixture
def bare(source: Database) -> Database:
    with source.connect() as conn:
        conn.execute(TABLES)
        watch(conn, "story", capture=False)
    return source


@pytest.mark.parametrize("autocommit", [True, False])
def test_outside_a_transaction_it_is_refused(bare: Database, autocommit: bool) -> None:
    """Nothing was written yet that the change could belong to."""
    with bare.connect(autocommit=autocommit) as conn:
        with pytest.raises(NotInTransaction, match=r"with conn\.transaction\(\)"):
            emit(conn, Change.delete("story", {"id": ID}))
        with conn.transaction():
            emit(conn, Change.delete("story", {"id": ID}))
        conn.rollback()
        assert len(changes(conn)) == 1


def test_it_never_commits(bare: Database) -> None:
    """What the caller takes back is gone; a failed transaction stays the driver's error."""
    with bare.connect(autocommit=False) as conn:
        conn.execute("insert into story (id) values (gen_random_uuid())")
        emit(conn, Change.delete("story", {"id": ID}))
        conn.rollback()
        assert changes(conn) == []
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("select 1 / 0")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction) as failed:
            emit(conn, Change.delete("story", {"id": ID}))
        assert failed.value.__cause__ is None


async def test_the_async_one_does_the_same(bare: Database) -> None:
    """aemit: ids in order, refused outside a transaction, the same errors."""
    conn = await psycopg.AsyncConnection.connect(bare.dsn, autocommit=True)
    async with conn:
        with pytest.raises(NotInTransaction):
            await aemit(conn, Change.delete("story", {"id": ID}))
        async with conn.transaction():
            ids = await aemit(conn, *(Change.upsert("story", {"id": UUID(int=i)}) for i in range(3)))
        assert ids == sorted(ids)
        with pytest.raises(UnknownTable):
            async with conn.transaction():
                await aemit(conn, Change.delete("story", {"id": ID}), Change.delete("nope", {"id": 1}))
    with bare.connect() as reader:
        assert [c.id for c in changes(reader)] == ids


def test_without_the_schema_it_says_what_to_run(source: Database) -> None:
    """The outbox is not installed, or this role may not use it: each with its remedy."""
    with source.connect(autocommit=False) as conn:
        conn.execute(f"create role emitter_{source.name}")
        conn.execute(f"set local role emitter_{source.name}")
        with pytest.raises(InvalidChange, match="grant usage on schema outbox"), conn.transaction():
            emit(conn, Change.delete("story", {"id": ID}))
        conn.execute("reset role; drop schema outbox cascade")
        with pytest.raises(SchemaMissing, match="outboxd setup source"):
            emit(conn, Change.delete("story", {"id": ID}))


def test_a_lost_connection_stays_the_drivers_error(bare: Database) -> None:
    """Nothing is made of it that might hide it."""
    with bare.connect(autocommit=False) as conn, bare.connect() as killer:
        conn.execute("select 1")
        killer.execute("select pg_terminate_backend(%s)", (conn.info.backend_pid,))
        with pytest.raises(psycopg.OperationalError):
            emit(conn, Change.delete("story", {"id": ID}))


def test_a_transaction_rings_once(bare: Database) -> None:
    """While the relay sleeps: one notification for a transaction, however many changes; none that is taken back."""
    with bare.connect() as relay, bare.connect() as conn:
        listen(relay)
        relay.execute("select pg_advisory_lock(1869968482, 1)")
        conn.execute("alter table story disable trigger all")
        watch(conn, "story")
        with conn.transaction():
            conn.execute("insert into story (id) select gen_random_uuid() from generate_series(1, 3)")
            conn.execute("update story set title = 'x'")
            emit_many(conn, [Change.delete("story", {"id": ID})] * 3)
        with conn.transaction(force_rollback=True):
            emit(conn, Change.delete("story", {"id": ID}))
        with conn.transaction():
            emit(conn, Change.delete("story", {"id": ID}))
        conn.execute("select outbox.knock('the end')")
        heard = [notice.payload for notice in relay.notifies(timeout=10, stop_after=3)]
        assert heard == ["", "", "the end"]
        relay.execute("select pg_advisory_unlock(1869968482, 1)")
        with conn.transaction():
            emit(conn, Change.delete("story", {"id": ID}))
            assert (
                value(conn, "select mode from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()")
                == "ShareLock"
            )
        conn.execute("select outbox.knock('silence')")
        assert [notice.payload for notice in relay.notifies(timeout=10, stop_after=1)] == ["silence"]
