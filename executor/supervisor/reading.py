"""Step 2 of a message's journey: from bytes to what is asked for, and by whom that was said.

What is refused here is recorded under the message's place: whoever has not proved that it may ask
for a task must not end another's under an id that it claims.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from executor.core import envelope, schedule, subjects
from executor.core.access import of_key
from executor.core.envelope import Sealed
from executor.core.schedule import Firing
from executor.core.seal import NotAuthenticError
from executor.errors import ExecutorError
from executor.model import Delivery, TaskId, TaskRequest
from executor.supervisor.job import Job
from executor.supervisor.ports import Trust
from executor.telemetry import Telemetry

# What nobody sends by mistake.
_ATTACKS: Final = frozenset({"message.audience-mismatch", "policy.submitter-denied"})
# What the server says itself, and has put where somebody wanted it: acknowledgements and answers.
_SERVERS_OWN: Final = (b'{"stream":', b'{"type":"io.nats.', b'{"error":')
_OUTCOMES: Final = frozenset({"result", "dead", "control", "audit"})
# Of a job until its message is read.
UNREAD: Final = TaskRequest("", "", TaskId(""), b"")


def reflected(data: bytes) -> bool:
    """Whether these bytes came from a place where only others write: never a submitter's mistake.

    The server writes an answer wherever its caller asks it to, without looking at rights.
    """
    if data.startswith(_SERVERS_OWN):
        return True
    try:
        return envelope.decode_sealed(data).typ in _OUTCOMES
    except ExecutorError:
        return False


@dataclass(frozen=True, slots=True)
class Reading:
    """See the module."""

    environment: str
    trust: Trust
    telemetry: Telemetry

    def decode(self, job: Job) -> None:
        """Fill in what the message asks for; what is refused goes by its place as id.

        Errors  `message.*`, `policy.raw-body-refused`, `policy.submitter-denied`.
        """
        try:
            self._decode(job)
        except Exception as error:
            _name(job)
            if isinstance(error, ExecutorError) and (
                error.code in _ATTACKS or reflected(job.delivery.data)
            ):
                self.telemetry.security_event(
                    "task-not-authentic", subject=job.delivery.subject,
                    sequence=job.delivery.sequence, reason=error.message,
                )  # fmt: skip
            raise

    def _decode(self, job: Job) -> None:
        delivery = job.delivery
        tenant, task = delivery.tenant, _task_of(delivery)
        if task == "_":
            raise ExecutorError("message.malformed", f"the subject `{delivery.subject[:200]}`")
        policy_now = self.trust.policy()
        party = policy_now.tenant(tenant)
        signed = party is not None and party.signed_requests
        request = envelope.decode_task(
            delivery.data, delivery.headers, tenant, task, environment=self.environment,
            raw_allowed=party is None or (party.raw_bodies and not signed),
            input_max=policy_now.limits.input_bytes, submitted_at=delivery.stored_at,
        )  # fmt: skip
        if not isinstance(request, Sealed):
            if signed:
                raise ExecutorError("policy.submitter-denied", "the request is not signed")
            job.request = request
            return
        _name(job)
        if request.typ == "retry":
            job.request, job.first = self._open_retry(job, request)
        elif request.typ == "task":
            job.request = self._open_signed(job, request, delivery.stored_at)
        else:
            job.request, job.firing = self._open_firing(
                job, request, job.origin, delivery.stored_at
            )

    def _open_retry(self, job: Job, sealed: Sealed) -> tuple[TaskRequest, envelope.Origin]:
        self._open(job, sealed, job.delivery.stored_at)

        def opened(first: Sealed, origin: envelope.Origin, at: int) -> TaskRequest:
            if first.typ == "task":
                return self._open_signed(job, first, at)
            return self._open_firing(job, first, origin, at)[0]

        return envelope.decode_retry(
            sealed, job.request.tenant, job.request.task, environment=self.environment,
            input_max=self.trust.policy().limits.input_bytes, opened=opened,
        )  # fmt: skip

    def _open_signed(self, job: Job, sealed: Sealed, stored_at: int) -> TaskRequest:
        """What a submitter signed. Errors  `message.*`, `policy.submitter-denied`.

        Proved at each attempt: a key that was revoked since asks for nothing more.
        """
        tenant, task = job.request.tenant, job.request.task
        try:
            party = self.trust.opener().request(
                sealed, tenant=tenant, task=task, stored_at=stored_at
            )
        except NotAuthenticError as error:
            raise ExecutorError("policy.submitter-denied", error.reason) from error
        job.signer = of_key(party.key)  # it asks in its own name as well as in its tenant's
        return envelope.decode_signed(
            sealed, tenant, task, environment=self.environment,
            input_max=self.trust.policy().limits.input_bytes, submitted_at=stored_at,
        )  # fmt: skip

    def _open_firing(
        self, job: Job, sealed: Sealed, origin: envelope.Origin, stored_at: int
    ) -> tuple[TaskRequest, Firing]:
        self._open(job, sealed, stored_at)
        return schedule.read(
            sealed, origin, job.request.tenant, job.request.task, stored_at=stored_at,
            input_max=self.trust.policy().limits.input_bytes,
        )  # fmt: skip

    def _open(self, job: Job, sealed: Sealed, stored_at: int) -> None:
        """Refuse what an executor did not say of this subject. Errors  `message.malformed`."""
        delivery, typ = job.delivery, sealed.typ
        try:
            self.trust.opener().open(
                sealed, typ=typ, subject=delivery.subject, task_id=sealed.id,
                tenant=job.request.tenant, stored_at=stored_at,
            )  # fmt: skip
        except NotAuthenticError as error:
            self.telemetry.security_event(
                f"{typ}-not-authentic", subject=delivery.subject, sequence=delivery.sequence,
                reason=error.reason,
            )  # fmt: skip
            raise ExecutorError("message.malformed", f"a {typ} {error.reason}") from error


def _task_of(delivery: Delivery) -> str:
    parsed = subjects.parse_task(delivery.subject)
    return parsed[1] if parsed and parsed[0] == delivery.tenant else "_"


def _name(job: Job) -> None:
    """Until it is decoded, a message has no id but its place in the stream."""
    delivery = job.delivery
    if job.request is UNREAD:
        job.request = TaskRequest(
            delivery.tenant, _task_of(delivery), TaskId(f"_{delivery.sequence}"), b"",
            submitted_at=delivery.stored_at,
        )  # fmt: skip
