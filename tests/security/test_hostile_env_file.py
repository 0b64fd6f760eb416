"""A folder that somebody else prepared: a .env, an outboxd.toml, a file with a key. What the environment says holds, no
file of another's is believed, and no key goes where a folder sends it."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from daemon import configuration
from daemon.configuration import ConfigError, load, load_admin, load_without_target
from daemon.demo.binaries import shared_folder
from daemon.private import read
from daemon.provenance import Problem
from daemon.settings import ALIASES, redacted
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import Pair, Start, streaming

KEY = "sb_secret_N7UND0UgjKTVK-Uodkm0Hg_xSvEMPvz"
EVIL = "https://evil.example"
URL = "https://abcdefghijklmnopqrst.supabase.co"
NOBODY = 65534
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where somebody works: nothing set, nothing there."""
    for variable in list(os.environ):
        if variable.upper().startswith(("OUTBOXD_", "PG", *ALIASES)) or variable == "CREDENTIALS_DIRECTORY":
            monkeypatch.delenv(variable)
    monkeypatch.setattr(configuration, "SECRETS_FOLDER", tmp_path / "mounted")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def refused() -> list[Problem]:
    with pytest.raises(ConfigError) as said:
        load(needs=())
    assert "N7UND0" not in str(said.value)
    return list(said.value.problems)


# -- the environment first -------------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs", ["SUPABASE_URL", "OUTBOXD_SUPABASE_URL"])
@pytest.mark.parametrize("mine", ["SUPABASE_URL", "OUTBOXD_SUPABASE_URL"])
def test_the_environment_wins_under_whatever_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mine: str, theirs: str
) -> None:
    """Over .env, over outboxd.toml."""
    monkeypatch.setenv(mine, URL)
    monkeypatch.setenv("SUPABASE_SECRET_KEY", KEY)
    put(folder / ".env", f"{theirs}={EVIL}\n")
    put(folder / "outboxd.toml", f'supabase_url = "{EVIL}"\n')
    settings = load(needs=())
    assert settings.supabase_url == URL
    assert str(redacted(settings)["supabase_url"]["from"]).startswith(f"environment variable {mine}")


def test_where_another_would_be_expected_to_win_it_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://app@db/app")
    put(folder / ".env", "OUTBOXD_SOURCE_DSN=postgresql://outboxd@db/app\n")
    assert redacted(load(needs=()))["source_dsn"]["from"] == (
        "environment variable DATABASE_URL (not OUTBOXD_SOURCE_DSN in .env, which differs)"
    )


@pytest.mark.parametrize("name", ["OUTBOXD_CONFIG", "OUTBOXD_SUPABASE_KEY_FILE", "DATABASE_URL_FILE"])
def test_where_secrets_lie_is_no_matter_of_a_file(folder: Path, name: str) -> None:
    put(folder / "planted", KEY)
    put(folder / ".env", f"{name}={folder}/planted\n")
    assert refused() == [Problem(name, "is taken from the environment alone", origin=f"{name} in .env")]


def test_a_folder_of_credentials_is_named_by_the_environment_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "planted").mkdir()
    put(folder / "planted" / "supabase_key", KEY)
    put(
        folder / ".env",
        f"CREDENTIALS_DIRECTORY={folder}/planted\nPGPASSFILE=/planted\nSSL_CERT_FILE=/planted\nHTTPS_PROXY=/planted\n",
    )
    assert load(needs=()).supabase_key is None
    assert "/planted" not in os.environ.values()  # libpq and TLS ask the environment
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder / "planted"))
    assert load(needs=()).key_kind == "secret"


# -- whose file it is ------------------------------------------------------------------------------------------

FILES = {
    ".env": (".env", "OUTBOXD_RELAY=theirs\n", ".env"),
    "outboxd.toml": ("outboxd.toml", 'relay = "theirs"\n', "outboxd.toml"),
    "named": ("key", KEY, "supabase_key"),
}


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """Each kind of file, and the setting that a problem with it is said of."""
    name, text, setting = FILES[request.param]
    if name == "key":
        monkeypatch.setenv("OUTBOXD_SUPABASE_KEY_FILE", str(folder / name))
    return put(folder / name, text), setting


