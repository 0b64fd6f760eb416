"""The unit: what systemd makes of it, and the process as the unit runs it, over a real notify socket."""

import ctypes
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psycopg
import pytest

from daemon import main, serving, systemd
from daemon.cli import AWAY, CONFIG
from daemon.configuration import load
from daemon.demo.child import Outboxd
from daemon.failpoint import VARIABLE
from daemon.settings import SECRETS
from tests.acceptance.conftest import STORIES, Pair, Start, ended, wait_until
from tests.acceptance.counting import count_writes, effects
from tests.databases import Database
from tests.deploy import confined

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = FOLDER / "outboxd.service"
PATIENCE = 60.0
BEFORE_A_TURN = 20.0  # seconds: with its breaker open the relay turns every 30 s
_CUT = "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and application_name like 'outboxd%%'"

# The daemon with less patience with its own loop than the 35 s that it has by itself: a second and a half.
_IMPATIENT = (
    "from daemon import report; report._STUCK = -18.5; import sys; from daemon.cli import main; main(sys.argv[5:])"
)


def said(text: str) -> dict[str, list[str]]:
    """Each directive of a unit, with every value it was given."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


SAID = said(UNIT.read_text("utf-8"))


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = shutil.which("systemd-analyze")
    if command is None:
        pytest.skip("systemd-analyze is not installed (Debian: apt-get install systemd)")
    return subprocess.run([command, "--no-pager", *arguments], capture_output=True, text=True, check=False)


def copy(text: str, folder: Path) -> Path:
    """The unit with a program that exists here."""
    unit = folder / "outboxd.service"
    unit.write_text(text.replace("/opt/outboxd/bin/outboxd", sys.executable))
    return unit


# -- the file --------------------------------------------------------------------------------------------------


def test_systemd_has_nothing_to_say_against_it(tmp_path: Path) -> None:
    """`systemd-analyze verify` ends with 0 and prints nothing; an option it does not know would be named."""
    text = UNIT.read_text("utf-8")
    clean = analyze("verify", "--man=no", "--recursive-errors=no", copy(text, tmp_path))
    assert (clean.returncode, clean.stdout, clean.stderr) == (0, "", "")
    misspelt = analyze("verify", "--man=no", "--recursive-errors=no", copy(text.replace("UMask=", "UMsk="), tmp_path))
    assert re.search("Unknown key.*'UMsk'", misspelt.stderr)  # later versions say it in other words


def test_its_exposure_is_low(tmp_path: Path) -> None:
    """At most 1.2 of 10, by systemd's own count; without its hardening it would be far above."""
    text = UNIT.read_text("utf-8")
    hardened = analyze("security", "--offline=true", "--threshold=12", copy(text, tmp_path))
    print(*re.findall(r"Overall exposure level .*", hardened.stdout))
    assert hardened.returncode == 0, hardened.stdout
    bare = re.sub(
        r"^(?:Protect|Private|Restrict|SystemCall|Capability|Dynamic|NoNew)\w+=.*\n", "", text, flags=re.MULTILINE
    )
    assert analyze("security", "--offline=true", "--threshold=15", copy(bare, tmp_path)).returncode == 1


