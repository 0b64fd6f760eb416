"""A real Prometheus, promtool, and the rules as they are written or in a hurry.

Knows Debian's package (tests/fetch.sh prometheus), its flags and its HTTP API. Must not know what outboxd does.
"""

import json
import re
import shutil
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from daemon.demo.process import Command, end, free_port, poll_until, spawn

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy/prometheus"
ALERTS = DEPLOY / "alerts.yaml"
_FETCHED = ROOT / ".cache/prometheus/usr/bin"


class MissingPrometheus(Exception):
    """There is none on this machine."""


def program(name: str) -> Path:
    """`prometheus` or `promtool`."""
    if (_FETCHED / name).exists():
        return _FETCHED / name
    if installed := shutil.which(name):
        return Path(installed)
    raise MissingPrometheus("Prometheus is not on this machine: run tests/fetch.sh prometheus, or install it")


def promtool(*arguments: str | Path) -> tuple[int, str]:
    """Its exit code, and what it said."""
    said = subprocess.run(
        [program("promtool"), *arguments], cwd=DEPLOY, capture_output=True, text=True, check=False, timeout=120
    )
    return said.returncode, said.stdout + said.stderr


@cache
def groups() -> tuple[Mapping[str, Any], ...]:
    """The groups of alerts.yaml."""
    return tuple(yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"])


def rules() -> list[Mapping[str, Any]]:
    """Every rule."""
    return [rule for group in groups() for rule in group["rules"]]


def alerts() -> list[Mapping[str, Any]]:
    """The rules that alert."""
    return [rule for rule in rules() if "alert" in rule]


# -- in a hurry -----------------------------------------------------------------------------------------------

# What an hour is for in production must not take an hour to see. Only durations and thresholds are others: `for`, the
# windows, and the numbers that are seconds, bytes or starts. Each must occur where it is said to, or this is stale.
_WINDOWS = {"2m": "4s", "3m": "4s", "3m:": "4s:", "5m": "6s", "15m": "60s", "30m": "8s", "1h": "10s", "6h": "14s"}
_FOR = {
    "150s": "2s", "1m": "1s", "2m": "1s", "3m": "2s", "5m": "3s", "10m": "3s", "15m": "2s", "30m": "2s", "1d": "20s",
}  # fmt: skip
_THRESHOLDS = {
    "OutboxdLag": ((":seconds > 60", ":seconds > 4"), ("unknown:seconds > 4", "unknown:seconds > 12")),
    "OutboxdLagCritical": ((":seconds > 600", ":seconds > 8"), ("unknown:seconds > 8", "unknown:seconds > 16")),
    "OutboxdHeartbeatMissing": (("> 60 + 3", "> 4 + 3"),),
    "OutboxdLongTransaction": (("> 300", "> 5"),),
    "OutboxdFreshnessBurning": (("> 100", "> 10"),),
    "OutboxdOutboxGrowing": (("4 * 3600", "10"), ("20 * 1024 ^ 3", "24 * 1024 ^ 2")),
}


def shortened() -> dict[str, Any]:
    """The rules with shorter durations, every other character as it is."""
    made: list[dict[str, Any]] = []
    for group in groups():
        short = [_shortened(rule) for rule in group["rules"]]
        made.append({**group, "interval": "500ms", "rules": short})
    return {"groups": made}


def _shortened(rule: Mapping[str, Any]) -> dict[str, Any]:
    expression = re.sub(r"\[([^\]]+)\]", lambda found: f"[{_WINDOWS[found[1]]}]", rule["expr"])
    for old, new in _THRESHOLDS.get(rule.get("alert", ""), ()):
        if old not in expression:
            raise AssertionError(f"{rule['alert']} has no {old!r}: tests/deploy/prometheus.py knows an older one")
        expression = expression.replace(old, new)
    short = {**rule, "expr": expression}
    if "for" in rule:
        short["for"] = _FOR[rule["for"]]
    return short


# -- a running one --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prometheus:
    """One that scrapes and evaluates."""

    port: int
    log: Path
    place: Path

    def scrape(self, jobs: Mapping[str, Sequence[str]]) -> None:
        """From now on these: daemons (`host:port`) by job."""
        given = [{"targets": list(daemons), "labels": {"job": job}} for job, daemons in jobs.items()]
        new = self.place / "daemons.new"
        new.write_text(json.dumps(given))
        new.replace(self.place / "daemons.json")

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """An instant query: the samples."""
        return list(self._get("query", query=expression)["result"])

    def value(self, expression: str) -> float | None:
        """Of one series; None when there is none."""
        found = self.ask(expression)
        return float(found[0]["value"][1]) if found else None

    def firing(self) -> dict[tuple[str, str], Mapping[str, Any]]:
        """The alerts that fire, by name and severity."""
        return {
            (alert["labels"]["alertname"], alert["labels"]["severity"]): alert
            for alert in self._get("alerts")["alerts"]
            if alert["state"] == "firing"
        }

    def targets(self) -> list[dict[str, Any]]:
        """What it scrapes, and how that went."""
        return list(self._get("targets", state="active")["activeTargets"])

    def unhealthy(self) -> list[str]:
        """Rules that cannot be evaluated, with the reason."""
        found = self._get("rules")["groups"]
        return [
            f"{rule['name']}: {rule['lastError']}"
            for group in found
            for rule in group["rules"]
            if rule.get("lastError")
        ]

    def _get(self, what: str, **parameters: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return dict(json.loads(answer.read())["data"])


@contextmanager
def running(folder: Path, daemons: Sequence[str], rules: Mapping[str, Any] | None = None) -> Iterator[Prometheus]:
    """Prometheus over these daemons (`host:port`), once a second, with the rules in a hurry; ended afterwards."""
    place = folder / "prometheus"
    place.mkdir()
    # JSON is YAML.
    (place / "alerts.yaml").write_text(json.dumps(rules or shortened()))
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "500ms"}
    config["scrape_configs"][0]["scrape_timeout"] = "1s"
    del config["scrape_configs"][0]["static_configs"]
    config["scrape_configs"][0]["file_sd_configs"] = [{"files": ["daemons.json"], "refresh_interval": "1s"}]
    (place / "prometheus.yml").write_text(json.dumps(config))
    port, log = free_port(), folder / "prometheus.log"
    arguments = [
        program("prometheus"), f"--config.file={place}/prometheus.yml", f"--storage.tsdb.path={place}/data",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn", "--query.lookback-delta=10s",
    ]  # fmt: skip
    made = Prometheus(port, log, place)
    made.scrape({"outboxd": daemons})
    environment = {"PATH": "/usr/bin:/bin", "GOGC": "50"}
    process = spawn(Command([str(part) for part in arguments], environment, place, log, None, signal.SIGKILL))
    try:
        if not poll_until(lambda: process.poll() is not None or _ready(port), 60) or process.poll() is not None:
            raise RuntimeError(f"Prometheus did not start: {log.read_text(errors='replace')[-800:]}")
        yield made
    finally:
        end(process, signal.SIGTERM, 20)


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5) as answer:
            return int(answer.status) == 200
    except OSError:
        return False
