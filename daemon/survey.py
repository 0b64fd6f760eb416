"""Looking at every watched table on both sides, for a verdict.

Knows what to ask of either side, and how often. Knows nothing of what follows from it (daemon/watchlist.py,
daemon/verdict.py). Changes nothing.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from daemon.breaker import BreakerOpen
from daemon.copies import Copy, Wish
from daemon.errors import DaemonError, SourceUnfit
from daemon.leaders import Stranger
from daemon.noticing import rest
from daemon.origin import Origin
from daemon.source import Source
from daemon.target import Target
from daemon.watchlist import State, Tables, by_table

_MOMENT = 0.1  # seconds: longer than a commit takes to let go of its locks
_WELL, _UNWELL = 15.0, 4.0  # seconds between two looks at the source
_FITS, _DOES_NOT = 300.0, 15.0  # and between two descriptions of the target, which are long, and may be paid for


async def survey(source: Source, described: Mapping[str, Any] | None) -> Tables:
    """`described`: what the target has said of its mirrors; None: it says nothing."""
    rows = await source.records("check_watched")
    wishes = {one[0]: Wish(*one) for one in await source.ask("copy_wanted")}
    captured = [row["table_name"] for row in rows if row["capture"]]
    fits = {
        table: (unfit, tuple(columns or ()))
        for table, unfit, columns, _ in (await source.ask("copy_fit", {"tables": captured}) if captured else ())
    }
    labels = by_table(await source.records("check_labels"))
    return Tables(rows, wishes, fits, labels, described)


async def origin(source: Source) -> Origin:
    """Which source this is."""
    [row] = await source.records("source_origin")
    installation = None
    with contextlib.suppress(SourceUnfit):  # its schema is not there: a server and a database it is all the same
        [(installation,)] = await source.ask("source_installation")
    return Origin(**row, installation=installation)


async def strangers(source: Source) -> list[Stranger]:
    """Who has locks of outboxd's and may not lead. A writer that commits may pass for one for a moment: never twice."""
    found = [Stranger(*row) for row in await source.ask("strangers")]
    if any(one.what == "wake" for one in found):
        await asyncio.sleep(_MOMENT)
        again = {row[:2] for row in await source.ask("strangers")}
        found = [one for one in found if one.what != "wake" or (one.what, one.who) in again]
    return found


class Surveyor:
    """Surveys again when it is time, sooner while something is amiss. `told`: what the relay was told of the target last,
    which costs no request; None: it does not answer even that."""

    def __init__(
        self, source: Source, target: Target, told: Callable[[], Mapping[str, Any] | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._source = source
        self._target = target
        self._told = told
        self._clock = clock
        self._seen: Tables | None = None
        self._last_told: Mapping[str, Any] | None = None
        self._described: Mapping[str, Any] | None = None
        self._wished: frozenset[str] = frozenset()
        self._look_at = self._ask_at = float("-inf")

    def forget(self) -> None:
        """An old look would be a wrong one."""
        self._seen = None
        self._look_at = self._ask_at = float("-inf")

    async def look(self, wished: Collection[str], copies: Mapping[str, Copy] | None) -> Tables:
        """The tables as they were seen last. `wished`: those that the relay knows of: when these are others than before,
        it is looked at once. Raises what the source raises."""
        now, seen, told = self._clock(), self._seen, self._told()
        others, self._wished = self._wished != frozenset(wished), frozenset(wished)
        news, self._last_told = told is not self._last_told, told
        if seen is not None and not (others or news) and now < self._look_at:
            return seen
        if news:
            self._described, self._ask_at = told, now + _FITS
        elif told is not None and (others or now >= self._ask_at):
            with contextlib.suppress(DaemonError, BreakerOpen):
                self._described = (await self._target.describe()).more
            self._ask_at = now + _FITS
        began = self._clock()
        self._seen = seen = await survey(self._source, self._described)
        took = self._clock() - began
        states = {one.state for one in seen.entries(copies)}
        self._look_at = now + rest(_WELL if states <= {State.WELL} else _UNWELL, took)
        if states & {State.MISSING, State.UNFIT, State.OUT}:
            self._ask_at = min(self._ask_at, now + _DOES_NOT)
        return seen
