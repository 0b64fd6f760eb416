"""A file that settings come from: what it says, and whether anybody but its owner, us and root could have put that there.

Knows files, owners and modes. Knows neither settings nor secrets. All is asked of the open file, not of its path, which
may lead to another file from one look to the next.
"""

import os
import pwd
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from daemon.printable import word

_LONGEST = 4 * 1024 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """`foreign`: why it is not to be believed, with what mends that; None where nothing is against it."""

    path: Path
    text: str
    foreign: str | None
    world_may_read: bool


def read(path: Path, mounts: Collection[Path] = ()) -> Opened:
    """Raises OSError or ValueError.

    Nothing is asked of a file below `mounts`, where a runtime puts secrets for one process: Docker gives them 0444,
    Kubernetes 0644.
    """
    # A pipe that nobody writes to would hold us up: O_NONBLOCK.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode)):
            raise OSError(f"{path} is no file")
        if stat.S_ISFIFO(found.st_mode) and found.st_uid not in {0, os.geteuid()}:  # who would keep us for ever
            raise OSError(f"{path} is a pipe of another user: remove it, or name a file")
        os.set_blocking(descriptor, True)
        content = file.read(_LONGEST + 1)
        if len(content) > _LONGEST:
            raise ValueError(f"{path} is larger than a file of settings")
        real = Path(f"/proc/self/fd/{descriptor}").readlink()
        if any(real.is_relative_to(mount.resolve()) for mount in mounts):
            return Opened(path, content.decode("utf-8"), None, world_may_read=False)
        foreign = _foreign(path, real, found, handed_in=_is_handed_in(descriptor))
        return Opened(path, content.decode("utf-8"), foreign, bool(found.st_mode & stat.S_IROTH))


def _foreign(path: Path, real: Path, found: os.stat_result, *, handed_in: bool) -> str | None:
    trusted = {0, os.geteuid()}
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"may be written by other users: chmod go-w {word(str(path))}"
    if handed_in:
        return None
    if not {found.st_uid, os.lstat(path).st_uid} <= trusted:
        return (
            f"belongs to another user: chown -h {_me()} {word(str(path))} {word(str(real))}, if you know what it says"
        )
    for folder in dict.fromkeys((path.absolute().parent, real.parent)):
        if not folder.is_dir():  # a pipe has none
            continue
        seen = folder.stat()
        if seen.st_mode & stat.S_IWOTH and not seen.st_mode & stat.S_ISVTX:
            return f"lies in a folder that every user may write to: chmod o-w {word(str(folder))}"
        if seen.st_uid not in trusted:
            return f"lies in a folder of another user: move it into one of {_me()} or root"
    return None


def _is_handed_in(descriptor: int) -> bool:
    """Is it on a read-only mount of its own, as a container's runtime makes one? Whoever may mount may say what we are to
    read, and shows it with whatever owner it has outside."""
    if not os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
        return False
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        return _mount(descriptor) != _mount(root)
    finally:
        os.close(root)


def _mount(descriptor: int) -> str:
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text("ascii").splitlines()
    return next(line for line in lines if line.startswith("mnt_id:"))


def _me() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
