"""Writers: pgbench with the application's insert, as fast as they can or at a steady rate.

Knows pgbench. Must not know who moves the rows.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from daemon.demo.binaries import library_path
from daemon.demo.process import Command, spawn
from tests.bench.site import Stores
from tests.bench.systems import BenchFailed

_HERE = Path(__file__).parent
STORY = ("-f", str(_HERE / "story.sql"))
BLOCK = ("-f", str(_HERE / "block.sql"))
TPC_B = ("-b", "tpcb-like")


def write(
    stores: Stores, folder: Path, *, clients: int, seconds: float, rate: int | None = None,
    script: Sequence[str] = STORY,
) -> float:  # fmt: skip
    """Transactions a second, without the time to connect."""
    cluster = stores.source.cluster
    argv = [
        str(cluster.installed / "pgbench"), "-n", "-M", "prepared", "-c", str(clients), "-j", str(min(clients, 2)),
        "-T", str(max(1, round(seconds))), *script, *(["-R", str(rate)] if rate else []),
        "-h", "127.0.0.1", "-p", str(cluster.port), "-U", "postgres", stores.source.name,
    ]  # fmt: skip
    log = folder / "pgbench.log"
    log.unlink(missing_ok=True)
    code = spawn(Command(argv, {"PATH": os.defpath, **library_path(cluster.installed)}, folder, log)).wait()
    said = log.read_text(encoding="utf-8")
    found = re.search(r"tps = ([\d.]+)", said)
    if code != 0 or not found:
        raise BenchFailed(f"the writers failed: {said[-600:].strip()}")
    return float(found[1])
