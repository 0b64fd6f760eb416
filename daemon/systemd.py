"""Telling systemd how the process does (sd_notify).

Knows the notify socket's protocol. Knows nothing of the daemon. Without a socket in the environment it is silent.
"""

import os
import socket
import time

from daemon.printable import printable

_LONGEST = 1000  # characters
_PATIENCE = 0.2  # seconds that the loop waits for a systemd that does not read: it is told again soon


def notify(**state: str | int) -> bool:
    """Send READY=1, RELOADING=1, STATUS=…, WATCHDOG=1, STOPPING=1; False when nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    # A line of its own would be a command of its own: MAINPID=…
    message = "\n".join(f"{name.upper()}={printable(str(value))[:_LONGEST]}" for name, value in state.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(_PATIENCE)
        try:
            sock.connect(address)
            sock.sendall(message.encode())
        except OSError:
            return False
    return True


def reloading() -> bool:
    """The answer to SIGHUP; READY=1 must follow. Type=notify-reload waits for both, Type=notify shows them."""
    return notify(reloading=1, monotonic_usec=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)


def watchdog_interval() -> float | None:
    """Seconds between two WATCHDOG=1, a third of what systemd allows; None when it does not watch this process."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 3_000_000
