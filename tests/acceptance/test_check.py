"""`outboxd check`, the doctor: each thing that can be wrong has its own sentence, and the fix it prints works."""

import re
import shlex
from pathlib import Path

import psycopg
import pytest

from daemon.demo.cluster import Cluster
from daemon.demo.faults import Fault
from daemon.demo.process import free_port
from daemon.demo.supabase import EmbeddedSupabase
from outbox.migrations import migrate, step
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import STORIES, Pair, Start, ended, streaming, wait_until
from tests.databases import SETTINGS, Database

STORY = 'public."Story"'


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without .env and outboxd.toml."""
    monkeypatch.chdir(tmp_path)


def run(database: Database, statement: str) -> None:
    """As whoever may do everything would, in the SQL editor."""
    with psycopg.connect(database.superuser_dsn, autocommit=True) as conn:
        conn.execute(statement.encode())


@pytest.mark.parametrize("way", ["rest", "direct"])
def test_a_sound_pair_has_nothing_to_object_to(request: pytest.FixtureRequest, way: str) -> None:
    """One line an item, every one OK, exit code 0; the same items as JSON."""
    pair: Pair = request.getfixturevalue(way)
    said = Cli(pair.settings)("check")
    assert said.code == 0
    lines = said.out.splitlines()
    assert all(line.startswith("OK    ") for line in lines)
    for item in ("source", "source schema", "listener", "target schema", 'public."Story"', 'target public."Story"'):
        assert any(line.startswith(f"OK    {item}  ") for line in lines), item
    assert [item["level"] for item in Cli(pair.settings)("check", "--json").json()] == ["OK"] * len(lines)


# Where something is broken and how; which item objects with what; what mends it: None where the printed fix does.
_BROKEN = [
    ("source", "alter sequence outbox.change_id_seq cache 9", "identity", "CACHE 9", None),
    ("source", 'alter table "VideoAsset" drop constraint "VideoAsset_pkey"', 'public."VideoAsset"', "no primary key",
     'alter table "VideoAsset" add primary key ("id")'),
    ("source", 'alter table "VideoAsset" drop constraint "VideoAsset_pkey", add constraint late primary key ("id") deferrable',
     'public."VideoAsset"', "DEFERRABLE", 'alter table "VideoAsset" drop constraint late, add primary key ("id")'),
    ("source", 'alter table "Story" disable trigger outbox_truncate', 'public."Story"', "disabled or not ALWAYS", None),
    ("source", ("do $$ begin execute (select format('drop trigger %I on \"Story\"', tgname) from pg_trigger where tgrelid = '\"Story\"'::regclass"
     " and tgname like 'outbox\\_row\\_%'); end $$"), 'public."Story"', "changes made there are not recorded", None),
    ("source", 'drop trigger outbox_truncate on "Story"', 'public."Story"', "emptying it is not recorded", None),
    ("source", 'alter table "Story" alter "title" type varchar(99)', 'public."Story"', "columns changed since", None),
    ("target", 'alter table "Prompt" drop column "costUsd"', 'target public."Prompt"', "columns missing: costUsd", None),
    ("target", 'alter table "Prompt" add column "mood" text not null', 'target public."Prompt"', "no such column: mood",
     'alter table "Prompt" alter column "mood" drop not null'),
    ("target", 'alter table "VideoAsset" rename to "Gone"', 'target public."VideoAsset"', 'has no table public."VideoAsset"',
     'alter table "Gone" rename to "VideoAsset"'),
    ("target", "select outboxd.unmap('public.\"Story\"')", 'target public."Story"', "not mapped", None),
    ("target", 'revoke insert, update on "Story" from supabase_owner, service_role', 'target public."Story"',
     "supabase_owner may not INSERT, UPDATE", None),
    ("target", 'alter table "VideoAsset" drop constraint "VideoAsset_pkey"', 'target public."VideoAsset"',
     "no unique, not deferrable key", None),
    ("target", 'alter table "Story" disable row level security', 'target public."Story"', "row level security is off", None),
]  # fmt: skip


@pytest.mark.parametrize("case", _BROKEN, ids=[f"{side}: {break_it}" for side, break_it, *_ in _BROKEN])
def test_what_is_broken_is_named_and_the_fix_mends_it(
    direct: Pair, case: tuple[str, str, str, str, str | None]
) -> None:
    """One item objects, in words that lead to the cause; after its fix, check is content again."""
    side, break_it, item, what, mend = case
    database = {"source": direct.source, "target": direct.target}[side]
    outboxd = Cli(direct.settings)
    run(database, break_it)
    found = outboxd.found()
    assert what in found[item]["what"]
    assert all(each == item or what in found[each]["what"] for each in found), found
    fix = mend or found[item]["fix"]
    if fix.startswith("outboxd "):
        agreed = ["--yes"] if "apply" in fix else []
        assert outboxd(*shlex.split(fix)[1:], *agreed).code == 0
    else:
        run(database, fix)
    assert outboxd.found() == {}


def test_a_source_without_the_schema_is_told_to_set_up(direct: Pair) -> None:
    """The database is right, outboxd's schema is not there."""
    run(direct.source, "drop schema outbox cascade")
    outboxd = Cli(direct.settings)
    assert (
        outboxd.found()["source"]["what"] == "schema outbox is not installed on the source: run `outboxd setup source`"
    )
    watching = outboxd("watch", "Story")
    assert (watching.code, watching.err) == (1, "error: schema outbox is not installed: run `outboxd setup source`\n")


