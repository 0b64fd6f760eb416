"""Failpoints: places where a test stops or kills the process. Without the variable they do nothing.

Knows one environment variable, which tests alone set: ``OUTBOXD_FAILPOINT=name:kill``, ``name:kill:3`` (the third
time the place is reached), ``name:freeze`` (the process stops as a whole, until it gets SIGCONT) or ``name:hang``
(whoever came by waits for ever, and the rest of the process goes on).
"""

import asyncio
import os
import signal
from collections.abc import Mapping
from typing import Any

VARIABLE = "OUTBOXD_FAILPOINT"

_ACTIONS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}
_HANG = "hang"
_name, _, _rest = os.environ.get(VARIABLE, "").partition(":")
_action, _, _count = _rest.partition(":")
_left = int(_count or 1)

if _name and _action not in {*_ACTIONS, _HANG}:
    raise ValueError(f"{VARIABLE} is name:kill, name:kill:times, name:freeze or name:hang")


def reach(name: str) -> None:
    """The process came by here."""
    if name == _name and _action in _ACTIONS and _counted_out():
        os.kill(os.getpid(), _ACTIONS[_action])


async def come_by(name: str) -> None:
    """The same where one may wait: the one kind of place that can hang."""
    reach(name)
    if name == _name and _action == _HANG and _counted_out():
        await asyncio.Event().wait()


def _counted_out() -> bool:
    global _left  # noqa: PLW0603  a process has one failpoint
    _left -= 1
    return _left == 0


async def _traced(event: str, _: Mapping[str, Any]) -> None:
    if event == "http11.send_request_body.complete":
        reach("after_send")


# What httpx tells of a request while it is under way: only there can one be met that is sent and not answered.
EXTENSIONS: Mapping[str, Any] = {"trace": _traced} if _name == "after_send" else {}
