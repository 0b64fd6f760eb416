"""What can go wrong at a gateway, as values.

Knows the kinds of faults and counts them down. Must not know how the gateway brings them about.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Self


class Kind(Enum):
    STATUS = "status"
    DROP_RESPONSE = "drop_response"
    DELAY = "delay"
    REFUSE = "refuse"
    TRUNCATE = "truncate"
    RESET = "reset"
    DRIP = "drip"
    SLOW_HEAD = "slow_head"
    INSTEAD = "instead"


@dataclass(frozen=True)
class Fault:
    """One fault, for how many requests (None: until cleared), and for paths that contain `path`."""

    kind: Kind
    times: int | None = None
    path: str = ""
    code: int = 503
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0

    @classmethod
    def status(
        cls,
        code: int,
        body: bytes = b"",
        headers: Iterable[tuple[str, str]] = (),
        *,
        times: int | None = None,
        path: str = "",
    ) -> Self:
        """Answer in PostgREST's place, which never sees the request."""
        return cls(Kind.STATUS, times, path, code, body, tuple(headers))

    @classmethod
    def drop_response(cls, *, times: int | None = None, path: str = "") -> Self:
        """PostgREST does its work; the connection closes without a word of it."""
        return cls(Kind.DROP_RESPONSE, times, path)

    @classmethod
    def delay(cls, seconds: float, *, times: int | None = None, path: str = "") -> Self:
        """PostgREST does its work; its answer arrives later."""
        return cls(Kind.DELAY, times, path, seconds=seconds)

    @classmethod
    def refuse(cls, *, times: int | None = None, path: str = "") -> Self:
        """Close at once; PostgREST never sees the request."""
        return cls(Kind.REFUSE, times, path)

    @classmethod
    def truncate(cls, *, times: int | None = None, path: str = "") -> Self:
        """PostgREST does its work; the connection closes in the middle of its answer."""
        return cls(Kind.TRUNCATE, times, path)

    @classmethod
    def reset(cls, *, times: int | None = None, path: str = "") -> Self:
        """PostgREST does its work; half of its answer arrives, then the connection is reset."""
        return cls(Kind.RESET, times, path)

    @classmethod
    def drip(cls, seconds: float, *, times: int | None = None, path: str = "") -> Self:
        """PostgREST does its work; its answer's body arrives byte by byte, so many seconds apart."""
        return cls(Kind.DRIP, times, path, seconds=seconds)

    @classmethod
    def slow_head(cls, seconds: float, *, times: int | None = None, path: str = "") -> Self:
        """PostgREST does its work; its answer arrives byte by byte from the first one on."""
        return cls(Kind.SLOW_HEAD, times, path, seconds=seconds)

    @classmethod
    def instead(
        cls,
        code: int,
        body: bytes = b"",
        headers: Iterable[tuple[str, str]] = (),
        *,
        times: int | None = None,
        path: str = "",
    ) -> Self:
        """PostgREST does its work; the client gets another answer than PostgREST's."""
        return cls(Kind.INSTEAD, times, path, code, body, tuple(headers))


class Plot:
    """The fault in force; set by one thread, taken by another."""

    def __init__(self) -> None:
        self._fault: Fault | None = None
        self._lock = threading.Lock()

    @property
    def fault(self) -> Fault | None:
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        with self._lock:
            self._fault = fault

    def take(self, path: str) -> Fault | None:
        """The fault that hits a request, counted down."""
        with self._lock:
            fault = self._fault
            if fault is None or fault.path not in path:
                return None
            if fault.times is not None:
                self._fault = replace(fault, times=fault.times - 1) if fault.times > 1 else None
            return fault
