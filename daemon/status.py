"""How things stand, seen from outside the daemon: from both stores, and from its own endpoint where it answers.

Knows what to ask and how to join the answers. Changes nothing.
"""

import json
from typing import Any

import httpx

from daemon import check
from daemon.breaker import Breaker, BreakerOpen, Thresholds
from daemon.errors import DaemonError, TargetError, advice
from daemon.main import open_door
from daemon.report import verdict
from daemon.settings import Settings
from daemon.source import Source
from daemon.target import Target
from outbox import Cursor


async def look(settings: Settings) -> dict[str, Any]:
    """Joined status; `away` names the stores that do not answer."""
    seen = await _of_daemon(settings)
    source, target = Source(settings.source_conninfo, application_name="outboxd status"), _target(settings)
    away: list[str] = []
    cursor: Cursor | None = None
    try:
        answer = await target.cursor()
        cursor = answer.standing.cursor
        seen |= {"epoch": answer.standing.epoch, "batch_no": answer.standing.batch_no}
        seen["held_keys"] = len(answer.more.get("held", ()))
    except (DaemonError, BreakerOpen) as exc:
        away.append("target")
        seen["target"] = f"{exc}: {advice(exc.kind, exc.refusal)}" if isinstance(exc, TargetError) else str(exc)
    try:
        identity = await source.identify()
        at = cursor or (None if away else Cursor.beginning(identity.system))
        if at is not None:
            backlog, age = await source.backlog(at)
            seen |= {"backlog_changes": backlog, "lag_seconds": round(age, 3)}
            seen["verdict"] = verdict(
                seen.get("state", "streaming"), seen.get("problem"), age, backlog, seen.get("held_keys", 0)
            )
    except DaemonError as exc:
        away.append("source")
        seen["source"] = str(exc)
    finally:
        await source.close()
        await target.close()
    if away:
        seen["verdict"] = f"{' and '.join(away)} cannot be asked"
    order = ["verdict", "daemon", "state", "backlog_changes", "lag_seconds"]
    return {name: seen[name] for name in [*order, *(n for n in seen if n not in order)] if name in seen} | {
        "away": away
    }


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
            settings.source_conninfo, target, pooled_address=settings.looks_pooled, grants=grants
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
            "state",
            "since",
            "leads",
            "problem",
            "last_applied",
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
