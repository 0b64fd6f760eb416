"""A target that cannot prove who it is gets neither the key nor a row."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from daemon.demo.faults import Fault
from daemon.demo.gateway import Gateway
from daemon.errors import Kind, TargetError, advice
from daemon.rest import RestDoor
from tests.certificates import Authority
from tests.contract.conftest import Stand, at, failure, patient, upserts
from tests.contract.wire import Wire


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder: Path = tmp_path_factory.mktemp("certificates")
    return Authority.create(folder)


@asynccontextmanager
async def behind(rest: Stand, tls: ssl.SSLContext) -> AsyncIterator[Gateway]:
    """The project's PostgREST behind a gateway with this certificate."""
    gateway = Gateway(rest.project.gateway.upstream_port, rest.project.keys, tls)
    await asyncio.to_thread(gateway.start)  # it runs a loop of its own to begin with
    try:
        yield gateway
    finally:
        await asyncio.to_thread(gateway.stop)


async def refused(door: RestDoor, key: str) -> TargetError:
    """How a batch fails there; the key is in nothing that is said of it."""
    try:
        return await failure(patient(door, "tls"), key=key)
    finally:
        await door.close()


async def test_a_good_certificate_is_trusted(rest: Stand, authority: Authority) -> None:
    """The other tests mean something: with nothing wrong, it works."""
    async with behind(rest, authority.server()) as gateway:
        door = RestDoor(gateway.url, rest.project.secret_key, trust=authority.trust())
        target = patient(door, rest.name)
        await target.claim()
        assert (await target.apply(upserts((1, "a")), at(10), 1, 1)).what == "applied"
        await door.close()


@pytest.mark.parametrize(
    ("certificate", "known", "why"),
    [
        (("localhost", -1), True, "certificate has expired"),
        (("elsewhere.example", 9), True, "Hostname mismatch"),
        (("localhost", 9), False, "unable to get local issuer certificate"),
    ],
    ids=["expired", "another host's", "nobody known vouches for it"],
)
async def test_a_certificate_that_does_not_fit(
    rest: Stand, authority: Authority, certificate: tuple[str, int], known: bool, why: str
) -> None:
    """Auth, because it needs a person; nothing was sent, and one failure is one connection."""
    async with behind(rest, authority.server(*certificate)) as gateway, Wire(gateway.port) as wire:
        key = rest.project.secret_key
        url = f"https://localhost:{wire.port}"
        error = await refused(RestDoor(url, key, trust=authority.trust() if known else None), key)
        assert (error.kind, error.refusal.sqlstate) == (Kind.AUTH, "TLS_CERTIFICATE")
        assert why in str(error)
        assert "certificate" in advice(error.kind, error.refusal)
        assert wire.connections == 1
        assert not gateway.requests
    assert rest.items() == {}


@contextmanager
def server_that(answers: bytes) -> Iterator[int]:
    """A port where a client's first words are met with these bytes and the end of the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def meet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answers)

        thread = threading.Thread(target=meet)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("answers", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28"])
async def test_a_handshake_that_fails(rest: Stand, answers: bytes) -> None:
    """Closed, answered in plain text, or by an alert: transient, for nothing was sent and it may pass."""
    key = rest.project.secret_key
    with server_that(answers) as port:
        error = await refused(RestDoor(f"https://localhost:{port}", key), key)
    assert error.kind is Kind.TRANSIENT
    assert f"localhost:{port}" in str(error)


async def test_a_redirect_is_not_followed(rest: Stand) -> None:
    """Neither the key nor a row goes to where it points."""
    other = Gateway(rest.project.gateway.upstream_port, rest.project.keys)
    await asyncio.to_thread(other.start)
    try:
        for status in (301, 302, 303, 307, 308):
            rest.project.gateway.fault = Fault.status(
                status, b"", [("Location", f"{other.url}/rest/v1/rpc/outboxd")], times=1
            )
            error = await failure(rest.target())
            assert error.kind is Kind.AMBIGUOUS
            assert "redirect" in advice(error.kind, error.refusal)
        assert other.connections == 0
    finally:
        await asyncio.to_thread(other.stop)
