"""Run a program under what the unit says of system calls, by the kernel's own filter: `confined.py UNIT PROGRAM …`.

Knows SystemCallFilter, MemoryDenyWriteExecute and RestrictAddressFamilies, and makes of them what systemd does. Not for
anything but tests: what else the unit confines needs systemd.
"""

import ctypes
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

LIBRARY = "libseccomp.so.2"
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # EPERM, as SystemCallErrorNumber says
_EQUAL, _GREATER, _MASKED = 4, 6, 7
_FAMILIES = 64
_WRITE, _EXECUTE, _SHM_EXEC = 2, 4, 0o100000

_Condition = tuple[int, int, int, int]  # argument, comparison, and two numbers


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint), ("how", ctypes.c_int), ("first", ctypes.c_uint64), ("second", ctypes.c_uint64),
    )  # fmt: skip


def groups() -> dict[str, list[str]]:
    """systemd's own sets of system calls: @system-service and the rest, with what each contains."""
    listed = subprocess.run(
        ["systemd-analyze", "--no-pager", "syscall-filter"], capture_output=True, text=True, check=True
    )
    found: dict[str, list[str]] = {}
    inside: list[str] = []
    for line in listed.stdout.splitlines():
        if line.startswith("@"):
            inside = found.setdefault(line.strip(), [])
        elif line.startswith(" ") and not line.strip().startswith("#"):
            inside.append(line.strip())
    return found


def allowed(lines: Iterable[str]) -> set[str]:
    """The system calls that some lines of SystemCallFilter= let through; the first is a list of what is allowed."""
    known = groups()

    def each(name: str) -> set[str]:
        return {one for inner in known[name] for one in each(inner)} if name.startswith("@") else {name}

    through: set[str] = set()
    for line in lines:
        calls = {call for name in line.lstrip("~").split() for call in each(name)}
        through = through - calls if line.startswith("~") else through | calls
    return through


class _Filter:
    def __init__(self, otherwise: int) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(otherwise)))

    def rule(self, action: int, call: str, *conditions: _Condition) -> None:
        number = self._library.seccomp_syscall_resolve_name(call.encode())
        if number >= 0:  # others are another architecture's
            array = (_Comparison * len(conditions))(*(_Comparison(*one) for one in conditions))
            made = self._library.seccomp_rule_add_array(
                self._context, ctypes.c_uint32(action), number, len(conditions), array
            )
            assert made == 0, (call, made)

    def load(self) -> None:
        assert self._library.seccomp_load(self._context) == 0


def confine(unit: str) -> None:
    """From here on, for ever."""
    families = re.findall(r"^RestrictAddressFamilies=(.*)", unit, re.MULTILINE)[0].split()
    numbers = {int(getattr(socket, family)) for family in families}
    calls = allowed(re.findall(r"^SystemCallFilter=(.*)", unit, re.MULTILINE))
    sockets = _Filter(_ALLOW)
    for family in set(range(_FAMILIES)) - numbers:
        sockets.rule(_REFUSE, "socket", (0, _EQUAL, family, 0))
    sockets.rule(_REFUSE, "socket", (0, _GREATER, _FAMILIES - 1, 0))
    sockets.load()
    if "MemoryDenyWriteExecute=yes" in unit:
        memory = _Filter(_ALLOW)
        both = _WRITE | _EXECUTE
        memory.rule(_REFUSE, "mmap", (2, _MASKED, both, both))
        memory.rule(_REFUSE, "mprotect", (2, _MASKED, _EXECUTE, _EXECUTE))
        memory.rule(_REFUSE, "pkey_mprotect", (2, _MASKED, _EXECUTE, _EXECUTE))
        memory.rule(_REFUSE, "shmat", (2, _MASKED, _SHM_EXEC, _SHM_EXEC))
        memory.load()
    everything = _Filter(_REFUSE)
    for call in calls:
        everything.rule(_ALLOW, call)
    everything.load()


if __name__ == "__main__":
    confine(Path(sys.argv[1]).read_text("utf-8"))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606  no shell is wanted
