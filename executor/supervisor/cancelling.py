"""Ends what was cancelled: in hand now, waiting in a schedule once it is found there, queued at its
delivery.
"""  # noqa: D205

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from executor.errors import ExecutorError
from executor.model import StoredMessage, TaskRequest
from executor.supervisor.cancels import Cancels
from executor.supervisor.ports import Records
from executor.telemetry import Telemetry

_FOR_EVER: Final = 2**53


@dataclass
class Cancelling:
    """See the module.

    `on_cancelled`  ends what is in hand of the ids that `has` names.
    `on_waiting`    ends what waits in a schedule, from the schedule's own message.
    """

    records: Records
    telemetry: Telemetry
    on_cancelled: Callable[[], None]
    on_waiting: Callable[[StoredMessage], None]
    cancels: Cancels = field(default_factory=Cancels)
    _looks: set[asyncio.Task[None]] = field(default_factory=set)

    def cancel(self, tenant: str, task: str, task_id: str, until: int = _FOR_EVER) -> None:
        """From now on and until then (ms) this id must not run; `task` may be `ANY_TASK`."""
        if not self.cancels.announce(tenant, task, task_id, until):
            return
        self.on_cancelled()
        self.look_waiting(tenant, task, task_id)

    def withdraw(self, tenant: str, task: str, task_id: str) -> None:
        """The announcement was removed."""
        self.cancels.withdraw(tenant, task, task_id)

    def has(self, request: TaskRequest, now: int) -> bool:
        """Whether this task was cancelled."""
        return self.cancels.has(request, now)

    def look_waiting(self, tenant: str, task: str, task_id: str) -> None:
        """Look for the id's schedules."""
        look = asyncio.get_running_loop().create_task(self._look(tenant, task, task_id))
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)

    async def _look(self, tenant: str, task: str, task_id: str) -> None:
        try:
            found = await self.records.waiting(tenant, task, task_id)
        except ExecutorError as error:
            self.telemetry.log.event("cancel-unread", id=task_id, code=error.code)
            return  # it ends when it comes due
        for message in found:
            self.on_waiting(message)

    def stop(self) -> None:
        """Look for nothing any more."""
        for look in self._looks:
            look.cancel()
