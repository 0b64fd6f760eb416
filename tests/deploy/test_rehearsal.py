"""`make rehearse`, in small: one incident with two alerts; by hand all of them."""

from pathlib import Path

import pytest

from daemon.demo.binaries import MissingPostgrest
from tests.deploy.prometheus import MissingPrometheus, alerts
from tests.rehearse.incidents import INCIDENTS
from tests.rehearse.run import rehearse, table
from tests.rehearse.stage import raised

SMALL = {"OutboxdDisabled", "OutboxdStalled"}


def test_every_alert_is_rehearsed() -> None:
    """Each has an incident that brings it about."""
    rehearsed = {alert for incident in INCIDENTS for alert in incident.alerts}
    assert rehearsed == {(rule["alert"], rule["labels"]["severity"]) for rule in alerts()}


@pytest.mark.slow
def test_incidents_raise_their_alerts_and_fixes_end_them(run_folder: Path) -> None:
    """A real Prometheus says so, both times."""
    chosen = [incident for incident in INCIDENTS if SMALL & {name for name, _ in incident.alerts}]
    try:
        with raised(run_folder / "rehearsal") as stage:
            rows = rehearse(stage, chosen, print)
            assert stage.prometheus.unhealthy() == []
    except (MissingPostgrest, MissingPrometheus) as missing:
        pytest.skip(str(missing))
    assert all(row.good for row in rows), f"\n{table(rows)}"
    assert {row.alert[0] for row in rows} == SMALL
