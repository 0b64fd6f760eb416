"""outboxd seen from outside, once a second, as an operator would: its status page, its log, and the outbox.

Knows where to look. Must not know what is being played.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from daemon.demo.child import Outboxd

_WAITING = (
    "select count(*), coalesce(extract(epoch from clock_timestamp() - min(created_at)), 0)::float8"
    " from outbox.change where not pg_visible_in_snapshot(xid, %s)"
)
_BEGINNING = "3:3:"
_STATES = {"breaker_opened": "open", "breaker_half_opened": "half_open", "breaker_closed": "closed"}


@dataclass(frozen=True)
class Sight:
    """`lag` is the age of the oldest change: of those that wait, or as it was when it arrived."""

    applied: int
    waiting: int
    lag: float
    breaker: str
    news: Sequence[str]


@dataclass
class Observer:
    outboxd: Outboxd
    source: psycopg.Connection[Any]
    applied: int = 0
    lags: list[float] = field(default_factory=list)
    breaker: list[str] = field(default_factory=lambda: ["closed"])

    def look(self) -> Sight:
        news, arrived = self._listen()
        cursor = (self.outboxd.status() or {}).get("cursor") or {"snapshot": _BEGINNING}
        row = self.source.execute(_WAITING, (cursor["snapshot"],)).fetchone()
        waiting, oldest = row or (0, 0.0)
        lag = max([oldest, *arrived])
        self.lags += arrived or ([oldest] if waiting else [])
        return Sight(self.applied, waiting, lag, self.breaker[-1], news)

    def take_lags(self) -> list[float]:
        """What `lags` gathered since the last call."""
        taken, self.lags = self.lags, []
        return taken

    def _listen(self) -> tuple[list[str], list[float]]:
        """What its log says since the last look: news for the reader, and how old changes were on arrival."""
        news: list[str] = []
        arrived: list[float] = []
        for line in self.outboxd.said():
            if line["event"] == "batch_applied":
                self.applied += line["changes"]
                arrived.append(line["lag_s"])
            elif (state := _STATES.get(line["event"])) and line["breaker"] == "target":
                self.breaker.append(state)
                news.append(_sentence(state, line))
        return news, arrived


def _sentence(state: str, line: dict[str, Any]) -> str:
    if state == "open":
        return f"the breaker opens ({line['reason']}): outboxd stays away for {line['retry_in_s']:.1f} s"
    if state == "half_open":
        return "the breaker is half open: one request finds out whether Supabase is back"
    return "the breaker closes: Supabase answers again"
