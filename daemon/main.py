"""The daemon put together: what runs, what it is made of, how it ends.

Knows every part and its settings. One TaskGroup; a bug in any task ends the process with an error, and the
supervisor starts it again. SIGTERM finishes the current turn, or abandons it after a while, and exits 0; a second
signal kills.
"""

import asyncio
import contextlib
import os
import random
import resource
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import structlog

from daemon import schema_apply, systemd, tracing
from daemon.admin import Admin, Views
from daemon.batch import Limits
from daemon.breaker import Breaker, BreakerOpen, State, Transition
from daemon.configuration import Loaded
from daemon.copier import Copier
from daemon.doorway import Doorway
from daemon.errors import DaemonError, Fenced, SourceUnavailable, TargetError, advice, passes
from daemon.heartbeat import Heart
from daemon.lead import Keeper, contested
from daemon.leaders import Stranger, session_name
from daemon.logs import redact
from daemon.metrics import Metrics
from daemon.noticing import Noticing
from daemon.progress import Timing
from daemon.prune import Pruner
from daemon.relay import Relay
from daemon.reload import Reloader, sentence, thresholds
from daemon.report import Judge, Observed, Report
from daemon.rest import RestDoor
from daemon.settings import Settings, overruled
from daemon.source import Source
from daemon.survey import Surveyor, origin, strangers
from daemon.target import Placed, PostgresDoor, Target
from daemon.tracing import Tracing
from daemon.verdict import KINDS, SMALL
from daemon.verifier import Verifier
from daemon.wakeup import Bell
from outbox import __version__

log = structlog.get_logger()

OK, FAILED, AWAY = 0, 1, 75
NAME = f"outboxd/{__version__}"
_GAUGES = 2.0
_LOOK = 0.2  # until the tables have been looked at
_KNOCK = 2.0
_FENCED = 5.0
_LAST_TURN = 20.0  # seconds; supervisors kill after 30 (Kubernetes) to 90 (systemd)
_BREAKER_MOVED = {
    State.OPEN: "breaker_opened",
    State.HALF_OPEN: "breaker_half_opened",
    State.CLOSED: "breaker_closed",
}


def open_door(settings: Settings) -> Placed:
    """The transport the settings name."""
    if settings.transport == "postgres":
        return PostgresDoor(
            settings.target_conninfo,
            exposed_schema=settings.exposed_schema,
            deadline=settings.request_timeout,
            application_name=NAME,
        )
    assert settings.supabase_url is not None
    assert settings.supabase_key is not None
    return RestDoor(
        settings.supabase_url,
        settings.supabase_key.get_secret_value(),
        exposed_schema=settings.exposed_schema,
        deadline=settings.request_timeout,
        user_agent=NAME,
    )


