"""Finds processes that a test run started and did not end.

By parent and by working folder: a backend whose postmaster was killed belongs to init, but still stands in
its data folder. Other runs on the same machine are none of our business.
"""

import os
from pathlib import Path

from daemon.demo.process import alive, children


def left_behind(folder: Path) -> dict[int, str]:
    """The pids and command lines of processes below this one, or with their working folder under `folder`."""
    found = {*_descendants(os.getpid()), *standing_in(folder)}
    return {pid: _command_line(pid) for pid in sorted(found) if alive(pid)}


def _descendants(pid: int) -> list[int]:
    below = children(pid)
    return below + [pid for child in below for pid in _descendants(child)]


def standing_in(folder: Path) -> list[int]:
    inside = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            here = (entry / "cwd").readlink()
        except OSError:  # gone, or another user's
            continue
        if here.is_relative_to(folder):
            inside.append(int(entry.name))
    return inside


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "gone"
