"""Three charts of growth as one SVG: what waits, how many tables, how large a row.

Knows geometry and colours. Must not know how anything was measured.
"""

from collections.abc import Mapping, Sequence

from tests.bench.figures import Results
from tests.bench.growth import SIZES, SYSTEMS, TABLES, size, tables, waiting
from tests.bench.systems import NAMES
from tests.deploy.ink import MUTED, Box, number, text

_WIDTH, _HEIGHT, _GAP = 1240.0, 380.0, 8.0
_PAPER, _CARD, _EDGE, _GRID = "#111217", "#181b1f", "#2a2d33", "#262a30"
_COLOURS = ("#5794f2", "#73bf69", "#f2cc0c", "#ff780a", "#b877d9")
_FONT = "Inter,'Helvetica Neue',Helvetica,Arial,'DejaVu Sans',sans-serif"
_LEFT, _TOP, _BOTTOM = 52.0, 40.0, 52.0

Line = Sequence[float]


def drawn(results: Results) -> str:
    wide = (_WIDTH - 4 * _GAP) / 3
    boxes = [Box(_GAP + at * (wide + _GAP), _GAP, wide, _HEIGHT - 2 * _GAP) for at in range(3)]
    charts = [
        _lines(boxes[0], "A backlog: changes/s of each tenth of it", _tenths(results)),
        _bars(boxes[1], "Watched tables: changes/s", _rates(results, {f"{n} tables": tables(n) for n in TABLES})),
        _bars(boxes[2], "Bytes of a row: changes/s", _rates(results, {_kilobytes(n): size(n) for n in SIZES})),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" font-family="{_FONT}" font-size="11">'
        f"<title>What becomes of the rate as things grow</title>"
        f'<rect width="100%" height="100%" fill="{_PAPER}"/>{"".join(charts)}</svg>\n'
    )


def _kilobytes(size: int) -> str:
    return f"{size / 1000:g} kB"


def _tenths(results: Results) -> dict[str, Line]:
    """By what waited: ten rates."""
    found = {}
    for one in results.all:
        if "tenth 10" in one.values and one.workload == waiting(int(one.workload.split()[-1])):
            found[f"{one.workload.split()[-1]}"] = [one.values[f"tenth {n}"] for n in range(1, 11)]
    return {f"{int(name):,} waiting": rates for name, rates in sorted(found.items(), key=lambda item: int(item[0]))}


def _rates(results: Results, workloads: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """By system and by what is under the bars: medians."""
    rates: dict[str, dict[str, float]] = {}
    for system in SYSTEMS:
        for title, workload in workloads.items():
            if seen := results.spread(workload, system, "rate"):
                rates.setdefault(NAMES[system], {})[title] = seen.middle
    return rates


def _lines(box: Box, title: str, lines: Mapping[str, Line]) -> str:
    top = ceiling(max((rate for line in lines.values() for rate in line), default=1))
    made = [_card(box, title), _grid(box, top)]
    left, wide = box.x + _LEFT, box.width - _LEFT - 16
    made += [
        text(left + wide * (part - 0.5) / 10, _floor(box) + 15, f"{part}0 %", size=10, colour=MUTED, anchor="middle")
        for part in range(1, 11)
    ]
    for line, colour in zip(lines.values(), _COLOURS, strict=False):
        points = [(left + wide * (at + 0.5) / 10, _y(box, rate, top)) for at, rate in enumerate(line)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        made.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"/>')
        made += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in points]
    return "".join([*made, _legend(box, list(lines))])


def _bars(box: Box, title: str, rates: Mapping[str, Mapping[str, float]]) -> str:
    top = ceiling(max((rate for bars in rates.values() for rate in bars.values()), default=1))
    groups = list(dict.fromkeys(group for bars in rates.values() for group in bars))
    made = [_card(box, title), _grid(box, top)]
    left, wide = box.x + _LEFT, (box.width - _LEFT - 16) / max(1, len(groups))
    bar = wide * 0.8 / max(1, len(rates))
    for at, group in enumerate(groups):
        begin = left + wide * (at + 0.1)
        made.append(text(left + wide * (at + 0.5), _floor(box) + 15, group, colour=MUTED, anchor="middle"))
        for nth, (bars, colour) in enumerate(zip(rates.values(), _COLOURS, strict=False)):
            rate = bars.get(group, 0.0)
            x, y = begin + nth * bar, _y(box, rate, top)
            made.append(
                f'<rect x="{x + 1:.1f}" y="{y:.1f}" width="{bar - 2:.1f}" height="{_floor(box) - y:.1f}" fill="{colour}"/>'
            )
            made.append(text(x + bar / 2, y - 4, _short(rate), size=10, anchor="middle"))
    return "".join([*made, _legend(box, list(rates))])


def ceiling(value: float) -> float:
    """The next number above that four lines divide well."""
    power = 1.0
    while value > power * 10:
        power *= 10
    return next(step * power for step in (1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10, 12) if step * power >= value * 1.05)


def _short(rate: float) -> str:
    return f"{rate / 1000:.0f} K" if rate >= 10_000 else f"{rate / 1000:.1f} K"


def _floor(box: Box) -> float:
    return box.bottom - _BOTTOM


def _y(box: Box, rate: float, top: float) -> float:
    return _floor(box) - (_floor(box) - box.y - _TOP) * rate / top


def _card(box: Box, title: str) -> str:
    return (
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="3"'
        f' fill="{_CARD}" stroke="{_EDGE}"/>{text(box.x + 10, box.y + 20, title, size=13, weight=600)}'
    )


def _grid(box: Box, top: float) -> str:
    made = []
    for part in range(5):
        y = _y(box, top * part / 4, top)
        made.append(f'<path d="M{box.x + _LEFT:.0f} {y:.1f}H{box.x + box.width - 12:.0f}" stroke="{_GRID}"/>')
        made.append(text(box.x + _LEFT - 6, y + 4, number(top * part / 4, ""), size=10, colour=MUTED, anchor="end"))
    return "".join(made)


def _legend(box: Box, names: Sequence[str]) -> str:
    x, y, made = box.x + 12, box.bottom - 12, []
    for name, colour in zip(names, _COLOURS, strict=False):
        made.append(f'<rect x="{x:.0f}" y="{y - 8:.0f}" width="10" height="10" rx="1" fill="{colour}"/>')
        made.append(text(x + 15, y, name, colour=MUTED))
        x += len(name) * 6.0 + 32
    return "".join(made)
