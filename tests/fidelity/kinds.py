"""Every type a table's column may have: how it is named, odd values of it, and random ones, all as input text.

Pure; knows Postgres' input syntax. A built-in type that is neither in KINDS nor in WITHOUT_VALUES fails
tests/fidelity/test_values.py by name.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

Texts = st.SearchStrategy[str]

# Made on both sides before the tables. `{extensions}` are those of the server that are wanted here.
TYPES = """
create schema if not exists extensions;
{extensions}
create type mood as enum ('ok', 'so "so"', 'bad, worse', '''); drop table', 'é');
create domain email as text check (value like '%@%');
create domain scores as int[] check (cardinality(value) < 9);
create domain cheer as mood check (value <> 'bad, worse');
create type point3 as (x numeric, label text, at timestamptz, tags text[], doc jsonb, cheer cheer);
create type nested as (first point3, rest point3[]);
create domain place as point3;
create type textrange as range (subtype = text, collation = "C");
create type moodrange as range (subtype = mood);
"""


@dataclass(frozen=True)
class Kind:
    """`values` are always tried, and their arrays; `random` may be None where those are all there is."""

    name: str
    values: Sequence[str]
    random: Texts | None = None
    extension: bool = False
    delimiter: str = ","
    modifier: str = field(default="")

    @property
    def table(self) -> str:
        """The table that has a column of this type, and one of its arrays."""
        return "".join(c if c.isalnum() else "_" for c in f"v_{self.name}{self.modifier}".lower())

    @property
    def texts(self) -> Texts:
        """Odd ones and random ones."""
        odd = st.sampled_from(list(self.values))
        return odd if self.random is None else st.one_of(odd, self.random)


def array(items: Sequence[str | None], sizes: Sequence[int], lower: Sequence[int], delimiter: str = ",") -> str:
    """An array's input text; items are used again from the first when there are too few."""
    left = iter(range(10**6))

    def body(depth: int) -> str:
        if depth == len(sizes):
            item = items[next(left) % len(items)]
            return "NULL" if item is None else '"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return "{" + delimiter.join(body(depth + 1) for _ in range(sizes[depth])) + "}"

    if not items or 0 in sizes:
        return "{}"
    bounds = "".join(f"[{at}:{at + size - 1}]" for at, size in zip(lower, sizes, strict=True))
    return f"{bounds}={body(0)}"


@st.composite
def arrays(draw: st.DrawFn, kind: Kind) -> str:
    """One to three dimensions, from any lower bound, with NULLs."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    lower = draw(st.lists(st.integers(-3, 5), min_size=len(sizes), max_size=len(sizes)))
    items = draw(st.lists(st.one_of(st.none(), kind.texts), min_size=0, max_size=4))
    return array(items, sizes, lower, kind.delimiter)


def _integers(bits: int) -> Texts:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).map(str)


def _unsigned(bits: int) -> Texts:
    return st.integers(0, 2**bits - 1).map(str)


def _floats(width: int) -> Texts:
    return (st.floats(width=32) if width == 32 else st.floats()).map(repr)


def _text(max_size: int = 30, max_bytes: int = 10**9) -> Texts:
    alphabet = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    awkward = st.sampled_from(["\x1e", "\\", '"', "'", "{", "}", ",", "(", ")", "NULL", "\x7f", "\u2028", "\ufeff"])
    return (
        st.lists(st.one_of(alphabet, awkward), max_size=max_size)
        .map(lambda parts: "".join(parts)[:max_size])
        .filter(lambda text: len(text.encode()) <= max_bytes)
    )


def _json(*, strict: bool) -> Texts:
    """Documents as their authors spell them. `strict`: what jsonb takes, which is less."""
    strings = _text(8) if strict else st.one_of(_text(8), st.sampled_from(["\ud800", "a\0b", "\udc00x"]))
    scalars = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), strings
    )
    documents = st.recursive(
        scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(strings, inner, max_size=3)), max_leaves=6
    )  # fmt: skip
    spellings = st.tuples(documents, st.sampled_from([None, 1]), st.booleans())
    # Escaped always where a lone surrogate or a zero may stand: as characters no Postgres would take them.
    return spellings.map(lambda s: json.dumps(s[0], indent=s[1], ensure_ascii=not strict or s[2]))


_moments = st.tuples(st.integers(0, 109_203_527), st.integers(0, 86_399_999_999)).map(
    lambda m: f"J{m[0]} {m[1] // 3_600_000_000:02}:{m[1] // 60_000_000 % 60:02}:{m[1] % 60_000_000 / 1e6:09.6f}"
)
_times = st.integers(0, 86_400_000_000).map(
    lambda us: f"{us // 3_600_000_000:02}:{us // 60_000_000 % 60:02}:{us % 60_000_000 / 1e6:09.6f}"
)
_offsets = st.integers(-57_599, 57_599).map(
    lambda s: f"{'-' if s < 0 else '+'}{abs(s) // 3600:02}:{abs(s) // 60 % 60:02}:{abs(s) % 60:02}"
)
_small = st.integers(-(10**9), 10**9).map(str)
_bits = st.text("01", min_size=0, max_size=40)
_hosts = st.one_of(st.ip_addresses(v=4).map(lambda a: (str(a), 32)), st.ip_addresses(v=6).map(lambda a: (str(a), 128)))
_networks = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(lambda n: f"{_dotted(n[0] >> (32 - n[1]) << (32 - n[1]))}/{n[1]}"),
)  # fmt: skip
_pairs = st.tuples(_floats(64), _floats(64)).map(lambda p: f"({p[0]},{p[1]})")
_finite = st.floats(allow_nan=False, allow_infinity=False).map(repr)


def _dotted(number: int) -> str:
    return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))


def _hex(size: int) -> Texts:
    return st.binary(min_size=size, max_size=size).map(lambda b: ":".join(f"{byte:02x}" for byte in b))


def _ranges(low: int, high: int, *, spell: str = "{}") -> Texts:
    bound = st.one_of(st.none(), st.integers(low, high))

    def write(drawn: tuple[int | None, int | None, str, str]) -> str:
        one, two, left, right = drawn
        if one is not None and two is not None and one > two:
            one, two = two, one
        return left + ",".join("" if n is None else f'"{spell.format(n)}"' for n in (one, two)) + right

    return st.tuples(bound, bound, st.sampled_from("(["), st.sampled_from(")]")).map(write)


def _multi(ranges: Texts) -> Texts:
    return st.lists(ranges, max_size=4).map(lambda many: "{" + ",".join(many) + "}")


_int4s, _int8s = _ranges(-(2**31), 2**31 - 2), _ranges(-(2**63), 2**63 - 2)
_days, _nums = _ranges(1, 5 * 10**6, spell="J{}"), _ranges(-(10**30), 10**30, spell="{}.50")
_instants = _ranges(1, 10**8, spell="J{} 12:34:56.789")
_composite = r"""("1.50","a,""b\"\\(\\","2026-01-01 00:00+02","{""x"",NULL}","{""k"": null}",ok)"""

KINDS: tuple[Kind, ...] = (
    Kind("smallint", ["-32768", "32767", "0"], _integers(16)),
    Kind("integer", ["-2147483648", "2147483647"], _integers(32)),
    Kind("bigint", ["-9223372036854775808", "9223372036854775807", "9007199254740993"], _integers(64)),
    Kind(
        "numeric",
        ["NaN", "Infinity", "-Infinity", "1.00", "1", "0.000", "1e-16383", "1e131071", "-0.0", "9" * 500 + "." + "9" * 500],
        st.decimals(allow_nan=True, allow_infinity=True).map(str).map(lambda d: "NaN" if "NaN" in d else d),
    ),
    Kind("numeric", ["NaN", "999999.999999", "-1.5"], st.integers(-(10**12) + 1, 10**12 - 1).map(lambda n: f"{n}e-6"), modifier="(12,6)"),
    Kind("real", ["NaN", "Infinity", "-Infinity", "-0", "0.1", "1e-45", "3.4028235e38"], _floats(32)),
    Kind("double precision", ["NaN", "Infinity", "-Infinity", "-0", "0.1", "5e-324", "1.7976931348623157e308"], _floats(64)),
    Kind(
        "money", ["-92233720368547758.08", "92233720368547758.07", "0.01"],
        st.integers(-(2**63), 2**63 - 1).map(lambda n: f"{'-' if n < 0 else ''}{abs(n) // 100}.{abs(n) % 100:02}"),
    ),
    Kind("boolean", ["t", "f"]),
    Kind(
        "text",
        ["", "null", "NULL", "\x01\x1e\x1f\x7f\u2028\\ \"'", "😀 e\u0301 \ufeff \U0010ffff", "x" * 70_000, " a ", "[]", "{}", "0.10",
         "'); drop table x; --", "\\u0000", "%s %1$I", "\r\n\t\v\f"],
        _text(),
    ),
    Kind("varchar", ["abcde", "a    ", ""], _text(5), modifier="(5)"),
    Kind("varchar", ["", "a "], _text()),
    Kind("character", ["a", "a b", "", "  b "], _text(5), modifier="(5)"),
    Kind("bpchar", ["a  ", ""], _text(9)),
    Kind("name", ["n" * 63, "", "é" * 31, 'quo"ted'], _text(40, 63)),
    Kind('"char"', ["x", "", "\\", '"', "'"], st.characters(min_codepoint=1, max_codepoint=126)),
    Kind("bytea", ["\\x", "\\x00ff5c1e27"], st.binary(max_size=40).map(lambda b: "\\x" + b.hex())),
    Kind("date", ["infinity", "-infinity", "4714-11-24 BC", "5874897-12-31", "0001-12-31 BC", "2000-02-29"],
         st.integers(0, 2_147_483_493).map("J{}".format)),
    Kind("time", ["24:00:00", "00:00:00.000001", "23:59:60"], _times),
    Kind("time", ["23:59:59.9999"], _times, modifier="(2)"),
    Kind("timetz", ["24:00:00-15:59:59", "00:00:00+15:59:59", "12:00:00.000001-07:30"], st.tuples(_times, _offsets).map("".join)),
    Kind("timestamp", ["infinity", "-infinity", "4714-11-24 00:00:00 BC", "294276-12-31 23:59:59.999999", "2026-03-29 02:30"], _moments),
    Kind("timestamp", ["infinity", "2026-03-29 02:30:00.9996"], _moments, modifier="(3)"),
    Kind("timestamptz", ["infinity", "-infinity", "4714-11-24 00:00:00+00 BC", "294276-12-31 23:59:59.999999+00",
                         "2026-03-29 02:30:00.123456+02"], _moments.map("{}+00".format)),
    Kind("interval", ["1 mon -1 days +02:03:04.5", "-1 year", "0", "-178956970 years -8 mons -2147483648 days 1 microsecond",
                      "9223372036854775807 microseconds", "-9223372036854775808 microseconds"],
         st.tuples(_integers(32), _integers(32), _integers(64)).map(lambda i: f"{i[0]} mons {i[1]} days {i[2]} microseconds")),
    Kind("interval", ["-1 days 02:03:04.5678", "0"], modifier=" day to second(2)"),
    Kind("uuid", ["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"], st.uuids().map(str)),
    Kind("inet", ["10.0.0.1/8", "::1", "0.0.0.0/0", "10.0.0.1"], st.tuples(_hosts, st.integers(0, 128)).map(lambda h: f"{h[0][0]}/{min(h[1], h[0][1])}")),
    Kind("cidr", ["10.0.0.0/8", "::/0", "fe80::/10"], _networks),
    Kind("macaddr", ["08-00-2b-01-02-03"], _hex(6)),
    Kind("macaddr8", ["08:00:2b:01:02:03:04:05"], _hex(8)),
    Kind("bit", ["10100000", "00000000"], st.text("01", min_size=8, max_size=8), modifier="(8)"),
    Kind("bit", ["1", "0"]),
    Kind("varbit", ["", "0", "1" * 200], _bits),
    Kind("varbit", ["", "101"], st.text("01", max_size=7), modifier="(7)"),
    Kind("json", ["null", '{"a":1,  "a":2, "n": 1.00}', "  [ ]", '"\\ud800 \\u0000 \\u001e"', "1e400", "[" * 900 + "]" * 900,
                  '"a"', "true", "-0", '{"": {"\\u001e": "\\udc00"}}'], _json(strict=False)),
    Kind("jsonb", ["null", '{"a": [1, 1.0, 1e400, null], "b": "\\u001e \\\\ é"}', "[]", '""', "0.10", "false", "1" * 400], _json(strict=True)),
    Kind("jsonpath", ['$."a b"[*] ? (@ > 1.10)', "strict $", '$.a ? (@ like_regex "^\\\\d")']),
    Kind("xml", ['<a b="c">&amp;</a>', "text <b/> text", "", "<!DOCTYPE a><a/>", '<?xml version="1.1"?><a/>', "<![CDATA[\u2028]]>"]),
    Kind("tsvector", ["'a':1A,2B 'b c' '''':3", ""], st.lists(st.text("ab c'", min_size=1, max_size=4), max_size=4).map(
        lambda words: " ".join("'" + word.replace("'", "''") + "':1" for word in words))),
    Kind("tsquery", ["'a' & !'b c':*A", "'x' <2> 'y'", ""]),
    Kind("point", ["(0.1,-0)", "(NaN,Infinity)"], _pairs),
    Kind("line", ["{1,0.1,-5}", "{0,1e-2,2}"]),
    Kind("lseg", ["[(0.1,1),(2,-0)]"], st.tuples(_pairs, _pairs).map(lambda p: f"[{p[0]},{p[1]}]")),
    Kind("box", ["(2,2),(1,0.1)"], st.tuples(_pairs, _pairs).map(",".join), delimiter=";"),
    Kind("path", ["[(0,0),(1,0.1)]", "((0,0),(1,1),(2,0))"], st.lists(_pairs, min_size=1, max_size=4).map(lambda p: f"[{','.join(p)}]")),
    Kind("polygon", ["((0,0),(1,1),(2,0.1))"], st.lists(_pairs, min_size=1, max_size=4).map(lambda p: f"({','.join(p)})")),
    Kind("circle", ["<(0.1,1),5e-324>"], st.tuples(_pairs, st.floats(min_value=0)).map(lambda c: f"<{c[0]},{c[1]!r}>")),
    Kind("oid", ["4294967295", "0"], _unsigned(32)),
    Kind("xid", ["4294967295", "0"], _unsigned(32)),
    Kind("cid", ["4294967295", "0"], _unsigned(32)),
    Kind("xid8", ["18446744073709551615", "0"], _unsigned(64)),
    Kind("tid", ["(4294967295,65535)", "(0,0)"]),
    Kind("pg_lsn", ["16/B374D848", "FFFFFFFF/FFFFFFFF", "0/0"]),
    Kind("pg_snapshot", ["10:20:10,14", "1:1:"]),
    Kind("txid_snapshot", ["10:20:10,14"]),
    Kind("int2vector", ["1 -2 3", ""]),
    Kind("oidvector", ["1 4294967295", ""]),
    Kind("refcursor", ["<unnamed portal 1>", ""]),
    Kind("regclass", ["pg_catalog.pg_class"]),
    Kind("regcollation", ['"C"']),
    Kind("regconfig", ["english"]),
    Kind("regdictionary", ["simple"]),
    Kind("regnamespace", ["pg_catalog", "public"]),
    Kind("regoper", ["pg_catalog.||/"]),
    Kind("regoperator", ["pg_catalog.+(integer,integer)"]),
    Kind("regproc", ["pg_catalog.now"]),
    Kind("regprocedure", ["pg_catalog.abs(integer)"]),
    Kind("regrole", ["postgres", "pg_monitor"]),
    Kind("regtype", ["integer", "timestamp with time zone", '"char"', "text[]"]),
    Kind("aclitem", ["=r/postgres", "pg_monitor=rw*/postgres"]),
    Kind("int4range", ["[1,5)", "empty", "(,)", "[2147483646,]"], _int4s),
    Kind("int8range", ["[-9223372036854775808,9223372036854775807)"], _int8s),
    Kind("numrange", ["[1.0,2.50)", "(NaN,)", "[-Infinity,Infinity]"], _nums),
    Kind("daterange", ["[2026-01-01,infinity)", "(4714-11-24 BC,)", "[-infinity,infinity]"], _days),
    Kind("tsrange", ["[2026-01-01 00:00:00.000001,infinity)"], _instants),
    Kind("tstzrange", ["[2026-01-01 00:00:00.000001+00,infinity)", "(,]"], _instants),
    Kind("int4multirange", ["{[1,3),[5,7)}", "{}"], _multi(_int4s)),
    Kind("int8multirange", ["{(,-5),[5,)}"], _multi(_int8s)),
    Kind("nummultirange", ["{[1.0,2.50),(3,4]}", "{}"], _multi(_nums)),
    Kind("datemultirange", ["{[2026-01-01,2026-02-01),[2027-01-01,)}"], _multi(_days)),
    Kind("tsmultirange", ["{(,2026-01-01 00:00:00)}"], _multi(_instants)),
    Kind("tstzmultirange", ["{[2026-01-01 00:00:00+00,infinity)}"], _multi(_instants)),
    # What an application makes itself.
    Kind("mood", ["ok", 'so "so"', "bad, worse", "'); drop table", "é"]),
    Kind("email", ["ada@example.org"], _text(20).map("{}@".format)),
    Kind("scores", ["{1,2,NULL}", "[0:1]={7,8}", "{}"]),
    Kind("cheer", ["ok", 'so "so"']),
    Kind("point3", [_composite, "(,,,,,)", '(,"",,"{}","null",)', "(NaN,,infinity,,,)"]),
    Kind("nested", ['("(1,,,,,)","{""(2,x,,,,)"",NULL}")', "(,)"]),
    Kind("place", [_composite, "(,home,,,,)"]),
    Kind("textrange", ['["a,b","c\\"d")', "(,)", "empty"]),
    Kind("textmultirange", ['{["a,b","c\\"d"),[x,y]}', "{}"]),
    Kind("moodrange", ['[ok,"bad, worse")']),
    Kind("extensions.hstore", ['"a"=>NULL, "b"=>"c,\\"d\\""', "", '"\x1e"=>"NULL"'], extension=True),
    Kind("extensions.citext", ["Ada", ""], _text(), extension=True),
    Kind("extensions.ltree", ["a.b_1.c", ""], extension=True),
    Kind("extensions.cube", ["(0.1, 2),(3, 4)"], extension=True),
)  # fmt: skip

# Built-in types that no column can hold a value of, with the reason.
WITHOUT_VALUES = {
    "pg_node_tree": "accepts no input: the server's own parse trees",
    "pg_ndistinct": "accepts no input: extended statistics",
    "pg_dependencies": "accepts no input: extended statistics",
    "pg_mcv_list": "accepts no input: extended statistics",
    "pg_brin_bloom_summary": "accepts no input: an index's own pages",
    "pg_brin_minmax_multi_summary": "accepts no input: an index's own pages",
    "gtsvector": "accepts no input: an index's own pages",
}
