"""Where an executor hears commands: for all, for itself, and for one of a tenant's executors.

Nobody may publish to an inbox of a sender's choice: answers go to the executor's own subject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from executor.core import subjects
from executor.core.policy import Tenant
from executor.transport.connection import Connection, Message, Subscription

# The executors of a tenant take turns: each command reaches one of them.
_QUEUE: Final = "executors"


@dataclass
class Listening:
    """See the module. `on_command` takes subject and bytes."""

    connection: Connection
    executor: str
    on_command: Callable[[str, bytes], None]
    _open: dict[str, Subscription] = field(default_factory=dict)

    async def start(self, tenants: Iterable[Tenant]) -> None:
        """Listen for these tenants, and no more for others. Errors  `transport.*`."""
        wanted = {subjects.commands_all(): "", subjects.commands(self.executor): ""}
        wanted |= {subjects.commands_of(tenant.name): _QUEUE for tenant in tenants}
        for subject in set(self._open) - set(wanted):
            await self.connection.unsubscribe(self._open.pop(subject))
        for subject in set(wanted) - set(self._open):
            self._open[subject] = await self.connection.subscribe(
                subject, self._receive, queue=wanted[subject]
            )

    def _receive(self, message: Message) -> None:
        self.on_command(message.subject, message.data)

    async def stop(self) -> None:
        """Listen no more."""
        while self._open:
            await self.connection.unsubscribe(self._open.popitem()[1])