@dataclass
class Daemon:
    """Everything one process runs."""

    settings: Settings
    metrics: Metrics
    source: Source
    gauges: Source
    target: Target
    doorway: Doorway
    bell: Bell
    pruner: Pruner
    relay: Relay
    keeper: Keeper
    heart: Heart
    judge: Judge
    report: Report
    reloader: Reloader = field(init=False)
    tracing: Tracing | None = None

    @classmethod
    def build(cls, loaded: Loaded, metrics: Metrics, read: Callable[[], Loaded]) -> "Daemon":
        """Wire the parts; nothing connects yet. `read`: how the settings are read again."""
        settings = loaded.settings
        doorway = Doorway(None if loaded.lacking else open_door(settings), sentence(loaded.lacking))
        observed = Observed(metrics)
        breaker = _breaker("target", settings, observed)
        source = Source(
            settings.source_conninfo,
            Limits(settings.batch_changes, settings.batch_bytes, settings.row_bytes),
            breaker=_breaker("source", settings, observed),
            application_name=NAME,
        )
        traced = tracing.begin(settings.relay, redact)
        source.traced = traced is not None
        gauges = Source(settings.source_conninfo, application_name=f"{NAME} gauges")
        target = Target(doorway, settings.relay, breaker, metrics.target_request, place=lambda: doorway.place)
        here = session_name(NAME, socket.gethostname(), os.getpid())
        bell = Bell(settings.source_conninfo, application_name=NAME, session_name=here)
        timing = Timing(poll=settings.poll_interval, request=settings.request_interval, wake=settings.wake)
        pruner = Pruner(
            settings.retention,
            lambda done: metrics.pruned(emptied=done.emptied is not None, up_to_id=done.up_to_id),
        )
        copier = Copier(
            source, target, rate=settings.copy_rows_per_second, recheck=timing.recheck, mend=_mender(settings),
            noticing=Noticing(gauges, aside=True),
        )  # fmt: skip
        verifier = Verifier(
            source,
            target,
            every=settings.verify_interval,
            rate=settings.verify_rows_per_second,
            verified=metrics.rows_verified,
        )
        metrics.verify_every(settings.verify_interval)
        relay = Relay(
            source, target, bell, observed, timing, pruner=pruner, copier=copier, verifier=verifier, tracing=traced
        )
        keeper = Keeper(
            bell,
            relay,
            lambda leads, listening: metrics.leadership(leads=leads, listening=listening),
            unable=lambda: doorway.lacking,
        )
        heart = Heart(
            gauges, relay, settings.relay, metrics, interval=settings.heartbeat_interval, leads=lambda: keeper.leads
        )
        judge = Judge(relay, breaker, doorway, metrics)
        observed.on_change = judge.look
        report = Report(
            settings.relay, relay, judge, bell, keeper, metrics, settings.request_timeout, time.time(),
            small=SMALL + settings.request_interval,
        )  # fmt: skip
        metrics.show_copies(report.copies)
        metrics.show_verifications(report.verifications)
        metrics.show_verdict(KINDS, report.counted)
        made = cls(
            settings, metrics, source, gauges, target, doorway, bell, pruner, relay, keeper, heart, judge, report
        )
        made.tracing = traced
        made.reloader = Reloader(made, loaded.lacking, read, open_door, every=timing.recheck)
        return made

    async def run(self) -> None:
        """Until a signal, or Fenced."""
        admin = self._admin()
        async with asyncio.TaskGroup() as group:
            turning = group.create_task(self.relay.run())
            with _signals(lambda: self._stop(turning), self.reloader.hang_up):
                loops = [
                    self.keeper.run(),
                    self._watch_gauges(),
                    self._watch_tables(),
                    self._ask_target(),
                    self.heart.run(),
                    self._tell_systemd(),
                    self.reloader.run(),
                ]
                aside = [group.create_task(loop) for loop in [*loops, *([admin.run()] if admin else [])]]
                log.info(
                    "daemon_started",
                    version=__version__,
                    relay=self.settings.relay,
                    transport=self.settings.transport,
                    mode=self.judge.worth.mode,
                    admin=self.settings.admin_url(admin.port) if admin else None,
                )
                systemd.notify(ready=1, status="started")
                try:
                    await asyncio.wait([turning])
                finally:
                    self.metrics.set_state("stopping")
                    for task in aside:
                        task.cancel()
        log.info("daemon_stopped", applied=self.relay.status.applied)

    def _stop(self, turning: "asyncio.Task[None]") -> None:
        """Let the relay finish; a request that hangs is left to itself. The target has it or not: the next process
        asks."""
        systemd.notify(stopping=1)
        self.relay.stop()

        def abandon() -> None:
            if not turning.done():
                log.warning("batch_abandoned", after_s=_LAST_TURN)
                turning.cancel()

        asyncio.get_running_loop().call_later(_LAST_TURN, abandon)

    async def until_idle(self) -> int:
        """Lead, finish what there is, let go. Returns how many changes were applied."""
        await self.bell.connect()
        if not await self.bell.try_lead(contested):
            raise SourceUnavailable("another outboxd leads this relay: it does the work already")
        self.keeper.leads = True
        self.relay.lead()
        pings = asyncio.create_task(self.keeper.run())
        try:
            applied = await self.relay.finish()
            await self.relay.note()  # nobody else will tell the source before long
            return applied
        finally:
            pings.cancel()

    async def close(self) -> None:
        """Let go of every connection."""
        for part in (self.source, self.gauges, self.target, self.bell, self.tracing):
            with contextlib.suppress(OSError, DaemonError):
                if part is not None:
                    await part.close()

    def _admin(self) -> Admin | None:
        if not self.settings.admin:
            return None
        report = self.report
        views = Views(
            report.alive, report.ready, report.status, self.metrics.render, report.name, report.seen.installation
        )
        return Admin(views, self.settings.admin_host, self.settings.admin_port, self.settings.admin_hosts)

    async def _watch_gauges(self) -> None:
        """How much waits and how the source does, on a connection of its own, also while the relay hangs."""
        while True:
            self.judge.look()
            try:
                self.report.seen.origin = await origin(self.gauges)  # each time: its schema may be another by now
                if self.keeper.leads or self.doorway.lacking:
                    cursor = self.relay.status.cursor or await self.gauges.remembered_cursor(self.settings.relay)
                    backlog, age = await self.gauges.backlog(cursor)
                    self.metrics.lag.observe(age, backlog)
                else:
                    self.metrics.lag.forget()
                started = time.monotonic()
                oldest, rows, size, newest = await self.gauges.health()
                self.metrics.source_query("status", time.monotonic() - started)
                self.metrics.source_health(oldest_transaction=oldest, rows=rows, size=size, newest_id=newest)
                self._learn(await self.gauges.ask("leaders"), await strangers(self.gauges))
            except (DaemonError, BreakerOpen) as exc:
                log.debug("gauges_failed", error=str(exc))
                self.report.company.learn([])
            due = time.monotonic() + _GAUGES
            await asyncio.sleep(_GAUGES)
            self.metrics.loop_lag(max(0.0, time.monotonic() - due))
            for name, breaker in (("target", self.target.breaker), ("source", self.source.breaker)):
                self.metrics.breaker_ratio(name, breaker.failure_ratio)

    def _learn(self, daemons: list[tuple[Any, ...]], others: list[Stranger]) -> None:
        """Who leads, and who is in the way: said when somebody comes to be, however many follow."""
        company = self.report.company
        if others and not company.strangers:
            first = others[0]
            log.warning("lock_held_by_stranger", held_by=first.told, advice=f"{first.remedy};", more=len(others) - 1)
        company.learn(daemons, others)

    async def _watch_tables(self) -> None:
        """Is every watched table captured and copied, and does it fit? For the verdict of whoever leads."""
        surveyor = Surveyor(self.gauges, self.target, lambda: self.relay.described)
        copier, seen = self.relay.copier, self.report.seen

        def fits() -> None:
            copier.recheck()
            surveyor.forget()
            self.relay.ask_again()

        self.bell.on_fits = fits
        while True:
            if self.keeper.leads:
                try:
                    seen.tables = await surveyor.look(copier.wishes, copier.copies if self.relay.stated else None)
                    seen.unseen = None
                except (DaemonError, BreakerOpen) as exc:
                    seen.tables, seen.unseen = None, str(exc)
            else:
                surveyor.forget()
                seen.tables = seen.unseen = None
            await asyncio.sleep(_LOOK if seen.tables is None else _GAUGES)

    async def _ask_target(self) -> None:
        """While the source is away no batch shows how the target does: then it is asked, so that its breaker knows."""
        while True:
            await asyncio.sleep(_KNOCK)
            if not (self.bell.connected or self.doorway.lacking):
                with contextlib.suppress(DaemonError, BreakerOpen):
                    await self.target.cursor()

    async def _tell_systemd(self) -> None:
        """STATUS, and WATCHDOG only while the relay's loop gives signs of life."""
        interval = systemd.watchdog_interval()
        while True:
            status = self.relay.status
            mode = f"{self.judge.worth.mode}, " if self.judge.worth.because else ""
            systemd.notify(status=f"{mode}{status.state}: {status.problem or 'nothing needs you'}")
            if interval and self.report.alive():
                systemd.notify(watchdog=1)
            await asyncio.sleep(interval or 10.0)


