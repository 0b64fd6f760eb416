"""What becomes of the rate as things grow: more that waits, more tables that are watched, larger rows.

Knows which measurements there are, and what they are called. Must not know how they are shown.
"""

from collections.abc import Iterator

from tests.bench import schemas
from tests.bench.alone import deep
from tests.bench.catchup import catch_up
from tests.bench.figures import Goal, Measured, Results
from tests.bench.run import Plan, Step
from tests.bench.site import Site
from tests.bench.systems import NAMES
from tests.bench.workloads import Backlog

TABLES = (5, 50, 500)
SIZES = (100, 1_000, 10_000)  # bytes of a row
SYSTEMS = ("native", "rest", "direct")
_LARGE = 5  # so many times fewer of the largest rows


def waiting(changes: int) -> str:
    return f"waiting {changes}"


def tables(number: int) -> str:
    return f"tables {number}"


def size(size: int) -> str:
    return f"size {size}"


def steps(plan: Plan) -> Iterator[Step]:
    for changes in plan.waiting:
        yield _deep(plan, changes)
    for number in TABLES:
        backlog = Backlog(
            "single-row insert transactions, one table after the other", "many", 1,
            """insert into "many_1" values (0, 'the last one')""",
            'select count(*) = 1 from "many_1" where "id" = 0',
            schema=schemas.many(number),
        )  # fmt: skip
        yield from _catch_ups(plan, tables(number), backlog, plan.changes)
    for of in SIZES:
        backlog = Backlog(
            "single-row insert transactions", "sized", 1,
            """insert into "Sized" values (0, 'the last one')""",
            'select count(*) = 1 from "Sized" where "id" = 0',
            schema=schemas.SIZED,
            arguments=(of,),
        )  # fmt: skip
        yield from _catch_ups(plan, size(of), backlog, plan.changes // (_LARGE if of == SIZES[-1] else 1))


def _deep(plan: Plan, changes: int) -> Step:
    def measure(site: Site) -> list[Measured]:
        # A backlog of millions may take longer than any other; at less than 10 000 a second something is wrong.
        return [Measured(waiting(changes), "rest", 1, deep(site, changes, max(plan.deadline, changes / 10_000)))]

    return Step(f"waiting: {changes:,}", measure)


def _catch_ups(plan: Plan, workload: str, backlog: Backlog, changes: int) -> Iterator[Step]:
    for repeat in range(1, plan.repeats + 1):
        for system in plan.among(*SYSTEMS):

            def measure(site: Site, system: str = system, repeat: int = repeat) -> list[Measured]:
                caught = catch_up(site, system, workload, changes, deadline=plan.deadline, backlog=backlog)
                values = {"changes": caught.changes, "rate": caught.rate, **caught.daemon}
                return [Measured(workload, system, repeat, values, caught.shares, backlog.title)]

            yield Step(f"{workload}, {NAMES[system]} #{repeat}", measure)


def goals(results: Results) -> Iterator[Goal]:
    for workload in dict.fromkeys(one.workload for one in results.all if one.workload.startswith("waiting ")):
        ratio, memory = (results.spread(workload, "rest", value) for value in ("last / first", "rss"))
        yield Goal(workload, "last tenth / first tenth", ">=", 0.9, "x", ratio)
        yield Goal(workload, "memory", "<", 150, "MB", memory)
