"""What a host does to a process: disks fill up, clocks jump, pipes block, limits are reached, and it is told to end in
the middle of things. The daemon goes on, or ends with a sentence and starts again; nothing is lost or done twice."""

import ast
import contextlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from daemon import check as doctor
from daemon.collectors import Lag
from daemon.demo.child import Outboxd
from daemon.demo.cluster import Cluster
from daemon.demo.faults import Fault
from daemon.demo.supabase import EmbeddedSupabase
from daemon.progress import Timing
from outbox.migrations import migrate
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import STORIES, Pair, Start, ended, measured, streaming, wait_until
from tests.databases import SETTINGS, Database
from tests.relaying import assembled, install, running, until

PATIENCE = 60.0
DAEMON = Path(__file__).parents[2] / "daemon"


# -- disks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(run_folder: Path) -> Iterator[Path]:
    """A file system of 200 MB that goes with the test."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = run_folder / "small-disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=200m,mode=0755", "outboxd-test", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        folder.rmdir()
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def fill(disk: Path) -> Path:
    """A file that takes all there is."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 65536):
            pass
    return ballast


def write_until_it_fails(pair: Pair) -> None:
    for _ in range(200):
        pair.write(STORIES, 500)


def test_a_full_disk_of_the_source_fails_the_application_and_not_the_relay(
    small_disk: Path, mirror: Database, pytestconfig: pytest.Config, start: Start
) -> None:
    """The application gets Postgres' own error; what was committed before is brought over while the disk is full; and
    once there is room all goes on, without a hand."""
    settings = {**SETTINGS, "max_wal_size": "64MB", "min_wal_size": "32MB", "shared_buffers": "16MB"}
    with Cluster.create(
        small_disk / "cluster", version=pytestconfig.getoption("--postgres"), settings=settings
    ) as disk:
        app = Database(disk, "app", "postgres")
        disk.create_database("app")
        with app.connect(autocommit=False) as conn:
            migrate(conn, "source")
        app.install("example_app.sql")
        with app.connect() as conn:
            conn.execute("select outbox.watch('\"Story\"')")
        way = {"transport": "postgres", "target_dsn": mirror.dsn, "poll_interval": "0.2", "heartbeat_interval": "0"}
        with contextlib.closing(Pair(app, mirror, {"source_dsn": app.dsn, **way})) as pair:
            outboxd = streaming(start(pair.settings))
            pair.write(STORIES, 1)
            wait_until(lambda: pair.mirrored() == 1, PATIENCE)
            outboxd.send(signal.SIGSTOP)
            pair.write(STORIES, 500)
            ballast = fill(small_disk)
            with pytest.raises(psycopg.errors.DiskFull):
                write_until_it_fails(pair)  # the pages that are there already take some
            outboxd.send(signal.SIGCONT)
            wait_until(lambda: pair.mirrored() >= 501 and not pair.waits(), PATIENCE)
            assert outboxd.returncode is None
            ballast.unlink()
            before = pair.mirrored()
            pair.write(STORIES, 500)
            wait_until(lambda: pair.mirrored() == before + 500, PATIENCE)
            assert outboxd.status()["problem"] is None  # type: ignore[index]
            assert outboxd.stop() == 0


# -- clocks --------------------------------------------------------------------------------------------------


def test_the_wall_clock_is_shown_and_never_waited_by() -> None:
    """Every use of it in the daemon is in this list; whoever adds one says here what it is for."""
    displayed = {
        ("heartbeat.py", "time"): 1,  # when the last one arrived
        ("main.py", "time"): 1,  # when the process started
        ("metrics.py", "time"): 1,  # timestamps among the metrics
        ("progress.py", "time"): 1,  # since when the relay is in its state
        ("relay.py", "time"): 2,  # the same, and when it last applied
        ("report.py", "gmtime"): 1,
        ("report.py", "time"): 2,  # since when the mode is what it is
        ("rest.py", "time"): 1,  # a Retry-After that is a date, of an answer that has none: capped, however far off
    }
    found: dict[tuple[str, str], int] = {}
    for path in DAEMON.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
                continue
            wall = {"time": {"time", "time_ns", "gmtime", "localtime", "ctime"}, "datetime": {"now", "utcnow", "today"}}
            if node.attr in wall.get(node.value.id, set()):
                found[path.name, node.attr] = found.get((path.name, node.attr), 0) + 1
    assert found == displayed


