"""Settlement: every code in every situation, against a table that is written here by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from executor.core import settlement
from executor.core.envelope import HISTORY_MAX
from executor.core.settlement import Action, Rules, before_running, must_look_up, settle
from executor.errors import TABLE, Class
from executor.model import Failure, PastAttempt, Result, TaskId, TaskRequest

NOW: Final = 1_000_000
RULES: Final = Rules(attempts_max=3, deliveries_max=10, backoff_ms=(1_000, 30_000))
ASK: Final = TaskRequest("acme", "resize", TaskId("1"), b"")
LATER_THAN_A_DAY: Final = 10**12


def codes(text: str) -> list[str]:
    """The codes in a block of text."""
    return text.split()


# Copied from the specification, not from the code under test.
PERMANENT: Final = codes("""
    message.malformed message.version-unknown message.expired message.deliveries-exhausted
    module.invalid module.manifest-invalid module.abi-mismatch module.import-unknown
    task.cancelled policy.task-unknown guest.trap guest.exited guest.bad-pointer
    capability.bad-argument internal.bug
""")
RESOURCE: Final = codes("""
    message.too-large module.too-complex policy.limit-too-high
    limit.fuel-exhausted limit.memory-exceeded limit.stack-exhausted limit.output-too-large
    limit.calls-exceeded
""")
SECURITY: Final = codes("""
    message.audience-mismatch module.unsigned module.signature-invalid module.signer-untrusted
    module.signer-revoked module.provenance-invalid policy.capability-denied
    policy.submitter-denied policy.raw-body-refused capability.denied
""")
TRANSIENT: Final = codes("""
    module.not-found module.digest-mismatch module.provenance-missing
    limit.deadline-exceeded capability.deadline-exceeded
""")
SYSTEMIC: Final = codes("""
    module.quarantined module.breaker-open task.paused capability.unavailable
    sandbox.start-failed sandbox.breaker-open sandbox.containment-missing
    trust.missing trust.invalid trust.expired trust.rolled-back trust.threshold-unmet
""")
ONCE: Final = ["sandbox.crashed", "sandbox.killed", "sandbox.protocol-violation"]
SILENT: Final = codes("""
    transport.disconnected transport.permission-denied transport.stream-missing
    transport.stream-mismatch transport.stream-full transport.lease-lost
    transport.publish-unconfirmed transport.outcome-pending transport.unanswered
    policy.action-denied
    policy.session-expired
    policy.approvals-missing
    config.missing config.invalid config.key-unknown config.secret-inline config.toolchain-missing
    module.not-reproducible
