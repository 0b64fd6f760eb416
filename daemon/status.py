"""How things stand, seen from outside the daemon: from both stores, and from its own endpoint where it answers.

Knows what to ask and how to join the answers. Changes nothing.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from daemon import addresses, check, install
from daemon.breaker import Breaker, BreakerOpen, Thresholds
from daemon.configuration import Loaded
from daemon.copies import Copy, slowly
from daemon.copies import known as copies_known
from daemon.doorway import Doorway
from daemon.errors import DaemonError, Kind, SourceUnavailable, SourceUnfit, TargetError, advice, passes
from daemon.exchange import UNPACKED, Unwanted, ask
from daemon.leaders import Company, Stranger
from daemon.main import NAME, open_door
from daemon.mode import Facts as ModeFacts
from daemon.mode import Mode, Worth, judge
from daemon.origin import Origin, stranger
from daemon.reload import sentence as sentence_of
from daemon.report import as_of, dated, heartbeat
from daemon.settings import Settings, overruled, places
from daemon.source import Source
from daemon.survey import origin, strangers, survey
from daemon.target import Standing, Target, require_schema, unknown
from daemon.verdict import SMALL, Facts, equal, findings, sentence
from daemon.verification import Verification, known, shown
from daemon.watchlist import Level, State, Tables
from outbox import Cursor

_ORDER = (
    "verdict", "equal", "findings", "daemon", "mode", "mode_because", "mode_since", "state", "backlog_changes",
    "lag_seconds", "leader", "standbys", "disabled", "strangers",
)  # fmt: skip
# What a daemon says of itself that nobody else can know.
_OF_DAEMON = (
    "mode", "mode_because", "mode_since", "state", "since", "leads", "problem", "last_applied", "heartbeat",
    "applied_changes", "breaker", "listener", "version",
)  # fmt: skip

_LONGEST, _PATIENCE = 16 * 1024**2, 5.0  # bytes and seconds of a daemon's answer


async def look(loaded: Loaded) -> dict[str, Any]:
    """Joined status; `away` names the stores that do not answer. A store that answers, and cannot be used as it is, is not
    away: the verdict says what it lacks."""
    settings = loaded.settings
    there = await _of_target(loaded)
    source = Source(settings.source_conninfo, application_name=f"{NAME} status")
    try:
        here = await _of_source(source, settings, there)
    finally:
        await source.close()
    daemon, slow = await _of_daemon(settings, here.origin)
    # The daemon's word on the mode counts more: it asks more often, and may have been told something else.
    seen = {"mode": there.worth.mode, "mode_because": there.worth.because} | {**daemon, **there.more, **here.more}
    # How long it took is a guess between the target's two times, of two clocks: the daemon's word counts more.
    of_daemon = {name: value for name, value in (seen.get("heartbeat") or {}).items() if value is not None}
    seen["heartbeat"] = {**(there.heartbeat or {}), **of_daemon} or None
    seen["held_keys"] = held = max(seen.get("held_keys", 0), sum(here.held.values()))
    records = [_record(table, there, here, slow) for table in here.captured] if there.answers else []
    away = ["target"] * there.away + ["source"] * here.away
    found = findings(_facts(settings, there, here, seen, records=records, slow=slow.copies))
    seen |= {
        "verdict": sentence(found), "findings": [{"kind": one.kind, "text": one.text} for one in found],
        "equal": as_of(equal(records, held)), "verifications": dated(records), "away": away,
    }  # fmt: skip
    if here.seen:
        copies = [copy for copy in seen.get("copies", ()) if copy["table"] in here.captured]
        seen["copies"] = [_slowed(copy, slow.copies) for copy in copies]
    return {name: seen[name] for name in dict.fromkeys((*_ORDER, *seen)) if name in seen}


@dataclass(frozen=True, slots=True)
class _Slow:
    """Tables of which so many rows at most are copied, or compared, at once: what the leader alone knows."""

    copies: Mapping[str, int] = field(default_factory=dict)
    verifications: Mapping[str, int] = field(default_factory=dict)


def _slowed(told: Mapping[str, Any], slow: Mapping[str, int]) -> dict[str, Any]:
    most = slow.get(told["table"])
    return {**told, "reason": told.get("reason") or slowly(most), "slow": most}


def _record(table: str, there: "_There", here: "_Here", slow: _Slow) -> dict[str, Any]:
    return _slowed({**shown(table, there.records.get(table)), "held": here.held.get(table, 0)}, slow.verifications)


def _facts(
    settings: Settings, there: "_There", here: "_Here", seen: Mapping[str, Any],
    *, records: Sequence[Mapping[str, Any]], slow: Mapping[str, int],
) -> Facts:  # fmt: skip
    disabled = seen["mode_because"] if seen["mode"] == Mode.DISABLED else None
    leads = here.leads or seen.get("leads") or (_beats(settings, there) if here.leads is None else False)
    # A daemon that does not lead says nothing of the work that another one does.
    problem = seen.get("problem") if seen.get("leads") or here.leads is not True else None
    return Facts(
        away=[name for name, gone in (("target", there.away), ("source", here.away)) if gone],
        setup=[*here.lacks, *([] if disabled else there.lacks)],
        foreign=here.foreign,
        disabled=disabled,
        problem=None if here.lacks or there.lacks else problem,
        paused=seen.get("state") == "paused",
        leads=leads or None if here.leads is None else leads,
        barred=here.barred.sentence if here.barred else None,
        instead=here.instead,
        tables=here.seen.entries(there.copies if there.answers else None, slow=slow) if here.seen else (),
        verifications=records,
        held=seen["held_keys"],
        backlog=here.backlog,
        lag=here.lag,
        small=SMALL + settings.request_interval,
    )


def _beats(settings: Settings, there: "_There") -> bool:
    """Does a heartbeat say that somebody leads, where it cannot be seen otherwise?"""
    return there.beat_ago is not None and not check.late(there.beat_ago, settings.heartbeat_interval)


@dataclass(frozen=True, slots=True)
class _Here:
    """What the source says. `lacks`: why it cannot be read as it is; `leads`: None where nobody can be elected; `instead`: the
    relay that does, where it is another one."""

    away: bool = False
    lacks: tuple[str, ...] = ()
    origin: Origin | None = None
    foreign: str | None = None
    leads: bool | None = False
    instead: str | None = None
    strangers: Sequence[Stranger] = ()
    barred: Stranger | None = None
    backlog: int = 0
    lag: float = 0.0
    held: Mapping[str, int] = field(default_factory=dict)
    seen: Tables | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def captured(self) -> list[str]:
        return sorted(row["table_name"] for row in self.seen.rows if row["capture"]) if self.seen else []


async def _of_source(source: Source, settings: Settings, there: "_There") -> _Here:
    here = _Here(leads=None if settings.looks_pooled else False)
    try:
        here = replace(here, origin=await origin(source))
        cursor = there.cursor if there.answers else await source.remembered_cursor(settings.relay)
        backlog, lag = await source.backlog(cursor or Cursor.beginning())
        company = Company()
        company.learn(await source.ask("leaders"), await strangers(source))
        told = company.told(pooled=settings.looks_pooled)
        leads = True if company.leader else here.leads
        latest = {row[0] for row in await source.ask("relay_latest")}
        instead = next(iter(latest - {settings.relay}), None) if company.leader else None
        held = {table: int(many) for table, many in await source.ask("held_counts")}
        more = {"backlog_changes": backlog, "lag_seconds": round(lag, 3), **told}
        here = replace(here, backlog=backlog, lag=lag, leads=leads, instead=instead, held=held, more=more)
        here = replace(here, strangers=company.strangers, barred=company.barred)
        here = replace(here, seen=await survey(source, there.described))
        return replace(here, foreign=await _foreign(source, settings.relay, there) if there.answers else None)
    except SourceUnavailable as exc:
        return replace(here, away=True, more={**here.more, "source": str(exc)})
    except SourceUnfit as exc:
        return replace(here, lacks=(str(exc),), more={**here.more, "source": str(exc)})


async def _foreign(source: Source, relay: str, there: "_There") -> str | None:
    """Why this source is not the one that the target's cursor speaks of, or this target not the one that the source knows."""
    if there.standing is not None and (said := unknown(there.standing, there.place, await source.remembered(relay))):
        return said
    return None if there.cursor is None else await source.judge(there.cursor)


