"""The daemon's own pages: health, metrics, status.

Knows the pages, and under which names they are told. Knows nothing of how the answers come about, nor how they are
served: daemon/serving.py. Read-only, and on loopback unless told otherwise: what they tell names tables and counts,
never rows.
"""

import ipaddress
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from daemon.serving import Answer, Request, Server, sentence

# For whoever probes or scrapes, under whatever name it was given: they tell states and counts.
_FOR_ANY_NAME = ("/livez", "/readyz", "/metrics")
_AT_ONCE = ("/livez", "/readyz")
_OTHER_NAME = (
    "this page is not told under that name: ask by the address or as localhost, or put the name into admin_hosts "
    "(OUTBOXD_ADMIN_HOSTS)"
)


@dataclass(frozen=True, slots=True)
class Views:
    """What the server shows. `ready` answers (is it, why); `relay` and `installation`: whose daemon this is."""

    alive: Callable[[], bool]
    ready: Callable[[], tuple[bool, Mapping[str, Any]]]
    status: Callable[[], Mapping[str, Any]]
    metrics: Callable[[], tuple[bytes, str]]
    relay: str = "main"
    installation: Callable[[], str | None] = lambda: None


def pages(views: Views) -> dict[str, Callable[[], Answer]]:
    """Each page by its path."""

    def livez() -> Answer:
        alive = views.alive()
        whose = {"relay": views.relay, "installation": views.installation()}
        return _json({"alive": alive, **whose}, 200 if alive else 503)

    def readyz() -> Answer:
        ready, why = views.ready()
        return _json({"ready": ready, **why}, 200 if ready else 503)

    def metrics() -> Answer:
        body, kind = views.metrics()
        return Answer(200, body, kind)

    def status() -> Answer:
        return _json(views.status(), 200)

    return {"/livez": livez, "/readyz": readyz, "/metrics": metrics, "/api/status": status}


def _json(value: Mapping[str, Any], status: int) -> Answer:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Answer(status, text.encode(), "application/json")


class Admin(Server):
    """The pages on a port. `hosts`: names of this machine, beside localhost and the address it listens on."""

    def __init__(self, views: Views, host: str, port: int, hosts: Collection[str] = ()) -> None:
        known, names = pages(views), frozenset(one.lower().rstrip(".") for one in ("localhost", host, *hosts))

        def page(request: Request) -> Answer:
            if request.path not in _FOR_ANY_NAME and not _asked_as(request.authorities, names):
                return sentence(421, _OTHER_NAME)
            make = known.get(request.path)
            return make() if make else sentence(404, "no such page")

        super().__init__(host, port, page, at_once=_AT_ONCE)


def _asked_as(authorities: Collection[str], names: Collection[str]) -> bool:
    """A page of another site reaches this port by a name of that site's, made to point here: a browser then takes our
    answer for that site's own. No name can be made to look like an address."""
    return bool(authorities) and all(_is_ours(one, names) for one in authorities)


def _is_ours(authority: str, names: Collection[str]) -> bool:
    found = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:@/\s]+))(?::\d{0,5})?", authority, re.ASCII)
    if not found:
        return False
    bracketed, name = found.groups()
    try:
        return ipaddress.ip_address(bracketed or name).version == (6 if bracketed else 4)
    except ValueError:
        return name is not None and name.lower().removesuffix(".") in names
