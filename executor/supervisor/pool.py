"""The sandboxes: which one runs what, when one is started, replaced or retired.

A fixed number of slots; a sandbox serves one tenant for life and holds the modules it was born
with. A slot goes through

    free → starting → ready → retiring (takes nothing new) → leaving (ends what runs) → free

and any death leads to free. What a dying sandbox had not ended is dispatched again, except the
attempt that ran. So a tenant cannot keep a slot that another waits for by what it has queued in
it: that is taken back, and costs nobody anything.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Final, Protocol

from executor.core.fairness import AGE_FUEL
from executor.core.frames import (
    MODULES_MAX,
    WINDOW_BYTES,
    WINDOW_TASKS,
    Answer,
    Call,
    Done,
    Load,
    Run,
)
from executor.core.layers import REQUIRED
from executor.errors import TABLE, Class
from executor.model import Failure, Finished, Receipt
from executor.supervisor.job import Admitted, Job, ModuleKey, admitted_of, finished, killed
from executor.supervisor.process import Death, SandboxProcess
from executor.supervisor.proofs import contradicted
from executor.supervisor.slots import Retire, Slots, Start, Wait
from executor.supervisor.zygote import Zygote

# Work that may lie behind a running attempt, in seconds of guest time: enough to hide the hop.
_WINDOW_S: Final = 0.02
_START_DELAYS_S: Final = (0.1, 0.5, 2.0, 5.0)
# After so many failed starts in a row the tasks that wait are put off instead of held.
_STARTS_MAX: Final = 3
# A sandbox that dies without saying who ran costs nobody anything so often; then the first in line
# is blamed, or one that hides it could be started again for ever.
_STRANDED_MAX: Final = 2
# How often idle sandboxes are looked at: one that works then is in somebody's hands.
IDLE_LOOK_S: Final = 5.0
# Mean times of modules that are kept; beyond, all are learned anew.
_MEANS_MAX: Final = 1_000
_SECONDS_MIN: Final = 1e-6
# What an attempt is charged before its module is known; corrected when it ends.
_FUEL_GUESS: Final = 1e6
# What a `Run` says of limits: all that is not said of its module and input, under the same names.
_limits_of: Final = attrgetter(*[f.name for f in fields(Run)][3:])


@dataclass(slots=True)
class Mean:
    """What an attempt of a module takes, a moving average."""

    seconds: float
    fuel: float


class PoolOwner(Protocol):
    """The pipeline, as the pool sees it."""

    def on_finished(self, job: Job, finished: Finished) -> None:
        """An attempt ended, one way or another."""

    def on_again(self, job: Job) -> None:
        """A job was sent to a sandbox that died before it could run: dispatch it again."""

    async def on_call(self, job: Job, call: Call) -> Answer:
        """Serve a mediated call."""

    def on_event(self, name: str, **facts: str | int) -> None:
        """Something an operator may want to see."""


@dataclass
class Pool:
    """See the module. All methods run on the event loop's thread and do not block."""

    owner: PoolOwner
    modules_of: Callable[[str], Sequence[Admitted]]  # what a tenant's sandboxes are born with
    zygote: Zygote
    slots: Slots
    attempts_per_sandbox_max: int = 50_000
    _sandboxes: list[SandboxProcess] = field(default_factory=list)
    _queues: dict[str, deque[Job]] = field(default_factory=dict)
    _means: dict[ModuleKey, Mean] = field(default_factory=dict)
    _next_seq: int = 1
    _pumping: bool = False
    _failures: dict[str, tuple[int, float]] = field(default_factory=dict)  # count, not before
    _closing: bool = False
    _watch: asyncio.TimerHandle | None = None
    _calls: set[asyncio.Task[None]] = field(default_factory=set)
    _empty: asyncio.Event = field(default_factory=asyncio.Event)
    started: int = 0
    died: int = 0

    def dispatch(self, job: Job) -> None:
        """Run `job` as soon as a sandbox of its tenant has room."""
        tenant = job.request.tenant
        queue = self._queues.get(tenant)
        if queue is None:
            working = {s.tenant for s in self._sandboxes if s.outstanding}
            if tenant not in working:
                self.slots.shares.joins(tenant, working | self._queues.keys())
            queue = self._queues[tenant] = deque()
        job.queued_at = time.monotonic()
        queue.append(job)
        if not self._pumping:
            self._pump_soon()

    def take_waiting(self) -> list[Job]:
        """Remove and return everything that was not yet sent to a sandbox."""
        jobs = [job for queue in self._queues.values() for job in queue]
        self._queues.clear()
        return jobs

    def take_unstarted(self) -> list[Job]:
        """Remove and return what has not begun, and let each sandbox end what runs in it."""
        jobs = self.take_waiting()
        for sandbox in list(self._sandboxes):
            jobs += sandbox.leave(shown=True)
            self._if_done(sandbox)
        return jobs

    def drop(self, job: Job) -> None:
        """Forget a job whose lease was lost: unqueue it, or end the sandbox that runs it."""
        queue = self._queues.get(job.request.tenant)
        if queue is not None and job in queue:
            queue.remove(job)
        for sandbox in self._sandboxes:
            if sandbox.runs(job):
                sandbox.kill("", "the lease of what it ran was lost")
            else:
                self._skip(sandbox)

    def cancel(self, job: Job) -> bool:
        """Stop a job: True when it runs and its sandbox ends with it, which settles it."""
        queue = self._queues.get(job.request.tenant)
        if queue is not None and job in queue:
            queue.remove(job)
        for sandbox in self._sandboxes:
            if sandbox.runs(job):
                sandbox.kill("task.cancelled", "cancelled", guilty=job.seq)
                return True
            if sandbox.head is job:
                sandbox.kill("", "what comes next in it was cancelled")
        return False

    def warm(self, tenant: str) -> None:
        """Start a sandbox for a tenant ahead of its first task, if a slot is free."""
        if len(self._sandboxes) < self.slots.count and self.modules_of(tenant):
            self._start(tenant, None)

    def retire_all(self) -> None:
        """Let every sandbox end what runs and replace it: policy or trust changed."""
        for sandbox in list(self._sandboxes):
            self._make_leave(sandbox)

    def retire_module(self, digest: str) -> None:
        """End the sandboxes that hold a module, now."""
        for sandbox in list(self._sandboxes):
            if any(key.startswith(digest) for key in sandbox.modules):
                sandbox.kill("", "its module was revoked")

    async def close(self) -> None:
        """End all sandboxes at once and wait until they are gone."""
        self._closing = True
        if self._watch is not None:
            self._watch.cancel()
        for sandbox in list(self._sandboxes):
            sandbox.kill("", "closing")
        while self._sandboxes:
            self._empty.clear()
            await self._empty.wait()
        for call in list(self._calls):
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    def statistics(self) -> dict[str, int]:
        """Counts for metrics and tests."""
        return {
            "sandboxes": len(self._sandboxes),
            "ready": sum(s.ready for s in self._sandboxes),
            "running": sum(s.outstanding for s in self._sandboxes),
            "waiting": sum(map(len, self._queues.values())),
            "started": self.started, "died": self.died,
        }  # fmt: skip

    def pids(self) -> dict[int, str]:
        """The live sandboxes and their tenants."""
        return {sandbox.pid: sandbox.tenant for sandbox in self._sandboxes if sandbox.pid}

    # Dispatching.

    def _pump_soon(self, delay_s: float = 0.0) -> None:
        if delay_s:
            asyncio.get_running_loop().call_later(delay_s, self._pump_soon)
        elif not self._pumping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        if self._closing:
            return
        try:
            for tenant, queue in list(self._queues.items()):
                while queue and (sandbox := self._with_room(tenant, queue[0])) is not None:
                    self._send(sandbox, queue.popleft())
                if not queue:
                    del self._queues[tenant]
        finally:  # what was taken is sent, whatever one of them met
            for sandbox in self._sandboxes:
                sandbox.flush()
        if self._queues:
            now = time.monotonic()
            waited = {tenant: now - queue[0].queued_at for tenant, queue in self._queues.items()}
            for tenant in self.slots.order(waited, self._sandboxes):
                self._make_room(tenant, self._queues[tenant][0])

    def _with_room(self, tenant: str, job: Job) -> SandboxProcess | None:
        key = admitted_of(job).key
        mean = self._means.get(key)
        window = max(2, min(WINDOW_TASKS, int(_WINDOW_S / mean.seconds))) if mean else 2
        if job.alone:
            window = 1
        size = len(job.request.input)
        best: SandboxProcess | None = None
        for sandbox in self._sandboxes:
            if (
                sandbox.ready and not sandbox.retiring and sandbox.tenant == tenant
                and key in sandbox.modules and sandbox.has_room(window, size, WINDOW_BYTES)
                and (best is None or sandbox.outstanding < best.outstanding)
            ):  # fmt: skip
                best = sandbox
        return best

    def _send(self, sandbox: SandboxProcess, job: Job) -> None:
        request, key = job.request, admitted_of(job).key
        job.seq = seq = self._next_seq
        job.dispatched_at = time.monotonic()
        job.unavailable, job.unavailable_ms = "", -1
        mean = self._means.get(key)
        job.charged = mean.fuel if mean else _FUEL_GUESS
        self.slots.shares.charge(request.tenant, job.charged)
        self._next_seq += 1
        run = Run(seq, sandbox.modules[key], request.input, *_limits_of(job.limits))
        sandbox.run(job, run)
        if sandbox.attempts >= self.attempts_per_sandbox_max:
            # Nobody waits for its slot, or it is told to leave: what it has it may end.
            sandbox.retiring = True

    # Slots.

    def _make_room(self, tenant: str, job: Job) -> None:
        """A job waits: start a sandbox, or free a slot for one, unless that is under way."""
        now = time.monotonic()
        _, not_before = self._failures.get(tenant, (0, 0.0))
        if now < not_before:
            self._pump_soon(not_before - now)
            return
        match self.slots.room(tenant, admitted_of(job).key, self._sandboxes, self._queues):
            case Start():
                self._start(tenant, job)
            case Retire(sandbox):
                self._make_leave(sandbox, tenant)
            case Wait(seconds) if seconds:
                self._pump_soon(seconds)

    def _start(self, tenant: str, job: Job | None) -> None:
        wanted = [admitted_of(job)] if job else []
        wanted += self.modules_of(tenant)
        modules: dict[ModuleKey, Admitted] = {}
        for admitted in wanted:
            if len(modules) < MODULES_MAX:
                modules.setdefault(admitted.key, admitted)
        load = Load(tuple(
            (place, tuple(sorted(admitted.authority.functions)))
            for place, admitted in enumerate(modules.values())
        ))  # fmt: skip
        taken = {sandbox.slot for sandbox in self._sandboxes}
        sandbox = SandboxProcess(
            owner=self, tenant=tenant, loop=asyncio.get_running_loop(), zygote=self.zygote,
            modules={key: index for index, key in enumerate(modules)},
            slot=next(slot for slot in range(self.slots.count) if slot not in taken),
        )  # fmt: skip
        most = max((a.authority.limits.memory_bytes for a in modules.values()), default=0)
        try:
            sandbox.start(load, [a.artifact.fd for a in modules.values()], memory_bytes=most)
        except OSError as error:
            self._start_failed(tenant, f"errno {error.errno}")
            return
        self.started += 1
        self._sandboxes.append(sandbox)
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(IDLE_LOOK_S, self._look_at_idle)

    def _look_at_idle(self) -> None:
        for sandbox in self._sandboxes:
            sandbox.check_idle()
        self._watch = asyncio.get_running_loop().call_later(IDLE_LOOK_S, self._look_at_idle)

    def _make_leave(self, sandbox: SandboxProcess, successor: str = "") -> None:
        sandbox.leave(successor)
        self._if_done(sandbox)

    def _if_done(self, sandbox: SandboxProcess) -> None:
        if sandbox.done:
            sandbox.kill("", "retired")

    def _start_failed(self, tenant: str, detail: str, code: str = "sandbox.start-failed") -> None:
        count, _ = self._failures.get(tenant, (0, 0.0))
        delay = _START_DELAYS_S[min(count, len(_START_DELAYS_S) - 1)]
        self._failures[tenant] = (count + 1, time.monotonic() + delay)
        self.owner.on_event("sandbox.start-failed", tenant=tenant, code=code, detail=detail)
        if count + 1 >= _STARTS_MAX:
            # Nothing ran, so no attempt may be counted, whatever ended the process.
            if TABLE[code].klass is not Class.SYSTEMIC:
                code = "sandbox.start-failed"
            # What a sandbox that lives can run waits for that one.
            own = [s for s in self._sandboxes if s.tenant == tenant and s.ready]
            served = {key for sandbox in own if not sandbox.retiring for key in sandbox.modules}
            jobs = self._queues.pop(tenant, deque())
            self._queues[tenant] = deque(j for j in jobs if admitted_of(j).key in served)
            for job in jobs:
                if admitted_of(job).key not in served:
                    self.owner.on_finished(job, Finished(Failure(code, detail), Receipt()))
        self._pump_soon(delay)

    # What sandboxes say.

    def on_started(self, sandbox: SandboxProcess) -> None:
        """The process exists."""
        self.owner.on_event("sandbox.started", tenant=sandbox.tenant, pid=sandbox.pid)

    def on_ready(self, sandbox: SandboxProcess) -> None:
        """A sandbox claims to be locked down; look for ourselves before believing it."""
        denied = contradicted(sandbox.pid, sandbox.layers)
        sandbox.layers = tuple(layer for layer in sandbox.layers if layer not in denied)
        missing = ", ".join(sorted(REQUIRED - set(sandbox.layers)))
        if missing:
            if not self.zygote.best_effort:
                sandbox.ready = False  # it never was, for whoever counts failed starts
                sandbox.kill("sandbox.containment-missing", missing)
                return
            self.owner.on_event("sandbox.weakened", missing=missing)
        self._failures.pop(sandbox.tenant, None)
        self._pump_soon()

    def on_done(self, sandbox: SandboxProcess, job: Job, done: Done) -> None:
        """An attempt ended by itself."""
        admitted = admitted_of(job)
        elapsed_us = int((time.monotonic() - job.dispatched_at) * 1e6)
        if done.guest_us + done.host_us > elapsed_us:
            done = _within(done, elapsed_us)
        self._learn(admitted.key, (done.guest_us + done.host_us) / 1e6, done.fuel_used)
        self.slots.shares.charge(job.request.tenant, done.fuel_used - job.charged)
        if sandbox.retiring:
            self._if_done(sandbox)
        self._skip(sandbox)
        if self._queues and not self._pumping:
            self._pump_soon()
        self.owner.on_finished(job, finished(job, done, sandbox.engine, sandbox.containment))

    def _learn(self, key: ModuleKey, seconds: float, fuel: int) -> None:
        mean = self._means.get(key)
        if mean is None:
            if len(self._means) > _MEANS_MAX:
                self._means.clear()
            self._means[key] = Mean(max(seconds, _SECONDS_MIN), fuel)
        else:
            mean.seconds = 0.9 * mean.seconds + 0.1 * max(seconds, _SECONDS_MIN)
            mean.fuel = 0.9 * mean.fuel + 0.1 * fuel

    def mean_s(self, tenant: str) -> float:
        """How long this tenant's attempts take, by those that are in hand; 0: nothing is known."""
        keys = [key for s in self._sandboxes if s.tenant == tenant for key in s.modules]
        known = [self._means[key].seconds for key in keys if key in self._means]
        return max(known, default=0.0)

    def _skip(self, sandbox: SandboxProcess) -> None:
        """End a sandbox whose turn it is to run what is over: cancelled, lost or given back.

        It cannot be told to leave one out. What else lies in it is dispatched again.
        """
        head = sandbox.head
        if head is not None and (head.ended or head.settled):
            sandbox.kill("", "what comes next in it is over")

    def on_call(self, sandbox: SandboxProcess, job: Job, call: Call) -> None:
        """Hand a call to the mediator; its answer comes when it comes."""
        if job.ended or job.settled:
            sandbox.kill("", "what runs in it is over")
            return
        job.started_at = sandbox.started_at(job)

        async def serve() -> None:
            answer = await self.owner.on_call(job, call)
            sandbox.answer(answer)

        task = asyncio.get_running_loop().create_task(serve())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def on_dead(self, sandbox: SandboxProcess, death: Death, jobs: list[Job]) -> None:
        """Free the slot, settle the attempt that ran, dispatch the rest again."""
        self._sandboxes.remove(sandbox)
        self._empty.set()
        self.died += bool(death.code)
        if death.code:
            self.owner.on_event("sandbox.died", tenant=sandbox.tenant, pid=sandbox.pid,
                                code=death.code, detail=death.detail)  # fmt: skip
        if death.forbidden:
            self.owner.on_event("sandbox.forbidden-call", tenant=sandbox.tenant, pid=sandbox.pid)
        guilty, seqs = _to_blame(death, jobs), {job.seq for job in jobs}
        for job in jobs:
            # What it really used died with it; by the clock, it is near enough.
            burnt = (time.monotonic() - job.dispatched_at) * AGE_FUEL if job.seq == guilty else 0.0
            self.slots.shares.charge(job.request.tenant, burnt - job.charged)
            if job.seq == guilty:
                facts = (("ended", death.detail), *death.facts)
                self.owner.on_finished(
                    job, killed(job, death.code, facts, sandbox.engine, sandbox.containment)
                )
            elif not self._closing:
                # Nobody could tell who ran: next time there is only one that can have.
                job.alone |= bool(death.code) and death.guilty not in seqs
                self.owner.on_again(job)
        if not death.ready and death.code:
            self._start_failed(sandbox.tenant, death.detail, death.code)
        if not self._closing:
            self._pump_soon()


def _within(done: Done, elapsed_us: int) -> Done:
    """The end of an attempt, with no more time than went by since it was sent."""
    guest_us = min(done.guest_us, elapsed_us)
    return replace(done, guest_us=guest_us, host_us=min(done.host_us, elapsed_us - guest_us))


def _to_blame(death: Death, jobs: Sequence[Job]) -> int:
    """The number of the attempt that pays for this death; 0: none does."""
    if not death.code or not jobs or any(job.seq == death.guilty for job in jobs):
        return death.guilty if death.code else 0
    first = jobs[0]
    first.stranded += 1
    return first.seq if first.stranded > _STRANDED_MAX else 0
