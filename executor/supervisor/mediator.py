"""Serves what a guest may ask for, one call at a time, and believes nothing the sandbox says.

The grant is checked again here although the linker linked only what was granted: the process that
asks may be in an attacker's hands. A check on the jailed side alone is no security.
"""

from __future__ import annotations

from dataclasses import dataclass

from executor.capabilities import kv
from executor.core import abi
from executor.core.frames import Answer, Call
from executor.supervisor.job import Job
from executor.supervisor.ports import Stores


@dataclass
class Mediator:
    """See the module."""

    stores: Stores

    async def serve(self, job: Job, call: Call) -> Answer:
        """Re-check the grant, bound the arguments, act, answer."""
        job.calls[call.function] = job.calls.get(call.function, 0) + 1
        status, data = await self._act(job, call)
        if status == abi.UNAVAILABLE:
            job.unavailable = call.function
        if status < 0:
            data = data[: abi.ERROR_TEXT_MAX]
        return Answer(call.seq, call.ordinal, status, data)

    async def _act(self, job: Job, call: Call) -> tuple[int, bytes]:
        authority = job.admitted.authority if job.admitted else None
        if authority is None or call.function not in authority.functions:
            return abi.DENIED, b"not granted"
        bucket = self.stores.kv(job.request.tenant)
        return await kv.serve(bucket, authority.kv, call.function, call.key, call.value)
