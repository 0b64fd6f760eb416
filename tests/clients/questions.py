"""Random questions that a client of the library may have: filters, embedding, order, ranges, counts; anybody's.

Pure, but for the rows it is shown: a filter's values come from them, so that most questions have an answer. Knows what
PostgREST can be asked. Must not know who is asked.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

WHO = ("anon", "a", "b", "secret")
OPEN = ("Story", "chapter", "étiquette", "Story_étiquette")  # what anybody may read

Row = Mapping[str, Any]
Step = tuple[Any, ...]

# What may be done with a column.
COLUMNS = {
    "person": {"id": "scalar", "email": "text", "Full Name": "text", "bossId": "scalar", "mood": "scalar", "moods": "array", "tags": "array", "born": "scalar", "score": "scalar", "select": "bool", "worked": "scalar", "seen": "composite", "initials": "text"},
    "Story": {"id": "scalar", "authorId": "scalar", "editorId": "scalar", "title": "text", "body": "text", "doc": "json", "during": "range", "pages": "range", "createdAt": "scalar", "price": "scalar", "raw": "scalar", "words": "words"},
    "chapter": {"story": "scalar", "no": "scalar", "heading": "text", "length": "scalar"},
    "scene": {"story": "scalar", "chapter": "scalar", "no": "scalar", "authorId": "scalar", "place": "scalar", "took": "scalar"},
    "étiquette": {"id": "scalar", "nom long": "text", "parent": "scalar"},
    "Story_étiquette": {"story": "scalar", "étiquette": "scalar", "since": "scalar"},
    "profile": {"person": "scalar", "about": "text", "links": "composite"},
    "reading": {"person": "scalar", "day": "scalar", "pages": "scalar"},
    "ledger": {"id": "scalar", "person": "scalar", "amount": "scalar"},
    "contact": {"id": "scalar", "person": "scalar", "note": "text"},
}  # fmt: skip

KEYS = {
    "person": ("id",), "Story": ("id",), "chapter": ("story", "no"), "scene": ("story", "chapter", "no"), "étiquette": ("id",),
    "Story_étiquette": ("story", "étiquette"), "profile": ("person",), "reading": ("person", "day"), "ledger": ("id",), "contact": ("id",),
}  # fmt: skip

# What can be embedded in a table's rows: how it is called there, whose rows those are, whether there are several, and how
# one asks for it.
EMBEDDED = {
    "person": [
        ("written", "Story", True, "Story!Story_authorId_fkey"), ("edited", "Story", True, "Story!Story_editorId_fkey"), ("profile", "profile", False, "profile"),
        ("reading", "reading", True, "reading"), ("boss", "person", False, "bossId"), ("contact", "contact", True, "contact"), ("ledger", "ledger", True, "ledger"),
    ],
    "Story": [
        ("author", "person", False, "person!Story_authorId_fkey"), ("editor", "person", False, "editorId"), ("chapter", "chapter", True, "chapter"),
        ("étiquette", "étiquette", True, "étiquette!Story_étiquette"), ("Story_étiquette", "Story_étiquette", True, "Story_étiquette"),
    ],
    "chapter": [("Story", "Story", False, "Story"), ("scene", "scene", True, "scene")],
    "scene": [("chapter", "chapter", False, "chapter!scene_story_chapter_fkey")],
    "étiquette": [("Story", "Story", True, "Story!Story_étiquette"), ("up", "étiquette", False, "parent")],
    "Story_étiquette": [("Story", "Story", False, "Story"), ("label", "étiquette", False, "étiquette!Story_étiquette_étiquette_fkey")],
    "profile": [("owner", "person", False, "person!profile_person_fkey")],
    "reading": [("reader", "person", False, "person!reading_person_fkey")],
    "ledger": [("owner", "person", False, "person!ledger_person_fkey")],
    "contact": [("owner", "person", False, "person!contact_person_fkey")],
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """`steps` are called as supabase-py calls them."""

    who: str
    table: str
    select: str = "*"
    steps: tuple[Step, ...] = ()
    count: str | None = None
    head: bool = False

    def plain(self) -> dict[str, Any]:
        return asdict(self)


class Curious:
    """Asks at random, always the same for the same seed."""

    def __init__(self, rows: Mapping[str, Sequence[Row]], seed: int) -> None:
        self._rows = rows
        self._rng = random.Random(seed)

    def questions(self, number: int) -> list[Question]:
        return [self._question(self._rng.choice(list(COLUMNS))) for _ in range(number)]

    def plain(self) -> list[Question]:
        """Of each column what may be asked of it (of those of which a lot may, something), and of each table a row in each
        form: whoever sees all finds something."""
        asked = []
        for table, columns in COLUMNS.items():
            key = [("order", name, True, None, None) for name in KEYS[table]]
            for name in self._some_of(table, sum(kind != "composite" for kind in columns.values())):
                filters = self._filters(table, name)
                chosen = filters if columns[name] != "scalar" else self._rng.sample(filters, 2)
                asked += [Question("secret", table, ",".join(columns), (one, *key)) for one in chosen]
            row = self._rng.choice(self._rows[table])
            only = [("eq", name, row[name]) for name in KEYS[table]]
            asked += [
                Question("secret", table, ",".join(columns), (*only, (form,)))
                for form in ("single", "csv", "maybe_single")
            ]
        return asked

    def _question(self, table: str) -> Question:
        rng = self._rng
        who = rng.choices(WHO, (2, 3, 3, 2))[0]
        if who == "anon" and rng.random() < 0.7:
            table = rng.choice(OPEN)
        select, steps = self._selected(
            table, depth=0, path="", only=OPEN if who == "anon" and rng.random() < 0.8 else tuple(COLUMNS)
        )
        steps += [self._filter(table, name, "") for name in self._some_of(table, rng.choice((0, 1, 1, 2)))]
        if rng.random() < 0.15:
            steps.append(("or_", self._either(table), None))
        steps += self._ordered(table, "")
        count = rng.choice((None, "exact"))
        if rng.random() < 0.25:
            form = rng.choice(("single", "csv", "maybe_single"))
            return Question(who, table, select, (*steps, (form,)), count if form == "single" else None)
        return Question(who, table, select, (*steps, *self._cut("")), count, head=rng.random() < 0.1)

    def _selected(self, table: str, depth: int, path: str, only: Sequence[str]) -> tuple[str, list[Step]]:
        """What is to come back, and the steps that belong to what is embedded."""
        rng, steps = self._rng, list[Step]()
        columns = list(COLUMNS[table])
        listed = ["*"] if rng.random() < 0.4 else [self._column(table, name) for name in rng.sample(columns, rng.randint(1, min(4, len(columns))))]  # fmt: skip
        if table == "contact":  # a star brings what does not travel
            listed = [name if name != "*" else "id,person,note" for name in listed]
        known = [way for way in EMBEDDED[table] if way[1] in only]
        ways = rng.sample(known, min(len(known), rng.choice((0, 1, 1, 2)))) if depth < 2 else []
        for name, other, many, spelled in ways:
            inner, more = self._selected(other, depth + 1, f"{path}{name}.", only)
            joined = "!inner" * (rng.random() < 0.3)
            spread = "..." * (not many and inner != "*" and "(" not in inner and rng.random() < 0.2 and depth == 0)
            called = spelled if spread or name == spelled.partition("!")[0] else f"{name}:{spelled}"
            listed.append(f"{spread}{called}{joined}({inner})")
            if spread:
                continue
            steps += more
            if rng.random() < 0.3:
                steps += [self._filter(other, column, f"{path}{name}.") for column in self._some_of(other, 1)]
            if many:
                steps += self._ordered(other, f"{path}{name}")
                steps += self._cut(f"{path}{name}")
        return ",".join(listed), steps

    def _column(self, table: str, name: str) -> str:
        kind = COLUMNS[table][name]
        if kind == "json":
            return self._rng.choice(
                (name, f"{name}->k", f"{name}->>k", f"{name}->a->0", f"x:{name}->a->>1", f"{name}->deep")
            )
        if kind == "composite":
            return self._rng.choice((name, f"first:{name}->since" if name == "seen" else name))
        return self._rng.choice((name, name, f"other:{name}", f"{name}::text", f"other:{name}::text"))

    def _ordered(self, table: str, path: str) -> list[Step]:
        """By something or nothing, and by the key: rows that are equal come in any order."""
        rng = self._rng
        sortable = [name for name, kind in COLUMNS[table].items() if kind not in ("composite", "words")]
        by = [name for name in rng.sample(sortable, rng.choice((0, 1, 2))) if name not in KEYS[table]]
        steps = [("order", name, rng.random() < 0.5, rng.choice((None, True, False)), path or None) for name in by]
        return [*steps, *(("order", name, True, None, path or None) for name in KEYS[table])]

    def _cut(self, path: str) -> list[Step]:
        rng = self._rng
        start = rng.choice((0, 0, 0, 1, 5))
        return rng.choice(([], [("limit", rng.choice((0, 1, 3, 10)), path or None)], [("range", start, start + rng.randint(0, 9), path or None)]))  # fmt: skip

    def _some_of(self, table: str, number: int) -> list[str]:
        """Each once: where two conditions exclude every part of a table in parts, Postgres asks for fewer rights."""
        return self._rng.sample([name for name, kind in COLUMNS[table].items() if kind != "composite"], number)

    def _filter(self, table: str, name: str, path: str) -> Step:
        if self._rng.random() < 0.1:
            return self._rng.choice((("is_", path + name, None), ("not_", path + name, "is", "null")))
        return self._rng.choice(self._filters(table, name, path))

    def _filters(self, table: str, name: str, path: str = "") -> list[Step]:
        """All that may be asked of a column, with a value of some row."""
        return _FILTERS[COLUMNS[table][name]](self._rng, path + name, self._value(table, name))

    def _value(self, table: str, name: str) -> Any:
        """One that is there, if there is any."""
        there = [row[name] for row in self._rows[table] if row[name] is not None]
        return self._rng.choice(there) if there else None

    def _either(self, table: str) -> str:
        """Conditions in PostgREST's own words, one of them of two or denied."""
        rng = self._rng
        names = [name for name, kind in COLUMNS[table].items() if kind in ("scalar", "text")]

        def one() -> str:
            name = rng.choice(names)
            return f"{name}.{rng.choice(('eq', 'gt', 'lte', 'neq'))}.{_quoted(self._value(table, name))}"

        return rng.choice(
            (f"{one()},{one()}", f"and({one()},{one()}),{one()}", f"not.and({one()},{one()}),{names[0]}.is.null")
        )


