"""What stands in for a failure, where policy says so: a fixed value, or another task's module.

Never with more authority than the task had. What it gives is a result, marked degraded with the
code of the failure; if it fails as well, the task ends as it would have without it.
"""

from __future__ import annotations

from dataclasses import replace

from executor.core import policy as policies
from executor.core.settlement import Action, Settlement
from executor.errors import TABLE, Class
from executor.model import Authority, Failure, Fallback, Finished, Result
from executor.supervisor.job import Admitted, Job
from executor.supervisor.ports import Trust


def stand_in(job: Job, settlement: Settlement, finished: Finished, trust: Trust) -> Fallback | None:
    """The fallback for this end of an attempt: it is final, or nobody knows when it will pass."""
    outcome = finished.outcome
    if job.instead is not None or not isinstance(outcome, Failure):
        return None
    systemic = TABLE[outcome.code].klass is Class.SYSTEMIC
    if settlement.action is not Action.DEAD and not systemic:
        return None
    request = job.request
    signers = job.admitted.publishers if job.admitted else ()
    found = policies.fallback_for(trust.policy(), request.tenant, request.task, signers,
                                  job.received_at)  # fmt: skip
    return found if found is not None and outcome.code in found.on else None


def degraded(finished: Finished, fallback: Fallback) -> Finished:
    """The fixed value, with the receipt of what failed."""
    return replace(finished, outcome=Result(fallback.output, fallback.content_type))


def bounded(other: Admitted, bound: Authority) -> Admitted:
    """The other module with the task's authority at most.

    Errors  `policy.capability-denied` if it may do what the task may not.
    """
    return replace(other, authority=policies.within(other.authority, bound))


def failed_too(finished: Finished, code: str) -> Finished:
    """The first failure, which now says why its fallback was of no help."""
    outcome = finished.outcome
    assert isinstance(outcome, Failure)
    facts = (*outcome.facts, ("fallback", code))
    return replace(finished, outcome=replace(outcome, facts=facts))
