"""What two databases look like, as far as a mirror is concerned: tables, types, and the project around them.

Values only. Knows nothing of connections, nor of which of the two is right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Name = tuple[str, str]  # schema and name
ROLES = ("anon", "authenticated", "service_role")
WRITES = ("insert", "update", "delete")


@dataclass(frozen=True, slots=True)
class Type:
    """`spelled` as SQL has it; `element`: what an array holds, or the type itself; `base`: below any domains."""

    spelled: str
    element: Name = ("pg_catalog", "")
    kind: str = "b"  # pg_type.typtype of the element
    extension: str | None = None
    base: str = ""

    @property
    def builtin(self) -> bool:
        return self.element[0] == "pg_catalog"


@dataclass(frozen=True, slots=True)
class Column:
    """`supplied`: an insert without it gets a value, from a default, an identity or an expression."""

    name: str
    type: Type
    not_null: bool = False
    default: str | None = None
    supplied: bool = False
    generated: bool = False
    collation: str | None = None
    comment: str | None = None

    @property
    def required(self) -> bool:
        return self.not_null and not self.supplied


@dataclass(frozen=True, slots=True)
class Element:
    """One column of an index, or an expression."""

    column: str | None
    expression: str
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """`portable`: it needs nothing but what every Postgres has. `referenced`: a foreign key rests on it."""

    name: str
    elements: tuple[Element, ...]
    method: str = "btree"
    unique: bool = False
    primary: bool = False
    constraint: bool = False
    deferrable: bool = False
    predicate: str | None = None
    nulls_equal: bool = False
    portable: bool = True
    referenced: bool = False

    @property
    def columns(self) -> tuple[str | None, ...]:
        return tuple(element.column for element in self.elements)

    @property
    def plain(self) -> bool:
        """Over whole columns, and over all rows."""
        return self.predicate is None and None not in self.columns


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key. `on_delete` as pg_constraint has it: a, r, c, n or d. `validated`: every row that is there was looked
    at; `enforced`: rows that come are."""

    name: str
    child: Name
    columns: tuple[str, ...]
    parent: Name
    parent_columns: tuple[str, ...]
    on_delete: str = "a"
    deferrable: bool = True
    validated: bool = True
    full: bool = False
    enforced: bool = True

    @property
    def ends(self) -> tuple[Name, tuple[str, ...], Name, tuple[str, ...]]:
        """What it says, whatever it is called and in whichever order it names its columns."""
        pairs = sorted(zip(self.columns, self.parent_columns, strict=True))
        return self.child, tuple(a for a, _ in pairs), self.parent, tuple(b for _, b in pairs)

    @property
    def acts(self) -> bool:
        """Does it delete or empty rows by itself, or refuse to wait?"""
        return self.on_delete in {"c", "n", "d"}


@dataclass(frozen=True, slots=True)
class Policy:
    name: str
    command: str
    roles: tuple[str, ...]
    using: str | None = None
    check: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table of either side, or one as it is wanted."""

    name: Name
    columns: tuple[Column, ...]
    indexes: tuple[Index, ...] = ()
    references: tuple[Reference, ...] = ()  # from it and to it
    comment: str | None = None
    partitioned: bool = False
    secured: bool = True  # row level security
    mine: bool = True
    policies: tuple[Policy, ...] = ()
    grants: frozenset[tuple[str, str]] = frozenset()
    triggers: tuple[str, ...] = ()  # those that may change a row before it is written
    rows: int = 0
    dependents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def column(self, name: str | None) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True, slots=True)
class UserType:
    """An enum type, domain or composite type; `body`: what lies below the domain, or the composite's columns; `needs`: the
    types that it is made of."""

    name: Name
    kind: str
    extension: str | None = None
    labels: tuple[str, ...] = ()
    body: str | None = None
    needs: tuple[Name, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """The project around the tables. `realtime`: tables of the publication; None: there is no such publication."""

    roles: frozenset[str] = frozenset(ROLES)
    schemas: frozenset[str] = frozenset({"public"})
    usable: frozenset[tuple[str, str]] = frozenset((role, "public") for role in ROLES)
    extensions: Mapping[str, str] = field(default_factory=dict)
    relations: Mapping[Name, str] = field(default_factory=dict)  # of an index: the table it belongs to
    realtime: frozenset[Name] | None = frozenset()
    realtime_all: bool = False
    has_uid: bool = True
    mirrors: Mapping[str, tuple[Name, tuple[str, ...]]] = field(default_factory=dict)
    copies: frozenset[tuple[str, str]] = frozenset()  # table and state, by whichever relay


@dataclass(frozen=True, slots=True)
class Catalogue:
    """One side, as far as it was asked for. `empty`: tables without rows; `spoken`: labels of enum types that rows have, of
    those that were looked for; `leaves`: foreign keys of a partition alone, by the table (and partition, and name)."""

    tables: Mapping[Name, Table]
    types: tuple[UserType, ...] = ()  # what is needed first comes first
    place: Place = Place()
    empty: frozenset[Name] = frozenset()
    spoken: Mapping[Name, frozenset[str]] = field(default_factory=dict)
    leaves: Sequence[tuple[Name, str, str]] = ()


EMPTY_PROJECT = Catalogue({})


@dataclass(frozen=True, slots=True)
class Watched:
    """One row of outbox.watched: what of the table travels, and as what."""

    name: str  # as outbox.change has it
    source: Name
    key: tuple[str, ...]
    target: Name
    there: bool = True
    capture: bool = True
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    constant: Mapping[str, str] = field(default_factory=dict)
    mask: Mapping[str, str] = field(default_factory=dict)
    filtered: bool = False
    sent: frozenset[str] = frozenset()  # every column that has travelled, under its name on the target


@dataclass(frozen=True, slots=True)
class Audience:
    """Who may see a table's rows on the target: the columns and words of `[tables]`. `instead`: of what the source has on
    record, in words, when that is another; who changes it is to be asked."""

    owner: str | None = None
    access: str = "none"
    write: bool = False
    realtime: bool = False
    instead: str = field(default="", compare=False)

    @property
    def said(self) -> str:
        """In the words of `[tables]`."""
        owner = f"owner = {self.owner!r}, " if self.owner is not None else ""
        more = [name for name in ("write", "realtime") if getattr(self, name)]
        return f"{owner}access = {self.access!r}{''.join(f', {name} = true' for name in more)}"