""")
GUEST: Final = ["guest.failed"]

ALL: Final = [
    *PERMANENT, *RESOURCE, *SECURITY, *TRANSIENT, *SYSTEMIC, *ONCE, *SILENT, *GUEST
]  # fmt: skip
# (counted as an attempt, counted as a crash) beside what is published.
Expected = tuple[Action, int, int]


def expected(code: str, attempt: int, crashes: int, *, expired: bool, word: bool) -> Expected:
    """What the specification says: the action, the next attempt and the crashes after it."""
    dead = (Action.DEAD, attempt, crashes)
    if code in SILENT:
        return Action.NOTHING, attempt, crashes
    if code in SYSTEMIC:
        return dead if expired else (Action.RETRY, attempt, crashes)
    if code in ONCE:
        return Action.RETRY if crashes == 0 else Action.DEAD, attempt, crashes + 1
    if (code in TRANSIENT or (code in GUEST and word)) and attempt < 3:
        return Action.RETRY, attempt + 1, crashes
    return dead


def test_the_table_is_whole() -> None:
    """The table below judges each code of the house, and each one once."""
    assert sorted(ALL) == sorted(TABLE)
    for klass, named in (
        (Class.PERMANENT, PERMANENT), (Class.RESOURCE, RESOURCE), (Class.SECURITY, SECURITY),
        (Class.TRANSIENT, TRANSIENT), (Class.SYSTEMIC, SYSTEMIC), (Class.ONCE, ONCE),
    ):  # fmt: skip
        assert {TABLE[code].klass for code in named} == {klass}


@pytest.mark.parametrize("attempts", [1, 2, 3])
@pytest.mark.parametrize("code", [*SECURITY, *RESOURCE])
def test_what_is_refused_or_spent_is_never_tried_again(code: str, attempts: int) -> None:
    """Missing authority and a cap that was met end the task at the first attempt as at the last."""
    got = settle(Failure(code, transient=True, retry_after_ms=5),
                 replace(ASK, attempt=attempts), RULES, now=NOW, jitter=0.5)  # fmt: skip
    assert (got.action, got.code) == (Action.DEAD, code)


@pytest.mark.parametrize("word", [False, True], ids=["final", "retry"])
@pytest.mark.parametrize("expired", [False, True], ids=["live", "expired"])
@pytest.mark.parametrize("crashes", [0, 1])
@pytest.mark.parametrize("attempt", [1, 2, 3])
@pytest.mark.parametrize("code", ALL)
def test_every_row_of_the_table(
    code: str, attempt: int, crashes: int, *, expired: bool, word: bool
) -> None:
    """Each failure, at each attempt, after no or one crash, ends as the specification says."""
    request = replace(ASK, attempt=attempt, crashes=crashes, expires_at=NOW - 1 if expired else 0)
    got = settle(Failure(code, transient=word), request, RULES, now=NOW, jitter=0.5)
    action, next_attempt, next_crashes = expected(
        code, attempt, crashes, expired=expired, word=word
    )
    assert got.action is action
    assert (got.request.attempt, got.request.crashes) == (next_attempt, next_crashes)
    if action is Action.DEAD:
        assert got.code == ("message.expired" if code in SYSTEMIC else code)
        assert got.delay_ms == 0
    else:
        assert got.code == ""
    counted = code not in SILENT and code not in SYSTEMIC
    assert got.request.history == ((PastAttempt(attempt, code, NOW),) if counted else ())


@pytest.mark.parametrize("attempt", [1, 3, 9])
def test_a_result_ends_the_task(attempt: int) -> None:
    """A result is published whatever went before it, even past `expires_at`."""
    request = replace(ASK, attempt=attempt, crashes=1, expires_at=1)
    got = settle(Result(b"done"), request, RULES, now=NOW, jitter=0.9)
    assert got == settlement.Settlement(Action.RESULT, request)


@pytest.mark.covers("message.expired")
def test_a_systemic_failure_ends_at_the_expiry() -> None:
    """While a dependency is down a task waits, and not a millisecond past its `expires_at`."""
    for at, action in ((NOW - 1, Action.RETRY), (NOW, Action.DEAD), (NOW + 1, Action.DEAD)):
        request = replace(ASK, expires_at=NOW)
        got = settle(Failure("capability.unavailable"), request, RULES, now=at, jitter=0.0)
        assert got.action is action


@pytest.mark.parametrize(("jitter", "delay"), [(0.0, 2_500), (0.5, 5_000), (0.999, 7_495)])
def test_a_systemic_failure_puts_the_task_off(jitter: float, delay: int) -> None:
    """Tasks that met the same outage come back between half and one and a half times later."""
    got = settle(Failure("trust.missing"), ASK, RULES, now=NOW, jitter=jitter)
    assert (got.action, got.delay_ms, got.request) == (Action.RETRY, delay, ASK)


@pytest.mark.parametrize(
    ("waited", "jitter", "delay"),
    [
        (None, 0.0, 1_000), (None, 0.5, 2_000), (None, 1.0, 3_000), (3_000, 0.0, 1_000),
        (3_000, 0.5, 5_000), (3_000, 1.0, 9_000), (9_000, 1.0, 27_000), (600_000, 1.0, 30_000),
        (-5_000, 1.0, 3_000),
    ],
)  # fmt: skip
def test_the_back_off_has_decorrelated_jitter(
    waited: int | None, jitter: float, delay: int
) -> None:
    """From the least up to three times the wait before, whatever the clock did, up to the most."""
    history = () if waited is None else (PastAttempt(1, "guest.failed", NOW - waited),)
    request = replace(ASK, attempt=1 if waited is None else 2, history=history)
    got = settle(Failure("limit.deadline-exceeded"), request, RULES, now=NOW, jitter=jitter)
    assert (got.action, got.delay_ms) == (Action.RETRY, delay)


def test_one_back_off_stands_for_its_range() -> None:
    """An operator who names the least alone gets up to three times as much, at random."""
    rules = replace(RULES, backoff_ms=(400,))
    delays = [
        settle(Failure("limit.deadline-exceeded"), ASK, rules, now=NOW, jitter=jitter).delay_ms
        for jitter in (0.0, 0.5, 1.0)
    ]
    assert delays == [400, 800, 1_200]


@pytest.mark.parametrize(
    ("waited", "jitter", "delay"),
    [(0, 0.5, 5_000), (9_000, 0.5, 5_000), (60_000, 0.5, 30_000), (10**9, 0.5, 300_000)],
)
def test_what_waits_long_is_looked_at_less_often(waited: int, jitter: float, delay: int) -> None:
    """A systemic failure puts a task off by half of what it has waited, up to five minutes."""
    request = replace(ASK, submitted_at=NOW - waited)
    got = settle(Failure("task.paused"), request, RULES, now=NOW, jitter=jitter)
    assert (got.action, got.delay_ms) == (Action.RETRY, delay)


@pytest.mark.parametrize(("jitter", "delay"), [(0.0, 2_000), (1.0, 3_000)])
def test_a_failure_that_knows_its_end_is_asked_then(jitter: float, delay: int) -> None:
    """An open breaker says until when: the task comes back soon after, and no attempt counts."""
    failure = Failure("module.breaker-open", retry_after_ms=2_000)
    got = settle(failure, ASK, RULES, now=NOW, jitter=jitter)
    assert (got.action, got.delay_ms, got.request) == (Action.RETRY, delay, ASK)


def test_no_back_off_means_at_once() -> None:
    """An operator who lists no steps gets retries without a wait."""
    rules = replace(RULES, backoff_ms=())
    got = settle(Failure("limit.deadline-exceeded"), ASK, rules, now=NOW, jitter=0.9)
    assert (got.action, got.delay_ms) == (Action.RETRY, 0)


@pytest.mark.covers("guest.failed")
@pytest.mark.parametrize(
    ("asked", "delay"),
    [(-1, 2_000), (0, 0), (1, 1), (86_400_000, 86_400_000), (LATER_THAN_A_DAY, 86_400_000)],
)
def test_a_guest_says_when_to_come_back(asked: int, delay: int) -> None:
    """The guest's own wait replaces the back-off, up to a day."""
    failure = Failure("guest.failed", transient=True, retry_after_ms=asked)
    assert settle(failure, ASK, RULES, now=NOW, jitter=0.5).delay_ms == delay


