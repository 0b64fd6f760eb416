"""What may be said of one table under `[tables]`: where it goes on the target, as what, and who may see it there.

Knows the forms of these values and which of them contradict each other, and which table a name means: one rule for
`[tables]` and commands. Must not know the databases: whether such a table or column exists is found where they are read.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from daemon.errors import AmbiguousTable

Access = Literal["owner", "public_read", "none"]
Mask = Literal["null", "hash", "redact"]
Auto = Literal["off", "additive"]

# One part of a name: as SQL quotes it, or as a person types it.
_PART = r'"(?:[^"\0]|"")+"|[^".\s\0]+'
_TABLE = re.compile(rf"(?:({_PART})\.)?({_PART})")
Known = TypeVar("Known")


def parts(name: str) -> tuple[str, str] | None:
    """Schema and name as they are written in `public."Story"`, quotes aside; None when it has no such form."""
    found = _TABLE.fullmatch(name)
    return (_bare(found[1]), _bare(found[2])) if found and found[1] else None


def readings(name: str) -> tuple[tuple[str | None, str], ...]:
    """What a name may mean, schema (None: it says none) and name: as it is written, or, where it stands without quotes, as
    SQL folds it."""
    found = _TABLE.fullmatch(name)
    if found is None:
        return ()
    schemas = (None,) if found[1] is None else _readings(found[1])
    return tuple(product(schemas, _readings(found[2])))


def meant(name: str, known: Iterable[str]) -> str | None:
    """Which of these tables, named as the outbox has them, a name means. Raises AmbiguousTable."""
    wanted = set(readings(name))
    pairs = {one: parts(one) for one in known}
    found = sorted(one for one, pair in pairs.items() if pair and (pair in wanted or (None, pair[1]) in wanted))
    if len(found) > 1:
        raise AmbiguousTable(f"{name} may mean {' or '.join(found)}: write the one you mean, with these quotes")
    return found[0] if found else None


def said_of(tables: Mapping[str, Known], name: str, known: Iterable[str]) -> Known | None:
    """What is said of a table, whichever way its name is spelled there. Raises AmbiguousTable when that may be said of
    another one of these as well."""
    among = {name, *known}
    return next((said for key, said in tables.items() if parts(name) in readings(key) and meant(key, among)), None)


def _bare(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part


def _readings(part: str) -> tuple[str, ...]:
    return (_bare(part),) if part.startswith('"') or part == part.lower() else (part, part.lower())


def check_table(name: str) -> str:
    if parts(name) is None:
        raise ValueError('is no name of a table: write schema.table, as in public.story or public."Story"')
    return name


def _check_where(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty: leave it out, and every row travels")
    if ";" in text or "\0" in text:
        raise ValueError("is to be one condition over the table's columns, without a semicolon")
    return text.strip()


Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
Column = Annotated[Text, Field(min_length=1, max_length=63)]
Table = Annotated[str, AfterValidator(check_table)]


class TableSettings(BaseModel):
    """One table. Without any, it goes as it is, and nobody but the secret key sees it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Table | None = None
    include: tuple[Column, ...] | None = None
    exclude: tuple[Column, ...] | None = None
    rename: dict[Column, Column] = {}
    constant: dict[Column, Text] = {}
    mask: dict[Column, Mask] = {}
    where: Annotated[str, AfterValidator(_check_where)] | None = None
    owner: Column | None = None
    access: Access = "none"
    write: bool = False
    realtime: bool = False

    @model_validator(mode="before")
    @classmethod
    def _owner_means_access(cls, given: object) -> object:
        """`owner` alone says who may see the rows: a user theirs. A mirror is read; who may write is said."""
        if isinstance(given, dict) and given.get("owner") is not None and given.get("access", "owner") == "owner":
            return {**given, "access": "owner"}
        return given

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for wrong, sentence in self._contradictions():
            if wrong:
                raise ValueError(sentence)
        return self

    def _contradictions(self) -> tuple[tuple[bool, str], ...]:
        renamed = list(self.rename.values())
        return (
            (self.include is not None and self.exclude is not None, "has include and exclude: give one of them"),
            (self.include == (), "has an empty include: no column would travel"),
            (len(set(renamed)) < len(renamed), "renames two columns to the same name"),
            (bool(set(renamed) & set(self.constant)), "has a constant under a name that rename gives away as well"),
            (self.access == "owner" and self.owner is None, 'has access = "owner" and no owner: name the column, as in owner = "user_id"'),
            (self.write and self.owner is None, 'has write = true and no owner: name the column, as in owner = "user_id"'),
            (self.write and self.access == "none", 'has write = true and access = "none": nobody could write'),
        )  # fmt: skip


class SchemaSettings(BaseModel):
    """What outboxd may do to the target's schema by itself, while it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    auto: Auto = "off"
