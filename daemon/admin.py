"""The daemon's own small HTTP server: health, metrics, status.

Knows HTTP and whom to ask. Knows nothing of how the answers come about. Read-only, and on loopback unless told
otherwise: what it tells names tables and counts, never rows.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


@dataclass(frozen=True, slots=True)
class Views:
    """What the server shows. `ready` answers (is it, why); `relay` and `installation`: whose daemon this is."""

    alive: Callable[[], bool]
    ready: Callable[[], tuple[bool, Mapping[str, Any]]]
    status: Callable[[], Mapping[str, Any]]
    metrics: Callable[[], tuple[bytes, str]]
    relay: str = "main"
    installation: Callable[[], str | None] = lambda: None


class _Server(uvicorn.Server):
    """uvicorn that leaves signals to the daemon, and does not wake ten times a second to look at the time."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        while not self.should_exit:
            await self.on_tick(0)
            await asyncio.sleep(1.0)


def application(views: Views) -> Starlette:
    """The routes."""

    async def livez(_: Request) -> Response:
        alive = views.alive()
        whose = {"relay": views.relay, "installation": views.installation()}
        return JSONResponse({"alive": alive, **whose}, status_code=200 if alive else 503)

    async def readyz(_: Request) -> Response:
        ready, why = views.ready()
        return JSONResponse({"ready": ready, **why}, status_code=200 if ready else 503)

    async def metrics(_: Request) -> Response:
        body, kind = views.metrics()
        return Response(body, headers={"content-type": kind})

    async def status(_: Request) -> Response:
        return JSONResponse(views.status())

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/api/status", status),
        ]
    )


class Admin:
    """The server, on a port that is taken before anything else starts."""

    def __init__(self, views: Views, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                application(views), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1,
                date_header=False, server_header=False,
            )
        )  # fmt: skip

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            self._socket.close()
