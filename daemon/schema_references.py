"""Steps for foreign keys between mirrors: they come after the first copy, never act, and can wait for the end of a batch.

Pure. Knows as well which of the target's own would break gear 2.
"""

from collections.abc import Iterator
from dataclasses import replace

from daemon import schema_ddl as ddl
from daemon.schema_steps import Mirror, Step
from daemon.structure import Reference
from daemon.wanted import Wanted


def reference_steps(mirror: Mirror) -> Iterator[Step]:
    mirrors = {each.name: each for each in mirror.everything}
    names = {each.name for each in mirror.there.references if each.child == mirror.name}
    known = set()
    for wanted in mirror.one.references:
        known.add(wanted.ends)
        parent = mirrors.get(wanted.parent)
        if parent is None:  # it is watched, but left out of this plan
            continue
        at_once = mirror.there.partitioned or _is_partitioned(mirror, parent)
        if at_once and not wanted.validated:
            continue  # rows that the source tolerates would be in its way, and there it cannot be left unvalidated
        found = next((each for each in mirror.there.references if each.ends == wanted.ends), None)
        if found is None:
            made = replace(
                wanted,
                name=wanted.name
                if wanted.name not in names
                else f"{wanted.name.encode()[:58].decode(errors='ignore')}_2",
            )
            add = ddl.add_reference_at_once if at_once else ddl.add_reference
            yield _after_copy(
                mirror,
                parent,
                mirror.step(
                    "foreign_key",
                    made.name,
                    add(made),
                    "as on the source; it waits for the end of a batch, and never acts",
                ),
            )
            if not at_once and wanted.validated:
                yield _after_copy(
                    mirror,
                    parent,
                    mirror.step(
                        "validate", made.name, ddl.validate(made), "the rows that are there are looked at once"
                    ),
                )
        elif found.acts or not found.deferrable:
            yield from _tamed(mirror, found, at_once=at_once, validated=wanted.validated)
        elif wanted.validated and not found.validated:
            yield _after_copy(
                mirror,
                parent,
                mirror.step("validate", found.name, ddl.validate(found), "the rows that are there are looked at once"),
            )
    for each in mirror.there.references:
        among_mirrors = each.child == mirror.name and each.parent in mirrors
        from_others = each.parent == mirror.name and each.child not in mirrors and each.acts
        if each.ends not in known and ((among_mirrors and (each.acts or not each.deferrable)) or from_others):
            yield from _tamed(mirror, each, at_once=False)


def _tamed(mirror: Mirror, found: Reference, *, at_once: bool, validated: bool = True) -> Iterator[Step]:
    acts = {"c": "delete cascade", "n": "delete set null", "d": "delete set default"}.get(found.on_delete)
    loses = (
        f"its ON {acts.upper()}: what should go still goes when the source says so"
        if acts
        else "nothing; it is checked at the end of a batch from then on"
    )
    reason = (
        "it deletes or empties rows by itself: a batch that replaces rows is refused"
        if acts
        else "it cannot wait: a parent that moves is refused"
    )
    tamed = replace(found, on_delete="a", deferrable=True)
    yield mirror.step(
        "foreign_key", found.name, ddl.replace_reference(tamed, found.name, at_once=at_once), reason, loses
    )
    if not at_once and validated:
        looked = "the rows that are there are looked at once"
        yield mirror.step("validate", found.name, ddl.validate(tamed), looked, "nothing")


def _is_partitioned(mirror: Mirror, parent: Wanted) -> bool:
    there = mirror.target.tables.get(parent.name)
    return there is not None and there.partitioned


def _after_copy(mirror: Mirror, parent: Wanted, step: Step) -> Step:
    """A foreign key wants its rows to be there, parents and children."""
    waits = tuple(sorted({one.watched.name for one in (mirror.one, parent) if not _is_copied(mirror, one)}))
    names = tuple(sorted({mirror.one.watched.name, parent.watched.name}))
    return replace(step, phase="after_copy", waits_for=names) if waits else step


def _is_copied(mirror: Mirror, one: Wanted) -> bool:
    states = {state for table, state in mirror.target.place.copies if table == one.watched.name}
    return states == {"done"} or (not states and one.watched.source in mirror.source.empty)
