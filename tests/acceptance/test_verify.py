"""`outboxd verify`: by the daemon, by the command alone, with repair; what it prints, and how it exits."""

import re
import signal
import time
from pathlib import Path

import pytest

from daemon import cli_verify
from daemon.demo.faults import Fault
from daemon.demo.process import free_port
from daemon.demo.supabase import EmbeddedSupabase
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import STORIES, Pair, Start, ended, measured, streaming, wait_until

STORY = 'public."Story"'
ROWS = 300
CANARY = "canary-7731"
_MISSING, _DIFFERENT, _EXTRA = (f"{n}0000000-0000-4000-8000-000000000000" for n in (1, 2, 3))
_INSERT = """insert into "Story" ("id", "title", "updatedAt") values ('{id}', '{title}', now())"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stories(request: pytest.FixtureRequest) -> Pair:
    """Stories that are on both sides, two of them by name."""
    pair: Pair = request.getfixturevalue(request.param)
    pair.write(STORIES, ROWS - 2)
    pair.write(_INSERT.format(id=_MISSING, title="one") + ";" + _INSERT.format(id=_DIFFERENT, title="two"))
    assert Cli(pair.settings)("run", "--until-idle", verify_interval="0").code == 0
    pair.arrives()
    return pair


def drift(pair: Pair) -> None:
    """Somebody writes to the mirror: one row is missing, one differs, one is too much."""
    with pair.target.connect() as target:
        target.execute(f"""delete from "Story" where id = '{_MISSING}'""".encode())
        target.execute(f"""update "Story" set title = '{CANARY}' where id = '{_DIFFERENT}'""".encode())
        another = f"""insert into "Story" select '{_EXTRA}', '{CANARY}', null, true, null, '{{}}', now(), now()"""
        target.execute(another.encode())


def passed(pair: Pair) -> tuple[str, int]:
    """The target's record of the pass through the stories."""
    found = pair.ask(pair.target, f"select state, rows from outboxd.verification where table_name = '{STORY}'")
    return found[0] if found else ("", 0)


@pytest.mark.parametrize("stories", ["direct", "rest"], indirect=True)
def test_without_a_daemon_the_command_compares_and_repairs_by_itself(stories: Pair) -> None:
    verify = Cli(stories.settings)
    said = verify("verify")
    assert said.code == 0, said
    assert said.err.startswith("comparing\n")
    assert re.search(r"^every row is equal, of all that had committed by \d{4}-\S+Z$", said.err, re.MULTILINE)
    assert [line.split()[:3] for line in said.out.splitlines()[1:]] == [
        ['public."Prompt"', "0", "yes"],
        ['public."Scenario"', "0", "yes"],
        [STORY, str(ROWS), "yes"],
        ['public."VideoAsset"', "0", "yes"],
    ]
    drift(stories)
    said = verify("verify", "public.Story")
    assert said.code == 3, said
    head, counts, _, title, *samples = said.out.splitlines()
    assert head.split() == [
        "TABLE",
        "ROWS",
        "EQUAL",
        "MISSING",
        "DIFFERENT",
        "EXTRA",
        "HELD",
        "REPAIRED",
        "VERIFIED",
        "THROUGH",
    ]
    assert counts.split()[:-1] == [STORY, str(ROWS), "NO", "1", "1", "1", "0", "0"]
    assert title == f"{STORY}: 3 differ, 3 shown"
    assert sorted(samples) == [
        f'  different  {{"id":"{_DIFFERENT}"}}  title',
        f'  extra      {{"id":"{_EXTRA}"}}',
        f'  missing    {{"id":"{_MISSING}"}}',
    ]
    assert f"3 rows of {STORY} differ: `outboxd verify '{STORY}' --repair` writes them again" in said.err
    assert CANARY not in said.out + said.err
    told = verify("verify", "public.Story", "--repair", "--json").json()
    assert (told["equal"], told["rows"]) == (True, ROWS)
    assert told["verdict"] == "every row is equal, 3 of them after being written again"
    [one] = told["tables"]
    assert told["through"] == one["through"]
    assert (one["state"], one["rows"], one["drift"], one["repaired"], one["samples"]) == ("equal", ROWS, 0, 3, [])
    stories.arrives()


