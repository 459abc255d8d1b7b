"""Step 2 of a message's journey: from bytes to what is asked for, and by whom that was said."""

from __future__ import annotations

from dataclasses import dataclass

from executor.core import envelope, schedule, subjects
from executor.core.envelope import Sealed
from executor.core.schedule import Firing
from executor.core.seal import NotAuthenticError
from executor.errors import ExecutorError
from executor.model import Delivery, TaskId, TaskRequest
from executor.supervisor.job import Job
from executor.supervisor.ports import Trust
from executor.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Reading:
    """See the module."""

    environment: str
    trust: Trust
    telemetry: Telemetry

    def job(self, delivery: Delivery, now: int, lease_until: float) -> Job:
        """A job for a delivery that came to hand `now` (ms), under its place as id."""
        parsed = subjects.parse_task(delivery.subject)
        task = parsed[1] if parsed and parsed[0] == delivery.tenant else "_"
        return Job(
            delivery=delivery, received_at=now, lease_until=lease_until,
            # Until it is decoded, a message has no id but its place in the stream.
            request=TaskRequest(
                delivery.tenant, task, TaskId(f"_{delivery.sequence}"), b"",
                submitted_at=delivery.stored_at,
            ),
        )  # fmt: skip

    def decode(self, job: Job) -> None:
        """Fill in what the message asks for. Errors  `message.*`, `policy.raw-body-refused`."""
        delivery, tenant, task = job.delivery, job.request.tenant, job.request.task
        if task == "_":
            raise ExecutorError("message.malformed", f"the subject `{delivery.subject[:200]}`")
        policy_now = self.trust.policy()
        party = policy_now.tenant(tenant)
        request = envelope.decode_task(
            delivery.data, delivery.headers, tenant, task, environment=self.environment,
            raw_allowed=party is None or party.raw_bodies,
            input_max=policy_now.limits.input_bytes, submitted_at=delivery.stored_at,
        )  # fmt: skip
        if not isinstance(request, Sealed):
            job.request = request
        elif request.typ == "retry":
            job.request, job.first = self._open_retry(job, request)
        else:
            job.request, job.firing = self._open_firing(
                job, request, job.origin, delivery.stored_at
            )

    def _open_retry(self, job: Job, sealed: Sealed) -> tuple[TaskRequest, envelope.Origin]:
        self._open(job, sealed, job.delivery.stored_at)
        return envelope.decode_retry(
            sealed, job.request.tenant, job.request.task, environment=self.environment,
            input_max=self.trust.policy().limits.input_bytes,
            firing=lambda first, origin, at: self._open_firing(job, first, origin, at)[0],
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
