"""The real daemon, as a child process of the demo and the tests.

Knows how outboxd is started, and what it tells: its log, /api/status and /metrics. Must not know its inside.
"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from daemon.demo.process import Command, end, free_port, poll_until, spawn

# What is set on this machine for another outboxd, or for libpq, must not reach this one.
_FOREIGN = (
    "OUTBOXD_",
    "SUPABASE_",
    "DATABASE_URL",
    "PG",
    "NOTIFY_SOCKET",
    "WATCHDOG_",
    "CREDENTIALS_DIRECTORY",
    "OTEL_",
)


class Outboxd:
    """`outboxd run` with settings of its own, in a folder where no .env and no outboxd.toml lies."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str],
        *,
        name: str = "outboxd",
        environment: Mapping[str, str] | None = None,
        enter: Sequence[str] = (),
    ) -> None:
        """`settings` are named as in the documentation, without OUTBOXD_ and in any case. `enter` is put before the command."""
        self.port = free_port()
        self.host = settings.get("admin_host", "127.0.0.1")
        self._enter = list(enter)
        self.log = folder / f"{name}.log"
        self._folder = folder
        self._read = 0
        self._process: subprocess.Popen[bytes] | None = None
        kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(_FOREIGN)}
        mine = {"admin_port": str(self.port), "log_format": "json", **settings}
        named = {f"OUTBOXD_{key.upper()}": value for key, value in mine.items()}
        self.environment = {**kept, **named, **(environment or {})}

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process else None

    def start(self, arguments: Sequence[str] = ("run",)) -> None:
        command = [*self._enter, sys.executable, "-P", "-m", "daemon", *arguments]
        self._process = spawn(Command(command, self.environment, self._folder, self.log))

    def answering(self, seconds: float = 30.0) -> bool:
        """Wait until it answers or ends; whether it answers."""
        poll_until(lambda: self.returncode is not None or self.status() is not None, seconds)
        return self.status() is not None

    def send(self, what: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(what)

    def stop(self, patience: float = 10.0) -> int:
        """SIGTERM, as a supervisor does; the exit code."""
        if self._process is None:
            return 0
        end(self._process, signal.SIGTERM, patience)
        return self._process.returncode

    def kill(self) -> None:
        """SIGKILL: what a machine that runs out of memory does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def status(self) -> dict[str, Any] | None:
        """/api/status; None while nobody answers."""
        code, body = self.get("/api/status")
        return dict(json.loads(body)) if code == http.client.OK else None

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of one of its pages; 0 while nobody answers."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=2)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        return 0, ""

    def said(self) -> list[dict[str, Any]]:
        """Log lines since the last call."""
        with self.log.open("rb") as log:
            log.seek(self._read)
            text = log.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        return [dict(json.loads(line)) for line in whole.splitlines() if line.startswith(b"{")]

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-800:].strip() if self.log.exists() else "no log"
