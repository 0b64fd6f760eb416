"""Whose word it is: of which relay, and of which source.

A port is anybody's: whoever answers there may be another relay's daemon, or that of another database. Knows what the two
have to agree in; pure.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Origin:
    """A source, as it says itself (sql/queries/source_origin.sql). `installation`: of schema outbox there; None: it is not
    there, or cannot be read."""

    system: str
    database: str
    installation: str | None = None

    def told(self) -> dict[str, str | None]:
        """For a status."""
        return asdict(self)


def stranger(told: Mapping[str, Any], relay: str, origin: Origin | None) -> str | None:
    """Why a status is not that of this relay; None: it is, as far as can be told. `origin` None: the source is away."""
    if told.get("relay") != relay:
        return "another relay's daemon answers here"
    source = told.get("source")
    if origin is None or source is None:
        return None
    if any(source.get(name) != getattr(origin, name) for name in ("system", "database")):
        return "the daemon of another source answers here"
    if differs(source.get("installation"), origin.installation):
        return "the daemon of another installation of schema outbox answers here"
    return None


def differs(installation: str | None, other: str | None) -> bool:
    """Are these two installations of schema outbox? None: that one is not known."""
    return None not in (installation, other) and installation != other
