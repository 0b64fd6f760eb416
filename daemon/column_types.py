"""Whether the values of one type fit into another, and what it costs to make them.

Pure: knows how types are spelled. Knows nothing of tables.
"""

import re
from typing import Literal

Verdict = Literal["fits", "widen", "rewrite"]

_SPELLED = re.compile(r"(.+?)(?:\((\d+)(?:,\s?(-?\d+))?\))?( with(?:out)? time zone)?((?:\[\])*)", re.DOTALL)
_INTEGERS = ("smallint", "integer", "bigint")
_LENGTHS = {"character varying", "bit varying"}  # any length without one
_TIMES = {"timestamp", "time", "interval"}  # six digits without a number


def compare(source: str, target: str) -> Verdict:
    """Fits: every value of `source` is one of `target`. Widen: it would, after a change that rewrites nothing."""
    if source == target:
        return "fits"
    ours, theirs = _parse(source), _parse(target)
    verdict: Verdict
    if ours[1] != theirs[1]:  # an array and no array, or a time with and without its zone
        return "fits" if target == "text" else "rewrite"
    if ours[0] == theirs[0]:
        verdict = _same_family(ours, theirs)
    elif theirs[0] == "text" or _holds(theirs, ours):
        verdict = "fits"
    else:
        verdict = "widen" if (ours[0], theirs[0]) == ("text", "character varying") else "rewrite"
    # Postgres writes every array anew, whatever its elements become.
    return "rewrite" if verdict == "widen" and ours[1].endswith("]") else verdict


def differs_and_fits(source: str, target: str) -> bool:
    """Are they two types, which is no reason for a step?"""
    return compare(source, target) == "fits" and _parse(source)[:2] != _parse(target)[:2]


_Parsed = tuple[str, str, tuple[int, ...]]


def _parse(spelled: str) -> _Parsed:
    found = _SPELLED.fullmatch(spelled)
    if found is None:  # it fits itself, and nothing else
        return spelled, "", ()
    family, length, scale, zone, array = found.groups()
    return family, f"{zone or ''}{array}", tuple(int(number) for number in (length, scale) if number is not None)


def _same_family(ours: _Parsed, theirs: _Parsed) -> Verdict:
    family, (_, _, a), (_, _, b) = ours[0], ours, theirs
    if family in _LENGTHS:
        return "fits" if not b or (a and a[0] <= b[0]) else "widen"
    if family in _TIMES:
        return "fits" if (a or (6,)) <= (b or (6,)) else "widen"
    if family == "numeric":
        if not b or (a and a[0] - a[1] <= b[0] - b[1] and a[1] <= b[1]):
            return "fits"
        return "widen" if not a or (a[1] == b[1] and a[0] > b[0]) else "rewrite"
    return "rewrite"


def _holds(wide: _Parsed, narrow: _Parsed) -> bool:
    families = (narrow[0], wide[0])
    if narrow[0] in _INTEGERS:
        return wide[0] in _INTEGERS[_INTEGERS.index(narrow[0]) :] or (wide[0] == "numeric" and not wide[2])
    return families in {("real", "double precision"), ("json", "jsonb")}
