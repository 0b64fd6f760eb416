"""A schema that nobody has thought of, and writes to it, at random: the same for the same seed.

Pure. Knows what Postgres lets one declare. Must not know outboxd. Names are made to need their quotes.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from psycopg import sql

Value = Callable[[random.Random], str]

SCHEMAS = ("public", 'Sales "EU"', "naïve.schema")
_WORDS = (
    "select", "order", "user", "table", "row", "new", "old", "t", "x", "k", "r", "key", "value", "Mixed Case", "UPPER", 'quo"ted', "o'clock", "ünï-ço∂é ✓", "😀", "a.b", "100%", "%s",
    "back\\slash", "$1", "line\nbreak", "two  spaces ", "(a)", "[]", "--", "/*", "; drop", "é" * 20, "n" * 58, "a,b", "null", "story", "person_id", "createdAt", "ctid.x", "outbox", "@at", "#",
)  # fmt: skip
_TEXTS = (
    "", " ", "plain", "O'Hara", 'say "so"', "back\\slash", "a,b", "{x}", "(y)", "NULL", "null", "é", "e\u0301", "😀", "\u2028", "tab\t", "line\nbreak", "\x1e", "\x7f", "x" * 3000, "100%", "$$",
)  # fmt: skip


def ident(*names: str) -> str:
    return sql.Identifier(*names).as_string()


def literal(text: str) -> str:
    return sql.Literal(text).as_string()


def _text(rng: random.Random) -> str:
    return rng.choice(_TEXTS) + rng.choice(("", str(rng.randrange(1000))))


def _one_of(*texts: str) -> Value:
    return lambda rng: literal(rng.choice(texts))


def _shown(make: Callable[[random.Random], object]) -> Value:
    return lambda rng: literal(str(make(rng)))


def _array(of: Value, kind: str) -> Value:
    def value(rng: random.Random) -> str:
        items = ", ".join("null" if rng.random() < 0.2 else of(rng) for _ in range(rng.randrange(4)))
        return f"array[{items}]::{kind}[]"

    return value


def _day(rng: random.Random) -> str:
    return f"{rng.randint(1, 9999):04}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


def _clock(rng: random.Random) -> str:
    return f"{rng.randrange(24):02}:{rng.randrange(60):02}:{rng.randrange(60):02}.{rng.randrange(10**6):06}"


def _uuid(rng: random.Random) -> str:
    return f"{rng.getrandbits(128):032x}"


# Those that a key may have, too: equal values of them have one spelling, or outboxd knows better.
_KEYS: dict[str, Value] = {
    "int": _shown(lambda rng: rng.randint(-(2**31), 2**31 - 1)),
    "smallint": _shown(lambda rng: rng.randint(-300, 300)),
    "bigint": _shown(lambda rng: rng.choice((rng.randint(0, 1000), rng.randint(-(2**63), 2**63 - 1)))),
    "numeric": _shown(lambda rng: rng.choice(("0", "1", "1.0", "1.00", "-0.001", "1e30", "NaN", str(rng.random())))),
    "text": lambda rng: literal(_text(rng)),
    "varchar(20)": lambda rng: literal(_text(rng)[:20]),
    "uuid": _shown(_uuid),
    "date": _one_of(
        "2024-02-29", "infinity", "0044-03-15 BC", "1999-12-31", "2000-01-01", "2038-01-19", "5874897-12-31"
    ),
    "timestamptz": _shown(lambda rng: f"{_day(rng)} {_clock(rng)}{rng.choice(('Z', '+05:45', '-11'))}"),
    "boolean": _one_of("t", "f"),
    "bytea": lambda rng: f"'\\x{rng.randbytes(rng.randrange(9)).hex()}'",
    "inet": _one_of("10.0.0.1", "10.0.0.1/24", "::1", "fe80::1/64"),
}
_KINDS: dict[str, Value] = {
    **_KEYS,
    "numeric(12, 3)": _shown(lambda rng: rng.uniform(-1e8, 1e8)),
    "real": _one_of("0", "-0", "0.1", "1e-30", "3.4e38", "NaN", "Infinity"),
    "double precision": _shown(lambda rng: rng.choice((0.1, -0.0, rng.random(), 5e-324, 1.7e308, "NaN", "-Infinity"))),
    "char(5)": lambda rng: literal(_text(rng)[:5]),
    "time": _shown(_clock),
    "timetz": _shown(lambda rng: f"{_clock(rng)}+02"),
    "timestamp": _shown(lambda rng: rng.choice((f"{_day(rng)} {_clock(rng)}", "infinity", "-infinity"))),
    "timestamptz(3)": _shown(lambda rng: f"{_day(rng)} {_clock(rng)}Z"),
    "interval": _one_of("1 mon -1 day", "24:00:00", "1 day", "-1.5 sec", "P1Y2M3DT4H5M6.000007S", "30 days"),
    "jsonb": _one_of('{"b": [1, null, {"é": "\\"x"}], "a": 1.0}', "null", "[]", '"text"', "1e400", "{}"),
    "json": _one_of('{"b":  1, "a":2, "a": 3}', "null", " [1 ] ", '"\\u00e9"'),
    "cidr": _one_of("10.0.0.0/8", "::/0"),
    "macaddr": _one_of("08:00:2b:01:02:03"),
    "bit(5)": _one_of("10101", "00000"),
    "varbit": _one_of("", "1", "0110011"),
    "int4range": _one_of("empty", "[1,5)", "(,3]", "[7,]", "(,)"),
    "tstzrange": _one_of("empty", "[2024-01-01 00:00+02,2024-06-01)", "(,infinity]"),
    "nummultirange": _one_of("{}", "{[1,2),[3.50,4]}"),
    "point": _one_of("(0.1,-0)", "(1e300,NaN)"),
    "money": _one_of("-1234.56", "0"),
    "tsvector": _one_of("'cat':1A 'sat':2", "", "'it''s':3B,7"),
    "tsquery": _one_of("cat & !rat", "'a b' <-> c"),
    "jsonpath": _one_of("$.a[*] ? (@ > 1)"),
    "pg_lsn": _one_of("16/B374D848"),
    "name": _one_of("a name", ""),
    '"char"': _one_of("x", ""),
    "oid": _one_of("0", "4294967295"),
    "xid8": _one_of("18446744073709551615"),
    "text[]": _array(lambda rng: literal(_text(rng)), "text"),
    "int[]": _one_of("{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:1]={5,6}"),
    "date[]": _one_of("{2024-02-29,infinity}"),
    "jsonb[]": _array(_one_of("{}", '{"a": "b,c"}', "null"), "jsonb"),
}
_GENERATED = {
    "int": ("bigint", "{}::bigint * 2"), "text": ("text", "upper({})"), "varchar(20)": ("int", "length({})"), "jsonb": ("jsonb", "{} -> 'a'"), "date": ("int", "extract(isodow from {})::int"),
    "boolean": ("text", "case when {} then 'yes' end"), "numeric(12, 3)": ("numeric", "round({}, 1)"),
}  # fmt: skip


@dataclass
class Column:
    """`value` is None where the database itself makes it. `key`: may it be part of one?"""

    name: str
    kind: str
    value: Value | None
    more: str = ""
    null: bool = True
    key: bool = False

    @property
    def declared(self) -> str:
        return f"{ident(self.name)} {self.kind}{self.more}{'' if self.null else ' not null'}"


@dataclass
class Reference:
    columns: tuple[str, ...]
    parent: "Table"
    parent_columns: tuple[str, ...]
    more: str


@dataclass
class Table:
    schema: str
    name: str
    columns: list[Column]
    key: tuple[str, ...]
    partitions: list[str] = field(default_factory=list)  # how it is divided, then each part
    references: list[Reference] = field(default_factory=list)
    more: list[str] = field(default_factory=list)  # indexes and constraints

    @property
    def called(self) -> str:
        return ident(self.schema, self.name)

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def ordered(self) -> str:
        return ", ".join(map(ident, self.key))

    @property
    def parts(self) -> list[Column]:
        return [column for column in self.columns if column.name in self.key]


class Invented:
    """So many tables, with their types."""

    def __init__(self, seed: int, number: int) -> None:
        self.rng = random.Random(seed)
        self._taken: set[tuple[str, str]] = set()
        self.kinds = dict(_KINDS)
        self.keys = dict(_KEYS)
        self.types = list(self._types(1 + number // 5))
        self.tables: list[Table] = []
        for _ in range(number):
            self.tables.append(self._table())
        for table in self.tables:
            self._refer(table)

    def ddl(self) -> Iterator[str]:
        """Statements, in an order in which they can be run."""
        for schema in SCHEMAS[1:]:
            yield f"create schema {ident(schema)}"
        yield from self.types
        for table in self.tables:
            body = ", ".join([column.declared for column in table.columns] + [f"primary key ({table.ordered})"])
            partitioned, *parts = table.partitions or [""]
            yield f"create table {table.called} ({body}) {partitioned}"
            yield from parts
            yield from table.more
        for table in self.tables:
            for each in table.references:
                columns, there = (", ".join(map(ident, names)) for names in (each.columns, each.parent_columns))
                yield (
                    f"alter table {table.called} add foreign key ({columns}) references {each.parent.called} ({there}) {each.more}"
                )

    def _name(self, within: str) -> str:
        """One that is not taken there, of 63 bytes at most."""
        for n in range(1000):
            name = self.rng.choice(_WORDS) + ("" if n == 0 and self.rng.random() < 0.5 else str(len(self._taken)))
            if (within, name) not in self._taken and len(name.encode()) <= 63:
                self._taken.add((within, name))
                return name
        raise AssertionError("no name is left")

    def _types(self, number: int) -> Iterator[str]:
        """Enums, domains over what is there by then, and composite types."""
        rng = self.rng
        for n in range(3 * number):
            schema = rng.choice(SCHEMAS)
            name = ident(schema, self._name(schema))
            if n % 3 == 0:
                labels = [
                    label for label in dict.fromkeys(rng.choice(_WORDS) for _ in range(6)) if len(label.encode()) < 64
                ]
                yield f"create type {name} as enum ({', '.join(map(literal, labels))})"
                value = _one_of(*labels)
                self.keys[name] = value
                self.kinds[f"{name}[]"] = _array(value, name)
            elif n % 3 == 1:
                kind = rng.choice([kind for kind in self.kinds if not kind.startswith('"') or kind[-1] != "]"])
                value = self.kinds[kind]
                yield f"create domain {name} as {kind} check (value is null or value is not null)"
            else:
                inside = [(self._name(name), rng.choice(list(_KINDS))) for _ in range(rng.randint(1, 4))]
                yield f"create type {name} as ({', '.join(f'{ident(part)} {kind}' for part, kind in inside)})"
                value = self._row([kind for _, kind in inside], name)
            self.kinds[name] = value

    def _row(self, kinds: Sequence[str], name: str) -> Value:
        return lambda rng: f"row({', '.join(f'{_KINDS[kind](rng)}::{kind}' for kind in kinds)})::{name}"

    def _table(self) -> Table:
        rng, schema = self.rng, self.rng.choice(SCHEMAS)
        name = self._name(schema)
        within = ident(schema, name)
        partitioned = rng.random() < 0.2
        columns = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            kind = rng.choice(list(self.keys))
            columns.append(Column(self._name(within), kind, self.keys[kind], null=False, key=True))
        if rng.random() < 0.3 and not partitioned:
            more = f" generated {rng.choice(('always', 'by default'))} as identity"
            columns[0] = Column(columns[0].name, "bigint", None, more, null=False, key=True)
        key = tuple(column.name for column in columns)
        for _ in range(rng.randint(0, 8)):
            kind = rng.choice(list(self.kinds))
            value, null = self.kinds[kind], rng.random() < 0.7
            more = f" default {value(rng)}::{kind}" if rng.random() < 0.2 else ""
            columns.append(Column(self._name(within), kind, value, more, null=null))
        for column in [*columns]:
            if column.kind in _GENERATED and column.value and not column.key and rng.random() < 0.4:
                kind, expression = _GENERATED[column.kind]
                more = f" generated always as ({expression.format(ident(column.name))}) stored"
                columns.append(Column(self._name(within), kind, None, more))
        rng.shuffle(columns)
        table = Table(schema, name, columns, key)
        if partitioned:
            table.partitions = self._partitions(table)
        table.more = list(self._indexes(table))
        return table

    def _partitions(self, table: Table) -> list[str]:
        """By hash, or by ranges of a number; one of them perhaps in parts again."""
        first = ident(table.key[0])
        parts = [ident(table.schema, self._name(table.schema)) for _ in range(4)]
        of = f"create table {{}} partition of {table.called}"
        if next(column for column in table.columns if column.name == table.key[0]).kind in (
            "int",
            "smallint",
            "bigint",
        ):
            made = [
                f"partition by range ({first})",
                f"{of.format(parts[0])} for values from (minvalue) to (0)",
                f"{of.format(parts[1])} default partition by hash ({first})",
                f"create table {parts[2]} partition of {parts[1]} for values with (modulus 2, remainder 0)",
                f"create table {parts[3]} partition of {parts[1]} for values with (modulus 2, remainder 1)",
            ]
        else:
            made = [f"partition by hash ({first})"]
            made += [f"{of.format(parts[n])} for values with (modulus 3, remainder {n})" for n in range(3)]
        return made

    def _indexes(self, table: Table) -> Iterator[str]:
        rng = self.rng
        plain = [column for column in table.columns if column.kind in _KEYS and not column.key]
        for column in plain:
            name, unique = ident(column.name), rng.random()
            if table.partitions:
                unique = 1.0  # must have the key's columns there
            if unique < 0.1:
                yield f"create unique index on {table.called} ({name})"
            elif unique < 0.2:
                yield f"alter table {table.called} add unique ({name}) {rng.choice(('', 'deferrable initially deferred', 'deferrable'))}"
            elif unique < 0.25:
                yield f"create unique index on {table.called} ({name}) where {name} is not null"
            elif rng.random() < 0.2:
                yield f"create index on {table.called} ({name} desc nulls last) where {name} is not null"
        texts = [column for column in plain if column.kind == "text"]
        if texts and rng.random() < 0.3:
            yield f"create index on {table.called} (md5({ident(texts[0].name)}))"

    def _refer(self, table: Table) -> None:
        """To any table, also itself, one that comes later, or one that refers back."""
        rng = self.rng
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            parent = rng.choice(self.tables)
            within = ident(table.schema, table.name)
            names = []
            for column in parent.parts:
                name = self._name(within)
                names.append(name)
                table.columns.append(Column(name, column.kind, lambda _: "null"))
            deleted = rng.choice(("", "on delete cascade", "on delete set null", "on delete restrict"))
            updated = rng.choice(("", "on update cascade"))
            waits = (
                rng.choice(("", "deferrable initially deferred", "deferrable")) if deleted[-8:] != "restrict" else ""
            )
            parents = tuple(column.name for column in parent.parts)
            table.references.append(Reference(tuple(names), parent, parents, f"{deleted} {updated} {waits}"))


# writes


def insert(table: Table, rng: random.Random) -> str:
    """One row; what it refers to is some row that is there."""
    referring = {name: n for n, each in enumerate(table.references) for name in each.columns}
    names, values, joins = [], [], []
    for column in table.columns:
        if column.value is None:
            continue
        names.append(ident(column.name))
        if column.name in referring:
            n = referring[column.name]
            each = table.references[n]
            values.append(f"p{n}.{ident(each.parent_columns[each.columns.index(column.name)])}")
        elif column.null and rng.random() < 0.3:
            values.append(f"null::{column.kind}")
        else:
            values.append(f"({column.value(rng)})::{column.kind}")
    for n, each in enumerate(table.references):
        some = f"select * from {each.parent.called} offset {rng.randrange(8)} limit 1"
        joins.append(f"left join ({some}) p{n} on true")
    if not names:
        return f"insert into {table.called} default values"
    return f"insert into {table.called} ({', '.join(names)}) select {', '.join(values)} from (select) one {' '.join(joins)}"


def write(tables: Sequence[Table], rng: random.Random) -> tuple[str, str]:
    """One statement on one of the tables, and of what kind it is."""
    table = rng.choice(tables)
    kind = rng.choices(("insert", "update", "move", "all", "delete", "truncate"), (40, 30, 8, 3, 12, 0.3))[0]
    if kind == "insert":
        return kind, insert(table, rng)
    if kind == "truncate":
        return kind, f"truncate {table.called} cascade"
    some = f"({table.ordered}) = (select {table.ordered} from {table.called} offset {rng.randrange(12)} limit 1)"
    if kind == "delete":
        return kind, f"delete from {table.called} where {some}"
    referring = {name for each in table.references for name in each.columns}
    free = [column for column in table.columns if column.value and column.name not in referring]
    chosen = [column for column in free if column.key == (kind == "move")]
    if not chosen:
        return "insert", insert(table, rng)
    pairs = [
        f"{ident(column.name)} = ({column.value(rng)})::{column.kind}"
        for column in rng.sample(chosen, rng.randint(1, len(chosen)))
        if column.value
    ]
    return kind, f"update {table.called} set {', '.join(pairs)}{'' if kind == 'all' else f' where {some}'}"
