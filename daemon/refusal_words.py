"""What of an answer's own words may be repeated: names of the catalogue, never a value (promise I10).

Whoever answers there may say anything, so the form of each sentence is known here. Pure.
"""

import re
from collections.abc import Mapping
from typing import Any

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
