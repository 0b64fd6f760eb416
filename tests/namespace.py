"""A network namespace with a cable to this one that can be pulled: a link that goes half-open, as kernels see it.

Knows veth pairs. Nothing is mounted, and nothing outlives the process that holds the namespace.
"""

import ipaddress
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from daemon.demo.process import Command, end, poll_until, spawn


class NoNamespace(Exception):
    """None can be made here."""


@dataclass(frozen=True)
class Cable:
    """One veth pair: `here` and `there` are the addresses of its ends."""

    name: str
    here: str
    there: str

    def pull(self) -> None:
        """Whatever is sent is lost, and nobody is told."""
        _ip("link", "set", self.name, "down")

    def plug(self) -> None:
        _ip("link", "set", self.name, "up")


@dataclass(frozen=True)
class Namespace:
    """Entered by prefixing a command. Three cables: while one is out, others lead in."""

    pid: int
    cable: Cable
    aside: Cable
    third: Cable

    @property
    def enter(self) -> list[str]:
        return [shutil.which("nsenter") or "", f"--net=/proc/{self.pid}/ns/net", "--"]


@contextmanager
def namespace(folder: Path) -> Iterator[Namespace]:
    """A namespace with three cables, which goes with its holder."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter", "sleep"))):
        raise NoNamespace("only root can make a network namespace, with iproute2 and util-linux")
    unshare = [shutil.which("unshare") or "", "--net", shutil.which("sleep") or "", "infinity"]
    holder = spawn(
        Command(unshare, {"PATH": os.environ["PATH"]}, folder, folder / "namespace.log", None, signal.SIGKILL)
    )
    mine = Path("/proc/self/ns/net").readlink()
    try:
        if (
            not poll_until(lambda: holder.poll() is not None or _entered(holder.pid, mine), 10)
            or holder.poll() is not None
        ):
            raise NoNamespace("this kernel, or this container, lets nobody make a network namespace")
        _ip("link", "set", "lo", "up", inside=holder.pid)
        cables = [_cable(holder.pid, number) for number in range(3)]
        try:
            yield Namespace(holder.pid, *cables)
        finally:
            for cable in cables:
                subprocess.run(["ip", "link", "delete", cable.name], check=False, capture_output=True)
    finally:
        end(holder, signal.SIGKILL, 10)


def _entered(pid: int, mine: Path) -> bool:
    """Has the trampoline become `sleep`, in a namespace of its own?"""
    try:
        return Path(f"/proc/{pid}/ns/net").readlink() != mine and "sleep" in Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return False


def _cable(pid: int, number: int) -> Cable:
    # Named after the holder, which is unique while it lives; from the range for benchmarks, which is routed nowhere.
    network = int(ipaddress.IPv4Address("198.18.0.0")) + (pid * 4 + number) % 2**15 * 4
    here, there = (str(ipaddress.IPv4Address(network + host)) for host in (1, 2))
    cable, far = Cable(f"ob{pid}x{number}", here, there), f"ob{pid}y{number}"
    _ip("link", "add", cable.name, "type", "veth", "peer", "name", far, "netns", str(pid))
    _ip("address", "add", f"{cable.here}/30", "dev", cable.name)
    _ip("link", "set", cable.name, "up")
    _ip("address", "add", f"{cable.there}/30", "dev", far, inside=pid)
    _ip("link", "set", far, "up", inside=pid)
    return cable


def _ip(*arguments: str, inside: int | None = None) -> None:
    prefix = ["nsenter", f"--net=/proc/{inside}/ns/net", "--"] if inside else []
    made = subprocess.run([*prefix, "ip", *arguments], check=False, capture_output=True, text=True)
    if made.returncode:
        raise NoNamespace(f"ip {' '.join(arguments)}: {made.stderr.strip()}")
