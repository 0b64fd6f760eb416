"""Draws the dashboard as an SVG from its JSON and the recorded run: a picture where no Grafana can be had.

    python -m tests.deploy.draw

Knows as much of Grafana's JSON as `deploy/grafana/dashboard.py` writes, and how Grafana looks, roughly. Must not know which
panels there are.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.grafana import dashboard
from tests.deploy.ink import BLUE, INK, MUTED, NAMED, RED, Box, Marks, coloured, number, text
from tests.deploy.plot import Chart
from tests.deploy.recorded import Line, Recorded, recorded

FILE = Path(__file__).parents[2] / "docs" / "dashboard.svg"
# What fits a page; the rest of the dashboard is tested and not drawn.
SHOWN = ("Verdict", "Lag and latency", "Throughput", "Breakers and errors", "Consistency")
_WIDTH, _UNIT, _GAP, _TOP = 1240.0, 25.0, 6.0, 46.0
_COLUMN = (_WIDTH - 2 * _GAP) / 24
_PAPER, _CARD, _EDGE = "#111217", "#181b1f", "#2a2d33"
_FONT = "Inter,'Helvetica Neue',Helvetica,Arial,'DejaVu Sans',sans-serif"

Json = dict[str, Any]


def draw(board: Json, run: Recorded) -> str:
    marks = _marks(board, run)
    panels = list(_shown(board["panels"]))
    height = _TOP + max(_box(panel).bottom for panel in panels) + _GAP
    body = "".join(_panel(panel, run, marks) for panel in panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {height:g}" font-family="{_FONT}" font-size="11">'
        f"<title>The dashboard of outboxd, drawn from recorded samples of a real run</title>"
        f'<rect width="100%" height="100%" fill="{_PAPER}"/>{_header(board, run)}'
        f'<g transform="translate(0 {_TOP:g})">{body}</g></svg>\n'
    )


def _shown(panels: Sequence[Json]) -> Sequence[Json]:
    """Panels of these rows, and what is below a row that is left out moved up."""
    kept: list[Json] = []
    up, left = 0, None  # where a row that is left out begins
    for panel in panels:
        grid = panel["gridPos"]
        if panel["type"] == "row":
            up += 0 if left is None else grid["y"] - left
            left = None if panel["title"] in SHOWN else grid["y"]
        if left is None:
            kept.append(panel | {"gridPos": grid | {"y": grid["y"] - up}})
    return kept


def _box(panel: Json) -> Box:
    grid = panel["gridPos"]
    return Box(
        _GAP + grid["x"] * _COLUMN + _GAP / 2,
        grid["y"] * _UNIT,
        grid["w"] * _COLUMN - _GAP,
        grid["h"] * _UNIT - _GAP,
    )


def _header(board: Json, run: Recorded) -> str:
    pills = (("Data source", "Prometheus"), ("Job", "outboxd"), ("Instance", "All"))
    x, made = 118.0, [text(12, 29, board["title"], size=19, weight=600)]
    for name, value in pills:
        width = 6.4 * (len(name) + len(value)) + 26
        made.append(f'<rect x="{x}" y="13" width="{width:.0f}" height="23" rx="3" fill="{_CARD}" stroke="{_EDGE}"/>')
        made.append(text(x + 8, 28, name, colour=MUTED) + text(x + width - 8, 28, value, anchor="end"))
        x += width + 8
    for one in board["annotations"]["list"]:
        made.append(f'<circle cx="{x + 12}" cy="24.5" r="4" fill="{NAMED[one["iconColor"]]}"/>')
        made.append(text(x + 21, 28, one["name"], colour=MUTED))
        x += 6.2 * len(one["name"]) + 30
    seconds = run.end - run.start
    made.append(text(_WIDTH - 12, 28, f"a recorded run of {seconds / 60:.0f} minutes", colour=MUTED, anchor="end"))
    return "".join(made)


def _marks(board: Json, run: Recorded) -> Marks:
    """Stretches and instants, as seconds of the run."""
    stretches: list[tuple[float, float, str]] = []
    instants: list[tuple[float, str]] = []
    for one in board["annotations"]["list"]:
        for line in run.range(one["expr"]):
            if one["useValueForTime"]:
                at = {value / 1000 - run.start for _, value in line.points}
                instants += [(each, BLUE) for each in at if 0 <= each <= run.end - run.start]
            else:
                stretches += [(begin, end, RED) for begin, end in _joined(line, run.start)]
    return Marks(tuple(stretches), tuple(sorted(set(instants))))


def _joined(line: Line, start: float) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for at, _ in line.points:
        if joined and at - start - joined[-1][1] <= 5:
            joined[-1] = (joined[-1][0], at - start)
        else:
            joined.append((at - start, at - start))
    return joined


def _panel(panel: Json, run: Recorded, marks: Marks) -> str:
    box = _box(panel)
    if panel["type"] == "row":
        return text(box.x + 2, box.y + 17, f"⌄  {panel['title']}", size=13, weight=600)
    lines = [
        (_legend(target["legendFormat"], line), line)
        for target in panel["targets"]
        for line in (run.instant if target["instant"] else run.range)(target["expr"])
    ]
    card = (
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="3"'
        f' fill="{_CARD}" stroke="{_EDGE}"/>'
    )
    title = text(box.x + 9, box.y + 17, panel["title"], size=12, weight=600)
    if panel["type"] == "stat":
        return card + _stat(panel, box, lines)
    chart = Chart(box.inner(26), panel["fieldConfig"]["defaults"], run.start, run.end - run.start, marks)
    return card + title + (chart.states(lines) if panel["type"] == "state-timeline" else chart.series(lines))


def _legend(form: str, line: Line) -> str:
    for label, value in line.labels.items():
        form = form.replace(f"{{{{{label}}}}}", value.replace('"', ""))
    return form.replace(":9631", "")


def _stat(panel: Json, box: Box, lines: list[tuple[str, Line]]) -> str:
    field = panel["fieldConfig"]["defaults"]
    shown, colour = field.get("noValue", "No data"), MUTED
    if lines:
        value = lines[-1][1].points[-1][1]
        word, colour = coloured(field, value)
        shown = (
            lines[-1][0]
            if panel["options"]["textMode"] == "name"
            else word or number(value, field["unit"], field.get("decimals"))
        )
    large = box.height > 150
    size = min(30.0 if large else 24.0, (box.width - 16) / max(1, len(shown)) / 0.64)
    middle = box.x + box.width / 2, box.y + box.height / 2 + (14 if large else 16)
    if panel["options"]["colorMode"] == "background":
        paper = f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="3" fill="{colour}"/>'
        title = text(box.x + 9, box.y + 18, panel["title"], size=12, weight=600, colour="#fff")
        return paper + title + text(*middle, shown, size=size, weight=600, anchor="middle", colour="#fff")
    title = text(box.x + 9, box.y + 18, panel["title"], size=12, weight=600, colour=INK)
    return title + text(*middle, shown, size=size, weight=600, anchor="middle", colour=colour)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, recorded(Path(folder)) as recording:
        FILE.write_text(draw(json.loads(dashboard.FILE.read_text()), recording), encoding="utf-8")
    print(f"{FILE.stat().st_size / 1000:.0f} kB: {FILE.name}")