def _quoted(value: Any) -> str:
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _scalar(rng: random.Random, column: str, value: Any) -> list[Step]:
    plain = [(operator, column, value) for operator in ("eq", "neq", "gt", "gte", "lt", "lte")]
    return [
        *plain,
        ("in_", column, [value, value]),
        ("not_", column, "eq", value),
        ("filter", column, "isdistinct", value),
    ]


def _bool(rng: random.Random, column: str, value: Any) -> list[Step]:
    return [("is_", column, value), ("eq", column, value), ("neq", column, value)]


def _text(rng: random.Random, column: str, value: Any) -> list[Step]:
    part = str(value)[rng.randrange(3) : 4 + rng.randrange(6)]
    some = "".join(letter for letter in part if letter.isalnum()) or "o"
    like = part.replace("\\", "").replace("%", "\\%").replace("_", "\\_")
    return [
        rng.choice(_scalar(rng, column, value)), ("like", column, f"%{like}%"), ("ilike", column, f"%{like.upper()}%"), ("filter", column, "match", "^[A-Zn]"),
        ("filter", column, "imatch", "o.*1"), ("like_any_of", column, f"%{some}%,%1%"), ("like_all_of", column, f"%{some}%,%"), ("ilike_any_of", column, f"%{some.upper()}%,X"),
        ("ilike_all_of", column, f"%{some.upper()}%"), ("not_", column, "like", f"%{like}%"),
    ]  # fmt: skip


