"""Words, numbers and colours as they stand in the picture.

Must not know charts, nor the dashboard.
"""

from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

INK, MUTED, RED, BLUE = "#d5d8df", "#8f95a3", "#f2495c", "#5794f2"
NAMED = {
    "green": "#56a64b", "yellow": "#d9a60b", "orange": "#f2711c", "red": "#e02f44", "blue": BLUE, "text": "#5b6170",
    "purple": "#a352cc",
}  # fmt: skip


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float

    @property
    def bottom(self) -> float:
        return self.y + self.height

    def inner(self, top: float) -> "Box":
        """What is left below a title."""
        return Box(self.x + 9, self.y + top, self.width - 18, self.height - top - 5)


@dataclass(frozen=True)
class Marks:
    """Annotations: stretches and instants in seconds, with their colours."""

    stretches: tuple[tuple[float, float, str], ...]
    instants: tuple[tuple[float, str], ...]


def text(
    x: float, y: float, what: str, *, size: float = 11, weight: int = 400, colour: str = INK, anchor: str = "start"
) -> str:
    more = "".join(
        f' {name}="{value}"'
        for name, value, usual in (
            ("font-weight", weight, 400),
            ("text-anchor", anchor, "start"),
            ("font-size", f"{size:g}", "11"),
        )
        if value != usual
    )
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}"{more}>{escape(what)}</text>'


def number(value: float, unit: str, decimals: int | None = None) -> str:
    """As Grafana writes it, shorter. `decimals`, if they are given, are of a share."""
    if unit == "percentunit" and decimals is not None:
        return f"{value * 100:.{decimals}f} %"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        return _seconds(value)
    step = 1024.0 if unit == "bytes" else 1000.0
    names = (" B", " KiB", " MiB", " GiB") if unit == "bytes" else ("", " K", " M", " G")
    at = 0
    while abs(value) >= step and at < len(names) - 1:
        value, at = value / step, at + 1
    return f"{value:.3g}{names[at]}" + ("/s" if unit in ("cps", "ops") else "")


def _seconds(value: float) -> str:
    if value == 0:
        return "0 s"
    if abs(value) < 0.9995:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s" if abs(value) < 120 else f"{value / 60:.3g} min"


def coloured(field: dict[str, Any], value: float) -> tuple[str | None, str]:
    """The word for a value, if there is one, and its colour."""
    for mapping in field["mappings"]:
        if found := mapping["options"].get(f"{value:g}"):
            return found["text"], NAMED[found["color"]]
    colour = "green"
    for step in field["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            colour = step["color"]
    return None, NAMED[colour]