def _mender(settings: Settings) -> Callable[[str], Awaitable[None]] | None:
    """What is done, unasked, to make a table fit that is out; None: nothing."""
    if settings.schema_.auto != "additive" or settings.target_dsn is None:
        return None

    async def mend(table: str) -> None:
        try:
            done = await asyncio.to_thread(
                schema_apply.apply, settings.source_conninfo, settings.target_conninfo, settings.tables, [table]
            )
        except Exception as exc:  # noqa: BLE001  whatever keeps it from being mended, the table stays out and says why
            said = str(exc) if isinstance(exc, DaemonError) else getattr(exc, "sqlstate", None) or type(exc).__name__
            log.warning("schema_not_applied", table=table, error=said)
        else:
            log.info("schema_applied", table=table, steps=len(done.steps), destructive_left=len(done.left))
            for sentence in (*done.plan.problems, *done.refused):
                log.warning("schema_not_applied", table=table, error=sentence)

    return mend


def _breaker(name: str, settings: Settings, observed: Observed) -> Breaker:
    def moved(transition: Transition) -> None:
        observed.breaker_changed(transition.breaker, transition.new)
        log.warning(
            _BREAKER_MOVED[transition.new],
            breaker=transition.breaker,
            reason=transition.reason,
            retry_in_s=round(transition.retry_in, 2),
        )

    return Breaker(name, thresholds(name, settings), on_transition=moved)


