"""One line per thing that happened: pretty on a terminal, JSON everywhere else.

Knows structlog and the standard library's logging. Must not know settings, metrics
or what the lines are about. Whatever a caller passes, no secret leaves through a line, an exception does not
quote rows, and a log that cannot be written stops nothing. That no row value is passed is the caller's part.
"""

import json
import logging
import math
import os
import re
import select
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from daemon.printable import printable
from daemon.secrecy import mask, names_secret
from daemon.sparing import Sparing

_NUMBER = re.compile(r"\d+")
_LIBRARIES = ("asyncio", "hpack", "httpcore", "httpx", "postgrest", "psycopg", "supabase", "uvicorn")
_LONGEST = 2000  # characters of one value
_LOOKED_AT = 20_000  # characters of one that is longer: what is masked costs the event loop time
_DOUBTED = 64  # characters before the cut, not shown
_DEEPEST = 5  # levels of a nested value
_FRAMES = 20  # of a traceback, the innermost
_CHAIN = 8  # exceptions of one chain
_PATIENCE = 0.2  # seconds that a line waits for a reader that has stopped
# Classes of SQLSTATE whose first line names objects and states: connection, feature, transaction,
# authorisation, rollback, syntax and access, resources, limits, prerequisites, intervention, system.
_SPEAKS_OF_NO_ROW = frozenset(["08", "0A", "25", "28", "40", "42", "53", "54", "55", "57", "58"])


