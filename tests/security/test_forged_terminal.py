"""Names and messages that want more of a screen, a log or systemd than to be read."""

import json
import re
import socket
import unicodedata
from pathlib import Path

import pytest

from daemon import systemd
from daemon.demo.faults import Fault
from daemon.demo.supabase import EmbeddedSupabase
from outbox.migrations import literal
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import Pair, Start, streaming, wait_until

# Ends a line and begins another, sets a title, paints, turns around, hides, and looks like what stands for an escape.
EVIL = "x\nOK    source  all is well\r\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2066\u200b\u2028MAINPID=1\\x1b"
# Of a table: 63 bytes at most. Its twin differs in what cannot be seen.
NAME = "x\nMAINPID=1\r\x1b[2J\x9b31m\u202e\u200b\u2028\\x1b"
TWIN = NAME.replace("\u200b", "")
SHOWN = r"x\x0aOK    source  all is well\x0d\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2066\u200b\u2028MAINPID=1\x5cx1b"


def hurts(text: str) -> list[str]:
    """Characters that act or hide, and lines that somebody else has begun."""
    acting = [
        one for one in text if one != "\n" and unicodedata.category(one) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    ]
    return [ascii(one) for one in acting] + re.findall(r"(?m)^(?:OK    source  all is well|MAINPID=).*", text)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.fixture
def evil(rest: Pair) -> Pair:
    """A table of each of two names that differ in what cannot be seen, both with such a column; the target has but one."""
    with rest.source.connect() as source, rest.target.connect() as target:
        for name in (NAME, TWIN):
            made = f"create table {quoted(name)} (id int primary key, {quoted(NAME)} text)"
            source.execute(made.encode())
            source.execute("select outbox.watch(%s::regclass)", (quoted(name),))
            source.execute("select outbox.on_error(%s, 'halt')", (quoted(name),))
        target.execute(f"create table {quoted(NAME)} (id int primary key check (id < 5))".encode())
        target.execute("select outboxd.map(%s::regclass)", (quoted(NAME),))
    return rest


COMMANDS: list[tuple[str, ...]] = [
    ("check",), ("status",), ("watched",), ("schema", "plan"), ("schema", "status"), ("config", "show"), ("dead-letters", "list"),
    ("watch", f"public.{quoted(TWIN)}"), ("watch", f"no.{EVIL}"), ("watch", "--mask", EVIL, "x"), ("watch", f"--{EVIL}", "x"),
    ("unwatch", EVIL), (EVIL,), ("--config", f"no-{EVIL}", "status"), ("verify", EVIL), ("backfill", EVIL), ("setup", EVIL),
]  # fmt: skip


def test_no_command_lets_a_name_act(evil: Pair) -> None:
    """Names of both stores, arguments, paths: whatever a command prints is lines of what can be seen, and --json is JSON."""
    cli = Cli({**evil.settings, "target_dsn": evil.target.dsn})
    told = {}
    for command in COMMANDS:
        said = cli(*command)
        told[command[0]] = said.out + said.err
        assert not hurts(said.out + said.err), command
    for name in ("check", "watched", "schema"):
        assert r"\x0a" in told[name], name
    listed = cli("watched").out
    assert r"\u200b" in listed
    assert len({line.split("  ")[0] for line in listed.splitlines() if r"x\x0a" in line}) == 2
    for command in (("watched", "--json"), ("check", "--json"), ("status", "--json"), ("schema", "plan", "--json")):
        said = cli(*command)
        assert said.out.isascii()
        assert json.loads(said.out) is not None
        assert not hurts(said.out)


def test_what_is_to_be_pasted_works(evil: Pair) -> None:
    """A statement for the target, in Postgres. (A command, in bash: tests/unit/test_printable.py.)"""
    with evil.source.connect() as conn:
        assert conn.execute(f"select {literal(EVIL)}").fetchone() == (EVIL,)
    assert not hurts(literal(EVIL))


def test_the_log_and_systemd_hear_one_line(evil: Pair, start: Start, folder: Path) -> None:
    """A halted table's name is in the problem: STATUS= is all that systemd is told of it."""
    with evil.target.connect() as conn:
        conn.execute(f"alter table {quoted(NAME)} add column {quoted(NAME)} text".encode())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(folder / "notify"))
        heard.settimeout(30)
        environment = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "300000"}
        outboxd = start({**evil.settings, "log_format": "console"}, environment=environment)
        wait_until(outboxd.status)
        with evil.source.connect() as conn:
            conn.execute(f"insert into {quoted(NAME)} (id) values (9)".encode())
        wait_until(lambda: r"\x0a" in (outboxd.get("/api/status")[1]) or "\\n" in (outboxd.get("/api/status")[1]))

        def told() -> bool:
            message = heard.recv(65536).decode()
            assert not [line for line in message.splitlines() if line.split("=")[0] not in ALLOWED], message
            assert not hurts(message)
            return r"x\x0a" in message

        wait_until(told)
    assert outboxd.stop() == 0
    assert not hurts(outboxd.log.read_text())


ALLOWED = {"READY", "STATUS", "WATCHDOG", "STOPPING", "RELOADING", "MONOTONIC_USEC"}


def test_a_status_is_no_other_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        assert systemd.notify(status=EVIL + "y" * 100_000)
        message = heard.recv(200_000).decode()
    assert message.startswith("STATUS=" + SHOWN)
    assert len(message) < 2000


def test_a_gateways_words_are_not_shown(rest: Pair, supabase: EmbeddedSupabase, start: Start) -> None:
    """A page of HTML, a code, a header: none of it reaches the log, the pages or a command."""
    outboxd = streaming(start({**rest.settings, "log_format": "console"}))
    cli = Cli({**rest.settings, "admin_port": str(outboxd.port)})
    body = json.dumps({"code": EVIL, "message": EVIL, "hint": f"GRANT SELECT ON {EVIL} TO x"}).encode()
    for fault in (Fault.status(400, body), Fault.status(200, body)):
        before = outboxd.log.read_text().count("turn_failed")
        supabase.gateway.fault = fault
        rest.write("""insert into "Story" ("id", "title", "updatedAt") values (gen_random_uuid(), 'x', now())""")
        wait_until(lambda before=before: outboxd.log.read_text().count("turn_failed") > before)  # type: ignore[misc]
        said = cli("status")
        assert not hurts(said.out + said.err)
        assert "all is well" not in said.out + said.err + outboxd.log.read_text()
        supabase.gateway.fault = None
    assert not hurts(outboxd.log.read_text())


def test_one_place_writes_to_the_terminal() -> None:
    """Whoever prints besides daemon.talk would have to think of all this again."""
    speaks = re.compile(r"click\.(?:echo|secho|confirm|prompt|style)\(|\bprint\(|sys\.std(?:out|err)\.write")
    here = Path(systemd.__file__).parent
    found = {path.name for path in here.glob("*.py") if speaks.search(path.read_text()) and path.name != "talk.py"}
    assert found == set()
