"""The form of all that the target's door may say: what is of which type, and within which bounds.

Knows how Postgres writes JSON, and what each kind of answer comes with. Knows nothing of requests. Pure.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from daemon.snapshot import Snapshot

Form = Callable[[Any], bool]

_LAST = 2**63 - 1
_MOST = 1_000_000  # values of an answer: each takes some sixty bytes, whatever it takes on the wire
_SENTENCE, _NAME = 20_000, 1000  # characters
_CODE = re.compile("[0-9A-Z]{5}")
_SNAPSHOT = re.compile(r"[0-9]{1,19}:[0-9]{1,19}:(?:[0-9]{1,19}(?:,[0-9]{1,19})*)?")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # Postgres stores neither
_MAY_BE_NONE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


def parsed(text: str) -> Any:
    if text.count(",") + text.count("[") + text.count("{") > _MOST:
        raise ValueError
    given = _JSON.decode(text)
    if _MAY_BE_NONE.search(text) and not _storable(given):
        raise ValueError
    return given


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(given := dict(pairs)) != len(pairs):
        raise ValueError
    return given


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError
    return number


def _no_number(_: str) -> float:
    raise ValueError


_JSON = json.JSONDecoder(object_pairs_hook=_once, parse_float=_finite, parse_constant=_no_number)


def _storable(value: Any) -> bool:
    match value:
        case str():
            return not _NO_TEXT.search(value)
        case list():
            return all(map(_storable, value))
        case dict():
            return all(_storable(name) and _storable(one) for name, one in value.items())
    return True


# -- forms -----------------------------------------------------------------------------------------------------


def _flag(value: Any) -> bool:
    return type(value) is bool


def whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LAST


def _seconds(value: Any) -> bool:
    return type(value) in {int, float} and abs(value) < 1e12


def _moment(value: Any) -> bool:
    """Unix time, up to the year 9999."""
    return _seconds(value) and 0 <= value < 253_402_300_800


def _text(value: Any) -> bool:
    return type(value) is str


def _name(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= _NAME


def _sentence(value: Any) -> bool:
    return type(value) is str and len(value) <= _SENTENCE


def _code(value: Any) -> bool:
    return type(value) is str and _CODE.fullmatch(value) is not None


def _snapshot(value: Any) -> bool:
    if type(value) is not str or not _SNAPSHOT.fullmatch(value):
        return False
    try:
        return Snapshot.parse(value).xmax <= _LAST
    except ValueError:
        return False


def _lsn(value: Any) -> bool:
    return type(value) is str and re.fullmatch("[0-9A-F]{1,8}/[0-9A-F]{1,8}", value) is not None


def _number(value: Any) -> bool:
    return type(value) is int and abs(value) <= _LAST


def _key(value: Any) -> bool:
    """A row's key: JSON's text of an object."""
    return type(value) is str and type(_loaded(value)) is dict


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def one_of(*words: str) -> Form:
    return lambda value: type(value) is str and value in words


def _or_none(form: Form) -> Form:
    return lambda value: value is None or form(value)


def _all(form: Form) -> Form:
    return lambda value: type(value) is list and all(map(form, value))


def _row(*forms: Form) -> Form:
    return lambda value: (
        type(value) is list
        and len(value) == len(forms)
        and all(form(one) for form, one in zip(forms, value, strict=True))
    )


def _record(needed: Mapping[str, Form], others: Mapping[str, Form] | None = None) -> Form:
    return lambda value: type(value) is dict and wrong_in(value, needed, others or {}) is None


def wrong_in(given: Mapping[str, Any], needed: Mapping[str, Form], others: Mapping[str, Form]) -> str | None:
    """The first member that has another form, or is missing. One that nobody asks for may be anything; null is none."""
    for name, form in needed.items():
        if given.get(name) is None or not form(given[name]):
            return name
    return next((name for name, form in others.items() if given.get(name) is not None and not form(given[name])), None)


_names = _all(_name)
_cursor = _record(
    {"snapshot": _snapshot, "floor_id": whole},
    {
        "torn": _all(_row(whole, whole)), "system": _sentence, "database": whole, "installation": _sentence,
        "mark": _record({
            "timeline": whole, "lsn": _lsn, "spans": _all(_row(_snapshot, whole, whole, whole)),
            "last": _all(_row(whole, whole, _number)),
        }),
    },
)  # fmt: skip
STANDING: Mapping[str, Form] = {"epoch": whole, "batch_no": whole, "digest": _name, "cursor": _cursor}

_column = _record(
    {"name": _name},
    {"type": _sentence, "labels": _all(_sentence), "required": _flag, "nullable": _flag},
)  # fmt: skip
_mirror: Mapping[str, Form] = {"table": _name, "exists": _flag, "key": _names, "target": _name}
_mirrored: Mapping[str, Form] = {
    "columns": _all(_column), "key_is_unique": _flag, "missing_grants": _names, "hides_rows": _flag, "row_security": _flag,
    "triggers": _names,
}  # fmt: skip
_mirror_may: Mapping[str, Form] = {"number": whole, "key_types": _names, "missing_usage": _name, "locked": _sentence}


def _table(value: Any) -> bool:
    """Of a mirror that is there all is to be known."""
    if type(value) is not dict or value.get("exists") is not True:
        return _record(_mirror, {**_mirrored, **_mirror_may})(value)
    return _record({**_mirror, **_mirrored}, _mirror_may)(value)


_reference = _record(
    {"constraint": _name, "child": _name, "parent": _name, "deferrable": _flag, "on_delete": _name},
)  # fmt: skip
_copied = _record(
    {"table": _name, "state": one_of("wanted", "copying", "done", "out"), "step": one_of("rows", "extra")},
    {
        "wish": whole, "after": _text, "rows": whole, "extra": whole, "pruned": whole, "prune": _flag, "reason": _sentence,
        "aim": _sentence, "here": _flag, "empties": _names, "emptied": _names, "kept": _names, "freed": _names,
        "awaits": _flag,
    },
)  # fmt: skip


def _copy(value: Any) -> bool:
    """That of a table that is out says since when: by a cursor."""
    out = type(value) is dict and value.get("state") == "out" and value.get("after") is not None
    return _copied(value) and (not out or _cursor(_loaded(value["after"])))


_samples = _all(_record({"key": _text, "kind": one_of("missing", "different", "extra")}, {"columns": _names}))
_counts: Mapping[str, Form] = dict.fromkeys(("rows", "missing", "different", "extra", "held", "repaired"), whole)
_verification = _record(
    {"table": _name, "state": one_of("done", "running", "failed"), "ago": _seconds},
    {
        "wish": whole, "asked": _flag, "repair": _flag, "step": one_of("rows", "extra", "done"), "after": _text, **_counts,
        "samples": _samples, "reason": _sentence, "began_at": _moment, "aim": _sentence, "here": _flag,
        "last": _record({"began_at": _moment, **_counts}, {"samples": _samples}),
    },
)  # fmt: skip
_beat = _record({"written_at": _moment, "arrived_at": _moment, "seconds_ago": _seconds})


def _heartbeat(value: Any) -> bool:
    """None yet, or the last one."""
    return value == {} or _beat(value)


_described: Mapping[str, Form] = {"tables": _all(_table), "references": _all(_reference)}
_of_server: Mapping[str, Form] = {
    "version": whole, "migration": whole, "installed": _name, "role": _name, "structure": _name,
}  # fmt: skip
_HELD: Mapping[str, Form] = {"held": _all(_row(_name, _text)), "held_after": _row(_name, _name), "held_keys": whole}
_KEPT: Mapping[str, Form] = {
    **_HELD,
    "copies": _all(_copy),
    "verifications": _all(_verification),
    "heartbeat": _heartbeat,
}
_why: Mapping[str, Form] = {
    "sqlstate": _code, "gear": whole, "table": _name, "message": _sentence, "constraint": _name, "column": _name,
}  # fmt: skip
_refused = _record(
    {"part": whole, "pos": whole, "why": _record({"sqlstate": _code}, _why)},
    {"relative": _record({"table": _name}, {"key": _text, "part": whole, "pos": whole, "is": one_of("taken", "missing")})},
)  # fmt: skip
_finding = _record({"rule": _name, "what": _sentence, "fix": _sentence}, {"name": _name})
_compared = _record(
    {},
    {
        "rows": whole, "found": _all(_row(whole, one_of("missing", "different", "extra"), _or_none(_names))), "alone": _flag,
        "moved": _name, "failed": _code,
    },
)  # fmt: skip

# Of each kind what comes with it: what must, and what may.
MORE: Mapping[str, tuple[Mapping[str, Form], Mapping[str, Form]]] = {
    "claimed": (_described, {**_of_server, **_KEPT}),
    "described": (_described, _of_server),
    "advised": ({"findings": _all(_finding)}, {}),
    "cursor": ({}, _KEPT),
    "rebased": ({}, {}),
    "extra": ({"keys": _all(_key)}, {"elsewhere": _flag, "place": _name, "no_values": _all(whole)}),
    "keys": ({"keys": _all(_key), "ends": _flag}, {"elsewhere": _flag, "failed": _code}),
    "held": ({"held": _HELD["held"]}, _HELD),
    "spelled": ({"keys": _all(_or_none(_text))}, {}),
    "isolated": ({"refused": _all(_refused)}, {}),
    "applied": (
        {},
        {"gear": whole, "written": whole, "heartbeat": _flag, "compared": _compared, "moved": _names},
    ),
    "duplicate": ({}, _HELD),
    "mismatch": ({}, _HELD),
    "refused": ({"sqlstate": _code}, _why),
    "fenced": ({}, {}),
}
