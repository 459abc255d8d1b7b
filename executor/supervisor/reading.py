"""Step 2 of a message's journey: from bytes to what is asked for, and by whom that was said."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from executor.core import envelope, subjects
from executor.core.envelope import Sealed
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
        too_large = len(delivery.data) > envelope.MESSAGE_MAX
        sha256 = hashlib.sha256(delivery.data).hexdigest() if too_large else ""
        return Job(
            delivery=delivery, received_at=now, lease_until=lease_until,
            origin=envelope.origin_of(delivery, sha256),
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
