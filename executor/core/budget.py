"""A retry budget: how many retries may follow at once, before they are spread over time.

Each first attempt pays a share of a retry in, each retry takes one out. An empty budget refuses
nobody: it says how long the retry has to wait until the steady rate has paid for it. So a storm of
retries is bounded by the share and the rate, and no task loses an attempt.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BudgetRules:
    """`share` of a retry for each first attempt, `per_s` beside it, at most `most` saved up."""

    share: float = 0.2
    per_s: float = 10.0
    most: float = 100.0


@dataclass(slots=True)
class Budget:
    """One task's or module's; `left` may be below zero: what is owed."""

    left: float
    at: int  # ms, when `left` was right

    def _pass(self, now: int, rules: BudgetRules) -> None:
        earned = max(now - self.at, 0) * rules.per_s / 1000
        self.left = min(self.left + earned, rules.most)
        self.at = max(now, self.at)

    def attempted(self, now: int, rules: BudgetRules) -> None:
        """A first attempt began."""
        self._pass(now, rules)
        self.left = min(self.left + rules.share, rules.most)

    def retried(self, now: int, rules: BudgetRules) -> int:
        """A retry is asked for: how many ms it has to wait beyond its own back-off."""
        self._pass(now, rules)
        self.left -= 1
        return int(max(-self.left, 0.0) * 1000 / rules.per_s)
