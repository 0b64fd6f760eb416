"""Every command by hand: what it prints, what it changes, how it exits."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from daemon.demo.cluster import Cluster
from daemon.demo.process import free_port
from daemon.demo.supabase import EmbeddedSupabase, prepare
from outbox import __version__
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import STORIES, Pair, Start, ended, streaming, wait_until
from tests.databases import Database

_numbers = count(1)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without .env and outboxd.toml."""
    monkeypatch.chdir(tmp_path)


def blank(cluster: Cluster, owner: str) -> Iterator[Database]:
    name = f"blank_{next(_numbers)}"
    cluster.create_database(name)
    yield Database(cluster, name, owner)
    cluster.drop_database(name)


@pytest.fixture
def blank_source(source_cluster: Cluster) -> Iterator[Database]:
    """An application's database that has never heard of outboxd."""
    yield from blank(source_cluster, "postgres")


@pytest.fixture
def blank_target(target_cluster: Cluster) -> Iterator[Database]:
    """A project's database that has never heard of outboxd."""
    for database in blank(target_cluster, "supabase_owner"):
        prepare(target_cluster, database.name)
        yield database


# setup


@pytest.mark.parametrize("side", ["source", "target"])
def test_setup_installs_and_may_run_again(side: str, blank_source: Database, blank_target: Database) -> None:
    """The first run names what it applied, the second finds everything up to date."""
    outboxd = Cli({"source_dsn": blank_source.dsn, "target_dsn": blank_target.dsn})
    first, again = outboxd("setup", side), outboxd("setup", side)
    assert (first.code, again.code) == (0, 0)
    assert re.match(rf"{side}: applied 0001_\w+, 0002_\w+", first.err)
    assert again.err == f"{side}: up to date\n"
    assert first.out == again.out == ""


@pytest.mark.parametrize("side", ["source", "target"])
def test_setup_print_is_the_same_for_another_tool(side: str, blank_source: Database, blank_target: Database) -> None:
    """`--print` connects to nothing; its SQL, run by hand and twice, leaves nothing for `setup` to do."""
    printed = Cli({})("setup", side, "--print")
    assert printed.code == 0
    database = {"source": blank_source, "target": blank_target}[side]
    with database.connect() as conn:
        conn.execute(printed.out.encode())
        conn.execute(printed.out.encode())
    outboxd = Cli({"source_dsn": blank_source.dsn, "target_dsn": blank_target.dsn})
    assert outboxd("setup", side).err == f"{side}: up to date\n"


def test_setup_target_says_how_to_do_without_a_connection() -> None:
    """Whoever has only the Data API is told of --print; the exit code is that of configuration."""
    said = Cli({})("setup", "target")
    assert said.code == 78
    assert "outboxd setup target --print" in said.err
    assert "OUTBOXD_TARGET_DSN" in said.err


def test_the_role_that_setup_makes_is_enough_for_the_daemon(direct: Pair, start: Start) -> None:
    """`setup source --role` makes a role without privileges of its own; the daemon runs as it, and check is content."""
    assert Cli({})("setup", "target", "--role").code == 2
    said = Cli(direct.settings)("setup", "source", "--role")
    assert said.code == 0
    assert "alter role outboxd password" in said.err
    settings = {**direct.settings, "source_dsn": direct.source.cluster.dsn(direct.source.name, "outboxd")}
    try:
        direct.write(STORIES, 3)
        assert ended(start(settings, "run", "--until-idle")) == 0
        direct.arrives(0)
        assert Cli(settings).found() == {}
        streaming(daemon := start(settings))
        wait_until(lambda: (daemon.status() or {})["verdict"] == "in sync: nothing needs you")
        assert Cli(settings)("status", admin_port=str(daemon.port)).code == 0
        assert daemon.stop() == 0
    finally:
        with direct.source.connect() as conn:
            conn.execute("drop owned by outboxd; drop role outboxd")


# watch, unwatch, watched


