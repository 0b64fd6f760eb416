"""Whether the Data API shows a table yet: after DDL it learns of it a moment later.

Knows one request and what its answers mean. Knows nothing of plans.
"""

import asyncio
import json
import time
from collections.abc import Collection
from dataclasses import dataclass

import httpx

from daemon.exchange import UNPACKED, Unwanted, ask
from daemon.refusal_words import denial_of, hint_of
from daemon.structure import Name

_DENIED = "42501"
_LONGEST, _PATIENCE = 64 * 1024, 10.0  # bytes and seconds of one answer


@dataclass(frozen=True, slots=True)
class Shown:
    """A table, and the columns that the Data API has to know of it."""

    name: Name
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """What is known of a table when patience ends. `denied`: it is known, and what the answer says is missing."""

    name: Name
    shown: bool
    denied: str | None = None


def wait_until_shown(
    url: str, key: str, tables: Collection[Shown], *, user_agent: str, patience: float = 30.0
) -> list[Answered]:
    """Wait until every table is known, to read and to write; returns those that are not when patience ends, and those
    that the key's role may not use.

    Both verbs are asked: an old picture of the schema answers GET and refuses POST. A POST of no rows writes nothing.
    """
    headers = {"apikey": key, "user-agent": user_agent, **UNPACKED}
    if key.count(".") == 2:  # a JWT; the newer keys are none, and are refused as bearer tokens
        headers["authorization"] = f"Bearer {key}"
    return asyncio.run(_wait(url.rstrip("/"), headers, tables, time.monotonic() + patience))


async def _wait(url: str, headers: dict[str, str], tables: Collection[Shown], deadline: float) -> list[Answered]:
    found = {table.name: Answered(table.name, False) for table in tables}
    async with httpx.AsyncClient(headers=headers, follow_redirects=False, trust_env=False, timeout=5.0) as client:
        while True:
            for table in tables:
                if not found[table.name].shown:
                    found[table.name] = await _asked(client, url, table)
            if all(one.shown for one in found.values()) or time.monotonic() > deadline:
                return [one for one in found.values() if not one.shown or one.denied]
            await asyncio.sleep(0.2)


async def _asked(client: httpx.AsyncClient, url: str, table: Shown) -> Answered:
    """Any answer about the table itself will do: that it may not be used is one as well."""
    schema, name = table.name
    where = f"{url}/rest/v1/{_path(name)}"
    columns = ",".join('"' + column.replace('"', '\\"') + '"' for column in table.columns)
    asked = {"content-profile": schema, "prefer": "return=minimal"}
    denied = []
    try:
        for request in (
            client.build_request("GET", where, params={"limit": "0"}, headers={"accept-profile": schema}),
            client.build_request("POST", where, params={"columns": columns}, json=[], headers=asked),
        ):
            async with asyncio.timeout(_PATIENCE):
                status, body = await ask(client, request, _LONGEST)
            if status >= 300:
                given = json.loads(body)
                if str(given.get("code")) != _DENIED:
                    return Answered(table.name, False)
                denied.append(hint_of(given) or denial_of(given) or "a right is missing")
    except (httpx.HTTPError, Unwanted, TimeoutError, ValueError, AttributeError, RecursionError):
        return Answered(table.name, False)
    return Answered(table.name, True, "; ".join(dict.fromkeys(denied)) or None)


def _path(name: str) -> str:
    return "".join(
        character if character.isalnum() else "".join(f"%{byte:02X}" for byte in character.encode())
        for character in name
    )
