"""How things stand, seen from outside the daemon: from both stores, and from its own endpoint where it answers.

Knows what to ask and how to join the answers. Changes nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from daemon import check
from daemon.breaker import Breaker, BreakerOpen, Thresholds
from daemon.configuration import Loaded
from daemon.doorway import Doorway
from daemon.errors import DaemonError, Kind, TargetError, advice
from daemon.leaders import Company
from daemon.main import NAME, open_door
from daemon.mode import Facts, Mode, Worth, judge
from daemon.reload import sentence
from daemon.report import dated, heartbeat, verdict
from daemon.settings import Settings
from daemon.source import Source
from daemon.target import Target
from daemon.verification import Verification, known, shown
from outbox import Cursor


async def look(loaded: Loaded) -> dict[str, Any]:
    """Joined status; `away` names the stores that do not answer. A target that cannot be used as it is set is not away:
    the mode says so."""
    told = await _of_target(loaded)
    # The daemon's word on the mode counts more: it asks more often, and may have been told something else.
    seen = {"mode": told.worth.mode, "mode_because": told.worth.because} | await _of_daemon(loaded.settings) | told.more
    # How long it took is a guess between the target's two times, of two clocks: the daemon's word counts more.
    of_daemon = {name: value for name, value in (seen.get("heartbeat") or {}).items() if value is not None}
    seen["heartbeat"] = {**(told.heartbeat or {}), **of_daemon} or None
    away = ["target"] if told.worth.mode is Mode.DEGRADED else []
    disabled = seen["mode_because"] if seen["mode"] == Mode.DISABLED else None
    state, problem, held = seen.get("state", "streaming"), seen.get("problem"), seen.get("held_keys", 0)
    source = Source(loaded.settings.source_conninfo, application_name=f"{NAME} status")
    try:
        if told.worth.mode is Mode.FULL:
            cursor = told.cursor or Cursor.beginning()
        else:
            cursor = await source.remembered_cursor(loaded.settings.relay)
        backlog, age = await source.backlog(cursor)
        watched = {row[0] for row in await source.ask("copy_wanted")}
        seen["copies"] = [copy for copy in seen.get("copies", ()) if copy["table"] in watched or copy["state"] == "out"]
        seen |= {"backlog_changes": backlog, "lag_seconds": round(age, 3)}
        seen |= await _company(source, pooled=loaded.settings.looks_pooled or _pooled(seen))
        passes = (
            [shown(table, told.passes.get(table)) for table in sorted(watched)] if told.worth.mode is Mode.FULL else []
        )
        seen["verifications"] = dated(passes)
        seen["verdict"] = verdict(
            state, problem, age, backlog, held, disabled=disabled, copies=seen["copies"], verifications=passes
        )
    except DaemonError as exc:
        away.append("source")
        seen["source"] = str(exc)
    finally:
        await source.close()
    if away:
        seen["verdict"] = f"{' and '.join(away)} cannot be asked"
    order = ["verdict", "daemon", "mode", "mode_because", "mode_since", "state", "backlog_changes", "lag_seconds"]
    order += ["leader", "standbys", "disabled"]
    return {name: seen[name] for name in [*order, *(n for n in seen if n not in order)] if name in seen} | {
        "away": away
    }


async def _company(source: Source, *, pooled: bool) -> dict[str, Any]:
    """Who leads, since when, who waits, and who cannot lead."""
    company = Company()
    company.learn(await source.ask("leaders"))
    return company.told(pooled=pooled)


def _pooled(seen: Mapping[str, Any]) -> bool:
    return bool((seen.get("listener") or {}).get("pooled"))


@dataclass(frozen=True, slots=True)
class _Told:
    """What the target says of itself, or why it says nothing."""

    worth: Worth
    cursor: Cursor | None
    more: dict[str, Any]
    heartbeat: dict[str, Any] | None = None
    passes: Mapping[str, Verification] = field(default_factory=dict)


async def _of_target(loaded: Loaded) -> _Told:
    doorway = Doorway(None if loaded.lacking else open_door(loaded.settings), sentence(loaded.lacking))
    target = Target(doorway, loaded.settings.relay, Breaker("target", Thresholds()))
    try:
        answer = await target.cursor()
    except (DaemonError, BreakerOpen) as exc:
        problem = f"{exc}: {advice(exc.kind, exc.refusal)}" if isinstance(exc, TargetError) else str(exc)
        kind = exc.kind if isinstance(exc, TargetError) else Kind.TRANSIENT
        worth = judge(Facts(doorway.lacking, doorway.refused, problem=problem, problem_kind=kind))
        return _Told(worth, None, {"target": problem})
    finally:
        await target.close()
    standing = answer.standing
    held = answer.more.get("held_keys", 0)
    copies = [copy for copy in answer.more.get("copies", ()) if copy["state"] != "done"]
    more = {"epoch": standing.epoch, "batch_no": standing.batch_no, "held_keys": held, "copies": copies}
    passes = {table: record for table, (record, _) in known(answer.more.get("verifications", ())).items()}
    return _Told(Worth(Mode.FULL), standing.cursor, more, _heartbeat(answer.more.get("heartbeat") or {}), passes)


def _heartbeat(kept: Mapping[str, float]) -> dict[str, Any] | None:
    if not kept:
        return None
    written, arrived = kept["written_at"], kept["arrived_at"]
    return heartbeat(written, arrived, max(0.0, arrived - written))


async def examine(settings: Settings) -> list[check.Item]:
    """`outboxd check`: configuration first, then both stores."""
    items = [check.Item("config", "OK", f"transport {settings.transport}, target {settings.supabase_url or 'direct'}")]
    if settings.transport == "rest" and settings.key_kind == "jwt":
        items.append(
            check.Item(
                "key",
                "WARN",
                "a legacy service_role JWT: Supabase removes these by the end of 2026",
                "use a secret key (sb_secret_…)",
            )
        )
    target = _target(settings)
    try:
        role = "service_role" if settings.transport == "rest" else check.user_of(settings.target_conninfo)
        grants = check.door_grants(role, settings.exposed_schema)
        return items + await check.check(
            settings.source_conninfo,
            target,
            pooled_address=settings.looks_pooled,
            grants=grants,
            heartbeat=settings.heartbeat_interval,
        )
    finally:
        await target.close()


def _target(settings: Settings) -> Target:
    return Target(open_door(settings), settings.relay, Breaker("target", Thresholds()))


async def _of_daemon(settings: Settings) -> dict[str, Any]:
    """The daemon's own view, when it runs on this machine."""
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
            answer = await client.get(f"http://{settings.admin_host}:{settings.admin_port}/api/status")
        told = answer.json()
        if told.get("relay") != settings.relay:
            return {"daemon": "another relay's daemon answers here"}
        keep = (
            "mode",
            "mode_because",
            "mode_since",
            "state",
            "since",
            "leads",
            "problem",
            "last_applied",
            "heartbeat",
            "applied_changes",
            "breaker",
            "listener",
            "version",
        )
        return {
            "daemon": f"http://{settings.admin_host}:{settings.admin_port}",
            **{name: told.get(name) for name in keep},
        }
    except (httpx.HTTPError, json.JSONDecodeError, AttributeError):
        return {"daemon": "none answers on this machine"}
