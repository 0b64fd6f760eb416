"""What a panel is, and the shapes that queries take.

Must not know which panels there are, nor Grafana's JSON.
In queries `{@` stands for the selection of job and instance, and `$i` for the interval Grafana finds right for rates.
"""

from dataclasses import dataclass

Steps = tuple[tuple[float | None, str], ...]  # from this value on, this colour
Codes = tuple[tuple[float, str, str], ...]  # this value reads so, in this colour


@dataclass(frozen=True)
class Query:
    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """`says` is for whoever looks at a bad value at night; `alerts` are their anchors in the runbook."""

    title: str
    kind: str  # stat, graph, bars, area, timeline
    queries: tuple[Query, ...]
    says: str
    alerts: tuple[str, ...] = ()
    unit: str = "short"
    width: int = 8
    height: int = 7
    steps: Steps = ()
    codes: Codes = ()
    top: float | None = None
    decimals: int | None = None  # as many as Grafana finds right
    without: str = ""  # what a stat reads while there is no value


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Annotation:
    """`at_value`: the value is the time, in milliseconds; else each stretch of values above 0 is marked."""

    name: str
    expr: str
    text: str
    colour: str
    at_value: bool = False


GOOD, FAIR, POOR, BAD, CALM = "green", "yellow", "orange", "red", "blue"

# A process that leads no longer keeps what it last knew; only the leader's word counts.
LEADS = "and on (job, instance) (outboxd_leader{@} == 1)"
STATES: Codes = (
    (1, "starting", CALM),
    (2, "catching up", FAIR),
    (3, "streaming", GOOD),
    (4, "paused", BAD),
    (5, "standby", "text"),
    (6, "stopping", "purple"),
)
BREAKER: Codes = ((0, "closed", GOOD), (1, "half open", FAIR), (2, "open", BAD), (3, "open", BAD))
LISTENER: Codes = ((0, "gone", BAD), (1, "connected", GOOD))
# Of all rows those that are equal: from where on the alerts fire.
CONSISTENT: Steps = ((None, BAD), (0.95, POOR), (0.9999, GOOD))


def coded(metric: str, by: str, codes: Codes) -> str:
    """A set of 0/1 series as one number, which a timeline can colour."""
    names = ((code, name.replace(" ", "_")) for code, name, _ in codes)
    terms = (f"{code:g} * max by ({by}) ({metric.replace('%', name)})" for code, name in names if code)
    return " + ".join(terms)


def leaders_breaker(name: str) -> str:
    state = f'outboxd_breaker_state{{@,breaker="{name}",state="%"}} {LEADS}'
    return coded(state, "breaker", BREAKER[:3])


def differing(by: str = "") -> str:
    """Rows that differ, as a share, as the alerts have it: of those of the source and the extra ones of the target."""
    total = f"sum by ({by})" if by else "sum"
    drift, rows = f"outboxd_drift_rows{{@}} {LEADS}", f"outboxd_verified_rows{{@}} {LEADS}"
    extra = f'outboxd_drift_rows{{@,kind="extra"}} {LEADS}'
    return f"{total} ({drift}) / clamp_min({total} ({rows}) + {total} ({extra}), 1)"


def quantiles(
    metric: str, by: str = "", legend: str = "", of: tuple[float, ...] = (0.5, 0.95, 0.99)
) -> tuple[Query, ...]:
    labels = f"le, {by}" if by else "le"
    return tuple(
        Query(f"histogram_quantile({q:g}, sum by ({labels}) (rate({metric}[$i])))", f"{legend}p{q * 100:g}") for q in of
    )


def per_second(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}[$i]))"
