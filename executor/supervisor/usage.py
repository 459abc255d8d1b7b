"""Counts what attempts use of their authority, and what a shadow of the policy would deny them.

An attempt costs two look-ups here: what it called is one number, whose bits are told apart when
the usage is written. The shadow is another document that nobody is held to: the same module is
authorised under it once, and what a run used is compared with that. What a sandbox says of calls
that it serves itself is believed for this and for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter, gt
from typing import Final, Protocol

from executor.core import abi, scopes
from executor.core import policy as policies
from executor.core.access import of_key
from executor.core.policy import Import, Policy, Publisher
from executor.core.usage import TASKS_MAX, TaskUse, Usage
from executor.errors import ExecutorError
from executor.model import Authority, Finished, Receipt
from executor.supervisor.job import Admitted, Job

# A limit, and where a receipt says how much of it was used.
_MOST: Final = (
    ("fuel", "fuel_used"), ("memory_bytes", "memory_peak_bytes"), ("calls", "host_calls"),
    ("input_bytes", "input_bytes"), ("output_bytes", "output_bytes"), ("log_lines", "log_lines"),
)  # fmt: skip
_most_of: Final = attrgetter(*(of_receipt for _, of_receipt in _MOST))
_MEDIATED: Final = sum(abi.BITS[f.name] for f in abi.FUNCTIONS.values() if f.mediated)


class OnDenied(Protocol):
    """Told of each run that the shadow would deny."""

    def __call__(self, task: str, what: str, *, new: bool) -> None:
        """The task, what of it, and whether that was not told before."""


def _unheard(task: str, what: str, *, new: bool) -> None:
    del task, what, new


@dataclass(frozen=True, slots=True)
class Shadow:
    """The document that is only counted, by the digest of its text."""

    name: str
    policy: Policy
    publishers: tuple[Publisher, ...]


@dataclass(slots=True)
class _Running:
    """What is counted of one admitted module until it is written."""

    admitted: Admitted
    use: TaskUse
    masks: dict[int, int] = field(default_factory=dict)  # functions called → runs
    shadow: Authority | str | None = None  # or what it denies; None: there is none
    most: tuple[int, ...] = (0,) * len(_MOST)


@dataclass
class Usages:
    """See the module."""

    now_ms: Callable[[], int] = lambda: 0
    on_denied: OnDenied = _unheard
    shadow: Shadow | None = None
    _running: dict[tuple[str, str], _Running] = field(default_factory=dict)
    _usages: dict[str, Usage] = field(default_factory=dict)
    _changed: set[str] = field(default_factory=set)

    def under(self, policy: Policy, shadow: Shadow | None) -> None:
        """Policy is new: remember its grants, and evaluate this shadow from now on."""
        self._settle()
        self._running.clear()
        self.shadow = shadow
        name = shadow.name if shadow else ""
        self._usages = {t.name: self._usages.get(t.name, Usage()) for t in policy.tenants}
        for tenant, usage in self._usages.items():
            usage.see([g for g in policy.grants if g.tenant == tenant], self.now_ms())
            if usage.shadow != name:
                usage.shadow = name
                for use in usage.tasks.values():
                    use.denied.clear()
            self._changed.add(tenant)

    def adopt(self, tenant: str, usage: Usage) -> None:
        """Go on from what an earlier life of this executor wrote."""
        mine = self._usages.get(tenant)
        if mine is None:
            return
        if usage.shadow != mine.shadow:
            for use in usage.tasks.values():
                use.denied.clear()
        known = set(mine.grants)
        mine.add(usage)
        mine.grants = {name: at for name, at in mine.grants.items() if name in known}

    def note(self, job: Job, finished: Finished) -> None:
        """An attempt ended that ran."""
        admitted = job.admitted
        if admitted is None or not finished.receipt.digest:
            return
        release = admitted.release
        running = self._running.get((release.tenant, release.task))
        if running is None or running.admitted is not admitted:
            running = self._begin(admitted)
        use = running.use
        use.runs += 1
        use.last = self.now_ms()
        # Of mediated calls the mediator knows; of the others only what the sandbox says.
        mask = finished.used & ~_MEDIATED
        for name in job.calls:
            mask |= abi.BITS[name]
        running.masks[mask] = running.masks.get(mask, 0) + 1
        used = _most_of(finished.receipt)
        if any(map(gt, used, running.most)):
            running.most = tuple(map(max, used, running.most))
            self._note_most(use, running.most)
        self._changed.add(release.tenant)
        if running.shadow is not None:
            self._compare(job, running, finished.receipt)

    @staticmethod
    def _note_most(use: TaskUse, most: tuple[int, ...]) -> None:
        for (limit, _), value in zip(_MOST, most, strict=True):
            if value > use.most.get(limit, 0):
                use.most[limit] = value

    def key(self, job: Job, function: str, key: str) -> None:
        """A call with this key, below the prefix of its scope, was let through."""
        admitted = job.admitted
        if admitted is None or admitted.authority.kv is None:
            return
        release = admitted.release
        running = self._running.get((release.tenant, release.task))
        if running is None or running.admitted is not admitted:
            running = self._begin(admitted)
        prefix = admitted.authority.kv.prefix
        running.use.key(prefix, function, key)
        shadow = running.shadow
        if isinstance(shadow, Authority) and not (
            shadow.kv is not None and shadow.kv.prefix == prefix
            and scopes.allows(shadow.kv, function, key)
        ):  # fmt: skip
            self._deny(release.tenant, release.task, running.use, f"{function} of other keys")

    def _begin(self, admitted: Admitted) -> _Running:
        """The first attempt of a module under this policy."""
        release = admitted.release
        self._settle()
        usage = self._usages.setdefault(release.tenant, Usage())
        use = usage.tasks.get(release.task)
        if use is None:
            if len(usage.tasks) >= TASKS_MAX:
                oldest = min(usage.tasks, key=lambda name: usage.tasks[name].last)
                del usage.tasks[oldest]
                self._running.pop((release.tenant, oldest), None)
            use = usage.tasks[release.task] = TaskUse(self.now_ms())
        use.digest = release.digest
        use.imports = tuple(sorted(admitted.authority.functions))
        use.signers = admitted.publishers
        running = _Running(admitted, use, shadow=self._under_shadow(admitted))
        self._running[release.tenant, release.task] = running
        return running

    def _under_shadow(self, admitted: Admitted) -> Authority | str | None:
        """What the shadow would give this module, or why it would not run at all."""
        shadow, release = self.shadow, admitted.release
        if shadow is None:
            return None
        tenant, task = release.tenant, release.task
        signers = [
            publisher for publisher in shadow.publishers
            if publisher.key.key_id.hex() in admitted.signers and publisher.may_sign(tenant, task)
            and shadow.policy.access.may(of_key(publisher.key), "publish", tenant, task).allowed
        ]  # fmt: skip
        if not signers:
            return "signer"
        try:
            return policies.authorise(
                shadow.policy, tenant=tenant, task=task, manifest=admitted.manifest,
                imports=imports_of(admitted.authority), signers=signers, at=self.now_ms(),
            )  # fmt: skip
        except ExecutorError as error:
            return error.detail.replace("`", "") or error.code

    def _compare(self, job: Job, running: _Running, receipt: Receipt) -> None:
        release, use, shadow = running.admitted.release, running.use, running.shadow
        assert self.shadow is not None
        if isinstance(shadow, str):
            self._deny(release.tenant, release.task, use, shadow)
        elif shadow is not None:
            for limit, of_receipt in _MOST:
                if getattr(receipt, of_receipt) > getattr(shadow.limits, limit):
                    self._deny(release.tenant, release.task, use, f"limit {limit}")
        decision = self.shadow.policy.access.may(
            job.principal, "submit", release.tenant, job.request.task, job.signer
        )
        if not decision.allowed:
            self._deny(release.tenant, release.task, use, "submit")

    def _deny(self, tenant: str, task: str, use: TaskUse, what: str) -> None:
        self.on_denied(f"{tenant}/{task}", what, new=use.deny(what))

    def _settle(self) -> None:
        """Tell the functions of what was counted apart."""
        for running in self._running.values():
            for mask, runs in running.masks.items():
                for name in running.admitted.authority.functions:
                    if mask & abi.BITS[name]:
                        running.use.called(name, runs, running.use.last)
            running.masks.clear()

    def changed(self) -> dict[str, Usage]:
        """What is new since this was last asked, by tenant."""
        self._settle()
        changed, self._changed = self._changed, set()
        return {tenant: self._usages[tenant] for tenant in changed if tenant in self._usages}


def imports_of(authority: Authority) -> list[Import]:
    """A module's imports, of which its authority has every function."""
    functions = [abi.FUNCTIONS[name] for name in sorted(authority.functions)]
    return [(f.module, f.name, policies.spell(f.params, f.results)) for f in functions]
