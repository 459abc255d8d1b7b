"""Whole lives of tasks, driven by settlement alone: bounded, and always ended; seeds are fixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hypothesis import example, given, settings
from hypothesis import strategies as st

from executor.core.envelope import HISTORY_MAX
from executor.core.settlement import (
    CRASHES_MAX,
    SYSTEMIC_DELAY_MS,
    Action,
    Rules,
    Settlement,
    attempts_max,
    before_running,
    settle,
)
from executor.errors import TABLE, Class
from executor.model import Failure, Outcome, Result, TaskId, TaskRequest

fixed = settings(
    derandomize=True, deadline=None, max_examples=300, database=None, print_blob=True
)  # fmt: skip

START: Final = 1_000_000
OUTAGE_MS: Final = SYSTEMIC_DELAY_MS // 2  # the least that one takes whose end nobody knows
UNCOUNTED: Final = {Class.SYSTEMIC, Class.SILENT, Class.NONE}

rules_ = st.builds(
    Rules, st.integers(1, 16), st.integers(2, 20),
    st.lists(st.integers(0, 86_400_000), max_size=4).map(tuple),
)  # fmt: skip
requests = st.builds(
    lambda most, expires, before, fresh: TaskRequest(
        "acme", "resize", TaskId("1"), b"", attempts_max=most, fresh=fresh,
        expires_at=expires and START + expires, not_before=before and START + before,
    ),
    st.integers(0, 20), st.integers(0, 60_000), st.integers(0, 60_000), st.booleans(),
)  # fmt: skip


def failures(codes: list[str]) -> st.SearchStrategy[Outcome]:
    """Failures of these codes, with whatever a guest may say beside."""
    return st.builds(
        Failure, st.sampled_from(codes), transient=st.booleans(),
        retry_after_ms=st.sampled_from([-1, 0, 1, 10**9, 2**63 - 1]),
    )  # fmt: skip


def of_class(*classes: Class) -> list[str]:
    """The codes of these classes."""
    return sorted(code for code, row in TABLE.items() if row.klass in classes)


# By class, since most codes are permanent and a life with one of them is short.
silences = failures(of_class(Class.SILENT, Class.NONE))
again = failures(of_class(Class.TRANSIENT)) | failures(of_class(Class.GUEST))
deaths = failures(of_class(Class.ONCE))
ends = failures(of_class(Class.PERMANENT)) | st.just(Result(b""))
live = again | deaths | failures(of_class(Class.SYSTEMIC)) | silences
any_outcome = live | live | live | ends
jitters = st.floats(0, 1, exclude_max=True)


@dataclass
class Life:
    """What happened to one task until its terminal record, or until its story ran out."""

    request: TaskRequest
    now: int = START
    attempts: int = 0
    crashes: int = 0
    delivered: int = 1
    terminal: str = ""

    def hand_over(self, outcome: Outcome, rules: Rules, jitter: float) -> None:
        """One delivery: what must not run is settled, the rest runs and ends with `outcome`."""
        early = before_running(self.request, rules, now=self.now, delivered=self.delivered)
        if early is not None:
            self.publish(early)
            return
        klass = TABLE[outcome.code].klass if isinstance(outcome, Failure) else None
        self.attempts += klass not in {*UNCOUNTED, Class.ONCE}
        self.crashes += klass is Class.ONCE
        self.publish(settle(outcome, self.request, rules, now=self.now, jitter=jitter))

    def publish(self, settlement: Settlement) -> None:
        """A retry is a new message; silence is the same one again; the rest is the end."""
        assert settlement.delay_ms >= 0
        self.request = settlement.request
        assert len(self.request.history) <= HISTORY_MAX
        if settlement.action is Action.NOTHING:
            self.delivered += 1
        elif settlement.action is Action.RETRY:
            self.delivered = 1
            self.now += max(1, settlement.delay_ms)
        else:
            assert (settlement.action is Action.DEAD) is bool(settlement.code)
            self.terminal = settlement.action.value


@fixed
@given(requests, rules_, st.lists(st.tuples(any_outcome, jitters), max_size=60))
def test_no_life_exceeds_its_bounds(
    request: TaskRequest, rules: Rules, story: list[tuple[Outcome, float]]
) -> None:
    """Attempts, crashes and deliveries stay within their maxima, whatever happens when."""
    life, most = Life(request), attempts_max(request, rules)
    assert most <= rules.attempts_max
    for outcome, jitter in story:
        if life.terminal:
            break
        life.hand_over(outcome, rules, jitter)
        assert life.attempts <= most
        assert life.request.attempt <= most
        assert life.crashes == life.request.crashes <= CRASHES_MAX
        assert life.delivered <= rules.deliveries_max + 1


@fixed
@given(requests, rules_, st.lists(again | deaths | again, min_size=1, max_size=20), jitters)
def test_failures_of_its_own_end_a_task(
    request: TaskRequest, rules: Rules, story: list[Outcome], jitter: float
) -> None:
    """A task that keeps failing ends within its attempts and crashes, expiring or not."""
    life = Life(request)
    bound = attempts_max(request, rules) + CRASHES_MAX  # one more: put off by `not_before`
    for number in range(bound):
        if life.terminal:
            break
        life.hand_over(story[number % len(story)], rules, jitter)
    assert life.terminal == "dead"
    assert life.attempts <= attempts_max(request, rules)
    assert life.crashes <= CRASHES_MAX


def is_over_at_once(outcome: Outcome) -> bool:
    """Whether it is an outage that says it ends sooner than one whose end nobody knows."""
    if isinstance(outcome, Result) or TABLE[outcome.code].klass is not Class.SYSTEMIC:
        return False
    return 0 <= outcome.retry_after_ms < OUTAGE_MS


@fixed
@given(
    rules_,
    st.lists(st.tuples(any_outcome, jitters), min_size=1, max_size=9),
    st.integers(1, 60_000),
)
@example(Rules(), [(Failure("task.paused"), 0.0)], 60_000)
@example(Rules(), [(Failure("task.paused", retry_after_ms=0), 0.0)], 60_000)
def test_an_expiry_ends_every_task(
    rules: Rules, story: list[tuple[Outcome, float]], expires: int
) -> None:
    """With `expires_at`, no mixture of outages, silences, crashes and failures lives for ever."""
    least = OUTAGE_MS
    if any(is_over_at_once(outcome) for outcome, _ in story):
        least, expires = 1, min(expires, 500)  # outages of a ms: some hundred are enough
    life = Life(TaskRequest("acme", "resize", TaskId("1"), b"", expires_at=START + expires))
    # Between two outages silences are bounded.
    outages = expires // least + 1
    bound = (outages + rules.attempts_max + CRASHES_MAX + 1) * (rules.deliveries_max + 1)
    for number in range(bound):
        if life.terminal:
            break
        life.hand_over(story[number % len(story)][0], rules, story[number % len(story)][1])
    assert life.terminal


@fixed
@given(requests, rules_, st.lists(st.tuples(silences, jitters), min_size=20, max_size=20))
def test_silence_ends_by_deliveries(
    request: TaskRequest, rules: Rules, story: list[tuple[Outcome, float]]
) -> None:
    """A message that is never settled is given up after `deliveries_max` hand-overs."""
    life = Life(request)
    for outcome, jitter in story + story:
        if life.terminal:
            break
        life.hand_over(outcome, rules, jitter)
    assert life.terminal == "dead"
    assert life.attempts == 0
