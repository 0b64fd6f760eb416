"""What a PromQL expression asks for: its metrics, and what it wants their labels to be.

Knows enough of the language to find names, and of the daemon's own page to say which of them exist. Must not know
where an expression stands: rules and dashboards use the same.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from daemon.metrics import Metrics
from daemon.verdict import KINDS
from daemon.verification import Verification, shown

# Series that are not the daemon's: Prometheus' own.
OTHERS = frozenset({"up", "ALERTS", "scrape_duration_seconds", "scrape_samples_scraped"})
# Labels that Prometheus puts on every series it scrapes, or on an alert's.
_ADDED = frozenset({"job", "instance", "__name__", "alertname", "alertstate", "severity"})
_WORDS = frozenset(
    ["by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "bool", "offset", "start", "end", "inf", "nan"]
)  # fmt: skip
_STRING = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_RANGE = re.compile(r"\[[^\]]*\]")
_VARIABLE = re.compile(r"\$\{?\w+(?::\w+)?\}?")
_NUMBER = re.compile(r"\b\d[\w.]*|\b0x[0-9a-f]+")
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?(\s*\()?")
_MATCHER = re.compile(r"(\w+)\s*(=~|!~|!=|=)\s*(?:\"((?:\\.|[^\"\\])*)\"|'((?:\\.|[^'\\])*)')")


@dataclass(frozen=True)
class Matcher:
    """`state="closed"`."""

    label: str
    how: str
    value: str


@dataclass(frozen=True)
class Asked:
    """A metric, and what its labels must be."""

    metric: str
    matchers: tuple[Matcher, ...] = ()


def asked(expression: str) -> list[Asked]:
    """Every selector of an expression. Grafana's variables stand for anything."""
    kept: list[str] = []

    def keep(found: re.Match[str]) -> str:
        kept.append(found[0])
        return f'"{len(kept) - 1}"'

    # Strings first: whatever is in them is no syntax.
    text = _STRING.sub(keep, expression)
    text = _RANGE.sub(" ", _GROUPING.sub(" ", text))
    text = _VARIABLE.sub(" ", text)
    selectors = []
    for found in _SELECTOR.finditer(_without_numbers(text)):
        name, matchers, call = found.groups()
        if call or name.lower() in _WORDS:
            continue
        whole = re.sub(r'"(\d+)"', lambda number: kept[int(number[1])], matchers or "")
        parts = tuple(Matcher(label, how, one or other) for label, how, one, other in _MATCHER.findall(whole))
        selectors.append(Asked(name, parts))
    return selectors


def series() -> list[tuple[str, dict[str, str]]]:
    """Every series a daemon shows before anything has happened, with one table watched: name and labels."""
    metrics = Metrics()
    metrics.tables_watched(["public.story"])
    metrics.rows_copied("public.story", 0)
    done = Verification("public.story", "running").done()
    metrics.show_verifications(lambda: [shown(done.table, done)])
    metrics.show_verdict(KINDS, dict)
    families = text_string_to_metric_families(metrics.render()[0].decode())
    return [(sample.name, dict(sample.labels)) for family in families for sample in family.samples]


def unknown(expression: str, known: Iterable[tuple[str, dict[str, str]]], recorded: Collection[str] = ()) -> list[str]:
    """What of an expression no daemon has, a sentence each; `recorded`: names that rules record."""
    labels: dict[str, list[dict[str, str]]] = {}
    for name, given in known:
        labels.setdefault(name, []).append(given)
    wrong = []
    for one in asked(expression):
        if one.metric in OTHERS or one.metric in recorded:
            continue
        if one.metric not in labels:
            wrong.append(f"{one.metric} is no metric of outboxd")
            continue
        for matcher in one.matchers:
            if matcher.label in _ADDED or "$" in matcher.value:
                continue
            values = [given[matcher.label] for given in labels[one.metric] if matcher.label in given]
            if not any(_fits(matcher, value) for value in values):
                wrong.append(f'{one.metric} has no series with {matcher.label}{matcher.how}"{matcher.value}"')
    return wrong


def _fits(matcher: Matcher, value: str) -> bool:
    if matcher.label == "table":  # whatever tables there are
        return True
    same = re.fullmatch(matcher.value, value) if matcher.how.endswith("~") else matcher.value == value
    # One that excludes a value must name one that there is, or it excludes nothing.
    return bool(same)


def _without_numbers(text: str) -> str:
    """Without numbers outside of strings: `1e9` and `0x1f` look like names."""
    pieces = re.split(r'("\d+")', text)
    return "".join(piece if piece.startswith('"') else _NUMBER.sub(" ", piece) for piece in pieces)
