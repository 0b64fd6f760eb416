"""Is the daemon on this machine alive? For a container's HEALTHCHECK, which wants an exit code within seconds.

Knows the address of the admin pages and the standard library's HTTP: it runs again and again, so it imports nothing
of what a daemon needs. Must not know how the source is asked.
"""

import contextlib
import http.client
import json
from collections.abc import Callable

from daemon.origin import differs

_PATIENCE = 2.0  # seconds, for each of connecting and answering; Docker gives a probe 5
_LONGEST = 4096  # bytes of an answer


def unwell(host: str, port: int, relay: str, installation: Callable[[], str | None] = lambda: None) -> str | None:
    """What keeps the daemon of this relay from being called alive; None when nothing does. `host` may be 0.0.0.0 or ::,
    where Linux connects to this machine. `installation`: which one of schema outbox it is to be of, asked for only when
    the daemon says which it has; None: that is not known."""
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
    found, its = _whose(body)
    if found != relay:
        return f"is not this one: {f'the daemon of relay {found}' if found else 'something else'} answers there"
    if its is not None and differs(its, installation()):
        return "is not this one: the daemon of another installation of schema outbox answers there"
    return None if status == http.client.OK else f"says that its loop does not turn ({status})"


def _whose(body: bytes) -> tuple[str | None, str | None]:
    """The relay and the installation of the daemon: a port is anybody's."""
    try:
        told = json.loads(body)
        return str(told["relay"]), told.get("installation")
    except (ValueError, KeyError, TypeError):
        return None, None
