"""Whether the Data API shows a table yet: after DDL it learns of it a moment later.

Knows one request and what its answers mean. Knows nothing of plans.
"""

import time
from collections.abc import Collection

import httpx

from daemon.structure import Name

_UNKNOWN = {"PGRST205", "PGRST200", "42P01"}  # not in the schema cache, or not there at all


def wait_until_shown(
    url: str, key: str, tables: Collection[Name], *, user_agent: str, patience: float = 30.0
) -> list[Name]:
    """Wait until every table is known; returns those that are not when patience ends."""
    headers = {"apikey": key, "user-agent": user_agent}
    if key.count(".") == 2:  # a JWT; the newer keys are none, and are refused as bearer tokens
        headers["authorization"] = f"Bearer {key}"
    left, deadline = list(tables), time.monotonic() + patience
    with httpx.Client(headers=headers, follow_redirects=False, trust_env=False, timeout=5.0) as client:
        while left:
            left = [table for table in left if not _shows(client, url.rstrip("/"), table)]
            if left and time.monotonic() > deadline:
                break
            if left:
                time.sleep(0.2)
    return left


def _shows(client: httpx.Client, url: str, table: Name) -> bool:
    """Any answer about the table itself will do: that it may not be read is one as well."""
    schema, name = table
    try:
        answer = client.get(f"{url}/rest/v1/{_path(name)}", params={"limit": "0"}, headers={"accept-profile": schema})
        if answer.status_code < 300:
            return True
        return str(answer.json().get("code")) == "42501"
    except (httpx.HTTPError, ValueError, AttributeError):
        return False


def _path(name: str) -> str:
    return "".join(
        character if character.isalnum() else "".join(f"%{byte:02X}" for byte in character.encode())
        for character in name
    )
