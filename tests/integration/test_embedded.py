"""The embedded parts are what they claim to be; every other integration test stands on them."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from daemon.demo.binaries import MissingPostgres, binaries
from daemon.demo.cluster import Cluster
from daemon.demo.faults import Fault
from daemon.demo.gateway import Request
from daemon.demo.process import alive
from daemon.demo.supabase import EmbeddedSupabase
from tests.databases import SETTINGS, Database
from tests.leftovers import left_behind, standing_in
from tests.waiting import wait_until

STORY = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
def mirror(target: Database) -> Database:
    target.install("example_mirror.sql")
    return target


@pytest.fixture
def project(mirror: Database, supabase: EmbeddedSupabase) -> EmbeddedSupabase:
    """A project that mirrors the example application; PostgREST knows the tables, for they were there first."""
    return supabase


def client(project: EmbeddedSupabase, **headers: str) -> httpx.Client:
    return httpx.Client(
        base_url=f"{project.url}/rest/v1/", headers=headers or {"apikey": project.secret_key}, timeout=10
    )


def story(title: str = "one", *, public: bool = True) -> dict[str, object]:
    now = "2026-11-23T00:00:00Z"
    return {
        "id": STORY, "title": title, "isPublic": public, "settings": {}, "createdAt": now, "updatedAt": now
    }  # fmt: skip


# Keys and roles


def test_each_kind_of_key_stands_for_its_role(project: EmbeddedSupabase) -> None:
    keys = {
        "secret": {"apikey": project.secret_key},
        "secret, twice": {"apikey": project.secret_key, "Authorization": f"Bearer {project.secret_key}"},
        "legacy": {"apikey": project.service_jwt, "Authorization": f"Bearer {project.service_jwt}"},
        "legacy, once": {"apikey": project.service_jwt},
    }
    for kind, headers in keys.items():
        with client(project, **headers) as sender:
            written = sender.post(
                "Story?on_conflict=id", json=story(), headers={"Prefer": "resolution=merge-duplicates"}
            )
            assert written.is_success, (kind, written.text)
    for headers in ({"apikey": project.publishable_key}, {"apikey": project.anon_jwt}):
        with client(project, **headers) as reader:
            assert [row["id"] for row in reader.get("Story").json()] == [STORY]
            assert reader.post("Story", json=story()).json()["code"] == "42501"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"apikey": "sb_secret_made_up"},
        {"apikey": "SECRET", "Authorization": "Bearer sb_secret_another"},
        {"apikey": "SECRET", "User-Agent": "Mozilla/5.0"},
        {"Authorization": "Bearer SECRET"},
    ],
    ids=["no key", "unknown key", "another key as bearer", "secret in a browser", "bearer alone"],
)
def test_other_keys_are_refused_as_the_hosted_gateway_does(project: EmbeddedSupabase, headers: dict[str, str]) -> None:
    filled = {name: value.replace("SECRET", project.secret_key) for name, value in headers.items()}
    answer = httpx.get(f"{project.url}/rest/v1/Story", headers=filled)
    assert answer.status_code == 401
    assert answer.json().keys() == {"message", "hint"}


def test_a_signed_in_user_is_known_to_policies(project: EmbeddedSupabase, target: Database) -> None:
    user = "22222222-2222-4222-8222-222222222222"
    with target.connect() as connection:
        connection.execute(
            "create function public.whoami() returns json language sql stable"
            " as $$ select json_build_array(auth.uid(), auth.role(), current_user) $$"
        )
    headers = {"apikey": project.publishable_key, "Authorization": f"Bearer {project.jwt_for(user)}"}
    with client(project, **headers) as visitor:
        wait_until(lambda: visitor.post("rpc/whoami").is_success)
        answer = visitor.post("rpc/whoami").json()
    assert answer == [user, "authenticated", "authenticated"]


def test_a_new_table_is_seen_by_nobody_until_it_is_granted(project: EmbeddedSupabase, target: Database) -> None:
    with client(project) as service, target.connect() as owner:
        owner.execute("create table public.later (id int primary key)")
        wait_until(lambda: service.get("later").json()["code"] == "42501")
        owner.execute("grant select on public.later to service_role")
        assert service.get("later").json() == []


def test_the_owner_is_no_superuser(target: Database) -> None:
    with target.connect() as owner:
        row = owner.execute(
            "select rolsuper, rolbypassrls, rolcreaterole, pg_get_userbyid(datdba) from pg_roles, pg_database"
            " where rolname = current_user and datname = current_database()"
        ).fetchone()
    assert row == (False, True, True, "supabase_owner")


# The gateway


def test_bodies_pass_whole_in_both_framings(project: EmbeddedSupabase) -> None:
    big = story("x" * 3_000_000)

    def pieces() -> Iterator[bytes]:
        text = json.dumps(big).encode()
        for start in range(0, len(text), 70_000):
            yield text[start : start + 70_000]

    prefer = {
        "Prefer": "return=representation,resolution=merge-duplicates",
        "Content-Type": "application/json",
    }
    with client(project) as sender:
        counted = sender.post("Story?on_conflict=id", json=big, headers=prefer)
        chunked = sender.post("Story?on_conflict=id", content=pieces(), headers=prefer)
        assert counted.json()[0]["title"] == chunked.json()[0]["title"] == big["title"]
        headed = sender.head("Story")
        assert (headed.status_code, headed.content) == (200, b"")
        assert sender.delete("Story", params={"id": f"eq.{STORY}"}).status_code == 204
        assert sender.get("Story").json() == []


def test_a_client_stays_on_its_connection_and_requests_are_counted(project: EmbeddedSupabase) -> None:
    with client(project) as sender:
        streams = {id(sender.get("Story").extensions["network_stream"]) for _ in range(5)}
        missing = sender.get(f"{project.url}/auth/v1/user")
    assert len(streams) == 1
    assert missing.json() == {"error": "requested path is invalid"}
    assert list(project.gateway.requests) == [
        *[Request("GET", "/rest/v1/Story", 200)] * 5,
        Request("GET", "/auth/v1/user", 404),
    ]


def test_a_fault_answers_in_postgrests_place(project: EmbeddedSupabase) -> None:
    project.gateway.fault = Fault.status(520, b'{"message":"no"}', [("Retry-After", "7")], times=2, path="Story")
    with client(project) as sender:
        assert sender.post("rpc/absent").status_code == 404
        hit = [sender.post("Story", json=story()) for _ in range(3)]
    assert [answer.status_code for answer in hit] == [520, 520, 201]
    assert hit[0].headers["retry-after"] == "7"
    assert hit[0].json() == {"message": "no"}


@pytest.mark.parametrize(
    ("fault", "written"),
    [(Fault.drop_response(times=1), True), (Fault.truncate(times=1), True), (Fault.refuse(times=1), False)],
    ids=lambda value: value.kind.value if isinstance(value, Fault) else None,
)
def test_a_lost_answer_is_ambiguous(project: EmbeddedSupabase, fault: Fault, written: bool) -> None:
    project.gateway.fault = fault
    with client(project) as sender:
        with pytest.raises(httpx.RemoteProtocolError):
            sender.post("Story", json=story(), headers={"Prefer": "return=representation"})
        assert project.gateway.take("") is None
        assert bool(sender.get("Story").json()) is written


def test_after_a_client_timeout_the_write_is_there_all_the_same(project: EmbeddedSupabase) -> None:
    project.gateway.fault = Fault.delay(60, times=1)
    with client(project) as sender:
        with pytest.raises(httpx.ReadTimeout):
            sender.post("Story", json=story(), timeout=0.2)
        wait_until(lambda: sender.get("Story").json())


def test_outages_of_either_part_end_when_it_returns(project: EmbeddedSupabase) -> None:
    with client(project) as sender:
        assert sender.get("Story").status_code == 200
        project.stop_postgrest()
        assert sender.get("Story").status_code == 503
        project.start_postgrest()
        assert sender.get("Story").status_code == 200
        project.gateway.stop()
        with pytest.raises(httpx.TransportError):
            sender.get("Story")
        project.gateway.start()
        assert sender.get("Story").status_code == 200


# Clusters


def test_the_example_installs_on_both_sides(source: Database, target: Database) -> None:
    source.install("example_app.sql")
    target.install("example_mirror.sql")
    columns = (
        "select table_name, column_name, data_type from information_schema.columns"
        " where table_schema = 'public' order by table_name, ordinal_position"
    )
    with source.connect() as application, target.connect() as mirror:
        assert application.execute(columns).fetchall() == mirror.execute(columns).fetchall()
        deletes = "select distinct confdeltype, condeferrable from pg_constraint where contype = 'f'"
        assert mirror.execute(deletes).fetchall() == [("a", True)]


def test_databases_are_fresh_and_go_again(source: Database) -> None:
    with source.connect() as connection:
        assert connection.execute("select count(*) from outbox.change").fetchone() == (0,)
        connection.execute("create table kept (id int)")


@pytest.fixture
def cluster(run_folder: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster that a test may crash."""
    folder = run_folder / request.node.name.replace("[", "-").strip("]")
    with Cluster.create(folder, settings=SETTINGS) as made:
        yield made


