"""Whoever captures may not read a table any more, or a partition, or may not write: the application goes on, the table is marked."""

from collections.abc import Iterator

import psycopg
import pytest

from tests.captured import Connection, ops, value, watch
from tests.databases import Database

GRANTS = """
    grant create, usage on schema public to {role}; grant create, usage on schema outbox to {role};
    grant all on all tables in schema outbox to {role}; grant usage on all sequences in schema outbox to {role};
    grant execute on all functions in schema outbox to {role}
"""


@pytest.fixture
def roles(source: Database, app: Connection) -> Iterator[tuple[str, str]]:
    """An owner, and somebody who deploys: a member of it."""
    owner, deploy = f"owner_{source.name}", f"deploy_{source.name}"
    for role in (owner, deploy):
        app.execute(f"create role {role} login; {GRANTS.format(role=role)}")
    app.execute(f"grant {owner} to {deploy}")
    yield owner, deploy
    app.execute(f"reset role; drop owned by {owner}, {deploy} cascade; drop role {owner}, {deploy}")


LOSSES = {
    "no longer a member": "revoke {owner} from {deploy}",
    "inherits no more": "revoke inherit option for {owner} from {deploy}",
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_right_that_is_lost_by_a_role_fails_nobody(
    source: Database, app: Connection, roles: tuple[str, str], loss: str
) -> None:
    """A session that has written before, and one that has not: whoever watched may not read the table from here on."""
    owner, deploy = roles
    if "inherit option" in LOSSES[loss] and app.info.server_version < 160000:
        pytest.skip("a member inherits, or does not, for itself alone since PostgreSQL 16")
    app.execute(f"set role {owner}; create table t (id int primary key, a text); reset role; set role {deploy}")
    watch(app, "t")
    app.execute("reset role")
    with source.connect() as writer:
        writer.execute("insert into t values (1, 'a'), (2, 'b'), (3, 'c')")
        writer.execute("delete from t where id = 3")
        app.execute(LOSSES[loss].format(owner=owner, deploy=deploy))
        writer.execute("update t set a = 'b' where id = 1")
        writer.execute("delete from t where id = 1")
        writer.execute("update t set id = 7 where id = 2")
        assert ops(app) == ["upsert", "upsert", "upsert", "delete", "upsert", "resync", "resync"]
        writer.execute(
            "alter table t add b int; insert into t select n, 'n' from generate_series(20, 25) n; truncate t"
        )
        assert ops(app)[7:] == ["resync", "resync"]  # once a statement
    with source.connect() as other:
        other.execute("insert into t values (4, 'd'), (5, 'e')")
        assert ops(app)[9:] == ["resync"]
    assert "which may not read" in value(app, "select unfit from outbox.fit_of(array['public.t'])")


WRITES = {
    "the outbox": "insert on outbox.change",
    "its numbers": "usage on sequence outbox.change_id_seq",
    "its slot": "usage on sequence outbox.slot",
}


@pytest.mark.parametrize("right", WRITES)
def test_a_right_to_write_the_outbox_that_is_revoked_fails_nobody(
    source: Database, app: Connection, roles: tuple[str, str], right: str
) -> None:
    """The schema's owner writes the mark. Sessions that have written before notice, also of a table that was altered."""
    owner, _ = roles
    app.execute(f"set role {owner}; create table t (id int primary key, a text); create table u (id int primary key)")
    watch(app, "t")
    watch(app, "u")
    app.execute("alter table u add a int; reset role")
    with source.connect() as writer:
        writer.execute("insert into t values (1, 'a'), (2, 'b'); insert into u values (1, 1), (2, 2)")
        app.execute(f"revoke {WRITES[right]} from {owner}")
        before = len(ops(app))
        for table in "tu":
            writer.execute(f"insert into {table} values (3), (4); delete from {table} where id = 1")
            writer.execute(f"update {table} set a = null; update {table} set id = 9 where id = 2; truncate {table}")
        assert ops(app)[before:] == ["resync"] * 10
    said = value(app, "select unfit from outbox.fit_of(array['public.t'])")
    assert "may not write the outbox" in said
    app.execute("; ".join(part.strip() for part in said.partition(": ")[2].split(";")))
    with source.connect() as writer:
        writer.execute("insert into t values (6, 'f')")
    assert ops(app)[-1] == "upsert"


@pytest.mark.parametrize("loss", ["revoke select on app.t from {owner}", "revoke usage on schema app from {owner}"])
def test_a_right_that_is_revoked_fails_nobody(
    source: Database, app: Connection, roles: tuple[str, str], loss: str
) -> None:
    """Of the table, or of its schema: a session that has written before notices."""
    owner, _ = roles
    app.execute(f"create schema app; grant usage, create on schema app to {owner}")
    app.execute(f"set role {owner}; create table app.t (id int primary key, a text)")
    watch(app, "app.t")
    app.execute("reset role")
    with source.connect() as writer:
        writer.execute("insert into app.t values (1, 'a'), (2, 'b'); delete from app.t where id = 1")
        app.execute(loss.format(owner=owner))
        writer.execute("update app.t set id = 5 where id = 2; delete from app.t where id = 5")
    assert ops(app)[:3] == ["upsert", "upsert", "delete"]
    assert "resync" in ops(app)


def test_a_superuser_that_is_one_no_more_fails_nobody(
    source: Database, app: Connection, roles: tuple[str, str]
) -> None:
    owner, deploy = roles
    app.execute(f"set role {owner}; create table t (id int primary key, a text); reset role")
    app.execute(f"revoke {owner} from {deploy}; alter role {deploy} superuser; set role {deploy}")
    watch(app, "t")
    app.execute("reset role")
    with source.connect() as writer:
        writer.execute("insert into t values (1, 'a'), (2, 'b'); delete from t where id = 1")
        app.execute(f"alter role {deploy} nosuperuser")
        writer.execute("delete from t where id = 2")
    assert ops(app) == ["upsert", "upsert", "delete", "resync"]


@pytest.mark.parametrize("how", ["made", "attached", "given", "elsewhere", "policy"])
def test_a_partition_of_another_owner_fails_nobody(
    source: Database, app: Connection, roles: tuple[str, str], how: str
) -> None:
    """Whoever makes next month's partition is a member of the owner, and owns what it makes."""
    owner, deploy = roles
    app.execute(f"""
        set role {owner};
        create table t (id int primary key, a text) partition by range (id);
        create table t1 partition of t for values from (0) to (100);
        reset role
    """)
    app.execute(f"set role {owner}")
    watch(app, "t")
    app.execute("reset role")
    if how == "made":
        app.execute(f"set role {deploy}; create table t2 partition of t for values from (100) to (200); reset role")
    elif how == "attached":
        app.execute(
            f"set role {deploy}; create table t2 (id int primary key, a text);"
            " alter table t attach partition t2 for values from (100) to (200); reset role"
        )
    elif how == "given":
        app.execute(f"create table t2 partition of t for values from (100) to (200); alter table t2 owner to {deploy}")
    elif how == "elsewhere":
        app.execute("create schema closed; create table closed.t2 partition of t for values from (100) to (200)")
        app.execute(f"alter table closed.t2 owner to {owner}")
    else:
        app.execute(
            f"create table t2 partition of t for values from (100) to (200); alter table t2 owner to {owner};"
            " alter table t2 enable row level security; alter table t2 force row level security"
        )
    with source.connect() as writer:
        writer.execute("insert into t values (1, 'a'), (101, 'b'), (102, 'c')")
        writer.execute("update t set a = 'x' where id = 101")
        writer.execute("begin; select from t where id = 101 for update; update t set a = 'y' where id = 101; commit")
        writer.execute("delete from t where id = 102")
        writer.execute("update t set id = 150 where id = 101")
        writer.execute("update t set id = 2 where id = 150")
    assert ops(app)[:3] == ["upsert"] * 3
    assert ops(app).count("resync") >= 4
    assert "t2, a partition of public.t," in value(app, "select unfit from outbox.fit_of(array['public.t'])")


REACHES = {
    "in a schema that is closed to the watcher": "create schema closed; alter table t2 set schema closed",
    "with a policy of its own": "alter table t2 enable row level security; alter table t2 force row level security",
}


@pytest.mark.parametrize("reach", REACHES)
def test_a_partition_that_cannot_be_read_is_refused(app: Connection, roles: tuple[str, str], reach: str) -> None:
    """It is there when the table is watched: then watch says so."""
    owner, _ = roles
    app.execute(f"""
        set role {owner}; create table t (id int primary key, a text) partition by range (id);
        create table t2 partition of t for values from (100) to (200); reset role
    """)
    app.execute(REACHES[reach])
    app.execute(f"set role {owner}")
    try:
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"t2, a partition of (public\.)?t,"):
            watch(app, "public.t")
    finally:
        app.execute("reset role")