@pytest.mark.parametrize("way", ["rest", "direct"])
def test_a_target_without_the_schema_is_told_to_set_up(request: pytest.FixtureRequest, way: str) -> None:
    """Through either door, what is missing is the function, and `setup target` is the way on."""
    pair: Pair = request.getfixturevalue(way)
    run(pair.target, "drop function public.outboxd(text); drop schema outboxd cascade")
    outboxd = Cli(pair.settings)
    wait_until(lambda: "outboxd setup target" in outboxd.found().get("target", {"fix": ""})["fix"])
    assert Cli({"target_dsn": pair.target.dsn})("setup", "target").code == 0
    wait_until(lambda: {item["what"] for item in outboxd.found().values()} == {"not mapped on the target"})


def test_the_grant_on_the_door_is_printed_whole(rest: Pair) -> None:
    """A secret key whose role may not call the function: the statement that is printed is all that it needs."""
    run(rest.target, "revoke execute on function public.outboxd(text) from service_role")
    outboxd = Cli(rest.settings)
    target = outboxd.found()["target"]
    assert "permission denied for function outboxd" in target["what"]
    assert "grant execute on function" in target["fix"]
    run(rest.target, target["fix"])
    assert outboxd.found() == {}


def test_a_role_of_ones_own_gets_its_grants_printed(direct: Pair) -> None:
    """Over a direct connection the door can be opened to any role, by the statement that check prints."""
    run(direct.target, "create role relay_of_ones_own login")
    try:
        settings = {**direct.settings, "target_dsn": direct.target.cluster.dsn(direct.target.name, "relay_of_ones_own")}
        target = Cli(settings).found()["target"]
        run(direct.target, target["fix"])
        assert Cli(settings).found() == {}
    finally:
        run(direct.target, "drop owned by relay_of_ones_own; drop role relay_of_ones_own")


def test_a_stale_schema_cache_has_its_own_sentence(rest: Pair, supabase: EmbeddedSupabase, start: Start) -> None:
    """The function is there, PostgREST does not know it yet: the daemon waits, and the statement printed wakes it up."""
    run(rest.target, "drop function public.outboxd(text)")
    run(rest.target, "alter event trigger pgrst_ddl_watch disable; alter event trigger pgrst_drop_watch disable")
    supabase.stop_postgrest()
    supabase.start_postgrest()
    with rest.target.connect() as conn:
        conn.execute(step("target", "exposed").replace("notify pgrst", "-- notify pgrst").encode())
    daemon = start(rest.settings)
    rest.write(STORIES, 1)
    wait_until(lambda: (daemon.status() or {}).get("state") == "paused")
    assert "notify pgrst, 'reload schema'" in (daemon.status() or {})["problem"]
    target = Cli(rest.settings).found()["target"]
    assert "PGRST202" in target["what"]
    assert "notify pgrst, 'reload schema'" in target["fix"]
    run(rest.target, "notify pgrst, 'reload schema'")
    rest.arrives()
    assert Cli(rest.settings).found() == {}


