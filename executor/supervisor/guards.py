"""What keeps a task from running now though nothing is wrong with it, and what learns from its end.

Paused tasks, modules in quarantine and open breakers put a task off: a systemic failure, no attempt
counted. What an attempt's end says of its module, its tenant's sandboxes and the services behind
capabilities is noted here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from executor.core import control, subjects
from executor.core.access import ANY
from executor.core.settlement import Action, Settlement
from executor.errors import TABLE, Class
from executor.model import Digest, Failure, Finished, Result
from executor.supervisor.breakers import Breakers, Budgets, Name
from executor.supervisor.job import Admitted, Job

# Ends of a sandbox that speak of the module in it; a SIGKILL from outside says nothing.
_DAMNING: Final = frozenset({"SIGSEGV", "SIGBUS", "SIGILL", "SIGABRT", "SIGSYS"})
# What counts against a module. Not what the guest itself calls a failure, nor a kill from outside.
_BREAKS: Final = frozenset(
    {"sandbox.crashed", "sandbox.protocol-violation", "limit.deadline-exceeded"}
)
_MODULE, _SANDBOX, _CAPABILITY = "module", "sandbox", "capability"
_ALL: Final = "_"


def module_of(tenant: str, digest: str) -> Name:
    """A module's name among breakers and budgets."""
    return _MODULE, tenant, digest.removeprefix("sha256:")


def sandboxes_of(tenant: str) -> Name:
    """The name of what starts a tenant's sandboxes."""
    return _SANDBOX, tenant, _ALL


def target_of(tenant: str, capability: str) -> Name:
    """The name of a service behind a capability."""
    return _CAPABILITY, tenant, capability


@dataclass
class Guards:
    """See the module."""

    breakers: Breakers
    budgets: Budgets
    paused: dict[tuple[str, str], str] = field(default_factory=dict)  # tenant, task → why
    # Digest, tenant or `ANY` → code.
    quarantined: dict[tuple[Digest, str], str] = field(default_factory=dict)

    @property
    def quiet(self) -> bool:
        """Whether nothing is held up, and no failure is remembered: then nothing is asked here."""
        return not (self.paused or self.quarantined or self.breakers.known or self.budgets.known)

    def is_paused(self, tenant: str, task: str) -> bool:
        """Whether an operator holds this task up."""
        return bool(self.paused) and (tenant, task) in self.paused

    def held_up(self, job: Job, admitted: Admitted, task: str = "") -> Failure | None:
        """Why this module must not run now, if it must not; `task`, where it stands in for one."""
        if self.is_paused(job.request.tenant, task or job.request.task):
            return Failure("task.paused")
        tenant, digest = job.request.tenant, admitted.digest
        if self.quarantined and not self.quarantined.keys().isdisjoint(
            {(digest, tenant), (digest, ANY)}
        ):
            return Failure("module.quarantined", f"`{digest}`")
        name, wait_ms = self.breakers.wait_ms(module_of(tenant, digest), sandboxes_of(tenant))
        if name is not None:
            return Failure(f"{name[0]}.breaker-open", retry_after_ms=wait_ms)
        if job.request.attempt == 1:
            self.budgets.attempted(*self._budgets(job, admitted))
        return None

    def _budgets(self, job: Job, admitted: Admitted) -> tuple[Name, Name]:
        request = job.request
        return ("task", request.tenant, request.task), module_of(request.tenant, admitted.digest)

    def note(self, job: Job, finished: Finished, settlement: Settlement) -> int:
        """Learn from how an attempt ended; how many ms its retry has to wait beyond its own."""
        outcome, admitted, tenant = finished.outcome, job.admitted, job.request.tenant
        if isinstance(outcome, Result) and not self.breakers.known:
            return 0  # no failure is remembered that it could make up for
        code = outcome.code if isinstance(outcome, Failure) else ""
        if code in {"sandbox.start-failed", "sandbox.containment-missing"}:
            self.breakers.failed(sandboxes_of(tenant))
        if admitted is None or not finished.receipt.digest:
            return 0  # nothing ran
        klass = TABLE[code].klass if code else None
        if code in _BREAKS:
            self.breakers.failed(module_of(tenant, admitted.digest))
        elif code not in {"task.cancelled", "sandbox.killed"}:
            self.breakers.succeeded(module_of(tenant, admitted.digest))
        self.breakers.succeeded(sandboxes_of(tenant))
        if klass is Class.ONCE and settlement.action is Action.DEAD:
            self._quarantine(job, admitted.digest, finished)
        if settlement.action is Action.RETRY and settlement.request.attempt > job.request.attempt:
            return self.budgets.retried(*self._budgets(job, admitted))
        return 0

    def _quarantine(self, job: Job, digest: Digest, finished: Finished) -> None:
        """The second sandbox died on this task: was it the module, keep the tenant from it."""
        outcome = finished.outcome
        assert isinstance(outcome, Failure)
        ended = dict(outcome.facts).get("ended", "")
        if outcome.code != "sandbox.protocol-violation" and ended not in _DAMNING:
            return
        tenant = job.request.tenant
        self.quarantined[digest, tenant] = outcome.code
        self.breakers.on_event("quarantined", task=job.name, digest=digest, code=outcome.code)
        key = subjects.quarantine_key(digest, tenant)
        self.breakers.board.put(key, control.encode(
            "quarantine", key, self.breakers.environment, at=self.breakers.now_ms(),
            code=outcome.code, task=f"{tenant}/{job.request.task}",
            by=self.breakers.executor,
        ))  # fmt: skip