def test_a_crash_loses_what_was_not_flushed_and_keeps_the_rest(cluster: Cluster) -> None:
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        connection.execute("alter system set wal_writer_delay = '10s'")
        connection.execute("select pg_reload_conf()")
        connection.execute("create table kept as select 1 as id")
        connection.execute("set synchronous_commit = off")
        connection.execute("insert into kept values (2)")
        pid = connection.info.backend_pid
        cluster.kill()
        assert not alive(pid)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    assert not cluster.running
    cluster.start()
    with psycopg.connect(cluster.dsn()) as connection:
        assert connection.execute("select id from kept").fetchall() == [(1,)]


def test_a_frozen_cluster_holds_its_connections_and_goes_on(cluster: Cluster) -> None:
    answer: list[object] = []
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        cluster.freeze()
        asking = threading.Thread(target=lambda: answer.append(connection.execute("select 1").fetchone()))
        asking.start()
        asking.join(0.1)
        assert not answer
        cluster.thaw()
        asking.join(10)
        assert answer == [(1,)]
        cluster.freeze()
    cluster.stop()
    assert not cluster.running


def test_a_restart_keeps_the_port_and_takes_new_settings(cluster: Cluster) -> None:
    before = cluster.port
    cluster.configure({"max_prepared_transactions": "7", "application_name": "it's"})
    cluster.restart()
    with psycopg.connect(cluster.dsn()) as connection:
        assert connection.execute("show max_prepared_transactions").fetchone() == ("7",)
    assert cluster.port == before