def test_keys_and_addresses_of_the_wrong_kind(rest: Pair, supabase: EmbeddedSupabase) -> None:
    """What can be seen without asking is bad configuration (78); what the gateway says is a finding (3)."""
    outboxd = Cli(rest.settings)
    for setting, value, sentence in (
        ("supabase_key", supabase.publishable_key, "is the publishable (anon) key; outboxd needs the secret key"),
        ("supabase_key", supabase.anon_jwt, "is the publishable (anon) key; outboxd needs the secret key"),
        ("supabase_url", "https://supabase.com/dashboard/project/abcdefghijkl", "the API's is https://abcdefghijkl.supabase.co"),
        ("supabase_url", f"{supabase.url}/rest/v1", "must be the bare address"),
    ):  # fmt: skip
        said = outboxd("check", **{setting: value})
        assert (said.code, sentence in said.err) == (78, True), said.err
        assert value not in said.err
    wrong = Cli({**rest.settings, "supabase_key": "sb_secret_of_another_project_entirely"})
    assert wrong.found()["target"]["what"] == "the target answered 401"
    assert "does not accept the key" in wrong.found()["target"]["fix"]
    legacy = Cli({**rest.settings, "supabase_key": supabase.service_jwt})
    assert legacy.found()["key"]["level"] == "WARN"
    nobody = Cli({**rest.settings, "supabase_url": f"http://127.0.0.1:{free_port()}"})
    assert "no connection" in nobody.found()["target"]["what"]
    supabase.gateway.fault = Fault.status(200, b"<html>welcome</html>")
    assert (
        outboxd.found()["target"]["what"] == "the target's answer is not one of outboxd's (it is no JSON of the door's)"
    )


def test_a_source_that_is_away_is_one_finding(direct: Pair) -> None:
    """The other store is examined all the same."""
    settings = {**direct.settings, "source_dsn": f"postgresql://postgres@127.0.0.1:{free_port()}/app"}
    found = Cli(settings).found()
    assert list(found) == ["source"]
    assert found["source"]["fix"] == "is the address right, and the server up?"


def test_a_standby_is_refused(direct: Pair, run_folder: Path, start: Start) -> None:
    """A server in recovery cannot say what has committed: check says so, and the daemon pauses and waits."""
    cluster = Cluster.create(run_folder / "standby", settings=SETTINGS)
    with cluster:
        cluster.create_database("app")
        with psycopg.connect(cluster.dsn("app")) as conn:
            migrate(conn, "source")
        cluster.stop()
        (cluster.data / "standby.signal").touch()
        cluster.start()
        settings = {**direct.settings, "source_dsn": cluster.dsn("app")}
        found = Cli(settings).found()["source"]
        assert "standby" in found["what"]
        assert found["fix"] == "give the primary's address"
        daemon = start(settings)
        wait_until(lambda: "standby" in ((daemon.status() or {}).get("problem") or ""))
        assert (daemon.status() or {})["state"] == "paused"
        assert daemon.get("/readyz")[0] == 503
        assert ended(start(settings, "run", "--until-idle")) == 1