def test_a_file_that_others_may_write_is_refused(file: tuple[Path, str]) -> None:
    """With the command that mends it, which does."""
    path, setting = file
    for mode in (0o620, 0o602, 0o666, 0o660):
        path.chmod(mode)
        found = [one for one in refused() if "written" in one.what]
        assert [one.setting for one in found] == [setting], oct(mode)
        (_, command) = found[0].what.split(": ", 1)
        subprocess.run(command, shell=True, check=True)  # noqa: S602
        path.chmod(path.stat().st_mode & ~0o004)
        load(needs=())


@root_only
def test_a_file_of_another_user_is_refused(file: tuple[Path, str]) -> None:
    """Nothing it says is used, not even by a probe."""
    path, setting = file
    os.chown(path, NOBODY, -1)
    found = refused()
    assert [one.setting for one in found] == [setting]
    assert "belongs to another user" in found[0].what
    assert load_admin().relay == "main"


@root_only
def test_a_link_of_another_user_is_refused(file: tuple[Path, str]) -> None:
    """In a folder like /tmp anybody can make one, to any file of ours."""
    path, _ = file
    path.rename(path.parent / "mine")
    path.symlink_to(path.parent / "mine")
    load(needs=())
    os.chown(path, NOBODY, -1, follow_symlinks=False)
    assert "belongs to another user" in refused()[0].what


def test_a_link_is_as_good_as_what_it_leads_to(file: tuple[Path, str], folder: Path) -> None:
    path, _ = file
    (folder / "elsewhere").mkdir()
    moved = path.rename(folder / "elsewhere" / "real")
    path.symlink_to(moved)
    load(needs=())
    moved.chmod(0o602)
    assert "written by other users" in refused()[0].what
    moved.chmod(0o600)
    (folder / "elsewhere").chmod(0o777)
    assert "lies in a folder that every user may write to: chmod o-w" in refused()[0].what


def test_a_folder_that_every_user_may_write_to_is_refused(file: tuple[Path, str], folder: Path) -> None:
    """Except with the sticky bit, as /tmp has it: there nobody can take another's file away."""
    folder.chmod(0o777)
    assert f"chmod o-w {folder}" in refused()[0].what
    folder.chmod(0o1777)
    load(needs=())
    folder.chmod(0o755)


@root_only
def test_a_folder_of_another_user_is_refused(file: tuple[Path, str], folder: Path) -> None:
    os.chown(folder, NOBODY, -1)
    assert "lies in a folder of another user" in refused()[0].what


def test_what_is_asked_is_the_file_that_is_read(folder: Path) -> None:
    """A file exchanged again and again between a good and a bad one is never the bad one's text with the good one's mode."""
    good, bad, place = put(folder / "good", "good"), put(folder / "bad", "bad", 0o666), folder / "key"
    stop = threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            for one in (good, bad):
                (folder / "new").symlink_to(one)
                (folder / "new").rename(place)

    place.symlink_to(good)
    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        seen = {(one.text, one.foreign is None) for one in (read(place) for _ in range(2000))}
    finally:
        stop.set()
        thread.join()
    assert seen <= {("good", True), ("bad", False)}
    assert len(seen) == 2


def test_a_pipe_that_nobody_writes_to_and_a_device_hold_nothing_up(folder: Path) -> None:
    os.mkfifo(folder / ".env")
    assert load(needs=()).relay == "main"
    (folder / ".env").unlink()
    (folder / ".env").symlink_to("/dev/zero")
    assert refused() == [Problem(".env", "cannot be read")]


