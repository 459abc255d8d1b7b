"""Circuit breakers and retry budgets: pure values, every state and every way between them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.core.breaker import (
    CLOSED,
    Breaker,
    BreakerRules,
    State,
    admit,
    failed,
    heard,
    succeeded,
)
from executor.core.budget import Budget, BudgetRules

NOW: Final = 1_000_000
RULES: Final = BreakerRules(threshold=3, open_ms=2_000, open_max_ms=10_000, probe_ms=5_000)


def opened(now: int = NOW) -> Breaker:
    """A breaker that has just opened for the first time, for two seconds."""
    breaker = CLOSED
    for _ in range(3):
        breaker = failed(breaker, now, RULES, 0.5)
    return breaker


def test_it_opens_after_its_threshold() -> None:
    """Failures in a row open it, one fewer does not; then nothing passes until its time."""
    breaker = failed(failed(CLOSED, NOW, RULES, 0.5), NOW, RULES, 0.5)
    assert breaker.state(NOW) is State.CLOSED
    assert admit(breaker, NOW, RULES) == (breaker, 0)
    breaker = failed(breaker, NOW, RULES, 0.5)
    assert breaker.state(NOW) is State.OPEN
    assert admit(breaker, NOW + 500, RULES) == (breaker, 1_500)


@pytest.mark.parametrize(("successes", "opens"), [(1, True), (2, True), (3, False), (4, False)])
def test_a_share_of_failures_opens_it(successes: int, *, opens: bool) -> None:
    """One failure among two, or among three, adds up; among more, it is forgotten in between."""
    breaker = CLOSED
    for _ in range(20):
        breaker = failed(breaker, NOW, RULES, 0.5)
        for _ in range(successes):
            breaker = succeeded(breaker, NOW)
    assert (breaker.state(NOW) is State.OPEN) is (opens and successes < 2)


def test_one_probe_passes_at_a_time() -> None:
    """Half-open: the first is let through, the others wait for it, and not for ever."""
    breaker, at = opened(), NOW + 2_000
    assert breaker.state(at) is State.HALF_OPEN
    probing, wait = admit(breaker, at, RULES)
    assert wait == 0
    assert admit(probing, at + 1_000, RULES) == (probing, 4_000)
    again, wait = admit(probing, at + 5_000, RULES)
    assert (again.probe_at, wait) == (at + 5_000, 0)


def test_the_probe_decides() -> None:
    """Its success closes; its failure opens for twice as long, up to the most."""
    breaker, at = opened(), NOW + 2_000
    probing, _ = admit(breaker, at, RULES)
    assert succeeded(probing, at) == CLOSED
    lengths = []
    for _ in range(5):
        breaker = failed(admit(breaker, at, RULES)[0], at, RULES, 0.5)
        lengths.append(breaker.until - at)
        at = breaker.until
    assert lengths == [4_000, 8_000, 10_000, 10_000, 10_000]


def test_what_began_before_it_opened_changes_nothing() -> None:
    """Attempts that end while it is open, or half-open without a probe, say nothing new."""
    breaker = opened()
    for at in (NOW + 1, NOW + 3_000):
        assert failed(breaker, at, RULES, 0.5) == breaker
        assert succeeded(breaker, at) == breaker


def test_the_longer_word_of_another_counts() -> None:
    """Another executor's opening holds here; one that ends earlier than ours changes nothing."""
    assert heard(CLOSED, NOW + 9, 2) == Breaker(trips=2, until=NOW + 9)
    breaker = opened()
    assert heard(breaker, breaker.until, 5) == breaker


@given(st.lists(st.tuples(st.sampled_from("fspt"), st.integers(0, 30_000)), max_size=60))
def test_it_never_stays_shut(steps: list[tuple[str, int]]) -> None:
    """Whatever happened, after its longest time an attempt passes, and its success closes it."""
    breaker, now = CLOSED, NOW
    for what, passed in steps:
        now += passed
        match what:
            case "f":
                breaker = failed(breaker, now, RULES, 0.9)
            case "s":
                breaker = succeeded(breaker, now)
            case "p":
                breaker, _ = admit(breaker, now, RULES)
        assert breaker.until <= now + 1.25 * RULES.open_max_ms
        assert 0 <= breaker.score < RULES.threshold
    now += 2 * RULES.open_max_ms + RULES.probe_ms
    after, wait = admit(breaker, now, RULES)
    assert wait == 0
    assert succeeded(after, now).state(now) is State.CLOSED


def test_an_empty_budget_spreads_retries() -> None:
    """What was saved goes at once; beyond it each retry waits until the steady rate has paid it."""
    rules = BudgetRules(share=0.2, per_s=10, most=3)
    budget = Budget(rules.most, NOW)
    assert [budget.retried(NOW, rules) for _ in range(6)] == [0, 0, 0, 100, 200, 300]
    # Half a second later five are paid for, three are owed.
    assert budget.retried(NOW + 500, rules) == 0


def test_first_attempts_pay_for_retries() -> None:
    """Five first attempts pay for one retry; nothing is saved beyond the most."""
    rules = BudgetRules(share=0.2, per_s=1, most=2)
    budget = Budget(0.0, NOW)
    for _ in range(5):
        budget.attempted(NOW, rules)
    assert budget.retried(NOW, rules) == 0
    for _ in range(100):
        budget.attempted(NOW, rules)
    assert budget.left == rules.most


@given(st.lists(st.integers(0, 5_000), min_size=1, max_size=200))
def test_the_rate_of_retries_is_bounded(pauses: list[int]) -> None:
    """In any window from the start, no more retries come due than were saved and earned."""
    rules = BudgetRules(share=0.2, per_s=5, most=10)
    budget, now, due = Budget(rules.most, NOW), NOW, []
    for pause in pauses:
        now += pause
        due.append(now + budget.retried(now, rules))
    for count, at in enumerate(sorted(due), 1):
        assert count <= rules.most + (at - NOW) * rules.per_s / 1000 + 1


def test_a_clock_that_goes_back_earns_nothing() -> None:
    """The server's clock may be set: a budget neither grows nor breaks."""
    rules = BudgetRules(share=0.2, per_s=10, most=3)
    budget = replace(Budget(0.0, NOW))
    budget.attempted(NOW - 10_000, rules)
    assert budget.left == pytest.approx(0.2)
    assert budget.at == NOW