def test_a_capture_owner_who_cannot_bypass_row_security(source_cluster: Cluster, direct: Pair) -> None:
    """Policies would hide rows from the capture functions: watch refuses, check objects, and the fix mends it."""
    source_cluster.execute("create role plain_owner login")
    source_cluster.create_database("guarded", owner="plain_owner")
    database = Database(source_cluster, "guarded", "plain_owner")
    outboxd = Cli({**direct.settings, "source_dsn": database.dsn})
    try:
        assert outboxd("setup", "source").code == 0
        with database.connect() as conn:
            conn.execute("create table note (id int primary key)")
            assert outboxd("watch", "note", target_dsn="").code == 0
            conn.execute("alter table note enable row level security, force row level security")
        run(direct.target, "create table note (id int primary key); alter table note enable row level security;"
            " alter table note owner to supabase_owner; select outboxd.map('note')")  # fmt: skip
        found = outboxd.found()
        assert (
            "row level security, which would hide rows from the capture functions of plain_owner"
            in found["public.note"]["what"]
        )
        assert outboxd("watch", "note", target_dsn="").code == 1
        (statement,) = re.findall(r"alter role \w+ bypassrls", found["public.note"]["what"])
        run(database, statement)
        assert "public.note" not in outboxd.found()
    finally:
        source_cluster.drop_database("guarded")
        source_cluster.execute("drop role plain_owner")


def test_an_enum_label_that_the_mirror_lacks(direct: Pair) -> None:
    """Rows that have it would be refused: check and status say so, the fix mends it, in arrays and under another name too."""
    direct.write("create type mood as enum ('calm', 'wild')")
    direct.write("create table thing (id int primary key, mood mood, moods mood[], kept mood)")
    outboxd = Cli(direct.settings)
    assert outboxd("watch", "thing", "--rename", "moods=all_moods", "--mask", "kept=null").code == 0
    assert outboxd("schema", "apply", "--yes").code == 0
    assert "target public.thing" not in outboxd.found()
    direct.write("alter type mood add value 'odd'")
    found = outboxd.found()["target public.thing"]
    assert (found["level"], found["what"]) == ("FAIL", "all_moods has no value odd; mood has no value odd")
    verdict = outboxd("status", "--json", admin_port=str(free_port())).json()["verdict"]
    assert "public.thing does not fit on the target, all_moods has no value odd" in verdict
    assert outboxd(*shlex.split(found["fix"])[1:], "--yes").code == 0
    assert "target public.thing" not in outboxd.found()


def test_a_table_that_is_missing_has_a_fix_that_works(direct: Pair) -> None:
    direct.write("create table news (id int primary key)")
    outboxd = Cli(direct.settings)
    assert outboxd("watch", "news").code == 0
    found = outboxd.found()["target public.news"]
    assert found["fix"] == "outboxd schema apply"
    assert outboxd(*shlex.split(found["fix"])[1:], "--yes").code == 0
    assert outboxd.found() == {}


def test_addresses_that_are_each_others(direct: Pair) -> None:
    """DATABASE_URL and SUPABASE_DB_URL exchanged: check says so, and setup does nothing to either."""
    exchanged = Cli(
        {**direct.settings, "source_dsn": direct.settings["target_dsn"], "target_dsn": direct.settings["source_dsn"]}
    )
    found = exchanged.found()
    assert list(found) == ["addresses"]
    assert "exchange them" in found["addresses"]["what"]
    for side in ("source", "target"):
        said = exchanged("setup", side)
        assert (said.code, "exchange them" in said.err, "nothing was done" in said.err) == (78, True, True)
    same = Cli({**direct.settings, "source_dsn": direct.settings["target_dsn"]})
    assert "the same database" in same.found()["addresses"]["what"]


def test_the_database_of_another_project(rest: Pair, target_cluster: Cluster) -> None:
    """By their names, where they have Supabase's; else by when outboxd was installed there."""
    ours, other = "a" * 20, "b" * 20
    for dsn in (
        f"postgresql://postgres:x@db.{other}.supabase.co:5432/postgres",
        f"postgresql://postgres.{other}:x@aws-0-eu-central-1.pooler.supabase.com:5432/postgres",
    ):
        mixed = Cli({**rest.settings, "supabase_url": f"https://{ours}.supabase.co", "target_dsn": dsn})
        assert f"of project {ours}" in mixed.found()["addresses"]["what"]
        assert mixed("setup", "target").code == 78
    target_cluster.create_database("second_project", owner="supabase_owner")
    try:
        second = Database(target_cluster, "second_project", "supabase_owner")
        assert Cli({"target_dsn": second.dsn})("setup", "target").code == 0
        found = Cli({**rest.settings, "target_dsn": second.dsn}).found()
        assert "leads to another project" in found["addresses"]["what"]
        assert "addresses" not in Cli({**rest.settings, "target_dsn": rest.target.dsn}).found()
    finally:
        target_cluster.drop_database("second_project")


