"""What may be said of one table under `[tables]`: where it goes on the target, as what, and who may see it there.

Knows the forms of these values and which of them contradict each other, and how two spellings of a table's name are
told to be one. Must not know the databases: whether such a table or column exists is found where they are read.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Access = Literal["owner", "public_read", "none"]
Mask = Literal["null", "hash", "redact"]
Auto = Literal["off", "additive"]

# One part of a name: as SQL quotes it, or as a person types it.
_PART = r'"(?:[^"]|"")+"|[^".\s]+'
_TABLE = re.compile(rf"({_PART})\.({_PART})")
Known = TypeVar("Known")


def parts(name: str) -> tuple[str, str] | None:
    """Schema and name of `public."Story"`, which `public.Story` means as well; None when it has no such form."""
    found = _TABLE.fullmatch(name)
    if found is None:
        return None
    schema, title = (part[1:-1].replace('""', '"') if part.startswith('"') else part for part in (found[1], found[2]))
    return schema, title


def said_of(tables: Mapping[str, Known], name: str) -> Known | None:
    """What is said of a table, whichever way its name is spelled there."""
    return next((said for key, said in tables.items() if parts(key) == parts(name)), None)


def check_table(name: str) -> str:
    if parts(name) is None:
        raise ValueError('is no name of a table: write schema.table, as in public.story or public."Story"')
    return name


def _check_where(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty: leave it out, and every row travels")
    if ";" in text:
        raise ValueError("is to be one condition over the table's columns, without a semicolon")
    return text.strip()


Column = Annotated[str, Field(min_length=1, max_length=63)]
Table = Annotated[str, AfterValidator(check_table)]


class TableSettings(BaseModel):
    """One table. Without any, it goes as it is, and nobody but the secret key sees it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Table | None = None
    include: tuple[Column, ...] | None = None
    exclude: tuple[Column, ...] | None = None
    rename: dict[Column, Column] = {}
    constant: dict[Column, str] = {}
    mask: dict[Column, Mask] = {}
    where: Annotated[str, AfterValidator(_check_where)] | None = None
    owner: Column | None = None
    access: Access = "none"
    write: bool = False
    realtime: bool = False

    @model_validator(mode="before")
    @classmethod
    def _owner_means_access(cls, given: object) -> object:
        """`owner` alone says who may see the rows, and write them: a user theirs."""
        if isinstance(given, dict) and given.get("owner") is not None and given.get("access", "owner") == "owner":
            return {"write": True, **given, "access": "owner"}
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
