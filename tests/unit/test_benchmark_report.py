"""The report of the benchmarks: figures, verdicts, tables, plots, and what is compared."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks import catalog, figures, plot, report
from benchmarks.comparing import deltas
from benchmarks.section import Goal, Plot, Section, percentile

README = Path(__file__).parents[2] / "benchmarks" / "README.md"


def section() -> Section:
    """Two contenders, two rounds, a distribution, and one that could not take part."""
    made = Section("sample", "A sample", "python -m benchmarks sample", base="slow")
    for round_, (ours, theirs) in enumerate([(10.0, 5.0), (30.0, 5.0)]):
        made.add("fast", "rate", "tasks/s", ours, round_=round_)
        made.add("slow", "rate", "tasks/s", theirs, round_=round_)
        made.add("fast", "latency", "ms", [0.1 * i for i in range(1, 101)], round_=round_)
    made.notes = {"fast": "at least | once", "absent": "not measured: <no network>"}
    made.goals = [
        Goal("twice as fast", "fast", "rate", "≥", 2.0, over="slow"),
        Goal("quick", "fast", "latency", "≤", 1.0, stat="p99"),
        Goal("elsewhere", "absent", "rate", "≥", 1.0),
    ]
    made.plots = [
        Plot("bars", "Rate", ("rate",), "tasks/s"),
        Plot("distribution", "Latency", ("latency",), "ms"),
        Plot("stack", "Parts", ("rate", "latency"), "x"),
        Plot("lines", "Rate over count", ("rate",), "tasks/s"),
    ]
    return made


def test_percentiles_are_values_that_were_seen() -> None:
    """The 99th of 100 is the largest but none; of one value it is that value."""
    assert percentile(list(range(100)), 0.99) == 99
    assert percentile([7], 0.999) == 7


def test_verdicts_say_met_missed_or_not_measured() -> None:
    """A ratio is of medians; what was not measured is said and not guessed."""
    made = section()
    rows = [report.verdict(made, goal) for goal in made.goals]
    assert [row[3] for row in rows] == ["met", "missed", "not measured here"]
    assert rows[0][1:3] == ["≥ 2.00×", "4.00×"]


def test_markdown_has_everything() -> None:
    """Machine, verdicts, a row for each contender, ratios, and why one is missing."""
    text = report.markdown({"cores": "2"}, [section()])
    assert "| cores | 2 |" in text
    assert "| fast | 20.0 (10.0-30.0) | 5.10 / 10.0 / 10.0 | 4.00 | at least \\| once |" in text
    assert "| absent |  |  |  | not measured: <no network> |" in text


def test_page_is_self_contained_and_escaped() -> None:
    """One file: no link, no script, nothing from elsewhere; names cannot break it."""
    page = report.html({"cores": "2"}, [section()])
    assert not re.search(r"(src|href)=|<script|@import|url\(", page)
    assert "&lt;no network&gt;" in page
    assert page.count("<svg") == 3
    for drawn in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(drawn)  # noqa: S314 - our own text


@pytest.mark.parametrize("values", [[1.0], [0.0], [0.001, 1e9], [3.0] * 5])
def test_plots_of_any_numbers_are_well_formed(values: list[float]) -> None:
    """One value, nothing but zeros, nine decades, all equal."""
    points = [(float(x + 1), y) for x, y in enumerate(values)]
    for log in (False, True):
        drawn = plot.lines("a <b>", {"x": points}, ("x", "y"), log_x=log, log_y=log)
        ET.fromstring(drawn)  # noqa: S314 - our own text
    ET.fromstring(plot.bars("t", {"n": (values[0],) * 3}, "u"))  # noqa: S314 - our own text
    ET.fromstring(plot.stack("t", {"n": {"p": values[0]}}, "u"))  # noqa: S314 - our own text


def test_lines_over_a_number_in_the_name() -> None:
    """Contenders whose names end with a number are points of one line."""
    made = Section("s", "S")
    for count in (1, 2, 4):
        made.add(f"executor, sandboxes {count}", "rate", "tasks/s", 10.0 * count)
    drawn = report.picture(made, Plot("lines", "Rate over sandboxes", ("rate",), "tasks/s"))
    assert drawn.count("<circle") == 3


def test_compare_gives_ratios_and_their_spread() -> None:
    """New over old, of medians, with the least and most of single rounds."""
    made = Section("s", "S")
    for round_, (new, old) in enumerate([(2.0, 1.0), (3.0, 2.0)]):
        made.add("executor", "rate", "", new, round_=round_)
        made.add("executor at v1", "rate", "", old, round_=round_)
    found = deltas([made], "v1")
    assert found is not None
    assert found.figure("s: executor, rate", "new / old") == pytest.approx(2.5 / 1.5)
    assert found.notes == {"s: executor, rate": "by round 1.50 to 2.00"}
    assert deltas([made], "v2") is None


def test_figures_need_all_their_scenarios() -> None:
    """Of a run that lacks a scenario nothing is kept for `bench plan`."""
    assert figures.seen({}, [section()]) == {}


def test_samples_are_lines_of_json() -> None:
    """Each sample says what it is of, and keeps all values."""
    lines = [json.loads(json.dumps(line)) for line in section().lines()]
    assert {line["schema"] for line in lines} == {"executor.benchmark-sample/1"}
    assert sum(len(line["values"]) for line in lines) == 204


def test_every_scenario_is_in_the_specification() -> None:
    """The table of promises names each scenario, and none that does not exist."""
    named = set()
    for line in README.read_text().splitlines():
        cells = line.split("|")
        if len(cells) == 6:
            named |= set(re.findall(r"`([a-z]+)`", cells[3]))
    assert named == set(catalog.SCENARIOS)
