"""Failpoints: places where a test stops or kills the process. Without the variable they do nothing.

Knows one environment variable, which tests alone set: ``OUTBOXD_FAILPOINT=name:kill``, ``name:kill:3`` (the third
time the place is reached) or ``name:freeze`` (the process stops as a whole, until it gets SIGCONT).
"""

import os
import signal
from collections.abc import Mapping
from typing import Any

VARIABLE = "OUTBOXD_FAILPOINT"

_ACTIONS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}
_name, _, _rest = os.environ.get(VARIABLE, "").partition(":")
_action, _, _count = _rest.partition(":")
_left = int(_count or 1)

if _name and _action not in _ACTIONS:
    raise ValueError(f"{VARIABLE} is name:kill, name:kill:times or name:freeze")


def reach(name: str) -> None:
    """The process came by here."""
    if name != _name:
        return
    global _left  # noqa: PLW0603  a process has one failpoint
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), _ACTIONS[_action])


async def _traced(event: str, _: Mapping[str, Any]) -> None:
    if event == "http11.send_request_body.complete":
        reach("after_send")


# What httpx tells of a request while it is under way: only there can one be met that is sent and not answered.
EXTENSIONS: Mapping[str, Any] = {"trace": _traced} if _name == "after_send" else {}
