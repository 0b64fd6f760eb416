"""The daemons of a run, under a supervisor that starts each again when it ends, as systemd does.

Knows how processes end and which exit codes are allowed. Must not know why somebody ends them.
"""

import random
import signal
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from daemon.demo.child import Outboxd
from daemon.failpoint import VARIABLE

AWAY = 75  # fenced, or a store was away: starting again may help
# Some processes are born with a place where they die.
_DEADLY = 0.3
_PLACES = (
    "after_claim", "after_arm", "after_read", "before_send", "after_send", "after_answer", "before_hold", "after_hold",
    "before_release", "after_release",
)  # fmt: skip
_QUICK = {
    "breaker__open_first": "0.2", "breaker__open_cap": "1.0", "poll_interval": "0.5", "batch_changes": "400",
    "heartbeat_interval": "0.5",
}  # fmt: skip


@dataclass(eq=False)
class Member:
    """One place in the fleet: a process, and after it the next. `expected`: exit codes that somebody asked for;
    `asked`: somebody sent it SIGTERM."""

    outboxd: Outboxd
    expected: set[int] = field(default_factory=set)
    asked: bool = False
    retired: bool = False

    @property
    def status(self) -> Mapping[str, object]:
        return self.outboxd.status() or {}

    @property
    def stopped(self) -> bool:
        """Does it stand still, at a failpoint?"""
        try:
            return Path(f"/proc/{self.outboxd.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        except OSError:
            return False

    @property
    def listens(self) -> bool:
        """Did it listen to signals to its end? Not before it has started, and not once it has failed and closes."""
        said = self.outboxd.log.read_text(errors="replace")
        return "daemon_started" in said and "daemon_failed" not in said

    @property
    def leads(self) -> bool:
        return bool(self.status.get("leads"))


class Fleet:
    """`ways` are the settings of the transports; each process is given one of them by lot."""

    def __init__(self, folder: Path, ways: Mapping[str, Mapping[str, str]], seed: str) -> None:
        self.restarts = 0
        self.codes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.logs: set[Path] = set()
        self._folder = folder
        self._ways = ways
        self._random = random.Random(f"{seed}/fleet")
        self._lock = threading.RLock()
        self._members: list[Member] = []
        self._numbers = iter(range(1, 1_000_000))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def start(self) -> None:
        self.add()
        self._thread.start()

    @property
    def members(self) -> list[Member]:
        with self._lock:
            return [member for member in self._members if not member.retired]

    def add(self, failpoint: str | None = None) -> Member:
        """One more daemon: it stands by while another leads."""
        with self._lock:
            member = self._launch(failpoint)
            self._members.append(member)
            return member

    def retire(self, member: Member) -> None:
        """Not started again; ended, unless it has."""
        with self._lock:
            member.retired = True
        member.outboxd.send(signal.SIGCONT)
        self.terminate(member)
        self._note(member)
        with self._lock:
            if member in self._members:  # else somebody else has, who ends the run
                self._members.remove(member)

    def kill(self, member: Member) -> None:
        member.expected.add(-signal.SIGKILL)
        member.outboxd.kill()

    def terminate(self, member: Member) -> None:
        """SIGTERM; SIGKILL for one that waits too long for a store that is away, as supervisors do."""
        member.expected |= {0, -signal.SIGKILL}
        member.asked = True
        member.outboxd.stop()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()
        for member in self.members:
            self.retire(member)

    def _launch(self, failpoint: str | None = None) -> Member:
        way = self._random.choices(list(self._ways), (3, 1))[0]
        expected: set[int] = set()
        if failpoint is None and self._random.random() < _DEADLY:
            failpoint = f"{self._random.choice(_PLACES)}:kill:{self._random.randint(1, 30)}"
            expected.add(-signal.SIGKILL)
        outboxd = Outboxd(
            self._folder, {**_QUICK, **self._ways[way]}, name=f"outboxd-{next(self._numbers)}",
            environment={VARIABLE: failpoint or ""},
        )  # fmt: skip
        outboxd.start()
        self.logs.add(outboxd.log)
        return Member(outboxd, expected)

    def _supervise(self) -> None:
        while not self._stopped.wait(0.05):
            with self._lock:
                for member in self.members:
                    if member.outboxd.returncode is not None:
                        self._note(member)
                        successor = self._launch()
                        member.outboxd, member.expected = successor.outboxd, successor.expected
                        member.asked = False
                        self.restarts += 1

    def _note(self, member: Member) -> None:
        """An end that nobody asked for must be one that the daemon explains."""
        code = member.outboxd.returncode
        assert code is not None
        self.codes["kill -9" if code == -signal.SIGKILL else f"exit {code}"] += 1
        deaf = {-signal.SIGTERM} if member.asked and not member.listens else set()
        if code not in member.expected | {AWAY} | deaf:
            self.wrong.append(f"{member.outboxd.log.stem} ended with {code}: {member.outboxd.last_words()[-300:]}")
