"""`make torture SECONDS=… SEED=…`: a run by hand, printed as it goes."""

import argparse
import json
import logging
import random
import shutil
import signal
import sys
from pathlib import Path

from daemon.demo.binaries import MissingPostgres, MissingPostgrest
from daemon.demo.cluster import shared_folder
from tests.torture.run import torture


def main() -> int:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, help="default: a new one, which is printed")
    parser.add_argument("--postgres", type=int, help="major version of PostgreSQL (default: 17)")
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON, the rest to stderr")
    parser.add_argument("--logs", type=Path, help="copy all logs there")
    given = parser.parse_args()
    seed = random.randrange(1_000_000) if given.seed is None else given.seed
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # connections break: that is what this is about
    out = sys.stderr if given.json else sys.stdout
    signal.signal(
        signal.SIGTERM, lambda number, _: sys.exit(128 + number)
    )  # clears up on the way: a server may be frozen
    print(f"torture for {given.seconds:.0f} s, SEED={seed}", file=out, flush=True)
    folder = shared_folder("outboxd-torture-")
    try:
        verdict = torture(
            folder / "run", given.seconds, seed, lambda text: print(text, file=out, flush=True), given.postgres
        )
    except (MissingPostgres, MissingPostgrest) as missing:
        print(missing, file=sys.stderr)
        return 2
    finally:
        if given.logs:
            shutil.copytree(folder, given.logs, ignore=shutil.ignore_patterns("data"), dirs_exist_ok=True)
    print(json.dumps(verdict.as_dict()) if given.json else f"\n{verdict}", flush=True)
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
