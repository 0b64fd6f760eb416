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

_IS = r"(?:=>|:=|[=:])"


def _quoted(number: int) -> str:
    """A value in quotes, of SQL's kinds, too, with two groups from that number on. One in quotes that do not end goes on to the end of the text, which may have
    been cut. Quotes that are doubled, or have more backslashes before them than the first, are within."""
    run, quote = rf"\{number}", rf"\{number + 1}"
    return (
        rf"""(?:(\\++)(["'])(?:[^\\]++|\\++(?!{quote})|(?={run}\\)\\++{quote})*+(?:\\++{quote}|\Z)"""
        r"""|(?:[ebx]|u&)?'(?:[^'\\]|\\.|'')*+(?:'|\Z)|"(?:[^"\\]|\\.|"")*+(?:"|\Z)|\$\$(?:[^$]|\$(?!\$))*+(?:\$\$|\Z))"""
    )


def _value(number: int) -> str:
    """A value, with five groups from that number on. Of one that is another option, or has one within, what that one's value
    is: `password= password='a b'`. The last of them may have none: else each would be looked through to the end, in vain."""
    inner = rf"""{_NAMES}[\w.\[\]-]{{0,30}}(?:\\*+["']?\s*+{_IS}\s*+|\s++(?=\\*+["']))(?:{_quoted(number + 3)})?+"""
    ahead = rf"""([\w.-]++\\*+["']?\s*+{_IS}\s*+|(?:basic|bearer|digest|negotiate|token|apikey)\s++)*+"""
    return rf"""{ahead}(?:{_quoted(number + 1)}|(?:{inner}|\\\W|\S)++|(?({number})\Z|(?!)))"""


# In time that grows as the text does: a run of backslashes is taken as a whole, and none is given back.
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"sb_secret_[\w-]+"), "sb_secret_***"),
    (re.compile(r"eyJ[\w-]{6,}(?:\.[\w-]*)*"), "eyJ***"),
    # Bounded, as below: of a long word each letter could begin a name, and the search would take its length squared.
    (
        re.compile(rf"""({_NAMES}[\w.\[\]-]{{0,30}})(\\*["']?\s*{_IS}\s*){_value(3)}""", re.IGNORECASE | re.DOTALL),
        r"\1\2***",
    ),
    (re.compile(rf"({_NAMES}[\w.-]{{0,30}})(\s++){_quoted(3)}", re.IGNORECASE | re.DOTALL), r"\1\2***"),
    (re.compile(r"\b(basic|bearer)(\s+)[\w.~+/=-]{8,}", re.IGNORECASE), r"\1\2***"),
)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{0,30}\\*:\\*/\\*/(?:\\.|[^\s:/@\\])*?\\*:(?=.)", re.IGNORECASE | re.DOTALL)
_PORT = re.compile(r"\d{1,5}(?:[/,?]|\\|$)")
_SLASHES = re.compile(r":\\*/\\*/")
_WORD = re.compile(r"(?:\\.|\S)++", re.DOTALL)
_ENCODED = re.compile(r"%[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}")
# Whatever one of these finds, this finds a part of: most texts are looked through once, and left as they are.
_SUSPECT = re.compile(rf"sb_secret_|eyJ|:\\*/|{_ENCODED.pattern}|(?i:{_NAMES}|basic|bearer)")

_NAMED = re.compile(_NAMES, re.IGNORECASE)


def names_secret(name: str) -> bool:
    """Is it what a secret is called? However harmless its value looks."""
    return _NAMED.search(_decoded(name)) is not None


def mask(text: str) -> str:
    """The text without anything that looks like a secret."""
    return throughout(text) if _SUSPECT.search(text) else text


def throughout(text: str) -> str:
    """As `mask`, without the first look. A text that only says a secret once it is decoded is shown decoded."""
    if not _ENCODED.search(text):
        return _plain(text)
    said = _decoded(text)
    found = _plain(said)
    return _plain(text) if found == said else found


def _plain(text: str) -> str:
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return _WORD.sub(_address, text) if _SLASHES.search(text) else text


def _address(found: re.Match[str]) -> str:
    """A word, without the password of an address. It ends at the last @, looked for once, not from each beginning; or where that has
    been masked, with the end of a password that looks like an option."""
    before, at, host = found[0].rpartition("@")
    if (not at or before.endswith("\\")) and "***" in host:
        before, at, host = found[0], "", ""
    begins = _ADDRESS.search(before) if before else None
    if begins is None or (not at and _PORT.match(before, begins.end())):
        return found[0]
    return f"{before[: begins.end()]}***{at}{host}"


def _decoded(text: str) -> str:
    """What it says, though it be encoded twice. What would end a value is escaped: it was part of one, or of an option as a whole."""
    for _ in range(3):
        before, text = text, _BYTES.sub(_characters, re.sub(r"\\u([0-9a-fA-F]{4})", _character, text))
        if text == before:
            break
    return text


def _escaped(text: str) -> str:
    return _ENDS.sub(r"\\\g<0>", text)


_BYTES = re.compile(r"(?:%[0-9a-fA-F]{2})++")
_ENDS = re.compile(r"""[\s"'\\@]""")
_character: Callable[[re.Match[str]], str] = lambda found: _escaped(chr(int(found[1], 16)))  # noqa: E731
_characters: Callable[[re.Match[str]], str] = lambda found: _escaped(unquote(found[0]))  # noqa: E731
