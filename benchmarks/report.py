"""The report of a run: Markdown, one self-contained page with plots, and raw samples as JSONL."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from benchmarks import plot
from benchmarks.section import PERCENTILES, Goal, Plot, Section, percentile

_MANY: Final = 8  # values in a sample: a distribution, no figure
_STYLE: Final = """
:root { color-scheme: light dark; --c0: #3b6fb6; --c1: #d9822b; --c2: #3f9b6b; --c3: #b5485d;
 --c4: #7d63b8; --c5: #8a8f2f; --c6: #4aa3b5; --c7: #8c6d5a; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; }
th, td { padding: .25em .7em; border-bottom: 1px solid #8884; text-align: right; }
th:first-child, td:first-child, td.text { text-align: left; }
svg { width: 100%; font: 12px system-ui, sans-serif; fill: currentColor; }
.grid { stroke: #8883; } .missed { font-weight: bold; } code { font-size: .9em; }
"""


def cell(section: Section, who: str, metric: str) -> str:
    """A metric of a contender: median (min-max) of its rounds, or percentiles of all values."""
    rounds = section.rounds(who, metric)
    if not rounds:
        return ""
    values = [value for values in rounds for value in values]
    if max(map(len, rounds)) > _MANY:
        return " / ".join(plot.number(percentile(values, p)) for p in PERCENTILES.values())
    middle = plot.number(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({plot.number(min(values))}-{plot.number(max(values))})"


def _heading(section: Section, metric: str, unit: str) -> str:
    many = any(len(s.values) > _MANY for s in section.samples if s.metric == metric)
    name = f"{metric}, {unit}" if unit else metric
    return name + (", p50 / p99 / p99.9" if many else "")


def table(section: Section) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a contender each, ratios of the first metric to the base, what is noted."""
    metrics = section.metrics()
    first = next(iter(metrics), "")
    header = [section.name, *(_heading(section, m, u) for m, u in metrics.items())]
    if section.base:
        header.append(f"{first}, ratio")
    if section.notes:
        header.append("note")
    rows = []
    for who in section.who():
        row = [who, *(cell(section, who, metric) for metric in metrics)]
        if section.base:
            ratio = section.ratio(who, section.base, first)
            row.append("" if ratio is None else f"{ratio:.2f}")
        if section.notes:
            row.append(section.notes.get(who, ""))
        rows.append(row)
    return header, rows


def verdict(section: Section, goal: Goal) -> list[str]:
    """A row of the table of promises."""
    seen = section.seen(goal)
    wanted = f"{goal.sign} {plot.number(goal.value)}{'×' if goal.over else ''}"
    if seen is None:
        return [goal.promise, wanted, "", "not measured here", section.name]
    shown = plot.number(seen) + ("×" if goal.over else "")
    return [goal.promise, wanted, shown, "met" if goal.met(seen) else "missed", section.name]


_VERDICTS: Final = ["promise", "goal", "seen", "", "scenario"]


def _verdicts(sections: Sequence[Section]) -> list[list[str]]:
    return [verdict(section, goal) for section in sections for goal in section.goals]


def _md_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines]


def markdown(facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The report as text."""
    out = ["# Benchmarks", "", *_md_table(["", "machine"], [list(f) for f in facts.items()]), ""]
    if verdicts := _verdicts(sections):
        out += ["## Promises", "", *_md_table(_VERDICTS, verdicts), ""]
    for section in sections:
        out += [f"## {section.title}", "", f"`{section.command}`", ""]
        out += [*_md_table(*table(section)), ""]
        out += [line for remark in section.remarks for line in (remark, "")]
    return "\n".join(out)


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(_html_cell(name, value) for name, value in zip(header, row, strict=True))
        + "</tr>" for row in rows
    )  # fmt: skip
    return f"<table><tr>{head}</tr>{body}</table>"


def _html_cell(name: str, value: str) -> str:
    kind = ' class="text"' if name in {"note", "machine"} else ""
    kind = ' class="missed"' if value == "missed" else kind
    return f"<td{kind}>{escape(value)}</td>"


def picture(section: Section, what: Plot) -> str:
    """A plot of a section's samples; "" where it has none of them."""
    who = section.who()
    match what.kind:
        case "bars":
            found = {w: section.values(w, what.metrics[0]) for w in who}
            rows = {w: (statistics.median(v), min(v), max(v)) for w, v in found.items() if v}
            return plot.bars(what.title, rows, what.unit) if rows else ""
        case "distribution":
            series = {w: _distribution(section.values(w, what.metrics[0])) for w in who}
            shown = {w: line for w, line in series.items() if line}
            return plot.lines(what.title, shown, (what.unit, "share"), log_x=True)
        case "stack":
            parts = {w: {m: v for m in what.metrics
                         if (v := section.figure(w, m)) is not None} for w in who}  # fmt: skip
            return plot.stack(what.title, {w: p for w, p in parts.items() if p}, what.unit)
        case _:
            return _over(section, what)


def _distribution(values: Sequence[float]) -> list[plot.Point]:
    """A hundred points are enough for an eye, and a thousandth for the tail."""
    shares = [*(i / 100 for i in range(1, 100)), 0.995, 0.999]
    return [(percentile(values, share), share) for share in shares] if values else []


def _over(section: Section, what: Plot) -> str:
    """Lines over the number that a contender's name ends with: `executor, backlog 1000`."""
    series: dict[str, list[plot.Point]] = {}
    for who in section.who():
        name, _, x = who.rpartition(" ")
        value = section.figure(who, what.metrics[0])
        if value is not None and x.replace(",", "").isdigit():
            series.setdefault(name, []).append((float(x.replace(",", "")), value))
    xs = [x for line in series.values() for x, _ in line]
    wide = bool(xs) and max(xs) > 20 * min(xs)
    return plot.lines(what.title, series, (what.title.rpartition(" over ")[2], what.unit),
                      log_x=wide)  # fmt: skip


def html(facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The report as one page that needs nothing else."""
    out = ["<!doctype html>", '<html lang="en"><meta charset="utf-8"><title>Benchmarks</title>',
           f"<style>{_STYLE}</style>", "<h1>Benchmarks</h1>",
           _html_table(["", "machine"], [list(fact) for fact in facts.items()])]  # fmt: skip
    if verdicts := _verdicts(sections):
        out += ["<h2>Promises</h2>", _html_table(_VERDICTS, verdicts)]
    for section in sections:
        out += [f"<h2>{escape(section.title)}</h2>", f"<code>{escape(section.command)}</code>",
                _html_table(*table(section))]  # fmt: skip
        out += [f"<p>{escape(remark)}</p>" for remark in section.remarks]
        for what in section.plots:
            if drawn := picture(section, what):
                out += [f"<h3>{escape(what.title)}</h3>", drawn]
    return "\n".join([*out, "</html>"])


def write(folder: Path, facts: Mapping[str, str], sections: Sequence[Section]) -> None:
    """Write `report.md`, `report.html`, `samples.jsonl`, the machine's facts as its first line."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(markdown(facts, sections))
    (folder / "report.html").write_text(html(facts, sections))
    lines: list[dict[str, Any]] = [{"schema": "executor.benchmark-machine/1", **facts}]
    lines += [line for section in sections for line in section.lines()]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
