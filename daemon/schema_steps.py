"""What a plan is made of, and what its parts have to say.

Values only. A step is one transaction; a mirror is one table as it is wanted, beside the one that is there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from daemon.errors import SchemaUnfit
from daemon.structure import Catalogue, Name, Table
from daemon.wanted import Wanted

OURS = "outboxd_"  # what our policies' names begin with; no other is touched
# In which order kinds are done: what others rest on first.
ORDER = (
    "schema", "extension", "type", "rename_label", "label", "table", "column", "not_null", "change_type", "drop_column",
    "key", "unique", "index", "security", "grant", "policy", "comment", "trigger", "realtime", "map", "drop_reference",
    "foreign_key", "validate", "unmap",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """`table`: as the source calls it; `what` of it. `loses`: what a destructive step costs. `after_copy`: not before its rows are there."""

    table: str
    kind: str
    what: str
    sql: str
    reason: str
    destructive: bool = False
    loses: str = ""
    phase: Literal["now", "after_copy"] = "now"
    waits_for: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """`notes`: what is no step, and should be known; `problems`: of tables that cannot be planned, each with its way on."""

    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()
    wanted: tuple[Wanted, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def due(self) -> tuple[Step, ...]:
        """What could be done now."""
        return tuple(step for step in self.steps if step.phase == "now")

    @property
    def waiting(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.phase == "after_copy")


@dataclass(frozen=True, slots=True)
class Mirror:
    """One mirror as it is wanted, and as it is there (or will be, right after the step that makes it)."""

    one: Wanted
    there: Table
    source: Catalogue
    target: Catalogue
    everything: tuple[Wanted, ...]  # mirrors that are there, or will be
    taken: dict[Name, str]  # names of relations in the target's schemas, and of those that are planned

    @property
    def name(self) -> Name:
        return self.one.name

    @property
    def rows(self) -> str:
        return f"about {self.there.rows} rows" if self.there.rows else "few or no rows"

    def step(self, kind: str, what: str, sql: str, reason: str, loses: str = "") -> Step:
        """One that loses something is destructive."""
        return Step(self.one.watched.name, kind, what, sql, reason, destructive=bool(loses), loses=loses)

    def free(self, name: str) -> str:
        """A name that no other relation of this schema has: IF NOT EXISTS would take that one for ours."""
        schema, table = self.name
        for attempt in _spellings(table, name):
            if (schema, attempt) not in self.taken:
                self.taken[schema, attempt] = table
                return attempt
        raise SchemaUnfit(f"{self.one.watched.name}: a thousand names like {name} are taken on the target: drop some")


def _spellings(table: str, name: str) -> Iterator[str]:
    yield name
    longer = f"{table}_{name}"
    yield longer.encode()[:58].decode(errors="ignore")
    for n in range(2, 1000):
        yield f"{longer.encode()[:58].decode(errors='ignore')}_{n}"