def test_a_key_from_a_pipe_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OUTBOXD_SUPABASE_KEY_FILE=<(pass show outboxd), as shells have it."""
    reader, writer = os.pipe()
    os.write(writer, KEY.encode())
    os.close(writer)
    monkeypatch.setenv("OUTBOXD_SUPABASE_KEY_FILE", f"/dev/fd/{reader}")
    assert load(needs=()).key_kind == "secret"
    os.close(reader)


def test_a_runtimes_mounts_are_asked_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a way out of them by dots is none."""
    (folder / "mounted").mkdir()
    put(folder / "mounted" / "supabase_key", KEY, 0o666)
    assert load(needs=()).key_kind == "secret"
    (folder / "mounted" / "supabase_key").unlink()
    put(folder / "key", KEY, 0o666)
    monkeypatch.setenv("OUTBOXD_SUPABASE_KEY_FILE", f"{folder}/mounted/../key")
    assert "written by other users" in refused()[0].what


@root_only
def test_a_file_on_a_read_only_mount_of_its_own_may_be_anybodys() -> None:
    """As containers have it: `--volume ./outboxd.toml:/etc/outboxd/outboxd.toml:ro` shows the owner it has outside, and
    Kubernetes shows a folder with 0777. Whoever mounts may say what is read; a mode is still a mode."""
    place = shared_folder("outboxd-handed-")
    script = """
    mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; cd "$1"; shift; exec "$@"
    """
    ask = "from daemon.configuration import load; print(load(needs=()).relay)"
    try:
        os.chown(put(place / "outboxd.toml", 'relay = "handed_in"\n', 0o644), NOBODY, -1)
        place.chmod(0o777)
        command = ["unshare", "--mount", "--", "/bin/sh", "-ec", script, "sh", str(place), sys.executable, "-c", ask]
        environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": os.environ["PATH"]}
        if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
            pytest.skip("root cannot make its own view of the file system here")

        def tried(*how: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([*how], env=environment, capture_output=True, text=True, check=False, cwd=place)

        assert tried(*command).stdout == "handed_in\n"
        assert "belongs to another user" in tried(sys.executable, "-c", ask).stderr
        (place / "outboxd.toml").chmod(0o646)
        assert "written by other users" in tried(*command).stderr
    finally:
        shutil.rmtree(place)


# -- where a secret goes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["environment", "mount", "file"])
def test_a_key_is_not_sent_to_an_address_that_a_folder_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The folder may be one's own: a checkout of somebody's project is. Both in one place is as it always was."""
    put(folder / ".env", f"SUPABASE_URL={EVIL}\nDATABASE_URL=postgresql://app:x@db/app\n")
    (folder / "mounted").mkdir()
    if place == "environment":
        monkeypatch.setenv("SUPABASE_SECRET_KEY", KEY)
    else:
        put(folder / ("mounted" if place == "mount" else ".") / "supabase_key", KEY)
        if place == "file":
            monkeypatch.setenv("OUTBOXD_SUPABASE_KEY_FILE", str(folder / "supabase_key"))
    (problem,) = refused()
    assert problem.setting == "supabase_url"
    assert problem.what.startswith("stands in .env, and the key does not")
    assert load_without_target().settings.supabase_url is None  # the daemon runs, and sends nothing there
    monkeypatch.setenv("SUPABASE_URL", URL)
    assert load(needs=()).supabase_url == URL
    put(folder / ".env", f"SUPABASE_URL={EVIL}\nSUPABASE_SECRET_KEY={KEY}\n")
    monkeypatch.delenv("SUPABASE_URL")
    if place == "environment":
        monkeypatch.delenv("SUPABASE_SECRET_KEY")
        assert load(needs=()).supabase_url == EVIL


@pytest.mark.parametrize(
    ("dsn", "password", "whose"),
    [
        ("postgresql://app@evil.example/app", "x", "PGPASSWORD"),
        ("host=evil.example user=app", "x", "PGPASSWORD"),
        ("postgresql://evil.example/app?service=prod", "", "a service file"),
        ("service=prod host=evil.example", "", "a service file"),
        ("postgresql://app:mine@db/app", "x", None),
        ("postgresql://app@db/app", "", None),
    ],
)
@pytest.mark.parametrize("setting", ["DATABASE_URL", "SUPABASE_DB_URL"])
def test_nor_is_a_password_of_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, setting: str, dsn: str, password: str, whose: str | None
) -> None:
    put(folder / ".env", f'{setting}="{dsn}"\n')
    monkeypatch.setenv("PGPASSWORD", password)
    if whose is None:
        load(needs=())
    else:
        (problem,) = refused()
        assert f"its password does not (it is {whose}'s)" in problem.what


def test_what_the_environment_has_is_not_put_into_an_address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`${…}` in .env means what .env itself sets: else a name server of somebody's would be asked for the key."""
    monkeypatch.setenv("SUPABASE_SECRET_KEY", KEY)
    put(folder / ".env", "OUTBOXD_SOURCE_DSN=postgresql://a:${SUPABASE_SECRET_KEY}@evil.example/x\n")
    assert [one.setting for one in refused()] == ["OUTBOXD_SOURCE_DSN"]
    put(folder / ".env", "PASSWORD=p\nOUTBOXD_SOURCE_DSN=postgresql://a:${PASSWORD}@${HOST:-db}/x\n")
    assert load(needs=()).source_conninfo == "postgresql://a:p@db/x"


@root_only
@pytest.mark.parametrize("name", [".env", "outboxd.toml"])
def test_a_pipe_of_another_user_is_not_waited_for(folder: Path, name: str) -> None:
    """He keeps it open and writes nothing. Whose it is, is asked before what it says."""
    folder.chmod(0o1777)
    pipe = folder / name
    os.mkfifo(pipe, 0o666)
    os.chown(pipe, NOBODY, NOBODY)
    holder = os.open(pipe, os.O_RDWR)
    told: list[list[Problem]] = []
    thread = threading.Thread(target=lambda: told.append(refused()), daemon=True)
    thread.start()
    thread.join(3)
    in_time = list(told)
    os.close(holder)
    thread.join(5)
    assert in_time
    assert any(name in f"{one.setting} {one.what} {one.origin}" for one in in_time[0])


# -- the process -----------------------------------------------------------------------------------------------


def test_the_daemon_goes_where_the_environment_says_and_the_doctor_says_where_from(
    rest: Pair, start: Start, tmp_path: Path
) -> None:
    """Beside a .env that would have it go elsewhere. Its memory is in no core, its secrets in no argument."""
    put(tmp_path / ".env", f"OUTBOXD_SUPABASE_URL={EVIL}\nOUTBOXD_RETENTION=90000\n")
    put(tmp_path / "outboxd.toml", f'supabase_url = "{EVIL}"\nlog_level = "debug"\n')
    well_known = {"SUPABASE_URL": rest.settings["supabase_url"], "SUPABASE_SECRET_KEY": rest.settings["supabase_key"]}
    others = {name: value for name, value in rest.settings.items() if not name.startswith("supabase")}
    outboxd = streaming(start(others, environment=well_known))
    assert "not OUTBOXD_SUPABASE_URL in .env, which differs" in outboxd.log.read_text()
    limits = Path(f"/proc/{outboxd.pid}/limits").read_text()
    assert [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core")] == [["0", "0"]]
    assert rest.settings["supabase_key"].encode() not in Path(f"/proc/{outboxd.pid}/cmdline").read_bytes()
    cli = Cli({name: rest.settings[name] for name in ("source_dsn", "supabase_url", "supabase_key")})
    items: list[Mapping[str, str]] = json.loads(cli("check", "--json").out)
    (config,) = (one["what"] for one in items if one["name"] == "config")
    assert rest.settings["supabase_url"] in config
    assert f"retention from {tmp_path}/.env" in config
    assert f"log_level from {tmp_path}/outboxd.toml" in config
    assert "source_dsn, supabase_key, supabase_url from the environment" in config
    assert EVIL not in json.dumps(items)
