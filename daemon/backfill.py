"""`outboxd backfill`: which of the copies that were asked for are still to be made.

Knows the target's records of copies. Knows nothing of printing. Pure.
"""

from collections.abc import Mapping
from typing import Any

from daemon.copies import Copy, known


def copies(answer: Mapping[str, Any], wishes: Mapping[str, int]) -> dict[str, Copy]:
    """The records of tables whose copy was asked for, as far as they are of these wishes, or out."""
    found = known(answer.get("copies", ()))
    return {
        table: found[table]
        for table, wish in wishes.items()
        if table in found and (found[table].wish >= wish or found[table].state == "out")
    }


def settled(answer: Mapping[str, Any], wishes: Mapping[str, int]) -> bool:
    """Is every table copied, or out?"""
    found = copies(answer, wishes)
    return all(table in found and found[table].state in {"done", "out"} for table in wishes)
