"""Settings read again while the daemon runs: on SIGHUP, after the target refused the key, and while there is none.

Knows which settings may change between two batches, and who has to be told. Knows nothing of files: it is given a way
to read. What is worse than what is in force is not taken (promise I7: a typo must not stop what works).
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from daemon import logs, systemd
from daemon.breaker import Thresholds
from daemon.configuration import ConfigError, Loaded
from daemon.doorway import Doorway
from daemon.heartbeat import Heart
from daemon.provenance import Problem
from daemon.prune import Pruner
from daemon.relay import Relay
from daemon.settings import Settings
from daemon.source import Source
from daemon.target import Placed, Target

log = structlog.get_logger()

# What leads to the target. These alone are taken when nobody asked: after a refusal, and while they are missing.
_DOOR = ("supabase_url", "supabase_key", "target_dsn", "transport", "exposed_schema")
_BETWEEN_BATCHES = (*_DOOR, "batch_changes", "batch_bytes", "log_level", "retention", "breaker", "heartbeat_interval")


_SOURCE_AWAY = 10.0  # seconds: it has no gateway that asks for patience, and connecting costs it little


def thresholds(breaker: str, settings: Settings) -> Thresholds:
    """What is set for both breakers, as it holds for this one."""
    limits = settings.breaker.thresholds
    return replace(limits, open_cap=min(limits.open_cap, _SOURCE_AWAY)) if breaker == "source" else limits


class Parts(Protocol):
    """What of a daemon takes settings while it runs."""

    settings: Settings
    relay: Relay
    doorway: Doorway
    source: Source
    target: Target
    pruner: Pruner
    heart: Heart


@dataclass(frozen=True, slots=True)
class Difference:
    """What is to be in force, which settings change with it, and which would only after a restart."""

    settings: Settings
    applied: tuple[str, ...]
    restart: tuple[str, ...]


def differ(old: Settings, new: Settings, takes: Collection[str] = _BETWEEN_BATCHES) -> Difference:
    """Names only: what a setting is must not leave through a log."""
    changed = [name for name in Settings.model_fields if getattr(old, name) != getattr(new, name)]
    applied = tuple(name for name in changed if name in takes)
    settings = old.model_copy(update={name: getattr(new, name) for name in applied})
    # As it is written: a field may have another name than its setting.
    rest = tuple(Settings.model_fields[name].alias or name for name in changed if name not in applied)
    return Difference(settings, applied, rest)


def sentence(lacking: Collection[Problem]) -> str | None:
    """What is missing or wrong, for a status line; None when nothing is."""
    named = []
    for one in lacking:
        more = "; ".join([*[one.origin] * bool(one.origin), *[f"example: {one.example}"] * bool(one.example)])
        named.append(f"{one.setting} {one.what}{f' ({more})' if more else ''}")
    return ", and ".join(named) or None


class Reloader:
    """Looks when it is told to, and by itself `every` so many seconds while the target's settings are of no use."""

    def __init__(
        self,
        parts: Parts,
        lacking: tuple[Problem, ...],
        read: Callable[[], Loaded],
        open_door: Callable[[Settings], Placed],
        *,
        every: float = 15.0,
    ) -> None:
        self._parts = parts
        self.lacking = lacking
        self._read = read
        self._open_door = open_door
        self._every = every
        self._wanted = asyncio.Event()
        self._told = False
        self._complaint = ""
        parts.doorway.on_refused = self._wanted.set

    def hang_up(self) -> None:
        """SIGHUP."""
        self._told = True
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            idle = not (self.lacking or self._parts.doorway.refused)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if idle else self._every):
                    await self._wanted.wait()
            self._wanted.clear()
            told, self._told = self._told, False
            if told:
                systemd.reloading()
            await self.look(told=told)
            if told:
                systemd.notify(ready=1)

    async def look(self, *, told: bool) -> None:
        """Read, compare, and have what differs taken over between two turns of the relay."""
        try:
            found = self._read()
        except ConfigError as exc:
            self._complain(exc.problems, told=told)
            return
        if found.lacking and not self.lacking:  # what leads to the target is not given up for what does not
            self._complain(found.lacking, told=told)
            return
        self._complaint = ""
        difference = differ(self._parts.settings, found.settings, _BETWEEN_BATCHES if told else _DOOR)
        if difference.applied or found.lacking != self.lacking:
            await self._take(difference, found.lacking)
        if told or difference.applied:
            log.info(
                "settings_reloaded",
                applied=list(difference.applied),
                restart_needed=list(difference.restart) if told else [],
                lacking=[one.setting for one in self.lacking],
                because="SIGHUP" if told else "the target's settings were looked at again",
            )

    def _complain(self, problems: Collection[Problem], *, told: bool) -> None:
        """Once for each new mistake when nobody has asked; whenever somebody has."""
        complaint = sentence(problems) or ""
        if told or complaint != self._complaint:
            log.error("settings_refused", error=complaint, advice="what was in force stays in force")
        self._complaint = complaint

    async def _take(self, difference: Difference, lacking: tuple[Problem, ...]) -> None:
        taken = asyncio.get_running_loop().create_future()
        other_door = lacking != self.lacking or not set(_DOOR).isdisjoint(difference.applied)
        # Its libraries take most of a second to import, the first time.
        door = await asyncio.to_thread(self._open_door, difference.settings) if other_door and not lacking else None

        async def between_turns() -> None:
            self._adjust(difference)
            if other_door:
                await self._parts.relay.note()  # by that, another project is told from this one
                await self._parts.doorway.exchange(door, sentence(lacking))
                self._parts.target.breaker.relent()
                self._parts.relay.meet("the target's settings are new: it has not answered yet")
            self._parts.settings, self.lacking = difference.settings, lacking
            taken.set_result(None)

        self._parts.relay.adjust(between_turns)
        await taken

    def _adjust(self, difference: Difference) -> None:
        parts, settings = self._parts, difference.settings
        names = set(difference.applied)
        if names & {"batch_changes", "batch_bytes"}:
            parts.relay.resize(settings.batch_changes, settings.batch_bytes)
        if "breaker" in names:
            for breaker in (parts.target.breaker, parts.source.breaker):
                breaker.thresholds = thresholds(breaker.name, settings)
        if "retention" in names:
            parts.pruner.retention = settings.retention
        if "heartbeat_interval" in names:
            parts.heart.beat_every(settings.heartbeat_interval)
        if "log_level" in names:
            logs.set_level(settings.log_level)