@dataclass(frozen=True, slots=True)
class _There:
    """What the target says of itself, or why it says nothing: `away`, or `lacks` what a person has to mend."""

    worth: Worth
    answers: bool = False
    away: bool = False
    lacks: tuple[str, ...] = ()
    standing: Standing | None = None
    place: str = ""
    described: Mapping[str, Any] | None = None
    copies: Mapping[str, Copy] = field(default_factory=dict)
    records: Mapping[str, Verification] = field(default_factory=dict)
    heartbeat: dict[str, Any] | None = None
    beat_ago: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cursor(self) -> Cursor | None:
        """Where it stands."""
        return self.standing.cursor if self.standing else None


async def _of_target(loaded: Loaded) -> _There:
    doorway = Doorway(None if loaded.lacking else open_door(loaded.settings), sentence_of(loaded.lacking))
    target = Target(doorway, loaded.settings.relay, Breaker("target", Thresholds()))
    try:
        answer = await target.cursor()
        described = await target.describe()
        require_schema(described)
    except (DaemonError, BreakerOpen) as exc:
        return _silent(doorway, exc)
    finally:
        await target.close()
    standing = answer.standing
    copies = [copy for copy in answer.more.get("copies", ()) if copy["state"] != "done"]
    beat = answer.more.get("heartbeat") or {}
    return _There(
        Worth(Mode.FULL),
        answers=True,
        standing=standing,
        place=doorway.place,
        described=described.more,
        copies=copies_known(answer.more.get("copies", ())),
        records={table: record for table, (record, _) in known(answer.more.get("verifications", ())).items()},
        heartbeat=_heartbeat(beat),
        beat_ago=beat.get("seconds_ago"),
        more={
            "epoch": standing.epoch, "batch_no": standing.batch_no, "held_keys": len(answer.more.get("held", ())),
            "copies": copies,
        },
    )  # fmt: skip