@pytest.mark.parametrize("stories", ["rest"], indirect=True)
def test_beside_a_daemon_the_daemon_compares_and_status_tells_what_it_found(stories: Pair, start: Start) -> None:
    outboxd, cli = streaming(start(stories.settings)), Cli(stories.settings)
    beside = {"admin_port": str(outboxd.port)}
    drift(stories)
    said = cli("verify", "Story", "--json")
    assert said.code == 3, said
    assert said.err.startswith("the daemon that runs compares; to interrupt this does not stop it\n")
    assert (said.json()["equal"], said.json()["verdict"]) == (False, "3 rows differ")
    [one] = said.json()["tables"]
    assert [one[name] for name in ("table", "state", "rows", "missing", "different", "extra", "drift", "held")] == [
        STORY, "differs", ROWS, 1, 1, 1, 3, 0,
    ]  # fmt: skip
    assert {row["kind"] for row in one["samples"]} == {"missing", "different", "extra"}
    told = f"3 rows of {STORY} differ: `outboxd verify '{STORY}' --repair`"
    assert told in (outboxd.status() or {})["verdict"]
    status = cli("status", **beside)
    assert status.code == 3, "it needs you"
    assert told in status.out
    assert f"{STORY} {one['through']} {ROWS} 3 0".split() in [line.split() for line in status.out.splitlines()]
    assert measured(outboxd, 'outboxd_drift_rows{kind="extra",table="public.\\"Story\\""}') == 1

    said = cli("verify", "Story", "--repair")
    assert said.code == 0, said
    assert said.out.splitlines()[1].split()[:-1] == [STORY, str(ROWS), "yes", "0", "0", "0", "0", "3"]
    assert "every row is equal, 3 of them after being written again" in said.err
    stories.arrives()
    status = cli("status", "--json", **beside)
    assert (status.code, status.json()["verdict"]) == (0, "in sync: nothing needs you"), status
    assert "differ" not in status.json()["verdict"]
    [one] = [one for one in status.json()["verifications"] if one["table"] == STORY]
    assert (one["state"], one["rows"], one["drift"]) == ("done", ROWS, {"missing": 0, "different": 0, "extra": 0})
    assert outboxd.returncode is None
    assert CANARY not in outboxd.log.read_text()


@pytest.mark.parametrize("stories", ["direct"], indirect=True)
def test_a_command_that_is_interrupted_leaves_the_daemon_at_it(stories: Pair, start: Start) -> None:
    """The mirror is locked until the command is gone: so the pass is under way then."""
    outboxd = streaming(start({**stories.settings, "verify_interval": "0"}))
    with stories.target.connect(autocommit=False) as blocking:
        blocking.execute("""lock table "Story" in access exclusive mode""")
        command = start(stories.settings, "verify", "public.Story")
        wait_until(lambda: passed(stories)[0] == "running")
        wait_until(lambda: "the daemon that runs compares" in command.last_words())
        command.send(signal.SIGINT)
        assert ended(command) == 1
        assert passed(stories) == ("running", 0)
    wait_until(lambda: passed(stories) == ("done", ROWS))
    assert outboxd.returncode is None


@pytest.mark.parametrize("stories", ["direct"], indirect=True)
def test_a_command_whose_daemon_goes_says_so_and_sees_the_next_one_do_it(stories: Pair, start: Start) -> None:
    outboxd = streaming(start(stories.settings))
    with stories.target.connect(autocommit=False) as blocking:
        blocking.execute("""lock table "Story" in access exclusive mode""")
        command = start(stories.settings, "verify", "public.Story")
        wait_until(lambda: passed(stories)[0] == "running")
        wait_until(lambda: "the daemon that runs compares" in command.last_words())
        assert Cli(stories.settings)("status", "--json").json()["standbys"] == [], "a command that watches is none"
        outboxd.kill()
        wait_until(lambda: "waiting: the daemon is gone" in command.last_words())
        streaming(start(stories.settings))
    assert ended(command) == 0
    assert "every row is equal" in command.last_words()


