"""The recorded run in a real Prometheus, asked as Grafana asks: with its variables filled in.

Knows promtool, the server's command line and its HTTP API. Must not know the dashboard.
"""

import json
import lzma
import math
import os
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.demo.process import Command, end, free_port, poll_until, spawn
from tests.deploy.prometheus import program
from tests.deploy.record import INTERVAL, JOB, SAMPLES

# As Grafana does it: four times the interval of the scrapes, at the least.
_FILLED_IN = {"$__rate_interval": f"{4 * INTERVAL:g}s", "$job": JOB, "$instance": ".*"}


@dataclass(frozen=True)
class Line:
    """One series of an answer, without the values that are no number."""

    labels: dict[str, str]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Recorded:
    """A running Prometheus that knows the samples and nothing else."""

    url: str
    start: float
    end: float

    def instant(self, expr: str) -> list[Line]:
        found = self._get("query", query=filled_in(expr), time=f"{self.end:.3f}")
        return _lines([one | {"values": [one["value"]]} for one in found])

    def range(self, expr: str, step: float = INTERVAL) -> list[Line]:
        times = {"start": f"{self.start:.3f}", "end": f"{self.end:.3f}", "step": f"{step:g}"}
        return _lines(self._get("query_range", query=filled_in(expr), **times))

    def values(self, label: str, selector: str) -> list[str]:
        """As the variable `label_values(selector, label)` has it."""
        times = {"start": f"{self.start:.0f}", "end": f"{self.end:.0f}", "match[]": filled_in(selector)}
        return list(self._get(f"label/{label}/values", **times))

    def _get(self, path: str, **what: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(what)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310  it is ours, on loopback
                data = json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{json.load(error)['error']}: {what.get('query', url)}") from None
        return data["result"] if isinstance(data, dict) else data


def filled_in(expr: str) -> str:
    for variable, value in _FILLED_IN.items():
        expr = expr.replace(variable, value)
    return expr


def _lines(found: list[Any]) -> list[Line]:
    made = []
    for one in found:
        points = ((float(at), float(value)) for at, value in one["values"])
        kept = tuple((at, value) for at, value in points if math.isfinite(value))
        if kept:
            made.append(Line(one["metric"], kept))
    return made


@contextmanager
def recorded(folder: Path) -> Iterator[Recorded]:
    """The samples as blocks in a folder, and a server over them."""
    server, tool = program("prometheus"), program("promtool")
    text = lzma.decompress(SAMPLES.read_bytes()).decode()
    times = [float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("up{")]
    plain, blocks, config = folder / "run.om", folder / "blocks", folder / "prometheus.yml"
    plain.write_text(text)
    config.write_text("")
    made: list[str | Path] = [tool, "tsdb", "create-blocks-from", "openmetrics", plain, blocks]
    told = subprocess.run(made, check=False, capture_output=True, text=True)
    if told.returncode:
        raise RuntimeError(f"promtool does not take the samples: {told.stderr[-600:]}")
    port = free_port()
    options = {
        "config.file": config,
        "storage.tsdb.path": blocks,
        "storage.tsdb.retention.time": "100y",
        "web.listen-address": f"127.0.0.1:{port}",
        # Blocks made afterwards lack the mark of a target that went away; without it old values would stay five minutes.
        "query.lookback-delta": f"{2.5 * INTERVAL:g}s",
        "log.level": "warn",
    }
    argv = [str(server), *(f"--{name}={value}" for name, value in options.items())]
    process = spawn(Command(argv, {"PATH": os.defpath}, folder, folder / "prometheus.log"))
    try:
        one = Recorded(f"http://127.0.0.1:{port}", min(times), max(times))
        if not poll_until(lambda: process.poll() is not None or _ready(one.url), 60) or process.poll() is not None:
            raise RuntimeError(f"Prometheus did not start: {(folder / 'prometheus.log').read_text()[-600:]}")
        yield one
    finally:
        end(process, signal.SIGTERM, 20)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=2) as answer:  # noqa: S310  it is ours, on loopback
            return bool(answer.status == 200)
    except OSError:
        return False
