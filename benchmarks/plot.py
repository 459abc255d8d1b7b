"""Plots as SVG text that stands inside a page: no script, no style sheet, no library.

Colours come from the page's variables, so that a plot follows its light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

Point = tuple[float, float]

WIDTH: Final = 760
_LEFT: Final = 260  # names of bars
_RIGHT: Final = 110  # their values
_BAR: Final = 22
_HEIGHT: Final = 230  # of plots with two axes
_MARGIN: Final = 56
_IN_A_ROW: Final = 4  # names of a legend
_ROW: Final = 16
_COLOURS: Final = 8  # --c0 … --c7 of the page


def number(value: float) -> str:
    """Three figures that count."""
    if value == 0:
        return "0"
    if abs(value) >= 100:  # noqa: PLR2004 - what reads well
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _colour(index: int) -> str:
    return f"var(--c{index % _COLOURS})"


def _frame(height: float, title: str, body: Sequence[str]) -> str:
    inside = "\n".join(body)
    return (f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
            f"\n{inside}\n</svg>")  # fmt: skip


def bars(title: str, rows: Mapping[str, tuple[float, float, float]], unit: str) -> str:
    """A bar for each median, with its least and most."""
    most = max((high for _, _, high in rows.values()), default=0) or 1.0
    scale = (WIDTH - _LEFT - _RIGHT) / most
    body = []
    for index, (name, (middle, low, high)) in enumerate(rows.items()):
        y = index * _BAR + 4
        body += [
            _text(_LEFT - 8, y + 13, name, "end"),
            f'<rect x="{_LEFT}" y="{y}" width="{middle * scale:.1f}" height="{_BAR - 6}" '
            f'fill="{_colour(0)}"/>',
            f'<path d="M{_LEFT + low * scale:.1f} {y + 8}H{_LEFT + high * scale:.1f}" '
            'stroke="currentColor"/>',
            _text(_LEFT + high * scale + 6, y + 13, f"{number(middle)} {unit}"),
        ]
    return _frame(len(rows) * _BAR + 8, title, body)


def stack(title: str, rows: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """A bar for each row, made of named parts."""
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    most = max((sum(row.values()) for row in rows.values()), default=0) or 1.0
    scale = (WIDTH - _LEFT - _RIGHT) / most
    body, top = _legend(parts)
    for index, (name, row) in enumerate(rows.items()):
        x, y = float(_LEFT), top + index * _BAR + 4
        body.append(_text(_LEFT - 8, y + 13, name, "end"))
        for part, value in row.items():
            body.append(
                f'<rect x="{x:.1f}" y="{y}" width="{value * scale:.1f}" height="{_BAR - 6}" '
                f'fill="{_colour(parts.index(part))}"><title>{escape(part)} {number(value)} '
                f"{escape(unit)}</title></rect>"
            )
            x += value * scale
        body.append(_text(x + 6, y + 13, f"{number(sum(row.values()))} {unit}"))
    return _frame(top + len(rows) * _BAR + 8, title, body)


def _legend(names: Sequence[str]) -> tuple[list[str], int]:
    """Names with their colours, four in a row, and the height that they take."""
    wide = (WIDTH - 20) / _IN_A_ROW
    drawn = []
    for index, name in enumerate(names):
        x, y = 10 + index % _IN_A_ROW * wide, 6 + index // _IN_A_ROW * _ROW
        drawn.append(
            f'<rect x="{x:.1f}" y="{y}" width="10" height="10" fill="{_colour(index)}"/>'
            + _text(x + 14, y + 9, name)
        )
    return drawn, 6 + -(-len(names) // _IN_A_ROW) * _ROW


def lines(title: str, series: Mapping[str, Sequence[Point]], labels: tuple[str, str], *,
          log_x: bool = False, log_y: bool = False) -> str:  # fmt: skip
    """Lines through points; `labels` are of x and y."""
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    body, top = _legend(list(series))
    top += _ROW  # the label of y
    bottom = top + _HEIGHT
    x_axis = _Axis([x for x, _ in points], _MARGIN, WIDTH - 20, log=log_x)
    y_axis = _Axis([y for _, y in points], bottom, top, log=log_y)
    for tick in x_axis.ticks():
        x = x_axis.at(tick)
        body += [f'<path d="M{x:.1f} {top}V{bottom}" class="grid"/>',
                 _text(x, bottom + 16, _tick(tick), "middle")]  # fmt: skip
    for tick in y_axis.ticks():
        y = y_axis.at(tick)
        body += [f'<path d="M{_MARGIN} {y:.1f}H{WIDTH - 20}" class="grid"/>',
                 _text(_MARGIN - 6, y + 4, _tick(tick), "end")]  # fmt: skip
    for index, line in enumerate(series.values()):
        path = " ".join(f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in line)
        body.append(f'<polyline points="{path}" fill="none" stroke="{_colour(index)}" '
                    'stroke-width="2"/>')  # fmt: skip
        body += [f'<circle cx="{x_axis.at(x):.1f}" cy="{y_axis.at(y):.1f}" r="3" '
                 f'fill="{_colour(index)}"/>' for x, y in line if len(line) <= _FEW]  # fmt: skip
    body += [_text(WIDTH - 20, bottom + 34, labels[0], "end"), _text(4, top - 4, labels[1])]
    return _frame(bottom + 40, title, body)


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"


_FEW: Final = 20  # so many points are shown as such


class _Axis:
    """Values to places, linear from 0 or logarithmic."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool) -> None:
        self.log = log and min(values) > 0
        self.low = min(values) if self.log else 0.0
        self.high = max(values) or 1.0
        self.start, self.end = start, end

    def at(self, value: float) -> float:
        """Where a value is drawn."""
        if self.log:
            span = math.log(self.high / self.low) or 1.0
            share = math.log(max(value, self.low) / self.low) / span
        else:
            share = value / self.high
        return self.start + (self.end - self.start) * share

    def ticks(self) -> list[float]:
        """Round values: powers of ten, or steps of 1, 2 or 5 of one."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            factors = (1, 2, 5) if last - first <= 3 else (1,)  # noqa: PLR2004 - what reads well
            found = [f * 10.0**e for e in range(first, last + 1) for f in factors]
            return [tick for tick in found if self.low <= tick <= self.high]
        step = 10.0 ** math.floor(math.log10(self.high / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if self.high / (step * factor) <= 6)  # noqa: PLR2004
        return [step * index for index in range(int(self.high / step) + 1)]
