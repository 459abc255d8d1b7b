"""Serves what a guest may ask for, one call at a time, and believes nothing the sandbox says.

The grant is checked again here although the linker linked only what was granted: the process that
asks may be in an attacker's hands. A check on the jailed side alone is no security. A call ends
with its attempt's deadline, and is answered at once while the breaker of its service is open.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from executor.capabilities import kv
from executor.core import abi
from executor.core.frames import UNRETURNED, Answer, Call
from executor.supervisor.breakers import Breakers
from executor.supervisor.guards import target_of
from executor.supervisor.job import Job
from executor.supervisor.ports import Stores
from executor.supervisor.usage import Usages

_BREAKS: Final = frozenset({abi.UNAVAILABLE, abi.DEADLINE})
_REFUSED: Final = frozenset({abi.DENIED, abi.BAD_ARGUMENT})
# At its deadline an attempt is killed: the call only must not live on. So the kill comes first.
_AFTER_S: Final = 0.05


@dataclass
class Mediator:
    """See the module."""

    stores: Stores
    breakers: Breakers
    usage: Usages = field(default_factory=Usages)

    async def serve(self, job: Job, call: Call) -> Answer:
        """Re-check the grant, bound the arguments, act, answer."""
        job.calls[call.function] = job.calls.get(call.function, 0) + 1
        calls = job.noted_calls()
        calls.append((call.function, UNRETURNED))
        status, data = await self._act(job, call)
        calls[-1] = (call.function, min(status, 0))
        if status == abi.UNAVAILABLE:
            job.unavailable = call.function
        if status < 0:
            data = data[: abi.ERROR_TEXT_MAX]
        return Answer(call.seq, call.ordinal, status, data)

    async def _act(self, job: Job, call: Call) -> tuple[int, bytes]:
        authority = job.admitted.authority if job.admitted else None
        if authority is None or call.function not in authority.functions:
            return abi.DENIED, b"not granted"
        if authority.not_after and self.breakers.now_ms() > authority.not_after:
            return abi.DENIED, b"its grant has ended"
        target = target_of(job.request.tenant, "kv")
        held_up, wait_ms = self.breakers.wait_ms(target)
        if held_up is not None:
            job.unavailable_ms = wait_ms
            return abi.UNAVAILABLE, b"its breaker is open"
        bucket = self.stores.kv(job.request.tenant)
        try:
            async with asyncio.timeout(self._left_s(job)):
                status, data = await kv.serve(
                    bucket, authority.kv, call.function, call.key, call.value
                )
        except TimeoutError:
            # It says as much of a guest that asked late as of the service: no breaker's business.
            return abi.DEADLINE, b"the attempt's time is over"
        if status not in _REFUSED:
            self.usage.key(job, call.function, call.key.decode("ascii"))
        if status in _BREAKS:
            self.breakers.failed(target)
        else:
            self.breakers.succeeded(target)
        return status, data

    def _left_s(self, job: Job) -> float:
        """What is left of the attempt's time for its host calls."""
        left = job.started_at + job.limits.deadline_ms / 1000 - asyncio.get_running_loop().time()
        return max(min(left, job.limits.host_ms / 1000), 0.0) + _AFTER_S
