"""The ids that were cancelled, as CONTROL announces them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from executor.core.subjects import ANY_TASK
from executor.model import TaskRequest

# An id costs about 300 bytes here; what was announced first is forgotten first.
CANCELS_MAX: Final = 100_000


@dataclass
class Cancels:
    """See the module."""

    _until: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def announce(self, tenant: str, task: str, task_id: str, until: int) -> bool:
        """From now on and until then (ms) this id must not run; `task` may be `ANY_TASK`.

        False: it was announced before.
        """
        if self._until.pop((tenant, task, task_id), 0) == until:
            self._until[tenant, task, task_id] = until
            return False
        self._until[tenant, task, task_id] = until
        if len(self._until) > CANCELS_MAX:
            del self._until[next(iter(self._until))]
        return True

    def withdraw(self, tenant: str, task: str, task_id: str) -> None:
        """The announcement was removed."""
        self._until.pop((tenant, task, task_id), None)

    def has(self, request: TaskRequest, now: int) -> bool:
        """Whether this task was cancelled."""
        if not self._until:
            return False
        return any(
            self._until.get((request.tenant, task, request.id), 0) > now
            for task in (request.task, ANY_TASK)
        )
