"""How a table is to be watched: from options of the command and from `[tables]`, as one value.

Knows the forms of options, and which of the two wins. Must not know the databases: whether a column exists is found
by `outbox.watch`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from daemon.tables import TableSettings, check_table, parts


@dataclass(frozen=True, slots=True)
class Selection:
    """None: as it is in force, so that watching again takes no mask off. Empty: what is in force is taken away."""

    key: list[str] | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None
    capture: bool = True
    on_error: str | None = None
    copy: bool = True  # rows that are there already
    target: str | None = None
    rename: dict[str, str] | None = None
    constant: dict[str, str] | None = None
    mask: dict[str, str] | None = None
    where: str | None = None


def combined(options: Selection, said: TableSettings | None) -> Selection:
    """Options win over what `[tables]` says."""
    if said is None:
        return options
    own_columns = options.include is not None or options.exclude is not None
    return replace(
        options,
        include=options.include if own_columns else _listed(said.include),
        exclude=options.exclude if own_columns else _listed(said.exclude),
        target=_target(said.target) if options.target is None else options.target,
        rename=(said.rename or None) if options.rename is None else options.rename,
        constant=(said.constant or None) if options.constant is None else options.constant,
        mask=({**said.mask} or None) if options.mask is None else options.mask,
        where=said.where if options.where is None else options.where,
    )


@dataclass(frozen=True, slots=True)
class Named:
    """The table of the source that a name means (None: there is none, or `amiss` says why nobody knows), and as what it is
    watched."""

    table: str | None
    now: Selection | None
    amiss: str = ""


@dataclass(frozen=True, slots=True)
class Unmet:
    """What `[tables]` says of a table and is not in force (`lacks`); what is in force, is not said there, and would end if the
    table were watched again as is said (`ends`)."""

    lacks: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()


def unmet(table: str, said: TableSettings, now: Selection) -> Unmet:
    """`now`: as it is watched. What is not said stays as it is, so it is always in force."""
    wanted = combined(Selection(), said)
    lacks, ends = [], []
    if wanted.include is not None and set(wanted.include) != set(now.include or ()):
        lacks.append("include")
    if wanted.exclude is not None:
        stay = [one for one in wanted.exclude if one not in (now.exclude or ())]
        if stay and (now.include is None or set(stay) & set(now.include)):
            lacks.append(f"exclude of {', '.join(stay)}")
        ends += [f"exclude of {one}" for one in now.exclude or () if one not in wanted.exclude]
        ends += ["include"] * (now.include is not None)
    if wanted.target is not None and parts(wanted.target) != parts(now.target or table):
        lacks.append("target")
    for name in ("rename", "constant", "mask"):
        want, has = getattr(wanted, name) or {}, getattr(now, name) or {}
        lacks += [f"{name} of {column}" for column, to in want.items() if has.get(column) != to]
        ends += [f"{name} of {column}" for column in has if want and column not in want]
    if wanted.where is not None and wanted.where != (now.where or "").strip():
        lacks.append("where")
    return Unmet(tuple(lacks), tuple(ends))


def going_on(wanted: Selection, was: Selection, place: str | None) -> Selection:
    """What a table that has another name now is to be watched as: where nothing is said, as it was, so that a new name takes no
    mask off. `place`: where it goes on the target, where that is not said."""
    own_columns = wanted.include is not None or wanted.exclude is not None
    return replace(
        wanted,
        key=was.key if wanted.key is None else wanted.key,
        include=wanted.include if own_columns else was.include,
        exclude=wanted.exclude if own_columns else was.exclude,
        on_error=wanted.on_error or was.on_error,
        target=place if wanted.target is None else wanted.target,
        rename=was.rename if wanted.rename is None else wanted.rename,
        constant=was.constant if wanted.constant is None else wanted.constant,
        mask=was.mask if wanted.mask is None else wanted.mask,
        where=was.where if wanted.where is None else wanted.where,
    )


def plain(selection: Selection) -> Selection:
    """Without whatever was in force before and is not asked for now."""
    return replace(
        selection,
        key=selection.key or [],
        include=selection.include or [],
        exclude=selection.exclude or [],
        target=selection.target or "",
        rename=selection.rename or {},
        constant=selection.constant or {},
        mask=selection.mask or {},
        where=selection.where or "",
    )


def pairs(option: str, given: Iterable[str]) -> dict[str, str] | None:
    """`a=b`, several times. Raises ValueError with a sentence."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"{option} takes NAME=VALUE")
        if name in found:
            raise ValueError(f"{option} names {name} twice")
        found[name] = value
    return found or None


def target(given: str | None) -> str | None:
    """A name on the target as SQL spells it. Raises ValueError with a sentence."""
    return None if given is None else _target(check_table(given))


def _target(given: str | None) -> str | None:
    found = parts(given) if given else None
    return ".".join('"' + part.replace('"', '""') + '"' for part in found) if found else None


def _listed(columns: tuple[str, ...] | None) -> list[str] | None:
    return None if columns is None else list(columns)