@pytest.fixture
def bare(source: Database, target: Database) -> Iterator[Pair]:
    """outboxd on both sides, the application's tables, and nothing watched or mapped yet."""
    source.install("example_app.sql")
    target.install("example_mirror.sql")
    way = {"source_dsn": source.dsn, "transport": "postgres", "target_dsn": target.dsn}
    with closing(Pair(source, target, way)) as pair:
        yield pair


def test_watch_with_a_direct_connection_does_both_sides(bare: Pair, start: Start) -> None:
    """Names as people and as Postgres spell them; afterwards changes travel."""
    outboxd = Cli(bare.settings)
    said = outboxd("watch", "public.Story", 'public."Scenario"', "Prompt", '"VideoAsset"')
    assert said.code == 0, said.err
    for table in ("Story", "Scenario", "Prompt", "VideoAsset"):
        assert f'watching public."{table}"' in said.err
        assert f'mapped public."{table}" on the target' in said.err
    bare.write(STORIES, 4)
    assert ended(start(bare.settings, "run", "--until-idle")) == 0
    bare.arrives(0)
    assert bare.mirrored() == 4


def test_watch_that_fails_for_one_table_leaves_none_half_done(bare: Pair) -> None:
    """The second is misspelled, or the target cannot map it: the others are captured, so they are mapped as well."""
    for store in (bare.source, bare.target):
        with store.connect() as conn:
            conn.execute("create table keyed (id int primary key); create table plain (id int primary key)")
    cli = Cli(bare.settings)
    said = cli("watch", "public.plain", "public.misspelled", "Story")
    assert (said.code, "misspelled" in said.err) == (1, True)
    assert "mapped public.plain on the target" in said.err
    assert mapped(bare) == captured(bare) == {"public.plain"}
    with bare.target.connect() as conn:
        conn.execute("alter table keyed drop constraint keyed_pkey")
    said = cli("watch", "public.keyed", "Story")
    assert (said.code, mapped(bare)) == (1, {"public.plain", 'public."Story"'})
    assert (
        "error: public.keyed is watched, and not mapped on the target: cannot map public.keyed: it has no primary key"
        in said.err
    )
    by_hand = cli("watch", "Prompt", "public.misspelled", target_dsn="", transport="rest")
    assert (by_hand.code, by_hand.out) == (1, """select outboxd.map('public."Prompt"');\n""")


def captured(pair: Pair) -> set[str]:
    return {name for (name,) in pair.ask(pair.source, "select table_name from outbox.watched")}


def mapped(pair: Pair) -> set[str]:
    return {name for (name,) in pair.ask(pair.target, "select table_name from outboxd.mirror")}


def test_watch_warns_of_a_table_that_a_sequence_fills(bare: Pair) -> None:
    """The server's warning reaches the person, with its way on; once."""
    with bare.source.connect() as conn:
        conn.execute("create table numbered (id bigint generated always as identity primary key)")
    outboxd = Cli(bare.settings)
    warning = "warning: public.numbered has a column that a sequence fills"
    assert warning in (said := outboxd("watch", "public.numbered")).err, said.err
    assert "returning" in said.err
    assert "warning" not in outboxd("watch", "public.numbered").err


def test_watch_without_one_prints_the_statements_for_the_sql_editor(bare: Pair) -> None:
    """What is to be run on the target is all that goes to stdout, and it runs there as printed."""
    said = Cli({"source_dsn": bare.source.dsn})("watch", "Story", "Prompt")
    assert said.code == 0
    assert said.out == "select outboxd.map('public.\"Story\"');\nselect outboxd.map('public.\"Prompt\"');\n"
    with bare.target.connect() as conn:
        conn.execute(said.out.encode())
        assert conn.execute("select count(*) from outboxd.mirror").fetchone() == (2,)


