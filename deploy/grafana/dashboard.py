"""Writes outboxd.json, the dashboard that Grafana reads, from `rows.py` and `verdict.py`, which people edit.

Run `python -m deploy.grafana.dashboard` in the checkout after an edit; a test fails until that was done. Knows Grafana's
JSON (schema 39, Grafana 10.4 and later). Must not know what is shown.
"""

import json
from pathlib import Path
from typing import Any

from deploy.grafana.panels import BAD, Annotation, Panel, Query
from deploy.grafana.rows import ANNOTATIONS, ROWS

FILE = Path(__file__).with_name("outboxd.json")
RUNBOOK = (
    "https://outboxd.example/RUNBOOK.md"  # as in the alerts: put your copy somewhere, and its address into the variable
)
_WIDTH = 24
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_SELECTION = 'job="$job",instance=~"$instance"'
_TYPES = {"stat": "stat", "timeline": "state-timeline"}

Json = dict[str, Any]

_ALL: Json = {
    "multi": True,
    "includeAll": True,
    "allValue": ".*",
    "current": {"text": ["All"], "value": ["$__all"], "selected": True},
}


def dashboard() -> Json:
    """The whole of it. No `id`: Grafana gives its own."""
    return {
        "uid": "outboxd",
        "title": "outboxd",
        "description": "Changes on their way from your Postgres to Supabase. Every panel says what a bad value means.",
        "tags": ["outboxd", "postgres", "supabase"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [{"title": "Runbook", "type": "link", "url": "${runbook}", "icon": "doc", "targetBlank": True}],
        "templating": {"list": _variables()},
        "annotations": {"list": [_annotation(each) for each in ANNOTATIONS]},
        "panels": _panels(),
    }


def text() -> str:
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


def _variables() -> list[Json]:
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1},
        # One job a relay: its leader and whoever stands by. Leaders are counted by it.
        _labels("job", "label_values(outboxd_build_info, job)"),
        _labels("instance", 'label_values(outboxd_build_info{job="$job"}, instance)') | _ALL,
        {
            "name": "runbook",
            "type": "constant",
            "hide": 2,
            "query": RUNBOOK,
            "current": {"text": RUNBOOK, "value": RUNBOOK},
        },
    ]


def _labels(name: str, query: str) -> Json:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"{name}s"},
        "refresh": 2,
        "sort": 1,
    }


def _annotation(one: Annotation) -> Json:
    return {
        "name": one.name,
        "datasource": _SOURCE,
        "enable": True,
        "expr": _select(one.expr),
        "iconColor": one.colour,
        "step": "15s",
        "titleFormat": one.name,
        "textFormat": one.text,
        "useValueForTime": one.at_value,
    }


def _panels() -> list[Json]:
    """Rows below each other; in a row from left to right, and on below the tallest when it is full."""
    made: list[Json] = []
    y = 0
    for row in ROWS:
        made.append(
            {"type": "row", "title": row.title, "collapsed": False, "panels": [], "gridPos": _grid(0, y, 24, 1)}
        )
        skyline = [y + 1] * _WIDTH
        for panel in row.panels:
            x = _place(skyline, panel.width)
            top = max(skyline[x : x + panel.width])
            made.append(_panel(panel) | {"gridPos": _grid(x, top, panel.width, panel.height)})
            skyline[x : x + panel.width] = [top + panel.height] * panel.width
        y = max(skyline)
    return [each | {"id": number} for number, each in enumerate(made, 1)]


def _place(skyline: list[int], width: int) -> int:
    """Where it comes highest, then leftmost."""
    return min(range(_WIDTH - width + 1), key=lambda x: (max(skyline[x : x + width]), x))


def _grid(x: int, y: int, w: int, h: int) -> Json:
    return {"x": x, "y": y, "w": w, "h": h}


def _panel(panel: Panel) -> Json:
    books = ", ".join(f"[{alert}](${{runbook}}#{alert.lower()})" for alert in panel.alerts)
    return {
        "type": _TYPES.get(panel.kind, "timeseries"),
        "title": panel.title,
        "description": f"{panel.says}\n\nRunbook: {books}",
        "datasource": _SOURCE,
        "targets": [_target(panel, at, query) for at, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel),
    }


def _target(panel: Panel, at: int, query: Query) -> Json:
    return {
        "refId": chr(ord("A") + at),
        "datasource": _SOURCE,
        "editorMode": "code",
        "expr": _select(query.expr),
        "legendFormat": query.legend or "__auto",
        "instant": panel.kind == "stat",
        "range": panel.kind != "stat",
    }


def _select(expr: str) -> str:
    return expr.replace("{@", "{" + _SELECTION).replace("$i]", "$__rate_interval]")


def _field(panel: Panel) -> Json:
    steps = panel.steps or ((None, "green"),)
    coloured = {"mode": "thresholds"} if panel.kind in ("stat", "timeline") else {"mode": "palette-classic"}
    field: Json = {
        "unit": panel.unit,
        "color": coloured,
        "thresholds": {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in steps]},
        "mappings": _mappings(panel),
        "custom": _custom(panel),
    }
    if panel.without:
        field["noValue"] = panel.without
    if panel.kind not in ("stat", "timeline"):
        field["min"] = 0
    if panel.decimals is not None:
        field["decimals"] = panel.decimals
    if panel.top is not None:
        field["max"] = panel.top
    return field


def _mappings(panel: Panel) -> list[Json]:
    if not panel.codes:
        return []
    options = {
        f"{code:g}": {"text": name, "color": colour, "index": at} for at, (code, name, colour) in enumerate(panel.codes)
    }
    return [{"type": "value", "options": options}]


def _custom(panel: Panel) -> Json:
    """How a series is drawn."""
    if panel.kind == "stat":
        return {}
    if panel.kind == "timeline":
        return {"fillOpacity": 80, "lineWidth": 0, "spanNulls": False}
    bars, stacked = panel.kind == "bars", panel.kind in ("bars", "area")
    return {
        "drawStyle": "bars" if bars else "line",
        "fillOpacity": 70 if bars else 30 if stacked else 8,
        "lineWidth": 0 if bars else 1,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {
            "mode": "dashed" if any(colour == BAD or value for value, colour in panel.steps) else "off"
        },
    }


def _options(panel: Panel) -> Json:
    if panel.kind == "stat":
        return {
            "colorMode": "background" if panel.title == "Verdict" else "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "name" if panel.title == "Version" else "auto",
        }
    if panel.kind == "timeline":
        return {"mergeValues": True, "rowHeight": 0.8, "showValue": "auto", "legend": {"showLegend": False}}
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
