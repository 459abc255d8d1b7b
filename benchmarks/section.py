"""What one scenario saw: samples by contender and metric, what they are compared with, and why.

Scenarios add samples and say nothing about how they are shown; `report.py` makes tables and plots
of them. A sample is what one round saw: one value, or many (latencies).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

PERCENTILES: Final = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True, slots=True)
class Sample:
    """What one round saw of one metric."""

    who: str
    metric: str
    unit: str
    round: int
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Goal:
    """A promise about a metric of a contender, or about its ratio to another's.

    `stat` is median or a percentile; `over` names the contender that a ratio is taken to.
    """

    promise: str
    who: str
    metric: str
    sign: Literal["≤", "≥"]
    value: float
    stat: str = "median"
    over: str = ""

    def met(self, seen: float) -> bool:
        """Whether `seen` is as promised."""
        return seen <= self.value if self.sign == "≤" else seen >= self.value


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture: bars of a metric, its distribution, a stack of metrics, or lines over `x`."""

    kind: Literal["bars", "distribution", "stack", "lines"]
    title: str
    metrics: tuple[str, ...]
    unit: str


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


@dataclass
class Section:
    """One scenario's samples in the order in which names came up."""

    name: str
    title: str
    command: str = ""
    samples: list[Sample] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)  # contender → its guarantee, or why not
    remarks: list[str] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    base: str = ""  # whom the others are compared with

    def add(
        self, who: str, metric: str, unit: str, values: float | Iterable[float], *, round_: int = 0
    ) -> None:  # fmt: skip
        """One more sample."""
        found = (values,) if isinstance(values, (int, float)) else tuple(values)
        if found:
            self.samples.append(Sample(who, metric, unit, round_, found))

    def who(self) -> list[str]:
        """All contenders, those that only have a note at the end."""
        return list(dict.fromkeys([*(s.who for s in self.samples), *self.notes]))

    def metrics(self) -> dict[str, str]:
        """All metrics and their units."""
        return {sample.metric: sample.unit for sample in self.samples}

    def rounds(self, who: str, metric: str) -> list[tuple[float, ...]]:
        """What each round saw."""
        return [s.values for s in self.samples if s.who == who and s.metric == metric]

    def values(self, who: str, metric: str) -> list[float]:
        """All values of all rounds."""
        return [value for values in self.rounds(who, metric) for value in values]

    def figure(self, who: str, metric: str, stat: str = "median") -> float | None:
        """A statistic over all values; None without any."""
        values = self.values(who, metric)
        if not values:
            return None
        return statistics.median(values) if stat == "median" else percentile(
            values, PERCENTILES[stat]
        )  # fmt: skip

    def ratio(self, who: str, over: str, metric: str, stat: str = "median") -> float | None:
        """One contender's statistic over another's."""
        one, other = self.figure(who, metric, stat), self.figure(over, metric, stat)
        return one / other if one is not None and other else None

    def seen(self, goal: Goal) -> float | None:
        """The figure that a goal is about; None where this run has none."""
        if goal.over:
            return self.ratio(goal.who, goal.over, goal.metric, goal.stat)
        return self.figure(goal.who, goal.metric, goal.stat)

    def lines(self) -> Iterable[dict[str, Any]]:
        """The samples for a JSONL file."""
        for sample in self.samples:
            yield {
                "schema": "executor.benchmark-sample/1", "scenario": self.name, "who": sample.who,
                "metric": sample.metric, "unit": sample.unit, "round": sample.round,
                "values": [round(value, 6) for value in sample.values],
            }  # fmt: skip