async def test_a_clock_that_jumps_neither_hurries_nor_holds_up_the_relay(
    source: Database, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour forth or back at every look: it sleeps as long as before, wakes up as soon, and is never ahead of time."""
    install(source, target)
    jumps, true = random.Random(39), time.time
    monkeypatch.setattr(time, "time", lambda: true() + jumps.choice([-3600.0, 0.0, 3600.0]))
    async with assembled(source.dsn, target.dsn) as parts, running(parts):
        parts.eager()
        for n in range(5):
            await parts.asleep(PATIENCE)
            turns, naps = parts.relay.turns, parts.bell.naps
            with source.connect() as conn:
                conn.execute("insert into item values (%s, 1)", (n,))
            await until(lambda n=n: parts.relay.status.applied == n + 1, PATIENCE)  # type: ignore[misc]
            await parts.asleep(PATIENCE)
            assert parts.relay.turns - turns < 50
            assert parts.bell.naps > naps
            assert 0 <= parts.relay.status.behind_seconds < 600
        assert parts.seen.failures == []


async def test_a_clock_set_back_while_the_relay_waits_out_a_failure_does_not_prolong_it(
    source: Database, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour back in the middle of a pause of a second: it goes on after that second, not after an hour."""
    install(source, target)
    true, offset = time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: true() + offset)
    timing = Timing(poll=3600, retry_first=1.0)
    async with assembled(source.dsn, target.dsn, timing=timing) as parts, running(parts):
        await parts.asleep(PATIENCE)
        parts.door.lose = 1
        with source.connect() as conn:
            conn.execute("insert into item values (1, 1)")
        await until(lambda: parts.seen.failures, PATIENCE)
        assert parts.relay.status.applied == 0
        offset = -3600.0
        await until(lambda: parts.relay.status.state == "streaming", PATIENCE)


def test_lag_by_a_clock_that_stepped_back_is_none() -> None:
    """The source's clock was an hour ahead when the change was made: its age is no less than nothing."""
    lag = Lag(lambda: 5.0, lambda: 0.0)
    lag.observe(-3600.0, 3)
    assert lag.seconds() == 0.0
    assert lag.now() == (0.0, 3)


def test_changes_from_the_future_leave_every_number_true(direct: Pair, start: Start) -> None:
    """The source's clock was set back by an hour after they were made, and others are an hour older than they were."""
    outboxd = streaming(start(direct.settings))
    outboxd.send(signal.SIGSTOP)
    for hours in (1, -1):
        direct.write(STORIES, 20)
        direct.write(
            "update outbox.change set created_at = created_at + %s * interval '1 hour' where created_at > now() - interval '10 min'",
            hours,
        )
    outboxd.send(signal.SIGCONT)
    seen: list[float] = []

    def arrived() -> bool:
        seen.append(measured(outboxd, "outboxd_lag_seconds"))
        seen.append(measured(outboxd, "outboxd_change_latency_seconds_sum"))
        return not direct.waits() and measured(outboxd, "outboxd_backlog_changes") == 0

    wait_until(arrived, PATIENCE)
    assert [value for value in seen if value < 0] == []
    assert direct.unequal() == []
    assert measured(outboxd, "outboxd_lag_seconds") == 0


# -- logs ----------------------------------------------------------------------------------------------------


