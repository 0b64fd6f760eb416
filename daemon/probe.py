"""Is the daemon on this machine alive? For a container's HEALTHCHECK, which wants an exit code within seconds.

Knows the address of the admin pages and the standard library's HTTP: it runs again and again, so it imports nothing
of what a daemon needs.
"""

import contextlib
import http.client

_PATIENCE = 2.0  # seconds, for each of connecting and answering; Docker gives a probe 5


def unwell(host: str, port: int) -> str | None:
    """What keeps the daemon from being called alive; None when nothing does. `host` may be 0.0.0.0 or ::, where Linux
    connects to this machine."""
    connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE)
    try:
        with contextlib.closing(connection):
            connection.request("GET", "/livez")
            status = connection.getresponse().status
    except TimeoutError:
        return f"does not answer within {_PATIENCE:g} s"
    except (OSError, http.client.HTTPException) as exc:
        return f"does not answer ({getattr(exc, 'strerror', None) or type(exc).__name__})"
    return None if status == http.client.OK else f"says that its loop does not turn ({status})"