def test_a_source_that_is_another_installation(direct: Pair) -> None:
    """Uninstalled and set up again, by accident: the relay is paused, and the doctor says so as status does."""
    cli = Cli(direct.settings)
    direct.write(STORIES, 3)
    assert cli("run", "--until-idle").code == 0
    assert cli.found() == {}
    assert cli("uninstall", "source", "--yes").code == 0
    assert cli("setup", "source").code == 0
    for table in ("Story", "Prompt", "Scenario", "VideoAsset"):
        assert cli("watch", f'public."{table}"').code == 0
    assert "installed anew" in cli("status").out
    assert "installed anew" in cli.found()["source"]["what"]


def test_a_source_that_another_relay_leads(direct: Pair, start: Start) -> None:
    """Nothing of this one moves, and nobody else would say so."""
    streaming(start({**direct.settings, "relay": "other"}))
    found = Cli(direct.settings).found()
    assert found["relay"]["what"] == "relay other leads this source, and main does not: nothing of this one moves"


def test_two_tables_in_one_place(direct: Pair) -> None:
    """What status finds of a table the doctor finds as well."""
    direct.write("create table twin (id uuid primary key, title text)")
    cli = Cli(direct.settings)
    assert cli("watch", "twin").code == 0
    with direct.target.connect() as conn:
        conn.execute(
            """select outboxd.map('public."Scenario"', 'public.twin'), outboxd.map('public."Scenario"', 'public."Scenario"')"""
        )
    found = cli.found()['public."Scenario"']
    assert (found["level"], found["what"]) == ("FAIL", 'public.twin goes to public."Scenario" as well')


SAID = {
    "a mask": ('mask = { title = "hash" }', "mask of title"),
    "two of them": ('mask = { title = "hash", authorEmail = "null" }', "mask of title, mask of authorEmail"),
    "a column left out": ('exclude = ["title", "authorEmail"]', "exclude of title, authorEmail"),
    "columns that travel": ('include = ["id", "updatedAt"]', "include"),
    "a filter": ('where = "title is not null"', "where"),
    "a name": ('rename = { title = "headline" }', "rename of title"),
    "a constant": ('constant = { origin = "main" }', "constant of origin"),
    "a place": ('target = "app.story"', "target"),
}


@pytest.mark.parametrize("what", SAID)
def test_what_the_configuration_says_and_nobody_has_watched_since(direct: Pair, what: str) -> None:
    """Values travel as they are; the fix, pasted, puts it in force."""
    said, words = SAID[what]
    Path("outboxd.toml").write_text(f"[tables.'public.\"Story\"']\n{said}\n")
    cli = Cli(direct.settings)
    found = cli.found()[STORY]
    assert (found["level"], found["what"]) == ("FAIL", f"{words} in [tables] is not in force")
    pasted = shlex.split(found["fix"])
    assert (pasted[0], cli(*pasted[1:]).code) == ("outboxd", 0)
    assert "not in force" not in cli.found().get(STORY, {"what": ""})["what"]


def test_what_would_end_is_said_before(direct: Pair) -> None:
    """An option has masked more than the configuration says: watching again as it says would take that off."""
    cli = Cli(direct.settings)
    assert cli("watch", "Story", "--mask", "title=hash").code == 0
    Path("outboxd.toml").write_text("""[tables.'public."Story"']\nmask = { authorEmail = "null" }\n""")
    found = cli.found()[STORY]
    assert found["what"] == "mask of authorEmail in [tables] is not in force"
    assert found["fix"] == f"say mask of title in [tables] as well, or it ends; then outboxd watch '{STORY}'"
    Path("outboxd.toml").write_text("""[tables.'public."Story"']\nmask = { title = "hash" }\n""")
    assert STORY not in cli.found()


