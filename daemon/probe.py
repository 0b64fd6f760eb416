"""Is the daemon on this machine alive? For a container's HEALTHCHECK, which wants an exit code within seconds.

Knows the address of the admin pages and the standard library's HTTP: it runs again and again, so it imports nothing
of what a daemon needs.
"""

import contextlib
import http.client
import json

_PATIENCE = 2.0  # seconds, for each of connecting and answering; Docker gives a probe 5
_LONGEST = 4096  # bytes of an answer


def unwell(host: str, port: int, relay: str) -> str | None:
    """What keeps the daemon of this relay from being called alive; None when nothing does. `host` may be 0.0.0.0 or ::,
    where Linux connects to this machine."""
    connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE)
    try:
        with contextlib.closing(connection):
            connection.request("GET", "/livez")
            answer = connection.getresponse()
            status, body = answer.status, answer.read(_LONGEST)
    except TimeoutError:
        return f"does not answer within {_PATIENCE:g} s"
    except (OSError, http.client.HTTPException) as exc:
        return f"does not answer ({getattr(exc, 'strerror', None) or type(exc).__name__})"
    if (found := _relay(body)) != relay:
        return f"is not this one: {f'the daemon of relay {found}' if found else 'something else'} answers there"
    return None if status == http.client.OK else f"says that its loop does not turn ({status})"


def _relay(body: bytes) -> str | None:
    """Whose daemon it is: a port is anybody's."""
    try:
        return str(json.loads(body)["relay"])
    except (ValueError, KeyError, TypeError):
        return None