def configure(
    level: str = "info",
    fmt: str = "auto",
    *,
    stream: TextIO | None = None,
    on_message: Callable[[str], None] | None = None,
    on_dropped: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Set up the process's log; calling it again replaces what it set up.

    `fmt` is auto, console or json. The stream is stdout unless a command keeps that for its data.
    `on_message` hears the level of every line, `on_dropped` of each that nobody took.
    """
    out = stream or sys.stdout
    lines = _Lines(out, on_dropped)
    console = fmt == "console" or (fmt == "auto" and out.isatty())
    threshold = logging.getLevelNamesMapping()[level.upper()]
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _exceptions_as_data,
        _clean_up,
    ]
    if on_message is not None:
        processors.append(_telling(on_message))
    processors += _renderers(console, out)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=False,  # so that a new level reaches loggers made at import
    )
    _route_libraries(Sparing(clock))


def set_level(level: str) -> None:
    """From now on lines of this level and above, the rest of what `configure` set up as it is."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(**{**structlog.get_config(), "wrapper_class": structlog.make_filtering_bound_logger(threshold)})


def redact(text: str) -> str:
    """The text on one line, of bounded length, without anything that looks like a secret."""
    if len(text) > _LOOKED_AT:
        # What the cut goes through: an address is one up to its @, and of a token a few characters look like none.
        beginning = printable(mask(text[:_LOOKED_AT] + "@"))
        return beginning[: min(_LONGEST, max(0, len(beginning) - _DOUBTED))] + "…"
    text = printable(mask(text))
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def describe(error: BaseException) -> str:
    """An exception as one line that is safe to show."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    sqlstate = getattr(error, "sqlstate", None)
    code = sqlstate or getattr(error, "code", None)
    # About a row a database speaks by quoting it: "Key (email)=(…)", "invalid input syntax … : …".
    ours = kind.__module__.startswith(("daemon.", "outbox."))
    if not ours and (hasattr(error, "details") or (sqlstate and sqlstate[:2] not in _SPEAKS_OF_NO_ROW)):
        return f"{name} ({code})"
    try:
        first, *_ = str(error).strip().splitlines() or [""]
    except Exception:  # noqa: BLE001  (a broken __str__ must not cost more than its own text)
        first = ""
    state = f" ({sqlstate})" if sqlstate and not ours else ""
    return redact(": ".join(filter(None, (name, first))) + state)


def last_words(error: BaseException | None, exit_code: int | None = None) -> None:
    """What ends the process (`exit_code`), or a thread of it, and should not have: one line, with the places. What a bug stumbled on may
    be a row, and its text quotes that: of errors that are not our own the kind is all that is said."""
    if not structlog.is_configured():  # a command that had nothing to log until now
        configure(stream=sys.stderr)
    chain = list(islice(_chain(error), _CHAIN)) if error is not None else []
    told = [{"type": _kind(one), "frames": _frames(one)} for one in chain]
    inner = next((one["type"] for one in told if "Group" not in one["type"]), type(error).__name__)
    structlog.get_logger().critical("failed_by_a_bug", error=inner, exception=told, exit_code=exit_code)


def _kind(error: BaseException) -> str:
    kind = type(error)
    return (
        describe(error)
        if kind.__module__.startswith(("daemon.", "outbox."))
        else f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    )


def _exceptions_as_data(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    error = event.pop("exc_info", None)
    if error is True or isinstance(error, tuple):
        error = (sys.exc_info() if error is True else error)[1]
    if isinstance(error, BaseException):
        event.setdefault("error", describe(error))
        event["exception"] = [{"type": describe(one), "frames": _frames(one)} for one in islice(_chain(error), _CHAIN)]
    return event


def _chain(error: BaseException) -> Iterator[BaseException]:
    yield error
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _chain(one)
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from _chain(cause)


def _frames(error: BaseException) -> list[str]:
    """Places only: locals and source lines may hold row values."""
    walked = list(traceback.walk_tb(error.__traceback__))[-_FRAMES:]
    return [f"{frame.f_code.co_filename}:{line} {frame.f_code.co_qualname}" for frame, line in walked]


@lru_cache(maxsize=1024)
def _names_a_secret(key: str) -> bool:
    return names_secret(key)


def _clean_up(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    cleaned = {key: "***" if _names_a_secret(key) else _clean(value) for key, value in event.items()}
    first = {key: cleaned.pop(key) for key in ("timestamp", "level", "event") if key in cleaned}
    return first | cleaned


def _clean(value: Any, depth: int = 0) -> Any:  # noqa: PLR0911  a kind of value each
    if type(value) is str or type(value) is int:  # nearly all are
        return redact(value) if type(value) is str else value
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, BaseException):
        return describe(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping | list | tuple | set | frozenset) and depth >= _DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        return {
            redact(str(key)): "***" if _names_a_secret(str(key)) else _clean(one, depth + 1)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(one, depth + 1) for one in value]
    try:
        return redact(str(value))
    except Exception:  # noqa: BLE001  (a broken __str__ must not cost more than its own text)
        return f"<{type(value).__qualname__}>"


def _telling(on_message: Callable[[str], None]) -> Processor:
    def tell(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        on_message(event["level"])
        return event

    return tell


def _renderers(console: bool, out: TextIO) -> list[Processor]:
    if not console:
        # ASCII: such a line can be written whatever the locale of the stream.
        encode = json.JSONEncoder(ensure_ascii=True).encode
        return [lambda _, __, event: encode(event)]  # all values are plain by now
    colors = out.isatty() and not os.environ.get("NO_COLOR")
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )
    return [_exceptions_as_text, renderer]


def _exceptions_as_text(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if isinstance(chain := event.get("exception"), list):
        lines = [line for one in chain for line in (one["type"], *(f"  at {at}" for at in one["frames"]))]
        event["exception"] = "\n".join(lines)
    return event


class _Lines:
    """Writes lines, each at once. A reader that went away or stopped, or a full disk, costs lines, never the daemon."""

    def __init__(self, stream: TextIO, on_dropped: Callable[[], None] = lambda: None) -> None:
        self._stream = stream
        self._on_dropped = on_dropped
        self._waits = _PATIENCE
        self._dropped = 0
        self._torn = False

    def write(self, line: str) -> None:
        if self._dropped and self._takes(0.0):
            told = json.dumps({"level": "warning", "event": "log_lines_dropped", "lines": self._dropped})
            self._dropped = 0
            self._put(told)
        if not self._put(line):
            self._dropped += 1
            self._on_dropped()

    def _put(self, line: str) -> bool:
        """Whether somebody took the line, or there is nobody to take any."""
        text = ("\n" if self._torn else "") + line + "\n"
        try:
            try:
                return self._write(text)
            except UnicodeEncodeError:
                return self._write(text.encode("ascii", "backslashreplace").decode())
        except BrokenPipeError:
            self._silence()
        except (OSError, ValueError):
            return False
        return True

    def _write(self, text: str) -> bool:
        # A pipe that is ready takes PIPE_BUF bytes without blocking, not more; a character is four of them at most.
        step = select.PIPE_BUF if text.isascii() else select.PIPE_BUF // 4
        for start in range(0, len(text), step):
            if not self._takes(self._waits):
                self._waits, self._torn = 0.0, self._torn or start > 0
                return False
            self._stream.write(text[start : start + step])
            self._stream.flush()
        self._waits, self._torn = _PATIENCE, False
        return True

    def _takes(self, seconds: float) -> bool:
        """Can it be written without waiting for the reader longer than that? A reader found asleep is not waited for
        again until it has woken up."""
        try:
            number = self._stream.fileno()
        except (OSError, ValueError, AttributeError):  # no file below, as in a test
            return True
        waiting = select.poll()
        waiting.register(number, select.POLLOUT)
        return bool(waiting.poll(seconds * 1000))

    def _silence(self) -> None:
        # The interpreter flushes stdout when it ends; still broken, it would turn exit status 0 into 120.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    debug = info = warning = error = critical = write


class _Forward(logging.Handler):
    """Hands what libraries log to structlog, so that it is cleaned and counted like our own lines. One line a minute of
    a kind: what asyncio says of a socket, whoever reaches a port can make it say without end."""

    def __init__(self, sparing: Sparing) -> None:
        super().__init__()
        self._sparing = sparing

    def emit(self, record: logging.LogRecord) -> None:
        kind = _NUMBER.sub("#", str(record.msg).partition("\n")[0][:100])
        left_out = self._sparing.lets((record.name, record.levelno, kind))
        if left_out is None:
            return
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001  (a library's format string that does not fit its arguments)
            message = str(record.msg)
        level = min(max(record.levelno // 10, 1), 5) * 10
        more = {"left_out": left_out} if left_out else {}
        structlog.get_logger().log(
            level, "library_logged", logger=record.name, message=message, exc_info=record.exc_info, **more
        )


def _route_libraries(sparing: Sparing) -> None:
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _Forward)]:
        root.removeHandler(handler)
    root.addHandler(_Forward(sparing))
    root.setLevel(logging.WARNING)
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
