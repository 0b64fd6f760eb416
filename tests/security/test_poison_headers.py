"""Headers that a writer sets for its transaction: each change carries them, so that there is a bound, and it is the writer's own."""

import json

import psycopg
import pytest

from tests.security.tenants import Tenants

MOST = 16384


def test_headers_of_a_megabyte_fail_the_statement_that_would_write_them_a_hundred_times(tenants: Tenants) -> None:
    """The way out works as it is said; the neighbour's statements know nothing of it. Every way of capture is bounded."""
    tenants.tenant.execute("insert into item select i from generate_series(1000, 1099) i")
    tenants.tenant.execute("create table parted (id int primary key, n int) partition by list (id)")
    tenants.tenant.execute("create table part partition of parted default; insert into parted values (1)")
    tenants.tenant.execute("select outbox.watch('parted'), outbox.map('public.gone', '{id}')")
    tenants.tenant.execute("select set_config('outbox.headers', repeat('x', 1000000), false)")
    for statement in (
        "update item set n = 2", "insert into item values (-1)", "delete from item", "update item set id = -id", "truncate item", "truncate part",
        "begin; update item set n = 3; update item set n = 4; commit",
        "select outbox.emit('public.gone', 'delete', '{\"id\": 1}')",
    ):  # fmt: skip
        with pytest.raises(
            psycopg.errors.ProgramLimitExceeded, match=r"outbox\.headers has 1000000 bytes, and 16384 is the most"
        ) as caught:
            tenants.tenant.execute(statement.encode())
        tenants.tenant.rollback()
        assert (
            caught.value.diag.message_hint
            == "reset outbox.headers; it is for a traceparent (docs/tracing.md), not for data"
        )
    tenants.tenant.execute("reset outbox.headers")
    given = (
        "select outbox.emit('public.gone', 'delete', '{\"id\": 1}', headers => json_build_array(repeat('x', 19999)))"
    )
    with pytest.raises(
        psycopg.errors.ProgramLimitExceeded, match="the headers have 20003 bytes, and 16384 is the most"
    ):
        tenants.tenant.execute(given.encode())
    with tenants.source.connect() as neighbour:
        neighbour.execute("update item set n = 5 where id = 1000")
    assert tenants.here("select count(*) from outbox.change where octet_length(headers) > 0") == [(0,)]
    tenants.tenant.execute("update item set n = 2")
    assert tenants.here("select count(*) from outbox.change where table_name = 'public.item'") == [(201,)]


def test_headers_up_to_the_bound_are_kept_whatever_they_say(tenants: Tenants) -> None:
    """Above it nobody would read them."""
    for text in (json.dumps({"traceparent": "x" * 1000}), "no json", "x" * MOST):
        with tenants.tenant.transaction():
            tenants.tenant.execute("select set_config('outbox.headers', %s, true)", (text,))
            tenants.tenant.execute("insert into item select count(*) from item")
        assert tenants.here("select headers from outbox.change order by id desc limit 1") == [(text,)]
