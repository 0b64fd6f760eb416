"""Lines composed at random around a planted secret, the value of a secret option: nothing of it is left, whatever stands around it."""

import json
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daemon.secrecy import mask
from tests.security.test_secrets_shown import HIDDEN

WORD = "zqcanary"
NAMES = [*HIDDEN, "PGPASSWORD", "api_key", "client_secret", "Authorization", "app.api-token", "SUPABASE_KEY"]
BETWEEN = [
    " ",
    "  ",
    "\t",
    "\n",
    "'",
    '"',
    "\\",
    "=",
    ":",
    "@",
    "/",
    "%",
    "%20",
    "&",
    ";",
    ",",
    " password=",
    "= '",
    "://",
    "''",
    '\\"',
    "\\ ",
    "ü",
]

secrets = st.lists(st.sampled_from(BETWEEN), max_size=4).map(
    lambda between: WORD + "".join(f"{one}{WORD}" for one in between)
)


def libpq(name: str, secret: str, blank: str) -> str:
    return f"{name}{blank}={blank}'{escaped(secret, chr(39))}'"


def escaped(secret: str, ends: str) -> str:
    return "".join(f"\\{one}" if one in f"\\{ends}" else one for one in secret)


def bare(name: str, secret: str, blank: str) -> str:
    """As libpq reads it: what would end it has a backslash before it."""
    ends = " \t\n'\""
    return f"{name}{blank}={blank}{escaped(secret, ends)}"


FORMS: dict[str, Callable[[str, str, str], str]] = {
    "libpq": libpq,
    "bare": bare,
    "double quotes": lambda name, secret, blank: f'{name}{blank}={blank}"{escaped(secret, chr(34))}"',
    "doubled quotes": lambda name, secret, blank: f"{name}{blank or ' '}'{secret.replace(chr(92), '').replace(chr(39), chr(39) * 2)}'",
    "json": lambda name, secret, blank: json.dumps({"a": 1, name: secret}, separators=(",", f":{blank}")),
    "json, in letters": lambda name, secret, _: json.dumps({name: secret}, ensure_ascii=False),
    "json in json": lambda name, secret, _: json.dumps({"text": json.dumps({name: secret}), "b": "c d"}),
    "json in json in json": lambda name, secret, _: json.dumps([json.dumps([json.dumps({name: secret})])]),
    "python": lambda name, secret, _: repr({name: secret}),
    "yaml": lambda name, secret, _: f"{name}: '{secret.replace(chr(92), '').replace(chr(39), chr(39) * 2)}'",
    "user of an address": lambda _, secret, __: f"postgresql://app:{quote(secret, safe='')}@one:5432,two/db",
    "address, encoded": lambda _, secret, __: quote(f"https://x:{quote(secret, safe='')}@proxy", safe=""),
    "address in json": lambda _, secret, __: json.dumps({"dsn": f"postgresql://app:{quote(secret, safe='')}@db/x"}).replace("/", "\\/"),
    "query": lambda name, secret, _: f"postgresql://db/app?a=b&{name}={quote(secret, safe='')}&c=d",
    "query, the name encoded": lambda name, secret, _: f"https://x/?{''.join(f'%{ord(one):02x}' for one in name)}={quote(secret, safe='')}",
    "all encoded": lambda name, secret, blank: quote(libpq(name, secret, blank), safe=""),
    "encoded twice": lambda name, secret, blank: quote(quote(bare(name, secret, blank), safe=""), safe=""),
}  # fmt: skip
# What is before it, ends where a value of its own may have ended, and holds no quote that is open.
AHEAD = ["", "x ", "host=db ", "password= ", "password=", "token=a secret = ", "password='' ", 'secret: ', "api_key=b\n", "it says: ", "{", "[1, ",
         "postgresql://a:b@c/d ", "Authorization: Bearer ", "a%20b ", "passwd = token = ", "secret 'a' "]  # fmt: skip
BEHIND = ["", " user=app", ", then", "\n", "}", " 'a b'", " sslmode=require password=x"]


@st.composite
def lines(draw: st.DrawFn) -> str:
    compose = FORMS[draw(st.sampled_from(sorted(FORMS)))]
    ahead = "".join(draw(st.lists(st.sampled_from(AHEAD), max_size=3)))
    return f"{ahead}{compose(draw(st.sampled_from(NAMES)), draw(secrets), draw(st.sampled_from(['', ' '])))}{draw(st.sampled_from(BEHIND))}"


@settings(max_examples=500, deadline=None)
@given(lines())
@example(f"password= password='a {WORD}'")
@example(f"password= password%3D%27a%20{WORD}%27")
@example(f"password= password%3D'a {WORD}'")
def test_of_a_planted_secret_nothing_is_left(line: str) -> None:
    assert WORD not in mask(line), line


@pytest.mark.parametrize("form", FORMS)
def test_what_is_behind_a_secret_is_still_read(form: str) -> None:
    """Masking all of a line would be no use to anybody."""
    assert mask(f"before {FORMS[form]('password', f'{WORD} {WORD}', '')} behind").endswith(" behind")


@pytest.mark.parametrize(
    "line",
    [
        "password => 'a secret'",
        "password := a-secret",
        "Authorization: Token a-secret",
        "Authorization: ApiKey a-secret",
        "token[]=a-secret&page=1",
        "password = E'a \\' secret'",
        "password=b'a secret'",
        "password=$$a $ secret$$",
        "alter role x password u&'a secret'",
    ],
)
def test_other_languages_spell_an_option_otherwise(line: str) -> None:
    assert "secret" not in mask(line)
    assert "***" in mask(line)


@pytest.mark.parametrize("ends", ["=", "= ", " => ", "=basic "])
def test_options_without_end_and_without_a_value_are_looked_through_once(ends: str) -> None:
    """Whatever is not masked whole is looked through again from the next name on: 18 kB took 1.3 s."""
    assert len(mask(f"password{ends}" * 200)) < 30