@contextlib.contextmanager
def _signals(stop: Callable[[], None], hang_up: Callable[[], None]) -> Iterator[None]:
    """The first SIGTERM or SIGINT stops; the second meets the default handler and kills. SIGHUP reads settings again."""
    loop = asyncio.get_running_loop()
    caught = (signal.SIGTERM, signal.SIGINT)

    def first(number: signal.Signals) -> None:
        for each in caught:
            loop.remove_signal_handler(each)
        log.info("stop_requested", signal=number.name)
        stop()

    for each in caught:
        loop.add_signal_handler(each, first, each)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    try:
        yield
    finally:
        for each in (*caught, signal.SIGHUP):
            loop.remove_signal_handler(each)


async def run(loaded: Loaded, metrics: Metrics, read: Callable[[], Loaded], *, until_idle: bool = False) -> int:
    """The whole process; returns its exit code. `read`: how the settings are read again."""
    # What this process remembers is worth as much as the key: none of it is to lie about as a core.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for said in overruled(loaded.settings):
        log.warning("setting_overruled", setting=said)
    daemon, code = Daemon.build(loaded, metrics, read), OK
    try:
        if until_idle:
            log.info("drained", changes=await daemon.until_idle())
        else:
            await daemon.run()
    except* (DaemonError, BreakerOpen) as group:
        first = _first(group)
        code = AWAY if _passing(first) else FAILED
        fix = advice(first.kind, first.refusal) if isinstance(first, TargetError) else None
        log.error("daemon_failed", error=str(first), advice=fix)
        if isinstance(first, Fenced) and daemon.bell.pooled:
            # Nobody can elect behind a transaction pooler: two processes that are started again at once would fence
            # each other off without end.
            await asyncio.sleep(_FENCED * (1 + random.random()))  # noqa: S311  jitter
    finally:
        await daemon.close()
    return code


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _passing(exc: BaseException) -> bool:
    """May starting again help? Fenced: another one leads, this one may stand by."""
    return isinstance(exc, (Fenced, BreakerOpen, SourceUnavailable)) or (
        isinstance(exc, TargetError) and passes(exc.kind)
    )