def _silent(doorway: Doorway, exc: Exception) -> _There:
    """Away, or answering and not fit to be used: the one passes by itself, the other does not."""
    problem, kind = str(exc), Kind.TRANSIENT
    if isinstance(exc, TargetError):
        said = advice(exc.kind, exc.refusal)
        problem, kind = said if said in problem else f"{exc}: {said}", exc.kind
    worth = judge(ModeFacts(doorway.lacking, doorway.refused, problem=problem, problem_kind=kind))
    lacks = () if passes(kind) else (f"the target cannot be used: {problem}",)
    away = worth.mode is Mode.DEGRADED and not lacks
    return _There(worth, away=away, lacks=lacks, more={"target": problem})


def _heartbeat(kept: Mapping[str, float]) -> dict[str, Any] | None:
    if not kept:
        return None
    written, arrived = kept["written_at"], kept["arrived_at"]
    return heartbeat(written, arrived, max(0.0, arrived - written))


async def examine(settings: Settings) -> list[check.Item]:
    """`outboxd check`: configuration first, then both stores."""
    given = "; ".join(f"{', '.join(names)} from {place}" for place, names in places(settings).items())
    items = [
        check.Item(
            "config", "OK", f"transport {settings.transport}, target {settings.supabase_url or 'direct'}; {given}"
        )
    ]
    fix = "remove one, or set the OUTBOXD_ one in the environment"
    items += [check.Item("config", "WARN", said, fix) for said in overruled(settings)]
    if settings.transport == "rest" and settings.key_kind == "jwt":
        items.append(
            check.Item(
                "key",
                "WARN",
                "a legacy service_role JWT: Supabase removes these by the end of 2026",
                "use a secret key (sb_secret_…)",
            )
        )
    if wrong := await asyncio.to_thread(addresses.amiss, settings):
        return [*items, check.Item("addresses", "FAIL", wrong, "outboxd config show")]
    both = settings.transport == "rest" and settings.target_dsn is not None
    installed = await asyncio.to_thread(install.installed_at, settings.target_conninfo) if both else None
    target = _target(settings)
    try:
        role = "service_role" if settings.transport == "rest" else check.user_of(settings.target_conninfo)
        grants = check.door_grants(role, settings.exposed_schema)
        items += await check.check(
            settings.source_conninfo,
            target,
            pooled_address=settings.looks_pooled,
            grants=grants,
            heartbeat=settings.heartbeat_interval,
            installed=installed,
        )
    finally:
        await target.close()
    lost = {item.name for item in items if item.level == "FAIL"}
    return items if lost & {"source", "source schema"} else items + await _of_status(settings, lost)


