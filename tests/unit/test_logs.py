"""What a log line looks like, what never gets into one, and what a broken log may not do."""

import io
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st

from daemon import logs, secrecy
from daemon.printable import printable

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2lnbmF0dXJl"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """The log is the process's: each test gives it back as it found it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.fixture
def out() -> io.StringIO:
    """A configured log at level info, as JSON."""
    stream = io.StringIO()
    logs.configure("info", "json", stream=stream)
    return stream


log = structlog.get_logger()


def test_a_line_is_json_with_time_level_and_event_first(out):
    """A reader of raw lines sees when, how bad and what before anything else."""
    log.info("batch_applied", relay="main", changes=3, lag_s=0.25, held=None, last=True)
    (line,) = lines(out)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line["timestamp"].endswith("Z")
    del line["timestamp"]
    assert line == {
        "level": "info", "event": "batch_applied", "relay": "main", "changes": 3, "lag_s": 0.25, "held": None,
        "last": True,
    }  # fmt: skip


def test_auto_is_json_in_a_pipe_and_readable_on_a_terminal(monkeypatch):
    """Nobody has to choose: the stream decides."""
    pipe, terminal = io.StringIO(), Terminal()
    logs.configure(stream=pipe)
    log.info("relay_started")
    logs.configure(stream=terminal)
    log.info("relay_started", relay="main")
    assert lines(pipe)[0]["event"] == "relay_started"
    assert "relay_started" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")
    assert "\x1b[" in terminal.getvalue()


def test_no_color_is_respected(monkeypatch):
    """NO_COLOR turns the colours off, on a terminal too."""
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    logs.configure(stream=terminal)
    log.info("relay_started", relay="main")
    assert "\x1b[" not in terminal.getvalue()
    assert "relay=main" in terminal.getvalue()


def test_stdout_is_the_default(capsys):
    """Without a stream the lines go to stdout, where a supervisor expects them."""
    logs.configure(fmt="json")
    log.info("relay_started")
    written = capsys.readouterr()
    assert json.loads(written.out)["event"] == "relay_started"
    assert written.err == ""


def test_the_level_filters_and_can_be_changed(out):
    """A logger made at import obeys the newest level."""
    log.debug("window_read")
    assert lines(out) == []
    logs.configure("debug", "json", stream=out)
    log.debug("window_read")
    assert [line["event"] for line in lines(out)] == ["window_read"]


def test_every_written_line_is_told_by_level():
    """The counter per level hears what is written, libraries included, and nothing that is filtered."""
    heard: list[str] = []
    logs.configure("info", "json", stream=io.StringIO(), on_message=heard.append)
    log.debug("a")
    log.info("b")
    log.warning("c")
    try:
        raise ValueError
    except ValueError:
        log.exception("d")
    logging.getLogger("httpx").error("e")
    assert heard == ["info", "warning", "error", "error"]


def test_context_is_on_every_line(out):
    """What is bound once, such as the relay's name, is on each line."""
    structlog.contextvars.bind_contextvars(relay="main")
    log.info("batch_applied")
    assert lines(out)[0]["relay"] == "main"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("the key sb_secret_N7UND0UgjKTVK-Uodkm0Hg_xSvEMPvz is refused", "N7UND0UgjKTVK"),
        (f"apikey: {JWT}", "eyJyb2xlIjoic2VydmljZV9yb2xlIn0"),
        (f"{JWT[:60]}", "eyJyb2xlIjoic2Vy"),
        ("connecting to postgresql://app:hunter2@db/app", "hunter2"),
        ("postgres://app:p@ss/hunter2@db:5432/app?x=1", "hunter2"),
        ("https://user:hunter2@proxy.example", "hunter2"),
        ("host=db password=hunter2 dbname=app", "hunter2"),
        ("host=db PASSWORD = 'hun ter2' dbname=app", "ter2"),
        (r"password=hun\ ter2", "ter2"),
        ("{'password': 'hunter2'}", "hunter2"),
        ('{"sslpassword": "hunter2"}', "hunter2"),
        ("postgresql://db/app?user=a&password=hunter2", "hunter2"),
        ("PGPASSWORD=hunter2", "hunter2"),
        ("postgresql://db/app?pass%77ord=hunter2", "hunter2"),
        ("postgresql://db/app?pass%2577ord=hunter2", "hunter2"),
        (r'{"pass\u0077ord": "hunter2"}', "hunter2"),
        (r'"{\"password\": \"hun ter2\"}"', "ter2"),
        ("oauth_client_secret=hunter2 host=db", "hunter2"),
        ("scram_client_key = hunter2", "hunter2"),
        ("https://x.example/?token=hunter2", "hunter2"),
        ("api_key=hunter2", "hunter2"),
        ("X-Api-Key: hunter2", "hunter2"),
        ("client_secret: hunter2", "hunter2"),
        ("Authorization: Basic aHVudGVyMjpodW50ZXIy", "aHVudGVyMjpodW50ZXIy"),
        ("authorization=Bearer hunter2hunter2", "hunter2"),
        ("got Bearer hunter2hunter2 instead", "hunter2"),
        ("sb%5Fsecret%5FN7UND0UgjKTVK", "N7UND0UgjKTVK"),
    ],
)
def test_secrets_are_masked_wherever_they_stand(out, text, secret):
    """Event, value, nested value, exception: a secret is masked in each of them."""
    log.warning(text, note=text, nested={"deep": [text]}, error=RuntimeError(text), obj=Thing(text))
    try:
        raise RuntimeError(text)
    except RuntimeError:
        log.exception("step_failed")
    logging.getLogger("psycopg").warning("%s", text)
    assert len(lines(out)) == 3
    assert secret not in out.getvalue()
    assert "***" in out.getvalue()


