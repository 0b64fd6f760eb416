r"""What looks like a secret, and what stands in its place wherever a text is shown: log, error, status.

Knows the forms of keys, tokens, addresses and their options, also percent-encoded or with JSON's escapes. Pure. Knows
nothing of settings. Masking too much costs an operator a second look, masking too little a key rotation: so it is greedy.
"""

import re
from collections.abc import Callable
from urllib.parse import unquote

_NAMES = (
    r"(?:pass(?:word|wd|phrase|code)|pwd|secret|token|credential|authorization|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|scram_(?:client|server)_key|supabase_key|service_role_key)"
)
# One in quotes that do not end goes on to the end of the text, which may have been cut.
_VALUE = r"""(?:\\++(["'])(?:[^\\]++|\\++(?!\3))*+(?:\\++\3|\Z)|'(?:[^'\\]|\\.)*+(?:'|\Z)|"(?:[^"\\]|\\.)*+(?:"|\Z)|(?:(?:basic|bearer|digest|negotiate)\s+)?(?:\\.|\S)+)"""
# In time that grows as the text does: a run of backslashes is taken as a whole, and none is given back.
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"sb_secret_[\w-]+"), "sb_secret_***"),
    (re.compile(r"eyJ[\w-]{6,}(?:\.[\w-]*)*"), "eyJ***"),
    # Bounded, as below: of a long word each letter could begin a name, and the search would take its length squared.
    (re.compile(rf"""({_NAMES}[\w.-]{{0,30}})(\\*["']?\s*[=:]\s*){_VALUE}""", re.IGNORECASE | re.DOTALL), r"\1\2***"),
    (re.compile(r"\b(basic|bearer)(\s+)[\w.~+/=-]{8,}", re.IGNORECASE), r"\1\2***"),
)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{0,30}://[^\s:/@]*:(?=.)", re.IGNORECASE)
_WORD = re.compile(r"\S++")
_ENCODED = re.compile(r"%[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}")
# Whatever one of these finds, this finds a part of: most texts are looked through once, and left as they are.
_SUSPECT = re.compile(rf"sb_secret_|eyJ|://|{_ENCODED.pattern}|(?i:{_NAMES}|basic|bearer)")

_NAMED = re.compile(_NAMES, re.IGNORECASE)


def names_secret(name: str) -> bool:
    """Is it what a secret is called? However harmless its value looks."""
    return _NAMED.search(_decoded(name)) is not None


def mask(text: str) -> str:
    """The text without anything that looks like a secret."""
    return throughout(text) if _SUSPECT.search(text) else text


def throughout(text: str) -> str:
    """As `mask`, without the first look. A text that only says a secret once it is decoded is shown decoded."""
    text = _plain(text)
    if not _ENCODED.search(text):
        return text
    said = _decoded(text)
    found = _plain(said)
    return text if found == said else found


def _plain(text: str) -> str:
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return _WORD.sub(_address, text) if "://" in text else text


def _address(found: re.Match[str]) -> str:
    """A word, without the password of an address. It ends at the last @: looked for once, not from each beginning."""
    before, at, host = found[0].rpartition("@")
    begins = _ADDRESS.search(before) if at else None
    return f"{before[: begins.end()]}***@{host}" if begins else found[0]


def _decoded(text: str) -> str:
    """What it says, though it be encoded twice."""
    for _ in range(3):
        before, text = text, re.sub(r"\\u([0-9a-fA-F]{4})", _character, unquote(text))
        if text == before:
            break
    return text


_character: Callable[[re.Match[str]], str] = lambda found: chr(int(found[1], 16))  # noqa: E731
