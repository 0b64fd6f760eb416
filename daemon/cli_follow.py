"""What a person sees while the daemon, or this process, does what a command has asked for: a bar on stderr.

Knows how to draw. Knows nothing of what is done.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from daemon.talk import say

if TYPE_CHECKING:
    from daemon.follow import Seen
    from daemon.settings import Settings

_PATIENCE = 15.0  # seconds without a row, after which the person is told where to look


@dataclass(frozen=True, slots=True)
class Work:
    """What is watched. `here`, `there`: words for what this process does, or the daemon; `rows` and `doing`: how far it
    is; `ended`: whether there is nothing left to wait for."""

    here: str
    there: str
    most: Callable[["Seen"], int]
    rows: Callable[["Seen"], int]
    ended: Callable[["Seen"], bool]
    doing: Callable[["Seen"], str] = lambda _: ""


async def watched(settings: "Settings", work: Work, *, patience: float, within: float | None) -> "Seen":
    """Until it has ended, with a bar. `patience`: seconds of trouble after which it is given up; `within`: in all."""
    from daemon.follow import follow  # with both transports: not for `outboxd --help`

    began = moved = time.monotonic()
    last, hinted, trouble, bar = 0, False, None, None
    async for seen in follow(settings, work.ended, patience=patience, within=within):
        if bar is None:
            say(work.here if seen.alone else f"the daemon that runs {work.there}; to interrupt this does not stop it")
            bar = click.progressbar(
                length=max(1, work.most(seen)), file=sys.stderr, item_show_func=_text, show_eta=True
            )
            bar.__enter__()
        if seen.trouble and not trouble:
            _aside(f"waiting: {seen.trouble}")
        trouble = seen.trouble
        now, rows = time.monotonic(), work.rows(seen)
        if rows > last:
            moved = now
        elif not (seen.alone or hinted or trouble) and now > moved + _PATIENCE:
            hinted = True
            _aside("nothing has come of it yet: `outboxd status` says what the daemon is at")
        bar.update(max(0, rows - last), f"{rows} rows, {rows / max(now - began, 0.1):.0f} rows/s{work.doing(seen)}")
        last = max(rows, last)
    assert bar is not None
    bar.__exit__(None, None, None)
    return seen


def _text(item: str | None) -> str | None:
    return item


def _aside(text: str) -> None:
    """Between two states of the bar, which stands on the line."""
    say(*([""] if sys.stderr.isatty() else []), text)
