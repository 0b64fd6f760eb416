"""Reading a source's outbox and its tables in one form, so that a test can compare them."""

import hashlib
import hmac
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from tests.replay import Recorded, State, decoded, replay

Connection = psycopg.Connection[Any]

# How capture spells values, whatever the session is set to.
_SPELLING: LiteralString = """
    set local datestyle = 'ISO, YMD'; set local timezone = 'UTC'; set local intervalstyle = 'iso_8601';
    set local extra_float_digits = 1; set local bytea_output = 'hex'; set local row_security = off
"""


def rows(conn: Connection, statement: LiteralString | sql.Composed, *parameters: Any) -> list[tuple[Any, ...]]:
    """All rows of a query."""
    return conn.execute(statement, parameters or None).fetchall()


def value(conn: Connection, statement: LiteralString | sql.Composed, *parameters: Any) -> Any:
    """The one value of a query that must have a row."""
    row = conn.execute(statement, parameters or None).fetchone()
    assert row is not None
    return row[0]


def watch(conn: Connection, table: str, **options: Any) -> str:
    """Call outbox.watch; returns the name under which changes are recorded."""
    names = ["", *options]
    arguments = sql.SQL(", ").join(
        sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder()) if name else sql.SQL("%s::regclass")
        for name in names
    )
    return str(value(conn, sql.SQL("select outbox.watch({})").format(arguments), table, *options.values()))


def hashed(key: bytes, column: str, text: str) -> str:
    """What the mask `hash` makes of a text in a column, named with schema and table."""
    return hmac.new(key, f"{column}={text}".encode(), hashlib.sha256).hexdigest()


def changes(conn: Connection, table: str | None = None) -> list[Recorded]:
    """What was recorded, in id order."""
    query: LiteralString = (
        "select id, table_name, op, key, row from outbox.change where coalesce(table_name = %s::text, true) order by id"
    )
    return [Recorded(*row) for row in conn.execute(query, (table,))]


def ops(conn: Connection, table: str | None = None) -> list[str]:
    """Only what happened."""
    return [change.op for change in changes(conn, table)]


def state(conn: Connection, table: str) -> State:
    """The rows of a watched table by key, as capture would write them."""
    with conn.transaction():
        conn.execute(_SPELLING)
        found = conn.execute(
            """
            select p.key_sql, p.row_sql, p.condition_sql from outbox.watched w cross join lateral outbox.projection(w.id) p
             where w.table_name = %s
            """,
            (table,),
        ).fetchone()
        assert found is not None, f"{table} is not watched"
        query = f"select {found[0]}, {found[1]} from {table} t where {found[2]}"
        return {key: decoded(row) for key, row in conn.execute(query)}


def assert_replays(conn: Connection, *tables: str, start: State | None = None) -> None:
    """The outbox, replayed from `start` (nothing), equals the table. Default: every watched table."""
    for table in tables or [row[0] for row in rows(conn, "select table_name from outbox.watched where capture")]:
        recorded = changes(conn, table)
        assert replay(recorded, start) == state(conn, table), recorded


def waits_for(conn: Connection, waiting: Connection, holder: Connection) -> bool:
    """Does one connection wait for a lock that another holds?"""
    return bool(
        value(conn, "select pg_blocking_pids(%s) @> array[%s::int]", waiting.info.backend_pid, holder.info.backend_pid)
    )


def copying_trigger(conn: Connection, table: str) -> None:
    """What outbox.watch does not install: AFTER ROW triggers, last of all, that copy the row they are given."""
    record = "insert into outbox.change (table_name, op, key, row) values"
    conn.execute(f"""
        create function copy_{table}() returns trigger language plpgsql as $$ begin
          if tg_op = 'TRUNCATE' then
            {record} ('public.{table}', 'truncate', '{{}}', null);
          end if;
          if tg_op = 'DELETE' or tg_op = 'UPDATE' and old.id <> new.id then
            {record} ('public.{table}', 'delete', format('{{"id":%s}}', old.id), null);
          end if;
          if tg_op in ('INSERT', 'UPDATE') then
            {record} ('public.{table}', 'upsert', format('{{"id":%s}}', new.id), row_to_json(new));
          end if;
          return null; end $$;
        create trigger zzz_copy after insert or update or delete on {table} for each row execute function copy_{table}();
        create trigger zzz_truncate after truncate on {table} for each statement execute function copy_{table}();
    """)


def listen(conn: Connection) -> None:
    """As the relay does: on a channel that nobody else can know."""
    conn.execute(sql.SQL("listen {}").format(sql.Identifier(str(value(conn, "select channel from outbox.leadership")))))
