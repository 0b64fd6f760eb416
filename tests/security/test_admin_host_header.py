"""A page of another site in an operator's browser, its name made to point at this machine: it learns nothing of the
daemon. And whatever else a browser could be made to do with the answers."""

import asyncio
import http.client
from collections.abc import AsyncIterator, Mapping
from contextlib import closing

import pytest

from daemon.admin import Admin, Views
from daemon.configuration import ConfigError, load
from tests.acceptance.conftest import Pair, Start, streaming

TOLD = "table names"
OURS = [
    "localhost",
    "LocalHost",
    "localhost.",
    "127.0.0.1",
    "[::1]",
    "192.0.2.7",
    "[2001:db8::7]",
    "db7",
    "DB7.internal.",
]
FOREIGN = [
    "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example#localhost", "localhost@evil.example",
    "[localhost]", "::1", "[127.0.0.1]", "[::1", "[::1].evil.example", "localhost..", "", "localhost,evil.example", "xn--localhost",
    "notdb7", "db7.evil.example", "0x7f000001.evil.example", "localhost:80:80", "localhost:port",
]  # fmt: skip


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    views = Views(lambda: True, lambda: (True, {}), lambda: {"told": TOLD}, lambda: (TOLD.encode(), "text/plain"))
    made = Admin(views, "127.0.0.1", 0, ["db7", "db7.internal"])
    serving = asyncio.create_task(made.run())
    yield made
    serving.cancel()
    await asyncio.wait([serving])


async def asked(admin: Admin, path: str, *hosts: str, version: str = "1.1") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", admin.port)
    headers = "".join(f"Host: {host}\r\n" for host in hosts)
    writer.write(f"GET {path} HTTP/{version}\r\n{headers}\r\n".encode())
    said = await reader.read()
    writer.close()
    return said


def status(said: bytes) -> int:
    return int(said.split(b" ", 2)[1])


@pytest.mark.parametrize("port", ["", ":9631", ":"])
async def test_addresses_localhost_and_the_names_that_are_set_are_ours(admin: Admin, port: str) -> None:
    """No site can make a browser take an address for its own name. In any case, with any port, with the root's dot."""
    for host in OURS:
        assert status(await asked(admin, "/api/status", host + port)) == 200, host


async def test_every_other_name_is_told_nothing(admin: Admin) -> None:
    for host in FOREIGN:
        for path in ("/", "/api/status", "/api/", "/nowhere"):
            said = await asked(admin, path, host)
            assert status(said) in {421, 400}, host
            assert TOLD.encode() not in said
            assert host.encode() not in said.partition(b"\r\n\r\n")[2] or host in {"", "::1"}


async def test_probes_and_metrics_answer_under_any_name(admin: Admin) -> None:
    """Kubernetes and Prometheus use the name that they were given."""
    for path in ("/livez", "/readyz", "/metrics"):
        assert status(await asked(admin, path, "outboxd.any.example:80")) == 200


@pytest.mark.parametrize(
    ("path", "hosts", "version", "code"),
    [
        ("http://evil.example/api/status", ["localhost"], "1.1", 421),
        ("http://localhost/api/status", ["evil.example"], "1.1", 421),
        ("http://localhost/api/status", ["localhost"], "1.1", 200),
        ("//evil.example/api/status", ["localhost"], "1.1", 404),
        ("/api/status", ["localhost", "evil.example"], "1.1", 400),
        ("/api/status", ["evil.example", "localhost"], "1.1", 400),
        ("/api/status", [], "1.1", 400),
        ("/api/status", [], "1.0", 421),
        ("/api/status", ["evil.example"], "1.0", 421),
        ("/api/status?x=http://localhost/", ["evil.example"], "1.1", 421),
        ("/API/status", ["localhost"], "1.1", 404),
        ("/api%2fstatus", ["localhost"], "1.1", 404),
        ("/metrics/../api/status", ["evil.example"], "1.1", 421),
        ("/livez/", ["evil.example"], "1.1", 421),
    ],
)
async def test_two_names_are_one_too_many_and_none_too_few(
    admin: Admin, path: str, hosts: list[str], version: str, code: int
) -> None:
    """The target's own authority counts like a Host header; so does each of two."""
    said = await asked(admin, path, *hosts, version=version)
    assert status(said) == code
    assert (TOLD.encode() in said) == (code == 200)


def test_the_daemon_keeps_to_it_and_a_setting_adds_names(direct: Pair, start: Start) -> None:
    """From the environment a list with commas; and nothing in any answer lets another site read it, keep it or guess."""
    outboxd = streaming(start({**direct.settings, "admin_hosts": "outboxd, outboxd.internal"}))

    def get(path: str, method: str = "GET", **headers: str) -> tuple[int, Mapping[str, str], bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", outboxd.port, timeout=10)) as connection:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    assert [get("/api/status", Host=host)[0] for host in ("outboxd:9631", "outboxd.internal")] == [200, 200]
    refused, _, said = get("/api/status", Host="evil.example")
    assert (refused, b"OUTBOXD_ADMIN_HOSTS" in said, b"evil" in said) == (421, True, False)
    for path in ("/livez", "/readyz", "/metrics", "/api/status", "/nowhere"):
        for origin in ({}, {"Origin": "http://evil.example"}):
            _, headers, _ = get(path, **origin)
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["content-security-policy"].startswith("default-src 'none'")
            assert not [name for name in headers if name.startswith("access-control-")]
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND"):
        code, headers, _ = get("/api/status", method, Origin="http://evil.example")
        assert (code, headers["allow"]) == (405, "GET, HEAD"), method


@pytest.mark.parametrize("names", ["outboxd:9631", "http://outboxd", "*", "a b", "*.example", "a/b"])
def test_a_name_that_is_none_is_refused(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOXD_ADMIN_HOSTS", names)
    with pytest.raises(ConfigError, match="admin_hosts must be names of hosts"):
        load(needs=())
