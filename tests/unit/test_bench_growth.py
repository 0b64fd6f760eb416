"""The page of growth and its picture, from figures made up here."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.bench import growth, page, picture
from tests.bench.figures import Measured, Results

ABOUT = {"cpu": "2 cores, of some kind", "memory": "24576 MB", "postgres": "17.10, twice", "repeats": "1, interleaved"}
_SVG = "{http://www.w3.org/2000/svg}"
SHARES = {"source": 0.1, "target": 0.5, "daemon": 0.2}


def deep(changes: int, last: float) -> Measured:
    values = {f"tenth {number}": 50_000.0 for number in range(1, 10)} | {"tenth 10": last}
    more = {
        "changes": changes,
        "rate": 48_000,
        "first": 50_000,
        "last": last,
        "last / first": last / 50_000,
        "rss": 120,
    }
    return Measured(growth.waiting(changes), "rest", 1, {**values, **more, "requests": 0.25})


def rate(workload: str, system: str, number: float) -> Measured:
    return Measured(
        workload, system, 1, {"rate": number, "rss": 90.0} if system != "native" else {"rate": number}, SHARES
    )


RESULTS = Results([
    deep(1_000_000, 30_000),
    *(rate(growth.tables(number), system, 40_000) for number in growth.TABLES for system in ("native", "rest")),
    *(rate(growth.size(size), "native", 80_000) for size in growth.SIZES),
    *(rate(growth.size(size), "rest", 20_000) for size in growth.SIZES),
])  # fmt: skip


def test_the_page_names_the_command_and_the_machine_and_what_was_not_reached(tmp_path: Path):
    text = page.written(RESULTS, ABOUT, ["--growth", "--waiting 1000000"], tmp_path)
    assert (tmp_path / "benchmark.md").read_text() == text
    assert "`make bench ARGS='--growth --waiting 1000000'`" in text
    assert "two PostgreSQL 17.10 on one machine with 2 cores and 24 GB" in text
    assert "| 1,000,000 | 48,000 | 50,000 | 30,000 | 0.60 | 120 MB | 0.25 |" in text
    assert "Not reached: last tenth / first tenth with 1,000,000 waiting." in text
    assert "| 500 tables | outboxd, Data API | 40,000 | 1.00 | 2.5 | 12.5 | 5.0 | 90 |" in text
    assert "| 10 kB | outboxd, Data API | 20,000 | 0.25 | 5.0 | 25.0 | 10.0 | 90 |" in text


def test_the_picture_is_an_svg_in_which_every_bar_has_the_height_of_its_rate(tmp_path: Path):
    page.written(RESULTS, ABOUT, ["--growth"], tmp_path)
    root = ET.fromstring((tmp_path / "benchmark.svg").read_text())  # noqa: S314
    words = [element.text for element in root.iter(_SVG + "text")]
    for wanted in ("1,000,000 waiting", "500 tables", "10 kB", "native replication", "80 K"):
        assert wanted in words
    heights = {
        fill: [
            float(rect.attrib["height"])
            for rect in root.iter(_SVG + "rect")
            if rect.attrib.get("fill") == fill and "rx" not in rect.attrib
        ]
        for fill in picture._COLOURS[:2]
    }
    native, ours = heights[picture._COLOURS[0]], heights[picture._COLOURS[1]]
    assert native[-1] == pytest.approx(ours[-1] * 4, abs=0.5)


@pytest.mark.parametrize("value", [0.4, 1, 999, 11_200, 95_000, 119_000, 350_000])
def test_the_ceiling_is_above_and_not_far(value: float):
    assert value * 1.05 <= picture.ceiling(value) <= max(value * 1.7, 1.2)
