"""Who leads, since when, who waits, who cannot lead, and who is in their way: by sessions on the source.

Knows how a daemon is called there, and how that is told. Asks nobody: rows of sql/queries/leaders.sql and strangers.sql
come in. What others call themselves is not to be trusted: neither as a name of a daemon, nor on a terminal.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

# There, a lock belongs to whichever client the pooler serves next: none is taken.
POOLED = "unknown: behind a transaction pooler nobody can be elected"

_LONGEST = 63  # bytes that Postgres keeps of an application_name
_SESSION = re.compile(r"outboxd/(\S+) bell (\S+) (\d+)")


def session_name(daemon: str, host: str, pid: int) -> str:
    """`outboxd/0.1.0 bell db-7 4711`. Of a long name of a host the end stays: replicas differ there."""
    head, tail = f"{daemon} bell ", f" {pid}"
    short = re.sub(r"[^!-~]", "-", host.partition(".")[0]) or "-"
    return f"{head}{short[-(_LONGEST - len(head) - len(tail)) :]}{tail}"


@dataclass(frozen=True, slots=True)
class Stranger:
    """A session, or a prepared transaction, that has a lock of outboxd's and may not lead. `what`: as outbox.strangers has it;
    `remedy`: the statement that ends it."""

    what: str
    who: str
    remedy: str

    @property
    def told(self) -> str:
        """Who it is, and what comes of it."""
        return f"{self.who} {_COMES[self.what]}"

    @property
    def sentence(self) -> str:
        """With the way on."""
        return f"{self.told}: `{self.remedy}` on the source"


_COMES = {
    "lead": "holds the leader's lock and may not lead",
    "ring": "holds the bell's lock, so every commit of a watched table notifies",
    "wake": "holds the bell's lock, so outboxd polls and does not sleep",
    "other": "holds a lock of outboxd's that nobody needs: nothing comes of it",
}


@dataclass(slots=True)
class Company:
    """The daemons of one relay, as the source saw them last. `backend`: the server's process at the other end."""

    leader: dict[str, Any] | None = None
    standbys: list[dict[str, Any]] = field(default_factory=list)
    disabled: list[dict[str, Any]] = field(default_factory=list)  # they wait for Supabase's settings, and cannot lead
    strangers: Sequence[Stranger] = ()

    def learn(self, rows: Iterable[tuple[Any, ...]], strangers: Sequence[Stranger] = ()) -> None:
        """Take what leaders.sql answered; nothing, when the source cannot be asked."""
        self.leader, self.standbys, self.disabled, self.strangers = None, [], [], strangers
        for name, backend, leads, since, aside in rows:
            known = _SESSION.fullmatch(name)
            who = f"{known[2]}:{known[3]}" if known else name or "a session without a name"
            told = {"who": who, "version": known[1] if known else None, "backend": backend}
            if leads:
                self.leader = {"who": who, "since": since, **told}
            else:
                (self.disabled if aside else self.standbys).append(told)

    @property
    def barred(self) -> Stranger | None:
        """Who keeps anybody from leading; None: a daemon leads, or may."""
        return next((one for one in self.strangers if one.what == "lead" and self.leader is None), None)

    def told(self, *, pooled: bool) -> dict[str, Any]:
        """For a status. No leader: nobody has the lock."""
        waiting = {"standbys": [] if pooled else self.standbys, "disabled": [] if pooled else self.disabled}
        strangers = [{"what": one.told, "remedy": one.remedy} for one in self.strangers]
        return {"leader": self.leader or (POOLED if pooled else None), **waiting, "strangers": strangers}
