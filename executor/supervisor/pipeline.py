"""The journey of a message, one step after the other.

    1 receive · 2 decode · 3 count · 4 resolve · 5 verify · 6 authorise · 7 dispatch · 8 execute
    9 settle · 10 publish · 11 ack

The common case runs through steps 1 to 7 without waiting: everything it needs was decided before
and is a look-up. Only an unknown module and an id that may be done already take the slow path.
Deliveries of one id that meet here follow each other: the second finds the outcome of the first.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from executor.core import abi, policy, subjects
from executor.core.frames import Answer, Call
from executor.core.settlement import (
    Action,
    Rules,
    Settlement,
    before_running,
    is_plain,
    must_look_up,
    settle,
    settled,
)
from executor.errors import ExecutorError
from executor.model import (
    Delivery,
    Failure,
    Finished,
    Receipt,
    Result,
    StoredMessage,
    TaskId,
)
from executor.supervisor.cancelling import Cancelling
from executor.supervisor.clock import host_ms
from executor.supervisor.fallback import bounded, degraded, failed_too, stand_in
from executor.supervisor.guards import Guards
from executor.supervisor.job import Admitted, Instead, Job
from executor.supervisor.leases import Leases
from executor.supervisor.mediator import Mediator
from executor.supervisor.pool import Pool
from executor.supervisor.ports import Intake, Outbox, Records, Trust
from executor.supervisor.reading import UNREAD, Reading
from executor.supervisor.registry import Registry
from executor.supervisor.schedules import Schedules
from executor.supervisor.settling import Settler, as_failure
from executor.supervisor.usage import Usages
from executor.telemetry import AttemptFacts, Telemetry

_IdOf = tuple[str, str, str]  # tenant, task, id
# Names of tasks come from whoever submits: more than so many are not remembered.
_NAMES_MAX: Final = 1_000
_CANCELLED: Final = "task.cancelled"


@dataclass
class Pipeline:
    """See the module; built and torn down by `supervisor.service`."""

    environment: str
    rules: Rules
    ack_wait_ms: int
    trust: Trust
    registry: Registry
    mediator: Mediator
    settler: Settler
    outbox: Outbox
    records: Records
    intake: Intake
    telemetry: Telemetry
    guards: Guards
    usage: Usages = field(default_factory=Usages)
    reading: Reading = field(init=False)
    pool: Pool = field(init=False)
    leases: Leases = field(init=False)
    cancelling: Cancelling = field(init=False)
    schedules: Schedules = field(init=False)
    now_ms: Callable[[], int] = host_ms
    jitter: Callable[[], float] = random.random
    settled: dict[str, int] = field(default_factory=dict)
    # Tenant and task → the policy by which the tenant may ask for it.
    _may: dict[tuple[str, str], policy.Policy] = field(default_factory=dict)
    _ids: dict[_IdOf, Job] = field(default_factory=dict)  # of those that are looked up
    _slow: dict[asyncio.Task[None], Job] = field(default_factory=dict)
    _draining: bool = False
    _held_up: bool = False  # nobody can be judged now

    def __post_init__(self) -> None:
        """Leases and cancellations end jobs of this pipeline."""
        self.settler.on_settled = self.on_settled
        self.reading = Reading(self.environment, self.trust, self.telemetry)
        self.leases = Leases(self.ack_wait_ms, self.outbox, self._lost)
        self.cancelling = Cancelling(
            self.records, self.telemetry, self._end_cancelled, self._end_waiting
        )
        self.schedules = Schedules(
            environment=self.environment, key=self.settler.key, trust=self.trust,
            outbox=self.outbox, records=self.records, board=self.guards.breakers.board,
            telemetry=self.telemetry, now_ms=self.now_ms,
        )  # fmt: skip

    # 1 to 3: receive, decode, count.

    def receive(self, delivery: Delivery) -> None:
        """Take one delivery; whatever it is, it ends in exactly one settlement."""
        if self.leases.again(delivery):
            # Our lease lapsed on the server and the message came back to us: the work goes on
            # under the new lease, and the old delivery's credit is free.
            self.intake.completed(delivery.tenant)
            return
        if self._draining or self._held_up:
            self.outbox.nak(delivery.lease)
            self.intake.completed(delivery.tenant)
            return
        job = Job(delivery, self.now_ms(), self.leases.until(), UNREAD)
        self.leases.take(job)
        try:
            self.reading.decode(job)
            if job.firing is None or self.schedules.has(job):
                self._judge(job)
            else:
                self._start(job, self._unheard(job))
        except ExecutorError as error:
            self._refuse(job, error)
        except Exception as error:  # noqa: BLE001 - one message must not stop all others
            self._bug(job, error)

    async def _unheard(self, job: Job) -> None:
        """A firing of what this executor knows of no schedule: CONTROL has the last word."""
        try:
            if await self.schedules.look(job):
                self._judge(job)
                return
        except ExecutorError as error:
            self._refuse(job, error)
            return
        self.outbox.ack(job.delivery.lease)
        self._release(job, "gone")

    def _judge(self, job: Job) -> None:
        """Steps 3 to 7 of what is to run. Errors  what refuses it."""
        request, delivered = job.request, job.delivery.delivered
        if self.cancelling.has(request, job.received_at):
            raise ExecutorError(_CANCELLED)
        plain = is_plain(request, delivered=delivered)
        if not plain and self._before_running(job):
            return
        denied = self._denied(job)
        if denied is not None:
            if not job.signer and job.first is None and job.firing is None:
                # Whoever may not ask must not end a task under an id that it claims.
                job.request = replace(request, id=TaskId(f"_{job.delivery.sequence}"))
            self._refuse(job, denied)
            return
        look = not plain and must_look_up(request, delivered=delivered)
        if look and self._follows(job):
            return
        known = self.registry.now(request.tenant, request.task)
        if self.guards.is_paused(request.tenant, request.task):
            self.on_finished(job, Finished(Failure("task.paused"), Receipt()))
        elif known is None or look:
            self._start(job, self._slowly(job))
        elif isinstance(known, ExecutorError):
            # Not raised: it is kept, and would keep the frames, and so the jobs, of all it met.
            self._refuse(job, known)
        else:
            self._dispatch(job, known)

    def _before_running(self, job: Job) -> bool:
        """Whether it need not or must not run now, and was settled."""
        ready = before_running(
            job.request, self.rules, now=job.received_at, delivered=job.delivery.delivered
        )
        if ready is None:
            return False
        if ready.action is Action.RETRY:
            self.settler.settle(job, ready, Finished(Result(b""), Receipt()))  # not before its time
        else:
            self._settle(job, ready, Finished(Failure(ready.code), Receipt()))
        return True

    def _denied(self, job: Job) -> ExecutorError | None:
        """Step 6 for whoever asks, a look-up: `policy.submitter-denied`, or None."""
        request, now = job.request, self.trust.policy()
        name = (request.tenant, request.task)
        if self._may.get(name) is now and not job.signer:
            return None
        decision = now.access.may(job.principal, "submit", *name, job.signer)
        if decision.allowed:
            if not job.signer:
                if len(self._may) >= _NAMES_MAX:
                    self._may.clear()
                self._may[name] = now
            return None
        return ExecutorError(
            "policy.submitter-denied", f"`{request.tenant}/{request.task}`: {decision.why}"
        )

    def _follows(self, job: Job) -> bool:
        """Whether another delivery of this id is in hand: then this one waits for its end."""
        first = self._ids.setdefault(_id_of(job), job)
        if first is job:
            return False
        first.followers += (job,)
        return True

    def _refuse(self, job: Job, error: ExecutorError) -> None:
        self.on_finished(job, Finished(as_failure(error), Receipt()))

    # 4 to 6, where they have to wait.

    def _start(self, job: Job, steps: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(steps)
        self._slow[task] = job
        task.add_done_callback(self._slow_ended)

    def _slow_ended(self, task: asyncio.Task[None]) -> None:
        job = self._slow.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bug(job, error)

    async def _slowly(self, job: Job) -> None:
        request = job.request
        try:
            if must_look_up(request, delivered=job.delivery.delivered):
                stored = await self.settler.read(job)
                if job.settled:
                    return
                if self.settler.authentic(stored):
                    self.telemetry.log.event("duplicate", task=request.task, id=request.id)
                    self.outbox.ack(job.delivery.lease)
                    self._release(job, "duplicate")
                    return
            await self.registry.admit(request.tenant, request.task)
        except ExecutorError as error:
            self._refuse(job, error)
            return
        self.on_again(job)  # policy or trust may have changed, even between that and this turn

    def decide_again(self) -> None:
        """Policy or trust changed: what has not started is authorised anew, as if just received."""
        self.schedules.look_again()
        revoked = self.registry.revoked()
        self.registry.forget()
        self._may.clear()
        waiting = self.pool.take_waiting()
        for digest in revoked:
            self.pool.retire_module(digest)
        self.pool.retire_all()
        for job in waiting:
            if self.trust.policy().tenant(job.request.tenant) is None:
                self._give_back(job)  # another executor may serve it yet
            else:
                self.on_again(job)

    def hold(self) -> None:
        """Trust is over, so nobody can be judged: what has not started goes back to its queue.

        What runs was judged before and ends as it does; nothing loses an attempt.
        """
        self._held_up = True
        for job in self.pool.take_waiting():
            self._give_back(job)

    def go_on(self) -> None:
        """Take deliveries again."""
        self._held_up = False

    def look_again(self) -> None:
        """A task was paused or a module put in quarantine: what has not started is held up too."""
        for job in self.pool.take_waiting():
            self.on_again(job)

    def on_again(self, job: Job) -> None:
        """A job that has not run, or whose sandbox died under another one, comes back."""
        if job.settled or job.ended:
            return
        if self._draining or self._held_up:
            self._give_back(job)
            return
        if job.instead is not None:
            self._start(job, self._fall_back(job, job.instead))
            return
        try:
            if job.signer:
                self.reading.decode(job)  # whoever signed it may be gone
            denied = self._denied(job)  # policy may have changed
        except ExecutorError as error:
            denied = error
        if denied is not None:
            self._refuse(job, denied)
            return
        known = self.registry.now(job.request.tenant, job.request.task)
        if known is None:
            self._start(job, self._slowly(job))
        elif isinstance(known, ExecutorError):
            self._refuse(job, known)
        elif self.cancelling.has(job.request, self.now_ms()):
            job.admitted = known
            self._refuse(job, ExecutorError(_CANCELLED))
        else:
            self._dispatch(job, known)

    # 7 and 8: dispatch and execute.

    def _dispatch(self, job: Job, admitted: Admitted) -> None:
        if job.settled or job.ended:
            return
        if self._held_up:  # while it was on its way
            self._give_back(job)
            return
        job.admitted = admitted
        job.forget_calls()
        held_up = None if self.guards.quiet else self.guards.held_up(job, admitted)
        if held_up is not None:
            self.on_finished(job, Finished(held_up, Receipt()))
            return
        asked, authority = job.request.limits, admitted.authority
        job.limits = policy.for_request(authority, asked) if asked else authority.limits
        self.pool.dispatch(job)

    async def on_call(self, job: Job, call: Call) -> Answer:
        """8a: a mediated call of a running attempt."""
        if job.settled or job.ended:
            return Answer(call.seq, call.ordinal, abi.DENIED, b"it is over")
        try:
            return await self.mediator.serve(job, call)
        except Exception as error:  # noqa: BLE001 - the guest must not wait for its deadline
            self.telemetry.log.event("bug", id=job.request.id, error=repr(error))
            return Answer(call.seq, call.ordinal, abi.UNAVAILABLE, b"")

    def on_event(self, name: str, **facts: str | int) -> None:
        """Something of the pool that an operator may want to see."""
        self.telemetry.log.event(name, **facts)
        if facts.get("code") == "sandbox.protocol-violation":
            self.telemetry.security_event("illegal-frame", **facts)
        elif name == "sandbox.forbidden-call":
            self.telemetry.security_event("forbidden-call", **facts)

    # Cancelled ids.

    def _end_cancelled(self) -> None:
        for job in self.leases:
            if self.cancelling.has(job.request, self.now_ms()) and not self.pool.cancel(job):
                self._refuse(job, ExecutorError(_CANCELLED))

    def _end_waiting(self, message: StoredMessage) -> None:
        """End what waits in a schedule: its record is stored now, and the schedule finds it."""
        parts = subjects.parse_later(message.subject)
        if parts is None:
            return
        # No lease: nothing was delivered, so nothing is acked.
        job = Job(Delivery(
            data=message.body, subject=subjects.task(*parts[:2]), tenant=parts[0], headers={},
            sequence=0, delivered=1, stored_at=message.stored_at_ms, lease="",
        ), self.now_ms(), 0.0, UNREAD)  # fmt: skip
        try:
            self.reading.decode(job)
        except ExecutorError as error:
            self.telemetry.log.event("cancel-unread", id=parts[2], code=error.code)
            return
        self._refuse(job, ExecutorError(_CANCELLED))

    # 9 to 11: settle, publish, ack.

    def on_finished(self, job: Job, finished: Finished) -> None:
        """An attempt ended, or was refused before it began."""
        if job.settled or job.ended:
            return
        job.ended = True
        try:
            self._finish(job, finished)
        except Exception as error:  # noqa: BLE001 - one message must not stop all others
            self._bug(job, error)

    def _finish(self, job: Job, finished: Finished) -> None:
        self.usage.note(job, finished)
        outcome = finished.outcome
        if job.instead is None and isinstance(outcome, Result):
            # Nothing waits for another attempt, and nothing stands in for it.
            settlement = settled(job.request)
            self.guards.note(job, finished, settlement)
            self._settle(job, settlement, finished)
            return
        cancelled = isinstance(outcome, Failure) and outcome.code == _CANCELLED
        if job.instead is not None and not cancelled:
            # Learnt of its own module; what becomes of the task is not its to decide.
            self.guards.note(job, finished, Settlement(Action.NOTHING, job.request))
            self._end_fallback(job, finished, job.instead)
            return
        settlement = settle(
            outcome, job.request, self.rules, now=self.now_ms(), jitter=self.jitter()
        )
        owed_ms = self.guards.note(job, finished, settlement)
        if owed_ms:
            settlement = replace(settlement, delay_ms=settlement.delay_ms + owed_ms)
        fallback = stand_in(job, settlement, finished, self.trust)
        if fallback is None:
            self._settle(job, settlement, finished)
        elif fallback.task and job.admitted is not None:
            job.instead = Instead(fallback, job.admitted, settlement, finished)
            job.ended = False
            self._start(job, self._fall_back(job, job.instead))
        elif fallback.task:
            # Nobody knows how far the task's own authority would have reached.
            self._settle(job, settlement, failed_too(finished, "policy.task-unknown"))
        else:
            self._degrade(job, finished, degraded(finished, fallback))

    async def _fall_back(self, job: Job, instead: Instead) -> None:
        """Run another module in place of the task's own, with the task's authority at most."""
        tenant, task = job.request.tenant, instead.fallback.task
        try:
            admitted = await self.registry.admit(tenant, task)
            while self.registry.now(tenant, task) is not admitted:  # changed since it was decided
                admitted = await self.registry.admit(tenant, task)
            if self._held_up:  # nobody can be judged, nor stand in for anybody
                self._give_back(job)
                return
            other = bounded(admitted, instead.admitted.authority)
        except ExecutorError as error:
            self._end_fallback(job, Finished(as_failure(error), Receipt()), instead)
            return
        held_up = self.guards.held_up(job, other, task)
        if held_up is not None:
            self._end_fallback(job, Finished(held_up, Receipt()), instead)
        elif not job.settled and not job.ended:
            job.admitted = other
            job.forget_calls()
            job.limits = policy.for_request(other.authority, job.request.limits)
            self.pool.dispatch(job)

    def _end_fallback(self, job: Job, finished: Finished, instead: Instead) -> None:
        job.ended = True
        if isinstance(finished.outcome, Failure):
            job.admitted = instead.admitted  # the record is the task's own again
            first = failed_too(instead.finished, finished.outcome.code)
            self._settle(job, instead.settlement, first)
        else:
            self._degrade(job, instead.finished, finished)

    def _degrade(self, job: Job, first: Finished, finished: Finished) -> None:
        assert isinstance(first.outcome, Failure)
        job.degraded = first.outcome.code
        self._settle(job, settled(job.request), finished)

    def _bug(self, job: Job, error: BaseException) -> None:
        """Our own mistake: a dead letter that says so, or silence if even that fails."""
        self.telemetry.log.event("bug", id=job.request.id, error=repr(error))
        finished = Finished(Failure("internal.bug", type(error).__name__), Receipt())
        job.ended = True
        try:
            self._settle(job, settle(
                finished.outcome, job.request, self.rules, now=self.now_ms(), jitter=0.5
            ), finished)  # fmt: skip
        except Exception:  # noqa: BLE001 - the lease lapses, and deliveries_max bounds the rest
            self._release(job, "")

    def _settle(self, job: Job, settlement: Settlement, finished: Finished) -> None:
        code = finished.outcome.code if isinstance(finished.outcome, Failure) else "ok"
        if self.telemetry.listens:
            self.telemetry.attempt(job.request, finished, AttemptFacts(
                delivered=job.delivery.delivered, stored_at=job.delivery.stored_at,
                received_at=job.received_at, ended_at=self.now_ms(),
                settlement=settlement.action.value, calls=tuple(job.calls.items()),
            ))  # fmt: skip
        elif finished.logs:
            self.telemetry.guest_lines(job.request, finished.logs)
        if code != "ok":
            self.telemetry.log.event(
                "attempt", task=f"{job.request.tenant}/{job.request.task}", id=job.request.id,
                attempt=job.request.attempt, code=code, settlement=settlement.action.value,
                digest=finished.receipt.digest or "-",
            )  # fmt: skip
        if settlement.action is Action.NOTHING:
            self._release(job, "")
        else:
            self.settler.settle(job, settlement, finished)

    def on_settled(self, job: Job, what: str) -> None:
        """The settler is done with a job; "" means silence until the lease lapses."""
        if what == "later" and self.cancelling.has(job.request, self.now_ms()):
            # Cancelled while its retry was on the way to the stream: there it is now.
            self.cancelling.look_waiting(job.request.tenant, job.request.task, job.request.id)
        self._release(job, what)

    def _release(self, job: Job, what: str) -> None:
        if job.settled:
            return
        job.settled = True
        self.leases.give_up(job)
        self.settled[what] = self.settled.get(what, 0) + 1
        if self._ids and self._ids.get(_id_of(job)) is job:
            del self._ids[_id_of(job)]
        if job.followers:
            self._let_follow(job.followers)
        if job.delivery.lease:
            self.intake.completed(job.delivery.tenant)

    def _let_follow(self, followers: Iterable[Job]) -> None:
        for follower in followers:
            if self._draining:
                self._give_back(follower)
            elif not follower.settled and not follower.ended and not self._follows(follower):
                self._start(follower, self._slowly(follower))

    def _lost(self, job: Job) -> None:
        """Its lease lapsed: the redelivery owns the task."""
        self.telemetry.log.event("lease-lost", id=job.request.id)
        self.pool.drop(job)
        self._release(job, "")

    # The life of the pipeline.

    def start(self) -> None:
        """Begin to renew leases."""
        self.leases.start()

    async def drain(self, deadline_s: float) -> None:
        """Give back what has not started, let the rest end, within `deadline_s`."""
        self._draining = True
        for task, job in list(self._slow.items()):
            task.cancel()
            self._give_back(job)
        for job in self.pool.take_unstarted():
            self._give_back(job)
        try:
            async with asyncio.timeout(deadline_s):
                await self.leases.wait_empty()
        except TimeoutError:
            pass
        await self.stop()

    def _give_back(self, job: Job) -> None:
        if not job.settled:
            self.outbox.nak(job.delivery.lease)
            self._release(job, "")

    async def stop(self) -> None:
        """End everything now; what was not settled goes back to the queue."""
        self._draining = True
        self.leases.stop()
        self.cancelling.stop()
        self.schedules.stop()
        for task in self._slow:
            task.cancel()
        await self.pool.close()
        for job in self.leases:
            self._give_back(job)
        await self.settler.close()

    @property
    def held(self) -> int:
        """How many messages are in hand."""
        return len(self.leases)


def _id_of(job: Job) -> _IdOf:
    return job.request.tenant, job.request.task, job.request.id
