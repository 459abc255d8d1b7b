"""Steps 9 to 11 of a message's journey: decide, publish under a seal, ack.

Nothing is acked before its record is confirmed. What one loop turn settles is sealed with one
signature. When another record stands where ours was to be the first, it is read: an authentic one
is the task's outcome and ours is dropped; anything else is superseded and reported.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Final

from executor.core import envelope, seal, subjects
from executor.core.envelope import Draft, Record
from executor.core.seal import NotAuthenticError
from executor.core.settlement import Action, Rules, Settlement, attempts_max
from executor.core.signature import SecretKey
from executor.errors import TABLE, ExecutorError
from executor.model import (
    KIB,
    NO_ROOM,
    Answer,
    Conflict,
    Failure,
    Finished,
    Outgoing,
    Refused,
    Result,
    Stored,
    StoredMessage,
    Unconfirmed,
)
from executor.supervisor.job import Job
from executor.supervisor.ports import Outbox, Records, Trust
from executor.telemetry import Telemetry

# A forger can put a new record under each look of ours; after so many the lease may lapse.
_LOOKS_MAX: Final = 5
# No answer, or nobody there to give one: it may be different in a moment.
_PASSING: Final = frozenset({"transport.disconnected", "transport.stream-missing"})
_READ_AGAIN_S: Final = 0.2
_READ_AGAIN_MAX_S: Final = 5.0
# The tail of a guest's log in a dead letter: enough to see what it did last.
_TAIL_BYTES: Final = 8 * KIB

OnSettled = Callable[[Job, str], None]  # the job and what became of it


@dataclass
class Settler:
    """See the module. `on_settled` is called once for each job, with "" when it stays unsettled."""

    environment: str
    key: SecretKey
    rules: Rules
    trust: Trust
    outbox: Outbox
    records: Records
    telemetry: Telemetry
    now_ms: Callable[[], int]
    on_settled: OnSettled = field(init=False)  # the pipeline's, which is made from this one
    version: int = envelope.VERSION  # the highest that is written
    publish_s: float = 30.0
    _waiting: list[tuple[Job, Draft, Callable[[bytes], Outgoing]]] = field(default_factory=list)
    _looks: set[asyncio.Task[None]] = field(default_factory=set)

    def settle(self, job: Job, settlement: Settlement, finished: Finished) -> None:
        """Publish what `settlement` says of `job`; its ack follows when that is confirmed."""
        request = settlement.request
        tenant, task, task_id = request.tenant, request.task, request.id
        if settlement.action is Action.RETRY:
            aud = subjects.task(tenant, task)
            number = job.delivery.sequence  # one retry a delivery: the last write wins
            at = self.now_ms() + settlement.delay_ms
            if request.not_before and request.not_before <= at:
                request = replace(request, not_before=0)
            if 0 < request.expires_at < at:
                # It will not run: it comes when it expires, and not before its time should our
                # clock be behind the server's.
                request, at = replace(request, not_before=at), request.expires_at
            draft = Draft(
                "retry", subjects.audience(self.environment, aud), task_id,
                envelope.encode_retry(request, job.origin), envelope.retry_version(request),
            )  # fmt: skip
            outgoing = functools.partial(
                Outgoing, subjects.later(tenant, task, task_id, number),
                # With the time: the sequences of a tenant that is made again begin anew.
                headers={"Nats-Msg-Id": f"{tenant}.{number}.{job.delivery.stored_at}"},
                schedule_at_ms=at, schedule_target=subjects.due(tenant, task),
            )  # fmt: skip
        else:
            kind = "result" if settlement.action is Action.RESULT else "dead"
            subject, once = subjects.terminal(kind, tenant, task, task_id)
            record = self._record(job, settlement, finished)
            version = min(envelope.record_version(record), self.version)
            payload = envelope.encode_record(record, version)
            audience = subjects.audience(self.environment, subject)
            draft = Draft(kind, audience, task_id, payload, version)
            outgoing = functools.partial(_first_of, subject, once)
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._seal)
        self._waiting.append((job, draft, outgoing))

    def _record(self, job: Job, settlement: Settlement, finished: Finished) -> Record:
        request, outcome = settlement.request, finished.outcome
        # What every record says, in its order.
        head = (
            request.task, request.attempt, attempts_max(request, self.rules), request.submitted_at,
            self.now_ms(), finished.receipt, job.admitted.release.version if job.admitted else "",
            request.trace, request.history,
        )  # fmt: skip
        if isinstance(outcome, Result):
            return Record(
                *head, outcome.output, outcome.content_type, bool(job.degraded), cause=job.degraded
            )
        limits = asdict(finished.limits) if finished.limits else {}
        return Record(
            *head, code=settlement.code or outcome.code, message=outcome.message,
            hint=outcome.hint or TABLE[outcome.code].hint, facts=outcome.facts,
            logs=_tail(finished), origin=job.origin, limits=tuple(limits.items()),
            last_calls=finished.last_calls,
            signers=job.admitted.publishers if job.admitted else (),
        )  # fmt: skip

    def _seal(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), seal.BATCH_MAX):
            batch = waiting[start : start + seal.BATCH_MAX]
            bodies = seal.seal(self.key, [draft for _, draft, _ in batch], at=self.now_ms())
            for (job, _, outgoing), body in zip(batch, bodies, strict=True):
                try:
                    self._publish(job, outgoing(body), looks=0)
                except Exception as error:  # noqa: BLE001 - it must not keep the others waiting
                    self.telemetry.log.event("bug", id=job.request.id, error=repr(error))
                    self.on_settled(job, "")
        self.outbox.push()

    def _publish(self, job: Job, outgoing: Outgoing, looks: int) -> None:
        if job.settled:
            return  # the lease was lost meanwhile: the redelivery owns the task

        on_answer = functools.partial(self._answered, job, outgoing, looks)
        self.outbox.publish(outgoing, on_answer, self.publish_s)

    def _answered(self, job: Job, outgoing: Outgoing, looks: int, answer: Answer) -> None:
        if job.settled:
            return
        if isinstance(answer, Stored):
            self._ack(job, outgoing.subject.partition(".")[0])
        elif isinstance(answer, Conflict) and outgoing.once and looks < _LOOKS_MAX:
            self._start(self._look(job, outgoing, looks + 1))
        else:
            self._unconfirmed(job, outgoing, answer, looks)

    def _unconfirmed(self, job: Job, outgoing: Outgoing, answer: Answer, looks: int) -> None:
        """Ask again while the lease is ours: an outage of the store costs no delivery and no run.

        Meanwhile the message is held, so nothing new is asked for beyond the window.
        """
        why = answer.text if isinstance(answer, Refused) else type(answer).__name__.lower()
        self.telemetry.log.event(
            "publish-unconfirmed", id=job.request.id, subject=outgoing.subject, why=why
        )
        passing = isinstance(answer, Unconfirmed) or (
            isinstance(answer, Refused) and answer.temporary
        )
        if passing and job.delivery.lease:
            self._publish(job, outgoing, looks)
            return
        if isinstance(answer, Refused) and answer.code == NO_ROOM and job.delivery.lease:
            # Not held until there is room: what came due may wait for the place of what we hold.
            # Back in its queue it takes room where the submitter is told of it.
            delay_ms = max(outgoing.schedule_at_ms - self.now_ms(), 0)
            self.outbox.nak(job.delivery.lease, delay_ms)
        self.on_settled(job, "")

    def _ack(self, job: Job, what: str) -> None:
        if job.delivery.lease:
            self.outbox.ack(job.delivery.lease)
        self.on_settled(job, what)

    def _start(self, look: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(look)
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    async def _look(self, job: Job, outgoing: Outgoing, looks: int) -> None:
        """Another record is in the way: believe it, or put ours on top of it."""
        request = job.request
        try:
            stored = await self.read(job)
        except ExecutorError:
            self.on_settled(job, "")
            return
        if job.settled:
            return
        if self.authentic(stored):
            self.telemetry.log.event("duplicate", task=request.task, id=request.id)
            self._ack(job, "duplicate")
            return
        last = max((message.sequence for message in stored), default=0)
        self._publish(job, replace(outgoing, expected_sequence=last), looks)

    async def read(self, job: Job) -> Sequence[StoredMessage]:
        """What is stored of a job's id; asked again while nobody answers and the lease is ours.

        Errors  `transport.*` for what does not pass by itself.
        """
        request, delay_s = job.request, _READ_AGAIN_S
        while not job.settled:
            try:
                return await self.records.read(request.tenant, request.task, request.id)
            except ExecutorError as error:
                self.telemetry.log.event("outcome-unreadable", id=request.id, code=error.code)
                if error.code not in _PASSING or not job.delivery.lease:
                    raise
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _READ_AGAIN_MAX_S)
        return ()

    def authentic(self, stored: Sequence[StoredMessage]) -> bool:
        """Whether one of the stored messages is an outcome; the others are security events."""
        found = False
        opener = self.trust.opener()
        for message in stored:
            try:
                opener.record(message.subject, message.body, stored_at=message.stored_at_ms)
            except NotAuthenticError as error:
                self.telemetry.security_event(
                    "record-not-authentic", subject=message.subject, sequence=message.sequence,
                    reason=error.reason,
                )  # fmt: skip
            else:
                found = True
        return found

    async def close(self) -> None:
        """Wait for the looks that are under way."""
        await asyncio.gather(*self._looks, return_exceptions=True)


def _first_of(subject: str, once: str, body: bytes) -> Outgoing:
    return Outgoing(subject, body, {}, once)


def _tail(finished: Finished) -> tuple[tuple[int, str], ...]:
    tail: list[tuple[int, str]] = []
    size = 0
    for line in reversed(finished.logs[-envelope.TAIL_LINES_MAX :]):
        size += len(line.text.encode())
        if size > _TAIL_BYTES:
            break
        tail.append((line.level, line.text))
    return tuple(reversed(tail))


def as_failure(error: ExecutorError) -> Failure:
    """A refusal as the value that settles the task."""
    facts = tuple((name, value) for name, value in error.facts.items())
    return Failure(error.code, error.detail, error.hint, facts)
