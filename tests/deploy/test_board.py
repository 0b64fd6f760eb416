"""The Grafana dashboard against a real run: each query of it is asked of a real Prometheus that holds the recorded samples."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from deploy.grafana import dashboard
from tests.deploy.prometheus import MissingPrometheus, alerts, program
from tests.deploy.promql import asked as selectors
from tests.deploy.promql import series, unknown
from tests.deploy.recorded import Recorded, recorded

BOARD: dict[str, Any] = json.loads(dashboard.FILE.read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
ANNOTATIONS = BOARD["annotations"]["list"]
EXPRESSIONS = {
    **{f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]},
    **{f"annotation {one['name']}": one["expr"] for one in ANNOTATIONS},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    try:
        program("prometheus")
    except MissingPrometheus as missing:
        pytest.skip(str(missing))
    with recorded(tmp_path_factory.mktemp("prometheus")) as one:
        yield one


def asked(run: Recorded, panel: dict[str, Any]) -> list[str]:
    """What is wrong with a panel's queries, by its title."""
    wrong = []
    for target in panel["targets"]:
        ask = run.instant if target["instant"] else run.range
        if not ask(target["expr"]):
            wrong.append(f"panel {panel['title']!r}: query {target['refId']} returns nothing: {target['expr']}")
    return wrong


# One test for all of them, not one each: each of pytest's processes that took one would start a Prometheus.
def test_every_query_of_every_panel_returns_data(run: Recorded) -> None:
    wrong = [each for panel in PANELS for each in asked(run, panel)]
    assert not wrong, "\n".join(wrong)


def test_every_part_of_a_query_selects_something(run: Recorded) -> None:
    """`a or b` returns data while b is misspelled: so each selector is asked alone."""
    wrong = []
    for name, expr in EXPRESSIONS.items():
        for one in selectors(expr):
            matchers = ",".join(f'{each.label}{each.how}"{each.value}"' for each in one.matchers)
            if not run.range(f"count({one.metric}{{{matchers}}})"):
                wrong.append(f"{name}: {one.metric}{{{matchers}}} selects nothing")
    assert not wrong, "\n".join(wrong)


def test_annotations_mark_what_happened(run: Recorded) -> None:
    """The breaker opened and closed; the daemons were started three times, the first two before the first answer."""
    for one in ANNOTATIONS:
        lines = run.range(one["expr"])
        assert lines, f"annotation {one['name']!r} marks nothing: {one['expr']}"
        if one["useValueForTime"]:
            starts = {value / 1000 for line in lines for _, value in line.points}
            assert len([at for at in starts if run.start <= at <= run.end]) >= 1
        else:
            assert {line.labels["breaker"] for line in lines} == {"target"}
            assert all(run.start < line.points[0][0] < line.points[-1][0] < run.end for line in lines)


def test_rows_that_somebody_changed_on_the_target_show_until_they_are_repaired(run: Recorded) -> None:
    """Of a large table a few, of a small one more than 5 %."""
    shown = {panel["title"]: panel["targets"][0]["expr"] for panel in PANELS}
    found = {line.labels["table"]: line.points for line in run.range(shown["Consistency, by table"])}
    worst = {table: min(value for _, value in points) for table, points in found.items()}
    assert 0.95 < worst.pop('public."Story"') < 0.9999
    assert worst.pop("public.visit") < 0.95
    assert set(worst.values()) == {points[-1][1] for points in found.values()} == {1.0}
    assert {value for line in run.range(shown["Verdict, over time"]) for _, value in line.points} >= {0, 4}
    repaired = run.range("sum by (table) (max_over_time(outboxd_repaired_rows_total[1h]))")
    assert {line.labels["table"]: line.points[-1][1] for line in repaired if line.points[-1][1]} == {
        'public."Story"': 53, "public.visit": 20,
    }  # fmt: skip


def test_variables_find_their_values(run: Recorded) -> None:
    found = {}
    for one in BOARD["templating"]["list"]:
        if one["type"] == "query":
            selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", one["definition"]).groups()  # type: ignore[union-attr]
            found[one["name"]] = run.values(label, selector)
    assert found == {"job": ["outboxd"], "instance": ["outboxd-0:9631", "outboxd-1:9631"]}


@pytest.mark.parametrize(
    ("expr", "says"),
    [
        ("max(outboxd_lag_secons{})", "panel 'Lag': query A returns nothing: max(outboxd_lag_secons{})"),
        ("outboxd_lag_seconds{} > 1e9", "panel 'Lag': query A returns nothing: outboxd_lag_seconds{} > 1e9"),
    ],
)
@pytest.mark.parametrize("instant", [True, False])
def test_a_query_that_returns_nothing_is_told_by_its_panels_title(
    run: Recorded, expr: str, says: str, instant: bool
) -> None:
    panel = {"title": "Lag", "targets": [{"refId": "A", "expr": expr, "instant": instant}]}
    assert asked(run, panel) == [says]


# -- without a Prometheus --------------------------------------------------------------------------------------------


def test_the_file_is_what_the_generator_writes() -> None:
    assert dashboard.FILE.read_text() == dashboard.text(), "run: python -m deploy.grafana.dashboard"


def test_ids_are_unique_and_panels_do_not_overlap() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for one, other in combinations(BOARD["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, f"{one['title']!r} and {other['title']!r} overlap"
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in BOARD["panels"])


def test_a_panel_says_what_a_bad_value_means() -> None:
    """In words, with a unit, and with where the runbook goes on."""
    for panel in PANELS:
        assert len(panel["description"].split("\n")[0]) > 30, panel["title"]
        assert re.findall(r"\]\(\$\{runbook\}#outboxd[a-z]+\)", panel["description"]), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        sources = {panel["datasource"]["uid"], *(target["datasource"]["uid"] for target in panel["targets"])}
        assert sources == {"${datasource}"}, panel["title"]


def test_each_alert_has_a_panel_and_each_panels_alert_exists() -> None:
    """The runbook has an anchor for each alert, which is where a panel leads."""
    anchors = {anchor for panel in PANELS for anchor in re.findall(r"#(outboxd[a-z]+)\)", panel["description"])}
    assert anchors == {rule["alert"].lower() for rule in alerts()}


def test_metrics_and_label_values_are_those_of_the_daemon() -> None:
    known = series()
    wrong = [f"{name}: {each}" for name, expr in EXPRESSIONS.items() for each in unknown(expr, known)]
    assert not wrong, "\n".join(wrong)


def test_variables_reach_every_part_of_a_query() -> None:
    for name, expr in EXPRESSIONS.items():
        for one in selectors(expr):
            given = {(each.label, each.how, each.value) for each in one.matchers}
            assert given >= {("job", "=", "$job"), ("instance", "=~", "$instance")}, f"{name}: {one.metric}"


def test_provisioning_leads_to_the_file() -> None:
    """Grafana reads these two; compose.yaml mounts them and the dashboard."""
    folder = Path(dashboard.__file__).parent / "provisioning"
    assert "path: /etc/grafana/dashboards" in (folder / "dashboards/outboxd.yaml").read_text()
    assert "type: prometheus" in (folder / "datasources/outboxd.yaml").read_text()
