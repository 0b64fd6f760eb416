"""A user of the machine who opens connections to the daemon's pages, as many and as slow as can be: the relay goes on,
whoever scrapes is answered, and nothing grows, neither descriptors nor the log."""

import asyncio
import contextlib
import json
import logging
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from daemon.demo.child import Outboxd
from daemon.serving import BACKLOG, PATIENCE, Answer, Request, Server
from daemon.sparing import Sparing
from tests.acceptance.conftest import STORIES, Pair, Start, streaming, wait_until
from tests.waiting import wait_until_async

LINES_A_MINUTE = 3  # about connections; one a kind
CONNECTIONS = 32
OWN = 40  # descriptors of a daemon whose pages nobody asks
LARGE = b"x" * 40_000_000  # more than sockets keep for a client that does not read
GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"


def descriptors(outboxd: Outboxd) -> int:
    return len(list(Path(f"/proc/{outboxd.pid}/fd").iterdir()))


@pytest.fixture
def many_files() -> Iterator[None]:
    """The flood needs more descriptors than a shell gives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def idle_connections(port: int, most: int = 1100) -> Iterator[Callable[[], int]]:
    """So many at once, none of which asks; those that were dropped come again. How many were opened so far."""
    stop, opened = threading.Event(), 0

    def keep_on() -> None:
        nonlocal opened
        held: list[socket.socket] = []
        while not stop.is_set():
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            held.append(one)
            opened += 1
            if len(held) > most:
                held.pop(0).close()
            stop.wait(0.0005)
        for each in held:
            each.close()

    thread = threading.Thread(target=keep_on, name="flood")
    thread.start()
    try:
        yield lambda: opened
    finally:
        stop.set()
        thread.join()


def test_a_thousand_idle_connections_stop_neither_the_relay_nor_a_scrape(
    direct: Pair, start: Start, many_files: None
) -> None:
    """While they come and go: bounded descriptors, rows that arrive, each page within a scrape's patience, a line or two."""
    outboxd = streaming(start(direct.settings))
    with idle_connections(outboxd.port) as opened:
        wait_until(lambda: opened() > 1100)
        scrapes = []
        for _ in range(3):
            direct.write(STORIES, 5)
            scrapes += [scraped(outboxd.port, page) for page in (b"/metrics", b"/livez", b"/readyz", b"/api/status")]
            assert descriptors(outboxd) <= OWN + CONNECTIONS + 1
        direct.arrives()
    assert scrapes == [200] * len(scrapes)
    said = [line for line in outboxd.said() if line["event"] in {"admin_connections_dropped", "library_logged"}]
    assert len(said) <= LINES_A_MINUTE
    assert direct.mirrored() == 15
    assert outboxd.returncode is None


def scraped(port: int, page: bytes) -> int:
    """As Prometheus does, with its ten seconds."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as one:
        one.sendall(GET % page)
        return int(one.makefile("rb").read().split(b" ", 2)[1])


def test_descriptors_that_are_gone_make_no_noise(direct: Pair, start: Start) -> None:
    """None left for a connection: it is not asked for again and again, and its pages answer once there are some."""
    outboxd = streaming(start(direct.settings))
    outboxd.said()
    before = resource.prlimit(outboxd.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(outboxd.pid, resource.RLIMIT_NOFILE, (6, before[1]))
    with contextlib.ExitStack() as kept:
        for _ in range(CONNECTIONS):
            one = kept.enter_context(contextlib.closing(socket.socket()))
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", outboxd.port))
        seen: list[dict[str, object]] = []

        def told() -> bool:
            seen.extend(outboxd.said())
            return any("EMFILE" in line.get("counts", ()) for line in seen)  # type: ignore[operator]

        wait_until(told)
        direct.write(STORIES, 5)
        direct.arrives()
    resource.prlimit(outboxd.pid, resource.RLIMIT_NOFILE, before)
    wait_until(lambda: outboxd.get("/livez")[0] == 200)
    about = [line for line in seen + outboxd.said() if line["event"] in {"admin_connections_dropped", "library_logged"}]
    assert len(about) == 1


def test_whoever_probes_is_answered_while_others_scrape(direct: Pair, start: Start) -> None:
    """Sixty that ask a page which takes its time, again and again: none of them takes a probe's place, nor its answer."""
    outboxd = streaming(start(direct.settings))
    stop = threading.Event()

    def asked(page: bytes) -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", outboxd.port), timeout=5) as one:
                one.sendall(GET % page)
                return one.makefile("rb").read()
        except OSError:
            return b""

    def scrape() -> None:
        while not stop.is_set():
            asked(b"/metrics")

    threads = [threading.Thread(target=scrape) for _ in range(60)]
    for thread in threads:
        thread.start()
    try:
        probes = []
        for _ in range(10):
            stop.wait(0.2)
            probes.append(asked(b"/livez")[:12])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert probes.count(b"HTTP/1.1 200") >= 9, probes


