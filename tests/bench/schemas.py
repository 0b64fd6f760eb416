"""What lies in both stores, beside the example application: tables of a workload, and equal rows in them."""

from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_EXAMPLE = ('public."Story"', 'public."Scenario"', 'public."Wide"')


@dataclass(frozen=True)
class Schema:
    """`script` is run on both sides before anything is captured, and must leave the same rows on both. `more` are the
    tables that it makes."""

    name: str
    more: tuple[str, ...] = ()
    script: str = ""

    @property
    def tables(self) -> tuple[str, ...]:
        return (*_EXAMPLE, *self.more)


EXAMPLE = Schema("example")
PUBLISHED = Schema("published", ('public."Item"',), (_HERE / "published.sql").read_text(encoding="utf-8"))
TPC_B = Schema(
    "tpcb",
    tuple(f"public.pgbench_{name}" for name in ("branches", "tellers", "accounts", "history")),
    (_HERE / "tpcb.sql").read_text(encoding="utf-8"),
)
SIZED = Schema("sized", ('public."Sized"',), (_HERE / "sized.sql").read_text(encoding="utf-8"))


def many(number: int) -> Schema:
    """So many tables in all, those of the example among them."""
    names = [f"many_{k}" for k in range(1, number - len(_EXAMPLE) + 1)]
    script = "".join(f'create table "{name}" ("id" bigint primary key, "body" text not null);\n' for name in names)
    made = (_HERE / "many.sql").read_text(encoding="utf-8").replace("{number}", str(len(names)))
    return Schema(f"many{number}", tuple(f'public."{name}"' for name in names), script + made)