def _array(rng: random.Random, column: str, value: Any) -> list[Step]:
    return [
        ("contains", column, value[:1]),
        ("contained_by", column, value),
        ("overlaps", column, value[-2:]),
        ("contains", column, []),
    ]


def _json(rng: random.Random, column: str, value: Any) -> list[Step]:
    return [
        ("contains", column, json.dumps({"k": value.get("k")})), ("eq", f"{column}->>k", value.get("k")), ("gt", f"{column}->k", rng.randrange(3)),
        ("is_", f"{column}->a", None), ("eq", f"{column}->a->>0", value["a"][0]),
    ]  # fmt: skip


def _range(rng: random.Random, column: str, value: Any) -> list[Step]:
    first, last = (
        ("1", "7") if value == "empty" else (end.replace('"', "") for end in str(value).strip("[]()").split(","))
    )
    named = [
        (name, column, [first, last]) for name in ("range_gt", "range_gte", "range_lt", "range_lte", "range_adjacent")
    ]
    return [
        *named,
        ("overlaps", column, value),
        ("contains", column, value),
        ("contained_by", column, value),
        ("eq", column, value),
    ]


def _words(rng: random.Random, column: str, value: Any) -> list[Step]:
    asked = (
        (None, "cat | rats"),
        (None, "'walk' & !'rats'"),
        ("plain", "walking mats"),
        ("phrase", "the cat"),
        ("web_search", "rats -cats or mats"),
    )
    return [("text_search", column, words, kind, rng.choice((None, "english", "simple"))) for kind, words in asked]


_FILTERS: dict[str, Callable[[random.Random, str, Any], list[Step]]] = {
    "scalar": _scalar, "bool": _bool, "text": _text, "array": _array, "json": _json, "range": _range, "words": _words,
}  # fmt: skip
