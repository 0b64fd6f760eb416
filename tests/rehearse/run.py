"""A rehearsal: one incident after the other, from the first sign to the last.

Knows when an alert must fire and when it must be gone, and how long that took. Must not know what brings it about.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.deploy.prometheus import Prometheus
from tests.rehearse.incidents import Alert, Incident
from tests.rehearse.stage import Stage, until

PATIENCE = 90.0  # seconds for an alert to fire, to clear, and for all to be quiet before the next incident


@dataclass(frozen=True)
class Row:
    """One alert of an incident: seconds from the cause to the alert, and from the beginning of the fix to its end."""

    alert: Alert
    incident: Incident
    fired: float | None
    cleared: float | None

    @property
    def good(self) -> bool:
        return self.fired is not None and self.cleared is not None


def rehearse(stage: Stage, incidents: Sequence[Incident], say: Callable[[str], None]) -> list[Row]:
    """Every incident; a row for each of its alerts."""
    rows: list[Row] = []
    for incident in incidents:
        if not until(lambda: not stage.prometheus.firing(), PATIENCE):
            say(f"before it began, these fired: {_names(set(stage.prometheus.firing()))}")
        say(f"{incident.cause} …")
        fired, others, cleared = _happened(stage, incident)
        say(f"  fired: {_seconds(fired)}{f'; also {_names(others)}' if others else ''}")
        say(f"  {incident.fix}: cleared: {_seconds(cleared)}")
        rows += [Row(alert, incident, fired.get(alert), cleared.get(alert)) for alert in incident.alerts]
    return rows


def _happened(stage: Stage, incident: Incident) -> tuple[dict[Alert, float], set[Alert], dict[Alert, float]]:
    """When each alert fired and cleared, and which others fired meanwhile."""
    others: set[Alert] = set()
    began = time.monotonic()
    with incident.happens(stage):
        fired = _watched(stage.prometheus, incident.alerts, began, others, fires=True)
        mending = time.monotonic()
    cleared = _watched(stage.prometheus, [*fired], mending, others, fires=False)
    return fired, others - {*incident.alerts}, cleared


def _watched(
    prometheus: Prometheus, alerts: Sequence[Alert], began: float, others: set[Alert], *, fires: bool
) -> dict[Alert, float]:
    """Seconds until each of them fires, or does not."""
    seen: dict[Alert, float] = {}

    def all_seen() -> bool:
        now = prometheus.firing().keys()
        others.update(now)
        for alert in alerts:
            if (alert in now) is fires:
                seen.setdefault(alert, time.monotonic() - began)
            elif not fires:
                seen.pop(alert, None)  # it came back
        return len(seen) == len(alerts)

    until(all_seen, PATIENCE)
    return seen


def table(rows: Sequence[Row]) -> str:
    """For a person."""
    lines = [("alert", "cause", "fired", "fix", "cleared")]
    for row in rows:
        name, severity = row.alert
        lines.append((
            f"{name} ({severity})", row.incident.cause, _after(row.fired), row.incident.fix, _after(row.cleared),
        ))  # fmt: skip
    wide = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, wide, strict=True)).rstrip() for line in lines
    )


def _after(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s"


def _seconds(seen: dict[Alert, float]) -> str:
    return ", ".join(f"{name} {seconds:.1f} s" for (name, _), seconds in seen.items()) or "nothing"


def _names(alerts: set[Alert]) -> str:
    return ", ".join(sorted({name for name, _ in alerts}))
