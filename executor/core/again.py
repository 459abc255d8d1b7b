"""Asking again for a dead letter: the request that it came from, under an id derived from both."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from executor.core import envelope, schedule
from executor.core.envelope import Record, Sealed
from executor.errors import ExecutorError
from executor.model import TaskId, TaskRequest


def retried_id(task_id: str, sequence: int) -> TaskId:
    """H(old id, record sequence): asking twice for the same record is asking once."""
    data = f"{task_id}\0{sequence}".encode()
    return TaskId("r" + hashlib.sha256(data).hexdigest()[:40])


def request_of(record: Record, tenant: str, task_id: str, environment: str) -> TaskRequest:
    """What a dead letter asked for, as a retry of it under a new id will read it.

    Errors  `message.*` for one that cannot be asked for again.
    """
    origin, task = record.origin, record.task
    if origin is None or not origin.whole:
        raise ExecutorError("message.too-large", f"the bytes of `{task_id}` were not kept whole",
                            hint="submit it again from where it came from")  # fmt: skip
    request = envelope.decode_task(
        origin.data, dict(origin.headers), tenant, task, environment=environment,
        raw_allowed=True, input_max=envelope.MESSAGE_MAX,
    )  # fmt: skip
    if isinstance(request, Sealed):
        # The letter is sealed, and its message was checked when it came.
        if request.typ == "schedule":
            request, _ = schedule.read(
                request, origin, tenant, task, stored_at=record.submitted_at,
                input_max=envelope.MESSAGE_MAX,
            )  # fmt: skip
        elif request.typ == "task":
            request = envelope.decode_signed(
                request, tenant, task, environment=environment, input_max=envelope.MESSAGE_MAX
            )
        else:
            raise ExecutorError("message.malformed", "it was no task")
    return replace(request, submitted_at=record.submitted_at)


def retry_of(record: Record, tenant: str, task_id: str, sequence: int, environment: str
             ) -> TaskRequest:  # fmt: skip
    """A first attempt at what a dead letter asked for, under its new id. Errors  `message.*`."""
    request = request_of(record, tenant, task_id, environment)
    return replace(
        request, id=retried_id(task_id, sequence), of=request.id, fresh=False, expires_at=0,
        not_before=0,
    )  # fmt: skip