# -- one server, by itself -------------------------------------------------------------------------------------


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """With a page that is quick, one that is large, one that takes its time and one that fails."""

    def page(request: Request) -> Answer:
        if request.path == "/slow":
            time.sleep(0.02)
        if request.path == "/fails":
            raise LookupError
        return Answer(200, LARGE if request.path == "/large" else b"ok")

    made = Server("127.0.0.1", 0, page, at_once=("/quick",))
    serving_it = asyncio.create_task(made.run())
    yield made
    serving_it.cancel()
    await asyncio.wait([serving_it])


Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connected(server: Server, *, sends: bytes = b"", limit: int = 1 << 16) -> Client:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=limit)
    writer.write(sends)
    return reader, writer


async def heard(client: Client) -> bytes:
    """All that comes until the server's end; nothing when it cuts the line."""
    reader, writer = client
    try:
        return await asyncio.wait_for(reader.read(), 4 * PATIENCE)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def drip(client: Client, text: bytes) -> None:
    """A byte every tenth of a second, for as long as somebody listens."""
    with contextlib.suppress(ConnectionError):
        for byte in text:
            client[1].write(bytes([byte]))
            await client[1].drain()
            await asyncio.sleep(0.1)


async def test_nobody_stays_without_asking_nor_without_taking_the_answer(server: Server) -> None:
    """Each of these is gone when its patience is over: who says nothing, who says a byte at a time, who does not read."""
    began = time.monotonic()
    silent, slow = await connected(server), await connected(server)
    deaf = await connected(server, sends=GET % b"/large", limit=1024)
    dripping = asyncio.create_task(drip(slow, GET % (b"/" + b"a" * 200)))
    assert not any(await asyncio.gather(heard(silent), heard(slow)))
    waited = time.monotonic() - began
    assert PATIENCE - 0.1 <= waited < PATIENCE + 4
    dripping.cancel()
    await wait_until_async(lambda: closed(server), PATIENCE + 4)
    deaf[1].close()


def established(server: Server) -> int:
    """Connections to its port, whether or not it has taken them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{server.port:04X}") and row[3] == "01" for row in rows)


async def closed(server: Server) -> bool:
    """No connection is left: asking how many there are would be one more."""
    return not established(server)


@pytest.mark.parametrize(
    ("sends", "status"),
    [
        (b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello", 405),
        (b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50, 200),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n", 200),
        (b"GET / HTTP/1.0\r\n\r\n", 200),
    ],
)
async def test_whatever_is_asked_is_answered_once_and_that_is_the_end(
    server: Server, sends: bytes, status: int
) -> None:
    """A line without end, a body, another verb, another protocol, fifty requests at once, a connection to be kept."""
    said = await asyncio.wait_for(heard(await connected(server, sends=sends)), 5)
    assert said.startswith(b"HTTP/1.1 %d " % status) or (status == 431 and said == b"")  # it may still be sending
    assert said.count(b"HTTP/1.1 ") <= 1
    if said:
        assert b"\r\nConnection: close\r\n" in said


async def test_who_closed_its_half_is_still_answered(server: Server) -> None:
    before = await connected(server, sends=GET % b"/slow")
    client = await connected(server, sends=GET % b"/slow")
    client[1].write_eof()
    assert [(await heard(one))[-2:] for one in (before, client)] == [b"ok"] * 2


async def test_head_has_no_body(server: Server) -> None:
    said = await heard(await connected(server, sends=b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    assert said.endswith(b"\r\n\r\n")
    assert b"Content-Length: 2\r\n" in said


async def test_the_oldest_idle_one_goes_for_a_newer_one(server: Server) -> None:
    """And whoever asked and waits for us stays."""
    asked = [await connected(server, sends=GET % b"/slow") for _ in range(5)]
    idle = [await connected(server) for _ in range(CONNECTIONS + 10)]
    assert await heard(idle[0]) == b""
    assert [(await heard(one))[-2:] for one in asked] == [b"ok"] * 5
    idle[-1][1].write(GET % b"/")
    assert (await heard(idle[-1])).endswith(b"ok")
    for _, writer in idle:
        writer.close()


async def test_who_does_not_take_its_answer_keeps_no_place_for_long(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there is room for: a probe gets in well before their patience is over."""
    monkeypatch.setattr("daemon.serving.MOST", 2)
    deaf = [await connected(server, sends=GET % b"/large", limit=1024) for _ in range(2)]
    began = time.monotonic()
    assert (await heard(await connected(server, sends=GET % b"/quick"))).endswith(b"ok")
    assert time.monotonic() - began < PATIENCE / 2
    for _, writer in deaf:
        writer.close()


