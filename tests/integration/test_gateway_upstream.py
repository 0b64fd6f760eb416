"""The gateway in front of an upstream that misbehaves in ways PostgREST does not on demand."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest

from daemon.demo.gateway import Gateway
from daemon.demo.keys import ApiKeys


@contextmanager
def gateway_before(*answers: bytes, held: bool = False) -> Iterator[tuple[Gateway, list[bytes]]]:
    """A gateway whose upstream answers each connection's first request with the next of the given bytes.

    It closes the connection then, or, `held`, when all is over.
    """
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as kept:

        def answer_each() -> None:
            for answer in answers:
                with suppress(OSError):
                    connection, _ = listener.accept()
                    with ExitStack() as brief:
                        (kept if held else brief).enter_context(connection)
                        seen.append(read_request(connection))
                        connection.sendall(answer)

        upstream = threading.Thread(target=answer_each)
        upstream.start()
        gateway = Gateway(listener.getsockname()[1], ApiKeys())
        gateway.start()
        try:
            yield gateway, seen
        finally:
            gateway.stop()
            listener.shutdown(socket.SHUT_RDWR)
            upstream.join()


def read_request(connection: socket.socket) -> bytes:
    raw, length = b"", 0
    with connection.makefile("rb") as stream:
        while not raw.endswith(b"\r\n\r\n"):
            line = stream.readline()
            raw += line
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        return raw + stream.read(length)


def ask(gateway: Gateway) -> httpx.Response:
    return httpx.get(f"{gateway.url}/rest/v1/x", headers={"apikey": gateway.keys.secret})


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200", b"SSH-2.0\r\n\r\n"], ids=["nothing", "half a head", "nonsense"]
)
def test_an_upstream_that_gives_no_answer_is_a_502(answer: bytes) -> None:
    with gateway_before(answer) as (gateway, _):
        response = ask(gateway)
    assert response.status_code == 502
    assert response.headers["connection"] == "close"
    assert "invalid response" in response.json()["message"]


def test_a_body_that_only_the_end_ends_is_passed_on_and_ended() -> None:
    with gateway_before(b"HTTP/1.1 200 OK\r\n\r\nall of it") as (gateway, _):
        assert ask(gateway).text == "all of it"


def test_a_connection_the_upstream_closed_is_not_used_again() -> None:
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number for number in (1, 2)]
    with gateway_before(*answers) as (gateway, _), httpx.Client() as client:
        headers = {"apikey": gateway.keys.secret}
        first = client.get(f"{gateway.url}/rest/v1/x", headers=headers)
        second = client.get(f"{gateway.url}/rest/v1/x", headers=headers)
    assert (first.text, second.text) == ("1", "2")


def test_a_connection_that_the_upstream_is_about_to_close_is_not_used_again() -> None:
    """PostgREST closes after an answer without a frame, a HEAD's above all, without saying so, a moment later."""
    answers = [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2"]
    with gateway_before(*answers, held=True) as (gateway, _), httpx.Client() as client:
        headers = {"apikey": gateway.keys.secret}
        assert client.head(f"{gateway.url}/rest/v1/x", headers=headers).status_code == 200
        assert client.get(f"{gateway.url}/rest/v1/x", headers=headers).text == "2"


def test_what_the_upstream_sees() -> None:
    empty = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    with gateway_before(empty, empty) as (gateway, seen):
        headers = {"apikey": gateway.keys.secret, "Expect": "100-continue", "X-Own": "kept"}
        httpx.post(f"{gateway.url}/rest/v1/x", headers=headers, content=b"body")
        httpx.options(f"{gateway.url}/rest/v1", headers={"Origin": "http://there"})
        bearer = f"Authorization: Bearer {gateway.keys.service_jwt}".encode()
    assert seen[0].startswith(b"POST /x HTTP/1.1\r\n")
    assert b"Expect" not in seen[0]
    assert b"X-Own: kept" in seen[0]
    assert bearer in seen[0]
    assert seen[0].endswith(b"\r\n\r\nbody")
    # A browser's preflight carries no key, and gets none.
    assert seen[1].startswith(b"OPTIONS / HTTP/1.1\r\n")
    assert b"Authorization" not in seen[1]


def test_starting_and_stopping_twice_is_harmless() -> None:
    with gateway_before() as (gateway, _):
        port = gateway.port
        gateway.start()
        assert gateway.port == port
        gateway.stop()
        gateway.stop()
        gateway.start()
        assert gateway.port == port