def test_it_fits_the_daemon() -> None:
    """Exit codes, patience, places of secrets: what the unit says is what the daemon does."""
    assert SAID["Type"] == ["notify"]
    assert SAID["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert (SAID["Restart"], SAID["RestartPreventExitStatus"]) == (["always"], [str(CONFIG)])
    assert (SAID["StartLimitIntervalSec"], main.AWAY) == (["0"], AWAY)
    assert int(SAID["TimeoutStopSec"][0].rstrip("s")) > main._LAST_TURN + 20
    assert "ProcSubset" not in SAID  # prometheus_client reads /proc/stat
    assert SAID["LimitCORE"] == ["0"]
    assert serving.MOST + 100 < int(SAID["LimitNOFILE"][0]) <= 1024
    assert not any(re.search(r"(?:dsn|key|password)=", line, re.IGNORECASE) for line in SAID["Environment"])


def test_the_example_of_settings_and_the_credentials_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """outboxd.toml as it is shipped, beside files as LoadCredential names them: a folder's each, behind its own name."""
    shutil.copy(FOLDER / "outboxd.toml", tmp_path / "outboxd.toml")
    values = {"source_dsn": "host=db user=outboxd", "supabase_key": "sb_secret_0123456789", "target_dsn": "host=there"}
    assert set(values) == set(SECRETS)
    credentials = put_credentials(tmp_path, values)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    settings = load()
    assert settings.supabase_url == "https://abcdefghijklmnopqrst.supabase.co"
    for name, value in values.items():
        assert getattr(settings, name).get_secret_value() == value
    # What is commented out is right, too.
    shown = re.sub(r"^# (?=\w+ = )", "", (FOLDER / "outboxd.toml").read_text("utf-8"), flags=re.MULTILINE)
    (tmp_path / "outboxd.toml").write_text(shown)
    assert load().admin_host == "10.0.0.7"


def put_credentials(folder: Path, values: Mapping[str, str]) -> Path:
    """A folder as systemd makes one from the unit's LoadCredential=, which names a folder, too."""
    ((prefix, _, where),) = [value.partition(":") for value in SAID["LoadCredential"]]
    assert Path(where).is_absolute()
    credentials = folder / "credentials"
    credentials.mkdir()
    for name, value in values.items():
        file = credentials / f"{prefix}_{name}"
        file.write_text(f"{value}\n")
        file.chmod(0o400)
    return credentials


# -- the process -----------------------------------------------------------------------------------------------


class Listening:
    """systemd's end of the notify socket: what was heard, and when. It reads all the time, as systemd does."""

    def __init__(self, path: Path) -> None:
        self.heard: list[tuple[float, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0.1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="notify", daemon=True)
        self.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "300000"}
        self.environment |= dict(each.split("=", 1) for each in SAID["Environment"])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._socket.close()

    @property
    def states(self) -> list[str]:
        return [state for _, state in self.heard]

    def silent_for(self, start: str) -> float:
        """Seconds since something that begins like this was heard."""
        return time.monotonic() - max(when for when, state in self.heard if state.startswith(start))

    def hears(self, state: str, times: int = 1, deadline: float = PATIENCE) -> None:
        """Wait until it has been said so many times more from now on."""
        before = self.states.count(state)
        wait_until(lambda: self.states.count(state) >= before + times, deadline)

    def _read(self) -> None:
        while not self._stopped.is_set():
            try:
                states = self._socket.recv(4096).decode().split("\n")
            except TimeoutError:
                continue
            self.heard += [(time.monotonic(), state) for state in states]


@pytest.fixture
def supervisor(folder: Path) -> Iterator[Listening]:
    with Listening(folder / "notify") as listening:
        yield listening


@pytest.fixture
def impatient(folder: Path, supervisor: Listening) -> Iterator[Callable[..., Outboxd]]:
    """Start a daemon that soon takes its own loop for stuck."""
    started: list[Outboxd] = []

    def starting(settings: Mapping[str, str], failpoint: str | None = None) -> Outboxd:
        environment = {**supervisor.environment, **({VARIABLE: failpoint} if failpoint else {})}
        enter = [sys.executable, "-P", "-c", _IMPATIENT]
        started.append(Outboxd(folder, settings, environment=environment, enter=enter))
        started[-1].start()
        return started[-1]

    yield starting
    for one in started:
        if one.returncode is None:
            one.stop()
        print(f"{one.log.name}: {one.last_words()}")


def test_it_is_ready_then_pings_then_stops_with_the_batch_in_hand(
    direct: Pair, start: Start, supervisor: Listening, folder: Path
) -> None:
    """Started as the unit starts it, its secrets in a folder of credentials: READY, a STATUS in words, WATCHDOG again and
    again; STOPPING as soon as it is told to, exit 0 once the batch that hangs is through."""
    secrets = {name: direct.settings[name] for name in SECRETS if name in direct.settings}
    credentials = put_credentials(folder, secrets)
    rest = {name: value for name, value in direct.settings.items() if name not in secrets}
    outboxd = start(rest, environment={**supervisor.environment, "CREDENTIALS_DIRECTORY": str(credentials)})
    wait_until(lambda: "STATUS=streaming: nothing needs you" in supervisor.states, PATIENCE)
    supervisor.hears("WATCHDOG=1", 3)
    assert supervisor.states.index("READY=1") < supervisor.states.index("WATCHDOG=1")
    assert "STOPPING=1" not in supervisor.states
    with direct.target.connect(autocommit=False) as holds:
        holds.execute('lock table "Story" in share row exclusive mode')
        direct.write(STORIES, 20)
        wait_until(lambda: direct.ask(direct.target, "select from pg_locks where not granted"), PATIENCE)
        outboxd.send(signal.SIGTERM)
        wait_until(lambda: "STOPPING=1" in supervisor.states, PATIENCE)
        supervisor.hears("WATCHDOG=1")
        assert outboxd.returncode is None
    assert ended(outboxd, PATIENCE) == 0
    assert direct.mirrored() == 20


@contextmanager
def away(database: Database) -> Iterator[None]:
    """Nobody can connect to it, and the daemon is cut off."""
    with psycopg.connect(database.cluster.dsn(), autocommit=True) as server:
        server.execute(f"alter database {database.name} allow_connections false")
        server.execute(_CUT, (database.name,))
        try:
            yield
        finally:
            server.execute(f"alter database {database.name} allow_connections true")


def test_an_outage_is_no_reason_to_be_started_again(
    direct: Pair, impatient: Callable[..., Outboxd], supervisor: Listening
) -> None:
    """While the target is away, its breaker open for a minute, and then the source as well: pings go on, far beyond the
    time for which a loop may stand still."""
    outboxd = impatient({**direct.settings, "breaker__open_first": "60", "breaker__open_cap": "60"})
    wait_until(lambda: "STATUS=streaming: nothing needs you" in supervisor.states, PATIENCE)
    with away(direct.target):
        direct.write(STORIES, 5)
        wait_until(lambda: ((outboxd.status() or {}).get("breaker") or {}).get("state") == "open", PATIENCE)
        supervisor.hears("WATCHDOG=1", 25, BEFORE_A_TURN)
        with away(direct.source):
            wait_until(
                lambda: any("no connection to the source" in state for state in supervisor.states[-5:]), PATIENCE
            )
            supervisor.hears("WATCHDOG=1", 25, BEFORE_A_TURN)
        assert outboxd.returncode is None
        assert "STOPPING=1" not in supervisor.states


@pytest.mark.parametrize("failpoint", ["after_read:hang", "before_send:freeze"])
def test_a_loop_that_stands_still_pings_no_more_and_the_next_process_goes_on(
    direct: Pair, start: Start, impatient: Callable[..., Outboxd], supervisor: Listening, failpoint: str
) -> None:
    """The relay alone waits for ever while everything else in the process goes on; or the process stands still as a whole.
    systemd ends it (SIGABRT, and says in the log where it was); the next one brings every row, once."""
    pair = count_writes(direct)
    outboxd = impatient(pair.settings, failpoint)
    wait_until(lambda: "READY=1" in supervisor.states, PATIENCE)
    supervisor.hears("WATCHDOG=1", 2)
    pair.write(STORIES, 20)
    wait_until(lambda: supervisor.silent_for("WATCHDOG=1") > 2, PATIENCE)
    if failpoint.endswith("hang"):
        assert supervisor.silent_for("STATUS=") < supervisor.silent_for("WATCHDOG=1")
        ((installation,),) = pair.ask(pair.source, "select id::text from outbox.installation")
        whose = f'"relay":"main","installation":"{installation}"'
        assert outboxd.get("/livez") == (503, f'{{"alive":false,{whose}}}')
    assert pair.mirrored() == 0
    outboxd.send(signal.SIGABRT)
    outboxd.send(signal.SIGCONT)  # as systemd does after each of its signals
    assert ended(outboxd, PATIENCE) == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in outboxd.log.read_text()
    start(pair.settings)
    wait_until(lambda: pair.mirrored() == 20, PATIENCE)
    pair.arrives(PATIENCE)
    recorded, written = effects(pair)
    assert written == recorded


def test_it_does_its_work_under_the_units_filter_of_system_calls(
    direct: Pair, folder: Path, supervisor: Listening
) -> None:
    """What the unit allows of system calls, memory and address families is enough to start, move, be asked and end."""
    analyze("--version")
    try:
        ctypes.CDLL(confined.LIBRARY)
    except OSError:
        pytest.skip(f"{confined.LIBRARY} is not installed (Debian: apt-get install libseccomp2)")
    enter = [sys.executable, "-P", confined.__file__, str(UNIT)]
    outboxd = Outboxd(folder, direct.settings, environment=supervisor.environment, enter=enter)
    outboxd.start()
    try:
        wait_until(lambda: "STATUS=streaming: nothing needs you" in supervisor.states, PATIENCE)
        seccomp = re.search(r"^Seccomp:\s+(\d)", Path(f"/proc/{outboxd.pid}/status").read_text(), re.MULTILINE)
        assert seccomp is not None
        assert seccomp[1] == "2"
        direct.write(STORIES, 20)
        direct.arrives(PATIENCE)
        assert "process_resident_memory_bytes" in outboxd.get("/metrics")[1]
        outboxd.send(signal.SIGHUP)
        wait_until(lambda: "RELOADING=1" in supervisor.states, PATIENCE)
        assert outboxd.stop(PATIENCE) == 0
    finally:
        outboxd.kill()


def test_a_notify_socket_that_nobody_reads_holds_nothing_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd itself may hang: what cannot be said is not said, within a moment."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(folder / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        assert systemd.notify(ready=1)
        wait_until(lambda: not systemd.notify(watchdog=1))
        began = time.monotonic()
        assert not systemd.notify(status="streaming")
        assert time.monotonic() - began < 5