def test_watched_tells_what_is_recorded_and_how(bare: Pair) -> None:
    """As a table for people, as JSON for programs, and a sentence when there is nothing."""
    outboxd = Cli(bare.settings)
    assert outboxd("watched").err == "no table is watched: outboxd watch public.your_table\n"
    assert outboxd("watched", "--json").json() == []
    outboxd("watch", "Story", "--exclude", "authorEmail")
    outboxd("watch", "Prompt", "--emit-only")
    with bare.source.connect() as conn:
        conn.execute('alter table "VideoAsset" alter "url" set not null; create unique index on "VideoAsset" ("url")')
    outboxd("watch", "VideoAsset", "--key", "url", "--include", "url", "--include", "checksum")
    rows = {row.pop("table"): row for row in outboxd("watched", "--json").json()}
    for row in rows.values():
        assert {row.pop(name) for name in ("target", "rename", "constant", "mask", "where")} == {None}
    assert rows == {
        'public."Prompt"': {"capture": False, "key": ["id"], "include": None, "exclude": None, "on_error": "hold"},
        'public."Story"': {
            "capture": True,
            "key": ["id"],
            "include": None,
            "exclude": ["authorEmail"],
            "on_error": "hold",
        },
        'public."VideoAsset"': {
            "capture": True,
            "key": ["url"],
            "include": ["url", "checksum"],
            "exclude": None,
            "on_error": "hold",
        },
    }
    shown = outboxd("watched").out.splitlines()
    assert shown[0].split() == ["TABLE", "CAPTURE", "KEY", "COLUMNS", "ON", "ERROR", "MAPPING"]
    assert re.search(r'public\."Story" +triggers +id +not authorEmail', shown[2])
    assert re.search(r'public\."VideoAsset" +triggers +url +only url, checksum', shown[3])


def test_unwatch_stops_recording_and_loses_nothing_recorded(bare: Pair, start: Start) -> None:
    """What was recorded before still travels, what comes later does not."""
    outboxd = Cli(bare.settings)
    outboxd("watch", "Story")
    bare.write(STORIES, 2)
    said = outboxd("unwatch", "public.Story").err
    assert said.startswith('no longer watching public."Story"\n')
    assert "its mirror and the rows there stay: `outboxd schema plan` offers to drop what is outboxd's of it" in said
    bare.write(STORIES, 1)
    assert ended(start(bare.settings, "run", "--until-idle")) == 0
    assert bare.mirrored() == 2
    again = outboxd("unwatch", "Story")
    assert (again.code, again.err) == (1, 'error: public."Story" is not watched\n')


@pytest.mark.parametrize(
    ("ddl", "because"),
    [
        ("create table odd (a int)", "odd has no primary key: add one, or name a unique NOT NULL key"),
        ("create table odd (a int primary key deferrable)", "is DEFERRABLE: an insert does not wait for a concurrent delete"),
        ("create table odd (a float8 primary key)", r"key column a \(double precision\)"),
        ("create unlogged table odd (a int primary key)", "temporary or unlogged"),
        ("create view odd as select 1 as a", "is not a table"),
        ("create sequence odd cache 1; alter sequence outbox.change_id_seq cache 7", "has CACHE 7"),
        ("select 1", 'relation "odd" does not exist'),
    ],
)  # fmt: skip
def test_watch_refuses_what_would_lose_changes(bare: Pair, ddl: str, because: str) -> None:
    """One sentence with the reason, exit code 1, and nothing installed."""
    with bare.source.connect() as conn:
        conn.execute(ddl.encode())
    said = Cli(bare.settings)("watch", "odd")
    assert said.code == 1
    assert re.search(because, said.err)
    assert said.err.count("\n") == 1
    assert Cli(bare.settings)("watched", "--json").json() == []


def test_watch_says_when_the_target_has_no_such_table(bare: Pair) -> None:
    """It is watched all the same, and the statement for later is printed."""
    with bare.source.connect() as conn:
        conn.execute("create table news (id int primary key)")
    said = Cli(bare.settings)("watch", "news")
    assert said.code == 0
    assert (
        "the target has no table public.news yet: `outboxd schema apply` makes it; if you do,  select outboxd.map('public.news');"
        in said.err
    )


# status


