"""The journey of a message, one step after the other.

    1 receive · 2 decode · 3 count · 4 resolve · 5 verify · 6 authorise · 7 dispatch · 8 execute
    9 settle · 10 publish · 11 ack

The common case runs through steps 1 to 7 without waiting: everything it needs was decided before
and is a look-up. Only an unknown module and an id that may be done already take the slow path.
Each message in hand has a lease, renewed here; a message whose lease was lost is forgotten, since
its redelivery owns the task.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Final

from executor.core import abi, envelope, policy, subjects
from executor.core.envelope import Sealed
from executor.core.frames import Answer, Call
from executor.core.seal import NotAuthenticError
from executor.core.settlement import (
    Action,
    Rules,
    Settlement,
    before_running,
    must_look_up,
    settle,
)
from executor.errors import ExecutorError
from executor.model import Delivery, Failure, Finished, Receipt, Result, TaskId, TaskRequest
from executor.supervisor.cancels import Cancels
from executor.supervisor.job import Admitted, Job
from executor.supervisor.mediator import Mediator
from executor.supervisor.pool import Pool
from executor.supervisor.ports import Intake, Outbox, Records, Trust
from executor.supervisor.registry import Registry
from executor.supervisor.settling import Settler, as_failure
from executor.telemetry import AttemptFacts, Telemetry

# A lease is renewed this often before it would lapse: one lost message is no lost lease.
_RENEWALS: Final = 3
_FOR_EVER: Final = 2**53


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
    pool: Pool = field(init=False)
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    jitter: Callable[[], float] = random.random
    connected: bool = True
    cancels: Cancels = field(default_factory=Cancels)
    _held: dict[tuple[str, int], Job] = field(default_factory=dict)
    _slow: dict[asyncio.Task[None], Job] = field(default_factory=dict)
    _looks: set[asyncio.Task[None]] = field(default_factory=set)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _draining: bool = False
    _renewal: asyncio.TimerHandle | None = None
    settled: dict[str, int] = field(default_factory=dict)

    # 1 to 3: receive, decode, count.

    def receive(self, delivery: Delivery) -> None:
        """Take one delivery; whatever it is, it ends in exactly one settlement."""
        held = self._held.get((delivery.tenant, delivery.sequence))
        if held is not None:
            # Our lease lapsed on the server and the message came back to us: the work goes on
            # under the new lease, and the old delivery's credit is free.
            held.delivery = delivery
            held.lease_until = asyncio.get_running_loop().time() + self.ack_wait_ms / 1000
            self.intake.completed(delivery.tenant)
            return
        if self._draining:
            self.outbox.nak(delivery.lease)
            self.intake.completed(delivery.tenant)
            return
        job = self._job(delivery)
        self._held[delivery.tenant, delivery.sequence] = job
        try:
            self._begin(job)
        except ExecutorError as error:
            self._refuse(job, error)
        except Exception as error:  # noqa: BLE001 - one message must not stop all others
            self._bug(job, error)

    def _begin(self, job: Job) -> None:
        """Steps 2 to 7, as far as they need not wait. Errors  what refuses the message."""
        delivery = job.delivery
        self._decode(job)
        if self.cancels.has(job.request, job.received_at):
            raise ExecutorError("task.cancelled")
        ready = before_running(
            job.request, self.rules, now=job.received_at, delivered=delivery.delivered
        )
        if ready is not None and ready.action is Action.RETRY:
            self.settler.settle(job, ready, Finished(Result(b""), Receipt()))  # not before its time
            return
        if ready is not None:
            self._settle(job, ready, Finished(Failure(ready.code), Receipt()))
            return
        known = self.registry.now(job.request.tenant, job.request.task)
        if known is None or must_look_up(job.request, delivered=delivery.delivered):
            self._start(job, self._slowly(job))
        elif isinstance(known, ExecutorError):
            raise known
        else:
            self._dispatch(job, known)

    def _job(self, delivery: Delivery) -> Job:
        parsed = subjects.parse_task(delivery.subject)
        task = parsed[1] if parsed and parsed[0] == delivery.tenant else "_"
        too_large = len(delivery.data) > envelope.MESSAGE_MAX
        sha256 = hashlib.sha256(delivery.data).hexdigest() if too_large else ""
        return Job(
            delivery=delivery, received_at=self.now_ms(),
            lease_until=asyncio.get_running_loop().time() + self.ack_wait_ms / 1000,
            origin=envelope.origin_of(delivery, sha256),
            # Until it is decoded, a message has no id but its place in the stream.
            request=TaskRequest(
                delivery.tenant, task, TaskId(f"_{delivery.sequence}"), b"",
                submitted_at=delivery.stored_at,
            ),
        )  # fmt: skip

    def _decode(self, job: Job) -> None:
        """Fill in what the message asks for. Errors  `message.*`, `policy.raw-body-refused`."""
        delivery, tenant, task = job.delivery, job.request.tenant, job.request.task
        if task == "_":
            raise ExecutorError("message.malformed", f"the subject `{delivery.subject[:200]}`")
        policy_now = self.trust.policy()
        party = policy_now.tenant(tenant)
        request = envelope.decode_task(
            delivery.data, delivery.headers, tenant, task, environment=self.environment,
            raw_allowed=party is None or party.raw_bodies,
            input_max=policy_now.limits.input_bytes,
        )  # fmt: skip
        if isinstance(request, Sealed):
            job.request, job.origin = self._open_retry(job, request)
        else:
            job.request = replace(request, submitted_at=delivery.stored_at)

    def _open_retry(self, job: Job, sealed: Sealed) -> tuple[TaskRequest, envelope.Origin]:
        delivery, tenant, task = job.delivery, job.request.tenant, job.request.task
        try:
            self.trust.opener().open(
                sealed, typ="retry", subject=delivery.subject, task_id=sealed.id, tenant=tenant,
                stored_at=delivery.stored_at,
            )  # fmt: skip
        except NotAuthenticError as error:
            self.telemetry.security_event(
                "retry-not-authentic", subject=delivery.subject, sequence=delivery.sequence,
                reason=error.reason,
            )  # fmt: skip
            raise ExecutorError("message.malformed", f"a retry {error.reason}") from error
        return envelope.decode_retry(
            sealed, tenant, task, environment=self.environment,
            input_max=self.trust.policy().limits.input_bytes,
        )  # fmt: skip

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
                stored = await self.records.read(request.tenant, request.task, request.id)
                if self.settler.authentic(stored):
                    self.telemetry.log.event("duplicate", task=request.task, id=request.id)
                    self.outbox.ack(job.delivery.lease)
                    self._release(job, "duplicate")
                    return
            admitted = await self.registry.admit(request.tenant, request.task)
        except ExecutorError as error:
            self._refuse(job, error)
            return
        self._dispatch(job, admitted)

    def decide_again(self) -> None:
        """Policy or trust changed: what has not started is authorised anew, as if just received."""
        revoked = self.registry.revoked()
        self.registry.forget()
        waiting = self.pool.take_waiting()
        for digest in revoked:
            self.pool.retire_module(digest)
        self.pool.retire_all()
        for job in waiting:
            self.on_again(job)

    def on_again(self, job: Job) -> None:
        """A job that has not run, or whose sandbox died under another one, comes back."""
        if job.settled or job.ended:
            return
        known = self.registry.now(job.request.tenant, job.request.task)
        if known is None:
            self._start(job, self._slowly(job))
        elif isinstance(known, ExecutorError):
            self._refuse(job, known)
        else:
            self._dispatch(job, known)

    # 7 and 8: dispatch and execute.

    def _dispatch(self, job: Job, admitted: Admitted) -> None:
        if job.settled or job.ended:
            return
        job.admitted = admitted
        job.limits = policy.for_request(admitted.authority, job.request.limits)
        self.pool.dispatch(job)

    async def on_call(self, job: Job, call: Call) -> Answer:
        """8a: a mediated call of a running attempt."""
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

    # Cancelling.

    def cancel(self, tenant: str, task: str, task_id: str, until: int = _FOR_EVER) -> None:
        """An id must not run any more, wherever it is; `task` may be `ANY_TASK`.

        What is in hand ends now, what waits for a retry is looked up, what is queued ends when it
        is delivered, until then (ms).
        """
        self.cancels.announce(tenant, task, task_id, until)
        for job in list(self._held.values()):
            if self.cancels.has(job.request, self.now_ms()) and not self.pool.cancel(job):
                self._refuse(job, ExecutorError("task.cancelled"))
        self._look_waiting(tenant, task, task_id)

    def _look_waiting(self, tenant: str, task: str, task_id: str) -> None:
        look = asyncio.get_running_loop().create_task(self._cancel_waiting(tenant, task, task_id))
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)

    async def _cancel_waiting(self, tenant: str, task: str, task_id: str) -> None:
        """End what waits in a schedule: its record is stored now, and the schedule finds it."""
        try:
            found = await self.records.waiting(tenant, task, task_id)
        except ExecutorError as error:
            self.telemetry.log.event("cancel-unread", id=task_id, code=error.code)
            return  # it ends when it comes due
        for message in found:
            parts = subjects.parse_later(message.subject)
            if parts is None:
                continue
            # No lease: nothing was delivered, so nothing is acked.
            job = self._job(Delivery(
                data=message.body, subject=subjects.task(*parts[:2]), tenant=tenant, headers={},
                sequence=0, delivered=1, stored_at=message.stored_at_ms, lease="",
            ))  # fmt: skip
            try:
                self._decode(job)
            except ExecutorError as error:
                self.telemetry.log.event("cancel-unread", id=task_id, code=error.code)
                continue
            self._refuse(job, ExecutorError("task.cancelled"))

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
        settlement = settle(
            finished.outcome, job.request, self.rules, now=self.now_ms(), jitter=self.jitter()
        )
        self._settle(job, settlement, finished)

    def _bug(self, job: Job, error: BaseException) -> None:
        """Our own mistake: a dead letter that says so, or silence if even that fails."""
        self.telemetry.log.event("bug", id=job.request.id, error=repr(error))
        failure = Failure("internal.bug", type(error).__name__)
        try:
            self._finish(job, Finished(failure, Receipt()))
        except Exception:  # noqa: BLE001 - the lease lapses, and deliveries_max bounds the rest
            self._release(job, "")

    def _settle(self, job: Job, settlement: Settlement, finished: Finished) -> None:
        code = finished.outcome.code if isinstance(finished.outcome, Failure) else "ok"
        self.telemetry.attempt(job.request, finished, AttemptFacts(
            delivered=job.delivery.delivered, stored_at=job.delivery.stored_at,
            received_at=job.received_at, ended_at=self.now_ms(),
            settlement=settlement.action.value, calls=tuple(job.calls.items()),
        ))  # fmt: skip
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
        if what == "later" and self.cancels.has(job.request, self.now_ms()):
            # Cancelled while its retry was on the way to the stream: there it is now.
            self._look_waiting(job.request.tenant, job.request.task, job.request.id)
        self._release(job, what)

    def _release(self, job: Job, what: str) -> None:
        if job.settled:
            return
        job.settled = True
        self._held.pop((job.delivery.tenant, job.delivery.sequence), None)
        self.settled[what] = self.settled.get(what, 0) + 1
        if job.delivery.lease:
            self.intake.completed(job.delivery.tenant)
        if not self._held:
            self._idle.set()

    # Leases.

    def start(self) -> None:
        """Begin to renew leases."""
        self._schedule_renewal()

    def _schedule_renewal(self) -> None:
        self._renewal = asyncio.get_running_loop().call_later(
            self.ack_wait_ms / 1000 / _RENEWALS, self._renew
        )

    def _renew(self) -> None:
        now = asyncio.get_running_loop().time()
        for job in list(self._held.values()):
            if now > job.lease_until:
                self.telemetry.log.event("lease-lost", id=job.request.id)
                self.pool.drop(job)
                self._release(job, "")
            elif self.connected:
                self.outbox.progress(job.delivery.lease)
                job.lease_until = now + self.ack_wait_ms / 1000
        self._schedule_renewal()

    # Draining.

    async def drain(self, deadline_s: float) -> None:
        """Give back what has not started, let the rest end, within `deadline_s`."""
        self._draining = True
        for task, job in list(self._slow.items()):
            task.cancel()
            self._give_back(job)
        for job in self.pool.take_waiting():
            self._give_back(job)
        try:
            async with asyncio.timeout(deadline_s):
                while self._held:
                    self._idle.clear()
                    await self._idle.wait()
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
        if self._renewal is not None:
            self._renewal.cancel()
        for task in [*self._slow, *self._looks]:
            task.cancel()
        await self.pool.close()
        for job in list(self._held.values()):
            self._give_back(job)
        await self.settler.close()

    @property
    def held(self) -> int:
        """How many messages are in hand."""
        return len(self._held)