def test_a_log_whose_reader_has_stopped_costs_lines_not_changes(direct: Pair, folder: Path, start: Start) -> None:
    """A full pipe: the relay goes on, says how many lines were dropped, and logs again when the reader reads."""
    settings = {**direct.settings, "batch_changes": "1", "log_level": "debug"}
    outboxd = Outboxd(folder, settings, name="blocked")
    os.mkfifo(outboxd.log)
    reader = os.open(outboxd.log, os.O_RDONLY | os.O_NONBLOCK)
    try:
        outboxd.start()
        wait_until(lambda: (outboxd.status() or {}).get("state") == "streaming", PATIENCE)
        for _ in range(400):  # each a line of 300 bytes or more; a pipe holds 64 KiB
            direct.write(STORIES, 1)
        direct.arrives(PATIENCE)
        assert outboxd.get("/livez")[0] == 200
        dropped = measured(outboxd, "outboxd_log_messages_dropped_total")
        assert dropped > 0
        text = b""

        def read() -> bytes:
            nonlocal text
            with contextlib.suppress(BlockingIOError):
                while more := os.read(reader, 1 << 16):
                    text += more
            return text

        read()
        direct.write(STORIES, 1)
        wait_until(lambda: b"log_lines_dropped" in read(), PATIENCE)
        lines = [json.loads(line) for line in text.splitlines() if line.startswith(b"{") and line.endswith(b"}")]
        assert sum(line["lines"] for line in lines if line["event"] == "log_lines_dropped") >= dropped
        outboxd.send(signal.SIGTERM)
        wait_until(lambda: read() and outboxd.returncode is not None, PATIENCE)
        assert outboxd.returncode == 0
        assert b"daemon_stopped" in read()
    finally:
        if outboxd.returncode is None:
            outboxd.kill()
        os.close(reader)
        outboxd.log.unlink()


@pytest.mark.parametrize("how", ["disk full", "reader gone"])
def test_a_log_that_cannot_be_written_ends_nothing(direct: Pair, folder: Path, how: str) -> None:
    """ENOSPC at every line, or EPIPE: the relay goes on, SIGTERM still ends it with 0."""
    outboxd = Outboxd(folder, direct.settings, name=how.replace(" ", "-"))
    reader = -1
    if how == "disk full":
        if not os.access("/dev/full", os.W_OK):
            pytest.skip("this system has no /dev/full")
        outboxd.log = Path("/dev/full")
    else:
        os.mkfifo(outboxd.log)
        reader = os.open(outboxd.log, os.O_RDONLY | os.O_NONBLOCK)
    try:
        outboxd.start()
        wait_until(lambda: (outboxd.status() or {}).get("state") == "streaming", PATIENCE)
        if reader >= 0:
            os.close(reader)
        for _ in range(20):
            direct.write(STORIES, 1)
        direct.arrives(PATIENCE)
        outboxd.send(signal.SIGTERM)
        wait_until(lambda: outboxd.returncode is not None, PATIENCE)
        assert outboxd.returncode == 0
    finally:
        if outboxd.returncode is None:
            outboxd.kill()
        if how == "reader gone":
            outboxd.log.unlink()


# -- limits --------------------------------------------------------------------------------------------------


def test_without_file_descriptors_it_waits_and_goes_on(direct: Pair, start: Start) -> None:
    """None left for anything new, idle connections to its pages besides, and both stores drop theirs: it says so, and
    recovers when there are some again."""
    outboxd = streaming(start(direct.settings))
    direct.write(STORIES, 10)
    direct.arrives(PATIENCE)
    before = resource.prlimit(outboxd.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(outboxd.pid, resource.RLIMIT_NOFILE, (6, before[1]))
    with contextlib.ExitStack() as taken:
        taken.callback(lambda: resource.prlimit(outboxd.pid, resource.RLIMIT_NOFILE, before))
        for _ in range(10):
            taken.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", outboxd.port))))
        for store in (direct.source, direct.target):
            with psycopg.connect(store.superuser_dsn, autocommit=True) as conn:
                conn.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where datname = current_database() and application_name like 'outboxd%'"
                )
        direct.write(STORIES, 10)
        lost = {"turn_failed", "listener_lost"}  # whichever of its connections to the source is missed first
        wait_until(lambda: any(line["event"] in lost for line in outboxd.said()), PATIENCE)
        assert outboxd.returncode is None
    wait_until(lambda: outboxd.status() is not None, PATIENCE)
    direct.arrives(PATIENCE)
    assert "Traceback" not in outboxd.log.read_text()
    assert outboxd.stop() == 0