def test_status_joins_both_stores_and_the_daemon(direct: Pair, start: Start) -> None:
    """Without a daemon the backlog is known all the same, and that nobody leads; with one, what it says of itself is
    added."""
    outboxd = Cli(direct.settings)
    direct.write(STORIES, 6)
    before = outboxd("status", "--json", admin_port=str(free_port()))
    assert before.code == 3
    assert before.json()["backlog_changes"] == 6
    assert before.json()["verdict"].startswith("nobody leads, so nothing moves: `outboxd run`; 6 changes wait")
    assert before.json()["daemon"] == "none answers on this machine"
    assert (before.json()["leader"], before.json()["standbys"]) == (None, [])
    assert re.search(r"^leader +nobody", outboxd("status", admin_port=str(free_port())).out, re.MULTILINE)
    daemon = streaming(start(direct.settings))
    direct.arrives()
    wait_until(lambda: (daemon.status() or {})["verdict"] == "in sync: nothing needs you")
    after = outboxd("status", "--json", admin_port=str(daemon.port)).json()
    assert (after["verdict"], after["state"], after["leads"]) == ("in sync: nothing needs you", "streaming", True)
    assert (after["backlog_changes"], after["applied_changes"], after["away"]) == (0, 6, [])
    shown = outboxd("status", admin_port=str(daemon.port)).out
    assert shown.startswith("verdict")
    assert re.search(r"^breaker +state closed", shown, re.MULTILINE)
    assert re.search(rf"^leader +who \S+:{daemon.pid}, since \S+Z, version \S+, backend \d+$", shown, re.MULTILINE)


@pytest.mark.parametrize("away", ["source", "target"])
def test_status_exits_75_and_names_the_store_that_is_away(direct: Pair, away: str) -> None:
    """A store that does not answer is named, in words and in JSON."""
    setting = {f"{away}_dsn": f"postgresql://postgres@127.0.0.1:{free_port()}/app"}
    said = Cli(direct.settings)("status", "--json", **setting)
    assert said.code == 75
    assert said.json()["away"] == [away]
    assert said.json()["verdict"] == f"{away} cannot be asked"


def test_status_exits_3_while_the_relay_waits_for_a_person(direct: Pair, start: Start) -> None:
    """A refused change of a table that is to halt: what it is, and that nothing is skipped meanwhile."""
    with direct.target.connect() as conn:
        conn.execute('alter table "Story" add constraint "too_long" check (length("title") < 5)')
    direct.write("""select outbox.on_error('public."Story"', 'halt')""")
    daemon = start(direct.settings)
    direct.write(STORIES, 2)
    wait_until(lambda: (daemon.status() or {}).get("state") == "paused")
    said = Cli(direct.settings)("status", "--json", admin_port=str(daemon.port))
    assert said.code == 3
    assert "too_long" in said.json()["verdict"]
    assert said.json()["backlog_changes"] == 2


# the rest


def test_config_show_tells_origins_and_no_secret(rest: Pair, supabase: EmbeddedSupabase, tmp_path: Path) -> None:
    """Each setting with its value and where it is from; passwords and keys are masked."""
    (tmp_path / "outboxd.toml").write_text('relay = "eu"\n')
    outboxd = Cli({**rest.settings, "source_dsn": "postgresql://app:hunter2@127.0.0.1/app"})
    shown, as_json = outboxd("config", "show"), outboxd("config", "show", "--json")
    values = as_json.json()
    assert values["relay"] == {"value": "eu", "from": "outboxd.toml"}
    assert values["source_dsn"]["from"] == "environment variable OUTBOXD_SOURCE_DSN"
    assert values["batch_changes"]["from"] == "default"
    for secret in ("hunter2", supabase.secret_key):
        assert secret not in shown.out + shown.err + as_json.out
    assert re.search(r"^relay +eu +outboxd.toml$", shown.out, re.MULTILINE)


def test_version_tells_what_runs() -> None:
    """For people a line each, for programs JSON; --version is the short form."""
    assert Cli({})("version", "--json").json().keys() == {"outboxd", "python", "psycopg", "supabase"}
    assert Cli({})("version").out.startswith(f"outboxd {__version__}\npython 3.")
    assert Cli({})("--version").out == f"outboxd, version {__version__}\n"