@pytest.mark.parametrize("stories", ["direct"], indirect=True)
def test_a_table_that_is_out_or_being_copied_is_not_compared_and_says_so(stories: Pair, start: Start) -> None:
    outboxd, cli = streaming(start({**stories.settings, "copy_rows_per_second": "10"})), Cli(stories.settings)
    stories.ask(stories.source, f"""select outbox.ask_copy('{STORY}')""")
    wait_until(lambda: stories.ask(stories.target, "select 1 from outboxd.copy where state = 'copying'"))
    said = cli("verify", "Story")
    assert said.code == 3, said
    assert f"{STORY} is being copied: once that is done it is compared by itself" in said.err
    assert said.out.splitlines()[1].split()[:3] == [STORY, "-", "copying"]

    with stories.target.connect() as conn:
        conn.execute("""alter table "Story" rename to "Tale" """)
    stories.write(STORIES, 1)
    wait_until(lambda: measured(outboxd, 'outboxd_copy_tables{state="out"}') == 1)
    said = cli("verify")
    assert said.code == 3, said
    assert f"{STORY} is out: the target has no table {STORY}" in said.err
    assert [line.split()[2] for line in said.out.splitlines()[1:]] == ["yes", "yes", "out", "yes"]
    assert [one["state"] for one in cli("verify", "Story", "--json").json()["tables"]] == ["out"]


@pytest.mark.parametrize("stories", ["direct"], indirect=True)
def test_a_pass_that_fails_says_why_and_so_does_status(stories: Pair) -> None:
    """A column there can no longer be read as what the source has."""
    with stories.target.connect() as conn:
        conn.execute("""alter table "Story" alter title type int using 0""")
    cli = Cli(stories.settings)
    said = cli("verify", "Story")
    assert said.code == 3, said
    why = f"{STORY} could not be compared: the target cannot compare its rows (22P02)"
    assert why in said.err
    assert said.out.splitlines()[1].split()[2] == "failed"
    status = cli("status")
    assert status.code == 3, status
    assert why in status.out


@pytest.mark.parametrize("stories", ["direct"], indirect=True)
def test_held_rows_are_counted_apart(stories: Pair, start: Start) -> None:
    with stories.target.connect() as conn:
        conn.execute("""alter table "Story" add constraint tame check (title not like 'canary%')""")
    outboxd = streaming(start(stories.settings))
    stories.write(f"""update "Story" set title = '{CANARY}' where id = '{_DIFFERENT}'""")
    wait_until(lambda: (outboxd.status() or {}).get("held_keys") == 1)
    said = Cli(stories.settings)("verify", "Story")
    assert said.code == 0, said
    assert f"1 row of {STORY} waits as dead letters: `outboxd dead-letters list`" in said.err
    assert "but held" in said.out
    assert CANARY not in said.out + said.err


