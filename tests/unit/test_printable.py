"""What is shown of a text that may be hostile: one line, nothing that acts or hides, and never two texts alike."""

import re
import subprocess
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daemon.printable import printable, word

ANY = st.text(st.characters(exclude_categories=()))  # lone surrogates as well
ODD = st.text(st.sampled_from("\\x1b0u2eU\x1b\n\r\u202e\u200b\ud800'ab \U000e0041"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("public.story", "public.story"),
        ("Käse → 日本", "Käse → 日本"),
        ("a\nb\r\tc", r"a\x0ab\x0d\x09c"),
        ("\x1b]0;owned\x07\x1b[2J\x9b31m", r"\x1b]0;owned\x07\x1b[2J\x9b31m"),
        ("\u202egnp\u2066\u200f", r"\u202egnp\u2066\u200f"),
        ("a\u2028b\u2029c\x85d", r"a\u2028b\u2029c\x85d"),
        ("a\u200bb\ufeff\u00ad\u2060\u3164", r"a\u200bb\ufeff\xad\u2060\u3164"),
        ("\ud800\udfff", r"\ud800\udfff"),
        ("\U000e0041\ufe0f", r"\U000e0041\ufe0f"),
        (r"\x1b", r"\x5cx1b"),
        (r"C:\new\u12", r"C:\new\u12"),
    ],
)
def test_what_acts_or_hides_is_written_out(text, shown):
    assert printable(text) == shown


@given(ANY | ODD)
@example("\u180e\u115f")
def test_nothing_that_acts_or_hides_is_left(text):
    """By Unicode's own words: no control, format, surrogate, private or unassigned character, and no space but one."""
    for character in printable(text):
        assert unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        assert not character.isspace() or character == " "


@given(ANY | ODD)
def test_what_was_shown_can_be_read_back(text):
    """So that no two names look alike."""

    def read(found: re.Match[str]) -> str:
        return chr(int(found[0][2:], 16))  # noqa: FURB166

    assert re.sub(r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8}", read, printable(text)) == text


@pytest.mark.parametrize(
    "name", ["plain", "two words", "it's", "a\x1b[31m\nb", r"\x1b'", "\u202e\u200b\\", "ü\U000e0041'"]
)
def test_a_name_of_a_command_works_when_it_is_pasted_as_it_is_shown(name):
    """The shell reads what `printable` has left of it."""
    told = subprocess.run(
        ["bash", "-c", f"printf %s {printable(word(name))}"], capture_output=True, text=True, check=True
    )
    assert told.stdout == name
