"""The one mutable record of a message in hand, from its delivery to its ack; how attempts end."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final, NewType

from executor.core.access import of_tenant
from executor.core.envelope import Origin, origin_of
from executor.core.frames import LAST_CALLS_MAX, Done
from executor.core.manifest import Manifest
from executor.core.schedule import Firing
from executor.core.settlement import Settlement
from executor.model import (
    Authority,
    Delivery,
    Digest,
    Failure,
    Fallback,
    Finished,
    Limits,
    LogLine,
    Receipt,
    Release,
    Result,
    TaskRequest,
)

Facts = tuple[tuple[str, str | int], ...]
# Of a job that has no module yet.
_ANY_LIMITS: Final = Limits()
ModuleKey = NewType("ModuleKey", str)  # digest and granted functions: what is linked together


class Artifact:
    """Native code in a sealed memory file, open for as long as anybody holds this object."""

    def __init__(self, fd: int, size: int, engine: str) -> None:
        self.fd: Final = fd
        self.size: Final = size
        self.engine: Final = engine

    def __del__(self) -> None:
        """Jobs, registry and pool share it; the last one to drop it closes the file."""
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A module that may run for a task: verified, authorised and compiled."""

    release: Release
    manifest: Manifest
    authority: Authority
    artifact: Artifact
    signers: tuple[str, ...]  # key ids, in hex
    publishers: tuple[str, ...] = ()  # their names, one a key
    until: int = 0  # ms: when a key that it needs expires; 0: never
    digest: Digest = field(init=False)  # of the module
    key: ModuleKey = field(init=False)  # what sandboxes are born with

    def __post_init__(self) -> None:
        functions = " ".join(sorted(self.authority.functions))
        object.__setattr__(self, "digest", self.release.digest)
        object.__setattr__(self, "key", ModuleKey(f"{self.digest} {functions}"))


@dataclass(frozen=True, slots=True)
class Instead:
    """A fallback's module runs: what for, in place of which module, and the end without it."""

    fallback: Fallback
    admitted: Admitted  # the task's own: its authority is the bound
    settlement: Settlement
    finished: Finished


@dataclass(slots=True)
class Job:
    """One delivery and all that is known of it so far."""

    delivery: Delivery
    received_at: int  # ms
    lease_until: float  # loop time
    request: TaskRequest
    limits: Limits = _ANY_LIMITS
    admitted: Admitted | None = None
    seq: int = 0  # in the pool; 0 until dispatched
    queued_at: float = 0.0  # loop time, in the pool
    dispatched_at: float = 0.0  # loop time
    charged: float = 0.0  # fuel, to its tenant's account
    started_at: float = 0.0  # loop time, as the status page said at its last call
    calls: dict[str, int] = field(default_factory=dict)  # mediated ones, by function
    # Mediated ones as in `frames.Done`: all that is known of a sandbox that was killed.
    last_calls: deque[tuple[str, int]] | None = None
    unavailable: str = ""  # the function whose service the mediator found down
    unavailable_ms: int = -1  # for how long yet, where its breaker knows
    stranded: int = 0  # sandboxes that died with it first in line and did not say who ran
    alone: bool = False  # nothing may lie behind or before it: who died with it could not be told
    ended: bool = False  # how it ends is decided; what an attempt still says does not count
    settled: bool = False  # no longer ours: published and acked, given back, or lost
    instead: Instead | None = None  # what its fallback stands in for
    firing: Firing | None = None  # the schedule it comes from, unless it is a retry
    signer: str = ""  # the principal that signed the request, `key:…`; "" if nobody did
    degraded: str = ""  # the code of the failure that its fallback took the place of
    followers: tuple[Job, ...] = ()  # deliveries of the same id that wait
    first: Origin | None = None  # the submitter's message, where the delivery only carries it

    @property
    def origin(self) -> Origin:
        """The submitter's message, for a retry or a dead letter: most tasks never need it."""
        return self.first or origin_of(self.delivery)

    @property
    def principal(self) -> str:
        """On whose behalf it is asked for, as far as the subject says."""
        return of_tenant(self.request.tenant)

    def forget_calls(self) -> None:
        """Another run begins; a call of the one before may still be served, and notes its end."""
        self.last_calls = None

    def noted_calls(self) -> deque[tuple[str, int]]:
        """The last calls of this run, to be noted in: the job may have another run before one ends.

        Most tasks make no such call.
        """
        if self.last_calls is None:
            self.last_calls = deque(maxlen=LAST_CALLS_MAX)
        return self.last_calls

    @property
    def name(self) -> str:
        """tenant/task id, for logs."""
        return f"{self.request.tenant}/{self.request.task} {self.request.id}"


def admitted_of(job: Job) -> Admitted:
    """The module of a job that was dispatched."""
    if job.admitted is None:
        raise RuntimeError("a job without its module in the pool")
    return job.admitted


def finished(job: Job, done: Done, engine: str, containment: str) -> Finished:
    """How an attempt ended that ended by itself."""
    admitted, output = admitted_of(job), done.output
    receipt = Receipt(
        admitted.digest, done.fuel_used, done.memory_bytes, done.guest_us, done.host_us,
        done.host_calls, len(job.request.input), len(output), len(done.logs), done.log_dropped,
        engine, containment,
    )  # fmt: skip
    logs = tuple([LogLine(level, text) for level, text in done.logs]) if done.logs else ()
    if not done.code:
        result = Result(output, admitted.manifest.output)
        return Finished(result, receipt, logs, job.limits, (), done.used)
    code, message, after_ms = done.code, done.message, done.retry_after_ms
    if code == "capability.unavailable":
        code = "guest.failed"  # whether a service was down the mediator knows, not the sandbox
    if code == "guest.failed" and done.transient and job.unavailable:
        # The guest gave up because a service was down: not this task's fault.
        code, message = "capability.unavailable", f"`{job.unavailable}`: {message}"
        # How long is for the breaker to say: no attempt counts, so the guest must not set the pace.
        after_ms = job.unavailable_ms
    # A hint is the host's to give, and stands beside the facts under that name.
    facts = tuple((name, value) for name, value in done.facts if name != "hint")
    failure = Failure(
        code, message, facts=facts, transient=done.transient,
        retry_after_ms=after_ms,
    )  # fmt: skip
    return Finished(failure, receipt, logs, job.limits, done.last_calls, done.used)


def killed(job: Job, code: str, facts: Facts, engine: str, containment: str) -> Finished:
    """How an attempt ended whose sandbox died under it."""
    elapsed_us = int((time.monotonic() - job.dispatched_at) * 1e6)
    if code == "limit.deadline-exceeded":
        facts = (("deadline_ms", job.limits.deadline_ms), *facts[1:])
    receipt = Receipt(
        digest=admitted_of(job).digest, guest_us=elapsed_us, input_bytes=len(job.request.input),
        engine=engine, containment=containment,
    )  # fmt: skip
    failure = Failure(code, "", facts=facts)
    return Finished(failure, receipt, (), job.limits, tuple(job.last_calls or ()))