def test_without_memory_it_ends_or_waits_and_the_next_one_brings_everything(direct: Pair, start: Start) -> None:
    """A limit of address space that a large batch does not fit into: no half of it arrives, no hang; the next process,
    which has more, goes on."""
    outboxd = streaming(start({**direct.settings, "batch_bytes": str(64 << 20)}))
    outboxd.send(signal.SIGSTOP)
    big = """insert into "Story" ("id", "title", "updatedAt") select gen_random_uuid(), repeat('x', 2000000), now() from generate_series(1, %s)"""
    direct.write(big, 20)
    used = _memory(outboxd.pid, "VmSize")
    resource.prlimit(outboxd.pid, resource.RLIMIT_AS, (used + (24 << 20), used + (24 << 20)))
    outboxd.send(signal.SIGCONT)
    wait_until(
        lambda: outboxd.returncode is not None or any(line["level"] == "error" for line in outboxd.said()), PATIENCE
    )
    assert direct.mirrored() == 0
    if outboxd.returncode is None:
        outboxd.kill()
    else:
        assert outboxd.returncode in {1, 75}
    streaming(start(direct.settings))
    direct.arrives(PATIENCE)
    assert direct.mirrored() == 20


def _memory(pid: int, what: str) -> int:
    """Bytes, as /proc says."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(what)


# -- the end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hangs", [2.0, 600.0])
def test_told_to_end_while_an_apply_hangs(rest: Pair, supabase: EmbeddedSupabase, start: Start, hangs: float) -> None:
    """It finishes what answers soon, and abandons what does not: exit 0 within 30 s, and nothing is applied twice."""
    outboxd = streaming(start({**rest.settings, "request_timeout": "59"}))
    with rest.target.connect() as conn:
        conn.execute("create table writes (n int)")
        conn.execute(
            "create function count_write() returns trigger language plpgsql as "
            "$$ begin insert into public.writes values (1); return null; end $$"
        )
        conn.execute(
            'create trigger count_write after insert or update on "Story" for each row execute function count_write()'
        )
    supabase.gateway.fault = Fault.delay(hangs, path="rpc/outboxd")
    rest.write(STORIES, 7)
    wait_until(lambda: rest.mirrored() == 7, PATIENCE)  # applied; the answer hangs
    outboxd.send(signal.SIGTERM)
    assert ended(outboxd, 30.0) == 0
    said = [line["event"] for line in outboxd.said()]
    assert ("batch_abandoned" in said) is (hangs > 30)
    supabase.gateway.fault = None
    streaming(start(rest.settings))
    rest.arrives(PATIENCE)
    assert rest.ask(rest.target, "select count(*) from writes") == [(7,)]


# -- transactions that nobody ends ---------------------------------------------------------------------------


def test_a_forgotten_prepared_transaction_holds_up_its_own_rows_alone(
    run_folder: Path, mirror: Database, pytestconfig: pytest.Config, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others' changes flow; its age is among the metrics; `outboxd check` names it and the statement that ends it. The
    same for a transaction that writes and does not end."""
    settings = {**SETTINGS, "max_prepared_transactions": "5"}
    folder = run_folder / "prepares"
    with Cluster.create(folder, version=pytestconfig.getoption("--postgres"), settings=settings) as cluster:
        app = Database(cluster, "app", "postgres")
        cluster.create_database("app")
        with app.connect(autocommit=False) as conn:
            migrate(conn, "source")
        app.install("example_app.sql")
        with app.connect() as conn:
            conn.execute("select outbox.watch('\"Story\"')")
        way = {"source_dsn": app.dsn, "transport": "postgres", "target_dsn": mirror.dsn, "poll_interval": "0.2"}
        way["heartbeat_interval"] = "0"
        with contextlib.closing(Pair(app, mirror, way)) as pair, app.connect(autocommit=False) as writes:
            outboxd = streaming(start(pair.settings))
            with app.connect(autocommit=False) as conn:
                conn.execute(STORIES.encode(), (3,))
                conn.execute("prepare transaction 'o''clock'")
            writes.execute(STORIES.encode(), (4,))
            pair.write(STORIES, 5)
            wait_until(lambda: pair.mirrored() == 5, PATIENCE)
            wait_until(lambda: measured(outboxd, "outboxd_source_oldest_transaction_age_seconds") > 1, PATIENCE)
            assert measured(outboxd, "outboxd_backlog_changes") == 0
            monkeypatch.chdir(folder)
            assert not {"prepared transaction", "open transaction"} & Cli(pair.settings).found().keys()
            monkeypatch.setattr(doctor, "LONG", 0.0)
            found = Cli(pair.settings).found()
            assert f"pid {writes.info.backend_pid}" in found["open transaction"]["what"]
            assert "o'clock has been prepared" in found["prepared transaction"]["what"]
            assert found["prepared transaction"]["level"] == "WARN"
            writes.commit()
            wait_until(lambda: pair.mirrored() == 9, PATIENCE)
            for _ in range(2):  # looks that began after the commit
                looked = measured(outboxd, "outboxd_lag_observed_timestamp_seconds")
                wait_until(lambda at=looked: measured(outboxd, "outboxd_lag_observed_timestamp_seconds") > at, PATIENCE)  # type: ignore[misc]
            assert measured(outboxd, "outboxd_source_oldest_transaction_age_seconds") > 2  # the prepared one's alone
            fix, _, _ = found["prepared transaction"]["fix"].partition(";")
            with app.connect() as conn:
                conn.execute(fix.encode())
            pair.arrives(PATIENCE)
            assert pair.mirrored() == 12