class Thing:
    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


def test_words_around_a_secret_stay(out):
    """Host, user and database are what an operator needs to see."""
    log.warning("source_lost", dsn="postgresql://app:hunter2@db.example:5432/shop")
    assert lines(out)[0]["dsn"] == "postgresql://app:***@db.example:5432/shop"
    assert logs.redact("password authentication failed for user app") == ("password authentication failed for user app")


@pytest.mark.parametrize("key", ["password", "apikey", "Authorization", "supabase_key", "client_secret"])
def test_a_key_that_names_a_secret_hides_its_value(out, key):
    """However harmless the value looks."""
    log.info("config_read", **{key: "abc", "nested": {key: "abc"}})
    assert lines(out)[0][key] == "***"
    assert lines(out)[0]["nested"] == {key: "***"}


@given(st.text(st.characters(codec="ascii", exclude_characters="@ "), min_size=1).filter(str.isprintable))
def test_no_password_survives_in_a_dsn(password):
    """Whatever characters a password has, the mask covers all of it."""
    masked = logs.redact(f"postgresql://app:{password}@db/shop")
    assert masked == "postgresql://app:***@db/shop"


_PIECES = (
    "sb_secret_", "SB_SECRET_", "eyJ", "eyJhbGciOi", ".", "passWord", "passwd", "passphrase", "=", ": ", "'", '"', "a", "http",
    "://", ":", "@", "/", " ", "token", "%70", "u0070", "Bearer ", "Basic longenough", "\n", "\x1b[31m", "\u2028", "\\", "hunter2", "ſ", "K",
)  # fmt: skip


@example("passWord=hunter2")
@example("PASSWD: x")
@example("my PassPhrase='a b'")
@example("eyJhbGciOi")
@example("x sb_secret_x")
@example("HTTP://a:b@c")
@given(st.lists(st.sampled_from(_PIECES), max_size=12).map("".join))
def test_what_is_left_as_it_is_has_nothing_to_mask(text):
    """One look tells whether any of the masks has something to do: a text that it lets pass none of them would change."""
    assert logs.redact(text) == printable(secrecy.throughout(text))


def test_an_exception_is_data_without_locals(out):
    """Types, one-line messages and places; never the values of variables."""

    def inner() -> None:
        row = "row-value"
        raise LookupError(f"no such table\n{row}")

    try:
        try:
            inner()
        except LookupError as error:
            raise RuntimeError("cannot plan") from error
    except RuntimeError:
        log.exception("step_failed")
    (line,) = lines(out)
    assert line["error"] == "RuntimeError: cannot plan"
    assert [one["type"] for one in line["exception"]] == [
        "RuntimeError: cannot plan",
        "LookupError: no such table",
    ]
    assert [frame.rsplit(".", 1)[-1] for frame in line["exception"][1]["frames"]][-1] == "inner"
    assert "row-value" not in out.getvalue()


@pytest.mark.parametrize("how", [True, "error", "tuple"])
def test_exc_info_may_come_in_any_form(out, how):
    """True, the exception itself and the triple mean the same."""
    try:
        raise ValueError("odd")
    except ValueError as error:
        info = {"error": error, "tuple": (ValueError, error, error.__traceback__)}.get(how, True)
        log.error("step_failed", exc_info=info)
    assert lines(out)[0]["exception"][0]["type"] == "ValueError: odd"


def test_exc_info_without_an_exception_is_nothing(out):
    """A stray exc_info outside an except block does not get in the way."""
    log.error("step_failed", exc_info=True)  # noqa: LOG014
    assert "exception" not in lines(out)[0]


def test_a_group_names_each_member(out):
    """What a TaskGroup raises is of no use without the errors inside it."""
    log.error("daemon_stopped", exc_info=ExceptionGroup("tasks", [ValueError("a"), OSError("b")]))
    types = [one["type"] for one in lines(out)[0]["exception"]]
    assert types == ["ExceptionGroup: tasks (2 sub-exceptions)", "ValueError: a", "OSError: b"]