def test_a_partition_of_another_owner_is_emptied(source: Database, app: Connection, roles: tuple[str, str]) -> None:
    """The right to read it goes after it was watched: emptying it fails nobody either."""
    owner, deploy = roles
    app.execute(f"""
        set role {owner}; create table t (id int primary key, a text) partition by range (id);
        create table t2 partition of t for values from (100) to (200)
    """)
    watch(app, "t")
    app.execute(f"reset role; insert into t values (101, 'a'); alter table t2 owner to {deploy}")
    with source.connect() as writer:
        writer.execute("truncate t2")
    assert ops(app) == ["upsert", "resync"]


def test_a_watcher_that_leaves_fails_nobody(source: Database, app: Connection, roles: tuple[str, str]) -> None:
    """Postgres' own way to take a role away: what it owned goes to another one, and its rights go."""
    owner, deploy = roles
    app.execute(f"set role {owner}; create table t (id int primary key, a text); reset role; set role {deploy}")
    watch(app, "t")
    app.execute("reset role")
    with source.connect() as writer:
        writer.execute("insert into t values (1, 'a')")
        app.execute(f"revoke all on all tables in schema outbox from {owner}")  # who owns tables need not write there
        app.execute(f"reassign owned by {deploy} to {owner}; drop owned by {deploy}")
        writer.execute("insert into t values (2, 'b')")
        writer.execute("delete from t where id = 1")
    assert ops(app) == ["upsert", "resync", "resync"]
