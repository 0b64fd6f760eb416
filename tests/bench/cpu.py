"""Who used the processor, by /proc: whole clusters, single processes, everybody.

Knows pids and ticks. Must not know what the processes do.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.demo.process import children

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Used:
    """Seconds of processor by group at a moment of the wall clock."""

    at: float
    seconds: Mapping[str, float]

    def until(self, later: "Used") -> dict[str, float]:
        """Shares of one core from this moment to a later one."""
        passed = max(later.at - self.at, 1e-3)
        return {name: (later.seconds[name] - used) / passed for name, used in self.seconds.items()}


def used(groups: Mapping[str, int]) -> Used:
    """`groups` are the first process of each; with it go its children, those that have ended, too."""
    seconds = {name: _tree(pid) for name, pid in groups.items()}
    seconds["bench"] = _tree(os.getpid(), below=False)
    busy = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    everybody = (
        sum(int(ticks) for n, ticks in enumerate(busy[:8]) if n not in (3, 4)) / _TICK
    )  # neither idle nor iowait
    seconds["other"] = everybody - sum(seconds.values())
    return Used(time.time(), seconds)


def _tree(pid: int, *, below: bool = True) -> float:
    """A server's backends come and go: what one that ended had used is in its parent's account."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        # Of the living the scheduler's account, which is finer; ticks know of threads that have ended.
        own = max(precisely(pid), _seconds(fields[11:13]))
    except OSError:
        return 0.0
    return own + _seconds(fields[13:15]) + sum(map(_tree, children(pid))) if below else own


def _seconds(ticks: Sequence[str]) -> float:
    return sum(map(int, ticks)) / _TICK


def living(pid: int) -> dict[int, float]:
    """Seconds of processor by child that is there now."""
    return {child: _tree(child, below=False) for child in children(pid)}


def beside(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """Seconds that children have used which were there all the time: of a server all but the sessions that came and went."""
    return sum(after[child] - used for child, used in before.items() if child in after)


def memory(pid: int, what: str = "VmRSS") -> float:
    """Megabytes a process has in memory, or had at most (VmHWM)."""
    return _status(pid, what) / 1024


def sleeps(pid: int) -> int:
    """How often the threads of a process went to sleep: each time somebody had to wake them."""
    return sum(int(_line(task / "status", "voluntary_ctxt_switches")) for task in Path(f"/proc/{pid}/task").iterdir())


def precisely(pid: int) -> float:
    """Seconds on a processor, by the scheduler's own account, which is finer than ticks."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9


def _status(pid: int, what: str) -> int:
    return int(_line(Path(f"/proc/{pid}/status"), what).split()[0])


def _line(file: Path, what: str) -> str:
    for line in file.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == what:
            return value.strip()
    return "0"