def test_the_doctor_explains_a_plpgsql_that_new_sessions_cannot_load(
    direct: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade that replaced the server's files while it ran: writes to watched tables fail, and why."""
    monkeypatch.chdir(tmp_path)
    with psycopg.connect(direct.source.superuser_dsn, autocommit=True) as conn:
        conn.execute("update pg_proc set probin = '$libdir/replaced' where proname like 'plpgsql%'")
    with pytest.raises(psycopg.errors.UndefinedFile):
        direct.write(STORIES, 1)
    found = Cli(direct.settings).found()["capture"]
    assert found["level"] == "FAIL"
    assert "restart the server" in found["fix"]


# -- a deep backlog ------------------------------------------------------------------------------------------


def test_a_deep_backlog_drains_in_bounded_memory(direct: Pair, pytestconfig: pytest.Config, start: Start) -> None:
    """The target was away for long: the daemon grows by no more than a few batches, and the last page of the window
    takes as long to read as the first."""
    changes = int(pytestconfig.getoption("--backlog"))
    outboxd = streaming(start(direct.settings))
    direct.write(STORIES, 2000)
    direct.arrives(PATIENCE)
    before = _memory(outboxd.pid, "VmHWM")
    outboxd.send(signal.SIGSTOP)
    for _ in range(changes // 5000):
        direct.write(STORIES, 5000)
    outboxd.send(signal.SIGCONT)
    wait_until(lambda: direct.mirrored() == 2000 + changes // 5000 * 5000, PATIENCE + changes / 1000)
    grown = (_memory(outboxd.pid, "VmHWM") - before) / (1 << 20)
    lines = [line for line in outboxd.said() if line["event"] == "batch_applied"]
    print(f"{changes} changes in {len(lines)} batches; grown by {grown:.0f} MiB")
    assert grown < 60
    reads = measured(outboxd, 'outboxd_source_query_duration_seconds_sum{query="read"}')
    assert reads / len(lines) < 0.5