async def test_who_waits_for_a_page_leaves_places_for_others(server: Server) -> None:
    """Those beyond the queue are told so at once, each of them."""
    asked = [await connected(server, sends=GET % b"/slow") for _ in range(CONNECTIONS + 10)]
    began = time.monotonic()
    assert (await heard(await connected(server, sends=GET % b"/quick"))).endswith(b"ok")
    assert time.monotonic() - began < 0.7  # ten pages of a tenth of a second each
    said = [await heard(one) for one in asked]
    assert {one[9:12] for one in said} <= {b"200", b"503"}
    assert sum(one.endswith(b"ok") for one in said) >= 20


async def test_pages_take_a_share_of_the_loop_however_many_ask(server: Server) -> None:
    """Twenty of 20 ms take two seconds, not half of one; the probe does not wait for them."""
    began = time.monotonic()
    asked = [await connected(server, sends=GET % b"/slow") for _ in range(20)]
    assert (await heard(await connected(server, sends=GET % b"/quick"))).endswith(b"ok")
    probed = time.monotonic() - began
    assert all([(await heard(one)).endswith(b"ok") for one in asked])
    assert time.monotonic() - began >= 19 * 5 * 0.02
    assert probed < time.monotonic() - began - 0.5


async def test_a_page_that_fails_is_an_answer_and_one_line(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    said = [await heard(await connected(server, sends=GET % b"/fails")) for _ in range(3)]
    assert all(one.startswith(b"HTTP/1.1 500 ") for one in said)
    assert all(b"LookupError" not in one for one in said)
    assert (await heard(await connected(server, sends=GET % b"/"))).endswith(b"ok")


async def test_the_kernel_keeps_few_more() -> None:
    """What waits to be accepted is bounded, too: nobody accepts here, and few get in."""
    unserved = Server("127.0.0.1", 0, lambda _: Answer(200, b""))
    clients = [socket.socket() for _ in range(3 * BACKLOG)]
    for one in clients:
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", unserved.port))
    wait_until(lambda: established(unserved) > 0)  # on a busy machine the kernel lets them in a moment later
    assert established(unserved) <= 16 + 1
    for one in clients:
        one.close()
    unserved.close()


def test_one_line_a_minute_of_a_kind_and_how_many_were_left_out() -> None:
    now = 0.0
    sparing = Sparing(lambda: now)
    assert [sparing.lets("accept") for _ in range(1000)] == [0] + [None] * 999
    assert sparing.lets("another") == 0
    now = 60.0
    assert sparing.lets("accept") == 999
    assert sum(sparing.lets(f"kind {i}") is not None for i in range(10_000)) < 100  # invented kinds are one


def test_what_asyncio_says_without_end_is_said_once_a_minute(tmp_path: Path) -> None:
    """Whatever the numbers in it: the file descriptor differs each time."""
    from daemon import logs

    root = logging.getLogger()
    kept, level = list(root.handlers), root.level
    now, file = 0.0, tmp_path / "log"
    try:
        with file.open("w") as stream:
            logs.configure(fmt="json", stream=stream, clock=lambda: now)
            for number in range(500):
                logging.getLogger("asyncio").error(f"socket.accept() out of system resource\nsocket: fd={number}")  # noqa: G004
            now = 61.0
            logging.getLogger("asyncio").error("socket.accept() out of system resource\nsocket: fd=1")
    finally:
        root.handlers[:] = kept
        root.setLevel(level)
    first, second = map(json.loads, file.read_text().splitlines())
    assert "left_out" not in first
    assert second["left_out"] == 499
