"""The settlement of an attempt: (outcome, counters, rules) to what is published and what follows.

The whole table is here, and it is pure: the jitter is passed in. Attempt, crash and delivery are
counted apart: an attempt is the task's own failure, a crash is a dead sandbox, a delivery is one
hand-over by the server, which also counts drains and lost leases.

    outcome                                publish              then
    result                                 result               ack
    transient, attempts left               retry, attempt + 1   ack
    transient, none left                   dead letter          ack
    permanent, resource, security          dead letter          ack
    systemic, not expired                  retry, same attempt  ack
    systemic, expired                      dead letter          ack
    once, first crash of this task         retry, crashes + 1   ack
    once, a later crash                    dead letter          ack
    silent (lease lost, publish lost, …)   nothing              nothing
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from executor.core.envelope import HISTORY_MAX
from executor.errors import TABLE, Class
from executor.model import Failure, Outcome, PastAttempt, Result, TaskRequest
from executor.values import light_dataclass

# A sandbox's death costs the task no attempt; this many deaths end it.
CRASHES_MAX: Final = 2
# A guest may ask for a later retry, within reason: a day.
RETRY_AFTER_MAX_MS: Final = 24 * 3600 * 1000
# How long a systemic failure puts a task off, before jitter: as long as an operator needs to look,
# then half of what the task has waited already, so that what waits for days costs little.
SYSTEMIC_DELAY_MS: Final = 5_000
SYSTEMIC_DELAY_MAX_MS: Final = 300_000
# What one back-off may be at most beside the one before.
_GROWTH: Final = 3


class Action(StrEnum):
    """What is published about an attempt."""

    RESULT = "result"
    DEAD = "dead"
    RETRY = "retry"
    NOTHING = "nothing"


_RESULT: Final = Action.RESULT  # an enum's members are looked up by a call


@dataclass(frozen=True, slots=True)
class Rules:
    """What policy says about one task's retries; `backoff_ms` is the least and the most, in ms."""

    attempts_max: int = 3
    deliveries_max: int = 10
    backoff_ms: tuple[int, ...] = (1_000, 30_000)


@light_dataclass(frozen=True, slots=True)
class Settlement:
    """One decision. For a retry, `request` is what is asked for and `delay_ms` how far ahead."""

    action: Action
    request: TaskRequest
    delay_ms: int = 0
    code: str = ""  # why the task ends, for a dead letter; may differ from the attempt's code


def is_transient(failure: Failure) -> bool:
    """Whether another attempt may end otherwise; a guest's own failure carries its own word."""
    klass = TABLE[failure.code].klass
    return klass is Class.TRANSIENT or (klass is Class.GUEST and failure.transient)


def settle(
    outcome: Outcome, request: TaskRequest, rules: Rules, *, now: int, jitter: float
) -> Settlement:
    """The row of the table that fits. `jitter` is in [0, 1); `now` in ms."""
    if isinstance(outcome, Result):
        return settled(request)
    klass = TABLE[outcome.code].klass
    if klass is Class.SILENT or klass is Class.NONE:
        return Settlement(Action.NOTHING, request)
    if klass is Class.SYSTEMIC:
        if request.expires_at and now >= request.expires_at:
            return Settlement(Action.DEAD, request, code="message.expired")
        return Settlement(Action.RETRY, request, _put_off(outcome, request, now, jitter))
    past = PastAttempt(request.attempt, outcome.code, now)
    history = (*request.history, past)[-HISTORY_MAX:]
    if klass is Class.ONCE:
        again = replace(request, crashes=request.crashes + 1, history=history)
        if again.crashes >= CRASHES_MAX:
            return Settlement(Action.DEAD, again, code=outcome.code)
        return Settlement(Action.RETRY, again)
    ended = replace(request, history=history)
    if is_transient(outcome) and request.attempt < attempts_max(request, rules):
        again = replace(ended, attempt=request.attempt + 1)
        return Settlement(Action.RETRY, again, _delay(outcome, request, rules, now, jitter))
    return Settlement(Action.DEAD, ended, code=outcome.code)


def settled(request: TaskRequest) -> Settlement:
    """The table's first row: what has a result needs no rules."""
    return Settlement(_RESULT, request)


def attempts_max(request: TaskRequest, rules: Rules) -> int:
    """How many attempts this request has; a request only lowers what policy says."""
    asked = request.attempts_max
    return asked if 0 < asked < rules.attempts_max else rules.attempts_max


def _put_off(failure: Failure, request: TaskRequest, now: int, jitter: float) -> int:
    """Until a systemic failure may be over, which some of them know."""
    if failure.retry_after_ms >= 0:
        return int(failure.retry_after_ms * (1 + jitter / 2))
    waited = now - request.submitted_at if request.submitted_at else 0
    usual = min(max(SYSTEMIC_DELAY_MS, waited // 2), SYSTEMIC_DELAY_MAX_MS)
    # Half to one and a half: tasks that failed together do not come back together.
    return int(usual * (0.5 + jitter))


def _delay(failure: Failure, request: TaskRequest, rules: Rules, now: int, jitter: float) -> int:
    """The back-off of a task's own failure, with decorrelated jitter.

    Anything from the least up to three times the wait before, which is read off the history: a
    task that also had to queue backs off further. Source: the AWS architecture blog on jitter.
    """
    if failure.retry_after_ms >= 0:
        return min(failure.retry_after_ms, RETRY_AFTER_MAX_MS)
    if not rules.backoff_ms:
        return 0
    least = rules.backoff_ms[0]
    most = rules.backoff_ms[1] if len(rules.backoff_ms) > 1 else _GROWTH * least
    before = now - request.history[-1].at if request.history else least
    reach = min(_GROWTH * max(before, least), most)
    return int(least + jitter * max(reach - least, 0))


def before_running(
    request: TaskRequest, rules: Rules, *, now: int, delivered: int
) -> Settlement | None:
    """The settlement of a message that must not run now, or None: step 3 of the pipeline."""
    if delivered > rules.deliveries_max:
        return Settlement(Action.DEAD, request, code="message.deliveries-exhausted")
    if request.expires_at and now >= request.expires_at:
        return Settlement(Action.DEAD, request, code="message.expired")
    if request.not_before > now:
        return Settlement(Action.RETRY, request, request.not_before - now)
    return None


def is_plain(request: TaskRequest, *, delivered: int) -> bool:
    """Whether it may run at once: it has no time to wait for or to meet, and nothing to look up.

    As almost all are.
    """
    timed = request.expires_at or request.not_before
    return not timed and not must_look_up(request, delivered=delivered)


def must_look_up(request: TaskRequest, *, delivered: int) -> bool:
    """Whether the id may have an outcome already: all but a fresh id's first hand-over."""
    return not (request.fresh and delivered == 1 and request.attempt == 1 and not request.crashes)