@pytest.mark.parametrize("wanted", [15, 16, 17, 18])
def test_other_versions_run(run_folder: Path, wanted: int) -> None:
    try:
        binaries(wanted)
    except MissingPostgres as missing:
        pytest.skip(str(missing))
    folder = run_folder / f"version-{wanted}"
    with (
        Cluster.create(folder, version=wanted, settings=SETTINGS) as cluster,
        psycopg.connect(cluster.dsn()) as connection,
    ):
        assert connection.info.server_version // 10_000 == cluster.version == wanted
        assert connection.execute("select distinct datctype from pg_database").fetchall() == [("C.UTF-8",)]


def test_a_missing_version_says_where_to_get_one() -> None:
    with pytest.raises(MissingPostgres, match="No PostgreSQL 9 was found"):
        binaries(9)


# Nothing left behind


_STARTS_AND_HANGS = """
import signal, sys, threading
from pathlib import Path
from daemon.demo.cluster import Cluster
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
cluster = Cluster.create(Path(sys.argv[1]), settings={"fsync": "off"})
cluster.start()
print(cluster.port, flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_cluster_does_not_outlive_its_process(run_folder: Path, how: signal.Signals) -> None:
    folder = run_folder / f"orphan-{how.name}"
    command = [sys.executable, "-c", _STARTS_AND_HANGS, str(folder)]
    # Killed, it cannot remove its temporary folders: they are to go with the run's.
    inside = os.environ | {"TMPDIR": str(run_folder)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=inside) as owner:
        assert owner.stdout
        assert owner.stdout.readline()
        assert standing_in(folder)
        owner.send_signal(how)
        owner.wait(10)
    wait_until(lambda: not [pid for pid in standing_in(folder) if alive(pid)])


def test_leftovers_are_found_by_where_they_stand(run_folder: Path, cluster: Cluster) -> None:
    with psycopg.connect(cluster.dsn()) as connection:
        backend = connection.info.backend_pid
        found = left_behind(cluster.folder)
    assert backend in found
    assert os.getpid() not in found