@pytest.mark.parametrize("stories", ["direct"], indirect=True)
def test_what_cannot_be_compared_gets_a_sentence(stories: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = Cli(stories.settings)
    said = cli("verify", "public.nothing")
    assert (said.code, said.err) == (1, "error: public.nothing is neither watched nor mapped\n")
    stories.ask(stories.source, "select outbox.map('public.card', array['id'])")
    said = cli("verify", "public.card")
    assert said.code == 1
    assert "public.card is emitted by the application: its rows are not known here" in said.err
    assert "public.card" not in cli("verify").out, "of all watched tables those that are captured"
    monkeypatch.setattr(cli_verify, "_PATIENCE", 0.5)
    said = cli("verify", target_dsn=f"postgresql://nobody@127.0.0.1:{free_port()}/nothing")
    assert said.code == 75, said
    assert "waiting: " in said.err
    assert "error: gave up after" in said.err
    for one in cli("watched", "--json").json():
        stories.ask(stories.source, "select outbox.unwatch(%s)", one["table"])
    assert (
        cli("verify").err
        == "error: no table is watched, so there is nothing to compare: outboxd watch public.your_table\n"
    )


@pytest.mark.parametrize("command", [("verify",), ("backfill", "Story")])
@pytest.mark.parametrize("stories", ["rest"], indirect=True)
def test_a_command_ends_with_supabase_away(
    stories: Pair, supabase: EmbeddedSupabase, command: tuple[str, ...], start: Start
) -> None:
    """A morning job does not hang, whoever does the work: 75, as of `run`, also while the gateway asks for a pause."""
    cli = Cli(stories.settings)
    supabase.gateway.fault = Fault.status(429, b"")
    said = cli(*command, "--timeout", "1")
    assert said.code == 75, said
    assert "error: not done within 1 s (" in said.err
    supabase.gateway.fault = Fault.status(503, b"")
    assert cli(*command, "--timeout", "1").code == 75
    supabase.gateway.fault = None
    streaming(start(stories.settings))
    supabase.gateway.fault = Fault.status(503, b"")
    said = cli(*command, "--timeout", "1")
    assert said.code == 75, said
    supabase.gateway.fault = None


@pytest.mark.parametrize("stories", ["rest"], indirect=True)
def test_a_command_that_is_asked_to_pause_exits_as_run_does(stories: Pair, supabase: EmbeddedSupabase) -> None:
    supabase.gateway.fault = Fault.status(429, b"")
    for command in (("run", "--until-idle"), ("rebase",)):
        assert Cli(stories.settings)(*command).code == 75, command
    supabase.gateway.fault = None


@pytest.mark.parametrize("stories", ["direct"], indirect=True)
def test_an_empty_table_that_the_target_lacks_is_not_on_the_target(stories: Pair, start: Start) -> None:
    """No failure and no alert: it is named with its command, and compared within seconds of being there."""
    outboxd, cli = streaming(start(stories.settings)), Cli(stories.settings)
    stories.write("create table news (id int primary key)")
    assert cli("watch", "news").code == 0
    said = cli("verify", "news")
    assert said.code == 3, said
    assert "public.news is not on the target: `outboxd schema apply`" in said.err
    assert "OB00" not in said.err
    beside = {"admin_port": str(outboxd.port)}
    wait_until(lambda: "public.news is not on the target" in (outboxd.status() or {})["verdict"])
    assert cli("status", **beside).code == 3
    assert cli("schema", "apply", "--yes").code == 0
    wait_until(lambda: (outboxd.status() or {})["verdict"] == "in sync: nothing needs you", 40)
    wait_until(lambda: measured(outboxd, 'outboxd_verification_tables{state="done"}') == 5, 40)
    assert cli("verify", "news").code == 0


@pytest.mark.parametrize("stories", ["direct"], indirect=True)
def test_after_schema_apply_a_table_that_is_out_is_copied_at_once(stories: Pair, start: Start) -> None:
    """The daemon looks whether it fits every 15 s; it does not wait for that when it is told."""
    outboxd, cli = streaming(start(stories.settings)), Cli(stories.settings)
    stories.write("create table news (id int primary key)")
    assert cli("watch", "news").code == 0
    stories.write("insert into news values (1)")
    wait_until(lambda: measured(outboxd, 'outboxd_copy_tables{state="out"}') == 1)
    assert cli("schema", "apply", "--yes").code == 0
    began = time.monotonic()
    wait_until(lambda: stories.ask(stories.target, "select count(*) from news") == [(1,)])
    assert time.monotonic() - began < 10
