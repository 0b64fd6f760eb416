r"""What may stand on a terminal, in a line of a log, or in what is told to systemd: one line of what can be seen.

Names and sentences come from both stores, from a gateway, from files and from the environment, and whoever gives them may
want more of a screen than to be read: end a line and forge the next, move the cursor, turn text around, hide. Pure.
Must not know what is said, nor what is secret.
"""

import re
import shlex

# The last: a backslash that would pass for the beginning of one of ours.
_DOUBTFUL = re.compile(r"[^ -~]|\\(?=x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
# What `str.isprintable` lets pass and no font shows: Unicode's Default_Ignorable_Code_Point, and a blank of Braille.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def printable(text: str) -> str:
    r"""The text on one line, with all that acts or hides written as \x1b, \u202e or \U000e0001. What it was can be read
    back from it: two texts never become one."""
    return _DOUBTFUL.sub(lambda found: _shown(found[0]), text)


def word(name: str) -> str:
    r"""A name for a command that a person pastes into bash or zsh. What cannot be seen is in octal there, which `printable`
    leaves as it is."""
    if printable(name) == name:
        return shlex.quote(name)
    return "$'" + "".join(map(_octal, name)) + "'"


def _shown(character: str) -> str:
    if character != "\\" and character.isprintable() and not _UNSEEN.match(character):
        return character
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _octal(character: str) -> str:
    if character not in {"\\", "'"} and _shown(character) == character:
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode(errors="replace"))
