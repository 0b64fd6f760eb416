"""Where nginx is found: on PATH, or where tests/fetch.sh nginx unpacks Debian's."""

import shutil

from tests.deploy.dockerfile import ROOT


class NoNginx(Exception):
    """None here; the message says how to get one."""


def nginx() -> list[str]:
    """The beginning of its command."""
    unpacked = ROOT / ".cache" / "nginx" / "usr" / "sbin" / "nginx"
    found = shutil.which("nginx") or (str(unpacked) if unpacked.exists() else None)
    if found is None:
        raise NoNginx("nginx was not found: tests/fetch.sh nginx fetches Debian's")
    return [found]