@pytest.mark.covers("sandbox.crashed", "sandbox.killed")
@pytest.mark.parametrize("code", ["sandbox.crashed", "sandbox.killed"])
def test_a_dead_sandbox_is_forgiven_once(code: str) -> None:
    """The first death costs no attempt and no wait; the second one ends the task."""
    first = settle(Failure(code), ASK, RULES, now=NOW, jitter=0.9)
    assert (first.action, first.delay_ms) == (Action.RETRY, 0)
    assert (first.request.attempt, first.request.crashes) == (1, 1)
    second = settle(Failure(code), first.request, RULES, now=NOW, jitter=0.9)
    assert (second.action, second.code, second.request.crashes) == (Action.DEAD, code, 2)


def test_the_history_is_bounded() -> None:
    """A retry carries the last 16 endings, so that it always fits its message."""
    history = tuple(PastAttempt(n, "guest.failed", n) for n in range(1, HISTORY_MAX + 1))
    request = replace(ASK, attempt=2, history=history)
    got = settle(Failure("sandbox.killed"), request, RULES, now=NOW, jitter=0.0)
    assert got.request.history == (*history[1:], PastAttempt(2, "sandbox.killed", NOW))


@pytest.mark.parametrize(
    ("asked", "allowed", "most"), [(0, 3, 3), (1, 3, 1), (3, 3, 3), (9, 3, 3), (2, 1, 1)]
)
def test_a_request_only_lowers_its_attempts(asked: int, allowed: int, most: int) -> None:
    """`attempts_max` of a request never exceeds the operator's."""
    request = replace(ASK, attempts_max=asked)
    assert settlement.attempts_max(request, Rules(attempts_max=allowed)) == most


