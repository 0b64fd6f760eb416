"""The target's door where setup is run again: what was meant stays, what nobody meant goes, and nobody else stands in its way."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from daemon.install import setup
from tests.captured import Connection
from tests.databases import Database

CLAIM = '{"mode": "claim", "relay": "%s"}'
NOBODY = psycopg.errors.InsufficientPrivilege

# All that anybody but its owner has of ours.
GIVEN = """
select object, grantee, rights, call from outboxd.grants() order by 1, 2, 3
"""


@contextmanager
def lent(target: Database, role: str) -> Iterator[str]:
    """A role that may log in, for as long."""
    target.cluster.execute(f"create role {role} login")
    try:
        yield role
    finally:
        with psycopg.connect(target.superuser_dsn, autocommit=True) as root:
            root.execute(f"drop owned by {role} cascade; drop role {role}".encode())


@pytest.fixture
def mirror(target: Database) -> Iterator[Connection]:
    """The door's owner, which is no superuser."""
    with target.connect() as conn:
        yield conn


@pytest.fixture
def relay(target: Database) -> Iterator[str]:
    """A role of an operator's own, for a relay that connects directly."""
    with lent(target, f"relay_{target.name}") as role:
        yield role


@pytest.fixture
def app(target: Database) -> Iterator[str]:
    """A role that is meant to have nothing."""
    with lent(target, f"app_{target.name}") as role:
        yield role


def again(target: Database, schema: str = "public") -> None:
    setup(target.dsn, "target", exposed_schema=schema, role=False)


def claims(target: Database, role: str, door: str = "public.outboxd", relay: str = "main") -> int:
    """The epoch that this role is given."""
    with psycopg.connect(target.superuser_dsn, autocommit=True) as conn:
        conn.execute(f"set role {role}".encode())
        found = conn.execute(f"select {door}(%s)".encode(), (CLAIM % relay,)).fetchone()
        answer: dict[str, Any] = found[0] if found else {}
        assert answer["answer"] == "claimed", answer
        return int(answer["epoch"])


def named(mirror: Connection) -> list[str]:
    return [str(what) for (what,) in mirror.execute("select what from outboxd.findings() where rule = 'foreign_grant'")]


def test_a_second_setup_changes_nothing(target: Database, mirror: Connection) -> None:
    """service_role knocks as before, its epochs go on, and there is nothing more than it needs."""
    before = mirror.execute(GIVEN).fetchall()
    first = claims(target, "service_role")
    for _ in range(2):
        again(target)
    assert mirror.execute(GIVEN).fetchall() == before
    assert {call for *_, call in before} == {True}
    assert claims(target, "service_role") == first + 1
    assert named(mirror) == []


def test_a_role_that_an_operator_gave_the_door_to_keeps_it(target: Database, mirror: Connection, relay: str) -> None:
    """And is named by check where it is not the one that is connected."""
    mirror.execute(
        f"""
        grant usage on schema outboxd to {relay}; grant execute on function outboxd.door(text) to {relay};
        grant execute on function public.outboxd(text) to {relay}""".encode()
    )
    first = claims(target, relay)
    again(target)
    assert claims(target, relay, "outboxd.door") == first + 1
    assert claims(target, "service_role") == first + 2
    assert len(named(mirror)) == 3


def test_what_was_given_beside_it_goes_and_it_stays(target: Database, mirror: Connection, relay: str) -> None:
    """Somebody in a hurry gave all there is: to the relay's role, to service_role, to anon and to everybody."""
    for role in (relay, "service_role", "anon", "public"):
        mirror.execute(
            f"""
            grant all on schema outboxd to {role}; grant all on all tables in schema outboxd to {role};
            grant all on all functions in schema outboxd to {role}; grant all on function public.outboxd(text) to {role}""".encode()
        )
    again(target)
    with psycopg.connect(target.superuser_dsn, autocommit=True) as conn:
        for role in (relay, "service_role", "anon", "authenticated"):
            conn.execute(f"set role {role}".encode())
            for deed in (
                "select * from outboxd.cursor", "delete from outboxd.mirror", "create table outboxd.t (id int)", "select outboxd.describe()",
            ):  # fmt: skip
                with pytest.raises(NOBODY):
                    conn.execute(deed.encode())
    assert claims(target, relay) + 1 == claims(target, "service_role")
    for role in ("anon", "authenticated"):
        for door in ("public.outboxd", "outboxd.door"):
            with pytest.raises(NOBODY):
                claims(target, role, door)
    assert all(relay in what for what in named(mirror))


def test_default_privileges_that_come_between_two_setups_open_nothing(
    target: Database, mirror: Connection, app: str
) -> None:
    """Of what the second one makes: a wrapper in another schema, or one in place of one that was dropped."""
    mirror.execute("create schema api")
    for kind in ("schemas", "functions", "tables", "sequences"):
        mirror.execute(f"alter default privileges grant all on {kind} to {app}".encode())
    again(target, "api")
    mirror.execute("drop function public.outboxd(text)")
    again(target)
    for door in ("public.outboxd", "api.outboxd", "outboxd.door"):
        with pytest.raises(NOBODY):
            claims(target, app, door)
    assert named(mirror) == []


def test_a_second_relay_behind_another_schema_is_left_alone(
    target: Database, mirror: Connection, relay: str, app: str
) -> None:
    """Two sources write here, each by a wrapper of its own, as a role of its own: neither's setup touches the other's."""
    mirror.execute(f"create schema api; grant usage on schema api to {relay}, service_role".encode())
    again(target, "api")
    mirror.execute(
        f"""
        grant usage on schema outboxd to {relay}; grant execute on function outboxd.door(text) to {relay};
        grant execute on function api.outboxd(text) to {relay}; revoke execute on function api.outboxd(text) from service_role""".encode()
    )
    first = claims(target, relay, "api.outboxd", "second"), claims(target, "service_role")
    again(target)
    assert (claims(target, relay, "api.outboxd", "second"), claims(target, "service_role")) == (
        first[0] + 1,
        first[1] + 1,
    )
    with pytest.raises(NOBODY):
        claims(target, app, "api.outboxd", "second")
    again(target, "api")
    assert claims(target, relay, "api.outboxd", "second") == first[0] + 2


def test_a_wrapper_of_somebody_elses_stops_no_setup(target: Database, mirror: Connection, app: str) -> None:
    """Whoever may create a function somewhere could make one that looks like ours; it is not ours to close, and opens nothing."""
    with psycopg.connect(target.superuser_dsn, autocommit=True) as root:
        root.execute(f"create schema evil; grant all on schema evil to {app}".encode())
    with psycopg.connect(target.cluster.dsn(target.name, app), autocommit=True) as other:
        other.execute(
            "create function evil.outboxd(text) returns json language plpgsql as 'begin return outboxd.door($1); end'"
        )
    again(target)
    assert named(mirror) == []
    with pytest.raises(NOBODY):
        claims(target, app, "evil.outboxd")
    with psycopg.connect(target.superuser_dsn, autocommit=True) as root:  # in schema outboxd, too
        root.execute(f"grant create, usage on schema outboxd to {app}; set role {app}".encode())
        root.execute("create function outboxd.theirs() returns int language sql as 'select 1'")
    again(target)
    assert any("outboxd.theirs()" in what for what in named(mirror))
