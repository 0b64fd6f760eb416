"""What of an answer's own words may be repeated: names of the catalogue, never a value (promise I10).

Whoever answers there may say anything, so the form of each sentence is known here. Pure.
"""

import re
from collections.abc import Mapping
from typing import Any

from daemon.secrecy import mask

# Classes of SQLSTATE whose first line names objects, roles and states: connection, feature, transaction, authorisation,
# dependents, catalogue, rollback, syntax and access, resources, limits, prerequisites, intervention, system. The others speak
# of rows by quoting them.
SPEAKS_OF_NO_ROW = frozenset(["08", "0A", "25", "28", "2B", "3D", "3F", "40", "42", "53", "54", "55", "57", "58"])
_FUNCTION = re.compile(r"^(?:[\w/]+ function |PL/pgSQL inline)(?!outboxd?\.)", re.MULTILINE)
_RAISED = re.compile(r"PL/pgSQL function outboxd?\.[^\n]* at RAISE(?:\n|$)")


def spoken(sqlstate: str | None, message: str | None, context: str | None) -> str | None:
    """An error's own words, where they name what is wrong; None: they may quote a row. A function may raise whatever it likes,
    under any SQLSTATE: what went through one that is not outboxd's is not repeated."""
    if not message or _FUNCTION.search(context or ""):
        return None
    ours = _RAISED.match(context or "")
    return mask(message) if ours or (sqlstate or "")[:2] in SPEAKS_OF_NO_ROW else None


def told_of(sqlstate: str | None, message: str | None, context: str | None, name: str) -> str:
    """What a command says of an error of a database."""
    unsaid = (
        f"the database refused it ({sqlstate or name}): its words may quote a row, and stand in the server's log; "
        "`outboxd check` says what outboxd knows of it"
    )
    return spoken(sqlstate, message, context) or unsaid


_NAME = r'(?:[A-Za-z_][\w$]*|"[\w $-]{1,63}")'
_ROLES = rf"{_NAME}(?: *, *{_NAME})*"
_GRANT = re.compile(
    rf"GRANT (?:[A-Z]+(?: *, *[A-Z]+)*) ON (?:(?:TABLE|SCHEMA|FUNCTION|SEQUENCE) )?{_NAME}(?:\.{_NAME})?(?:\([\w ,]*\))? TO {_ROLES}",
    re.IGNORECASE,
)


def denial_of(given: Mapping[str, Any]) -> str | None:
    """Postgres' own words name what may not be used, and nothing else."""
    said = str(given.get("message") or "")
    return said if re.fullmatch(r"permission denied for [a-z]+ \w+", said) else None


def hint_of(given: Mapping[str, Any]) -> str | None:
    """The statement that Supabase's own refusals carry: the exact GRANT."""
    found = _GRANT.search(str(given.get("hint") or ""))
    return f"{found[0]};" if found else None