def test_transience() -> None:
    """The class decides, and where it leaves the word to the guest, the guest."""
    assert settlement.is_transient(Failure("limit.deadline-exceeded"))
    assert settlement.is_transient(Failure("guest.failed", transient=True))
    assert not settlement.is_transient(Failure("guest.failed"))
    assert not settlement.is_transient(Failure("guest.trap", transient=True))


@pytest.mark.covers("message.deliveries-exhausted")
@pytest.mark.parametrize(("delivered", "ended"), [(1, False), (10, False), (11, True)])
def test_deliveries_are_bounded(delivered: int, *, ended: bool) -> None:
    """A message handed over more than `deliveries_max` times is given up, and says so."""
    got = before_running(ASK, RULES, now=NOW, delivered=delivered)
    assert (got is not None) is ended
    if got is not None:
        assert (got.action, got.code) == (Action.DEAD, "message.deliveries-exhausted")


@pytest.mark.covers("message.expired")
@pytest.mark.parametrize(
    ("expires_at", "ended"), [(0, False), (NOW + 1, False), (NOW, True), (NOW - 1, True)]
)
def test_an_expired_task_does_not_start(expires_at: int, *, ended: bool) -> None:
    """At `expires_at` and after it, a task is recorded as expired without running."""
    request = replace(ASK, expires_at=expires_at)
    got = before_running(request, RULES, now=NOW, delivered=1)
    assert (got is not None) is ended
    if got is not None:
        assert (got.action, got.code) == (Action.DEAD, "message.expired")


@pytest.mark.parametrize(("not_before", "delay"), [(NOW + 1, 1), (NOW + 5_000, 5_000)])
def test_a_task_that_is_early_waits(not_before: int, delay: int) -> None:
    """`not_before` puts a task off by what is missing and counts nothing."""
    request = replace(ASK, not_before=not_before)
    got = before_running(request, RULES, now=NOW, delivered=1)
    assert got == settlement.Settlement(Action.RETRY, request, delay)


@pytest.mark.parametrize("not_before", [0, NOW - 1, NOW])
def test_a_task_that_is_due_runs(not_before: int) -> None:
    """From its `not_before` on, nothing holds a task back."""
    request = replace(ASK, not_before=not_before, expires_at=NOW + 1)
    assert before_running(request, RULES, now=NOW, delivered=10) is None


def test_what_ends_a_task_comes_before_what_puts_it_off() -> None:
    """Deliveries are looked at first, then the expiry, then `not_before`."""
    request = replace(ASK, not_before=NOW + 9, expires_at=NOW)
    first = before_running(request, RULES, now=NOW, delivered=11)
    second = before_running(request, RULES, now=NOW, delivered=10)
    assert first is not None
    assert second is not None
    assert (first.code, second.code) == ("message.deliveries-exhausted", "message.expired")


@pytest.mark.parametrize(
    ("request_", "delivered", "look"),
    [
        (replace(ASK, fresh=True), 1, False),
        (ASK, 1, True),
        (replace(ASK, fresh=True), 2, True),
        (replace(ASK, fresh=True, attempt=2), 1, True),
        (replace(ASK, fresh=True, crashes=1), 1, True),
    ],
    ids=["fresh", "own id", "redelivered", "second attempt", "after a crash"],
)
def test_who_is_looked_up(request_: TaskRequest, delivered: int, *, look: bool) -> None:
    """Only the first hand-over of an id that is vouched to be new skips the look."""
    assert must_look_up(request_, delivered=delivered) is look
