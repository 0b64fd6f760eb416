"""One torture run: raise the world, hurt it, look on, let it come to rest, and judge.

Knows the order of things and what the end must look like.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from daemon.dead_letters import ask
from daemon.demo.compare import compare
from tests.canaries import assert_clean
from tests.torture.checker import Checker
from tests.torture.nemesis import LANES, Nemesis
from tests.torture.world import World, halt_writers, raised

_PATIENCE = 90.0  # seconds for everything to arrive, once nobody hurts anybody
_TELL = 10.0
_REACHED = "select coalesce(max(cursor::json ->> 'snapshot'), '3:3:') from outboxd.cursor"
_CHANGES = "select count(*) from outbox.change where table_name <> 'outboxd.heartbeat'"
_WAITING = "select exists (select from outbox.change where not pg_visible_in_snapshot(xid, %s))"
_HELD = "select count(*) from outbox.held"
_VIOLATIONS = "select what, said from torture.violation order by id limit 50"
_EFFECTS = "select coalesce(sum(writes), 0) from torture.seen"
_KEYS = {"checking": "id", "savings": "id", "list": "key", "receipt": "id"}


@dataclass
class Verdict:
    """What was done and what came of it. `wrong` has a line for every promise broken."""

    seed: int
    seconds: float
    faults: dict[str, int]
    transactions: dict[str, int]
    changes: int
    effects: int
    held: int
    batches: int
    looks: int
    restarts: int
    exits: dict[str, int]
    worst_lag: float
    settled_in: float
    lost: int
    duplicated: int
    wrong: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.wrong

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "good": self.good}

    def __str__(self) -> str:
        rows: dict[str, object] = {
            "seed": f"{self.seed}, {self.seconds:.0f} s",
            "faults injected": f"{sum(self.faults.values())}: {_listed(self.faults)}",
            "transactions": f"{sum(self.transactions.values())}: {_listed(self.transactions)}",
            "changes": f"{self.changes} recorded, {self.effects} written in {self.batches} batches, {self.held} held for a while",
            "looks": f"{self.looks}, and one at every batch",
            "restarts": f"{self.restarts}: {_listed(self.exits)}",
            "worst lag": f"{self.worst_lag:.1f} s; at rest {self.settled_in:.1f} s after the last fault",
            "lost": self.lost,
            "duplicated": self.duplicated,
            "promises broken": len(self.wrong),
        }
        lines = [f"  {name:<16} {value}" for name, value in rows.items()]
        return "\n".join([*lines, *(f"  WRONG {line}" for line in self.wrong[:20])])


def torture(folder: Path, seconds: float, seed: int, say: Callable[[str], None], version: int | None = None) -> Verdict:
    """Hurt everything for so many seconds; the verdict says whether any promise broke."""
    with raised(folder, seed, version) as world:
        began = time.monotonic()
        lock = threading.Lock()

        def told(text: str) -> None:
            with lock:
                say(f"{time.monotonic() - began:7.1f} s  {text}")

        checker = Checker(world)
        nemeses = [Nemesis(lane, world, seed, began + seconds, told) for lane in LANES]
        checker.start()
        for nemesis in nemeses:
            nemesis.start()
        while not world.stopped.is_set() and (left := began + seconds - time.monotonic()) > 0:
            world.wait(min(left, _TELL))
            told(f"{len(world.ledger.snapshot())} numbers acknowledged, the oldest that waits for {checker.lag:.1f} s")
        world.stopped.set()
        for nemesis in nemeses:
            nemesis.join()
        halt_writers(world)
        told("everything is mended and nobody writes: waiting until all has arrived")
        rested = time.monotonic()
        came = _rest(world, _PATIENCE)
        settled = time.monotonic() - rested
        checker.stop()
        world.fleet.stop()
        wrong = [] if came else [f"not everything arrived within {_PATIENCE:.0f} s"]
        wrong += [nemesis.failure for nemesis in nemeses if nemesis.failure]
        faults: Counter[str] = sum((nemesis.inflicted for nemesis in nemeses), Counter())
        return _judged(world, checker, faults, Verdict(
            seed, time.monotonic() - began, dict(faults), dict(world.ledger.transactions), 0, 0, 0, 0, checker.looks,
            world.fleet.restarts, dict(world.fleet.codes), checker.worst_lag, settled, 0, 0, wrong,
        ))  # fmt: skip


def _rest(world: World, patience: float) -> bool:
    """Wait until the target's cursor sees every change that is committed, and no dead letter is left."""
    deadline = time.monotonic() + patience
    pause = threading.Event()
    while time.monotonic() < deadline:
        try:
            with world.connect(world.mirror) as target, world.connect(world.bank) as source:
                ((reached,),) = target.execute(_REACHED).fetchall()
                ((waiting,),) = source.execute(_WAITING, (reached,)).fetchall()
                ((held,),) = source.execute(_HELD).fetchall()
                if not (waiting or held):
                    return True
            if held and not waiting:
                ask(world.bank.dsn, "retry", None, patience=1)
        except psycopg.OperationalError:
            pass  # still recovering
        pause.wait(0.05)
    return False