def test_an_endless_chain_is_cut(out):
    """A thousand errors in a row become a line of bounded length."""
    error: Exception = ValueError("0")
    for number in range(1, 1000):
        later = ValueError(str(number))
        later.__cause__ = error
        error = later
    log.error("step_failed", exc_info=error)
    assert len(lines(out)[0]["exception"]) == 8


def test_what_a_database_says_about_a_row_is_not_repeated():
    """Errors about data quote the row; errors about objects do not, and help."""
    quoted = psycopg.errors.InvalidTextRepresentation('invalid input syntax for type integer: "row-value"')
    named = psycopg.errors.InsufficientPrivilege("permission denied for table story\nDETAIL: row-value")
    assert logs.describe(quoted) == "psycopg.errors.InvalidTextRepresentation (22P02)"
    assert logs.describe(named) == ("psycopg.errors.InsufficientPrivilege: permission denied for table story (42501)")
    assert logs.describe(psycopg.OperationalError("connection refused")) == (
        "psycopg.OperationalError: connection refused"
    )


def test_an_api_error_with_details_shows_its_code_only():
    """PostgREST repeats the database's details, rows included."""

    class APIError(Exception):
        code = "23505"
        details = "Key (id)=(row-value) already exists."

    described = logs.describe(APIError("duplicate row-value"))
    assert described.endswith("APIError (23505)")
    assert "row-value" not in described


def test_a_value_is_one_short_line(out):
    """Newlines cannot forge a line, escapes cannot paint a terminal, and length is bounded."""
    log.info("x", a="one\ntwo\r\x1b[31mthree", b="y" * 10_000, c=b"raw row", d=math.nan, e="z" * 2000)
    (line,) = lines(out)
    assert line["a"] == r"one\x0atwo\x0d\x1b[31mthree"
    assert line["b"] == "y" * 2000 + "…"
    assert line["c"] == "<7 bytes>"
    assert line["d"] == "nan"
    assert line["e"] == "z" * 2000


def test_odd_values_do_not_stop_the_log(out):
    """Sets, deep nests, objects whose __str__ fails: something is written in each case."""

    class SilentError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    deep: list[Any] = []
    deep.append(deep)
    log.info("x", a={1}, b=deep, c=SilentError(), e={"k": (1, 2)})
    (line,) = lines(out)
    assert line["a"] == [1]
    assert line["c"].endswith("SilentError")
    assert line["e"] == {"k": [1, 2]}


@pytest.mark.parametrize("nest", [lambda inner: [inner], lambda inner: {"k": inner}])
def test_a_nest_is_shown_to_a_depth(out, nest):
    """Below the fifth level there are dots, so that no value can grow a line without end."""
    value: Any = b"raw row"
    for _ in range(5):
        value = nest(value)
    log.info("x", shallow=value, deep=nest(value))
    (line,) = lines(out)
    shown = nest(nest(nest(nest(nest("<7 bytes>")))))
    assert line["shallow"] == shown
    assert line["deep"] == json.loads(json.dumps(shown).replace("<7 bytes>", "…"))


def test_a_deep_traceback_is_cut_to_its_inner_end(out):
    """The twenty innermost places are where to look."""

    def fall(depth: int) -> None:
        if depth == 0:
            raise RuntimeError("bottom")
        fall(depth - 1)

    try:
        fall(50)
    except RuntimeError:
        log.exception("step_failed")
    frames = lines(out)[0]["exception"][0]["frames"]
    assert len(frames) == 20
    assert all(frame.endswith("fall") for frame in frames)


def test_an_object_that_cannot_be_shown_is_named(out):
    """Its type is better than no line."""

    class Shy:
        def __str__(self) -> str:
            raise RuntimeError("no")

    log.info("x", a=Shy())
    assert lines(out)[0]["a"].endswith("Shy>")


def test_libraries_speak_through_us_from_warning_up(out):
    """httpx logs every request at info: only what is wrong gets through, as one kind of line."""
    for name in ("httpx", "httpcore", "psycopg.pool", "uvicorn.error", "asyncio"):
        logging.getLogger(name).info("chatter")
        logging.getLogger(name).warning("trouble %d", 1)
    assert [(line["event"], line["logger"], line["message"]) for line in lines(out)] == [
        ("library_logged", name, "trouble 1")
        for name in ("httpx", "httpcore", "psycopg.pool", "uvicorn.error", "asyncio")
    ]


def test_a_library_that_was_told_to_chatter_is_told_again(out):
    """Neither the root's level nor a library's own may let its chatter in."""
    logging.getLogger().setLevel(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.DEBUG)
    logs.configure("debug", "json", stream=out)
    logging.getLogger("httpx").info("chatter")
    logging.getLogger("somebody.else").info("chatter")
    assert lines(out) == []


