"""`outboxd schema` as a person uses it: from two empty databases to rows that only their owner sees."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from daemon.demo.binaries import MissingPostgrest, postgrest_binary
from daemon.demo.stage import TABLES
from daemon.demo.supabase import EmbeddedSupabase, prepare
from daemon.exposed import Answered, Shown, wait_until_shown
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import Start, ended
from tests.databases import Database

A, B = "aaaaaaaa-0000-4000-8000-000000000000", "bbbbbbbb-0000-4000-8000-000000000000"

# Whose row it is stands in each table: a policy looks at the row alone.
CONFIG = """
[tables.'public."Story"']
owner = "authorId"
realtime = true
[tables.'public.Scenario']
owner = "authorId"
write = false
[tables.'public."Prompt"']
owner = "authorId"
write = true
[tables.'public."VideoAsset"']
access = "public_read"
"""

ROWS = """
insert into "Story" ("id", "title", "updatedAt", "authorId") select md5(i::text)::uuid, 'story ' || i, now(), (array[%(a)s, %(b)s])[1 + i %% 2]::uuid from generate_series(1, 6) i;
insert into "Scenario" ("id", "storyId", "position", "summary", "updatedAt", "authorId")
  select 'scenario ' || n, "id", n, 'x', now(), "authorId" from (select *, row_number() over (order by "id") as n from "Story") s;
insert into "Prompt" ("id", "scenarioId", "body", "authorId") select 'prompt ' || "position", "id", 'x', "authorId" from "Scenario";
insert into "VideoAsset" ("id", "scenarioId", "promptId") select md5("id")::uuid, "scenarioId", "id" from "Prompt";
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a configuration of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outboxd.toml").write_text(CONFIG)


@pytest.fixture
def app(source_cluster: Any) -> Iterator[Database]:
    """The example application for several users, which has never heard of outboxd."""
    source_cluster.create_database("schema_app")
    database = Database(source_cluster, "schema_app", "postgres")
    database.install("example_app.sql")
    with database.connect() as conn:
        for table in TABLES:
            conn.execute(f'alter table {table} add "authorId" uuid'.encode())
    yield database
    source_cluster.drop_database("schema_app")


@pytest.fixture
def project(target_cluster: Any, run_folder: Path) -> Iterator[EmbeddedSupabase]:
    """A project as it is on its first day, PostgREST running."""
    try:
        postgrest_binary()
    except MissingPostgrest as missing:
        pytest.skip(str(missing))
    target_cluster.create_database("schema_project")
    prepare(target_cluster, "schema_project")
    with EmbeddedSupabase(target_cluster, "schema_project", run_folder) as running:
        yield running
    target_cluster.drop_database("schema_project")


def test_from_two_empty_databases_to_rows_that_only_their_owner_sees(
    app: Database, project: EmbeddedSupabase, start: Start, tmp_path: Path
) -> None:
    """setup, watch, schema apply, run; then through PostgREST as nobody, as two users and with the secret key."""
    settings = {
        "source_dsn": app.dsn, "target_dsn": project.dsn(), "supabase_url": project.url, "supabase_key": project.secret_key,
        "config": str(tmp_path / "outboxd.toml"),
    }  # fmt: skip
    outboxd = Cli(settings)
    assert [outboxd("setup", side).code for side in ("source", "target")] == [0, 0]
    assert outboxd("watch", *TABLES).code == 0
    assert outboxd("schema", "status").code == 3
    applied = outboxd("schema", "apply", "--yes")
    assert applied.code == 0, applied.err
    assert "foreign key" in applied.err
    # The API knew the tables when the command came back.
    assert seen(project, project.secret_key, None, "Story") == []
    assert outboxd("schema", "status").code == 0
    assert "nothing to do" in outboxd("schema", "apply", "--yes").err
    assert [item for item in outboxd.found().values() if item["level"] == "FAIL"] == []

    with app.connect(autocommit=False) as conn:
        psycopg.ClientCursor(conn).execute(ROWS.encode(), {"a": A, "b": B})
    ran = start(settings, "run", "--until-idle")
    assert ended(ran) == 0, ran.last_words()

    secret, public = project.secret_key, project.publishable_key
    for table in ("Story", "Scenario", "Prompt", "VideoAsset"):
        assert len(seen(project, secret, None, table)) == 6
    for table in ("Story", "Scenario", "Prompt"):
        assert refused(project, public, None, table) == "42501"
        for user in (A, B):
            rows = seen(project, public, project.jwt_for(user), table)
            assert len(rows) == 3
            assert {row["authorId"] for row in rows} == {user}
    assert len(seen(project, public, None, "VideoAsset")) == 6
    assert written(project, project.jwt_for(A), "Story", {"title": "mine"}) == 403
    assert written(project, project.jwt_for(A), "Prompt", {"body": "mine"}) == 200
    assert {row["body"] for row in seen(project, public, project.jwt_for(A), "Prompt")} == {"mine"}
    assert {row["body"] for row in seen(project, public, project.jwt_for(B), "Prompt")} == {"x"}
    with psycopg.connect(project.dsn()) as conn:
        assert conn.execute("select tablename from pg_publication_tables").fetchall() == [("Story",)]


