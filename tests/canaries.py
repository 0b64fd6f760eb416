"""Canaries: values that must never be read outside of the two stores, and the scan that finds them.

Plant what `planted` and `NUMBER` give into rows, keys, passwords and API keys; whatever the daemon printed, logged,
measured or answered then goes through `assert_clean`. Pure: nothing needs to be registered.
"""

import base64
import re
from collections.abc import Iterator, Mapping

_MARK = "zqcanaryqz"

NUMBER = 735_771_735_771
"""The same for columns that hold numbers."""


def planted(place: str) -> str:
    """A value for one place, which a failure then names: letters, digits and dashes only."""
    return f"{_MARK}-{place}"


def assert_clean(texts: Mapping[str, str], *secrets: str) -> None:
    """No text, by its name, holds a canary or one of the secrets, whole, cut, escaped or encoded."""
    found = [f"{name}: {leak}" for name, text in texts.items() for leak in _leaks(text, secrets)]
    assert not found, "\n".join(["values and secrets got out:", *found])


def _leaks(text: str, secrets: tuple[str, ...]) -> Iterator[str]:
    for needle in [_MARK, str(NUMBER), *filter(None, secrets)]:
        for form, spelled in _forms(needle):
            for at in re.finditer(re.escape(spelled), text, re.IGNORECASE):
                around = text[max(0, at.start() - 80) : at.end() + 80]
                yield f"{form} in …{around!r}…"
                break


def _forms(needle: str) -> Iterator[tuple[str, str]]:
    raw = needle.encode()
    yield "plain", needle
    yield "hex", raw.hex()
    yield "reversed", needle[::-1]
    yield "percent-encoded", "".join(f"%{byte:02x}" for byte in raw)
    for ahead in range(3):  # base64 of something that begins up to two bytes before it
        encoded = base64.b64encode(b"\0" * ahead + raw).decode().rstrip("=")
        yield "base64", encoded[2 if ahead else 0 : -2][ahead:]
