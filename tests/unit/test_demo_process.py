"""Programs are started, or whoever asked is told at once why not."""

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from daemon.demo.process import Command, end, spawn


def started(folder: Path, **environment: Any) -> Any:
    """What `spawn` gave, or raised. Asked on a thread of its own: a test that hangs says nothing."""
    told: list[Any] = []

    def ask() -> None:
        command = Command(["/bin/cat"], environment, folder, folder / "log", None, signal.SIGKILL)
        try:
            told.append(spawn(command))
        except Exception as exc:  # noqa: BLE001  looked at by the test
            told.append(exc)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(10)
    assert told, "nobody answers"
    return told[0]


@pytest.mark.parametrize("wrong", [{"PORT": 5432}, {"PORT": None}, {"PORT": "a\0b"}])
def test_an_environment_that_cannot_be_is_told_at_once(wrong: dict[str, Any], tmp_path: Path) -> None:
    """And whoever comes next is served."""
    assert isinstance(started(tmp_path, **wrong), (TypeError, ValueError))
    end(started(tmp_path, PORT="5432"), signal.SIGKILL, 10)
