"""A table has only the settings pinned that its own columns' types ask for: one table a type, and one of arrays of it."""

import pytest

from tests.captured import Connection, rows, watch

ODD = (
    "set datestyle = 'German'; set timezone = 'Asia/Kathmandu'; set intervalstyle = 'sql_standard';"
    " set extra_float_digits = -15; set bytea_output = 'escape'; set lc_monetary = 'C.UTF-8'"
)
VALUES = {
    "timestamptz": "2024-01-02 03:04:05.678+09", "timestamp": "2024-01-02 03:04:05", "date": "2024-01-02",
    "time": "03:04:05", "timetz": "03:04:05+09", "interval": "1 day 02:03:04", "float8": "0.1234567890123456",
    "float4": "0.123456789", "bytea": "\\x00ff5c", "money": "1234.56", "numeric": "1.50", "bool": "t", "text": "ä",
    "uuid": "6f1f4d4e-7d2c-4b5a-9b57-0d2c3f6a1b11", "jsonb": '{"a": [1.50, null]}', "inet": "10.0.0.1/8",
    "point": "(0.1234567890123456,2)", "int4range": "[1,5)", "tstzrange": '["2024-01-02 03:04:05+09",)',
    "span": "1 day 02:03:04", "mood": "fine", "pair": "(0.1234567890123456,2024-01-02)",
}  # fmt: skip


@pytest.mark.parametrize("kind", VALUES)
def test_one_table_a_type(scratch: Connection, kind: str) -> None:
    """Whatever the session has set, a value is spelled as it is under the settings that outboxd promises."""
    scratch.execute("create domain span as interval; create type mood as enum ('fine')")
    scratch.execute("create type pair as (x float8, d date)")
    scratch.execute(
        f"create table t (id int primary key, v {kind}); create table a (id int primary key, v {kind}[])".encode()
    )
    for table in ("t", "a"):
        watch(scratch, table)
    scratch.execute(ODD)
    scratch.execute(
        f"insert into t values (1, '{VALUES[kind]}'); insert into a select 1, array[v, null] from t".encode()
    )
    scratch.execute("update t set v = v; update a set v = v; select id from t for update")
    pinned = " ".join(f"set {name} = '{value}';" for name, value in _pins(scratch))
    scratch.execute(pinned.encode())
    written = rows(scratch, "select table_name, row::json ->> 'v' from outbox.change order by id")
    said = dict(rows(scratch, "select 'public.t', row_to_json(t) ->> 'v' from t"))
    ((array,),) = rows(scratch, "select v::text from a")
    plain = {
        "public.t": [said["public.t"], *[str(v) for (v,) in rows(scratch, "select v::text from t")]],
        "public.a": [array],
    }
    assert len(written) == 4
    for table, value in written:
        assert value in plain[table]


def _pins(conn: Connection) -> list[tuple[str, str]]:
    ((pins,),) = rows(conn, "select outbox.spelling()")
    return list(zip(pins[::2], pins[1::2], strict=True))
