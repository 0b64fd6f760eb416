"""Child programs that cannot outlive this process.

Knows signals, users and Linux's parent-death signal. Must not know which programs it starts.
"""

import contextlib
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Runs in the child, between fork and the program: gives up root, then asks the kernel for a signal when the
# parent ends. A preexec_fn could do the same, but it is unsafe beside threads and Python warns of it.
_TRAMPOLINE = """
import ctypes, os, sys
parent, death_signal, uid, gid = map(int, sys.argv[1:5])
if uid >= 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, death_signal)
    if os.getppid() != parent:
        sys.exit("the parent is gone already")
os.execv(sys.argv[5], sys.argv[5:])
"""


@dataclass(frozen=True)
class User:
    """Whom a program runs as when this process is root."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Command:
    argv: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    user: User | None = None
    death_signal: signal.Signals = signal.SIGTERM


def spawn(command: Command) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, so that Ctrl-C in the terminal reaches only us."""
    answer: Future[subprocess.Popen[bytes]] = Future()
    _spawner().put((command, answer))
    return answer.result()


@cache
def _spawner() -> "queue.SimpleQueue[tuple[Command, Future[subprocess.Popen[bytes]]]]":
    # Linux sends the parent-death signal when the *thread* that forked ends, so one thread that lives as
    # long as the process forks everything.
    jobs: queue.SimpleQueue[tuple[Command, Future[subprocess.Popen[bytes]]]] = queue.SimpleQueue()

    def serve() -> None:
        while True:
            command, answer = jobs.get()
            try:
                answer.set_result(_start(command))
            except Exception as error:  # noqa: BLE001  whoever asked is told, and the thread serves the next
                answer.set_exception(error)

    threading.Thread(target=serve, name="demo-spawner", daemon=True).start()
    return jobs


def _start(command: Command) -> subprocess.Popen[bytes]:
    user = command.user or User(-1, -1)
    guard = [os.getpid(), command.death_signal.value, user.uid, user.gid]
    with command.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-ISc", _TRAMPOLINE, *map(str, guard), *command.argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=command.folder,
            env=dict(command.environment),
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes], how: signal.Signals, patience: float) -> None:
    """Ask a program to end, and make it end when it does not."""
    process.send_signal(how)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def poll_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true in time. Programs that start tell no one when they are ready."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def children(pid: int) -> list[int]:
    """The pids of a process' children, whichever of its threads started them; none where there is no /proc."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # it may end while its threads are being listed
        for thread in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, thread.read_text().split())
    return found


def signal_all(pids: Sequence[int], what: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)


def alive(pid: int) -> bool:
    """Whether the process still runs; a zombie that nobody reaps does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return status.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


_handed_out: deque[int] = deque(maxlen=100)


def free_port() -> int:
    """A loopback port nobody listens on.

    Below the range the kernel draws from, so that no outgoing connection takes it while its owner restarts.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        if port not in _handed_out and not _listened_on(port):
            _handed_out.append(port)
            return port


def _listened_on(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