@pytest.mark.parametrize("command", [["check"], ["status"], ["run"], ["watched"], ["setup", "source"], ["watch", "a"]])
def test_missing_settings_exit_78_and_are_named(command: list[str]) -> None:
    """Whichever command needs it says which setting is missing and gives an example."""
    said = Cli({})(*command)
    assert said.code == 78
    assert "source_dsn is missing: set OUTBOXD_SOURCE_DSN or DATABASE_URL" in said.err
    assert "example: postgresql://" in said.err


UNREADABLE = {
    "a password with a percent sign": "postgresql://app:100%sure@127.0.0.1/app",
    "a password with a space": "postgresql://app:pass word@127.0.0.1/app",
    "an option that libpq does not know": "postgresql://app:100%25sure@127.0.0.1/app?sslmod=require",
    "a port that is none": "postgresql://app:pass%20word@127.0.0.1:5432x/app",
}
OF_SOURCE = [
    ["status"], ["check"], ["watched"], ["watch", "a"], ["unwatch", "a"], ["setup", "source"], ["backfill", "a"], ["verify"],
    ["rebase"], ["dead-letters", "list"], ["schema", "plan"], ["uninstall", "source"], ["run"], ["config", "show"],
]  # fmt: skip
OF_TARGET = [
    ["check"],
    ["setup", "target"],
    ["schema", "plan"],
    ["uninstall", "target"],
    ["run", "--strict"],
    ["watched"],
]


@pytest.mark.parametrize("which", ["source_dsn", "target_dsn"])
@pytest.mark.parametrize("address", UNREADABLE)
def test_an_address_that_nobody_can_read_is_bad_configuration(direct: Pair, address: str, which: str) -> None:
    """Not a store that is away, nor a schema that is missing: the setting is named, in every command, and no secret."""
    cli = Cli(direct.settings)
    for command in OF_SOURCE if which == "source_dsn" else OF_TARGET:
        said = cli(*command, **{which: UNREADABLE[address]})
        assert (said.code, f"  {which} " in said.err) == (78, True), (command, said)
        assert not re.search("100%|sure|pass word|pass%20word|sslmod=", said.err + said.out)


@pytest.mark.parametrize("address", UNREADABLE)
def test_of_the_targets_side_a_status_says_so_for_the_daemon_that_runs_without(direct: Pair, address: str) -> None:
    """Captures go on: that is a verdict, and 3, as for any other setting of that side."""
    said = Cli(direct.settings)("status", "--json", target_dsn=UNREADABLE[address])
    assert (said.code, said.json()["mode"], said.json()["away"]) == (3, "disabled", [])
    assert said.json()["verdict"].startswith("disabled: target_dsn ")


@pytest.mark.parametrize(
    "command", [["nonsense"], ["setup"], ["setup", "middle"], ["watch"], ["demo", "--seconds", "0"]]
)
def test_wrong_usage_exits_2(command: list[str]) -> None:
    """click's own code, with its own sentence."""
    said = Cli({})(*command)
    assert said.code == 2
    assert "Usage:" in said.err


@pytest.mark.parametrize("command", [["watch", "{}"], ["watch", "a", "--mask", "{}"], ["unwatch", "{}"], ["backfill", "{}"],
                                     ["verify", "{}"], ["dead-letters", "retry", "--table", "{}"]])  # fmt: skip
@pytest.mark.parametrize("name", ["a\0b", "a\udcffb"])
def test_a_name_that_no_database_can_have_is_wrong_usage(command: list[str], name: str) -> None:
    """A NUL, or bytes that are no UTF-8, wherever they stand."""
    said = Cli({})(*[word.format(name) for word in command])
    assert (said.code, "Error: an argument has a NUL byte, or is not in UTF-8" in said.err) == (2, True), said


def test_a_variable_that_is_misspelled(direct: Pair) -> None:
    told = Cli(direct.settings)("check", retenton="3600")
    assert told.code == 78 or "RETENTON" in (told.out + told.err).upper(), told


def test_the_installed_command_is_there() -> None:
    """`outboxd` on PATH, in an environment that has nothing but it."""
    command = Path(sys.executable).with_name("outboxd")
    answer = subprocess.run([command, "version", "--json"], capture_output=True, text=True, env={}, check=True)
    assert json.loads(answer.stdout)["outboxd"] == __version__