def test_the_command_waits_until_the_api_shows_a_table(project: EmbeddedSupabase) -> None:
    """One that is not there is named when patience ends; one that comes is seen, also one that may not be read."""
    late, hidden = ("public", "late one"), ("public", "hidden")

    def left(*tables: tuple[str, str], patience: float = 30.0) -> list[Answered]:
        asked = [Shown(table, ("id",)) for table in tables]
        return wait_until_shown(project.url, project.secret_key, asked, user_agent="test", patience=patience)

    assert left(late, hidden, patience=0.1) == [Answered(late, False), Answered(hidden, False)]
    with psycopg.connect(project.dsn()) as conn:
        conn.execute(
            'create table "late one" (id int); create table hidden (id int); grant select, insert on "late one" to service_role'
        )
    assert left(late, hidden) == [Answered(hidden, True, "permission denied for table hidden")]
    with psycopg.connect(project.dsn()) as conn:
        conn.execute("grant select on hidden to service_role")
    assert left(hidden) == [Answered(hidden, True, "permission denied for table hidden")], "it may be read, not written"
    assert seen(project, project.secret_key, None, "late one") == [], "it was asked with no rows"
    nobody = [Shown(late, ("id",))]
    assert wait_until_shown("http://127.0.0.1:9", "key", nobody, user_agent="test", patience=0.1) == [
        Answered(late, False)
    ]


def test_an_old_picture_of_the_schema_answers_one_verb_alone(project: EmbeddedSupabase) -> None:
    """A column has come, and the Data API has not been told: it reads the table, and refuses rows with that column."""
    table = ("public", "grown")
    with psycopg.connect(project.dsn()) as conn:
        conn.execute("create table grown (id int); grant select, insert on grown to service_role")
    known = [Shown(table, ("id",))]
    assert wait_until_shown(project.url, project.secret_key, known, user_agent="test") == []
    with psycopg.connect(project.dsn("postgres")) as conn:
        conn.execute("alter event trigger pgrst_ddl_watch disable")
    with psycopg.connect(project.dsn()) as conn:
        conn.execute("alter table grown add late text")
    assert seen(project, project.secret_key, None, "grown") == []
    grown = [Shown(table, ("id", "late"))]
    assert wait_until_shown(project.url, project.secret_key, grown, user_agent="test", patience=0.5) == [
        Answered(table, False)
    ]
    with psycopg.connect(project.dsn()) as conn:
        conn.execute("notify pgrst, 'reload schema'")
    assert wait_until_shown(project.url, project.secret_key, grown, user_agent="test") == []


def request(project: EmbeddedSupabase, method: str, key: str, user: str | None, table: str, **more: Any) -> Any:
    headers = {"apikey": key, **({"authorization": f"Bearer {user}"} if user else {}), **more.pop("headers", {})}
    return httpx.request(method, f"{project.url}/rest/v1/{table}", headers=headers, trust_env=False, **more)


def seen(project: EmbeddedSupabase, key: str, user: str | None, table: str) -> list[dict[str, Any]]:
    """The rows of a table, as whoever has these keys sees them."""
    answer = request(project, "GET", key, user, table)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()
    return rows


def refused(project: EmbeddedSupabase, key: str, user: str | None, table: str) -> str:
    answer = request(project, "GET", key, user, table)
    assert answer.status_code in {401, 403}
    return str(answer.json()["code"])


