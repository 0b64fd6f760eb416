"""An embedded Supabase project: a database with Supabase's roles, a real PostgREST, a gateway before it.

Knows how a hosted project is put together. Must not know what the project is for. Several can share one
cluster, each with a database of its own.
"""

import http.client
import os
import signal
import subprocess
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg import sql

from daemon.demo.binaries import MissingPostgrest, postgrest_binary
from daemon.demo.cluster import Cluster
from daemon.demo.gateway import Gateway
from daemon.demo.keys import ApiKeys
from daemon.demo.process import Command, end, free_port, poll_until, spawn

__all__ = ["EmbeddedSupabase", "MissingPostgrest", "prepare"]


def demo_sql(name: str) -> sql.SQL:
    """A file of sql/demo."""
    return sql.SQL((files("sql") / "demo" / name).read_text(encoding="utf-8"))


def prepare(cluster: Cluster, database: str) -> None:
    """Turn a database into a project's: Supabase's roles, rights and auth functions."""
    with psycopg.connect(cluster.dsn(database)) as connection:
        connection.execute(demo_sql("supabase_roles.sql"))


@dataclass(eq=False)
class EmbeddedSupabase:
    """A project in one database of a running cluster, which `prepare` made ready."""

    cluster: Cluster
    database: str
    folder: Path
    keys: ApiKeys = field(default_factory=ApiKeys, repr=False)
    gateway: Gateway = field(init=False)
    _port: int = field(init=False, default_factory=free_port)
    _admin_port: int = field(init=False, default_factory=free_port)
    _postgrest: subprocess.Popen[bytes] | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        self.gateway = Gateway(self._port, self.keys)

    @property
    def url(self) -> str:
        return self.gateway.url

    @property
    def secret_key(self) -> str:
        return self.keys.secret

    @property
    def publishable_key(self) -> str:
        return self.keys.publishable

    @property
    def service_jwt(self) -> str:
        return self.keys.service_jwt

    @property
    def anon_jwt(self) -> str:
        return self.keys.anon_jwt

    def jwt_for(self, user_id: str) -> str:
        return self.keys.jwt_for(user_id)

    def dsn(self, user: str = "supabase_owner") -> str:
        return self.cluster.dsn(self.database, user)

    @property
    def pid(self) -> int:
        """PostgREST's."""
        assert self._postgrest is not None
        return self._postgrest.pid

    def start(self) -> None:
        self.start_postgrest()
        self.gateway.start()

    def stop(self) -> None:
        self.gateway.stop()
        self.stop_postgrest()

    def start_postgrest(self) -> None:
        """Start PostgREST and wait until its schema cache is loaded."""
        if self._postgrest and self._postgrest.poll() is None:
            return
        environment = {"PATH": os.defpath, **self._settings()}
        log = self.folder / f"postgrest-{self.database}.log"
        self._postgrest = spawn(Command([str(postgrest_binary())], environment, self.folder, log, None, signal.SIGKILL))
        if not poll_until(self._settled, 30) or self._postgrest.poll() is not None:
            self.stop_postgrest()
            raise RuntimeError(f"PostgREST did not start: {log.read_text(errors='replace')[-600:].strip()}")

    def stop_postgrest(self) -> None:
        if self._postgrest:
            # It would wait for idle connections of ours to close; the demo has nothing to lose there.
            end(self._postgrest, signal.SIGKILL, 10)
            self._postgrest = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _settings(self) -> dict[str, str]:
        settings = {
            "DB_URI": self.dsn("authenticator"),
            "DB_SCHEMAS": "public",
            "DB_ANON_ROLE": "anon",
            "DB_CONFIG": "false",
            "DB_POOL": "10",
            "DB_MAX_ROWS": "1000",
            "JWT_SECRET": self.keys.jwt_secret,
            "SERVER_HOST": "127.0.0.1",
            "SERVER_PORT": str(self._port),
            "ADMIN_SERVER_PORT": str(self._admin_port),
            "LOG_LEVEL": "warn",
        }
        return {f"PGRST_{name}": value for name, value in settings.items()}

    def _settled(self) -> bool:
        if self._postgrest is None or self._postgrest.poll() is not None:
            return True
        connection = http.client.HTTPConnection("127.0.0.1", self._admin_port, timeout=5)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()