def _judged(world: World, checker: Checker, faults: Counter[str], verdict: Verdict) -> Verdict:
    ledger = world.ledger
    with world.connect(world.bank) as source, world.connect(world.mirror) as target:
        numbers = Counter(number for (number,) in target.execute("select unnest(numbers) from list").fetchall())
        here = {number for (number,) in source.execute("select unnest(numbers) from list").fetchall()}
        ((verdict.changes,),) = source.execute(_CHANGES).fetchall()
        ((verdict.effects,),) = target.execute(_EFFECTS).fetchall()
        ((verdict.batches,),) = target.execute("select batches from torture.batch").fetchall()
        noted = [f"{what}: {said}" for what, said in target.execute(_VIOLATIONS).fetchall()]
        tables = [compare(source, target, f"public.{table}", (key,)) for table, key in _KEYS.items()]
    lost = ledger.acknowledged.keys() - numbers.keys()
    twice = sorted(number for number, times in numbers.items() if times > 1)
    phantoms = ledger.forbidden & numbers.keys()
    verdict.held = _held(world)
    verdict.lost = len(lost)
    verdict.duplicated = len(twice) + sum(line.startswith("repeated") for line in noted)
    verdict.wrong += [
        *(f"lost: {len(lost)} acknowledged numbers, {sorted(lost)[:5]}, {len(lost - here)} not on the source" for _ in lost and "1"),
        *(f"duplicated: numbers {twice[:5]}" for _ in twice and "1"),
        *(f"phantom: {sorted(phantoms)[:5]} were rolled back" for _ in phantoms and "1"),
        *(f"unequal: {t.table} misses {len(t.missing)}, has {len(t.extra)} more, {len(t.different)} differ" for t in tables if not t.equal),
        *noted, *checker.wrong, *(f"harmed a writer: {error}" for error in ledger.harm), *world.fleet.wrong, *_told(world),
    ]  # fmt: skip
    return verdict


def _told(world: World) -> list[str]:
    """Promise I10, and no traceback: in every line that a daemon of this run wrote."""
    logs = {log.name: log.read_text(errors="replace") for log in sorted(world.fleet.logs)}
    wrong = [f"{name} shows a traceback" for name, text in logs.items() if "Traceback" in text]
    try:
        assert_clean(logs, *world.secrets)
    except AssertionError as leaks:
        wrong += str(leaks).splitlines()
    return wrong


def _held(world: World) -> int:
    """Changes that became dead letters."""
    lines = [line for log in world.fleet.logs for line in log.read_bytes().splitlines() if b'"changes_held"' in line]
    return sum(said["changes"] for said in map(json.loads, lines) if not said["again"])


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {times}" for name, times in sorted(counts.items(), key=lambda item: -item[1]))