def written(project: EmbeddedSupabase, user: str, table: str, values: dict[str, str]) -> int:
    """The status of an update of every row that one may update."""
    answer = request(
        project, "PATCH", project.publishable_key, user, table, json=values, params={"id": "not.is.null"},
        headers={"prefer": "return=representation"},
    )  # fmt: skip
    return int(answer.status_code)


# the commands, without PostgREST


@pytest.fixture
def outboxd(source: Database, target: Database, tmp_path: Path) -> Cli:
    source.install("example_app.sql")
    settings = {"source_dsn": source.dsn, "target_dsn": target.dsn}
    (tmp_path / "outboxd.toml").write_text("")
    cli = Cli(settings)
    assert cli("watch", *TABLES).code == 0
    return cli


def test_the_plan_is_read_by_persons_and_programs(outboxd: Cli) -> None:
    """Each step with its number, its reason and its SQL; as JSON the same; and nothing is changed by it."""
    shown = outboxd("schema", "plan", 'public."Story"')
    assert shown.code == 0
    assert (
        '1. public."Story": table public.Story\n   the target has no such table\n     create table if not exists "public"."Story" ('
        in shown.out
    )
    steps = outboxd("schema", "plan", "--json").json()["steps"]
    assert {step["kind"] for step in steps} >= {
        "type",
        "table",
        "unique",
        "index",
        "grant",
        "map",
        "foreign_key",
        "validate",
    }
    assert set(steps[0]) == {"table", "kind", "what", "sql", "reason", "destructive", "loses", "phase", "waits_for"}
    assert outboxd("schema", "plan", "--json").json()["steps"] == steps
    assert outboxd("schema", "plan", "--json", "--sql").code == 2


def test_the_plan_as_a_file(outboxd: Cli, target: Database) -> None:
    """With and without a connection to the target the same script, for a project that has nothing yet."""
    with_one = outboxd("schema", "plan", "--sql")
    without = Cli({"source_dsn": outboxd.settings["source_dsn"]})("schema", "plan", "--sql")
    assert "without OUTBOXD_TARGET_DSN this is the script for a project that has none of these tables" in without.err
    assert without.out == with_one.out
    with target.connect() as conn:
        conn.execute(without.out.encode())
    assert outboxd("schema", "status").code == 0


def test_without_a_connection_the_others_say_what_to_do(outboxd: Cli) -> None:
    without = Cli({"source_dsn": outboxd.settings["source_dsn"]})
    for words in (("plan",), ("apply", "--yes"), ("status",)):
        said = without("schema", *words)
        assert said.code == 78
        assert "needs a direct connection" in said.err
        assert "schema plan --sql" in said.err


def test_apply_asks_and_leaves_what_is_destructive(outboxd: Cli, target: Database) -> None:
    """Without --yes and a terminal nothing is done; what loses something is left, named, and exits 3."""
    asked = outboxd("schema", "apply")
    assert asked.code == 3
    assert "nothing was done: say --yes" in asked.err
    with target.connect() as conn:
        conn.execute('create table "Prompt" ("id" text primary key, "body" int)')
    said = outboxd("schema", "apply", "--yes")
    assert said.code == 3
    assert 'public."Prompt": change type body: the table is written anew' in said.err
    rows = {row["table"]: row for row in outboxd("schema", "status", "--json").json()["tables"]}
    assert (rows['public."Prompt"']["to_do"], rows['public."Prompt"']["destructive"]) == (0, 1)
    assert outboxd("schema", "apply", "--yes", "--allow-destructive").code == 0
    assert outboxd("schema", "status").code == 0


def test_what_is_wrong_with_a_table_is_a_sentence(outboxd: Cli, tmp_path: Path) -> None:
    (tmp_path / "outboxd.toml").write_text("[tables.'public.Story']\nowner = 'nobody'\n")
    said = outboxd("schema", "plan")
    assert said.code == 1
    assert 'owner names nobody, which is no column of "public"."Story" on the target: it has id, title' in said.err
    assert outboxd("schema", "plan", "elsewhere").code == 1
    assert json.loads(outboxd("config", "show", "--json").out)["tables.'public.Story'.owner"]["value"] == "nobody"
