"""Where a message ends: the gateway must neither cut a body short nor read into the next message."""

import asyncio

import pytest

from daemon.demo.http1 import (
    Head,
    Malformed,
    Outgoing,
    ends_with_connection,
    read_head,
    request_body,
    response_body,
)


def stream(raw: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(raw)
    reader.feed_eof()
    return reader


async def relayed(raw: bytes, method: str = "GET") -> tuple[bytes, bytes]:
    """A response's body as it is handed on, and what is left on the stream."""
    reader = stream(raw)
    head = await read_head(reader)
    assert head
    body = b"".join([piece async for piece in response_body(reader, head, method)])
    return body, await reader.read()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (OK + b"Content-Length: 3\r\n\r\nabcNEXT", b"abc"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n\r\nNEXT", b"3;x=y\r\nabc\r\n0\r\n\r\n"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: 1\r\nY: 2\r\n\r\nNEXT", b"0\r\nX: 1\r\nY: 2\r\n\r\n"),
        (b"HTTP/1.1 204 No Content\r\n\r\nNEXT", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\nNEXT", b""),
    ],
    ids=["counted", "chunked", "trailers", "no content", "not modified"],
)
async def test_a_body_ends_where_its_framing_says(raw: bytes, body: bytes) -> None:
    assert await relayed(raw) == (body, b"NEXT")


async def test_a_head_request_has_no_body_whatever_its_headers_say() -> None:
    assert await relayed(OK + b"Content-Length: 3\r\n\r\nNEXT", "HEAD") == (b"", b"NEXT")


async def test_without_framing_the_connection_ends_a_response_but_not_a_request() -> None:
    assert await relayed(OK + b"\r\nall of it") == (b"all of it", b"")
    head = Head(("GET", "/", "HTTP/1.1"), ())
    assert [piece async for piece in request_body(stream(b"NEXT"), head)] == []
    assert ends_with_connection(Head(("HTTP/1.1", "200", "OK"), ()), "GET")
    assert not ends_with_connection(Head(("HTTP/1.1", "200", "OK"), ()), "HEAD")


@pytest.mark.parametrize(
    "raw",
    [
        OK + b"Content-Length: 9\r\n\r\nabc",
        OK + b"Content-Length: some\r\n\r\nabc",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        OK + b"Content-Len",
        b"nonsense\r\n\r\n",
        b"SSH-2.0 is another protocol\r\n\r\n",
        OK + b"X: " + b"x" * 100_000,
    ],
    ids=["short", "no number", "no size", "cut chunk", "cut head", "one word", "other protocol", "long head"],
)
async def test_nonsense_is_told_from_an_end(raw: bytes) -> None:
    with pytest.raises(Malformed):
        await relayed(raw)


async def test_the_end_between_messages_is_no_error() -> None:
    assert await read_head(stream(b"")) is None


@pytest.mark.parametrize(
    ("start", "headers", "closes"),
    [
        (("HTTP/1.1", "200", "OK"), (), False),
        (("HTTP/1.1", "200", ""), (("Connection", "Close"),), True),
        (("GET", "/", "HTTP/1.0"), (), True),
        (("GET", "/", "HTTP/1.0"), (("connection", "keep-alive"),), False),
    ],
)
def test_who_closes(start: tuple[str, str, str], headers: tuple[tuple[str, str], ...], closes: bool) -> None:
    assert Head(start, headers).closes is closes


async def test_a_head_survives_being_read_and_written() -> None:
    raw = b"POST /rest/v1/x?y=1 HTTP/1.1\r\nHost: a\r\nX:  spaced \r\n\r\n"
    head = await read_head(stream(raw))
    assert head
    assert (head.method, head.path, head.get("x")) == ("POST", "/rest/v1/x", "spaced")
    assert Head(head.start, head.without("host")).encode() == b"POST /rest/v1/x?y=1 HTTP/1.1\r\nX: spaced\r\n\r\n"


async def test_small_pieces_leave_as_one_packet_and_large_bodies_as_they_come() -> None:
    sent: asyncio.Queue[bytes] = asyncio.Queue()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await sent.put(await reader.read(1_000_000))
        await sent.put(await reader.read())
        writer.close()

    async with await asyncio.start_server(receive, "127.0.0.1", 0) as server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        outgoing = Outgoing(writer)
        for piece in (b"a", b"b", b"c"):
            outgoing.write(piece)
        assert await sent.get() == b"abc"
        big = Head(("HTTP/1.1", "200", "OK"), (("Content-Length", "600000"),))
        await outgoing.copy(response_body(stream(b"x" * 600_000), big, "GET"))
        outgoing.close()
        assert await sent.get() == b"x" * 600_000
        await writer.wait_closed()