async def _of_status(settings: Settings, lost: AbstractSet[str]) -> list[check.Item]:
    """What keeps the verdict from "in sync" and is not among what the doctor has found by itself (`lost`); and what the
    configuration says of tables and is not in force. Whether somebody leads is no matter of its."""
    there = _There(Worth(Mode.DEGRADED), away=True) if "target" in lost else await _of_target(Loaded(settings))
    source = Source(settings.source_conninfo, application_name=f"{NAME} check")
    try:
        here = await _of_source(source, settings, there)
    finally:
        await source.close()
    found: list[check.Item] = []
    if here.foreign:
        found.append(check.Item("source", "FAIL", here.foreign))
    if here.instead:
        what = f"relay {here.instead} leads this source, and {settings.relay} does not: nothing of this one moves"
        found.append(check.Item("relay", "FAIL", what, "give this one that name, or stop the other"))
    for one in here.strangers:
        level: Level = "FAIL" if one is here.barred else "WARN"
        found.append(check.Item("locks", level, one.told, f"{one.remedy};"))
    if here.seen is None:
        return found
    copies = there.copies if there.answers else None
    found += [
        check.Item(one.table, "FAIL", one.what, one.command)
        for one in here.seen.entries(copies)
        if one.state not in {State.WELL, State.UNCOPIED}
        and not lost & {one.table, f"target {one.table}", f"copy {one.table}"}
    ]
    named = await asyncio.to_thread(install.named, settings.source_conninfo, settings.tables) if settings.tables else {}
    # A name that goes to a watched table's place is what that was called once, and no table that is on the target alone.
    places = {row["target"] or row["table_name"]: row["table_name"] for row in here.seen.rows}
    mapped = [
        one["table"]
        for one in (there.described or {}).get("tables", ())
        if places.get(one["target"], one["table"]) == one["table"]
    ]
    gone = {row["table_name"] for row in here.seen.rows if not row["is_there"]}
    for name, said in settings.tables.items():
        if named[name].table not in gone:
            found += check.said(name, said, named[name], mapped)
    return found


def _target(settings: Settings) -> Target:
    return Target(open_door(settings), settings.relay, Breaker("target", Thresholds()))


async def _of_daemon(settings: Settings, here: Origin | None) -> tuple[dict[str, Any], _Slow]:
    """The daemon's own view, when it runs on this machine. Whoever answers on its port may be another's."""
    where = settings.admin_url(settings.admin_port)
    try:
        async with asyncio.timeout(_PATIENCE), httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
            _, body = await ask(client, client.build_request("GET", f"{where}/api/status", headers=UNPACKED), _LONGEST)
        told = json.loads(body)
        if other := stranger(told, settings.relay, here):
            return {"daemon": other}, _Slow()
        slow = _Slow(_slow(told.get("copies")), _slow(told.get("verifications")))
        return {"daemon": where, **{name: told.get(name) for name in _OF_DAEMON}}, slow
    except (httpx.HTTPError, Unwanted, TimeoutError, ValueError, RecursionError, AttributeError):
        return {"daemon": "none answers on this machine"}, _Slow()


def _slow(told: Sequence[Mapping[str, Any]] | None) -> dict[str, int]:
    return {one["table"]: one["slow"] for one in told or () if one.get("slow")}
