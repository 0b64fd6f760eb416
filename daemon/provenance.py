"""Where a value stands, who could have put it there, and which values may be used together.

Knows `.env`, files and the environment as places. Must not know which place wins: daemon/configuration.py. No message
made here repeats a value.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from dotenv.variables import Variable, parse_variables

from daemon import private
from daemon.credentials import carries_secret, leans_on
from daemon.printable import word
from daemon.private import Opened
from daemon.settings import ALIASES, SECRETS, Name, variables_of

_DOTENV = Path(".env")
# They say where secrets lie: nothing that a folder brings along may.
_OF_THE_ENVIRONMENT = {
    "outboxd_config",
    *(f"{name.lower()}_file" for secret in SECRETS for name in variables_of(secret)),
}


@dataclass(frozen=True, slots=True)
class Problem:
    setting: str
    what: str
    example: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """`file`: the one it stands in."""

    value: Any
    origin: str
    file: Opened | None = None

    @property
    def place(self) -> str:
        if self.file is not None:
            return str(self.file.path.absolute())
        return self.origin if self.origin == "the command line" else "the environment"


Layer = dict[Name, Found]


def beats(one: Found, other: Found | None) -> Found:
    """It says so where nobody would think it: of two names of one setting, the one that is ours would be expected to win."""
    ours = other is not None and other.origin.startswith("OUTBOXD_") and "OUTBOXD_" not in one.origin
    if other is None or not ours or other.value == one.value:
        return one
    return replace(one, origin=f"{one.origin} (not {other.origin}, which differs)")


def foreign(found: Layer) -> Iterator[Problem]:
    """Files in use that somebody else could have written: each once."""
    said = set()
    for name, one in found.items():
        if one.file and one.file.foreign and one.file.path not in said:
            said.add(one.file.path)
            alone = one.origin.startswith("the file ")
            setting = name[0] if alone else str(one.file.path)
            what = f"stands in a file that {one.file.foreign}" if alone else one.file.foreign
            yield Problem(setting, what, origin=one.origin if alone else one.place)


def exposed(found: Layer) -> Iterator[Problem]:
    """Secrets in use that every user of this machine may read."""
    for secret in SECRETS:
        one = found.get((secret,))
        if one and one.file and carries_secret(secret, str(one.value)) and one.file.world_may_read:
            fix = f"chmod o-r {word(str(one.file.path))}"
            yield Problem(secret, f"stands in a file that every user of this machine may read: {fix}", "", one.origin)


def torn_apart(found: Layer, environment: Mapping[str, str | None]) -> Iterator[Problem]:
    """An address of .env and a secret from elsewhere: a folder that somebody is in must not choose where his secret goes."""
    fix = "put both into one place, the environment for one"
    url, key = found.get(("supabase_url",)), found.get(("supabase_key",))
    if url and key and _in_dotenv(url) and not _in_dotenv(key):
        what = f"stands in .env, and the key does not (it is from {key.origin}): {fix}"
        yield Problem("supabase_url", what, origin=url.origin)
    for name in ("source_dsn", "target_dsn"):
        one = found.get((name,))
        password = environment.get("pgpassword")
        if one and _in_dotenv(one) and (lends := leans_on(str(one.value), password=bool(password))):
            yield Problem(
                name, f"stands in .env, and its password does not (it is {lends}'s): {fix}", origin=one.origin
            )


def _in_dotenv(one: Found) -> bool:
    return one.file is not None and one.file.path == _DOTENV


def dotenv(problems: list[Problem]) -> tuple[dict[str, str], Opened | None]:
    """What .env sets, its names in lower case. It may refer to its own variables, and to none of the environment: that
    would put a secret into an address that a folder brings along."""
    try:
        file = private.read(_DOTENV)
        told = dotenv_values(stream=StringIO(file.text), interpolate=False)
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError):
        problems.append(Problem(".env", "cannot be read"))
        return {}, None
    values: dict[str, str] = {}
    for name, value in told.items():
        atoms = list(parse_variables(value or ""))
        wanted = {one.name for one in atoms if isinstance(one, Variable) and one.default is None} - values.keys()
        values[name] = "".join(one.resolve(values) for one in atoms)
        ours = name.upper().startswith("OUTBOXD_") or name.upper() in ALIASES
        if name.lower() in _OF_THE_ENVIRONMENT:
            problems.append(Problem(name, "is taken from the environment alone", origin=f"{name} in .env"))
        elif ours and wanted:
            what = (
                f"refers to {', '.join(sorted(wanted))}, which .env does not set above it: the environment is not asked"
            )
            problems.append(Problem(name, what, origin=f"{name} in .env"))
    return {name.lower(): value for name, value in values.items()}, file