def test_a_library_exception_comes_along(out):
    """A task that died unseen is reported by asyncio with its traceback."""
    logging.getLogger("asyncio").error(
        "Task exception was never retrieved", exc_info=(ValueError, ValueError("odd"), None)
    )
    assert lines(out)[0]["error"] == "ValueError: odd"


def test_a_library_message_that_does_not_format_is_kept(out, monkeypatch):
    """A bug in a library's log call must not become ours."""
    root = logging.getLogger()  # where pytest's own handlers would stumble over it
    monkeypatch.setattr(root, "handlers", [one for one in root.handlers if isinstance(one, logs._Forward)])
    logging.getLogger("httpx").warning("%d", "no number")
    logging.getLogger("httpx").log(35, "odd level")
    logging.getLogger("httpx").log(99, "odder level")
    assert [(line["level"], line["message"]) for line in lines(out)] == [
        ("warning", "%d"), ("warning", "odd level"), ("critical", "odder level"),
    ]  # fmt: skip


def test_configuring_twice_does_not_write_twice(out):
    """A reload replaces the log, it does not add to it."""
    logs.configure("info", "json", stream=out)
    logging.getLogger("httpx").warning("trouble")
    assert len(lines(out)) == 1


def test_a_readable_traceback_has_no_locals():
    """The console shows the same data as the JSON, laid out."""
    stream = io.StringIO()
    logs.configure(fmt="console", stream=stream)
    try:
        raise ValueError("first line\npassword=hunter2")
    except ValueError:
        log.exception("step_failed")
    assert "ValueError: first line\n  at " in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_json_is_ascii():
    """Whatever the locale, a line can be written, and read back as it was."""
    raw = io.BytesIO()
    logs.configure(fmt="json", stream=io.TextIOWrapper(raw, encoding="ascii"))
    log.info("table_watched", table="größe")
    assert json.loads(raw.getvalue())["table"] == "größe"


def test_a_narrow_stream_still_gets_the_line():
    """A terminal in the C locale shows an escape instead of raising."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    logs.configure(fmt="console", stream=stream)
    log.info("table_watched", table="größe")
    assert rb"gr\xf6\xdfe" in raw.getvalue()


class Broken(io.StringIO):
    """A stream that fails as told; it has no file descriptor."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(28, "No space left on device"), ValueError("I/O on closed file")]
)
def test_a_log_that_cannot_be_written_stops_nothing(error):
    """No pipe, no space, no file: the caller does not notice."""
    logs.configure(fmt="json", stream=Broken(error))
    log.info("batch_applied")
    logging.getLogger("httpx").warning("trouble")


def test_a_reader_that_goes_away_does_not_change_the_exit_status():
    """`outboxd run | head -1` must not end the relay, nor make its end look like a failure."""
    program = """
import sys, structlog
from daemon import logs, secrecy
from daemon.printable import printable
logs.configure(fmt="json")
log = structlog.get_logger()
sys.stdin.readline()  # until the reader has gone
for number in range(10_000):
    log.info("batch_applied", number=number)
sys.stderr.write("still here")
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate("gone\n", timeout=60)
    assert (process.returncode, errors) == (0, "still here")


def test_each_line_is_out_at_once(tmp_path):
    """A crash right after a line must not take the line along."""
    with (tmp_path / "log").open("w") as stream:
        logs.configure(fmt="json", stream=stream)
        log.info("relay_started")
        assert "relay_started" in (tmp_path / "log").read_text()


def test_a_reader_that_has_stopped_is_waited_for_once_and_told_what_it_missed():
    """A full pipe blocks whoever writes into it: lines are dropped and counted instead, and none is cut in two."""
    reader, writer = os.pipe()
    dropped: list[int] = []
    with os.fdopen(reader, "rb") as pipe, os.fdopen(writer, "w") as stream:
        logs.configure(fmt="json", stream=stream, on_dropped=lambda: dropped.append(1))
        os.set_blocking(reader, False)
        for number in range(1000):
            log.info("batch_applied", number=number, long="x" * 1500, longer=["y" * 1500] * 3)
        first = pipe.read()
        log.info("relay_started")
        read = (first + pipe.read()).decode().splitlines()
    assert 900 < len(dropped) < 1000
    whole, torn = [], []
    for line in read:
        try:
            whole.append(json.loads(line))
        except ValueError:
            torn.append(line)
    assert len(torn) <= 1
    *kept, told, last = whole
    assert (told["event"], told["lines"], last["event"]) == ("log_lines_dropped", len(dropped), "relay_started")
    assert [line["number"] for line in kept] == list(range(len(kept)))
    assert len(kept) == 1000 - len(dropped)
