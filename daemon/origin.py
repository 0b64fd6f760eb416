"""Whose word it is: of which relay, and of which source.

A port is anybody's: whoever answers there may be another relay's daemon, or that of another database. Knows what the two
have to agree in; pure.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Origin:
    """A source, as it says itself (sql/queries/source_origin.sql)."""

    system: str
    database: str

    def told(self) -> dict[str, str]:
        """For a status."""
        return asdict(self)


def stranger(told: Mapping[str, Any], relay: str, origin: Origin | None) -> str | None:
    """Why a status is not that of this relay; None: it is, as far as can be told. `origin` None: the source is away."""
    if told.get("relay") != relay:
        return "another relay's daemon answers here"
    source = told.get("source")
    if origin is not None and source is not None and source != origin.told():
        return "the daemon of another source answers here"
    return None
