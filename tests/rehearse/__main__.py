"""`make rehearse ARGS='--only OutboxdLag'`: every alert's cause, the alert, its fix, in a running demo.

The daemons, the stores, Prometheus and the rules are real; the rules' durations and thresholds are shortened
(tests/deploy/prometheus.py). Progress goes to stderr, the table to stdout. 1: an alert did not fire, or did not clear.
"""

import argparse
import logging
import shutil
import sys
import time
from pathlib import Path

from daemon.demo.binaries import MissingPostgres, MissingPostgrest
from daemon.demo.cluster import shared_folder
from tests.deploy.prometheus import MissingPrometheus
from tests.rehearse.incidents import INCIDENTS
from tests.rehearse.run import rehearse, table
from tests.rehearse.stage import raised


def main() -> int:
    parser = argparse.ArgumentParser(prog="rehearse", description=__doc__)
    parser.add_argument("--only", help="alerts, with commas between them")
    parser.add_argument("--list", action="store_true", help="the incidents, and nothing else")
    parser.add_argument("--logs", type=Path, help="copy all logs there")
    given = parser.parse_args()
    wanted = set(given.only.split(",")) if given.only else None
    known = {name for incident in INCIDENTS for name, _ in incident.alerts}
    if wanted and wanted - known:
        parser.error(f"no such alert: {', '.join(sorted(wanted - known))}; there are {', '.join(sorted(known))}")
    chosen = [one for one in INCIDENTS if wanted is None or wanted & {name for name, _ in one.alerts}]
    if given.list:
        for incident in chosen:
            print(f"{', '.join(name for name, _ in incident.alerts)}: {incident.cause}. Fix: {incident.fix}.")
        return 0
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # connections break: that is what this is about
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    folder = shared_folder("outboxd-rehearsal-")
    try:
        with raised(folder / "run") as stage:
            say("two daemons, two stores, an application that writes, and Prometheus are running")
            rows = rehearse(stage, chosen, say)
    except (MissingPostgres, MissingPostgrest, MissingPrometheus) as missing:
        print(missing, file=sys.stderr)
        return 2
    finally:
        if given.logs:
            shutil.copytree(folder, given.logs, ignore=shutil.ignore_patterns("data"), dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    print(table(rows))
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
