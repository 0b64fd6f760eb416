"""Lines, areas, bars and states in a box, as SVG.

Knows geometry. Must not know where values are from.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.deploy.ink import MUTED, NAMED, Box, Marks, coloured, number, text
from tests.deploy.recorded import Line

_GRID = "#262a30"
_PALETTE = (
    "#73bf69",
    "#f2cc0c",
    "#5794f2",
    "#ff780a",
    "#f2495c",
    "#b877d9",
    "#8ab8ff",
    "#fade2a",
    "#37a2a2",
    "#c0d8ff",
    "#ca95e5",
    "#ffb357",
    "#1f60c4",
    "#ff7383",
    "#96d98d",
    "#a16a00",
)
_LEFT, _BOTTOM = 46.0, 38.0

Named = Sequence[tuple[str, Line]]


@dataclass(frozen=True)
class Chart:
    box: Box
    field: dict[str, Any]
    start: float
    seconds: float
    marks: Marks

    def series(self, lines: Named) -> str:
        custom = self.field["custom"]
        stacked = custom["stacking"]["mode"] == "normal"
        layers = _stacked(lines) if stacked else [(line.points, ()) for _, line in lines]
        top = _ceiling(max((value for points, _ in layers for _, value in points), default=1), self.field)
        made = [self._axes(top), self._annotations()]
        bars = custom["drawStyle"] == "bars"
        for at, (points, floor) in reversed(list(enumerate(layers))):
            colour = _PALETTE[at % len(_PALETTE)]
            if bars:
                made.append(self._bars(points, floor, top, colour))
            else:
                made.append(self._line(points, floor, top, colour, custom["fillOpacity"] / 100))
        return "".join([*made, self._thresholds(top), self._legend(lines)])

    def states(self, lines: Named) -> str:
        """A strip for each line, its values as colours and words."""
        box, left = self.box, self.box.x + max((len(name) for name, _ in lines), default=0) * 6 + 8
        high = (box.height - 16) / max(1, len(lines))
        made = []
        for at, (name, line) in enumerate(lines):
            y = box.y + at * high
            made.append(text(left - 8, y + high / 2 + 4, name, colour=MUTED, anchor="end"))
            for begin, end, value in _spans(line, self.start):
                x, width = self._x(begin, left), self._x(end, left) - self._x(begin, left)
                word, colour = coloured(self.field, value)
                word = word or number(value, self.field["unit"], self.field.get("decimals"))
                made.append(
                    f'<rect x="{x:.1f}" y="{y + 2:.1f}" width="{max(width, 1):.1f}" height="{high - 4:.1f}" fill="{colour}"/>'
                )
                if width > len(word) * 6.2 + 6:
                    made.append(text(x + 5, y + high / 2 + 4, word, colour="#fff"))
        return "".join([*made, self._times(left, box.bottom)])

    def _x(self, at: float, left: float | None = None) -> float:
        left = self.box.x + _LEFT if left is None else left
        return left + at / self.seconds * (self.box.x + self.box.width - left)

    def _y(self, value: float, top: float) -> float:
        high = self.box.height - _BOTTOM
        return self.box.y + high * (1 - min(value, top) / top)

    def _axes(self, top: float) -> str:
        made = []
        for part in range(5):
            y = self._y(top * part / 4, top)
            made.append(f'<path d="M{self._x(0):.0f} {y:.1f}H{self._x(self.seconds):.0f}" stroke="{_GRID}"/>')
            if part % 2 == 0:
                made.append(
                    text(
                        self._x(0) - 5,
                        y + 4,
                        number(top * part / 4, self.field["unit"]),
                        size=10,
                        colour=MUTED,
                        anchor="end",
                    )
                )
        return "".join([*made, self._times(None, self.box.bottom - _BOTTOM + 15)])

    def _times(self, left: float | None, y: float) -> str:
        every = 30 if self.box.width > 500 else 60
        marks = range(every, int(self.seconds), every)
        return "".join(
            text(self._x(at, left), y, f"{at // 60}:{at % 60:02}", size=10, colour=MUTED, anchor="middle")
            for at in marks
        )

    def _annotations(self) -> str:
        y, high = self.box.y, self.box.height - _BOTTOM
        made = []
        for begin, end, colour in self.marks.stretches:
            x, width = self._x(begin), max(self._x(end) - self._x(begin), 1)
            made.append(
                f'<rect x="{x:.1f}" y="{y:.0f}" width="{width:.1f}" height="{high:.0f}" fill="{colour}" opacity=".12"/>'
            )
        for at, colour in self.marks.instants:
            made.append(
                f'<path d="M{self._x(at):.1f} {y:.0f}v{high:.0f}" stroke="{colour}" stroke-dasharray="3 3" opacity=".8"/>'
            )
        return "".join(made)

    def _thresholds(self, top: float) -> str:
        if self.field["custom"]["thresholdsStyle"]["mode"] == "off":
            return ""
        return "".join(
            f'<path d="M{self._x(0):.0f} {self._y(step["value"], top):.1f}H{self._x(self.seconds):.0f}"'
            f' stroke="{NAMED[step["color"]]}" stroke-dasharray="6 4" opacity=".8"/>'
            for step in self.field["thresholds"]["steps"]
            if step["value"] is not None and step["value"] <= top
        )

    def _line(self, points: "Points", floor: "Points", top: float, colour: str, opacity: float) -> str:
        made = []
        for piece in _pieces(points):
            over = [(self._x(at - self.start), self._y(value, top)) for at, value in piece]
            below = dict(floor)
            under = [(self._x(at - self.start), self._y(below.get(at, 0.0), top)) for at, _ in reversed(piece)]
            made.append(f'<path d="{_path(over + under)}Z" fill="{colour}" opacity="{opacity:g}"/>')
            made.append(
                f'<path d="{_path(over)}" fill="none" stroke="{colour}" stroke-width="1.4" stroke-linejoin="round"/>'
            )
        return "".join(made)

    def _bars(self, points: "Points", floor: "Points", top: float, colour: str) -> str:
        below = dict(floor)
        wide = self._x(2) - self._x(0) - 0.4
        parts = []
        for at, value in points:
            y, base = self._y(value, top), self._y(below.get(at, 0.0), top)
            if base - y >= 0.3:
                parts.append(f"M{self._x(at - self.start) - wide / 2:.1f} {base:.1f}h{wide:.1f}V{y:.1f}h{-wide:.1f}z")
        return f'<path d="{"".join(parts)}" fill="{colour}" opacity=".85"/>' if parts else ""

    def _legend(self, lines: Named) -> str:
        """Names of the lines that are not flat at 0; of all, when all are."""
        named = [(at, name, any(value for _, value in line.points)) for at, (name, line) in enumerate(lines)]
        x, y, made = self.box.x + 2, self.box.bottom - 3, []
        for at, name, _ in [one for one in named if one[2]] or named:
            width = len(name) * 5.8 + 26
            if x + width > self.box.x + self.box.width + 16:
                made.append(text(x, y, "…", colour=MUTED))
                break
            colour = _PALETTE[at % len(_PALETTE)]
            made.append(f'<rect x="{x:.0f}" y="{y - 6:.0f}" width="12" height="4" rx="1" fill="{colour}"/>')
            made.append(text(x + 16, y, name, colour=MUTED))
            x += width
        return "".join(made)


Points = Sequence[tuple[float, float]]


def _stacked(lines: Named) -> list[tuple[Points, Points]]:
    """Each line on top of those before it; what it stands on."""
    sums: dict[float, float] = {}
    layers: list[tuple[Points, Points]] = []
    for _, line in lines:
        floor = [(at, sums.get(at, 0.0)) for at, _ in line.points]
        for at, value in line.points:
            sums[at] = sums.get(at, 0.0) + value
        layers.append(([(at, sums[at]) for at, _ in line.points], floor))
    return layers


def _pieces(points: Points) -> Iterable[Points]:
    """Cut where values are missing."""
    begin = 0
    for at in range(1, len(points) + 1):
        if at == len(points) or points[at][0] - points[at - 1][0] > 5:
            yield points[begin:at]
            begin = at


def _spans(line: Line, start: float) -> Iterable[tuple[float, float, float]]:
    """Stretches of one value, in seconds of the run."""
    for piece in _pieces(line.points):
        begin = 0
        for at in range(1, len(piece) + 1):
            if at == len(piece) or piece[at][1] != piece[begin][1]:
                end = piece[at][0] if at < len(piece) else piece[-1][0]
                yield piece[begin][0] - start, end - start, piece[begin][1]
                begin = at


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Only where it bends: most lines are flat for most of the time."""
    kept = [
        point
        for at, point in enumerate(points)
        if at in (0, len(points) - 1) or not points[at - 1][1] == point[1] == points[at + 1][1]
    ]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in kept)


def _ceiling(value: float, field: dict[str, Any]) -> float:
    """A round number above all values."""
    if "max" in field:
        return float(field["max"])
    if value <= 0:
        return 1.0
    scale = 1.0
    while field["unit"] == "bytes" and value / scale >= 1000:
        scale *= 1024
    power = 10.0 ** math.ceil(math.log10(value / scale))
    fitting = (scale * power * part for part in (0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1, 2))
    return next(top for top in fitting if top >= value * 1.02)
