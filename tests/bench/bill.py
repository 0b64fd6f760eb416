"""The bill: what outboxd sends to the target, by its own metrics."""

from dataclasses import dataclass

from tests.bench.systems import Daemon

_REQUESTS = "outboxd_target_request_duration_seconds_count"
_BYTES = "outboxd_request_size_bytes_sum"


@dataclass(frozen=True)
class Sent:
    """Since the daemon began: requests of every kind, answered or not, and the bytes of those that carry changes."""

    requests: float
    bytes: float

    def since(self, before: "Sent", changes: float) -> dict[str, float]:
        """By a thousand changes."""
        thousands = changes / 1000
        return {
            "requests": (self.requests - before.requests) / thousands,
            "bytes": (self.bytes - before.bytes) / thousands,
        }


NOTHING = Sent(0, 0)


def sent(daemon: Daemon) -> Sent:
    """Asked over HTTP: the answer is the daemon's work, too, so ask while no clock runs."""
    _, body = daemon.outboxd.get("/metrics")
    return Sent(total(body, _REQUESTS), total(body, _BYTES))


def total(metrics: str, name: str) -> float:
    """A metric's sum over all of its labels."""
    return sum(float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line.startswith(name))