def test_what_of_the_configuration_needs_nobody_to_watch(direct: Pair) -> None:
    """Who sees the rows, a table that is on the target alone, and what is in force under another spelling."""
    with direct.target.connect() as conn:
        conn.execute("create table emitted (id int primary key); alter table emitted enable row level security")
        conn.execute("select outboxd.map('emitted')")
    cli = Cli(direct.settings)
    assert cli("watch", "Story", "--exclude", "authorEmail", "--where", "title is not null").code == 0
    Path("outboxd.toml").write_text(
        "[tables.'public.Story']\nexclude = ['authorEmail']\nwhere = ' title is not null '\ntarget = 'public.\"Story\"'\n"
        "[tables.'public.emitted']\naccess = 'public_read'\n"
        "[tables.'public.\"Prompt\"']\naccess = 'public_read'\nrealtime = true\n"
    )
    assert cli.found() == {}


def test_names_of_the_configuration_that_mean_no_table(direct: Pair) -> None:
    """One that nobody has, one of two, one that is not watched, one that is emitted and cannot be mapped."""
    direct.write("""create table story (id int primary key); create table plain (id int primary key)""")
    with direct.target.connect() as conn:
        conn.execute("""create table sent (id int primary key); alter table sent enable row level security""")
    direct.write("create table sent (id int primary key, a text)")
    cli = Cli(direct.settings)
    assert cli("watch", "sent", "--emit-only").code == 0
    Path("outboxd.toml").write_text(
        "[tables.'public.Scenaro']\nmask = { title = 'hash' }\n[tables.'public.Story']\nmask = { title = 'hash' }\n"
        "[tables.'public.plain']\nmask = { id = 'hash' }\n[tables.'public.sent']\nmask = { a = 'hash' }\n"
    )
    found = cli.found()
    assert found["public.Scenaro"]["level"] == "WARN"
    assert 'did you mean public."Scenario"?' in found["public.Scenaro"]["what"]
    assert "may mean" in found["public.Story"]["what"]
    assert (found["public.plain"]["level"], found["public.plain"]["fix"]) == ("WARN", "outboxd watch public.plain")
    assert (found["public.sent"]["level"], "the application emits" in found["public.sent"]["what"]) == ("FAIL", True)
    Path("outboxd.toml").write_text("[tables.'public.sent']\nexclude = ['a']\n")
    fix = cli.found()["public.sent"]["fix"]
    assert cli(*shlex.split(fix)[1:]).code == 0
    assert "public.sent" not in cli.found()
    assert direct.ask(direct.source, "select capture from outbox.watched where table_name = 'public.sent'") == [
        (False,)
    ]


def test_a_schema_that_the_role_may_not_use_is_a_finding(direct: Pair) -> None:
    """One right that is missing is that table's matter: neither check nor status ends in the server's words."""
    assert Cli(direct.settings)("setup", "source", "--role").code == 0
    direct.write(
        "create schema hidden; create table hidden.thing (id int primary key); select outbox.watch('hidden.thing')"
    )
    settings = {**direct.settings, "source_dsn": direct.source.cluster.dsn(direct.source.name, "outboxd")}
    try:
        found = Cli(settings).found()
        assert "permission denied" not in str(found)
        assert any("hidden.thing" in name for name in found)
        told = Cli(settings)("status", "--json", admin_port=str(free_port()))
        assert told.code == 3
        assert "hidden" in told.json()["verdict"]
    finally:
        run(direct.source, "drop owned by outboxd; drop role outboxd")


def test_a_hook_of_the_build_that_an_older_python_can_read() -> None:
    """pip runs it before it says which Python is needed: it must not end in a traceback there."""
    hook = (Path(__file__).parents[2] / "deploy" / "bill_of_materials.py").read_text("utf-8")
    assert "import UTC" not in hook
    compile(hook, "bill_of_materials.py", "exec", dont_inherit=True)
