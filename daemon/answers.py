"""What the target's door may answer: the form of every answer, and which of them fits which request.

Whoever answers there may be another: a gateway of its own mind, a cache, another project, a target that went mad. What does
not pass here is neither kept in memory nor on the source, and nobody behind needs to look again. Pure. Knows nothing of
transports, nor of what an answer leads to.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from daemon.forms import MORE, STANDING, one_of, parsed, whole, wrong_in

Groups = Callable[[], Sequence[tuple[str, int]]]  # of the request: what is done, and with how many rows

# How far the target may be ahead of what is known of it. A claim adds one, a batch adds one: two thousand million of either
# are not done between two notes on the source. A wrong answer that is believed costs one such step, and not all there are.
REACH = 2**31
_AHEAD = 64  # batches that may have arrived meanwhile, of those that are on their way


class Unfit(ValueError):
    """It is no answer to this request; the text says what of it, in words of our own."""


def read(
    text: str, header: Mapping[str, Any], *, needs: int = 0, many: int = 0, groups: Groups = tuple
) -> dict[str, Any]:
    """The answer to a request, with nothing in it that has another form than it is to have. Raises Unfit.

    `needs`: the migration that is asked for; an older one is described as it was then. `many`: keys that were asked about.
    """
    try:
        given = parsed(text)
    except (ValueError, RecursionError):
        raise Unfit("it is no JSON of the door's") from None
    if type(given) is not dict or not one_of(*MORE)(given.get("answer")):
        raise Unfit("its kind")
    known = {name: value for name, value in given.items() if value is not None}
    # That of the request itself, which most answers repeat, has been looked at before.
    if wrong := wrong_in(
        known if known.get("cursor") != header.get("cursor") else known | {"cursor": None}, {}, STANDING
    ):
        raise Unfit(wrong)
    found = {"epoch": 0, "batch_no": 0, "digest": "", "cursor": None} | known
    found["more"] = _come_with(found["answer"], known.get("more", {}), needs)
    if wrong := _unasked(found, header, many) or _misplaced(found, groups):
        raise Unfit(wrong)
    return found


def _come_with(what: str, more: Any, needs: int) -> dict[str, Any]:
    if type(more) is not dict:
        raise Unfit("more")
    needed, others = MORE[what]
    if "migration" in others and whole(more.get("migration")) and more["migration"] < needs:
        needed, others = {}, {**others, **needed}
    if wrong := wrong_in(more, needed, others):
        raise Unfit(wrong)
    return {name: more[name] for name in (*needed, *others) if more.get(name) is not None}


# What a request may be answered with.
QUESTIONS = {
    "claim": "claimed",
    "cursor": "cursor",
    "describe": "described",
    "advise": "advised",
    "rebase": "rebased",
    "extra": "extra",
    "keys": "keys",
    "held": "held",
    "spell": "spelled",
}
_MOVES = {
    "apply": {"applied", "duplicate", "mismatch", "fenced", "refused"},
    "isolate": {"isolated", "duplicate", "mismatch", "fenced", "refused"},
}
_SAME = ("epoch", "batch_no", "digest")


def _unasked(found: Mapping[str, Any], header: Mapping[str, Any], many: int) -> str | None:
    """What of it is no answer to this request? A gateway that mixes two up, or a cache, must not move the relay."""
    what, mode = found["answer"], header["mode"]
    if found["cursor"] is None and (found["batch_no"] or found["digest"]):
        return "a batch without a cursor"
    if mode not in _MOVES:
        return _unasked_question(found, header, many)
    if what not in _MOVES[mode]:
        return "its kind"
    if what in {"applied", "duplicate"}:
        same = all(found[name] == header[name] for name in _SAME) and _same_place(found["cursor"], header["cursor"])
        return None if same else "another batch"
    if (found["epoch"] == header["epoch"]) is (what == "fenced"):
        return "epoch"
    return "batch_no" if found["batch_no"] > header["batch_no"] + _AHEAD and what != "fenced" else None


def _unasked_question(found: Mapping[str, Any], header: Mapping[str, Any], many: int) -> str | None:
    what, mode = found["answer"], header["mode"]
    if what != QUESTIONS[mode] and (what, mode) != ("refused", "extra"):
        return "its kind"
    if mode in {"claim", "rebase"} and not 0 < found["epoch"] - header["epoch_above"] <= REACH:
        return "epoch"
    if mode == "claim" and found["batch_no"] > header.get("batch_no", found["batch_no"]) + REACH:
        return "batch_no"
    if mode == "rebase" and not _same_place(found["cursor"], header["cursor"]):
        return "another cursor"
    if mode == "spell" and len(found["more"]["keys"]) != many:
        return "keys"
    if max(found["more"].get("no_values", ()), default=-1) >= many:
        return "keys that are no values"
    return None


def _same_place(cursor: Mapping[str, Any] | None, other: Mapping[str, Any]) -> bool:
    """The mark may be another, and what the outbox had been pruned up to: the rows are the same."""
    names = ("snapshot", "torn", "system", "installation")
    return cursor is not None and all((cursor.get(name) or None) == (other.get(name) or None) for name in names)


def _misplaced(found: Mapping[str, Any], groups: Groups) -> str | None:
    """Does it speak of a row that was not in the request?"""
    more, asked = found["more"], found["more"].get("compared", {}).get("found")
    if asked and max(at for at, *_ in asked) >= max((many for op, many in groups() if op in _COMPARE), default=0):
        return "a compared row"
    if found["answer"] != "isolated":
        return None
    # Each group is two records, behind the header.
    rows = {2 * at + 2: many for at, (op, many) in enumerate(groups()) if op in _WRITE}
    for one in more["refused"]:
        relative = one.get("relative") or {}
        if not one["pos"] < rows.get(one["part"], 0):
            return "a refused row"
        if "part" in relative and not relative.get("pos", 2**63) < rows.get(relative["part"], 0):
            return "the row that a refused one refers to"
    return None


_COMPARE, _WRITE = {"digest", "compare", "present"}, {"upsert", "delete", "truncate"}
